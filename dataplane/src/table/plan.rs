//! When a flow is reported, and when it is forgotten.
//!
//! * first: when it has settled (its owner is known), or has ended;
//! * then before each active timeout, so that a collector never misses it for longer;
//! * last: when both ends are closed, or UDP was idle; then it lingers, for records that come late.

use std::collections::BTreeMap;
use std::sync::Arc;

use slab::Slab;

use super::{Flow, FlowTable};
use crate::clock::WallClock;
use crate::flow::{End, FlowReport, ProcKey, Proto, Side, State};
use crate::process::{Process, ProcessTable};

/// Resolution of the plan.
pub const TICK_NS: u64 = 250_000_000;
const SECOND_NS: u64 = 1_000_000_000;
/// Most reports of one call of [`FlowTable::tick`]: each takes a quarter of a kilobyte until it is handed out.
const REPORTS_AT_ONCE: usize = 4096;
/// Ticks that a report waits for the names of its processes.
const NAMES_WAIT_TICKS: u8 = 4;
/// How long an accepted connection may wait for its first reader before the listener's process is named, and one within this
/// host for the end of its handshake.
const OWNER_WAIT_TICKS: u32 = (10 * SECOND_NS / TICK_NS) as u32;

/// When things happen, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP flows without traffic for this long are over.
    pub idle_ns: u64,
    /// A flow is reported at least this often.
    pub active_ns: u64,
    /// From the first record to the first report.
    pub settle_ns: u64,
    /// From the close to the last report: the other end's close may still be on its way.
    pub close_grace_ns: u64,
    /// From the last report until it is forgotten.
    pub linger_ns: u64,
    /// The same for an idle UDP flow: longer than a collector keeps it, so that its direction stays the same.
    pub idle_linger_ns: u64,
    /// A TCP socket that three sweeps have missed, and for this long, is gone.
    pub vanished_ns: u64,
    /// Sweeps find what is left of a connection after its process closed it.
    pub sees_orphans: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle_ns: 30 * SECOND_NS,
            active_ns: 60 * SECOND_NS,
            settle_ns: 2 * SECOND_NS,
            close_grace_ns: SECOND_NS / 2,
            linger_ns: 3 * SECOND_NS,
            idle_linger_ns: 60 * SECOND_NS,
            vanished_ns: 10 * SECOND_NS,
            sees_orphans: true,
        }
    }
}

impl Timeouts {
    /// For sweeps that do not find what is left of a connection after its process has closed it: the kernel keeps that up to
    /// some minutes (`tcp_fin_timeout`, `tcp_orphan_retries`).
    #[must_use]
    pub fn without_orphans(self) -> Self {
        Self { vanished_ns: 300 * SECOND_NS, sees_orphans: false, ..self }
    }

    /// Early enough that batching and a late tick do not exceed the active timeout.
    fn report_every_ns(&self) -> u64 {
        self.active_ns - (self.active_ns / 6).min(10 * SECOND_NS)
    }
}

/// Ticks since boot: enough for 34 years.
pub(super) fn tick_of(at_ns: u64) -> u32 {
    u32::try_from(at_ns.div_ceil(TICK_NS)).unwrap_or(u32::MAX)
}

/// Flows by the tick in which they are due. Entries are never removed: a flow knows its own due tick.
#[derive(Default)]
pub(super) struct Wheel {
    slots: BTreeMap<u32, Vec<u32>>,
}

impl Wheel {
    pub(super) fn schedule(&mut self, flows: &mut Slab<Flow>, id: u32, at_ns: u64) {
        let tick = tick_of(at_ns);
        let flow = &mut flows[id as usize];
        if flow.due_tick != tick {
            flow.due_tick = tick;
            self.slots.entry(tick).or_default().push(id);
        }
    }

    /// The part of a slot that is still to be done.
    fn give_back(&mut self, tick: u32, ids: Vec<u32>) {
        self.slots.entry(tick).or_default().extend(ids);
    }

    /// Removes one slot that is due.
    fn take_due(&mut self, now_tick: u32) -> Option<(u32, Vec<u32>)> {
        let entry = self.slots.first_entry().filter(|slot| *slot.key() <= now_tick)?;
        Some(entry.remove_entry())
    }
}

