//! `perf churn`: each connection is opened, carries one byte each way, and is closed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use sockeye_ctl::Client;
use sockeye_ctl::protocol::{Answer, Request};

use crate::report::{Report, Table};

/// Time for the last records to arrive.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Connections in all.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    connections: u64,
    /// Threads that connect, each to a server address and thread of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    threads: u64,
}

pub(crate) fn run(options: &Options, socket: &Path) -> Result<Report> {
    let client = Client::new(socket);
    let before = Books::read(&client)?;
    let began = Instant::now();
    let connections = connect_all(options)?;
    let seconds = began.elapsed().as_secs_f64();
    thread::sleep(SETTLE);
    let after = Books::read(&client)?;
    let mut table = Table::new(&[
        "connections",
        "per second",
        "offered",
        "delivered",
        "overflowed",
        "lost",
        "agent CPU, us per connection",
    ]);
    let cpu_us = (after.cpu_s - before.cpu_s) * 1e6 / connections as f64;
    table.push(vec![
        json!(connections),
        json!((connections as f64 / seconds) as u64),
        json!(after.offered - before.offered),
        json!(after.delivered - before.delivered),
        json!(after.overflow - before.overflow),
        json!(after.lost - before.lost),
        json!((cpu_us * 100.0).round() / 100.0),
    ]);
    let notes = vec!["Records, by the agent's own books; its CPU time by /proc, all threads, user and system.".into()];
    Ok(Report { title: "churn", table, notes })
}

/// The agent's own figures.
struct Books {
    offered: u64,
    delivered: u64,
    overflow: u64,
    lost: u64,
    cpu_s: f64,
}

impl Books {
    fn read(client: &Client) -> Result<Self> {
        let answer = client.ask(&Request::Stats)?;
        let pid = answer.table("agent").and_then(|t| t.rows.first()?.get("pid")?.as_i64()).context("no pid")?;
        let stat = procfs::process::Process::new(i32::try_from(pid)?)?.stat()?;
        Ok(Self {
            offered: sum(&answer, "offered"),
            delivered: sum(&answer, "delivered"),
            overflow: sum(&answer, "overflow"),
            lost: sum(&answer, "lost"),
            cpu_s: (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64,
        })
    }
}

fn sum(answer: &Answer, column: &str) -> u64 {
    let rows = answer.table("rings").map(|table| table.rows.as_slice()).unwrap_or_default();
    rows.iter().filter_map(|row| row.get(column)?.as_u64()).sum()
}

fn connect_all(options: &Options) -> Result<u64> {
    let done = Arc::new(AtomicU64::new(0));
    let share = options.connections.div_ceil(options.threads);
    let mut clients = Vec::new();
    for number in 0..options.threads {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 2, number as u8 + 1), 0)).context("cannot listen")?;
        let address = listener.local_addr()?;
        let (ended, done) = (Arc::clone(&stop), Arc::clone(&done));
        thread::spawn(move || serve(&listener, &ended));
        clients.push(thread::spawn(move || {
            let result = connect(address, share, &done);
            stop.store(true, Ordering::Relaxed);
            let _ = TcpStream::connect(address); // wakes the server
            result
        }));
    }
    for client in clients {
        client.join().map_err(|_| anyhow::anyhow!("a client thread died"))??;
    }
    Ok(done.load(Ordering::Relaxed))
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

fn connect(address: SocketAddr, connections: u64, done: &AtomicU64) -> Result<()> {
    let mut byte = [7];
    for _ in 0..connections {
        let mut stream = TcpStream::connect(address).context("cannot connect")?;
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
