//! `perf saturate`: how many records a second go through ring, worker and shard, and from which rate on some are lost.
//!
//! A kernel program is the producer, so no socket costs anything. Everything after the ring is the agent's own code:
//! `Worker` with `Delta`, and for `--stage merge` the control thread's `FlowTable`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use sockeye::table::{FlowTable, Timeouts};
use sockeye::worker::{Worker, WorkerPort};
use sockeye_bpf::preflight;
use sockeye_bpf::ring::{Drain, Ring};
use sockeye_bpf::saturate::{Order, Producer};
use sockeye_ctl::human;

use crate::report::{Report, Table};

/// Records per run of the producer: half a millisecond without a look at the clock.
const BATCH: u64 = 4096;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Live flows that the records are spread over; repeatable.
    #[arg(long, value_name = "FLOWS", default_values_t = [1_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flows: Vec<u64>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// KiB of the ring, a power of two.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ring_kib: u32,
    /// How far records go: drain (bytes are looked at), shard (the worker's table), merge (control's table, too).
    #[arg(long, value_enum, default_values_t = [Stage::Drain, Stage::Shard, Stage::Merge])]
    stage: Vec<Stage>,
    /// Number of the first record.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A quarter of a second each, 1,000 flows: for checking the books, not for figures.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    Drain,
    Shard,
    Merge,
}

/// Where the worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placement {
    /// On the CPU whose ring it drains.
    Same,
    Other,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.1..=60.0).contains(s)).ok_or_else(|| "expected 0.1 to 60".into())
}

/// What one measurement found.
struct Sample {
    offered: u64,
    delivered: u64,
    lost: u64,
    seconds: f64,
}

impl Sample {
    fn offered_per_s(&self) -> f64 {
        self.offered as f64 / self.seconds
    }

    fn delivered_per_s(&self) -> f64 {
        self.delivered as f64 / self.seconds
    }
}

pub(crate) fn run(options: &Options) -> Result<Report> {
    let (flows, seconds) = if options.quick { (&[1_000][..], 0.25) } else { (&options.flows[..], options.seconds) };
    for need in preflight::probe().into_iter().filter(|need| need.name == preflight::CAPABILITIES) {
        if let Some(remedy) = need.remedy {
            bail!("{}: {remedy}", need.finding);
        }
    }
    sockeye_bpf::kernel::silence_libbpf();
    let cpus = core_affinity::get_core_ids().context("cannot list the CPUs")?;
    if cpus.len() < 2 {
        bail!("two CPUs are needed, one to produce and one to drain");
    }
    let mut table = Table::new(&[
        "stage",
        "worker on",
        "flows",
        "flat out: offered/s",
        "delivered/s",
        "lost",
        "loss-free up to",
        "ns per record",
    ]);
    for &stage in &options.stage {
        for placement in [Placement::Other, Placement::Same] {
            for &live in flows {
                let lab =
                    Lab { stage, placement, flows: live, ring_bytes: options.ring_kib * 1024, seed: options.seed };
                let flat_out = lab.measure(None, seconds)?;
                let delivered = flat_out.delivered_per_s();
                let loss_free = lab.loss_free_rate(delivered, seconds)?;
                table.push(vec![
                    json!(format!("{stage:?}").to_lowercase()),
                    json!(if placement == Placement::Same { "the same CPU" } else { "another CPU" }),
                    json!(live),
                    json!(flat_out.offered_per_s() as u64),
                    json!(delivered as u64),
                    json!(flat_out.lost),
                    if flat_out.lost == 0 {
                        json!("void: the producer did not outrun it")
                    } else {
                        json!(loss_free as u64)
                    },
                    json!((1e9 / delivered * 10.0).round() / 10.0),
                ]);
            }
        }
    }
    let sum = format!(
        "Each row: offered = delivered + lost, checked. Ring of {} KiB, {seconds} s each, seed {}. One producer and one \
         worker. With the worker on the same CPU the two take turns.",
        human::count(options.ring_kib.into()),
        options.seed,
    );
    Ok(Report { title: "saturate", table, notes: vec![sum] })
}

/// One setting.
struct Lab {
    stage: Stage,
    placement: Placement,
    flows: u64,
    ring_bytes: u32,
    seed: u64,
}

impl Lab {
    /// The highest rate without loss, by halving the interval six times below what is delivered under overload.
    fn loss_free_rate(&self, ceiling: f64, seconds: f64) -> Result<f64> {
        let (mut good, mut bad) = (0.0, ceiling * 1.25);
        for _ in 0..6 {
            let rate = (good + bad) / 2.0;
            if self.measure(Some(rate), seconds / 2.0)?.lost == 0 { good = rate } else { bad = rate }
        }
        Ok(good)
    }

