//! The agent: real workers, queues, shards and the real table, driven in the order in which `Control` does it.

use std::rc::Rc;

use sockeye_bpf::records::{FlowRecord, Kind, UdpKey, UdpValue};
use sockeye_bpf::scan::Scanned;

use super::kernel::{Kernel, SKEW_NS};
use super::plan::{Plan, Rng, faults};
use super::ring::SimulatedRing;
use crate::flows::report::FlowReport;
use crate::flows::{FlowTable, Timeouts};
use crate::ingest::shard::Shard;
use crate::ingest::udp::Drained;
use crate::ingest::worker::{CLOCK_SKEW_NS, Worker, WorkerPort};
use crate::model::clock::WallClock;
use crate::owners::process::{LookupReply, LookupRequest, Process, ProcessTable};

const SECOND_NS: u64 = 1_000_000_000;

/// A worker with its rings, and until when it stands still.
struct Thread {
    worker: Worker<SimulatedRing>,
    rings: Vec<SimulatedRing>,
    stalled_until_ns: u64,
}

/// A request for UDP counters that is on its way.
struct Request {
    /// When the tables are exchanged.
    exchange_ns: u64,
    /// When the answer is there.
    answer_ns: u64,
    exchanged: bool,
    drained: Drained,
}

impl Request {
    fn exchange(&mut self, kernel: &mut Kernel) {
        if !self.exchanged {
            self.drained.rows = kernel.udp.take();
            self.exchanged = true;
        }
    }
}

pub(super) struct Agent {
    pub(super) table: FlowTable,
    pub(super) flows_max: usize,
    /// The most that the table ever held.
    pub(super) flows_most: usize,
    pub(super) timeouts: Timeouts,
    processes: ProcessTable,
    threads: Vec<Thread>,
    ports: Vec<WorkerPort>,
    late: Shard,
    late_until_ns: u64,
    scan_all: bool,
    udp_closed: Vec<u64>,
    untold: u64,
    asked: Option<Request>,
    due_drain_ns: u64,
    due_scan_ns: u64,
    scan_every_ns: u64,
    rng: Rng,
    plan: Plan,
}

impl Agent {
    pub(super) fn new(kernel: &Kernel, rng: &mut Rng) -> Self {
        let plan = kernel.plan;
        let mut rng = Rng::new(rng.next());
        let count = 1 + rng.index(kernel.rings.len());
        let mut groups: Vec<Vec<(SimulatedRing, usize)>> = (0..count).map(|_| Vec::new()).collect();
        for (cpu, ring) in kernel.rings.iter().enumerate() {
            groups[cpu % count].push((ring.clone(), cpu));
        }
        let (mut threads, mut ports) = (Vec::new(), Vec::new());
        for (index, group) in groups.into_iter().enumerate() {
            let rings = group.iter().map(|(ring, _)| ring.clone()).collect();
            let (worker, port) = Worker::new(index, group, Box::new(|| {}));
            threads.push(Thread { worker, rings, stalled_until_ns: 0 });
            ports.push(port);
        }
        let timeouts = timeouts(&plan, &mut rng);
        let flows_max = if plan.has(faults::SMALL_TABLE) { 1 + rng.index(8) } else { 500 };
        Self {
            table: FlowTable::new(flows_max, timeouts),
            flows_max,
            flows_most: 0,
            timeouts,
            processes: ProcessTable::default(),
            threads,
            ports,
            late: Shard::new(&[]),
            late_until_ns: 0,
            scan_all: true,
            udp_closed: Vec::new(),
            untold: 0,
            asked: None,
            due_drain_ns: 0,
            due_scan_ns: 0,
            scan_every_ns: SECOND_NS * (1 + rng.below(2)),
            rng,
            plan,
        }
    }

    /// Listeners first, as in `Control::first_scan`.
    pub(super) fn first_scan(&mut self, kernel: &mut Kernel) {
        self.scan_for(kernel, |record| record.kind == Kind::Listener as u8);
        self.scan_for(kernel, |_| true);
    }

