//! `perf peers`: the same short connections watched by sockeye and by what else people take for it, in turn.
//!
//! For each: how much slower the connections become, what the tool's own process costs, and how many of them it saw.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::agent::{Agents, Usage};
use crate::args::parse_seconds;
use crate::distance;
use crate::load::{Run, Server, Workload};
use crate::netflow::NetFlow;
use crate::stats::interval;
use crate::table::{Report, Table, median_cells, progress, round2};
use crate::tether::tethered;

/// Until a tool has loaded and attached what it needs.
const WARM_UP: Duration = Duration::from_secs(3);
/// Until it has told of what it saw.
const SETTLE: Duration = Duration::from_secs(4);
/// Both, when no figure is to be quoted.
const PAUSE_QUICK: Duration = Duration::from_millis(1500);
/// The trace file system is where tools look for tracepoints; not every host has it mounted. Mounted for the tool alone.
const WITH_TRACEFS: &str = r#"[ -e /sys/kernel/tracing/events ] || mount -t tracefs nodev /sys/kernel/tracing
[ -e /sys/kernel/debug/tracing ] || mount -t debugfs nodev /sys/kernel/debug
exec "$@""#;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Rounds; in each every tool has its turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// Seconds of traffic in each turn.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// One round of half a second.
    #[arg(long)]
    quick: bool,
}

