//! Compares what is reported with what is true.

use std::collections::BTreeMap;

use super::agent::Agent;
use super::datagrams::{Asked, is_flood, is_local, pair_of};
use super::kernel::Kernel;
use super::plan::faults;
use super::tcp::{Connection, Figures, Phase, Socket, whose};
use crate::flows::report::FlowReport;
use crate::model::flow::{Counters, Proto, Side, State};
use sockeye_bpf::records::flags;

/// What was reported of one flow.
#[derive(Debug, Clone, Copy, Default)]
struct Reported {
    reports: u32,
    firsts: u32,
    /// Sum of all differences, on top of what was before the agent.
    sum: Counters,
    /// The newest totals.
    total: Counters,
    state: Option<State>,
    local: [bool; 2],
    at_ns: u64,
    /// As more than one flow, for which there was an excuse.
    in_parts: bool,
    may_be_made_up: [bool; 2],
}

pub(super) struct Judge {
    tcp: BTreeMap<u32, Reported>,
    udp: BTreeMap<(usize, usize), Reported>,
    /// Bytes and datagrams of the flood.
    flooded: (u64, u64),
    /// Some of the others' datagrams had no room for a flow of their own pair.
    in_others: bool,
    active_ns: u64,
    pub(super) error: Option<String>,
}

/// The totals that two ends with these figures make.
fn together(connection: &Connection, figures: impl Fn(&Socket) -> Option<Figures>) -> Counters {
    let mut total = Counters::default();
    for side in Side::BOTH {
        let (i, peer) = (side as usize, side.other() as usize);
        let Some(f) = figures(&connection.sockets[i]) else { continue };
        total.bytes[i] = total.bytes[i].max(f.bytes_sent);
        total.packets[i] = total.packets[i].max(f.packets_sent);
        total.bytes[peer] = total.bytes[peer].max(f.bytes_received);
        total.packets[peer] = total.packets[peer].max(f.packets_received);
        (total.retrans[i], total.out_of_order[peer]) = (f.retrans, f.out_of_order);
    }
    total
}

/// A report in a few lines.
fn short(report: &FlowReport) -> String {
    let FlowReport { key, local, delta, total, first, state, .. } = report;
    let pids = report.owners.map(|owner| owner.pid);
    format!("{key:?}, local {local:?}, {pids:?}, first {first}, {state:?},\n  {delta:?} of {total:?}")
}

/// No counter is higher.
fn within(less: &Counters, more: &Counters) -> bool {
    less.since(more).is_zero()
}

impl Judge {
    pub(super) fn new(agent: &Agent) -> Self {
        let (tcp, udp) = (BTreeMap::new(), BTreeMap::new());
        Self { tcp, udp, flooded: (0, 0), in_others: false, active_ns: agent.timeouts.active_ns, error: None }
    }

    /// A report, at the moment at which it is made.
    pub(super) fn take(&mut self, kernel: &Kernel, report: &FlowReport, at_ns: u64) {
        let wrong = match report.key.proto {
            Proto::Tcp => self.tcp(kernel, report, at_ns),
            Proto::Udp => self.udp(kernel, report, at_ns),
        };
        if let Err(what) = wrong {
            self.error.get_or_insert_with(|| format!("{what}: {}", short(report)));
        }
    }

    fn tcp(&mut self, kernel: &Kernel, report: &FlowReport, at_ns: u64) -> Result<(), String> {
        let owners: Vec<_> = Side::BOTH.into_iter().filter(|side| report.local[*side as usize]).collect();
        let who =
            owners.iter().map(|side| whose(report.owners[*side as usize].pid).map(|(number, of)| (number, of, *side)));
        let who: Vec<_> = who.collect::<Option<_>>().ok_or("a report without an owner")?;
        let (number, ..) = *who.first().ok_or("a report without an end")?;
        if who.iter().any(|(other, ..)| *other != number) {
            return Err("two connections are one flow".into());
        }
        if who.iter().any(|(_, of, side)| of != side) {
            return Err("the initiator is wrong".into());
        }
        let connection = &kernel.connections[number as usize];
        if report.key != connection.key(report.local) {
            return Err(format!("the name is wrong: it is {:?}", connection.key(report.local)));
        }
        let truth = together(connection, |socket| socket.here.then_some(socket.figures));
        if !within(&report.total, &truth) {
            return Err(format!("more than is true: which is {truth:?}"));
        }
        let older = connection.sockets.iter().any(|socket| socket.flags & flags::PRE_EXISTING != 0);
        let translated = connection.sockets[0].remote != connection.sockets[1].local;
        let may_be_half = translated || kernel.plan.has(faults::SMALL_TABLE);
        // That another address is one of this host is known once something was told of it.
        let is_loopback = connection.sockets[0].local.addr.is_loopback();
        let reported = self.tcp.entry(number).or_default();
        // A full table forgets a flow before it can know that all was told of it. And an end that was connecting when it was
        // last told of has no name, if its close was lost, or is late, and nothing else was told.
        let lost = connection.sockets.iter().any(|socket| socket.told.close_lost || socket.told.shut_dropped);
        if report.first && reported.reports > 0 && (lost || kernel.plan.has(faults::SMALL_TABLE)) {
            reported.in_parts = true;
        }
        if reported.in_parts {
            reported.state = Some(report.state);
            return Ok(());
        }
        reported.take(report, older, (may_be_half, is_loopback), at_ns, self.active_ns)
    }

