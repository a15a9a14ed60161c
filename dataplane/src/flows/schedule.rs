//! When a flow is reported, and when it is forgotten.
//!
//! * first: when it has settled (its owner is known), or has ended;
//! * then at each report interval in which something was sent or received, spread evenly over it; and when nothing was,
//!   before each active timeout, so that a collector never misses it for longer;
//! * soon after a collector has joined;
//! * last: when both ends are closed, or UDP was idle; then it lingers, for records that come late.

use std::sync::Arc;

use super::crowding::ONE_DATAGRAM_NS;
use super::details::congestion_name;
use super::entry::{Rate, Reported};
use super::meeting::Meets;
use super::timeouts::{SECOND_NS, TICK_NS, tick_of};
use super::{Flow, FlowTable};
use crate::flows::report::{FlowReport, Identity};
use crate::model::clock::WallClock;
use crate::model::flow::{Counters, End, FlowKey, ProcKey, Proto, Side, State};
use crate::names::table::PeerName;
use crate::owners::process::ProcessTable;

/// Most reports of one call of [`FlowTable::tick`]: each takes a quarter of a kilobyte until it is handed out.
const REPORTS_AT_ONCE: usize = 4096;
/// Ticks that a report waits for the names of its processes.
const NAMES_WAIT_TICKS: u8 = 4;
/// How long an accepted connection may wait for its first reader before the listener's process is named, and one within this
/// host for the end of its handshake.
const OWNER_WAIT_TICKS: u32 = (10 * SECOND_NS / TICK_NS) as u32;
/// All open flows are reported within so many ticks after a collector has joined: four seconds.
const REJOIN_TICKS: u32 = (4 * SECOND_NS / TICK_NS) as u32;
/// Most of them in one tick: more would not leave an exporter in time, and be dropped. So 64,000 take the four seconds.
const REJOIN_REPORTS: usize = 4000;
/// So much later than one end of a connection the other one may end.
const OTHER_END_NS: u64 = 2 * SECOND_NS;
/// So many ticks a flow waits at most for what its process has asked before: two seconds.
const QUESTIONS_WAIT_TICKS: u8 = (2 * SECOND_NS / TICK_NS) as u8;

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
        self.closed.expire(now_ns);
        let mut reports = 0;
        let now_tick = u32::try_from(now_ns / TICK_NS).unwrap_or(u32::MAX);
        while let Some((tick, ids)) = self.timers.take_due(now_tick) {
            let mut ids = ids.into_iter();
            while let Some(id) = ids.next() {
                if self.flows.get(id as usize).is_some_and(|flow| flow.due_tick == tick) {
                    self.due(id, now_ns, clock, processes, &mut |flow| {
                        reports += 1;
                        report(flow);
                    });
                }
                if reports >= REPORTS_AT_ONCE {
                    self.timers.give_back(tick, ids.collect());
                    return true;
                }
            }
        }
        false
    }

    /// Flows with something to tell. Before the agent ends they are told of, by [`Self::report_those`].
    #[must_use]
    pub fn untold(&self) -> Vec<u32> {
        let has_news = |flow: &Flow| flow.awaits_report() || !flow.totals().since(&flow.exported).is_zero();
        self.flows.iter().filter(|(_, flow)| has_news(flow)).map(|(id, _)| id as u32).collect()
    }

    /// Reports these flows, whether or not it is time to.
    pub fn report_those(
        &mut self,
        ids: &[u32],
        now_ns: u64,
        clock: &WallClock,
        processes: &mut ProcessTable,
        mut report: impl FnMut(FlowReport),
    ) {
        for id in ids {
            self.tell(*id, now_ns, clock, processes, &mut report);
        }
    }

    /// Reports a flow, unless it is left out. Once told of, it is told of to its end; one that was left out is judged again: its
    /// owner may be known by now, or the filter another one.
    fn tell(
        &mut self,
        id: u32,
        now_ns: u64,
        clock: &WallClock,
        processes: &mut ProcessTable,
        report: &mut impl FnMut(FlowReport),
    ) {
        let mut made = self.make_report(id, now_ns, clock, processes);
        let flow = &mut self.flows[id as usize];
        if made.first || flow.left_out {
            let was_left_out = std::mem::replace(&mut flow.left_out, self.filter.ignores(&made));
            if flow.left_out {
                self.counts.left_out += u64::from(!was_left_out);
                return;
            }
            self.counts.left_out -= u64::from(was_left_out);
            made.first = true;
        }
        report(made);
    }

    /// A collector has joined: it is told of all open flows, one after another, and takes processes as they are now.
    pub fn collector_joined(&mut self, now_ns: u64) {
        self.epoch = self.epoch.wrapping_add(1);
        let is_open = |flow: &Flow| !flow.is_unreported() && !flow.state().is_over();
        let open: Vec<u32> = self.flows.iter().filter(|(_, flow)| is_open(flow)).map(|(id, _)| id as u32).collect();
        let ticks = REJOIN_TICKS.max(open.len().div_ceil(REJOIN_REPORTS) as u32);
        for (number, id) in (0..).zip(open) {
            let at_ns = now_ns + u64::from(1 + number % ticks) * TICK_NS;
            // One that is looked at earlier is reported then.
            if tick_of(at_ns) < self.flows[id as usize].due_tick {
                self.timers.schedule(&mut self.flows, id, at_ns);
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
                self.tell(id, now_ns, clock, processes, report);
            }
            if self.may_hear_of(id) {
                self.timers.schedule(&mut self.flows, id, now_ns + TICK_NS);
                return;
            }
            let flow = self.remove(id);
            self.counts.vanished += u64::from(flow.lacks_close());
            self.closed.add(flow, id, now_ns);
            return;
        }
        let (unreported, awaits_owner) = (flow.is_unreported(), flow.awaits_owner());
        let recent = tick_of(now_ns) < flow.entered_tick + OWNER_WAIT_TICKS;
        if unreported && !over && recent && (awaits_owner || self.may_lack_name(id) || self.may_await_acceptance(id)) {
            self.awaits_owner |= awaits_owner;
            self.timers.schedule(&mut self.flows, id, now_ns + SECOND_NS);
            return;
        }
        if unreported && (self.may_lack_other_end(id) || self.may_be_named(id)) {
            self.flows[id as usize].put_off += 1;
            self.timers.schedule(&mut self.flows, id, now_ns + TICK_NS);
            return;
        }
        if unreported {
            match self.meets(id, now_ns) {
                Meets::Alone => {}
                Meets::Joined => return,
                Meets::Later => {
                    self.timers.schedule(&mut self.flows, id, now_ns + SECOND_NS);
                    return;
                }
            }
        }
        let flow = &mut self.flows[id as usize];
        if unreported && flow.waited_ticks < NAMES_WAIT_TICKS && !names_known(flow, processes, now_ns) {
            flow.waited_ticks += 1;
            self.timers.schedule(&mut self.flows, id, now_ns + TICK_NS);
            return;
        }
        let has_news = changed && !self.was_just_reported(id, now_ns);
        if !over && !has_news && !self.is_wanted(id, now_ns) {
            let next_ns = now_ns + self.next_look_ns(id, now_ns, over);
            self.timers.schedule(&mut self.flows, id, next_ns);
            return;
        }
        self.tell(id, now_ns, clock, processes, report);
        let next_ns = now_ns + self.next_look_ns(id, now_ns, over);
        self.flows[id as usize].last_look = over;
        self.timers.schedule(&mut self.flows, id, next_ns);
    }

    /// What names its far end may not have been read yet. A worker that is short of CPU may be long in coming: not for ever.
    fn may_be_named(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        flow.said_until_ns() >= self.questions_through_ns && flow.put_off < QUESTIONS_WAIT_TICKS
    }

    /// Whether a flow of which there is no news must be reported: for the first time, to a new collector, or because the next
    /// look would be too late.
    fn is_wanted(&self, id: u32, now_ns: u64) -> bool {
        let Some(reported) = &self.flows[id as usize].reported else { return true };
        let quiet_ticks = u32::try_from(self.timeouts.report_quiet_ns() / TICK_NS).unwrap_or(u32::MAX);
        let next_look = tick_of(now_ns) + self.timeouts.look_ticks();
        reported.epoch != self.epoch || next_look > reported.tick.saturating_add(quiet_ticks)
    }

    /// A look that came between two turns of a flow, to see whether UDP has become idle.
    fn was_just_reported(&self, id: u32, now_ns: u64) -> bool {
        let Some(reported) = &self.flows[id as usize].reported else { return false };
        tick_of(now_ns) - reported.tick < self.timeouts.look_ticks() / 2
    }

    /// One end of a connection is known, and the other one may be on this host, too. That one is known once all sockets were
    /// looked at after the first one was opened, or closed: it may stay open for long. And if it had closed until then, once
    /// that record has come from its ring, whose worker may be short of CPU. Where the remote address is none of this host, only
    /// the latter is waited for: it may be translated, but most are of other hosts. Not for ever: for an active timeout, about a
    /// minute at most, from when its report was due, however late its records came.
    fn may_lack_other_end(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        if flow.second_end.is_some() || !flow.is_named() || self.occupied() >= self.flows_max {
            return false;
        }
        let over = flow.state().is_over();
        let since_ns = if over { flow.first_end.at_ns } else { flow.opened_ns };
        let is_known = if self.is_within_host(flow) && (!over || flow.state() == State::Closed) {
            since_ns < self.whole_scan_ns && !(over && self.may_be_hidden(flow))
        } else {
            // The other end closes a little later; when the first report is due, that much has passed anyway.
            !over || since_ns + TICK_NS < self.drained_through_ns
        };
        !is_known && u64::from(flow.put_off) < (self.timeouts.active_ns / TICK_NS).min(u8::MAX.into())
    }

    /// The other end of a connection that has closed may be there, and no scan finds it: its process has closed it as well, which
    /// the kernel's programs did not tell. Its end is still to come.
    fn may_be_hidden(&self, flow: &Flow) -> bool {
        let all_told = flow.first_end.at_ns < self.told_through_ns && self.untold_ns < flow.opened_ns;
        !self.timeouts.sees_orphans && !all_told
    }

    /// A connection whose other end is on this host, too, as far as is known.
    fn is_within_host(&self, flow: &Flow) -> bool {
        flow.key.proto == Proto::Tcp && self.is_local(flow.remote(flow.first_side).addr)
    }

    /// What its sockets told before they closed, or soon after, may still be in a ring of another CPU, whose worker is short of
    /// CPU: it would be taken for a new flow.
    fn may_hear_of(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        flow.key.proto == Proto::Tcp
            && flow.ends().any(|end| end.at_ns.saturating_add(OTHER_END_NS) >= self.drained_through_ns)
            && self.occupied() < self.flows_max
    }

    /// A connection within this host whose handshake was not over when it was seen: its other end may be in the table as a
    /// flow of its own, and with the next record the two become one.
    fn may_lack_name(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        !flow.is_named() && self.is_within_host(flow)
    }

    /// The other end of an open connection within this host, which is not known, may wait for its acceptance: until then no
    /// process has it open.
    fn may_await_acceptance(&self, id: u32) -> bool {
        let flow = &self.flows[id as usize];
        !self.timeouts.sees_orphans && flow.second_end.is_none() && self.is_within_host(flow)
    }

    fn next_look_ns(&self, id: u32, now_ns: u64, over: bool) -> u64 {
        let flow = &self.flows[id as usize];
        let t = &self.timeouts;
        let leaves_early =
            flow.given_up || (flow.key.proto == Proto::Udp && self.is_crowded() && flow.is_one_datagram());
        if over {
            return match flow.verdict {
                _ if leaves_early => TICK_NS,
                Some(State::Idle) => t.idle_linger_ns,
                _ => t.linger_ns,
            };
        }
        let mut next = u64::from(ticks_to_turn(id, tick_of(now_ns), t.look_ticks())) * TICK_NS;
        if flow.key.proto == Proto::Udp {
            // Look again when it may have become idle.
            let quiet = now_ns.saturating_sub(flow.active_ns);
            let idle_ns = if leaves_early { ONE_DATAGRAM_NS } else { t.idle_ns };
            next = next.min(idle_ns.saturating_sub(quiet).max(TICK_NS));
        }
        next
    }

    fn note_addresses(&mut self, id: u32, now_ns: u64) {
        for side in Side::BOTH {
            let flow = &self.flows[id as usize];
            if let Some(end) = flow.end(side) {
                self.note_local(flow.local(side).addr, end.netns, now_ns);
            }
        }
    }

    /// Notices what no record tells: UDP silence, and TCP sockets that the scan does not find any more.
    fn judge(&mut self, id: u32, now_ns: u64) {
        // Questions of ctl bring scans close together, and on a host that is short of CPU a record may be late.
        let long_ago_ns = now_ns.saturating_sub(self.timeouts.vanished_ns);
        // What the last three scans have missed was closed before the first of them: its close may still be on its way.
        let told = self.drained_through_ns >= self.scans_ns[2];
        let missed_ns = if told { self.scans_ns[2].min(long_ago_ns) } else { 0 };
        // A process has told that it closes, and soon after there is nothing left: the kernel left our programs out.
        let shut_missed_ns = if self.timeouts.sees_orphans { self.whole_scan_ns.max(missed_ns) } else { missed_ns };
        let is_crowded = self.is_crowded();
        let flow = &mut self.flows[id as usize];
        let leaves_early = is_crowded && flow.is_one_datagram();
        let idle_ns = if leaves_early { ONE_DATAGRAM_NS } else { self.timeouts.idle_ns };
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
        let epoch = self.epoch;
        self.counts.reports += 1;
        self.note_addresses(id, now_ns);
        let flow = &mut self.flows[id as usize];
        let total = flow.totals();
        let delta = with_packets(total.since(&flow.exported));
        flow.exported.add(&delta);
        let owners = Side::BOTH.map(|side| flow.end(side).map_or(ProcKey::default(), |end| end.owner));
        let current = owners.map(|owner| identity_of(owner, processes, now_ns));
        let until_ns = flow.known_until_ns();
        let first = flow.is_unreported();
        let ended = flow.state().is_over() && !std::mem::replace(&mut flow.told_over, true);
        let reported = flow
            .reported
            .get_or_insert_with(|| Box::new(Reported { until_ns: flow.opened_ns, epoch, ..Reported::default() }));
        if reported.epoch != epoch || !reported.identity.iter().any(Identity::is_known) {
            reported.identity = take_anew(&reported.identity, &current, owners);
        }
        let since_ns = reported.until_ns.min(until_ns);
        let before_ns = (u64::from(reported.tick) * TICK_NS).max(flow.opened_ns);
        reported.rate = Rate::of(&delta, now_ns.saturating_sub(before_ns));
        (reported.until_ns, reported.tick, reported.epoch) = (until_ns, tick_of(now_ns), epoch);
        let identity = reported.identity.clone();
        let peer_name = reported.peer_name.clone();
        let opening = flow.opening(id);
        FlowReport {
            key: flow.key,
            translated: flow.translated().map(|view| Box::new(*view)),
            first_unix_ns: clock.unix_ns(flow.opened_ns),
            since_unix_ns: clock.unix_ns(since_ns),
            last_unix_ns: clock.unix_ns(until_ns),
            delta,
            total,
            bypassed: flow.is_bypassed(),
            rtt_us: Side::BOTH
                .map(|side| flow.end(side).filter(|end| end.srtt_us > 0).map(|end| (end.srtt_us, end.rttvar_us))),
            local: Side::BOTH.map(|side| flow.end(side).is_some()),
            owners,
            changed: (current != identity).then(|| Box::new(current)),
            identity,
            rtt_samples: flow.rtt.as_mut().and_then(|rtt| rtt.settle()),
            window_max: flow.details.window_max,
            congestion: flow.details.congestion.map(congestion_name),
            first,
            ended,
            state: flow.state(),
            connecting: flow.key.proto == Proto::Tcp && flow.ends().any(End::is_connecting),
            reset_by: flow.reset_by(),
            peer_name,
            dns: None,
            hello: None,
            opening,
        }
    }

    /// A flow that was just told of has this 5-tuple on its other side, which is not on this host.
    pub fn see_translation(&mut self, place: u32, side: Side, view: FlowKey) {
        if let Some(flow) = self.flows.get_mut(place as usize) {
            flow.see(side, view);
        }
    }

    /// The responder of a flow that was just told of for the first time has this name.
    pub fn name_peer(&mut self, place: u32, name: Arc<PeerName>) {
        if let Some(reported) = self.flows.get_mut(place as usize).and_then(|flow| flow.reported.as_mut()) {
            reported.peer_name = Some(name);
        }
    }
}

