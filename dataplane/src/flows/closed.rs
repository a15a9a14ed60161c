//! Flows that have ended lately: "what was that just now" is asked when they are over.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Flow;
use super::entry::{Rare, Rate, Reported};
use crate::flows::report::Identity;
use crate::model::flow::{Counters, End, FlowKey, ProcKey, Side, State};
use crate::names::table::PeerName;

/// How much is kept of the recent past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At most so many flows.
    pub flows_max: usize,
    /// So long after their end, nanoseconds.
    pub for_ns: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { flows_max: 10_000, for_ns: 300_000_000_000 }
    }
}

/// Room is made for so many at first.
const ROOM_FIRST: usize = 1024;

/// What questions need of one end.
struct KeptEnd {
    owner: ProcKey,
    marks: u8,
    srtt_us: u32,
    rttvar_us: u32,
}

/// What is kept of a flow: what questions need, in one piece. By the time that it is forgotten it has left the caches, and each
/// piece would be fetched again only to be freed.
struct Kept {
    ended_ns: u64,
    /// In the table.
    place: u32,
    key: FlowKey,
    rare: Option<Box<Rare>>,
    cookie: u64,
    ends: [Option<KeptEnd>; 2],
    state: State,
    total: Counters,
    opened_ns: u64,
    active_ns: u64,
    told: Option<([Identity; 2], Rate, Option<Arc<PeerName>>)>,
}

impl KeptEnd {
    fn new(end: &End) -> Self {
        let End { owner, marks, srtt_us, rttvar_us, .. } = *end;
        // What the other end's counters made of a total is in it.
        Self { owner, marks: marks & !End::SHARED_COUNTERS, srtt_us, rttvar_us }
    }

    /// With the flow's totals as its own counters: there is no SYN in them.
    fn to_end(&self, side: Side, kept: &Kept) -> End {
        let (i, peer, total) = (side as usize, side.other() as usize, &kept.total);
        End {
            cookie: kept.cookie,
            owner: self.owner,
            netns: 0,
            state: 0,
            error: 0,
            seq_local: 0,
            marks: self.marks & !End::CONNECTED | End::NOT_CONNECTED,
            bytes_sent: total.bytes[i],
            bytes_received: total.bytes[peer],
            packets_sent: total.packets[i],
            packets_received: total.packets[peer],
            retrans: total.retrans[i],
            out_of_order: total.out_of_order[peer],
            srtt_us: self.srtt_us,
            rttvar_us: self.rttvar_us,
            at_ns: kept.active_ns,
        }
    }
}

impl Kept {
    fn new(mut flow: Flow, place: u32, now_ns: u64) -> Self {
        let total = flow.totals();
        // They are in the totals.
        if let Some(rare) = &mut flow.rare {
            rare.others.iter_mut().for_each(|other| other.end.forget_counters());
        }
        Self {
            ended_ns: now_ns,
            place,
            key: flow.key,
            cookie: flow.cookie(),
            ends: Side::BOTH.map(|side| flow.end(side).map(KeptEnd::new)),
            state: flow.state(),
            total,
            opened_ns: flow.opened_ns,
            active_ns: flow.active_ns,
            rare: flow.rare,
            told: flow.reported.map(|reported| (reported.identity, reported.rate, reported.peer_name)),
        }
    }

    /// The flow again, as far as it is asked about.
    fn to_flow(&self) -> Option<Flow> {
        let ends = Side::BOTH.map(|side| Some(self.ends[side as usize].as_ref()?.to_end(side, self)));
        let (first_end, first_side, second_end) = match ends {
            [Some(first), second] => (first, Side::Initiator, second),
            [None, second] => (second?, Side::Responder, None),
        };
        let mut flow = Flow::new(self.key, first_end, first_side, self.opened_ns);
        flow.second_end = second_end.map(Box::new);
        flow.rare.clone_from(&self.rare);
        flow.active_ns = self.active_ns;
        flow.verdict = Some(self.state);
        flow.exported = self.total;
        flow.reported = self.told.clone().map(|(identity, rate, peer_name)| {
            Box::new(Reported { identity, rate, peer_name, until_ns: self.active_ns, ..Reported::default() })
        });
        flow.last_look = true;
        Some(flow)
    }
}

/// The last flows that ended, each with a number that it keeps.
#[derive(Default)]
pub(super) struct Closed {
    pub(super) keep: Keep,
    flows: VecDeque<Kept>,
    /// Number of the first.
    first: usize,
}

impl Closed {
    /// Keeps a flow that leaves its place in the table.
    pub(super) fn add(&mut self, flow: Flow, place: u32, now_ns: u64) {
        if self.keep.flows_max == 0 || flow.left_out {
            return;
        }
        while self.flows.len() >= self.keep.flows_max {
            self.forget_first();
        }
        // Exactly, so that the next one takes the place of the one that was just forgotten.
        if self.flows.capacity() == self.flows.len() {
            let room = self.keep.flows_max - self.flows.len();
            self.flows.reserve_exact(room.min(self.flows.len().max(ROOM_FIRST)));
        }
        self.flows.push_back(Kept::new(flow, place, now_ns));
    }

    /// Forgets what ended too long ago.
    pub(super) fn expire(&mut self, now_ns: u64) {
        while self.flows.front().is_some_and(|kept| kept.ended_ns + self.keep.for_ns <= now_ns) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        self.first += usize::from(self.flows.pop_front().is_some());
    }

