//! The drain threads: rings in, shards out. One worker serves a group of CPUs and is pinned to one of them.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sockeye_bpf::cpus::last_level_cache;
use sockeye_bpf::ring::{Drain, Ring};

use crate::ingest::shard::{FLOWS_USUAL, Shard, VISIT_RECORDS_MAX};
use crate::model::clock::boot_ns;
use crate::threads::Threads;

/// How often a shard is handed over.
pub const HAND_OVER: Duration = Duration::from_millis(250);
/// What may come to a ring out of nothing, bytes a second: 90,000 connections that end, more than a CPU can make. The
/// longest sleep is one in which this does not fill the ring, 62 ms with 1 MiB.
const BURST_BYTES_PER_S: usize = 16 << 20;
/// And this where rings have no limit.
const POLL_INTERVAL_MAX: Duration = Duration::from_millis(100);
/// Shorter waits are not slept: waking up can take a millisecond longer than asked for, in which the ring would fill up.
const SLEEP_MIN: Duration = Duration::from_millis(1);
/// Shortest sleep after a visit that found nothing.
const POLL_INTERVAL_EMPTY: Duration = Duration::from_micros(100);
/// How full the next visit shall find the fullest ring.
const FILL_AIM: f64 = 0.125;
/// From here on there is no wait.
const FILL_HIGH: f64 = 0.25;
/// Sleep while control has all buffers.
const POLL_INTERVAL_STALLED: Duration = Duration::from_millis(1);
/// Buffers that travel between a worker and control: one being filled, the others on their way.
const BUFFERS: usize = 4;
/// So long the largest shard decides how much memory the buffers keep.
const KEPT_FOR: Duration = Duration::from_secs(10);

/// Figures that control reads while the worker runs.
#[derive(Debug, Default)]
pub struct WorkerStats {
    /// Hand-overs.
    pub shards: AtomicU64,
    /// Moments in which a full shard could not be handed over because control held all buffers. Records wait in the ring.
    pub stalls: AtomicU64,
    /// Visits to all rings.
    pub visits: AtomicU64,
    /// Flows in the last shard.
    pub shard_flows: AtomicU64,
    /// The most there ever were in one.
    pub shard_flows_max: AtomicU64,
    /// Boot time, nanoseconds: control has, or will find in its queue, everything that the rings held then.
    pub drained_through_ns: AtomicU64,
}

/// The control thread's ends of a worker's two queues.
pub struct WorkerPort {
    /// Number, for statistics.
    pub index: usize,
    /// CPU that the thread is pinned to.
    pub pinned_cpu: Option<usize>,
    /// CPUs whose rings it drains.
    pub cpus: Vec<usize>,
    /// Capacity of these rings together.
    pub ring_sizes: Vec<usize>,
    /// Filled shards.
    pub shards: rtrb::Consumer<Box<Shard>>,
    /// Emptied shards, on their way back.
    pub recycle: rtrb::Producer<Box<Shard>>,
    /// Figures.
    pub stats: Arc<WorkerStats>,
}

/// Tells control that a full shard waits for it; it would come for others in its own time.
pub type WakeControl = Box<dyn Fn() + Send>;

/// Everything that runs on a worker's thread.
pub struct Worker<R> {
    rings: Vec<(R, usize)>,
    wake_control: WakeControl,
    current: Box<Shard>,
    shards: rtrb::Producer<Box<Shard>>,
    recycle: rtrb::Consumer<Box<Shard>>,
    /// Empty ones, the last used on top: it is warm, and those below stay memory that was never touched.
    #[expect(clippy::vec_box, reason = "the boxes travel through the queues")]
    spare: Vec<Box<Shard>>,
    /// The most flows in a shard since the buffers last shrank.
    recent_flows_max: usize,
    /// When the last visit began that took all that the rings held, boot time.
    emptied_ns: u64,
    stats: Arc<WorkerStats>,
}

/// What a visit found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Visit {
    /// Records in all rings.
    pub records: usize,
    /// How full the fullest ring was, 0 to 1.
    pub fill: f64,
    /// The shard is full and control has all others: records stay in the rings.
    pub stalled: bool,
    /// A record was still being written, and is left with those behind it.
    pub in_flight: bool,
}

impl Visit {
    /// Counts what was taken from one ring.
    pub fn add(&mut self, records: usize, bytes: u64, capacity_bytes: usize) {
        // One that was left before it was empty may have been full.
        let fill = if records < VISIT_RECORDS_MAX { bytes as f64 / capacity_bytes as f64 } else { 1.0 };
        self.records += records;
        self.fill = self.fill.max(fill);
    }

    /// Nothing was left in a ring that was there when the visit began.
    fn has_emptied_all(self) -> bool {
        self.fill < 1.0 && !self.stalled && !self.in_flight
    }

