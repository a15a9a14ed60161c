//! When there is too little room: UDP has a share of the table and a bound for each socket, and what says least is given up
//! first. So nobody who sends from many addresses keeps a TCP connection out.

use std::collections::VecDeque;

use super::{Flow, FlowTable, Map};
use crate::model::flow::{Proto, State};

/// UDP flows take one part in so many of the table at most.
const UDP_SHARE: usize = 2;
/// Peers of one UDP socket that have a flow each. Further ones share a flow of the socket.
pub(super) const PEERS_MAX: usize = 1 << 16;
/// Of UDP's share, so much more is taken at most by flows that were given up and wait for their last report. All are reported
/// with the next tick, but one exchange may bring more new peers than that.
const GIVING_UP_SHARE: usize = 4;
/// Flows that are looked at to find one that can be given up.
const LOOKS_MAX: usize = 32;
/// A flow of one datagram is over after this long when there is little room.
pub(super) const ONE_DATAGRAM_NS: u64 = 2_000_000_000;

/// What the table knows of its own room.
#[derive(Default)]
pub(super) struct Crowding {
    /// UDP flows in the order in which they were entered, and some that are gone.
    udp: VecDeque<u32>,
    udp_flows: usize,
    /// Flows that are in the table only for their last report.
    giving_up: usize,
    /// UDP socket -> the flow of its further peers.
    pub(super) other_peers: Map<u64, u32>,
}

impl FlowTable {
    pub(super) fn occupied(&self) -> usize {
        self.flows.len() - self.crowding.giving_up
    }

    fn udp_max(&self) -> usize {
        self.flows_max / UDP_SHARE
    }

    fn has_udp_room(&self) -> bool {
        self.crowding.udp_flows < self.udp_max() + self.crowding.giving_up
    }

    /// Over three quarters of the table, or of UDP's share, are taken.
    pub(super) fn is_crowded(&self) -> bool {
        4 * self.occupied() > 3 * self.flows_max || 4 * self.crowding.udp_flows > 3 * self.udp_max()
    }

    /// Whether a new flow may be entered, after something else was given up if need be.
    pub(super) fn make_room(&mut self, proto: Proto, now_ns: u64) -> bool {
        let has_room = self.occupied() < self.flows_max;
        match proto {
            Proto::Tcp => has_room || self.give_up_udp(true, now_ns),
            Proto::Udp => (has_room && self.has_udp_room()) || self.give_up_udp(false, now_ns),
        }
    }

    /// The flow of all further peers of a socket always finds room.
    pub(super) fn make_room_for_others(&mut self, now_ns: u64) {
        if self.occupied() >= self.flows_max || !self.has_udp_room() {
            self.give_up_udp(true, now_ns);
        }
    }

    /// Gives up a UDP flow: one that lingers, else one of a single datagram; for TCP `any`, the older the sooner. It has its last
    /// report with the next tick.
    fn give_up_udp(&mut self, any: bool, now_ns: u64) -> bool {
        let (mut fallback, mut kept) = (None, 0);
        // Those that are gone leave the list here, and do not count: there may be more of them than of others.
        while kept < LOOKS_MAX.min(self.crowding.udp.len())
            && let Some(id) = self.crowding.udp.pop_front()
        {
            let is_udp = |flow: &&Flow| flow.key.proto == Proto::Udp && !flow.given_up;
            let Some(flow) = self.flows.get(id as usize).filter(is_udp) else { continue };
            if flow.last_look && flow.totals() == flow.exported {
                let flow = self.remove(id);
                self.closed.add(flow, id, now_ns);
                return true;
            }
            if flow.is_one_datagram() && (any || self.crowding.giving_up < self.udp_max() / GIVING_UP_SHARE) {
                self.give_up(id, now_ns);
                return true;
            }
            fallback.get_or_insert(id);
            kept += 1;
            self.crowding.udp.push_back(id);
        }
        let Some(id) = fallback.filter(|_| any) else { return false };
        self.give_up(id, now_ns);
        true
    }

    fn give_up(&mut self, id: u32, now_ns: u64) {
        let flow = &mut self.flows[id as usize];
        flow.given_up = true;
        flow.verdict = Some(State::Idle);
        self.crowding.giving_up += 1;
        self.counts.given_up += 1;
        self.timers.schedule(&mut self.flows, id, now_ns);
    }

    pub(super) fn note_entered(&mut self, id: u32, proto: Proto) {
        if proto == Proto::Tcp {
            return;
        }
        self.crowding.udp_flows += 1;
        self.crowding.udp.push_back(id);
        // Numbers of flows that are gone must not gather.
        if self.crowding.udp.len() > 2 * self.crowding.udp_flows + LOOKS_MAX {
            let flows = &self.flows;
            let is_udp = |id: &u32| flows.get(*id as usize).is_some_and(|flow| flow.key.proto == Proto::Udp);
            self.crowding.udp.retain(is_udp);
            self.crowding.udp.make_contiguous().sort_by_key(|id| self.flows[*id as usize].entered_tick);
        }
    }

    pub(super) fn note_removed(&mut self, id: u32, flow: &Flow) {
        if flow.key.proto == Proto::Tcp {
            return;
        }
        self.crowding.udp_flows -= 1;
        self.crowding.giving_up -= usize::from(flow.given_up);
        for cookie in flow.ends().map(|end| end.cookie) {
            if self.crowding.other_peers.get(&cookie) == Some(&id) {
                self.crowding.other_peers.remove(&cookie);
            }
        }
    }
}

impl Flow {
    /// It is of one UDP datagram: nobody has answered, and nothing followed.
    pub(super) fn is_one_datagram(&self) -> bool {
        self.key.proto == Proto::Udp && self.second_end.is_none() && self.totals().packets.iter().sum::<u64>() <= 1
    }
}
