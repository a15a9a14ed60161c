//! `perf hold`: many connections that stay open. What the agent and the kernel remember of each, and what a scan over
//! all of them takes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::agent::{Agent, Agents, figure};
use crate::collect::Sink;
use crate::stats::quantile;
use crate::table::{Report, Table, progress, round2};
use crate::tether::until_input_ends;

/// Descriptors that a holder needs beside its sockets.
const FDS_OTHER: u64 = 64;
/// Connections of one holder at most: it has one listener, so one port for each connection.
const HOLDER_MAX: u64 = 20_000;
/// Time for the agent to have scanned, reported and settled.
const SETTLE: Duration = Duration::from_secs(8);
const SETTLE_QUICK: Duration = Duration::from_secs(3);
const SCANS: usize = 5;
/// What the agent may take.
const BAR_FIXED_MB: f64 = 40.0;
const BAR_BYTES_PER_FLOW: f64 = 400.0;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Connections that are open at once; both ends are on this host. Repeatable.
    #[arg(long, default_values_t = [10_000, 25_000, 50_000], value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    connections: Vec<u64>,
    /// Each carries a byte each way in every second, and the agent exports to a collector.
    #[arg(long)]
    busy: bool,
    /// Passed on to the agent: from one report of a busy flow to the next.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    report_interval: u64,
    /// 2,000 connections.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    agents.none_may_run()?;
    let numbers = if options.quick { &[2_000][..] } else { &options.connections };
    let mut table = Table::new(&[
        "connections",
        "sockets",
        "agent MB",
        "bar MB",
        "idle MB",
        "bytes per flow",
        "kernel bytes per socket",
        "scan ms",
        "scan ns per socket",
        "agent CPU %",
        "records/s",
        "bytes per record",
        "dropped",
    ]);
    let bar = progress("hold", numbers.len() as u64);
    for &connections in numbers {
        table.push(one(connections, options, agents)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let notes = vec![
        "Bar: 40 MB and 400 bytes for each flow. Bytes per flow: growth of the agent's resident memory, its tables' first \
         size included, over connections; each has two sockets on this host."
            .into(),
        "Kernel bytes: growth of the kmalloc caches, where the state of sockets lies (/proc/slabinfo), while the same \
         connections are made with and without the agent, the difference over sockets. The rings come on top of it."
            .into(),
        "Scan: median of five, CPU time of the thread that does it. Records: what was exported to the collector, if there is one."
            .into(),
    ];
    Ok(Report { title: "hold", table, more: Vec::new(), notes })
}

fn one(connections: u64, options: &Options, agents: &Agents) -> Result<Vec<Value>> {
    let settle = if options.quick { SETTLE_QUICK } else { SETTLE };
    let kmalloc_without = kmalloc_growth(connections, false)?.0;
    let sink = if options.busy { Some(Sink::start()?) } else { None };
    let interval = options.report_interval.to_string();
    let mut args = vec!["--report-interval", &interval];
    args.extend(sink.iter().flat_map(|sink| ["--zmq", &sink.endpoint]));
    let agent = agents.start(&args)?;
    let idle = agent.usage()?.rss_bytes;
    let (kmalloc_with, holders) = kmalloc_growth(connections, options.busy)?;
    thread::sleep(settle);
    if options.busy {
        // Until each flow has its turn.
        thread::sleep(Duration::from_secs(2 * options.report_interval));
    }
    let exported = |name| -> Result<f64> {
        let stats = agent.stats()?;
        Ok(stats.rows("exports").iter().filter_map(|row| row.get(name)?.as_f64()).sum())
    };
    let (records, bytes) = (exported("records")?, exported("bytes")?);
    let (cpu, began) = (agent.usage()?.cpu_s(), Instant::now());
    thread::sleep(settle.max(Duration::from_secs(if options.busy { 20 } else { 0 })));
    let (records, bytes) = (exported("records")? - records, exported("bytes")? - bytes);
    let records_per_s = records / began.elapsed().as_secs_f64();
    let cpu_percent = (agent.usage()?.cpu_s() - cpu) / began.elapsed().as_secs_f64() * 100.0;
    let (sockets, scan_ns) = scan(&agent)?;
    let full = agent.usage()?.rss_bytes;
    drop(holders);
    let per_flow = (full as f64 - idle as f64) / connections as f64;
    Ok(vec![
        json!(connections),
        json!(sockets),
        round2(full as f64 / 1e6),
        round2(BAR_FIXED_MB + BAR_BYTES_PER_FLOW * connections as f64 / 1e6),
        round2(idle as f64 / 1e6),
        json!(per_flow.round()),
        json!(((kmalloc_with - kmalloc_without) / (2 * connections) as f64).round()),
        round2(scan_ns / 1e6),
        json!((scan_ns / sockets as f64).round()),
        round2(cpu_percent),
        json!(records_per_s.round()),
        json!((bytes / records.max(1.0)).round()),
        json!(exported("dropped")?),
    ])
}

/// Sockets that a scan finds, and nanoseconds that it takes.
fn scan(agent: &Agent) -> Result<(u64, f64)> {
    let (mut sockets, mut cpu_ns) = (0.0, Vec::new());
    for _ in 0..SCANS {
        let stats = agent.stats()?;
        sockets = figure(&stats, "scan_sockets").context("no scan_sockets")?;
        cpu_ns.push(figure(&stats, "scan_time").context("no scan_time")?);
        thread::sleep(Duration::from_millis(600)); // then a question brings a new scan
    }
    Ok((sockets as u64, quantile(&mut cpu_ns, 0.5)))
}

/// Bytes that the kernel's kmalloc caches grow by, and what holds the connections. All of slab would count sockets and
/// files, too, many times what is asked for, and whatever the round before has left to be freed.
fn kmalloc_growth(connections: u64, busy: bool) -> Result<(f64, Vec<Holder>)> {
    let before = kmalloc_bytes()?;
    let holders = hold(connections, busy)?;
    thread::sleep(Duration::from_secs(1));
    Ok((kmalloc_bytes()? - before, holders))
}

/// Live objects times their size. Lines of /proc/slabinfo: name, live objects, all objects, bytes of one, ...
fn kmalloc_bytes() -> Result<f64> {
    let caches = fs::read_to_string("/proc/slabinfo").context("cannot read /proc/slabinfo")?;
    let live_bytes = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        Some(words.next()?.parse::<f64>().ok()? * words.nth(1)?.parse::<f64>().ok()?)
    };
    Ok(caches.lines().filter(|line| line.starts_with("kmalloc-")).filter_map(live_bytes).sum())
}

