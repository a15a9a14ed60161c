//! One entry of the flow table.

use std::sync::Arc;

use super::details::{Details, FlowRtt};
use super::timeouts::{SECOND_NS, TICK_NS};
use crate::flows::report::{Identity, Opening};
use crate::model::flow::{Counters, End, Endpoint, FlowKey, ProcKey, Proto, Side, State, TcpObservation};
use crate::names::table::PeerName;

/// What came within less time makes no rate.
const RATE_NS: u64 = 2 * SECOND_NS;
/// Stands for no flow.
pub(super) const NO_FLOW: u32 = u32::MAX;

/// How much a flow carries per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// Payload from the initiator, and to it.
    pub bytes: [f32; 2],
    /// Segments or datagrams of both directions.
    pub packets: f32,
}

impl Rate {
    /// What came in an interval.
    pub(super) fn of(delta: &Counters, interval_ns: u64) -> Self {
        // What came within less says nothing of a second.
        let seconds = interval_ns.max(SECOND_NS) as f64 / SECOND_NS as f64;
        let per_second = |amount: u64| (amount as f64 / seconds) as f32;
        Self { bytes: delta.bytes.map(per_second), packets: per_second(delta.packets.iter().sum()) }
    }
}

/// What the exporters were told of a flow, from its first report on.
#[derive(Debug, Clone, Default)]
pub(super) struct Reported {
    /// As a collector knows both sides: it keeps what it heard first.
    pub(super) identity: [Identity; 2],
    /// Up to when, `CLOCK_BOOTTIME` nanoseconds.
    pub(super) until_ns: u64,
    /// Rates between the last report and the one before.
    pub(super) rate: Rate,
    /// Tick of the last report.
    pub(super) tick: u32,
    /// Number of the collectors that had come by then.
    pub(super) epoch: u32,
    /// What the responder is called.
    pub(super) peer_name: Option<Arc<PeerName>>,
}

/// What few flows have.
#[derive(Debug, Clone, Default)]
pub(super) struct Rare {
    /// The 5-tuple as the responder sees it, where addresses are translated between the two.
    translated: Option<FlowKey>,
    /// Further UDP sockets on the responder's side.
    pub(super) others: Vec<Other>,
}

/// A UDP socket beside the responder's: one that received the same datagrams (multicast, broadcast), or had the port before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Other {
    pub(super) end: End,
    /// Its place in the list of its socket's flows.
    pub(super) position: u32,
}

/// What is kept of a flow. Most flows have one local end; the second one is boxed to keep the entry small.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The 5-tuple as the initiator sees it. Provisional while `guessed`.
    pub key: FlowKey,
    pub(super) rare: Option<Box<Rare>>,
    pub(super) first_end: End,
    pub(super) first_side: Side,
    pub(super) second_end: Option<Box<End>>,
    /// Neither end told who connected, and the other end has not been found.
    pub(super) guessed: bool,
    /// It goes to a multicast or broadcast address.
    pub(super) group: bool,
    /// It is over because there was no room for it.
    pub(super) given_up: bool,
    /// A filter said so when it was last reported: nobody is told.
    pub(super) left_out: bool,
    /// Entries in the pair index that lead here; 0 = none.
    pub(super) pair_hashes: [u64; 2],
    /// Opened, or first seen; `CLOCK_BOOTTIME` nanoseconds.
    pub opened_ns: u64,
    /// Last change of a counter or the state.
    pub active_ns: u64,
    /// What the exporters were told.
    pub(super) exported: Counters,
    /// `None` before the first report.
    pub(super) reported: Option<Box<Reported>>,
    /// Round-trip samples of a TCP flow, where there were some before its first report.
    pub(super) rtt: Option<Box<FlowRtt>>,
    pub(super) details: Details,
    /// Tick in which it is looked at next; older entries of the timer queue are stale.
    pub(super) due_tick: u32,
    /// The last report is made: forgotten when it is due again.
    pub(super) last_look: bool,
    /// A report has said that it is over. It stays so if UDP wakes up again: each flow ends once for whoever counts.
    pub(super) told_over: bool,
    /// Tick in which the table first heard of it.
    pub(super) entered_tick: u32,
    /// Ticks that the report has waited for names.
    pub(super) waited_ticks: u8,
    /// Looks at it that were put off because workers may have more of it, a tick each.
    pub(super) put_off: u8,
    /// Sticky ends that only the table knows.
    pub(super) verdict: Option<State>,
    /// Positions in the lists of its UDP sockets' flows, as in `ends()`.
    pub(super) udp_positions: [u32; 2],
    /// The UDP flow whose name it has taken over, while that one may still lack its other end; [`NO_FLOW`] = none.
    pub(super) udp_before: u32,
}