    /// Produces for some seconds, at a rate or flat out, and reads the books.
    fn measure(&self, rate: Option<f64>, seconds: f64) -> Result<Sample> {
        let (producer, rings) = Producer::load(self.ring_bytes)?;
        let cpus = core_affinity::get_core_ids().context("cannot list the CPUs")?;
        let (producing, other) = (cpus[0], cpus[1]);
        let ring = rings.into_iter().find(|ring| ring.cpu() == producing.id).context("no ring for this CPU")?;
        let draining = if self.placement == Placement::Same { producing } else { other };
        let stop = Arc::new(AtomicBool::new(false));
        let consumer = self.consume(ring, draining, &stop)?;
        let (made, took) = on_cpu(producing, || produce(&producer, self.flows, self.seed, rate, seconds))?;
        stop.store(true, Ordering::Relaxed);
        let delivered = consumer.join().map_err(|_| anyhow::anyhow!("the worker died"))?;
        let books = producer.cpu_stats()?;
        let (offered, lost) = books.iter().fold((0, 0), |(offered, lost), cpu| {
            (offered + cpu.offered.iter().sum::<u64>(), lost + cpu.lost.iter().sum::<u64>())
        });
        if offered != made || offered != delivered + lost {
            bail!("the books do not balance: {made} made, {offered} offered, {delivered} delivered, {lost} lost");
        }
        Ok(Sample { offered, delivered, lost, seconds: took })
    }

    /// The consumer's threads. The result is how many records arrived.
    fn consume(&self, ring: Ring, cpu: core_affinity::CoreId, stop: &Arc<AtomicBool>) -> Result<JoinHandle<u64>> {
        let stop = Arc::clone(stop);
        let started = Arc::new(AtomicBool::new(false));
        let ready = Arc::clone(&started);
        let (stage, flows) = (self.stage, self.flows);
        let thread = thread::Builder::new().name("perf-consumer".into()).spawn(move || {
            core_affinity::set_for_current(cpu);
            ready.store(true, Ordering::Relaxed);
            if stage == Stage::Drain { drain_only(ring, &stop) } else { through_worker(ring, stage, flows, &stop) }
        })?;
        while !started.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        Ok(thread)
    }
}

/// Runs something pinned, on a thread of its own.
fn on_cpu<T: Send>(cpu: core_affinity::CoreId, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let pinned = scope.spawn(move || {
            core_affinity::set_for_current(cpu);
            work()
        });
        pinned.join().map_err(|_| anyhow::anyhow!("the producer died"))?
    })
}

fn produce(producer: &Producer, flows: u64, seed: u64, rate: Option<f64>, seconds: f64) -> Result<(u64, f64)> {
    let began = Instant::now();
    let mut made = 0;
    // Small steps when paced, so that the ring never sees more at once than the pace implies.
    let batch = rate.map_or(BATCH, |rate| ((rate / 5_000.0) as u64).clamp(1, BATCH));
    loop {
        let elapsed = began.elapsed().as_secs_f64();
        if elapsed >= seconds {
            return Ok((made, elapsed));
        }
        if rate.is_some_and(|rate| made as f64 > rate * elapsed) {
            // Lets a worker on the same CPU run, as a host's idle time would.
            thread::sleep(Duration::from_micros(50));
            continue;
        }
        producer.produce(Order { records: batch, flows, seed: seed + made })?;
        made += batch;
    }
}

/// The ring alone, with the worker's own rhythm.
fn drain_only(mut ring: Ring, stop: &AtomicBool) -> u64 {
    let (mut total, mut seen) = (0, 0u64);
    loop {
        let ended = stop.load(Ordering::Relaxed);
        let n = ring.drain(4096, |entry| seen = seen.wrapping_add(entry.first().copied().unwrap_or(0).into()));
        total += n as u64;
        if n == 0 {
            if ended {
                return std::hint::black_box((total, seen)).0;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The agent's worker, and a control thread that empties its deltas or merges them.
fn through_worker(ring: Ring, stage: Stage, flows: u64, stop: &AtomicBool) -> u64 {
    let cpu = ring.cpu();
    let (worker, port) = Worker::new(0, vec![(ring, cpu)]);
    let worker_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let control = scope.spawn(|| {
            // The consumer's pinning was inherited; control is free in the agent, here it leaves the producer alone.
            if let Some(last) = core_affinity::get_core_ids().unwrap_or_default().pop() {
                core_affinity::set_for_current(last);
            }
            take_deltas(port, stage, flows, &worker_ended)
        });
        worker.run(stop);
        worker_ended.store(true, Ordering::Relaxed);
        control.join().unwrap_or(0)
    })
}

fn take_deltas(mut port: WorkerPort, stage: Stage, flows: u64, worker_ended: &AtomicBool) -> u64 {
    let mut table = FlowTable::new(usize::try_from(flows).unwrap_or(usize::MAX) + 1, Timeouts::default());
    let (mut delivered, mut now_ns) = (0, 0);
    loop {
        let ended = worker_ended.load(Ordering::Relaxed);
        while let Ok(mut delta) = port.deltas.pop() {
            now_ns += 1;
            delivered += delta.rings.iter().map(|(_, counts)| counts.delivered.iter().sum::<u64>()).sum::<u64>();
            if stage == Stage::Merge {
                delta.tcp.values().for_each(|record| table.tcp_record(record, now_ns));
            }
            delta.clear();
            let _ = port.recycle.push(delta);
        }
        if ended {
            return delivered;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(parse_seconds("2"), Ok(2.0));
        assert!(parse_seconds("0").is_err() && parse_seconds("nan").is_err() && parse_seconds("1e9").is_err());
    }
}