    pub(super) fn numbers(&self) -> Range<usize> {
        self.first..self.first + self.flows.len()
    }

    pub(super) fn get(&self, number: usize) -> Option<Flow> {
        self.kept(number)?.to_flow()
    }

    pub(super) fn place(&self, number: usize) -> Option<usize> {
        Some(self.kept(number)?.place as usize)
    }

    fn kept(&self, number: usize) -> Option<&Kept> {
        self.flows.get(number.checked_sub(self.first)?)
    }

    /// How long one can still be asked for, or, without a number, one that is not here yet.
    pub(super) fn kept_for_ns(&self, number: Option<usize>, now_ns: u64) -> u64 {
        match number.map(|number| self.kept(number)) {
            None if self.keep.flows_max > 0 => self.keep.for_ns,
            Some(Some(kept)) => (kept.ended_ns + self.keep.for_ns).saturating_sub(now_ns),
            None | Some(None) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::entry::Other;
    use crate::model::flow::{Addr, Endpoint, Proto};
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};

    fn endpoint(number: u8) -> Endpoint {
        Endpoint { addr: Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, number))), port: number.into() }
    }

    prop_compose! {
        fn end()(
            pid: u32,
            marks: u8,
            state in 1u8..12,
            counts in prop::array::uniform4(0u64..1 << 50),
            few in prop::array::uniform4(0u32..1000),
        ) -> End {
            let [bytes_sent, bytes_received, packets_sent, packets_received] = counts;
            let [retrans, out_of_order, srtt_us, rttvar_us] = few;
            End {
                cookie: pid.into(), owner: ProcKey { pid, ..ProcKey::default() }, netns: 1, state, error: 0, seq_local: 7, marks,
                bytes_sent, bytes_received, packets_sent, packets_received, retrans, out_of_order, srtt_us, rttvar_us, at_ns: 9,
            }
        }
    }

    prop_compose! {
        fn flow()(
            is_tcp: bool,
            is_group: bool,
            is_initiator: bool,
            first in end(),
            second in prop::option::of(end()),
            others in prop::collection::vec(end(), 0..3),
            is_translated: bool,
            is_reported: bool,
        ) -> Flow {
            let (proto, side) = (
                if is_tcp { Proto::Tcp } else { Proto::Udp },
                if is_initiator { Side::Initiator } else { Side::Responder },
            );
            let mut flow = Flow::new(FlowKey { proto, initiator: endpoint(1), responder: endpoint(2) }, first, side, 5);
            flow.second_end = second.map(Box::new);
            flow.group = is_group;
            if is_translated {
                flow.see(Side::Responder, FlowKey { proto, initiator: endpoint(1), responder: endpoint(3) });
            }
            for end in others.into_iter().filter(|_| !is_tcp) {
                flow.rare.get_or_insert_default().others.push(Other { end, position: 0 });
            }
            flow.verdict = Some(State::Idle);
            flow.reported = is_reported.then(|| Box::new(Reported { rate: Rate { packets: 3.0, ..Rate::default() }, ..Reported::default() }));
            flow
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_answers_as_the_flow_did(flow in flow()) {
            let kept = Kept::new(flow.clone(), 0, 1_000).to_flow().unwrap();
            prop_assert_eq!(kept.totals(), flow.totals());
            prop_assert_eq!((kept.key, kept.translated()), (flow.key, flow.translated()));
            prop_assert_eq!((kept.state(), kept.cookie(), kept.id()), (flow.state(), flow.cookie(), flow.id()));
            prop_assert_eq!(kept.is_bypassed(), flow.is_bypassed());
            prop_assert_eq!((kept.opened_ns, kept.active_ns), (flow.opened_ns, flow.active_ns));
            prop_assert_eq!(kept.rate(u64::MAX).packets, if flow.reported.is_some() { 3.0 } else { 0.0 });
            prop_assert!(kept.other_owners().eq(flow.other_owners()));
            for side in Side::BOTH {
                let of = |flow: &Flow| flow.end(side).map(|end| (end.owner, end.srtt_us, end.rttvar_us, end.has(End::PRE_EXISTING)));
                prop_assert_eq!(of(&kept), of(&flow));
                prop_assert_eq!(kept.told(side), flow.told(side));
            }
        }

        #[test]
        fn the_last_ones_are_kept(flows in prop::collection::vec(flow(), 1..40), flows_max in 0usize..20) {
            let mut closed = Closed { keep: Keep { flows_max, for_ns: 1_000 }, ..Closed::default() };
            for (number, flow) in flows.iter().enumerate() {
                closed.add(flow.clone(), 7, number as u64);
            }
            let numbers = closed.numbers();
            prop_assert_eq!(numbers.len(), flows.len().min(flows_max));
            for number in numbers.clone() {
                let at = flows.len() - numbers.len() + (number - numbers.start);
                prop_assert_eq!(closed.get(number).unwrap().cookie(), flows[at].cookie());
                prop_assert_eq!(closed.kept_for_ns(Some(number), 900), 100 + at as u64);
                prop_assert_eq!(closed.kept_for_ns(Some(number), 5_000), 0);
            }
            prop_assert_eq!(closed.kept_for_ns(Some(numbers.end), 0), 0, "nobody knows it");
            prop_assert_eq!(closed.kept_for_ns(None, 5_000), if flows_max > 0 { 1_000 } else { 0 });
            closed.expire(1_000);
            prop_assert_eq!(closed.numbers().len(), numbers.len().min(flows.len() - 1), "the first has its time");
        }
    }
}
