//! `perf churn`: each connection is opened, carries one byte each way, and is closed. Counts what the agent loses, what
//! it costs, and how long an end takes to reach a collector.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::agent::{Agent, Agents};
use crate::collect::Collector;
use crate::stats::quantile;
use crate::table::{Report, Table, progress, round2};

/// Time for the last records to arrive.
const SETTLE: Duration = Duration::from_secs(3);
/// The agent has the kernel count its programs' run time for 15 s after each question.
const COUNTING: Duration = Duration::from_secs(8);
/// One connection in so many is looked for at the collector.
const SAMPLED: u64 = 16;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Connections in all.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    connections: u64,
    /// Threads that connect, each to a server address and thread of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
    /// Client addresses of each thread, 127.1.THREAD.1 and so on, taken in turn.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=250))]
    clients: u64,
    /// Connections a second that are aimed at; repeatable. 0: as fast as they go.
    #[arg(long, default_values_t = [0], value_name = "PER_SECOND")]
    rate: Vec<u64>,
    /// 10,000 connections: shows that it works, and no figure to quote.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    let mut table = Table::new(&[
        "aimed at/s",
        "connections",
        "per second",
        "offered",
        "delivered",
        "overflowed",
        "lost",
        "agent CPU, us per connection",
        "user",
        "system",
        "kernel programs, us",
        "export p50 ms",
        "export p99 ms",
    ]);
    let bar = progress("churn", options.rate.len() as u64);
    for &rate in &options.rate {
        table.push(one(options, rate, agents)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let notes = vec![
        "Records, by the agent's own counters; its CPU time by /proc, all threads, with its export. The kernel programs run in \
         the time of whoever connects, closes or receives; their run time is the kernel's own count, itself included."
            .into(),
        "Export: from the client's close to the flow at a ZMQ collector, of one connection in 16; half a second of it is the \
         agent's wait for the other end's close. Only with an agent that this program starts."
            .into(),
    ];
    Ok(Report { title: "churn", table, more: Vec::new(), notes })
}

fn one(options: &Options, rate: u64, agents: &Agents) -> Result<Vec<Value>> {
    let collector = Collector::bind()?;
    let agent = agents.running_or_start(&["--zmq", &collector.endpoint()])?;
    measure(options, rate, &agent, collector)
}

fn measure(options: &Options, rate: u64, agent: &Agent, collector: Collector) -> Result<Vec<Value>> {
    let connections = if options.quick { options.connections.min(10_000) } else { options.connections };
    agent.programs()?; // starts the kernel's counting
    let (before, usage_before, programs_ns_before) = (agent.balanced_counters()?, agent.usage()?, programs_ns(agent)?);
    let began = Instant::now();
    let (done, closed) = counting(agent, || connect_all(options, connections, rate))?;
    let seconds = began.elapsed().as_secs_f64();
    let programs_ns = programs_ns(agent)? - programs_ns_before;
    thread::sleep(SETTLE);
    let (after, usage) = (agent.balanced_counters()?, agent.usage()?);
    let (user_s, system_s) = (usage.user_s - usage_before.user_s, usage.system_s - usage_before.system_s);
    let us_each = |seconds: f64| round2(seconds * 1e6 / done as f64);
    let arrived = collector.finish()?;
    let mut latency_ms: Vec<f64> = closed
        .iter()
        .filter_map(|(client, at)| Some(arrived.get(client)?.saturating_duration_since(*at).as_secs_f64() * 1e3))
        .collect();
    let mut latency =
        |share| if latency_ms.is_empty() { Value::Null } else { round2(quantile(&mut latency_ms, share)) };
    Ok(vec![
        if rate == 0 { json!("all it can") } else { json!(rate) },
        json!(done),
        json!((done as f64 / seconds) as u64),
        json!(after.offered - before.offered),
        json!(after.delivered - before.delivered),
        json!(after.overflow - before.overflow),
        json!(after.lost - before.lost),
        us_each(user_s + system_s),
        us_each(user_s),
        us_each(system_s),
        us_each(programs_ns / 1e9),
        latency(0.5),
        latency(0.99),
    ])
}

/// Run time of all kernel programs of the agent.
fn programs_ns(agent: &Agent) -> Result<f64> {
    Ok(agent.programs()?.iter().map(|program| program.run_ns).sum())
}

/// Does something, and has the kernel count the programs' run time for as long.
fn counting<T>(agent: &Agent, work: impl FnOnce() -> T) -> T {
    let (over, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(COUNTING) == Err(RecvTimeoutError::Timeout) {
                let _ = agent.programs();
            }
        });
        let done = work();
        drop(over);
        done
    })
}

/// When a client closed its connection, by its address.
type Closed = Vec<(SocketAddr, Instant)>;

fn connect_all(options: &Options, connections: u64, rate: u64) -> Result<(u64, Closed)> {
    let done = Arc::new(AtomicU64::new(0));
    let share = connections.div_ceil(options.threads);
    let pace = (rate > 0).then(|| Duration::from_secs_f64(options.threads as f64 / rate as f64));
    let mut threads = Vec::new();
    for number in 0..options.threads {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 2, number as u8 + 1), 0)).context("cannot listen")?;
        let SocketAddr::V4(server) = listener.local_addr()? else { anyhow::bail!("no IPv4 address") };
        let (ended, done, clients) = (Arc::clone(&stop), Arc::clone(&done), options.clients);
        thread::spawn(move || serve(&listener, &ended));
        threads.push(thread::spawn(move || {
            let client = Client { number: number as u8, clients, server };
            let result = client.connect_many(share, pace, &done);
            stop.store(true, Ordering::Relaxed);
            let _ = TcpStream::connect(server); // wakes the server
            result
        }));
    }
    let mut closed = Vec::new();
    for thread in threads {
        closed.extend(thread.join().map_err(|_| anyhow::anyhow!("a client thread died"))??);
    }
    Ok((done.load(Ordering::Relaxed), closed))
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _)) = listener.accept() else { continue };
        if stream.read_exact(&mut byte).is_ok() {
            let _ = stream.write_all(&byte);
        }
    }
}

struct Client {
    number: u8,
    clients: u64,
    server: SocketAddrV4,
}

impl Client {
    fn connect_many(&self, connections: u64, pace: Option<Duration>, done: &AtomicU64) -> Result<Closed> {
        let mut byte = [7];
        let mut closed = Vec::new();
        let began = Instant::now();
        for i in 0..connections {
            if let Some(pace) = pace {
                let due = began + pace * u32::try_from(i)?;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let mut stream = self.connect(i)?;
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
            let local = if i % SAMPLED == 0 { stream.local_addr().ok() } else { None };
            drop(stream);
            closed.extend(local.map(|local| (local, Instant::now())));
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(closed)
    }

    /// From one client address after the other: each has all ports.
    fn connect(&self, i: u64) -> Result<TcpStream> {
        let client = Ipv4Addr::new(127, 1, self.number, (i % self.clients) as u8 + 1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("cannot make a socket")?;
        socket.bind(&SocketAddrV4::new(client, 0).into()).with_context(|| format!("cannot use {client}"))?;
        socket.connect(&self.server.into()).context("cannot connect")?;
        Ok(socket.into())
    }
}
