//! `sockeye check`: each need of the agent, whether this host meets it, and what to do if not. A start that fails says the same.

use std::process::ExitCode;

use serde::Serialize;
use sockeye::config::Config;
use sockeye::log::{complain, say};
use sockeye::owners::runtimes::{self, RuntimeList};
use sockeye_bpf::kernel::{Kernel, scan_kind};
use sockeye_bpf::preflight::{self, Need};
use sockeye_ctl::exit;

use crate::agent::{charged, kernel_options};
use crate::cli::Args;

/// How a need is met. The later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// It is.
    Ok,
    /// The agent works, with less.
    Degraded,
    /// It does not start, or sees nothing.
    Missing,
}

/// One need.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    name: String,
    grade: Grade,
    finding: String,
    remedy: Option<String>,
}

impl Finding {
    /// `unmet`: what it means if there is a remedy.
    fn new(need: Need, unmet: Grade) -> Self {
        let grade = if need.remedy.is_some() { unmet } else { Grade::Ok };
        Self { name: need.name.into(), grade, finding: need.finding, remedy: need.remedy }
    }

    fn ok(name: impl Into<String>, finding: impl Into<String>) -> Self {
        Self { name: name.into(), grade: Grade::Ok, finding: finding.into(), remedy: None }
    }

    fn line(&self) -> String {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Degraded => "degraded",
            Grade::Missing => "missing",
        };
        let remedy = self.remedy.as_ref().map(|remedy| format!(": {remedy}")).unwrap_or_default();
        format!("{grade:8} {:<19} {}{remedy}", self.name, self.finding)
    }

    fn code(&self) -> u8 {
        match self.grade {
            Grade::Ok => 0,
            Grade::Degraded => exit::DEGRADED,
            Grade::Missing if self.name == preflight::CAPABILITIES => exit::NO_PERMISSION,
            Grade::Missing => exit::UNAVAILABLE,
        }
    }
}

/// Says what a start would fail for, one sentence per need.
pub(crate) fn before_start(args: &Args) -> Result<(), ExitCode> {
    let mut failed = None;
    for finding in needs(args).iter().filter(|finding| finding.grade == Grade::Missing) {
        complain(&format!("{}: {}.", finding.finding, finding.remedy.as_deref().unwrap_or("see sockeye check")));
        failed.get_or_insert(ExitCode::from(finding.code()));
    }
    failed.map_or(Ok(()), Err)
}

/// Looks at everything, and prints it.
pub(crate) fn run(args: &Args, config: &Config, json: bool) -> ExitCode {
    let mut findings = needs(args);
    let all_there = findings.iter().all(|finding| finding.grade != Grade::Missing);
    let of_all = |needs: Vec<Need>, unmet| needs.into_iter().map(move |need| Finding::new(need, unmet));
    findings.extend(of_all(preflight::optional_capabilities(), Grade::Degraded));
    findings.extend(of_all(preflight::kernel_limits(), Grade::Degraded));
    findings.extend(of_all(preflight::limits(!args.no_cgroup), Grade::Degraded));
    if all_there {
        findings.extend(of_all(preflight::features(), Grade::Missing));
        findings.extend(loaded(args));
    }
    findings.extend(engines(config));
    if json {
        let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
        say(&serde_json::json!({ "worst": worst, "findings": findings }).to_string());
    } else {
        findings.iter().for_each(|finding| say(&finding.line()));
    }
    // Capabilities before all others that are missing: without them nothing else can be told.
    let code = |grade| findings.iter().find(|finding| finding.grade == grade).map(Finding::code);
    ExitCode::from(code(Grade::Missing).or(code(Grade::Degraded)).unwrap_or(0))
}

/// What the agent does not start without.
fn needs(args: &Args) -> Vec<Finding> {
    let is_wanted = |need: &Need| need.name != preflight::CGROUP || !args.no_cgroup;
    preflight::probe().into_iter().filter(is_wanted).map(|need| Finding::new(need, Grade::Missing)).collect()
}

/// The kernel programs are loaded and attached for a moment.
fn loaded(args: &Args) -> Vec<Finding> {
    let (kernel, rings) = match Kernel::start(&kernel_options(args)) {
        Ok(started) => started,
        Err(err) => {
            let need = Need {
                name: "kernel programs",
                finding: format!("{:#}", anyhow::Error::from(err)),
                remedy: Some("sockeye -vv check prints what the verifier says; Linux 6.1 or newer is needed".into()),
            };
            return vec![Finding::new(need, Grade::Missing)];
        }
    };
    let kib = rings.first().map_or(0, |ring| ring.size_bytes() / 1024);
    let mut findings = vec![Finding::ok("rings", format!("{} of {kib} KiB", rings.len()))];
    findings.push(match kernel.charged_because() {
        None => Finding::ok("memory cgroup", "the state of sockets is charged to none"),
        Some(why) => {
            let text = charged(why);
            let (finding, remedy) = text.rsplit_once(": ").unwrap_or((&text, ""));
            let need = Need { name: "memory cgroup", finding: finding.into(), remedy: Some(remedy.into()) };
            Finding::new(need, Grade::Degraded)
        }
    });
    findings.push(Finding::ok("socket scan", scan_kind().why()));
    findings.push(Finding::ok("payload", payload(args)));
    findings.extend(kernel.programs().iter().map(|program| match program.cost() {
        Ok(cost) => Finding::ok(cost.name, format!("{} instructions verified", cost.verified_instructions)),
        Err(err) => Finding::ok("a program", format!("its figures cannot be read: {err}")),
    }));
    findings
}

/// What is read of what flows carry.
fn payload(args: &Args) -> &'static str {
    match (args.no_dns || args.no_cgroup, args.sni && !args.no_cgroup) {
        (true, false) => "none is read",
        (false, false) => "of messages of DNS only (--no-dns: none)",
        (true, true) => "of the first data of each client only (--sni)",
        (false, true) => "of messages of DNS (--no-dns: none), and of the first data of each client (--sni)",
    }
}

/// Each runtime that has a socket is asked.
fn engines(config: &Config) -> Vec<Finding> {
    let asked = match runtimes::ask_each(&RuntimeList::find(&config.runtimes)) {
        Ok(asked) => asked,
        Err(err) => return vec![Finding::ok("container runtimes", format!("they cannot be asked: {err}"))],
    };
    let mut findings: Vec<_> = asked
        .iter()
        .map(|runtime| (runtime, runtime.snapshot()))
        .filter(|(runtime, snapshot)| snapshot.state != "absent" || runtime.is_configured())
        .map(|(runtime, snapshot)| {
            let (name, place) = (runtime.kind.name(), runtime.path.display());
            if snapshot.state == "up" {
                return Finding::ok(name, format!("{place} answers"));
            }
            let need = Need {
                name: "container runtime",
                finding: format!("{name} at {place}: {}", snapshot.state),
                remedy: Some("its containers have no names; let it run, and let the agent use its socket".into()),
            };
            Finding::new(need, Grade::Degraded)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("container runtimes", "none is here"));
    }
    findings
}