    /// How long to wait now, if the visit before began so long ago. Each visit costs a wake-up, and looking more often
    /// than needed costs the producer: it shares cache lines with who looks.
    fn next_poll_interval(self, since: Duration, poll_interval_max: Duration) -> Duration {
        if self.stalled {
            return POLL_INTERVAL_STALLED;
        }
        if self.fill >= FILL_HIGH {
            return Duration::ZERO;
        }
        // Nothing came: the burst is over, or the producer is off its CPU for a moment.
        let least = if self.records == 0 { POLL_INTERVAL_EMPTY } else { Duration::ZERO };
        since.mul_f64((FILL_AIM / self.fill).min(2.0)).clamp(least, poll_interval_max)
    }
}

/// Waits between visits.
#[derive(Debug)]
pub struct Pace {
    last: Instant,
    poll_interval_max: Duration,
}

impl Pace {
    /// For rings of which the smallest holds so much.
    #[must_use]
    pub fn new(capacity_bytes: usize) -> Self {
        let burst = Duration::from_secs_f64(capacity_bytes as f64 / BURST_BYTES_PER_S as f64);
        Self { last: Instant::now(), poll_interval_max: burst.clamp(SLEEP_MIN, POLL_INTERVAL_MAX) }
    }

    /// Waits as long as this visit suggests.
    pub fn wait(&mut self, visit: Visit) {
        let now = Instant::now();
        let poll_interval = visit.next_poll_interval(now - self.last, self.poll_interval_max);
        self.last = now;
        // When nothing came the producer may be waiting for this very CPU; who wakes from sleep gets it back at once.
        if poll_interval >= SLEEP_MIN || visit.records == 0 {
            thread::sleep(poll_interval);
        } else {
            while now.elapsed() < poll_interval {
                std::hint::spin_loop();
            }
        }
    }
}

impl<R: Drain> Worker<R> {
    /// A worker for rings, each with its CPU, and control's ends of its queues.
    #[must_use]
    pub fn new(index: usize, rings: Vec<(R, usize)>, wake_control: WakeControl) -> (Self, WorkerPort) {
        let cpus: Vec<usize> = rings.iter().map(|(_, cpu)| *cpu).collect();
        let (to_control, shards) = rtrb::RingBuffer::new(BUFFERS);
        let (recycle, from_control) = rtrb::RingBuffer::new(BUFFERS);
        let stats = Arc::new(WorkerStats::default());
        let worker = Self {
            rings,
            wake_control,
            current: Box::new(Shard::new(&cpus)),
            shards: to_control,
            recycle: from_control,
            spare: (1..BUFFERS).map(|_| Box::new(Shard::new(&cpus))).collect(),
            recent_flows_max: 0,
            emptied_ns: 0,
            stats: Arc::clone(&stats),
        };
        (worker, WorkerPort { index, pinned_cpu: None, cpus, ring_sizes: Vec::new(), shards, recycle, stats })
    }

    /// Visits each ring once.
    pub fn visit(&mut self) -> Visit {
        self.visit_at(boot_ns())
    }

    /// The same at a moment of boot time that the caller knows.
    pub(crate) fn visit_at(&mut self, began_ns: u64) -> Visit {
        let mut visit = Visit::default();
        for index in 0..self.rings.len() {
            if self.current.is_full() {
                if !self.exchange() {
                    self.stats.stalls.fetch_add(1, Ordering::Relaxed);
                    return Visit { stalled: true, ..visit };
                }
                (self.wake_control)();
            }
            let (shard, ring) = (&mut self.current, &mut self.rings[index].0);
            let mut bytes = 0;
            let taken = ring.drain(VISIT_RECORDS_MAX, |entry| {
                bytes += entry.len() as u64 + ENTRY_HEADER_BYTES;
                shard.record(index, entry);
            });
            let counts = &mut shard.rings[index].1;
            counts.fill_bytes_max = counts.fill_bytes_max.max(bytes);
            visit.add(taken, bytes, ring.capacity_bytes());
            visit.in_flight |= ring.has_record_in_flight();
        }
        self.stats.visits.fetch_add(1, Ordering::Relaxed);
        if visit.has_emptied_all() {
            self.emptied_ns = began_ns.saturating_sub(CLOCK_SKEW_NS);
        }
        visit
    }

    /// Gives the current shard to control, if it says anything and an empty one is there to go on with.
    pub fn hand_over(&mut self) -> bool {
        let handed_over = !self.current.is_empty() && self.exchange();
        if self.current.is_empty() {
            // Who reads this finds the shard in the queue.
            self.stats.drained_through_ns.store(self.emptied_ns, Ordering::Release);
        }
        handed_over
    }

    fn take_back(&mut self) {
        while let Ok(empty) = self.recycle.pop() {
            self.spare.push(empty);
        }
    }

    /// After a storm: buffers that were filled then, and are too large for what has come since, give their memory back.
    fn shrink(&mut self) {
        self.take_back();
        let needed = self.recent_flows_max.max(FLOWS_USUAL);
        self.spare.iter_mut().for_each(|shard| shard.shrink(needed));
        self.recent_flows_max = 0;
    }