    fn udp(&mut self, kernel: &Kernel, report: &FlowReport, at_ns: u64) -> Result<(), String> {
        if is_flood(&report.key) {
            let (bytes, packets) = &mut self.flooded;
            (*bytes, *packets) = (*bytes + report.delta.bytes[0], *packets + report.delta.packets[0]);
            return Ok(());
        }
        if report.key.is_of_other_peers() {
            self.in_others = true;
            return Ok(());
        }
        let (pair, right) = pair_of(&report.key).ok_or("a flow that nobody knows")?;
        let asked = kernel.udp.asked.get(&pair).ok_or("a flow that never was")?;
        // What was given up for the flood may come again with the answer.
        if !right && !asked.spilled && !kernel.plan.has(faults::FLOOD) {
            return Err("the initiator is wrong".into());
        }
        let reported = self.udp.entry(pair).or_default();
        (reported.reports, reported.firsts) = (reported.reports + 1, reported.firsts + u32::from(report.first));
        (reported.state, reported.at_ns) = (Some(report.state), at_ns);
        let mut delta = report.delta;
        if !right {
            delta.reverse();
        }
        reported.sum.add(&delta);
        for i in 0..2 {
            let (bytes, packets) = asked.total(i);
            if (reported.sum.bytes[i] > bytes || reported.sum.packets[i] > packets) && !asked.lost && !asked.spilled {
                return Err(format!("more UDP than is true: which is {bytes} bytes in {packets}"));
            }
        }
        Ok(())
    }

    /// The agent has ended, or nothing is left to come. `all`: every connection is over.
    pub(super) fn conclude(&self, kernel: &Kernel, agent: &Agent, all: bool) -> Result<(), String> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        // What a full table refused is counted, and may have been part of any flow.
        let refused = agent.table.counts().rejected;
        if refused > 0 && kernel.plan.has(faults::FLOOD) && !kernel.plan.has(faults::SMALL_TABLE) {
            return Err(format!("refused because of a flood: {refused}"));
        }
        if refused > 0 {
            return Ok(());
        }
        let most = agent.flows_max * 5 / 4;
        if agent.flows_most > most && !kernel.plan.has(faults::SMALL_TABLE) {
            return Err(format!("more than {most} flows: {}", agent.flows_most));
        }
        if self.flooded != kernel.udp.flooded {
            return Err(format!("the flood does not add up: {:?} of {:?}", self.flooded, kernel.udp.flooded));
        }
        let mut vanished = 0;
        for connection in &kernel.connections {
            let reported = self.tcp.get(&connection.number);
            vanished += u64::from(reported.is_some_and(|reported| reported.state == Some(State::Vanished)));
            conclude_tcp(kernel, connection, reported, all)
                .map_err(|what| format!("{what}: {reported:?} {connection:?}"))?;
        }
        if all && vanished > agent.table.counts().vanished {
            return Err(format!("{vanished} have vanished, and {} are counted", agent.table.counts().vanished));
        }
        let exact = |asked: &&Asked| !asked.lost && !asked.spilled && !self.in_others;
        for (pair, asked) in kernel.udp.asked.iter().filter(|(_, asked)| exact(asked)) {
            let Some(reported) = self.udp.get(pair) else {
                return Err(format!("UDP never reported: {pair:?}: {asked:?}"));
            };
            let expected = [0, 1].map(|i| asked.total(i));
            if expected != [0, 1].map(|i| (reported.sum.bytes[i], reported.sum.packets[i])) {
                return Err(format!(
                    "UDP does not add up: {pair:?} is {expected:?}, local {}: {reported:?}",
                    is_local(pair.1)
                ));
            }
            let over = [Some(State::Idle), Some(State::Closed)].contains(&reported.state);
            if all && !over {
                return Err(format!("UDP has not ended: {pair:?}: {reported:?}"));
            }
        }
        Ok(())
    }
}

