//! `perf saturate`: how many records a second go through ring, worker and shard, and from which rate on some are lost.
//!
//! A kernel program is the producer, so no socket costs anything. Everything after the ring is the agent's own code:
//! `Worker` with `Delta`, and for `--stage merge` the control thread's `FlowTable`.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use core_affinity::CoreId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use sockeye::table::{FlowTable, Timeouts};
use sockeye::worker::{Pace, VISIT_RECORDS_MAX, Visit, Worker, WorkerPort};
use sockeye_bpf::preflight;
use sockeye_bpf::ring::{Drain, Ring};
use sockeye_bpf::saturate::{Order, Producer};

use crate::table::{Report, Table, progress, round2};

/// Records per run of the producer: half a millisecond without a look at the clock.
const BATCH: u64 = 4096;
/// Of a paced producer that shares its CPU.
const NAP: Duration = Duration::from_micros(50);
/// What a paced producer makes up for when it was not on its CPU. The rest is not made at all: it would come as a burst at
/// many times the pace.
const LATE_MAX: Duration = Duration::from_micros(200);
/// Before each measurement.
const WARM_UP_RATE: f64 = 1e6;
const WARM_UP_SECONDS: f64 = 0.25;
/// How long a worker that is woken waits at most: it must notice the end.
const EVENT_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Live flows that the records are spread over; repeatable.
    #[arg(long, value_name = "FLOWS", default_values_t = [1_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    flows: Vec<u64>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,
    /// KiB of the ring, a power of two; the first is that of the main table. Repeatable.
    #[arg(long, default_values_t = [1024, 256, 4096, 16384], value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    ring_kib: Vec<u32>,
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

/// How a worker learns that there is something in its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wake {
    /// It sleeps as the agent does, and looks. The kernel wakes nobody.
    Nap,
    /// The kernel wakes it when it had found nothing before.
    Event,
    /// It looks all the time.
    Busy,
}

impl Wake {
    fn name(self) -> &'static str {
        match self {
            Self::Nap => "naps (the agent's)",
            Self::Event => "woken by the kernel",
            Self::Busy => "never sleeps",
        }
    }
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
    for need in preflight::probe().into_iter().filter(|need| need.name == preflight::CAPABILITIES) {
        if let Some(remedy) = need.remedy {
            bail!("{}: {remedy}", need.finding);
        }
    }
    sockeye_bpf::kernel::silence_libbpf();
    if core_affinity::get_core_ids().context("cannot list the CPUs")?.len() < 2 {
        bail!("two CPUs are needed, one to produce and one to drain");
    }
    let (flows, seconds) = if options.quick { (&[1_000][..], 0.25) } else { (&options.flows[..], options.seconds) };
    let lab = Lab {
        stage: Stage::Shard,
        placement: Placement::Other,
        wake: Wake::Nap,
        rings: 1,
        flows: if options.quick { 1_000 } else { 100_000 },
        ring_bytes: options.ring_kib[0] * 1024,
        seed: options.seed,
    };
    let mut labs = Vec::new();
    for &stage in &options.stage {
        for placement in [Placement::Other, Placement::Same] {
            labs.extend(flows.iter().map(|&flows| Lab { stage, placement, flows, ..lab }));
        }
    }
    let mut variants = vec![Lab { wake: Wake::Event, ..lab }, Lab { wake: Wake::Busy, ..lab }];
    variants.extend(options.ring_kib[1..].iter().map(|kib| Lab { ring_bytes: kib * 1024, ..lab }));
    variants.extend([1, 2].map(|rings| Lab { rings, placement: Placement::Same, ..lab }));
    let bar = progress("saturate", (labs.len() + variants.len()) as u64 + LOSS_RATES.len() as u64);
    let rows = |labs: &[Lab]| -> Result<Table> {
        let mut table = Table::new(&COLUMNS);
        for lab in labs {
            table.push(lab.row(seconds)?);
            bar.inc(1);
        }
        Ok(table)
    };
    let table = rows(&labs)?;
    let more = vec![
        ("one thing changed: wake-up, ring size, number of rings", rows(&variants)?),
        ("loss against the offered rate", losses(&lab, seconds, &bar)?),
    ];
    bar.finish_and_clear();
    let mut notes = vec![format!(
        "Each row: offered = delivered + lost, checked. {seconds} s each, seed {}. One worker for each ring, one producer in \
         the kernel for each ring. With the worker on the same CPU the two take turns. Records are those of live sockets; \
         \"loss-free\" is the highest rate, paced in steps of 20 us, of which nothing is lost in {} s. \
         The further tables are of the shard with {} live flows, the loss with the worker on another CPU.",
        options.seed,
        seconds / 2.0,
        lab.flows,
    )];
    notes.push(format!(
        "A busy thread on the worker's CPU, while the other CPU was busy, too, did not run for up to {:.2} ms in {seconds} s: \
         what comes in that time must find room in the ring, which bounds \"loss-free\".",
        longest_stall(seconds)?.as_secs_f64() * 1e3,
    ));
    Ok(Report { title: "saturate", table, more, notes })
}

