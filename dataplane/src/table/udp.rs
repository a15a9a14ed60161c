//! UDP counters into the table. A flow is a socket and a peer; it ends by silence, or with its socket.

use sockeye_bpf::records::{UdpKey, UdpValue};

use super::flow::NO_FLOW;
use super::{Flow, FlowTable, Opened, pairing};
use crate::flow::{Addr, End, Endpoint, ProcKey, Proto, Side};

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
            self.wheel.schedule(&mut self.flows, id, now_ns + timeouts.settle_ns);
        }
    }

    /// Adds the counters of one exchange of the kernel's table, and sorts them: sockets that are new come first, in the
    /// order of time. If one has taken the port of another, the server's counters are of both, and the table must know
    /// before it sees them.
    pub fn udp_drained(&mut self, rows: &mut [(UdpKey, UdpValue)], now_ns: u64) {
        rows.sort_by_cached_key(|(key, value)| match (self.udp.contains_key(key), value.first_sent != 0) {
            (false, true) => value.first_ns,
            (false, false) => u64::MAX - 1,
            (true, _) => u64::MAX,
        });
        for (key, value) in rows {
            self.udp(key, value, now_ns);
        }
    }

    fn enter_udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) -> Option<u32> {
        let local = Endpoint { addr: Addr(key.local_addr), port: key.local_port };
        let remote = Endpoint { addr: Addr(key.remote_addr), port: key.remote_port };
        let end = first_sight(key, value);
        let hash = pairing::udp(&self.names, local, remote, key.netns);
        if let Some(id) = self.partner(hash, local, remote).filter(|_| local != remote) {
            self.join_udp(id, key, end, now_ns);
            return Some(id);
        }
        let before = self.predecessor(hash, local, remote, key.netns);
        let side = match before {
            // To a collector the two are one flow, so the direction stays.
            Some((_, side)) => side,
            None if value.first_sent != 0 => Side::Initiator,
            None => Side::Responder,
        };
        let opened = Opened { local, remote, side, at_ns: value.first_ns };
        let id = self.enter(Proto::Udp, opened, end, now_ns)?;
        self.index(id, [hash, 0]);
        self.flows[id as usize].udp_position = self.udp_sockets.get(&key.cookie).map_or(0, Vec::len) as u32;
        self.remember_udp(*key, id);
        if let Some((before, _)) = before {
            self.succeed(id, before, value.first_ns, now_ns);
        }
        Some(id)
    }

    fn remember_udp(&mut self, key: UdpKey, id: u32) {
        self.udp.insert(key, id);
        self.udp_sockets.entry(key.cookie).or_default().push(id);
    }

    /// Adds the second end to a flow, and to those before it by the same name that wait for it too.
    fn join_udp(&mut self, id: u32, key: &UdpKey, mut end: End, now_ns: u64) {
        let flow = &self.flows[id as usize];
        let (name, side, mut before) = (flow.key, flow.near_side.other(), flow.udp_before);
        if before != NO_FLOW {
            end.marks |= End::MIXED;
        }
        while let Some(flow) = self.flows.get(before as usize).filter(|flow| flow.key == name && flow.far.is_none()) {
            let next = flow.udp_before;
            self.attach(before, end, side, now_ns);
            self.udp_sockets.entry(key.cookie).or_default().push(before);
            before = next;
        }
        self.attach(id, end, side, now_ns);
        self.remember_udp(*key, id);
    }

    /// The flow of this name whose end at `local` is another socket of the same namespace: the port has changed hands.
    fn predecessor(&self, hash: u64, local: Endpoint, remote: Endpoint, netns: u32) -> Option<(u32, Side)> {
        // All sockets that share a multicast address get all of it.
        if local == remote || local.addr.is_multicast() || remote.addr.is_multicast() {
            return None;
        }
        let id = *self.pairs.get(&hash)?;
        let flow = self.flows.get(id as usize)?;
        let side = Side::BOTH
            .into_iter()
            .find(|side| (flow.endpoint(*side), flow.endpoint(side.other())) == (local, remote))?;
        flow.end(side).filter(|end| end.netns == netns).map(|_| (id, side))
    }

    /// Flow `id` takes the place of the one before it. The peer's socket stays the same, and from now on its counters
    /// are of both; each flow's own socket has counters of that flow alone.
    fn succeed(&mut self, id: u32, before: u32, since_ns: u64, now_ns: u64) {
        let peer_side = self.flows[id as usize].near_side.other();
        let flow = &mut self.flows[before as usize];
        let (local, remote) = (flow.endpoint(peer_side), flow.endpoint(peer_side.other()));
        let Some(peer) = flow.end_mut(peer_side) else {
            self.flows[id as usize].udp_before = before;
            return;
        };
        if peer.at_ns > since_ns {
            peer.marks |= End::MIXED;
        }
        let end = End {
            marks: End::CONFIRMED | End::MIXED,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 0,
            packets_received: 0,
            at_ns: since_ns,
            ..*peer
        };
        self.attach(id, end, peer_side, now_ns);
        self.remember_udp(key_of(&end, local, remote), id);
    }

    /// A UDP socket is gone: so are its flows, once their last counters are in.
    pub fn udp_closed(&mut self, cookie: u64, now_ns: u64) {
        for id in self.udp_sockets.get(&cookie).cloned().unwrap_or_default() {
            let flow = &mut self.flows[id as usize];
            flow.near.marks |= End::CLOSED;
            if let Some(far) = &mut flow.far {
                far.marks |= End::CLOSED;
            }
            self.schedule_close(id, now_ns);
        }
    }

    pub(super) fn forget_udp(&mut self, id: u32, flow: &Flow) {
        for side in Side::BOTH {
            let Some(end) = flow.end(side) else { continue };
            let key = key_of(end, flow.endpoint(side), flow.endpoint(side.other()));
            // Unless another flow has taken its place.
            if self.udp.get(&key) == Some(&id) {
                self.udp.remove(&key);
            }
        }
        // The end that came first knows its place among its socket's flows; the other socket is a client with few.
        let near = self.udp_sockets.get(&flow.near.cookie);
        let near_at =
            near.filter(|list| list.get(flow.udp_position as usize) == Some(&id)).map(|_| flow.udp_position as usize);
        self.forget_sibling(flow.near.cookie, id, near_at);
        if let Some(far) = &flow.far {
            self.forget_sibling(far.cookie, id, None);
        }
    }

    fn forget_sibling(&mut self, cookie: u64, id: u32, at: Option<usize>) {
        let Some(siblings) = self.udp_sockets.get_mut(&cookie) else { return };
        if let Some(at) = at.or_else(|| siblings.iter().position(|sibling| *sibling == id)) {
            siblings.swap_remove(at);
            if let Some(&moved) = siblings.get(at)
                && let Some(flow) = self.flows.get_mut(moved as usize).filter(|flow| flow.near.cookie == cookie)
            {
                flow.udp_position = at as u32;
            }
        }
        if siblings.is_empty() {
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
        marks: End::CONFIRMED,
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