/// How the connections that a tool saw are counted.
#[derive(Clone, Copy)]
enum Count {
    /// Lines of its output with the server's port and this word, per connection.
    Lines { word: &'static str, per_connection: u64 },
    /// Different lines with the server's port.
    DifferentPeers,
    /// `NetFlow` 5 records to the server's port.
    NetFlow,
    /// The last number that follows this: connections of the whole host, which makes few others meanwhile.
    Total(&'static str),
    /// It has no list.
    No,
}

/// A tool. `{port}` and `{netflow}` in its arguments are filled in.
struct Peer {
    name: &'static str,
    /// Program, and the Debian package or crate that has it.
    program: &'static str,
    package: &'static str,
    args: &'static [&'static str],
    count: Count,
}

const PEERS: [Peer; 8] = [
    Peer {
        name: "tcplife (libbpf-tools)",
        program: "/usr/sbin/tcplife",
        package: "libbpf-tools",
        args: &[],
        count: Count::Lines { word: "", per_connection: 2 },
    },
    Peer {
        name: "tcptop (bcc)",
        program: "/usr/sbin/tcptop-bpfcc",
        package: "bpfcc-tools",
        args: &["-C", "1"],
        count: Count::DifferentPeers,
    },
    Peer {
        name: "bpftrace, one line per close",
        program: "/usr/bin/bpftrace",
        package: "bpftrace",
        args: &[
            "-e",
            "tracepoint:sock:inet_sock_set_state /args->newstate == 7 && args->dport == {port}/ \
             { printf(\"%d %s %d {port}\\n\", pid, comm, args->sport); }",
        ],
        count: Count::Lines { word: "", per_connection: 1 },
    },
    Peer {
        name: "ss, every second",
        program: "/usr/bin/ss",
        package: "iproute2",
        args: &[],
        count: Count::DifferentPeers,
    },
    Peer {
        name: "conntrack -E",
        program: "/usr/sbin/conntrack",
        package: "conntrack",
        args: &["-E", "-e", "NEW", "-p", "tcp", "--dport", "{port}"],
        count: Count::Lines { word: "[NEW]", per_connection: 1 },
    },
    Peer {
        name: "softflowd (packets)",
        program: "/usr/sbin/softflowd",
        package: "softflowd",
        args: &[
            "-d",
            "-i",
            "lo",
            "-v",
            "5",
            "-n",
            "127.0.0.1:{netflow}",
            // It sees each direction as a flow of its own, of which none ends with two FINs.
            "-t",
            "tcp=1",
            "-t",
            "expint=1",
            "-m",
            "200000",
        ],
        count: Count::NetFlow,
    },
    Peer {
        name: "bandwhich (packets)",
        program: "bandwhich",
        package: "crate bandwhich",
        args: &["--raw"],
        count: Count::No,
    },
    Peer {
        name: "rustnet (packets)",
        program: "rustnet",
        package: "crate rustnet-monitor",
        args: &["--headless", "--show-localhost", "--output", "json", "-i", "lo", "--no-resolve-dns"],
        count: Count::Total("\"total_connections_created\":"),
    },
];

/// The same traffic without any tool, and how far the CPUs were apart right before.
struct Alone {
    line_ns: f64,
    run: Run,
}

/// What a tool did in all rounds.
#[derive(Default)]
struct Findings {
    slow_downs: Vec<f64>,
    cpu_us: Vec<f64>,
    seen: u64,
    connections: u64,
    failure: Option<String>,
}

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    agents.none_may_run()?;
    let (rounds, seconds) = if options.quick { (1, 0.5) } else { (options.rounds, options.seconds) };
    let pauses = if options.quick { [PAUSE_QUICK; 2] } else { [WARM_UP, SETTLE] };
    let server = Server::start()?;
    let ours = Peer {
        name: "sockeye",
        program: "",
        package: "",
        args: &[],
        count: Count::Lines { word: "closed", per_connection: 1 },
    };
    let tools: Vec<&Peer> = std::iter::once(&ours).chain(&PEERS).collect();
    let mut findings: Vec<Findings> = tools.iter().map(|_| Findings::default()).collect();
    let bar = progress("peers", rounds * tools.len() as u64);
    for _ in 0..rounds {
        for (tool, found) in tools.iter().zip(&mut findings) {
            bar.inc(1);
            if found.failure.is_none() {
                // Each turn has its own run without any tool right before.
                let alone = Alone { line_ns: distance::line_ns(), run: server.run(Workload::TcpCrr, seconds)? };
                if let Err(err) = turn(tool, &server, agents, seconds, pauses, &alone, found) {
                    found.failure = Some(format!("{err:#}"));
                }
            }
        }
    }
    bar.finish_and_clear();
    let mut table = Table::new(&[
        "tool",
        "slow-down %",
        "from",
        "to",
        "its CPU, us per connection",
        "connections",
        "seen",
        "seen %",
    ]);
    let mut notes = vec![
        "Short connections on loopback, flat out; slow-down against a run without any tool right before each turn, where \
         the CPUs were as far apart in both."
            .into(),
    ];
    for (tool, found) in tools.iter().zip(&mut findings) {
        // Polling may miss them all, and that is its result; a probe that sees nothing at all does not work here.
        if found.failure.is_none()
            && found.seen == 0
            && matches!(tool.count, Count::Lines { .. } | Count::NetFlow | Count::Total(_))
        {
            found.failure = Some(format!("it ran, and saw none of {} connections on this host", found.connections));
        }
        match &found.failure {
            None => table.push(row(tool, found)),
            Some(why) => notes.push(format!("not measured: {}: {why}", tool.name)),
        }
    }
    Ok(Report { title: "peers", table, more: Vec::new(), notes })
}

fn row(tool: &Peer, found: &Findings) -> Vec<Value> {
    let countable = !matches!(tool.count, Count::No);
    let seen_percent = 100.0 * found.seen as f64 / found.connections.max(1) as f64;
    let mut row = vec![json!(tool.name)];
    row.extend(median_cells(&found.slow_downs));
    row.extend([
        round2(interval(&found.cpu_us).1),
        json!(found.connections),
        if countable { json!(found.seen) } else { Value::Null },
        if countable { round2(seen_percent) } else { Value::Null },
    ]);
    row
}

