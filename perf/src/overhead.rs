//! `perf overhead`: what the agent costs the programs that it watches. The same traffic with the agent off and on, in
//! interleaved pairs, until the interval of the median ratio is narrow enough or the machine proves too noisy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use sockeye_ctl::Client;
use sockeye_ctl::protocol::Request;

use crate::report::{Report, Table};

/// Fewest pairs from which an interval of 90 % can be read: the second and the last but one of eight are 93 %.
const PAIRS_MIN: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Most pairs of runs.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(8..=1000))]
    pairs: u64,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// The agent [default: sockeye beside this program].
    #[arg(long, value_name = "PROGRAM")]
    agent: Option<PathBuf>,
    /// Eight short pairs: shows that it works, and no figure to quote.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workload {
    TcpRr,
    TcpCrr,
    TcpBulk,
    UdpRr,
    UdpStream,
}

impl Workload {
    /// Short connections last: the agent goes on reporting them for seconds, which is not to be counted elsewhere.
    const ALL: [Self; 5] = [Self::TcpRr, Self::TcpBulk, Self::UdpRr, Self::UdpStream, Self::TcpCrr];

    fn name(self) -> &'static str {
        match self {
            Self::TcpRr => "TCP_RR, 1 byte each way",
            Self::TcpCrr => "TCP_CRR, connect, 1 byte each way, close",
            Self::TcpBulk => "TCP bulk, 64 KiB writes",
            Self::UdpRr => "UDP_RR, 1 byte each way",
            Self::UdpStream => "UDP stream, 64 bytes",
        }
    }

    /// The slow-down that is allowed, percent; the specification has none for UDP.
    fn bar_percent(self) -> Option<f64> {
        match self {
            Self::TcpRr => Some(2.0),
            Self::TcpCrr => Some(5.0),
            Self::TcpBulk => Some(1.0),
            Self::UdpRr | Self::UdpStream => None,
        }
    }
}

/// What the agent does once, at its start, is over then.
const WARM_UP: Duration = Duration::from_millis(1500);

/// One run: operations a second, and CPU time of both sides per operation.
#[derive(Debug, Clone, Copy)]
struct Run {
    rate: f64,
    cpu_ns_per_op: f64,
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("sockeye"),
    };
    let seconds = if options.quick { 0.1 } else { options.seconds };
    let pairs_max = if options.quick { PAIRS_MIN } else { options.pairs as usize };
    let server = Server::start()?;
    let mut ratios: [Vec<(f64, f64)>; Workload::ALL.len()] = Default::default();
    for pair in 0..pairs_max {
        // Off and on take turns in being first, so that a drift cancels out.
        let first_on = pair % 2 == 1;
        let mut runs = [Vec::new(), Vec::new()];
        for on in [first_on, !first_on] {
            let watching = if on { Some(Agent::start(&agent)?) } else { None };
            for workload in Workload::ALL {
                runs[usize::from(on)].push(server.run(workload, seconds)?);
            }
            drop(watching);
        }
        for (ratios, (off, on)) in ratios.iter_mut().zip(runs[0].iter().zip(&runs[1])) {
            ratios.push((on.rate / off.rate, on.cpu_ns_per_op - off.cpu_ns_per_op));
        }
        eprint!("\rpair {} of at most {pairs_max} ", pair + 1);
        if pair + 1 >= PAIRS_MIN && Workload::ALL.iter().zip(&ratios).all(|(w, r)| is_narrow(*w, r)) {
            break;
        }
    }
    eprintln!();
    let mut table =
        Table::new(&["traffic", "pairs", "slow-down %", "from", "to", "bar %", "CPU ns more per op", "verdict"]);
    for (workload, ratios) in Workload::ALL.iter().zip(&ratios) {
        table.push(row(*workload, ratios));
    }
    let hooks = per_hook(&agent, &server, seconds.max(0.2))?;
    let mut notes = vec![
        "Slow-down: median of the pairs' ratios, with the interval that holds the true median with 93 % or more."
            .into(),
        "CPU: user and system time of client and server, the kernel programs included; the agent's own threads not."
            .into(),
        "Kernel programs, runs per operation and ns per run (counting itself costs some of it):".into(),
    ];
    notes.extend(hooks);
    Ok(Report { title: "overhead", table, notes })
}