    /// Workers take what the rings hold, those that do not stand still, and hand it over, or not yet.
    pub(super) fn work(&mut self, now_ns: u64) {
        for thread in &mut self.threads {
            if thread.stalled_until_ns > now_ns {
                continue;
            }
            if self.plan.has(faults::STALLS) && self.rng.chance(3) {
                let most = if self.rng.chance(10) { 100 } else { 8 };
                thread.stalled_until_ns = now_ns + self.rng.below(most * SECOND_NS);
                if self.rng.chance(50) {
                    continue;
                }
            }
            thread.worker.visit_at(now_ns);
            if self.rng.chance(80) {
                thread.hand_over();
            }
        }
    }

    /// The thread that exchanges the UDP tables.
    pub(super) fn exchange(&mut self, kernel: &mut Kernel) {
        if let Some(request) = self.asked.as_mut().filter(|request| request.exchange_ns <= kernel.clock.get()) {
            request.exchange(kernel);
        }
    }

    /// `Control::tick`.
    pub(super) fn tick(&mut self, kernel: &mut Kernel, report: &mut impl FnMut(FlowReport)) -> Result<(), String> {
        let now_ns = kernel.clock.get();
        self.take_shards(kernel)?;
        self.answer_questions(now_ns);
        if let Some(request) = self.asked.take_if(|request| request.answer_ns <= now_ns) {
            self.take_drained(kernel, request);
        }
        if now_ns >= self.due_drain_ns {
            self.due_drain_ns = now_ns + SECOND_NS;
            self.drain(kernel);
        }
        if now_ns >= self.due_scan_ns {
            self.due_scan_ns = now_ns + self.scan_every_ns;
            self.scan_for(kernel, |_| true);
        }
        let now_ns = kernel.clock.get();
        if self.plan.has(faults::COLLECTORS) && self.rng.chance(2) {
            self.table.collector_joined(now_ns);
        }
        let clock = WallClock::with_boot_at(0);
        while self.table.tick(now_ns, &clock, &mut self.processes, &mut *report) {}
        self.table.take_new_owners();
        Ok(())
    }

    fn take_shards(&mut self, kernel: &Kernel) -> Result<(), String> {
        let now_ns = kernel.clock.get();
        let drained = |port: &WorkerPort| port.stats.drained_through_ns.load(std::sync::atomic::Ordering::Acquire);
        let drained_ns = self.ports.iter().map(drained).min().unwrap_or(0);
        for index in 0..self.ports.len() {
            while let Ok(mut shard) = self.ports[index].shards.pop() {
                self.merge(&shard, now_ns);
                shard.clear();
                let _ = self.ports[index].recycle.push(shard);
            }
        }
        let mark_ns = drained_ns.min(self.late_until_ns);
        self.table.drained_through(mark_ns);
        let in_rings = kernel.rings.iter().filter_map(SimulatedRing::oldest_ns);
        let oldest_ns = in_rings.chain(kernel.overflow.values().map(|close| close.flow.at_ns)).min();
        match oldest_ns.filter(|oldest_ns| oldest_ns + 2 * SKEW_NS < mark_ns) {
            Some(oldest_ns) => Err(format!("the low watermark {mark_ns} has passed a record of {oldest_ns}")),
            None => Ok(()),
        }
    }

    /// `Control::merge`, as far as flows are concerned.
    fn merge(&mut self, shard: &Shard, now_ns: u64) {
        for record in shard.tcp_earlier.iter().chain(shard.tcp.records()) {
            self.table.tcp_record(record, now_ns);
        }
        // The shard has them in no order: in one that the seed decides.
        let mut rows: Vec<(&UdpKey, &UdpValue)> = shard.udp.iter().collect();
        rows.sort_unstable_by_key(|(key, _)| (key.cookie, key.remote_addr, key.remote_port));
        self.rng.shuffle(&mut rows);
        for (key, value) in rows {
            self.table.udp(key, value, now_ns);
        }
        self.udp_closed.extend_from_slice(&shard.udp_closed);
    }

    fn drain(&mut self, kernel: &mut Kernel) {
        let now_ns = kernel.clock.get();
        if self.asked.is_none() {
            let closed = std::mem::take(&mut self.udp_closed);
            let exchange_ns = now_ns + self.rng.below(SECOND_NS);
            let answer_ns = exchange_ns + self.rng.below(600_000_000);
            let drained = Drained { closed, ..Drained::default() };
            self.asked = Some(Request { exchange_ns, answer_ns, exchanged: false, drained });
        }
        let mut late = std::mem::replace(&mut self.late, Shard::new(&[]));
        std::mem::take(&mut kernel.overflow).values().for_each(|close| late.close(close));
        self.late_until_ns = now_ns.saturating_sub(CLOCK_SKEW_NS);
        self.merge(&late, now_ns);
        late.clear();
        self.late = late;
        self.table.told_through(now_ns, self.untold == kernel.losses.shuts);
        self.untold = kernel.losses.shuts;
    }

