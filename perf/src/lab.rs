//! The laboratory of `perf saturate`: a producer in the kernel, rings, and the agent's own worker and table behind them.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use core_affinity::CoreId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sockeye::flows::{FlowTable, TICK_NS, Timeouts};
use sockeye::ingest::shard::VISIT_RECORDS_MAX;
use sockeye::ingest::worker::{Pace, Visit, Worker, WorkerPort};
use sockeye_bpf::harness::readers::{AyaRing, LibbpfRing};
use sockeye_bpf::harness::saturate::{Order, Producer};
use sockeye_bpf::ring::{Drain, Ring};

/// Records per run of the producer: half a millisecond without a look at the clock.
const BATCH: u64 = 4096;
/// Of a paced producer that shares its CPU.
const PACED_SLEEP: Duration = Duration::from_micros(50);
/// What a paced producer makes up for when it was not on its CPU. The rest is not made at all: it would come as a burst at
/// many times the pace.
const LATE_MAX: Duration = Duration::from_micros(200);
/// Before each measurement.
const WARM_UP_RATE: f64 = 1e6;
const WARM_UP_SECONDS: f64 = 0.25;
/// How long a worker that is woken waits at most: it must notice the end.
const EVENT_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    Drain,
    Shard,
    Merge,
}

/// How a worker learns that there is something in its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// It sleeps as the agent does, and looks. The kernel wakes nobody.
    Poll,
    /// The kernel wakes it when it had found nothing before.
    Event,
    /// It looks all the time.
    Busy,
}

impl Wake {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Poll => "polls (the agent's)",
            Self::Event => "woken by the kernel",
            Self::Busy => "never sleeps",
        }
    }
}

/// Who reads the bare ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reader {
    Own,
    Aya,
    Libbpf,
}

impl Reader {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Aya => "aya",
            Self::Libbpf => "libbpf",
        }
    }

    /// Takes records from a ring until `stop` and until none is left. Returns how many.
    fn drain(self, ring: Ring, stop: &AtomicBool) -> Result<u64> {
        Ok(match self {
            Self::Own => drain_only(ring, stop),
            Self::Aya => drain_only(AyaRing::new(&ring)?, stop),
            Self::Libbpf => drain_only(LibbpfRing::new(&ring)?, stop),
        })
    }
}

/// Where the worker runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// On the CPU whose ring it drains.
    Same,
    Other,
}

/// What one measurement found.
pub(crate) struct Sample {
    pub(crate) offered: u64,
    pub(crate) delivered: u64,
    pub(crate) lost: u64,
    seconds: f64,
}

impl Sample {
    pub(crate) fn offered_per_s(&self) -> f64 {
        self.offered as f64 / self.seconds
    }

    pub(crate) fn delivered_per_s(&self) -> f64 {
        self.delivered as f64 / self.seconds
    }
}

/// One setting.
#[derive(Clone, Copy)]
pub(crate) struct Lab {
    pub(crate) stage: Stage,
    pub(crate) placement: Placement,
    pub(crate) wake: Wake,
    /// Of the bare ring; the worker's is our own.
    pub(crate) reader: Reader,
    /// As many producers, on CPUs of their own, and as many workers.
    pub(crate) rings: usize,
    pub(crate) flows: u64,
    pub(crate) ring_bytes: u32,
    pub(crate) seed: u64,
}

impl Lab {
    /// The highest rate without loss, by halving the interval five times below what is delivered under overload. What was
    /// truly offered, a second.
    pub(crate) fn loss_free_rate(&self, ceiling: f64, seconds: f64) -> Result<f64> {
        let (mut good, mut bad, mut offered) = (0.0, ceiling * 1.25, 0.0);
        for _ in 0..5 {
            let rate = (good + bad) / 2.0;
            let sample = self.measure(Some(rate), seconds)?;
            if sample.lost == 0 {
                (good, offered) = (rate, sample.offered_per_s());
            } else {
                bad = rate;
            }
        }
        Ok(offered)
    }

