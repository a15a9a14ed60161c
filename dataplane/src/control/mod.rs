//! The control thread: the only owner of the flow table. Merges what the workers hand over, scans the kernel, schedules
//! the reports, answers `ctl`.

mod answers;
mod naming;
mod options;
mod owners;
mod report;
mod scrapes;
#[cfg(test)]
mod simulator;
mod translation;

pub use options::{ControlOptions, Enrichment};

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sockeye_bpf::cpus;
use sockeye_bpf::error::KernelError;
use sockeye_bpf::kernel::Kernel;
use sockeye_bpf::programs::RunTimeStats;
use sockeye_bpf::records::{FlowRecord, KINDS, Kind};
use sockeye_bpf::scan::Scanned;

use crate::api::events::{Change, Event, Question, Tuning};
use crate::api::pass::Pass;
use crate::api::questions::EnrichmentFigures;
use crate::api::stats::Totals;
use crate::export::ExportPort;
use crate::flows::aggregates::Aggregates;
use crate::flows::conversations::Conversations;
use crate::flows::report::FlowReport;
use crate::flows::{FlowTable, TICK_NS};
use crate::ingest::shard::{RingCounts, Shard};
use crate::ingest::udp::{Drained, Drainer};
use crate::ingest::worker::{CLOCK_SKEW_NS, WorkerPort};
use crate::model::clock::{WallClock, boot_ns, thread_cpu_ns};
use crate::model::rtt::{RttHistogram, rtt_histogram};
use crate::names::Names;
use crate::owners::process::{Process, ProcessTable};
use crate::threads::Pulse;

/// How often the UDP table and the close overflow are drained.
const DRAIN_EVERY: Duration = Duration::from_secs(1);
/// A scan takes at most one part in so many of a CPU: with many sockets there is more time between two, up to a limit.
const SCAN_SHARE: u32 = 100;
const SCAN_EVERY_MAX: Duration = Duration::from_secs(10);

/// All that the control thread owns.
pub struct Control {
    kernel: Kernel,
    workers: Vec<WorkerPort>,
    table: FlowTable,
    processes: ProcessTable,
    exporters: Vec<ExportPort>,
    rtt: RttHistogram,
    aggregates: Aggregates,
    conversations: Conversations,
    names: Names,
    /// None: nobody is to be asked.
    translation: Option<translation::Translation>,
    metrics: Option<Box<scrapes::Metrics>>,
    enrichment: Enrichment,
    totals: Totals,
    started: Instant,
    run_time: Option<(RunTimeStats, Instant)>,
    options: ControlOptions,
    clock: WallClock,
    drainer: Drainer,
    /// The next scan must emit the full record of every socket: it found one as it was before that the table does not know.
    scan_all: bool,
    /// UDP sockets that are gone; their last counters come with the next drain.
    udp_closed: Vec<u64>,
    /// Closes that found their ring full; kept for its memory.
    late: Option<Box<Shard>>,
    /// All of them before this moment were taken.
    late_until_ns: u64,
    /// Of the current tick; kept for its memory.
    reports: Vec<FlowReport>,
    joined: Vec<u64>,
    /// Addresses of which collectors know that something listens there.
    ports_reported_at: BTreeSet<IpAddr>,
    /// Owners of listeners that are gone, for which a walk was made.
    gone: BTreeSet<u32>,
    /// CPUs that came online after the start.
    late_cpus: BTreeSet<usize>,
    /// A collector has joined, and hears of listening ports once more soon.
    ports_again: bool,
    due: Due,
    /// Questions that wait for processes to be looked up, and until when at most.
    asked: VecDeque<(Instant, Question)>,
    /// Answers that are being made.
    passes: VecDeque<Pass>,
}

/// When periodic work is due.
struct Due {
    tick: Instant,
    drain: Instant,
    scan: Instant,
    scanned: Option<Instant>,
    /// A walk over open files: if it is wanted, and in any case.
    walk: [Instant; 2],
    ports: Instant,
}