/// The longest time in which a thread that wants to run does not, with both CPUs busy.
fn longest_stall(seconds: f64) -> Result<Duration> {
    let cpus = core_affinity::get_core_ids().context("cannot list the CPUs")?;
    let spin = |cpu: CoreId| {
        move || {
            core_affinity::set_for_current(cpu);
            let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
            while began.elapsed().as_secs_f64() < seconds {
                let now = Instant::now();
                longest = longest.max(now - last);
                last = now;
            }
            longest
        }
    };
    let threads: Vec<_> = cpus[..2].iter().map(|cpu| thread::spawn(spin(*cpu))).collect();
    let stalls: Vec<_> = threads.into_iter().map(|t| t.join().unwrap_or_default()).collect();
    Ok(stalls[1])
}

const COLUMNS: [&str; 11] = [
    "stage",
    "worker on",
    "flows",
    "ring KiB",
    "worker is",
    "rings",
    "flat out: offered/s",
    "delivered/s",
    "lost",
    "loss-free up to",
    "ns per record",
];

/// Shares of the ceiling at which losses are counted.
const LOSS_RATES: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5];

fn losses(lab: &Lab, seconds: f64, bar: &indicatif::ProgressBar) -> Result<Table> {
    let ceiling = lab.measure(None, seconds)?.delivered_per_s();
    let mut table = Table::new(&["aimed at/s", "offered/s", "lost %"]);
    for share in LOSS_RATES {
        let sample = lab.measure(Some(share * ceiling), seconds / 2.0)?;
        table.push(vec![
            json!((share * ceiling) as u64),
            json!(sample.offered_per_s() as u64),
            round2(100.0 * sample.lost as f64 / sample.offered.max(1) as f64),
        ]);
        bar.inc(1);
    }
    Ok(table)
}

/// One setting.
#[derive(Clone, Copy)]
struct Lab {
    stage: Stage,
    placement: Placement,
    wake: Wake,
    /// As many producers, on CPUs of their own, and as many workers.
    rings: usize,
    flows: u64,
    ring_bytes: u32,
    seed: u64,
}

impl Lab {
    fn row(&self, seconds: f64) -> Result<Vec<Value>> {
        let flat_out = self.measure(None, seconds)?;
        let delivered = flat_out.delivered_per_s();
        let loss_free = match flat_out.lost {
            0 => json!("void: the producer did not outrun it"),
            _ => json!(self.loss_free_rate(delivered, seconds)? as u64),
        };
        Ok(vec![
            json!(format!("{:?}", self.stage).to_lowercase()),
            json!(if self.placement == Placement::Same { "the same CPU" } else { "another CPU" }),
            json!(self.flows),
            json!(self.ring_bytes / 1024),
            json!(if self.stage == Stage::Drain { "the bare ring, with naps" } else { self.wake.name() }),
            json!(self.rings),
            json!(flat_out.offered_per_s() as u64),
            json!(delivered as u64),
            json!(flat_out.lost),
            loss_free,
            round2(1e9 / delivered),
        ])
    }

    /// The highest rate without loss, by halving the interval six times below what is delivered under overload.
    fn loss_free_rate(&self, ceiling: f64, seconds: f64) -> Result<f64> {
        let (mut good, mut bad, mut offered) = (0.0, ceiling * 1.25, 0.0);
        for _ in 0..6 {
            let rate = (good + bad) / 2.0;
            let sample = self.measure(Some(rate), seconds / 2.0)?;
            if sample.lost == 0 {
                (good, offered) = (rate, sample.offered_per_s());
            } else {
                bad = rate;
            }
        }
        Ok(offered)
    }

    /// Produces for some seconds, at a rate or flat out, and reads the books.
    fn measure(&self, rate: Option<f64>, seconds: f64) -> Result<Sample> {
        let (producer, rings) = Producer::load(self.ring_bytes)?;
        let cpus = core_affinity::get_core_ids().context("cannot list the CPUs")?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut consumers = Vec::new();
        for ring in rings.into_iter().filter(|ring| cpus[..self.rings].iter().any(|cpu| cpu.id == ring.cpu())) {
            let own = cpus.iter().position(|cpu| cpu.id == ring.cpu()).unwrap_or(0);
            let at = if self.placement == Placement::Same { own } else { (own + 1) % cpus.len() };
            consumers.push(self.consume(ring, cpus[at], &stop)?);
        }
        anyhow::ensure!(consumers.len() == self.rings, "no ring for a CPU");
        let all_produce = |rate, seconds| -> Result<Vec<(u64, f64)>> {
            thread::scope(|scope| {
                let produce = |cpu: &CoreId| {
                    let (producer, cpu) = (&producer, *cpu);
                    scope.spawn(move || {
                        core_affinity::set_for_current(cpu);
                        self.produce(producer, rate, seconds)
                    })
                };
                let threads: Vec<_> = cpus[..self.rings].iter().map(produce).collect();
                let joined = threads.into_iter().map(|t| t.join().map_err(|_| anyhow::anyhow!("the producer died"))?);
                joined.collect()
            })
        };
        // Until all boxes were written to once.
        let warm = all_produce(Some(WARM_UP_RATE), WARM_UP_SECONDS)?;
        let before = producer.books()?;
        let made = all_produce(rate, seconds)?;
        stop.store(true, Ordering::Relaxed);
        let mut delivered = 0;
        for consumer in consumers {
            delivered += consumer.join().map_err(|_| anyhow::anyhow!("the worker died"))?;
        }
        let (offered, lost) = producer.books()?;
        let all: u64 = warm.iter().chain(&made).map(|(made, _)| made).sum();
        if offered != all || offered != delivered + lost {
            bail!("the books do not balance: {all} made, {offered} offered, {delivered} delivered, {lost} lost");
        }
        let (offered, lost) = (offered - before.0, lost - before.1);
        let seconds = made.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        Ok(Sample { offered, delivered: offered - lost, lost, seconds })
    }