    fn take_drained(&mut self, kernel: &mut Kernel, mut request: Request) {
        let now_ns = kernel.clock.get();
        request.exchange(kernel);
        let mut drained = request.drained;
        self.rng.shuffle(&mut drained.rows);
        self.table.udp_exchange(&drained.rows, &drained.closed, now_ns, now_ns);
        self.flows_most = self.flows_most.max(self.table.len());
    }

    fn scan_for(&mut self, kernel: &mut Kernel, wanted: impl Fn(&FlowRecord) -> bool) {
        let now_ns = kernel.clock.get();
        self.table.scan_begins(now_ns);
        let (table, mut unknown) = (&mut self.table, false);
        kernel.scan(self.scan_all, |scanned| {
            match scanned {
                Scanned::Socket(record) if wanted(record) => table.tcp_record(record, now_ns),
                Scanned::Socket(_) => {
                    unknown = true;
                    return false;
                }
                Scanned::Same(cookie) => unknown |= !table.tcp_same(cookie, now_ns),
            }
            true
        });
        self.scan_all = unknown;
        self.table.scan_ends(!unknown, kernel.clock.get());
    }

    /// The names of most processes come at once, those of some later.
    fn answer_questions(&mut self, now_ns: u64) {
        for request in self.processes.take_requests() {
            let LookupRequest::Lookup(key) = request else { continue };
            let process = Process { key, name: "p".into(), ..Process::default() };
            self.processes.found(LookupReply { key, process: Some(process), complete: true, cgroup: None }, now_ns);
        }
    }

    /// Nothing is on its way.
    pub(super) fn is_idle(&self) -> bool {
        self.udp_closed.is_empty() && self.asked.as_ref().is_none_or(|request| request.drained.closed.is_empty())
    }

    /// `Control::end`, after the workers have ended: nothing that was counted goes untold.
    pub(super) fn end(&mut self, kernel: &mut Kernel, report: &mut impl FnMut(FlowReport)) -> Result<(), String> {
        // No two scans are as close as that.
        kernel.clock.set(kernel.clock.get() + 2 * SKEW_NS);
        while kernel.rings.iter().any(|ring| ring.oldest_ns().is_some()) {
            kernel.pass(10_000_000);
            for thread in &mut self.threads {
                thread.worker.visit_at(kernel.clock.get());
                thread.hand_over();
            }
            self.take_shards(kernel)?;
        }
        if let Some(request) = self.asked.take() {
            self.take_drained(kernel, request);
        }
        self.drain(kernel);
        if let Some(request) = self.asked.take() {
            self.take_drained(kernel, request);
        }
        self.scan_for(kernel, |_| true);
        let (now_ns, clock) = (kernel.clock.get(), WallClock::with_boot_at(0));
        let untold = self.table.untold();
        self.table.report_those(&untold, now_ns, &clock, &mut self.processes, report);
        Ok(())
    }
}

impl Thread {
    fn hand_over(&mut self) {
        if self.worker.hand_over() {
            self.rings.iter().for_each(SimulatedRing::handed_over);
        }
    }
}

fn timeouts(plan: &Plan, rng: &mut Rng) -> Timeouts {
    let mut timeouts = Timeouts::default();
    if plan.has(faults::SHORT_TIMEOUTS) {
        timeouts.idle_ns = SECOND_NS * (6 + rng.below(6));
        timeouts.report_ns = SECOND_NS * (1 + rng.below(5));
        timeouts.idle_linger_ns = SECOND_NS * (5 + rng.below(20));
    }
    if plan.has(faults::BLIND_SCANS) { timeouts.without_orphans() } else { timeouts }
}

/// A clock for all that is simulated.
pub(super) fn clock() -> Rc<std::cell::Cell<u64>> {
    Rc::new(std::cell::Cell::new(1000 * SECOND_NS))
}