/// A process that keeps connections to itself. They end with this.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// As many processes as the limit of descriptors demands.
fn hold(connections: u64, busy: bool) -> Result<Vec<Holder>> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    let each = (limit.saturating_sub(FDS_OTHER) / 2).min(HOLDER_MAX);
    anyhow::ensure!(each > 0, "the limit of open files is {limit}: raise it with ulimit -n");
    let mut holders = Vec::new();
    let mut left = connections;
    while left > 0 {
        let share = left.min(each);
        let child = Command::new(std::env::current_exe()?)
            .args(["hold-some", &share.to_string()])
            .args(busy.then_some("--busy"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a holder")?;
        holders.push(Holder(child));
        left -= share;
    }
    for Holder(child) in &mut holders {
        let said = child.stdout.take().map(|out| BufReader::new(out).lines().next());
        let Some(Some(Ok(_))) = said else { bail!("a holder of connections has failed") };
    }
    Ok(holders)
}

#[derive(Debug, Args)]
pub(crate) struct SomeOptions {
    connections: u64,
    #[arg(long)]
    busy: bool,
}

/// The holder's side: connects, says so, and waits for the end of its input.
pub(crate) fn hold_some(options: &SomeOptions) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let address: SocketAddr = listener.local_addr()?;
    let mut open = Vec::new();
    for _ in 0..options.connections {
        let mut client = TcpStream::connect(address).context("cannot connect")?;
        let (mut server, _) = listener.accept()?;
        // The owner of either end is known then.
        exchange(&mut client, &mut server)?;
        open.push((client, server));
    }
    println!("{}", open.len());
    let over = until_input_ends();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        for (client, server) in open.iter_mut().filter(|_| options.busy) {
            exchange(client, server)?;
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// A byte each way.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    client.write_all(&[7])?;
    server.read_exact(&mut [0])?;
    server.write_all(&[7])?;
    Ok(client.read_exact(&mut [0])?)
}