/// One tool, started, loaded, and asked what it saw.
fn turn(
    tool: &Peer,
    server: &Server,
    agents: &Agents,
    seconds: f64,
    pauses: [Duration; 2],
    alone: &Alone,
    found: &mut Findings,
) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let netflow = NetFlow::listen(server.tcp.port())?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let mut command = command(tool, server.tcp.port(), netflow.port, agents, dir.path())?;
    let child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .spawn()
        .with_context(|| format!("cannot start {}", tool.program))?;
    let mut child = Ended(child);
    thread::sleep(pauses[0]);
    if let Some(status) = child.0.try_wait()? {
        let said = fs::read_to_string(&err)? + &fs::read_to_string(&out)?;
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
        anyhow::bail!("it ended at once ({status}): {last}");
    }
    let pid = i32::try_from(child.0.id())?;
    let cpu_before = Usage::of(pid)?.cpu_s();
    let line_ns = distance::line_ns();
    let watched = server.run(Workload::TcpCrr, seconds)?;
    thread::sleep(pauses[1]);
    let cpu_us = (Usage::of(pid)?.cpu_s() - cpu_before) * 1e6 / watched.operations.max(1) as f64;
    child.end();
    if distance::is_same(alone.line_ns, line_ns) {
        found.slow_downs.push((1.0 - watched.rate / alone.run.rate) * 100.0);
    }
    found.cpu_us.push(cpu_us);
    found.connections += watched.operations;
    found.seen += match tool.count {
        Count::NetFlow => netflow.records.load(Ordering::Relaxed),
        Count::No => 0,
        Count::Total(key) => last_number(&fs::read_to_string(&out)?, key),
        Count::Lines { word, per_connection } => {
            let text = fs::read_to_string(&out)?;
            let port = server.tcp.port().to_string();
            text.lines().filter(|line| line.contains(&port) && line.contains(word)).count() as u64 / per_connection
        }
        Count::DifferentPeers => different_peers(&fs::read_to_string(&out)?, server.tcp.port()),
    };
    Ok(())
}

/// The number behind the last place where `key` stands; 0 if it stands nowhere.
fn last_number(text: &str, key: &str) -> u64 {
    let digits = text.rsplit_once(key).map_or("", |(_, rest)| rest.trim_start());
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// Clients of the server, by the words of lines that name it.
fn different_peers(text: &str, server_port: u16) -> u64 {
    let server = format!(":{server_port}");
    let mut clients = HashSet::new();
    for line in text.lines().filter(|line| line.contains(&server) && line.contains("pid=")) {
        clients.extend(line.split_whitespace().filter(|word| word.starts_with("127.") && !word.ends_with(&server)));
    }
    clients.len() as u64
}

fn command(tool: &Peer, port: u16, netflow: u16, agents: &Agents, dir: &Path) -> Result<Command> {
    if tool.program.is_empty() {
        let mut command = tethered(&agents.program);
        command.arg("--control-socket").arg(dir.join("ctl.sock")).env("COLUMNS", "200");
        return Ok(command);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(tool.program).is_file());
    // An absolute path stays what it is when it is joined.
    anyhow::ensure!(there, "missing; {} has it", tool.package);
    let mut command = tethered("unshare");
    command.args(["--mount", "sh", "-c", WITH_TRACEFS, "sh"]);
    if tool.program.ends_with("/ss") {
        command.args(["sh", "-c", "while :; do ss -tnpH; sleep 1; done"]);
        return Ok(command);
    }
    command.arg(tool.program).args(
        tool.args.iter().map(|arg| arg.replace("{port}", &port.to_string()).replace("{netflow}", &netflow.to_string())),
    );
    Ok(command)
}

/// Ends the tool as Ctrl-C does, or for good.
struct Ended(Child);

impl Ended {
    fn end(&mut self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        for _ in 0..30 {
            if self.0.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_different_clients_of_a_port() {
        let text = "ESTAB 0 0 127.0.0.1:5000 127.0.0.1:80 users:((\"a\",pid=1,fd=3))\n\
                    ESTAB 0 0 127.0.0.1:80 127.0.0.1:5000 users:((\"b\",pid=2,fd=3))\n\
                    ESTAB 0 0 127.0.0.1:5001 127.0.0.1:80 users:((\"a\",pid=1,fd=4))\nTIME-WAIT 0 0 127.0.0.1:9 127.0.0.1:80\n";
        assert_eq!(different_peers(text, 80), 2);
    }

    #[test]
    fn finds_the_last_number() {
        assert_eq!(last_number("{\"n\":1}\n{\"n\": 23,\"m\":4}", "\"n\":"), 23);
        assert_eq!((last_number("", "n"), last_number("n:x", "n:")), (0, 0));
    }
}