fn identity_of(owner: ProcKey, processes: &mut ProcessTable, now_ns: u64) -> Identity {
    let process = processes.get(owner, now_ns).0;
    let workload = process.as_ref().and_then(|process| processes.workloads.get(process.cgroup_id, now_ns).0);
    Identity { process, workload }
}

/// What collectors are told from now on. A process that is not known any more stays known if it still is the owner.
fn take_anew(before: &[Identity; 2], current: &[Identity; 2], owners: [ProcKey; 2]) -> [Identity; 2] {
    Side::BOTH.map(|side| {
        let (before, current) = (&before[side as usize], &current[side as usize]);
        let same = before.process.as_ref().is_some_and(|process| process.key == owners[side as usize]);
        if same && current.process.is_none() { before.clone() } else { current.clone() }
    })
}

/// Ticks until a flow's next turn. Each has a tick of its own within the interval, and comes to it in at most two steps of
/// half an interval or more: what was opened together is soon spread evenly, and no report is about a short time.
fn ticks_to_turn(id: u32, now_tick: u32, interval: u32) -> u32 {
    // Fibonacci hashing: neighbours are far from each other.
    let turn = ((u64::from(id.wrapping_mul(0x9e37_79b9)) * u64::from(interval)) >> 32) as u32;
    let wait = (turn + interval - now_tick % interval - 1) % interval + 1;
    if 2 * wait >= interval { wait } else { wait + interval / 2 }
}

/// Collectors take bytes only together with packets. Two ends are read at different moments, so it can happen that one
/// brought new bytes and the other had already told of the packets.
fn with_packets(mut delta: Counters) -> Counters {
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