    fn exchange(&mut self) -> bool {
        self.take_back();
        let Some(empty) = self.spare.pop() else { return false };
        let flows = self.current.flows();
        self.recent_flows_max = self.recent_flows_max.max(flows);
        self.stats.shard_flows.store(flows as u64, Ordering::Relaxed);
        self.stats.shard_flows_max.fetch_max(flows as u64, Ordering::Relaxed);
        let full = std::mem::replace(&mut self.current, empty);
        // There are as many places as buffers, so there is always room.
        let sent = self.shards.push(full).is_ok();
        self.stats.shards.fetch_add(1, Ordering::Relaxed);
        sent
    }

    /// Works until `stop`, with sleeps in between, then drains what is left. Says `progress` after each visit.
    pub fn run(self, stop: &AtomicBool, progress: impl Fn()) {
        let capacity = self.rings.iter().map(|(ring, _)| ring.capacity_bytes()).min();
        let mut pace = Pace::new(capacity.unwrap_or(usize::MAX));
        self.run_with(stop, |visit| {
            progress();
            pace.wait(visit);
        });
    }

    /// The same with another way to `wait` for the next visit.
    pub fn run_with(mut self, stop: &AtomicBool, mut wait: impl FnMut(Visit)) {
        let mut last_hand_over = Instant::now();
        let mut last_shrink = last_hand_over;
        while !stop.load(Ordering::Relaxed) {
            let visit = self.visit();
            if last_hand_over.elapsed() >= HAND_OVER {
                self.hand_over();
                last_hand_over = Instant::now();
                if last_shrink.elapsed() >= KEPT_FOR {
                    self.shrink();
                    last_shrink = last_hand_over;
                }
            }
            wait(visit);
        }
        loop {
            let visit = self.visit();
            let reported = self.current.is_empty() || self.hand_over();
            if (visit.records == 0 && !visit.stalled && reported) || self.shards.is_abandoned() {
                return;
            }
            if visit.stalled || !reported {
                thread::sleep(POLL_INTERVAL_STALLED);
            }
        }
    }
}

/// The clocks of two CPUs differ by less: what a CPU has stamped with an earlier moment than the worker's may come later.
pub const CLOCK_SKEW_NS: u64 = 100_000;
/// Length word and page offset before each entry (`BPF_RINGBUF_HDR_SZ`).
const ENTRY_HEADER_BYTES: u64 = 8;

/// Shares CPUs out evenly, each part of neighbours below the same last-level cache: a line of another one's takes five times as
/// long to come. `cpus`: numbers and caches. At most `count` parts, none empty.
fn parts(mut cpus: Vec<(usize, usize)>, count: usize) -> Vec<Vec<usize>> {
    cpus.sort_unstable_by_key(|(cpu, cache)| (*cache, *cpu));
    let count = count.clamp(1, cpus.len().max(1));
    let mut parts = Vec::with_capacity(count);
    let mut rest = cpus.as_slice();
    for left in (1..=count).rev() {
        let (part, others) = rest.split_at(rest.len().div_ceil(left));
        parts.push(part.iter().map(|(cpu, _)| *cpu).collect());
        rest = others;
    }
    parts
}

/// Starts the workers for these rings: `count` threads, CPUs shared out evenly.
///
/// # Errors
/// If a thread cannot be started.
pub fn start(
    threads: &Threads,
    rings: Vec<Ring>,
    count: usize,
    stop: &Arc<AtomicBool>,
    wake_control: &(impl Fn() + Clone + Send + 'static),
) -> std::io::Result<(Vec<WorkerPort>, Vec<JoinHandle<()>>)> {
    let caches = rings.iter().map(|ring| (ring.cpu(), last_level_cache(ring.cpu()))).collect();
    let parts = parts(caches, count);
    let mut groups: Vec<Vec<(Ring, usize)>> = parts.iter().map(|_| Vec::new()).collect();
    for ring in rings {
        let cpu = ring.cpu();
        let part = parts.iter().position(|part| part.contains(&cpu)).unwrap_or(0);
        groups[part].push((ring, cpu));
    }
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let mut ports = Vec::new();
    let mut started = Vec::new();
    for (index, group) in groups.into_iter().enumerate() {
        let ring_sizes = group.iter().map(|(ring, _)| ring.size_bytes()).collect();
        let (worker, mut port) = Worker::new(index, group, Box::new(wake_control.clone()));
        port.ring_sizes = ring_sizes;
        let core = cores.iter().find(|core| port.cpus.contains(&core.id)).copied();
        port.pinned_cpu = core.map(|core| core.id);
        let stop = Arc::clone(stop);
        started.push(threads.essential(&format!("sockeye-w{index}"), move |pulse| {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            pulse.prefer();
            worker.run(&stop, || pulse.working());
        })?);
        ports.push(port);
    }
    Ok((ports, started))
}