fn conclude_tcp(
    kernel: &Kernel,
    connection: &Connection,
    reported: Option<&Reported>,
    all: bool,
) -> Result<(), String> {
    if connection.sockets.iter().all(|socket| socket.told.records == 0) {
        return reported.is_none().then_some(()).ok_or_else(|| "reported, and never told of".into());
    }
    let Some(reported) = reported else {
        // Its socket has connected again, and the last word was lost: what was told before it came too late.
        let lost = connection.sockets.iter().any(|socket| socket.told.close_lost);
        return if lost && kernel.plan.has(faults::AGAIN) { Ok(()) } else { Err("never reported".into()) };
    };
    if reported.in_parts {
        return Ok(());
    }
    if reported.firsts != 1 {
        return Err(format!("reported for the first time {} times", reported.firsts));
    }
    let told = |socket: &Socket| socket.told.records > 0;
    let mut least = together(connection, |socket| told(socket).then_some(socket.told.last));
    // A packet that was made up beside bytes may have come since: there was nothing to add then.
    for (least, sum) in least.packets.iter_mut().zip(reported.sum.packets) {
        *least -= u64::from(*least == sum && *least > 0);
    }
    let most = together(connection, |socket| told(socket).then_some(socket.told.most));
    if !within(&least, &reported.total) || !within(&reported.total, &most) {
        return Err(format!("totals are wrong: not between {least:?} and {most:?}"));
    }
    // A connection is over for us when its last socket here is.
    let over = connection.phase == Phase::Over || connection.sockets.iter().all(|socket| !socket.is_open());
    if !all || !over {
        return Ok(());
    }
    let state = reported.state.unwrap_or(State::Open);
    match connection.end_state() {
        Some(expected) if state == expected => Ok(()),
        None if state.is_over() => Ok(()),
        expected => Err(format!("ends as {state:?} and not as {expected:?}")),
    }
}

impl Reported {
    fn take(
        &mut self,
        report: &FlowReport,
        older: bool,
        (may_be_half, is_loopback): (bool, bool),
        at_ns: u64,
        active_ns: u64,
    ) -> Result<(), String> {
        let before = *self;
        (self.reports, self.firsts) = (self.reports + 1, self.firsts + u32::from(report.first));
        (self.total, self.state, self.at_ns) = (report.total, Some(report.state), at_ns);
        self.local = report.local;
        if report.first && older {
            // What was before the agent is in the totals only.
            self.sum = report.total;
            self.may_be_made_up = [0, 1].map(|i| report.delta.bytes[i] > 0 && report.delta.packets[i] == 1);
            return within(&report.delta, &report.total).then_some(()).ok_or_else(|| "more than all".into());
        }
        self.sum.add(&report.delta);
        let mut expected = report.total.since(&before.sum);
        for i in 0..2 {
            // Collectors take no bytes without a packet.
            let made_up = expected.bytes[i] > 0 && expected.packets[i] == 0;
            expected.packets[i] += u64::from(made_up);
            // Of an older flow nobody knows whether the packet of its first report was made up: then it is in this one.
            if before.may_be_made_up[i] && report.delta.packets[i] + 1 == expected.packets[i] {
                expected.packets[i] -= 1;
                self.sum.packets[i] += 1;
                self.may_be_made_up[i] = false;
            }
        }
        if report.delta != expected {
            return Err(format!("the difference is wrong: not {expected:?}"));
        }
        if !within(&before.total, &report.total) {
            return Err(format!("less than before: {before:?}"));
        }
        let lives = |state: State| !state.is_over() || state == State::Vanished;
        // Its other end was not known: not by its address, or there was no room to wait for it.
        let is_whole = before.local != [true; 2] && report.local == [true; 2];
        let ended = before.state.filter(|state| !(lives(*state) || is_whole && may_be_half));
        // Of one that was told of while it was open, it was waited for ten seconds at most.
        if ended.is_some() && is_whole && is_loopback && before.reports == 1 {
            return Err(format!("its other end was not waited for: {before:?}"));
        }
        if ended.is_some_and(|state| state != report.state || report.delta.is_zero()) {
            return Err(format!("it has ended before: {before:?}"));
        }
        let late = before.reports > 0 && ended.is_none() && at_ns - before.at_ns > active_ns + 1_000_000_000;
        if late {
            return Err(format!("late: the report before was {} ns ago", at_ns - before.at_ns));
        }
        Ok(())
    }
}