impl FlowTable {
    /// Reports what is due and forgets what is over. Call it once per tick, and again while it returns that more is due:
    /// it stops after some thousand, so that they never take much memory.
    pub fn tick(
        &mut self,
        now_ns: u64,
        clock: &WallClock,
        processes: &mut ProcessTable,
        mut report: impl FnMut(FlowReport),
    ) -> bool {
        let mut reports = 0;
        let now_tick = u32::try_from(now_ns / TICK_NS).unwrap_or(u32::MAX);
        while let Some((tick, ids)) = self.wheel.take_due(now_tick) {
            let mut ids = ids.into_iter();
            while let Some(id) = ids.next() {
                if self.flows.get(id as usize).is_some_and(|flow| flow.due_tick == tick) {
                    self.due(id, now_ns, clock, processes, &mut |flow| {
                        reports += 1;
                        report(flow);
                    });
                }
                if reports >= REPORTS_AT_ONCE {
                    self.wheel.give_back(tick, ids.collect());
                    return true;
                }
            }
        }
        false
    }

    /// Reports every flow with something to tell, before the agent ends.
    pub fn report_all(
        &mut self,
        now_ns: u64,
        clock: &WallClock,
        processes: &mut ProcessTable,
        mut report: impl FnMut(FlowReport),
    ) {
        let ids: Vec<u32> = self.flows.iter().map(|(id, _)| id as u32).collect();
        for id in ids {
            let flow = &self.flows[id as usize];
            if flow.reports == 0 || !flow.totals().since(&flow.exported).is_zero() {
                report(self.make_report(id, now_ns, clock, processes));
            }
        }
    }

    fn due(
        &mut self,
        id: u32,
        now_ns: u64,
        clock: &WallClock,
        processes: &mut ProcessTable,
        report: &mut impl FnMut(FlowReport),
    ) {
        self.judge(id, now_ns);
        let flow = &mut self.flows[id as usize];
        let over = flow.state().is_over();
        let changed = !flow.totals().since(&flow.exported).is_zero();
        if over && flow.last_look {
            if changed {
                report(self.make_report(id, now_ns, clock, processes));
            }
            if self.may_hear_of(id) {
                self.wheel.schedule(&mut self.flows, id, now_ns + TICK_NS);
                return;
            }
            if self.remove(id).lacks_close() {
                self.counts.vanished += 1;
            }
            return;
        }
        let (untold, awaits_owner) = (flow.reports == 0, flow.awaits_owner());
        let recent = tick_of(now_ns) < flow.entered_tick + OWNER_WAIT_TICKS;
        if untold && !over && recent && (awaits_owner || self.may_lack_name(id)) {
            self.wheel.schedule(&mut self.flows, id, now_ns + SECOND_NS);
            return;
        }
        if untold && self.may_lack_other_end(id, now_ns) {
            self.wheel.schedule(&mut self.flows, id, now_ns + TICK_NS);
            return;
        }
        let flow = &mut self.flows[id as usize];
        if flow.waited_ticks < NAMES_WAIT_TICKS && !names_known(flow, processes, now_ns) {
            flow.waited_ticks += 1;
            self.wheel.schedule(&mut self.flows, id, now_ns + TICK_NS);
            return;
        }
        report(self.make_report(id, now_ns, clock, processes));
        let next_ns = now_ns + self.next_look_ns(id, now_ns, over);
        self.flows[id as usize].last_look = over;
        self.wheel.schedule(&mut self.flows, id, next_ns);
    }

    /// One end of a connection is known, and the other one is on this host, too. That one is known once all sockets were
    /// looked at after the first one was opened, or closed: it may stay open for long. And if it had closed until then, once
    /// that record has come from its ring, whose worker may be starved.
    fn may_lack_other_end(&self, id: u32, now_ns: u64) -> bool {
        let flow = &self.flows[id as usize];
        let since_ns = match flow.state() {
            State::Closed => flow.near.at_ns,
            state if state.is_over() => return false,
            _ => flow.opened_ns,
        };
        flow.far.is_none()
            && since_ns >= self.whole_sweep_ns
            && now_ns.saturating_sub(since_ns) < self.timeouts.active_ns
            && self.flows.len() < self.flows_max
            && self.is_within_host(flow)
    }

    /// A connection whose other end is on this host, too, as far as is known.
    fn is_within_host(&self, flow: &Flow) -> bool {
        flow.key.proto == Proto::Tcp && self.is_local(flow.endpoint(flow.near_side.other()).addr)
    }

    /// What its sockets told before they closed may still be in a ring of another CPU, whose worker is starved: it would be
    /// taken for a new flow.
    fn may_hear_of(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        flow.key.proto == Proto::Tcp
            && flow.ends().any(|end| end.at_ns >= self.told_until_ns)
            && self.flows.len() < self.flows_max
    }

    /// A connection within this host whose handshake was not over when it was seen: its other end may be in the table as a
    /// flow of its own, and with the next record the two become one.
    fn may_lack_name(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        !flow.is_named() && self.is_within_host(flow)
    }