fn row(workload: Workload, pairs: &[(f64, f64)]) -> Vec<serde_json::Value> {
    let slow_downs: Vec<f64> = pairs.iter().map(|(ratio, _)| (1.0 - ratio) * 100.0).collect();
    let (low, median, high) = interval(&slow_downs);
    let cpu = interval(&pairs.iter().map(|(_, ns)| *ns).collect::<Vec<_>>()).1;
    let verdict = match workload.bar_percent() {
        None => "no bar",
        Some(bar) if high <= bar => "met",
        Some(bar) if low > bar => "not met",
        Some(_) => "too noisy to say",
    };
    let round = |x: f64| json!((x * 100.0).round() / 100.0);
    vec![
        json!(workload.name()),
        json!(pairs.len()),
        round(median),
        round(low),
        round(high),
        workload.bar_percent().map_or(serde_json::Value::Null, |bar| json!(bar)),
        json!(cpu.round()),
        json!(verdict),
    ]
}

/// Median, and the order statistics around it that hold the true one with at least 90 % (sign test, both sides).
fn interval(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let half = (n as f64 - 1.645 * (n as f64).sqrt()) / 2.0;
    let k = (half.floor().max(0.0) as usize).min(n.saturating_sub(1) / 2);
    let median = if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 };
    (sorted[k], median, sorted[n - 1 - k])
}

fn is_narrow(workload: Workload, pairs: &[(f64, f64)]) -> bool {
    let (low, _, high) = interval(&pairs.iter().map(|(ratio, _)| (1.0 - ratio) * 100.0).collect::<Vec<_>>());
    workload.bar_percent().is_none_or(|bar| high - low <= bar)
}

/// A fresh agent, with its flows printed to nowhere. Ends with this.
struct Agent {
    process: Child,
    _dir: tempfile::TempDir,
    client: Client,
}