impl Control {
    /// Takes over everything that was started.
    #[must_use]
    pub fn new(
        kernel: Kernel,
        drainer: Drainer,
        workers: Vec<WorkerPort>,
        exporters: Vec<ExportPort>,
        enrichment: Enrichment,
        options: ControlOptions,
    ) -> Self {
        let now = Instant::now();
        let rings = workers.iter().flat_map(|worker| &worker.cpus).max().map_or(0, |cpu| cpu + 1);
        let table = FlowTable::new(options.flows_max, options.tuning.timeouts);
        let mut names = Names::default();
        if options.prometheus_series.is_some() {
            names.service.keep_fresh();
        }
        let mut control = Self {
            kernel,
            workers,
            table,
            processes: ProcessTable::default(),
            joined: vec![0; exporters.len()],
            ports_reported_at: BTreeSet::new(),
            ports_again: true,
            gone: BTreeSet::new(),
            late_cpus: BTreeSet::new(),
            exporters,
            rtt: rtt_histogram(),
            aggregates: Aggregates::new(options.window),
            conversations: Conversations::new(options.window),
            names,
            translation: options.nat.then(Default::default),
            metrics: options.prometheus_series.map(|bounds| Box::new(scrapes::Metrics::new(bounds))),
            enrichment,
            totals: Totals { rings: vec![RingCounts::default(); rings], ..Totals::default() },
            started: now,
            run_time: None,
            options,
            clock: WallClock::now(),
            drainer,
            scan_all: true,
            udp_closed: Vec::new(),
            late: Some(Box::new(Shard::new(&[]))),
            late_until_ns: 0,
            reports: Vec::new(),
            asked: VecDeque::new(),
            passes: VecDeque::new(),
            due: Due {
                tick: now,
                drain: now,
                scan: now,
                scanned: None,
                walk: [now, now + owners::WALK_EVERY],
                ports: now + report::PORTS_FIRST,
            },
        };
        control.tune_table();
        control
    }

    /// Works until `stop`, which must come after the workers have ended.
    pub fn run(mut self, events: &Receiver<Event>, stop: &AtomicBool, pulse: &Pulse) {
        self.first_scan();
        while !stop.load(Ordering::Relaxed) {
            // What is due comes first, however many ask; then one of them has its turn, however late it is.
            if Instant::now() >= self.due.tick {
                pulse.working();
                self.tick();
            }
            let pause = if self.go_on_scraping() { Duration::ZERO } else { Duration::MAX }.min(self.go_on_answering());
            let wait = self.due.tick.saturating_duration_since(Instant::now()).min(pause);
            pulse.waiting();
            let event = events.recv_timeout(wait);
            pulse.working();
            match event {
                Ok(Event::Question(question)) => self.ask(question),
                Ok(Event::Scrape(reply)) => self.scrape(reply),
                Ok(Event::ShardFull) => self.take_shards(),
                Ok(Event::Change(change)) => self.change(*change),
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody asks, and no worker is left.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(wait),
            }
        }
        self.end();
    }

    /// The table does as it is tuned, and as its kernel allows.
    fn tune_table(&mut self) {
        let Tuning { timeouts, keep, filter, .. } = &self.options.tuning;
        let orphans_are_seen = !self.kernel.misses_orphans();
        self.table.set_timeouts(if orphans_are_seen { *timeouts } else { timeouts.without_orphans() });
        self.table.keep_closed(*keep);
        self.table.set_filter(filter.clone());
    }

    /// Takes another configuration. What is scheduled already stays so: it is a report interval away at most.
    fn change(&mut self, change: Change) {
        let Change { tuning, gone, new, reply } = change;
        if let Err(err) = self.kernel.set_filter(&tuning.filter.of_sockets()) {
            let _ = reply.send(Err(format!("{:#}", anyhow::Error::from(err))));
            return;
        }
        self.options.tuning = tuning;
        self.tune_table();
        let ports = std::mem::take(&mut self.exporters).into_iter().zip(std::mem::take(&mut self.joined));
        let (gone, kept): (Vec<_>, Vec<_>) = ports.partition(|(port, _)| gone.contains(&port.name));
        // Whoever has come to a new one already is noticed with the next tick.
        (self.exporters, self.joined) = kept.into_iter().chain(new.into_iter().map(|port| (port, 0))).unzip();
        let _ = reply.send(Ok(gone.into_iter().map(|(port, _)| port).collect()));
    }

    /// Listeners first: they tell which end of an older connection accepted it.
    fn first_scan(&mut self) {
        self.scan_for(|record| record.kind == Kind::Listener as u8);
        self.scan();
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.due.tick = now + until_next(self.clock.unix_ns(boot_ns()), 1, TICK_NS, 0);
        self.take_shards();
        self.take_replies();
        if let Some(drained) = self.drainer.poll() {
            self.take_drained(drained);
        }
        if now >= self.due.drain {
            self.due.drain = now + self.until_half_second(DRAIN_EVERY);
            self.clock = WallClock::now();
            self.drain();
        }
        if now >= self.due.scan {
            self.scan();
        }
        self.report();
        self.update_exporters(now);
        if self.run_time.as_ref().is_some_and(|(_, until)| now > *until) {
            self.run_time = None;
        }
    }

