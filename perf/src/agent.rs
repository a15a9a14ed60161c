//! An agent under measurement: one that runs already, or one of our own; and what /proc says of a process.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use sockeye_bpf::preflight;
use sockeye_ctl::Client;
use sockeye_ctl::protocol::{Answer, Request};

use crate::tether::tethered;

/// What the agent does once, at its start, is over then.
const WARM_UP: Duration = Duration::from_millis(1500);
/// How long an agent may take to answer.
const START: Duration = Duration::from_secs(10);

/// Fails without the capabilities that BPF needs.
pub(crate) fn may_load_programs() -> Result<()> {
    let lacking = preflight::probe().into_iter().find(|need| need.name == preflight::CAPABILITIES);
    if let Some((finding, remedy)) = lacking.and_then(|need| Some((need.finding, need.remedy?))) {
        bail!("{finding}: {remedy}");
    }
    Ok(())
}

/// Where agents are.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    /// Control socket of one that may run already.
    pub(crate) socket: PathBuf,
    /// The program to start.
    pub(crate) program: PathBuf,
}

impl Agents {
    /// Fails if an agent runs, which would be measured together with ours, or if ours could not be started.
    pub(crate) fn none_may_run(&self) -> Result<()> {
        may_load_programs()?;
        if Client::new(&self.socket).ask(&Request::Ports).is_ok() {
            bail!(
                "an agent is running already (it answers at {}), and would be measured, too: stop it first",
                self.socket.display()
            );
        }
        Ok(())
    }

    /// The agent that runs, or else one of our own with these arguments.
    pub(crate) fn running_or_start(&self, args: &[&str]) -> Result<Agent> {
        let client = Client::new(&self.socket);
        let Ok(stats) = client.ask(&Request::Stats) else { return self.start(args) };
        let pid = figure(&stats, "pid").context("no pid in the agent's answer")? as i32;
        Ok(Agent { pid, client, own: None })
    }

    /// An agent of our own, its flows printed to nowhere. It ends with the value that is returned.
    pub(crate) fn start(&self, args: &[&str]) -> Result<Agent> {
        let program = self.program.display();
        ensure!(self.program.is_file(), "cannot start the agent {program}: no such program (--agent names another)");
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("ctl.sock");
        let mut process = tethered(&self.program)
            .arg("--control-socket")
            .arg(&socket)
            .args(args)
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("stderr"))?)
            .spawn()
            .context("cannot start setpriv (util-linux), which is to start the agent")?;
        let client = Client::new(&socket);
        let began = Instant::now();
        while client.ask(&Request::Ports).is_err() {
            if let Some(status) = process.try_wait()? {
                let said = fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
                bail!(
                    "the agent ended at once ({status}): {}",
                    said.lines().last().unwrap_or_default().trim_end_matches('.')
                );
            }
            if began.elapsed() > START {
                let _ = process.kill();
                let _ = process.wait();
                bail!("the agent does not answer");
            }
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(WARM_UP);
        Ok(Agent { pid: i32::try_from(process.id())?, client, own: Some((process, dir)) })
    }
}

/// An agent that answers.
pub(crate) struct Agent {
    /// Its process.
    pub(crate) pid: i32,
    client: Client,
    own: Option<(Child, tempfile::TempDir)>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some((process, _)) = &mut self.own {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Agent {
    /// The answer to `ctl stats`.
    pub(crate) fn stats(&self) -> Result<Answer> {
        Ok(self.client.ask(&Request::Stats)?)
    }

    /// The client of its control socket.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Its own counters.
    fn record_counters(&self) -> Result<RecordCounters> {
        let answer = self.stats()?;
        Ok(RecordCounters {
            offered: sum(&answer, "offered"),
            delivered: sum(&answer, "delivered"),
            overflow: sum(&answer, "overflow"),
            lost: sum(&answer, "lost"),
        })
    }

    /// The counters at a moment in which nothing is in the rings: on a live host something may just have come, and a worker
    /// takes it within a quarter of a second. What is lost without being counted never balances, and is there to see.
    pub(crate) fn balanced_counters(&self) -> Result<RecordCounters> {
        let mut record_counters = self.record_counters()?;
        for _ in 0..20 {
            if record_counters.offered == record_counters.delivered + record_counters.overflow + record_counters.lost {
                break;
            }
            thread::sleep(Duration::from_millis(100));
            record_counters = self.record_counters()?;
        }
        Ok(record_counters)
    }

    /// What its kernel programs have done since somebody asks. They are counted for some seconds after each question.
    pub(crate) fn programs(&self) -> Result<Vec<ProgramRuns>> {
        let answer = self.stats()?;
        let read = |row: &serde_json::Map<String, Value>| {
            let runs = row.get("runs")?.as_u64()?;
            let per_run = row.get("ns_per_run").and_then(Value::as_f64).unwrap_or(0.0);
            Some(ProgramRuns { name: row.get("program")?.as_str()?.to_owned(), runs, run_ns: per_run * runs as f64 })
        };
        Ok(answer.rows("programs").iter().filter_map(read).collect())
    }

    /// What /proc says of it.
    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of(self.pid)
    }
}

/// Runs of one kernel program while they were counted.
pub(crate) struct ProgramRuns {
    pub(crate) name: String,
    pub(crate) runs: u64,
    pub(crate) run_ns: f64,
}

/// The agent's own figures of its rings.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RecordCounters {
    pub(crate) offered: u64,
    pub(crate) delivered: u64,
    pub(crate) overflow: u64,
    pub(crate) lost: u64,
}

fn sum(answer: &Answer, column: &str) -> u64 {
    answer.rows("rings").iter().filter_map(|row| row.get(column)?.as_u64()).sum()
}

/// A figure of the agent's own row.
pub(crate) fn figure(answer: &Answer, name: &str) -> Option<f64> {
    answer.rows("agent").first()?.get(name)?.as_f64()
}

/// How often something was lost, all reasons together.
pub(crate) fn losses(answer: &Answer) -> u64 {
    losses_by_reason(answer).iter().map(|(_, count)| count).sum()
}

/// The same, one by one.
pub(crate) fn losses_by_reason(answer: &Answer) -> Vec<(String, u64)> {
    const HARMLESS: [&str; 6] =
        ["pair_group_full", "worker_stalled", "container_", "args_", "program_busy", "close_untracked"];
    let rows = answer.rows("losses");
    let harmless = |reason: &str| HARMLESS.iter().any(|harmless| reason.starts_with(harmless));
    rows.iter()
        .filter_map(|row| Some((row.get("reason")?.as_str()?.to_owned(), row.get("count")?.as_u64()?)))
        .filter(|(reason, _)| !harmless(reason))
        .collect()
}

/// CPU time, memory and descriptors of a process, by /proc.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User time of all threads, and of children that have ended.
    pub(crate) user_s: f64,
    /// System time of the same.
    pub(crate) system_s: f64,
    pub(crate) rss_bytes: u64,
    pub(crate) fds: usize,
}

impl Usage {
    /// User and system time.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }

    /// Of a process that lives.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let process = procfs::process::Process::new(pid)?;
        let stat = process.stat()?;
        let seconds =
            |own: u64, children: i64| (own + children.max(0) as u64) as f64 / procfs::ticks_per_second() as f64;
        Ok(Self {
            user_s: seconds(stat.utime, stat.cutime),
            system_s: seconds(stat.stime, stat.cstime),
            rss_bytes: stat.rss * procfs::page_size(),
            fds: process.fd_count()?,
        })
    }
}