    fn next_look_ns(&self, id: u32, now_ns: u64, over: bool) -> u64 {
        let flow = &self.flows[id as usize];
        let t = &self.timeouts;
        if over {
            return if flow.verdict == Some(State::Idle) { t.idle_linger_ns } else { t.linger_ns };
        }
        let mut next = t.report_every_ns();
        if flow.key.proto == Proto::Udp {
            // Look again when it may have become idle.
            let quiet = now_ns.saturating_sub(flow.active_ns);
            next = next.min(t.idle_ns.saturating_sub(quiet).max(TICK_NS));
        }
        next
    }

    /// Notices what no record tells: UDP silence, and TCP sockets that the sweep does not find any more.
    fn judge(&mut self, id: u32, now_ns: u64) {
        // Questions of ctl bring sweeps close together, and on a starved host a record may be late.
        let long_ago_ns = now_ns.saturating_sub(self.timeouts.vanished_ns);
        let missed_ns = self.sweeps_ns[2].min(long_ago_ns).min(self.told_until_ns);
        // A process has told that it closes, and soon after there is nothing left: the kernel left our programs out.
        let shut_missed_ns = if self.timeouts.sees_orphans { self.whole_sweep_ns.max(missed_ns) } else { missed_ns };
        let idle_ns = self.timeouts.idle_ns;
        let flow = &mut self.flows[id as usize];
        if flow.verdict.is_some() || flow.all_closed() {
            return;
        }
        match flow.key.proto {
            Proto::Udp if now_ns.saturating_sub(flow.active_ns) >= idle_ns => flow.verdict = Some(State::Idle),
            Proto::Tcp => {
                let is_gone = |end: &End| end.at_ns < if end.is_shut() { shut_missed_ns } else { missed_ns };
                if flow.ends().all(|end| end.has(End::CLOSED) || is_gone(end)) {
                    // An end that has closed in order has seen both FINs.
                    let in_order = |end: &End| end.is_shut() || end.tcp_state() == State::Closed;
                    let closed = flow.ends().any(|end| end.has(End::CLOSED)) && flow.ends().all(in_order);
                    flow.verdict = Some(if closed { State::Closed } else { State::Vanished });
                }
            }
            _ => {}
        }
    }

    fn make_report(&mut self, id: u32, now_ns: u64, clock: &WallClock, processes: &mut ProcessTable) -> FlowReport {
        let epoch = self.identity_epoch;
        self.counts.reports += 1;
        let flow = &mut self.flows[id as usize];
        let total = flow.totals();
        let delta = with_packets(total.since(&flow.exported));
        flow.exported.add(&delta);
        let owners = Side::BOTH.map(|side| flow.end(side).map_or(ProcKey::default(), |end| end.owner));
        if flow.reports == 0 {
            flow.frozen = owners;
        }
        flow.reports += 1;
        let carries_identity = flow.identity_epoch != epoch;
        flow.identity_epoch = epoch;
        let shown = if carries_identity { flow.frozen } else { owners };
        let process: [Option<Arc<Process>>; 2] = shown.map(|key| processes.get(key, now_ns).0);
        let place = process
            .each_ref()
            .map(|process| process.as_ref().and_then(|process| processes.places.get(process.cgroup_id, now_ns).0));
        FlowReport {
            key: flow.key,
            first_unix_ns: clock.unix_ns(flow.opened_ns),
            last_unix_ns: clock.unix_ns(flow.active_ns.max(flow.opened_ns)),
            delta,
            total,
            rtt_us: Side::BOTH
                .map(|side| flow.end(side).filter(|end| end.srtt_us > 0).map(|end| (end.srtt_us, end.rttvar_us))),
            local: Side::BOTH.map(|side| flow.end(side).is_some()),
            owners: shown,
            process,
            place,
            first: flow.reports == 1,
            carries_identity,
            state: flow.state(),
            reset_by: flow.reset_by(),
        }
    }
}

/// Collectors take bytes only together with packets. Two ends are read at different moments, so it can happen that one
/// brought new bytes and the other had already told of the packets.
fn with_packets(mut delta: crate::flow::Counters) -> crate::flow::Counters {
    for i in 0..2 {
        if delta.bytes[i] > 0 && delta.packets[i] == 0 {
            delta.packets[i] = 1;
        }
    }
    delta
}

fn names_known(flow: &Flow, processes: &mut ProcessTable, now_ns: u64) -> bool {
    let mut all = true;
    for owner in flow.ends().map(|end| end.owner) {
        all &= processes.get(owner, now_ns).1;
    }
    all
}