    /// Produces for some seconds, at a rate or flat out, and reads the counters.
    pub(crate) fn measure(&self, rate: Option<f64>, seconds: f64) -> Result<Sample> {
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
        // Until all buffers were written to once.
        let warm = all_produce(Some(WARM_UP_RATE), WARM_UP_SECONDS)?;
        let before = producer.record_counters()?;
        let made = all_produce(rate, seconds)?;
        stop.store(true, Ordering::Relaxed);
        let mut delivered = 0;
        for consumer in consumers {
            delivered += consumer.join().map_err(|_| anyhow::anyhow!("the worker died"))??;
        }
        let (offered, lost) = producer.record_counters()?;
        let all: u64 = warm.iter().chain(&made).map(|(made, _)| made).sum();
        if offered != all || offered != delivered + lost {
            bail!("the counters do not balance: {all} made, {offered} offered, {delivered} delivered, {lost} lost");
        }
        let (offered, lost) = (offered - before.0, lost - before.1);
        let seconds = made.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        Ok(Sample { offered, delivered: offered - lost, lost, seconds })
    }

    /// The consumer's threads. The result is how many records arrived.
    fn consume(&self, ring: Ring, cpu: CoreId, stop: &Arc<AtomicBool>) -> Result<JoinHandle<Result<u64>>> {
        let stop = Arc::clone(stop);
        let started = Arc::new(AtomicBool::new(false));
        let ready = Arc::clone(&started);
        let (lab, readable) = (*self, ring.event_fd()?);
        let thread = thread::Builder::new().name("perf-consumer".into()).spawn(move || {
            core_affinity::set_for_current(cpu);
            ready.store(true, Ordering::Relaxed);
            if lab.stage == Stage::Drain {
                lab.reader.drain(ring, &stop)
            } else {
                Ok(lab.through_worker(ring, &readable, &stop))
            }
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
                    thread::sleep(PACED_SLEEP)
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

    /// The agent's worker, and a control thread that empties its shards or merges them.
    fn through_worker(&self, ring: Ring, readable: &OwnedFd, stop: &AtomicBool) -> u64 {
        let cpu = ring.cpu();
        let (wake, events) = mpsc::channel();
        let wake_control = move || {
            let _ = wake.send(());
        };
        let (worker, port) = Worker::new(0, vec![(ring, cpu)], Box::new(wake_control));
        thread::scope(|scope| {
            let control = scope.spawn(move || {
                // The consumer's pinning was inherited; control is free in the agent, here it leaves the producer alone.
                if let Some(last) = core_affinity::get_core_ids().unwrap_or_default().pop() {
                    core_affinity::set_for_current(last);
                }
                take_shards(port, self.stage, self.flows, &events)
            });
            match self.wake {
                Wake::Poll => worker.run(stop, || {}),
                Wake::Busy => worker.run_with(stop, |_| {}),
                Wake::Event => worker.run_with(stop, |visit| {
                    if visit.records == 0 {
                        let _ = poll(&mut [PollFd::new(readable, PollFlags::IN)], Some(&EVENT_WAIT));
                    }
                }),
            }
            control.join().unwrap_or(0)
        })
    }
}

/// The ring alone: what no worker can exceed.
fn drain_only(mut ring: impl Drain, stop: &AtomicBool) -> u64 {
    let (mut total, mut seen, mut pace) = (0, 0u64, Pace::new(ring.capacity_bytes()));
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

fn take_shards(mut port: WorkerPort, stage: Stage, flows: u64, events: &Receiver<()>) -> u64 {
    let mut table = FlowTable::new(usize::try_from(flows).unwrap_or(usize::MAX) + 1, Timeouts::default());
    let (mut delivered, mut now_ns) = (0, 0);
    loop {
        let ended = events.recv_timeout(Duration::from_nanos(TICK_NS)) == Err(RecvTimeoutError::Disconnected);
        while let Ok(mut shard) = port.shards.pop() {
            now_ns += 1;
            delivered += shard.rings.iter().map(|(_, counts)| counts.delivered.iter().sum::<u64>()).sum::<u64>();
            if stage == Stage::Merge {
                shard.tcp.records().iter().for_each(|record| table.tcp_record(record, now_ns));
            }
            shard.clear();
            let _ = port.recycle.push(shard);
        }
        if ended {
            return delivered;
        }
    }
}
