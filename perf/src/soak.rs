//! `perf soak`: a steady mix of traffic for as long as told, and what becomes of the agent's memory, descriptors and
//! losses meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::agent::{Agents, figure, losses, losses_by_reason};
use crate::args::parse_minutes;
use crate::collect::Sink;
use crate::load::Server;
use crate::table::{Report, Table, progress, round2};

/// Rows of the table.
const SAMPLES: u32 = 30;
/// Memory counts as growing from here on: the tables have been filled and emptied by then.
const SETTLED_SHARE: f64 = 0.3;
/// Length of a TCP burst; UDP talks for as long in between.
const BURST: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long.
    #[arg(long, default_value_t = 60.0, value_name = "MINUTES", value_parser = parse_minutes)]
    minutes: f64,
    /// Ten seconds.
    #[arg(long)]
    quick: bool,
}

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    let length = Duration::from_secs_f64(if options.quick { 10.0 } else { options.minutes * 60.0 });
    let sink = Sink::start()?;
    let agent = agents.running_or_start(&["--zmq", &sink.endpoint])?;
    let mut table = Table::new(&["s", "agent MB", "fds", "flows", "flows seen", "lost", "agent CPU %", "operations"]);
    let load = Load::start()?;
    let bar = progress("soak", SAMPLES.into());
    let began = Instant::now();
    let first = agent.stats()?;
    let (mut cpu, mut at) = (agent.usage()?.cpu_s(), began);
    let mut memory = Vec::new();
    for sample in 1..=SAMPLES {
        thread::sleep((began + length * sample / SAMPLES).saturating_duration_since(Instant::now()));
        let (stats, usage) = (agent.stats()?, agent.usage()?);
        let cpu_percent = (usage.cpu_s() - cpu) / at.elapsed().as_secs_f64() * 100.0;
        (cpu, at) = (usage.cpu_s(), Instant::now());
        let seconds = began.elapsed().as_secs_f64();
        memory.push((seconds, usage.rss_bytes as f64));
        table.push(vec![
            round2(seconds),
            round2(usage.rss_bytes as f64 / 1e6),
            json!(usage.fds),
            json!(figure(&stats, "flows").map(|n| n as u64)),
            json!(figure(&stats, "flows_seen").map(|n| n as u64)),
            json!(losses(&stats) - losses(&first)),
            round2(cpu_percent),
            json!(load.operations()),
        ]);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let settled = &memory[(memory.len() as f64 * SETTLED_SHARE) as usize..];
    let last = agent.stats()?;
    let reasons: Vec<String> = losses_by_reason(&last)
        .into_iter()
        .zip(losses_by_reason(&first))
        .filter(|((_, now), (_, then))| now > then)
        .map(|((reason, now), (_, then))| format!("{} {reason}", now - then))
        .collect();
    let notes = vec![
        if reasons.is_empty() { "Nothing was lost.".into() } else { format!("Lost: {}.", reasons.join(", ")) },
        "Bursts of short connections, of requests on one connection, and of datagrams, in turn, without a pause; exported \
         to a ZMQ collector."
            .into(),
        format!(
            "Memory grows by {:.2} MB per hour, by least squares over the last 70 %.",
            slope(settled) * 3600.0 / 1e6
        ),
    ];
    Ok(Report { title: "soak", table, more: Vec::new(), notes })
}

/// Bytes per second, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len().max(1) as f64;
    let (x_mean, y_mean) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let covariance: f64 = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum();
    if variance > 0.0 { covariance / variance } else { 0.0 }
}

/// Traffic until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    operations: Arc<AtomicU64>,
}

impl Load {
    fn start() -> Result<Self> {
        use crate::load::Workload::{TcpCrr, TcpRr, UdpRr};
        let server = Server::start()?;
        let load = Self { stop: Arc::default(), operations: Arc::default() };
        let (stop, operations) = (Arc::clone(&load.stop), Arc::clone(&load.operations));
        thread::Builder::new().name("perf-load".into()).spawn(move || {
            for workload in [TcpCrr, TcpRr, UdpRr].into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A burst that fails shows in the table: the count stands still.
                if let Ok(run) = server.run(workload, BURST.as_secs_f64()) {
                    operations.fetch_add(run.operations, Ordering::Relaxed);
                }
            }
        })?;
        Ok(load)
    }

    fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope() {
        let line: Vec<(f64, f64)> = (0..10).map(|i| (f64::from(i), 5.0 + 3.0 * f64::from(i))).collect();
        assert!((slope(&line) - 3.0).abs() < 1e-9);
        assert_eq!(slope(&[(1.0, 2.0)]), 0.0);
    }
}
