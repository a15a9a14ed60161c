//! UDP counters into the table. A flow is a socket and a peer; it ends by silence, or with its socket.

use sockeye_bpf::records::{UdpKey, UdpValue};

use super::entry::NO_FLOW;
use super::{Flow, FlowTable, Opened, pairing};
use crate::model::flow::{Addr, End, Endpoint, ProcKey, Proto, Side};

/// Positions in [`Flow::ends`].
const FIRST_END: usize = 0;
const SECOND_END: usize = 1;

impl FlowTable {
    /// Adds counters of a UDP socket and peer.
    pub fn udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) {
        let id = match self.udp.get(key) {
            Some(&id) => id,
            None => match self.enter_udp(key, value, now_ns) {
                Some(id) => id,
                None => return,
            },
        };
        let timeouts = self.timeouts;
        let flow = &mut self.flows[id as usize];
        let side = flow.side_of(key.cookie);
        let woken = flow.verdict.take().is_some();
        flow.last_look = false;
        flow.active_ns = flow.active_ns.max(value.last_ns);
        let Some(end) = flow.end_mut(side) else { return };
        end.bytes_sent += value.bytes_sent;
        end.bytes_received += value.bytes_received;
        end.packets_sent += u64::from(value.packets_sent);
        end.packets_received += u64::from(value.packets_received);
        end.at_ns = end.at_ns.max(value.last_ns);
        if woken {
            self.timers.schedule(&mut self.flows, id, now_ns + timeouts.settle_ns);
        }
    }

    fn enter_udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) -> Option<u32> {
        let local = Endpoint { addr: Addr(key.local_addr), port: key.local_port };
        let remote = Endpoint { addr: Addr(key.remote_addr), port: key.remote_port };
        let hash = pairing::udp(&self.names, local, remote, key.netns);
        let partner = self.partner(hash, local, remote);
        if let Some(id) = partner.filter(|id| self.flows[*id as usize].first_end.cookie != key.cookie) {
            self.join_udp(id, key, value, now_ns);
            return Some(id);
        }
        let other = self.same_name(hash, local, remote, key);
        let side = match other {
            // To a collector the two are one flow, so the direction is the same.
            Some((_, side)) => side,
            None if value.first_sent != 0 => Side::Initiator,
            None => Side::Responder,
        };
        let opened = Opened { local, remote, side, at_ns: value.first_ns };
        let id = self.enter(Proto::Udp, opened, first_sight(key, value), now_ns)?;
        self.udp.insert(*key, id);
        self.list_socket(id, FIRST_END);
        match other {
            Some((newer, side))
                if self.flows[newer as usize].end(side).is_some_and(|end| end.at_ns > value.first_ns) =>
            {
                self.precede(id, newer, now_ns);
            }
            Some((older, _)) => {
                self.index(id, [hash, 0]);
                self.succeed(id, older, now_ns);
            }
            None => self.index(id, [hash, 0]),
        }
        Some(id)
    }

    /// Adds the second end to a flow, and to those before it by the same name that wait for it too.
    fn join_udp(&mut self, id: u32, key: &UdpKey, value: &UdpValue, now_ns: u64) {
        let mut end = first_sight(key, value);
        let flow = &mut self.flows[id as usize];
        let (name, side, mut before) = (flow.key, flow.first_side.other(), flow.udp_before);
        // It begins with its initiator: the other socket may have counted for others before.
        if side == Side::Initiator && flow.is_unreported() {
            flow.opened_ns = value.first_ns;
        }
        if before != NO_FLOW {
            end.marks |= End::SHARED_COUNTERS;
        }
        let waits = |flow: &&Flow| flow.key == name && flow.second_end.is_none() && flow.first_end.cookie != key.cookie;
        while let Some(flow) = self.flows.get(before as usize).filter(waits) {
            let next = flow.udp_before;
            self.attach_udp(before, end, side, now_ns);
            before = next;
        }
        self.attach_udp(id, end, side, now_ns);
        self.udp.insert(*key, id);
    }

    fn attach_udp(&mut self, id: u32, end: End, side: Side, now_ns: u64) {
        let view = *self.flows[id as usize].view(side);
        self.attach(id, end, side, view, now_ns);
        self.list_socket(id, SECOND_END);
    }

    /// The newest flow of this name, if its end at `local` is another socket of the same namespace: the port has changed
    /// hands. Also the side of `local` in it.
    fn same_name(&self, hash: u64, local: Endpoint, remote: Endpoint, key: &UdpKey) -> Option<(u32, Side)> {
        // All sockets that share a multicast address get all of it.
        if local == remote || local.addr.is_multicast() || remote.addr.is_multicast() {
            return None;
        }
        let id = *self.pairs.get(&hash)?;
        // A socket is never both ends of a flow.
        let flow = self.flows.get(id as usize).filter(|flow| flow.ends().all(|end| end.cookie != key.cookie))?;
        let side = Side::BOTH.into_iter().find(|side| (flow.local(*side), flow.remote(*side)) == (local, remote))?;
        flow.end(side).filter(|end| end.netns == key.netns).map(|_| (id, side))
    }

    /// Flow `id` takes the place of an older one. The peer's socket is the same, and the kernel counts for both in one
    /// place; each flow's own socket has counters of that flow alone.
    fn succeed(&mut self, id: u32, older: u32, now_ns: u64) {
        let since_ns = self.flows[id as usize].opened_ns;
        let Some((peer, key)) = self.peer_of(id, older) else {
            self.flows[id as usize].udp_before = older;
            return;
        };
        if peer.at_ns >= since_ns {
            peer.marks |= End::SHARED_COUNTERS;
        }
        let copy = copy_with_shared_counters(peer);
        self.attach_udp(id, copy, self.flows[id as usize].first_side.other(), now_ns);
        self.udp.insert(key, id);
    }

    /// The same if the newer flow was heard of first.
    fn precede(&mut self, id: u32, newer: u32, now_ns: u64) {
        let Some((peer, _)) = self.peer_of(id, newer) else {
            self.flows[id as usize].udp_before = std::mem::replace(&mut self.flows[newer as usize].udp_before, id);
            return;
        };
        peer.marks |= End::SHARED_COUNTERS;
        let copy = copy_with_shared_counters(peer);
        self.attach_udp(id, copy, self.flows[id as usize].first_side.other(), now_ns);
    }

    /// In flow `other` of the same name, the end that flow `id` lacks.
    fn peer_of(&mut self, id: u32, other: u32) -> Option<(&mut End, UdpKey)> {
        let side = self.flows[id as usize].first_side.other();
        let flow = &mut self.flows[other as usize];
        let (local, remote) = (flow.local(side), flow.remote(side));
        let end = flow.end_mut(side)?;
        let key = key_of(end, local, remote);
        Some((end, key))
    }

    /// Enters a flow into the list of the socket at one of its ends.
    fn list_socket(&mut self, id: u32, end: usize) {
        let flow = &mut self.flows[id as usize];
        let Some(cookie) = flow.ends().nth(end).map(|end| end.cookie) else { return };
        let list = self.udp_sockets.entry(cookie).or_default();
        flow.udp_positions[end] = list.len() as u32;
        list.push(id);
    }

    /// A UDP socket is gone: so are its flows, once their last counters are in.
    pub fn udp_closed(&mut self, cookie: u64, now_ns: u64) {
        for id in self.udp_sockets.get(&cookie).cloned().unwrap_or_default() {
            let flow = &mut self.flows[id as usize];
            flow.first_end.marks |= End::CLOSED;
            if let Some(second_end) = &mut flow.second_end {
                second_end.marks |= End::CLOSED;
            }
            self.schedule_close(id, now_ns);
        }
    }

    pub(super) fn forget_udp(&mut self, id: u32, flow: &Flow) {
        for side in Side::BOTH {
            let Some(end) = flow.end(side) else { continue };
            let key = key_of(end, flow.local(side), flow.remote(side));
            // Unless another flow has taken its place.
            if self.udp.get(&key) == Some(&id) {
                self.udp.remove(&key);
            }
        }
        for (end, position) in flow.ends().zip(flow.udp_positions) {
            self.unlist(end.cookie, position as usize);
        }
    }

    /// Takes one flow out of its socket's list; the last one of the list moves to its place.
    fn unlist(&mut self, cookie: u64, at: usize) {
        let Some(list) = self.udp_sockets.get_mut(&cookie) else { return };
        list.swap_remove(at);
        if let Some(&moved) = list.get(at) {
            let flow = &mut self.flows[moved as usize];
            let end = if flow.first_end.cookie == cookie { FIRST_END } else { SECOND_END };
            flow.udp_positions[end] = at as u32;
        }
        if list.is_empty() {
            self.udp_sockets.remove(&cookie);
        }
    }
}

fn key_of(end: &End, local: Endpoint, remote: Endpoint) -> UdpKey {
    UdpKey {
        cookie: end.cookie,
        local_addr: local.addr.0,
        remote_addr: remote.addr.0,
        local_port: local.port,
        remote_port: remote.port,
        netns: end.netns,
    }
}

/// An end before its first counters.
fn first_sight(key: &UdpKey, value: &UdpValue) -> End {
    End {
        cookie: key.cookie,
        owner: ProcKey::new(value.pid, value.start_ticks, value.flags),
        netns: key.netns,
        state: 0,
        error: 0,
        seq_local: 0,
        marks: End::OWNER_CONFIRMED,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        retrans: 0,
        out_of_order: 0,
        srtt_us: 0,
        rttvar_us: 0,
        at_ns: value.last_ns,
    }
}

/// The same end in another flow, where it has counted nothing.
fn copy_with_shared_counters(end: &End) -> End {
    End {
        marks: End::OWNER_CONFIRMED | End::SHARED_COUNTERS,
        bytes_sent: 0,
        bytes_received: 0,
        packets_sent: 0,
        packets_received: 0,
        ..*end
    }
}