    fn take_shards(&mut self) {
        let now_ns = boot_ns();
        let drained_ns =
            self.workers.iter().map(|worker| worker.stats.drained_through_ns.load(Ordering::Acquire)).min();
        for index in 0..self.workers.len() {
            // Not those that it fills meanwhile, or others would have to wait for ever.
            let waiting = self.workers[index].shards.slots();
            for _ in 0..waiting {
                let Ok(mut shard) = self.workers[index].shards.pop() else { break };
                self.merge(&shard, now_ns);
                shard.clear();
                // There are as many places as buffers.
                let _ = self.workers[index].recycle.push(shard);
            }
        }
        let drained_ns = drained_ns.unwrap_or(0);
        self.table.drained_through(drained_ns.min(self.late_until_ns));
        self.names.read(drained_ns, now_ns, &|process| naming::place_of(process, &self.processes));
        self.table.questions_through(if self.names.is_empty() { u64::MAX } else { drained_ns });
        self.ask_for_processes();
    }

    fn merge(&mut self, shard: &Shard, now_ns: u64) {
        // First where, then who, then what they did.
        for cgroup in &shard.cgroups {
            self.processes.workloads.learn_record(cgroup, now_ns);
        }
        for identity in &shard.identities {
            self.processes.learn(Process::from_record(identity, self.options.command_lines), now_ns);
        }
        for record in shard.tcp_earlier.iter().chain(shard.tcp.records()) {
            self.table.tcp_record(record, now_ns);
        }
        for (key, value) in &shard.udp {
            self.table.udp(key, value, now_ns);
        }
        self.udp_closed.extend_from_slice(&shard.udp_closed);
        self.names.take(shard.payloads.iter(), now_ns);
        for samples in &shard.flow_rtt {
            self.table.tcp_samples(samples.cookie, samples.seq_local, samples.samples_us());
        }
        // Equal bounds: the sum cannot fail.
        let _ = self.rtt.add(&shard.rtt);
        for (&(owner, side), rtt) in shard.process_rtt.iter() {
            self.aggregates.process_rtt(owner, side, rtt, &self.processes, now_ns);
            if let Some(metrics) = &mut self.metrics {
                metrics.accounts.rtt(owner, side, rtt, &self.processes, now_ns);
            }
        }
        for (&network, rtt) in shard.peer_rtt.iter() {
            self.aggregates.peer_rtt(network, rtt);
        }
        for (cpu, counts) in &shard.rings {
            let total = &mut self.totals.rings[*cpu];
            for kind in 0..KINDS {
                total.delivered[kind] += counts.delivered[kind];
            }
            total.malformed += counts.malformed;
            total.fill_bytes_max = total.fill_bytes_max.max(counts.fill_bytes_max);
        }
    }

    /// Late closes, and a request for UDP counters.
    fn drain(&mut self) {
        let now_ns = boot_ns();
        self.drainer.ask(&mut self.udp_closed);
        if let Some(mut late) = self.late.take() {
            let closes = self.kernel.scanner().closes(|close| late.close(close));
            if closes.is_ok() {
                self.late_until_ns = now_ns.saturating_sub(CLOCK_SKEW_NS);
            }
            self.totals.overflow_closes += self.count_error(closes, "drain the close overflow");
            self.merge(&late, now_ns);
            late.clear();
            self.late = Some(late);
        }
        self.update_agent_figures();
        self.notice_cpus();
        self.aggregates.roll_up(&self.processes, now_ns);
        self.names.expire(now_ns);
        let (processes, cgroups) = self.processes.expire(now_ns);
        processes.iter().for_each(|key| self.kernel.forget_process(key.pid, key.start_ticks));
        cgroups.iter().for_each(|id| self.kernel.forget_cgroup(*id));
        self.processes.check(now_ns);
    }

    /// A CPU that comes online shares a ring with others.
    fn notice_cpus(&mut self) {
        let own = |cpu: &usize| self.workers.iter().any(|worker| worker.cpus.contains(cpu));
        for cpu in cpus::online().into_iter().filter(|cpu| !own(cpu)) {
            if self.late_cpus.insert(cpu) {
                tracing::info!(
                    "CPU {cpu} is online now: it shares a ring; start sockeye again to give it one of its own"
                );
            }
        }
    }