impl Agent {
    fn start(program: &PathBuf) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("ctl.sock");
        let process = Command::new(program)
            .arg("--control-socket")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start the agent {}", program.display()))?;
        let mut agent = Self { process, _dir: dir, client: Client::new(&socket) };
        let began = Instant::now();
        while agent.client.ask(&Request::Ports).is_err() {
            if let Some(status) = agent.process.try_wait()? {
                bail!("the agent ended at once ({status})");
            }
            if began.elapsed() > Duration::from_secs(10) {
                bail!("the agent does not answer");
            }
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(WARM_UP);
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs and nanoseconds of each kernel program under each kind of traffic, as lines.
fn per_hook(agent: &PathBuf, server: &Server, seconds: f64) -> Result<Vec<String>> {
    let agent = Agent::start(agent)?;
    let figures = || -> Result<Vec<(String, u64, f64)>> {
        let answer = agent.client.ask(&Request::Stats)?;
        let rows = answer.table("programs").map(|table| table.rows.clone()).unwrap_or_default();
        let read = |row: &serde_json::Map<String, serde_json::Value>| {
            let runs = row.get("runs")?.as_u64()?;
            let per_run = row.get("ns_per_run").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
            Some((row.get("program")?.as_str()?.to_owned(), runs, per_run * runs as f64))
        };
        Ok(rows.iter().filter_map(read).collect())
    };
    let mut lines = Vec::new();
    figures()?; // starts the kernel's counting
    for workload in Workload::ALL {
        let before = figures()?;
        let run = server.run(workload, seconds)?;
        let after = figures()?;
        let operations = run.rate * seconds;
        let parts: Vec<String> = before
            .iter()
            .zip(&after)
            .filter(|((_, runs, _), (_, later, _))| (later - runs) as f64 > operations * 0.005)
            .map(|((name, runs, ns), (_, later, later_ns))| {
                let more = (later - runs) as f64;
                format!("{name} {:.2} x {:.0} ns", more / operations, (later_ns - ns) / more)
            })
            .collect();
        lines.push(format!("  {}: {}", workload.name(), parts.join(", ")));
    }
    Ok(lines)
}

/// Servers of all kinds of traffic, each on a thread, and their addresses.
struct Server {
    tcp: SocketAddr,
    sink: SocketAddr,
    udp: SocketAddr,
    /// Datagrams that arrived at the sink.
    udp_sink: (SocketAddr, Arc<AtomicU64>),
}

fn local() -> (Ipv4Addr, u16) {
    (Ipv4Addr::LOCALHOST, 0)
}

impl Server {
    fn start() -> Result<Self> {
        let (echo, sink) = (TcpListener::bind(local())?, TcpListener::bind(local())?);
        let (udp, udp_sink) = (UdpSocket::bind(local())?, UdpSocket::bind(local())?);
        let arrived = Arc::new(AtomicU64::new(0));
        let server = Self {
            tcp: echo.local_addr()?,
            sink: sink.local_addr()?,
            udp: udp.local_addr()?,
            udp_sink: (udp_sink.local_addr()?, Arc::clone(&arrived)),
        };
        spawn(move || {
            for mut stream in echo.incoming().flatten() {
                let _ = stream.set_nodelay(true);
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            }
        })?;
        spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            for mut stream in sink.incoming().flatten() {
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            }
        })?;
        spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((n, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&buffer[..n], peer);
            }
        })?;
        spawn(move || {
            let mut buffer = [0; 64];
            while udp_sink.recv(&mut buffer).is_ok() {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(server)
    }

    /// Talks for some seconds.
    fn run(&self, workload: Workload, seconds: f64) -> Result<Run> {
        let stop = Arc::new(AtomicBool::new(false));
        let (before, began) = (own_cpu_ns()?, Instant::now());
        let talking = self.talk(workload, &stop)?;
        thread::sleep(Duration::from_secs_f64(seconds));
        stop.store(true, Ordering::Relaxed);
        let operations = talking.join().map_err(|_| anyhow::anyhow!("a client died"))??;
        let elapsed = began.elapsed().as_secs_f64();
        let cpu_ns = (own_cpu_ns()? - before) as f64;
        Ok(Run { rate: operations as f64 / elapsed, cpu_ns_per_op: cpu_ns / operations.max(1) as f64 })
    }

    fn talk(&self, workload: Workload, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Result<u64>>> {
        let stop = Arc::clone(stop);
        let (tcp, sink, udp, (udp_sink, arrived)) = (self.tcp, self.sink, self.udp, self.udp_sink.clone());
        Ok(thread::Builder::new().name("perf-client".into()).spawn(move || {
            let mut operations = 0;
            let mut byte = [7];
            let going = || !stop.load(Ordering::Relaxed);
            match workload {
                Workload::TcpRr => {
                    let mut stream = TcpStream::connect(tcp)?;
                    stream.set_nodelay(true)?;
                    while going() {
                        stream.write_all(&byte)?;
                        stream.read_exact(&mut byte)?;
                        operations += 1;
                    }
                }
                Workload::TcpCrr => {
                    while going() {
                        let mut stream = TcpStream::connect(tcp)?;
                        stream.write_all(&byte)?;
                        stream.read_exact(&mut byte)?;
                        operations += 1;
                    }
                }
                Workload::TcpBulk => {
                    let mut stream = TcpStream::connect(sink)?;
                    let block = vec![7; 1 << 16];
                    while going() {
                        stream.write_all(&block)?;
                        operations += 1;
                    }
                }
                Workload::UdpRr => {
                    let socket = UdpSocket::bind(local())?;
                    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
                    socket.connect(udp)?;
                    while going() {
                        socket.send(&byte)?;
                        socket.recv(&mut byte)?;
                        operations += 1;
                    }
                }
                Workload::UdpStream => {
                    let socket = UdpSocket::bind(local())?;
                    socket.connect(udp_sink)?;
                    let before = arrived.load(Ordering::Relaxed);
                    while going() {
                        socket.send(&[7; 64])?;
                    }
                    // What was sent and dropped is no operation.
                    operations = arrived.load(Ordering::Relaxed) - before;
                }
            }
            Ok(operations)
        })?)
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name("perf-server".into()).spawn(work)?;
    Ok(())
}

/// CPU time of this process, all threads, in nanoseconds, from the scheduler: exact where clock ticks are not.
fn own_cpu_ns() -> Result<u64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).context("no CPU time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_hold_the_median() {
        let eight: Vec<f64> = (1..=8).map(f64::from).collect();
        assert_eq!(interval(&eight), (2.0, 4.5, 7.0));
        let many: Vec<f64> = (1..=41).map(f64::from).collect();
        let (low, median, high) = interval(&many);
        assert_eq!(median, 21.0);
        assert!((15.0..17.0).contains(&low) && (25.0..28.0).contains(&high), "{low} {high}");
    }
}