    /// The consumer's threads. The result is how many records arrived.
    fn consume(&self, ring: Ring, cpu: CoreId, stop: &Arc<AtomicBool>) -> Result<JoinHandle<u64>> {
        let stop = Arc::clone(stop);
        let started = Arc::new(AtomicBool::new(false));
        let ready = Arc::clone(&started);
        let (lab, readable) = (*self, ring.event_fd()?);
        let thread = thread::Builder::new().name("perf-consumer".into()).spawn(move || {
            core_affinity::set_for_current(cpu);
            ready.store(true, Ordering::Relaxed);
            if lab.stage == Stage::Drain { drain_only(ring, &stop) } else { lab.through_worker(ring, &readable, &stop) }
        })?;
        while !started.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        Ok(thread)
    }

    /// Returns how many records were made, and in how many seconds.
    fn produce(&self, producer: &Producer, rate: Option<f64>, seconds: f64) -> Result<(u64, f64)> {
        let began = Instant::now();
        let (mut made, mut forgone) = (0, 0.0);
        // Small steps when paced, so that the ring never sees more at once than the pace implies.
        let batch = rate.map_or(BATCH, |rate| ((rate / 50_000.0) as u64).clamp(1, BATCH));
        loop {
            let elapsed = began.elapsed().as_secs_f64();
            if elapsed >= seconds {
                return Ok((made, elapsed));
            }
            let late = rate.map_or(0.0, |rate| elapsed - forgone - made as f64 / rate);
            if late > LATE_MAX.as_secs_f64() {
                forgone += late;
            }
            if late < 0.0 {
                // A worker on the same CPU gets it, as in a host's idle time.
                if self.placement == Placement::Same {
                    thread::sleep(NAP)
                } else {
                    std::hint::spin_loop()
                }
                continue;
            }
            let wake = self.wake == Wake::Event;
            producer.produce(Order { records: batch, flows: self.flows, seed: self.seed + made, wake })?;
            made += batch;
        }
    }

    /// The agent's worker, and a control thread that empties its deltas or merges them.
    fn through_worker(&self, ring: Ring, readable: &OwnedFd, stop: &AtomicBool) -> u64 {
        let cpu = ring.cpu();
        let (worker, port) = Worker::new(0, vec![(ring, cpu)]);
        let worker_ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let control = scope.spawn(|| {
                // The consumer's pinning was inherited; control is free in the agent, here it leaves the producer alone.
                if let Some(last) = core_affinity::get_core_ids().unwrap_or_default().pop() {
                    core_affinity::set_for_current(last);
                }
                take_deltas(port, self.stage, self.flows, &worker_ended)
            });
            match self.wake {
                Wake::Nap => worker.run(stop),
                Wake::Busy => worker.run_with(stop, |_| {}),
                Wake::Event => worker.run_with(stop, |visit| {
                    if visit.records == 0 {
                        let _ = poll(&mut [PollFd::new(readable, PollFlags::IN)], Some(&EVENT_WAIT));
                    }
                }),
            }
            worker_ended.store(true, Ordering::Relaxed);
            control.join().unwrap_or(0)
        })
    }
}

/// The ring alone: what no worker can exceed.
fn drain_only(mut ring: Ring, stop: &AtomicBool) -> u64 {
    let (mut total, mut seen, mut pace) = (0, 0u64, Pace::default());
    loop {
        let ended = stop.load(Ordering::Relaxed);
        let (mut visit, mut bytes) = (Visit::default(), 0);
        let taken = ring.drain(VISIT_RECORDS_MAX, |entry| {
            bytes += entry.len() as u64;
            seen = seen.wrapping_add(entry.first().copied().unwrap_or(0).into());
        });
        total += taken as u64;
        if taken == 0 && ended {
            return std::hint::black_box((total, seen)).0;
        }
        visit.add(taken, bytes, ring.capacity_bytes());
        pace.wait(visit);
    }
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
                delta.tcp.records().iter().for_each(|record| table.tcp_record(record, now_ns));
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