    /// UDP counters that have come.
    fn take_drained(&mut self, mut drained: Drained) {
        let now_ns = boot_ns();
        self.table.udp_exchange(&drained.rows, &drained.closed, drained.asked_ns, now_ns);
        self.totals.udp_drained += drained.rows.len() as u64;
        if let Some(err) = drained.error.take() {
            self.count_error(Err(err), "drain the UDP table");
        }
        self.drainer.recycle(drained);
    }

    fn count_error(&mut self, result: Result<usize, KernelError>, what: &str) -> u64 {
        match result {
            Ok(count) => count as u64,
            Err(err) => {
                if self.totals.kernel_errors == 0 {
                    let why = anyhow::Error::from(err);
                    tracing::warn!("cannot {what}: {why:#}; it is tried again, and counted");
                }
                self.totals.kernel_errors += 1;
                0
            }
        }
    }

    fn scan(&mut self) {
        self.walk_if_due(Instant::now());
        self.scan_for(|_| true);
    }

    fn scan_for(&mut self, wanted: impl Fn(&FlowRecord) -> bool) {
        let (cpu_ns, now_ns) = (thread_cpu_ns(), boot_ns());
        self.table.scan_begins(now_ns);
        let table = &mut self.table;
        let mut unknown = false;
        let scanned = self.kernel.scanner().sockets(self.scan_all, |scanned| match scanned {
            Scanned::Socket(record) if wanted(record) => table.tcp_record(record, now_ns),
            Scanned::Socket(_) => unknown = true,
            Scanned::Same(cookie) => unknown |= !table.tcp_same(cookie, now_ns),
        });
        self.scan_all = unknown || scanned.is_err();
        if scanned.is_ok() {
            self.table.scan_ends(!unknown, boot_ns());
            for listener in self.table.listeners() {
                self.processes.get(listener.owner, now_ns);
            }
            self.ask_for_processes();
        }
        self.totals.scan_sockets = self.count_error(scanned, "scan the sockets");
        self.totals.scans += 1;
        self.totals.scan_ns = thread_cpu_ns() - cpu_ns;
        let now = Instant::now();
        self.due.scanned = Some(now);
        let affordable = (Duration::from_nanos(self.totals.scan_ns) * SCAN_SHARE).min(SCAN_EVERY_MAX);
        let wait = self.options.tuning.scan_every.max(affordable);
        self.due.scan = now + self.until_half_second(wait);
    }

    /// The time until a half second of wall time that is about `wait` away. Collectors know whole seconds only: between figures
    /// that are taken at half seconds there are as many as they say.
    fn until_half_second(&self, wait: Duration) -> Duration {
        // The one nearest to the wait will do; and a little before it, so that the tick of that moment finds the work due.
        let wait_ns = (wait.as_nanos() as u64).saturating_sub(500_000_000);
        until_next(self.clock.unix_ns(boot_ns()), wait_ns, 1_000_000_000, 500_000_000 - TICK_NS / 4)
    }

    /// The last figures, so that nothing that was counted goes untold.
    fn end(mut self) {
        self.take_shards();
        // One that is on its way may have begun before the last packet.
        if let Some(drained) = self.drainer.wait() {
            self.take_drained(drained);
        }
        self.drain();
        if let Some(drained) = self.drainer.wait() {
            self.take_drained(drained);
        }
        self.scan();
        self.take_replies();
        self.report_all();
        for port in &mut self.exporters {
            port.close();
        }
    }
}

/// From now until the first moment of wall time that is at least `wait_ns` away, and `offset_ns` after a multiple of `step_ns`.
fn until_next(now_ns: u64, wait_ns: u64, step_ns: u64, offset_ns: u64) -> Duration {
    let steps = (now_ns + wait_ns).saturating_sub(offset_ns).div_ceil(step_ns);
    Duration::from_nanos((steps * step_ns + offset_ns).saturating_sub(now_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periodic_work_keeps_to_a_grid_in_wall_time() {
        const MS: u64 = 1_000_000;
        let ms = |now, wait, step, offset| until_next(now * MS, wait * MS, step * MS, offset * MS).as_millis();
        assert_eq!(
            [ms(1000, 1, 250, 0), ms(1001, 1, 250, 0), ms(1249, 1, 250, 0), ms(1250, 1, 250, 0)],
            [250, 249, 1, 250]
        );
        let scan = |now, wait: u64| ms(now, wait - 500, 1000, 437);
        assert_eq!(
            [scan(10_500, 1000), scan(10_510, 1000), scan(10_900, 1000), scan(10_300, 1000)],
            [937, 927, 537, 1137]
        );
        assert_eq!(scan(10_500, 3700), 3937);
    }
}