impl Flow {
    pub(super) fn new(key: FlowKey, first_end: End, first_side: Side, opened_ns: u64) -> Self {
        Self {
            key,
            rare: None,
            first_end,
            first_side,
            second_end: None,
            guessed: false,
            group: false,
            given_up: false,
            left_out: false,
            pair_hashes: [0; 2],
            opened_ns,
            active_ns: first_end.at_ns,
            exported: Counters::default(),
            reported: None,
            rtt: None,
            details: Details::default(),
            due_tick: 0,
            last_look: false,
            told_over: false,
            entered_tick: 0,
            waited_ticks: 0,
            put_off: 0,
            verdict: None,
            udp_positions: [0; 2],
            udp_before: NO_FLOW,
        }
    }

    /// The end on a side, if it is on this host.
    #[must_use]
    pub fn end(&self, side: Side) -> Option<&End> {
        if side == self.first_side { Some(&self.first_end) } else { self.second_end.as_deref() }
    }

    /// Cookie of the socket that was seen first: a place in the table may have another flow later.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.first_end.cookie
    }

    pub(super) fn end_mut(&mut self, side: Side) -> Option<&mut End> {
        if side == self.first_side { Some(&mut self.first_end) } else { self.second_end.as_deref_mut() }
    }

    /// Further UDP sockets on the responder's side.
    pub(super) fn others(&self) -> &[Other] {
        self.rare.as_ref().map_or(&[], |rare| &rare.others)
    }

    /// Who else received what the responder did (multicast, broadcast), or had its port before.
    pub fn other_owners(&self) -> impl Iterator<Item = ProcKey> {
        self.others().iter().map(|other| other.end.owner)
    }

    /// Until when something may have been sent that names its far end.
    pub(super) fn said_until_ns(&self) -> u64 {
        if self.state().is_over() { self.first_end.at_ns.max(self.opened_ns) } else { self.opened_ns }
    }

    /// How it was opened, where the table has it at this place.
    pub(super) fn opening(&self, place: u32) -> Opening {
        let end = self.end(Side::Initiator);
        let is_older = self.ends().any(|end| end.has(End::PRE_EXISTING));
        Opening {
            at_ns: if is_older { 0 } else { self.opened_ns },
            cookie: end.map_or(0, |end| end.cookie),
            netns: end.map_or(0, |end| end.netns),
            place,
        }
    }

    /// The end that is this socket.
    pub(super) fn end_of(&mut self, cookie: u64) -> Option<&mut End> {
        if self.first_end.cookie == cookie {
            return Some(&mut self.first_end);
        }
        if self.second_end.as_ref().is_some_and(|end| end.cookie == cookie) {
            return self.second_end.as_deref_mut();
        }
        let others = self.rare.as_mut().map(|rare| rare.others.iter_mut()).into_iter().flatten();
        others.map(|other| &mut other.end).find(|end| end.cookie == cookie)
    }

    /// The responder's end, together with the other sockets on its side: what a group of receivers got is one stream, and
    /// sockets that had the port one after another got parts of it.
    fn responders(&self, end: &End) -> End {
        let mut all = *end;
        for Other { end, .. } in self.others() {
            all.bytes_sent += end.bytes_sent;
            all.packets_sent += end.packets_sent;
            if self.group {
                all.bytes_received = all.bytes_received.max(end.bytes_received);
                all.packets_received = all.packets_received.max(end.packets_received);
            } else {
                all.bytes_received += end.bytes_received;
                all.packets_received += end.packets_received;
            }
        }
        all
    }

    /// Both local ends, the first seen one first.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        std::iter::once(&self.first_end).chain(self.second_end.as_deref())
    }

    pub(super) fn side_of(&self, cookie: u64) -> Side {
        if self.first_end.cookie == cookie { self.first_side } else { self.first_side.other() }
    }

    /// The 5-tuple as the responder sees it, if that is another one than the initiator's.
    #[must_use]
    pub fn translated(&self) -> Option<&FlowKey> {
        self.rare.as_ref()?.translated.as_ref()
    }

    /// The 5-tuple as a side sees it.
    pub(super) fn view(&self, side: Side) -> &FlowKey {
        self.translated().filter(|_| side == Side::Responder).unwrap_or(&self.key)
    }

    /// Address and port of a side, as it sees itself.
    pub(super) fn local(&self, side: Side) -> Endpoint {
        self.view(side).endpoint(side)
    }

    /// Whom a side talks to, as it sees it.
    pub(super) fn remote(&self, side: Side) -> Endpoint {
        self.view(side).endpoint(side.other())
    }

    /// Takes the 5-tuple as a side sees it.
    pub(super) fn see(&mut self, side: Side, view: FlowKey) {
        if view == *self.view(side) {
            return;
        }
        let rare = self.rare.get_or_insert_default();
        match side {
            Side::Responder => rare.translated = Some(view),
            Side::Initiator => {
                let known = std::mem::replace(&mut self.key, view);
                rare.translated.get_or_insert(known);
            }
        }
        rare.translated = rare.translated.filter(|translated| *translated != self.key);
    }

    /// Totals since the flow began. Each direction is known from up to two ends; the one that saw more is nearer to
    /// the truth, because both count what has arrived or was acknowledged.
    #[must_use]
    pub fn totals(&self) -> Counters {
        let mut total = Counters::default();
        for side in Side::BOTH {
            let (i, peer) = (side as usize, side.other() as usize);
            let Some(end) = self.end(side).filter(|end| !end.has(End::SHARED_COUNTERS)) else { continue };
            let together;
            let end = if side == Side::Responder && !self.others().is_empty() {
                together = self.responders(end);
                &together
            } else {
                end
            };
            total.bytes[i] = total.bytes[i].max(self.payload_sent(side, end));
            total.packets[i] = total.packets[i].max(end.packets_sent);
            total.bytes[peer] = total.bytes[peer].max(end.bytes_received);
            total.packets[peer] = total.packets[peer].max(end.packets_received);
            total.retrans[i] = end.retrans;
            total.out_of_order[peer] = end.out_of_order;
        }
        total
    }

    /// The kernel counts the SYN of a socket that connected as a byte that was acknowledged.
    fn payload_sent(&self, side: Side, end: &End) -> u64 {
        let as_side = self.key.proto == Proto::Tcp && side == Side::Initiator && !end.has(End::NOT_CONNECTED);
        end.bytes_sent.saturating_sub(u64::from(end.has(End::CONNECTED) || as_side))
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> State {
        if let Some(verdict) = self.verdict {
            return verdict;
        }
        if self.key.proto == Proto::Udp {
            return if self.first_end.has(End::CLOSED) { State::Closed } else { State::Open };
        }
        let states = self.ends().map(End::tcp_state);
        if self.all_closed() {
            // A reset by one side is "closed" for nobody: the worse word wins.
            return states.max_by_key(|s| severity(*s)).unwrap_or(State::Closed);
        }
        if self.ends().any(|end| end.has(End::CLOSED)) {
            return State::Closing;
        }
        states.max_by_key(|s| severity(*s)).unwrap_or(State::Open)
    }

    /// Whether an observation is of this very connection: its socket may have had others. The source port is not known
    /// in every state.
    pub(super) fn is_of(&self, o: &TcpObservation) -> bool {
        let side = self.side_of(o.end.cookie);
        let local = self.local(side);
        self.end(side).is_some_and(|end| end.seq_local == o.end.seq_local)
            && self.remote(side) == o.remote
            && (local == o.local || local.port == 0 || o.local.port == 0)
    }

    /// The side on which a socket goes on that was made in the middle of this connection: its end there is gone, and the
    /// other one, on this host too, has not noticed.
    pub(super) fn resumed_on(&self, o: &TcpObservation) -> Option<Side> {
        let is_interrupted = |side: &Side| {
            self.end(*side).is_some_and(|end| end.has(End::CLOSED) && end.netns == o.end.netns)
                && self.end(side.other()).is_some_and(|peer| !peer.has(End::CLOSED))
                && (self.local(*side), self.remote(*side)) == (o.local, o.remote)
        };
        Side::BOTH.into_iter().filter(|_| self.key.proto == Proto::Tcp).find(is_interrupted)
    }

    /// Data of this connection may have bypassed the kernel's counters.
    #[must_use]
    pub fn is_bypassed(&self) -> bool {
        self.ends().any(|end| end.has(End::BYPASSED))
    }

    pub(super) fn all_closed(&self) -> bool {
        self.ends().all(|end| end.has(End::CLOSED))
    }

    /// Who sent the reset: a side whose socket left an open state without an error has torn it down itself.
    pub(super) fn reset_by(&self) -> Option<Side> {
        Side::BOTH.into_iter().find_map(|side| {
            let end = self.end(side).filter(|end| end.tcp_state() == State::Reset)?;
            Some(if end.error == 0 { side } else { side.other() })
        })
    }

    /// A responder that has not read yet may belong to another process than the one that listens.
    pub(super) fn awaits_owner(&self) -> bool {
        self.key.proto == Proto::Tcp
            && self.end(Side::Responder).is_some_and(|end| !end.has(End::OWNER_CONFIRMED) && !end.has(End::CLOSED))
    }

    /// Nobody wants to hear of it.
    #[must_use]
    pub fn is_left_out(&self) -> bool {
        self.left_out
    }

    /// No exporter has heard of it.
    pub(super) fn is_unreported(&self) -> bool {
        self.reported.is_none()
    }

    /// What collectors were told of a side: known also when the process has been forgotten.
    #[must_use]
    pub fn told(&self, side: Side) -> Option<&Identity> {
        self.reported.as_ref().map(|reported| &reported.identity[side as usize])
    }

    /// What the responder is called, if that was found out with the first report.
    #[must_use]
    pub fn peer_name(&self) -> Option<&PeerName> {
        self.reported.as_ref()?.peer_name.as_deref()
    }

    /// Since the last report, or in the time before it when that was just made.
    #[must_use]
    pub fn rate(&self, now_ns: u64) -> Rate {
        let since_ns = self.reported.as_ref().map_or(self.opened_ns, |reported| u64::from(reported.tick) * TICK_NS);
        let interval_ns = now_ns.saturating_sub(since_ns);
        match &self.reported {
            Some(reported) if interval_ns < RATE_NS || self.state().is_over() => reported.rate,
            _ => Rate::of(&self.totals().since(&self.exported), interval_ns),
        }
    }

    /// It has not been told of yet, or its end has not.
    #[must_use]
    pub fn awaits_report(&self) -> bool {
        self.is_unreported() || (self.state().is_over() && !self.last_look)
    }

    /// The moment of the newest figures. UDP's are counted up to its last datagram.
    pub(super) fn known_until_ns(&self) -> u64 {
        match self.key.proto {
            Proto::Tcp => self.ends().map(|end| end.at_ns).fold(self.opened_ns, u64::max),
            Proto::Udp => self.active_ns.max(self.opened_ns),
        }
    }

    /// Takes what an end sees besides its counters.
    pub(super) fn observe(&mut self, side: Side, o: &TcpObservation) {
        self.details.observe(side, o);
    }

    /// Its other end can be found by the sequence numbers, or is here.
    pub(super) fn is_named(&self) -> bool {
        self.pair_hashes != [0; 2] || self.second_end.is_some()
    }

    /// Scans say that a TCP socket is gone whose last record has not come.
    pub(super) fn lacks_close(&self) -> bool {
        matches!(self.verdict, Some(State::Vanished | State::Closed))
    }

    /// It may have been taken for gone, and here it is.
    pub(super) fn was_found(&mut self) {
        if self.lacks_close() {
            self.verdict = None;
            self.last_look = false;
        }
    }

    pub(super) fn reverse(&mut self) {
        match self.rare.as_mut().and_then(|rare| rare.translated.as_mut()) {
            Some(translated) => (self.key, *translated) = (translated.reversed(), self.key.reversed()),
            None => self.key = self.key.reversed(),
        }
        self.first_side = self.first_side.other();
        self.details.reverse();
        self.exported.reverse();
        if let Some(reported) = &mut self.reported {
            reported.identity.reverse();
        }
    }
}

fn severity(state: State) -> u8 {
    match state {
        State::Open => 0,
        State::Connecting => 1,
        State::Closing => 2,
        State::Closed | State::Idle => 3,
        State::Vanished => 4,
        State::Aborted => 5,
        State::Reset => 6,
        State::Unreachable => 7,
        State::TimedOut => 8,
        State::Refused => 9,
    }
}
