//! UDP counters into the table. A flow is a socket and a peer; it ends by silence, or with its socket.

use sockeye_bpf::records::{UdpKey, UdpValue, flags, udp_traits};

use super::crowding::PEERS_MAX;
use super::entry::{NO_FLOW, Other};
use super::udp_sockets::{FIRST_END, SECOND_END};
use super::{Flow, FlowTable, Opened, pairing};
use crate::model::flow::{Addr, End, Endpoint, FlowKey, ProcKey, Proto, Side};

/// By so much the time of a last datagram may be too early: the longest tick of a kernel.
const COARSE_NS: u64 = 10_000_000;

/// A socket and a peer, as the kernel tells of them.
#[derive(Clone, Copy)]
struct Seen<'a> {
    key: &'a UdpKey,
    value: &'a UdpValue,
    local: Endpoint,
    remote: Endpoint,
    /// This end and the peer as the peer knows them, if that is otherwise.
    wire: Option<(Endpoint, Endpoint)>,
}

impl<'a> Seen<'a> {
    fn new(key: &'a UdpKey, value: &'a UdpValue) -> Self {
        let endpoint = |addr, port| Endpoint { addr: Addr(addr), port };
        let wire = (value.traits & udp_traits::TRANSLATED != 0).then(|| {
            (endpoint(value.wire_local, value.wire_local_port), endpoint(value.wire_remote, value.wire_remote_port))
        });
        Self {
            key,
            value,
            local: endpoint(key.local_addr, key.local_port),
            remote: endpoint(key.remote_addr, key.remote_port),
            wire,
        }
    }

    /// Names under which the other end may have been entered, with the addresses that it knows.
    fn names(&self, hasher: &ahash::RandomState) -> impl Iterator<Item = (u64, Endpoint, Endpoint)> {
        let name = |(local, remote)| match self.key.netns {
            // A socket of the kernel: where it is, is not known.
            0 => (pairing::unique(hasher, local, remote, self.key.cookie), local, remote),
            netns => (pairing::udp(hasher, local, remote, netns), local, remote),
        };
        [Some((self.local, self.remote)), self.wire].into_iter().flatten().map(name)
    }

    /// The 5-tuple as the other end sees it, which is on side `other`.
    fn peers_view(&self, other: Side) -> Option<FlowKey> {
        self.wire.map(|(local, remote)| FlowKey::seen_from(Proto::Udp, other, remote, local))
    }

    fn is_group(&self) -> bool {
        self.value.traits & udp_traits::GROUP != 0 || self.local.addr.is_multicast() || self.remote.addr.is_multicast()
    }

    /// On which side a socket is that was there before the agent, as far as its port tells.
    fn known_side(&self) -> Option<Side> {
        match self.value.traits & (udp_traits::SERVES | udp_traits::ASKS) {
            udp_traits::SERVES => Some(Side::Responder),
            udp_traits::ASKS => Some(Side::Initiator),
            _ => None,
        }
    }

    /// The side by who spoke first.
    fn first_side(&self) -> Side {
        if self.value.first_sent != 0 { Side::Initiator } else { Side::Responder }
    }

    fn is_older(&self) -> bool {
        self.value.flags & flags::PRE_EXISTING != 0
    }
}

impl FlowTable {
    /// Takes all that one exchange of the kernel's tables has brought, and the sockets that were closed before it: all their
    /// counters are in it. What is new comes in the order of its first packets: who was first is the initiator.
    /// `asked_ns`: when the exchange was asked for.
    pub fn udp_exchange(&mut self, rows: &[(UdpKey, UdpValue)], closed: &[u64], asked_ns: u64, now_ns: u64) {
        self.udp_through_ns = asked_ns;
        let is_known = |(key, _): &&(UdpKey, UdpValue)| self.udp.contains_key(key);
        let (known, mut new): (Vec<&_>, Vec<&_>) = rows.iter().partition(is_known);
        new.sort_unstable_by_key(|(_, value)| value.first_ns);
        for (key, value) in known.into_iter().chain(new) {
            self.udp(key, value, now_ns);
        }
        self.udp_drained(now_ns);
        closed.iter().for_each(|cookie| self.udp_closed(*cookie, now_ns));
    }

    /// Adds counters of a UDP socket and peer.
    pub fn udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) {
        let seen = Seen::new(key, value);
        let id = match self.udp.get(key) {
            Some(&id) => id,
            None => match self.enter_udp(&seen, now_ns).or_else(|| self.enter_other_peer(&seen, now_ns)) {
                Some(id) => id,
                None => {
                    self.counts.rejected += 1;
                    return;
                }
            },
        };
        let id = self.learn_wire(id, &seen, now_ns);
        let timeouts = self.timeouts;
        let flow = &mut self.flows[id as usize];
        let woken = flow.verdict.take().is_some();
        flow.last_look = false;
        flow.active_ns = flow.active_ns.max(value.last_ns);
        let Some(end) = flow.end_of(key.cookie) else { return };
        end.bytes_sent += value.bytes_sent;
        end.bytes_received += value.bytes_received;
        end.packets_sent += u64::from(value.packets_sent);
        end.packets_received += u64::from(value.packets_received);
        end.at_ns = end.at_ns.max(value.last_ns);
        let owner = ProcKey::new(value.pid, value.start_ticks, value.flags);
        if owner.is_known() && owner != end.owner {
            end.owner = owner;
            self.new_owners.push(owner);
        }
        if woken {
            self.timers.schedule(&mut self.flows, id, now_ns + timeouts.settle_ns);
        }
        self.note_packet(id, key.cookie, value);
    }

    fn enter_udp(&mut self, seen: &Seen<'_>, now_ns: u64) -> Option<u32> {
        let names: Vec<_> = seen.names(&self.names).collect();
        for &(name, local, remote) in &names {
            let partner = self.partner(name, local, remote);
            if let Some(id) = partner.filter(|id| self.flows[*id as usize].first_end.cookie != seen.key.cookie) {
                self.join_udp(id, seen, now_ns);
                return Some(id);
            }
        }
        let name = names[0].0;
        let other = self.same_name(name, seen);
        if let Some((id, Side::Responder)) = other
            && self.stands_beside(id, seen)
        {
            self.put_beside(id, seen);
            return Some(id);
        }
        let side = match other {
            // To a collector the two are one flow, so the direction is the same.
            Some((_, side)) => side,
            None => seen.known_side().unwrap_or(seen.first_side()),
        };
        if self.udp_sockets.get(&seen.key.cookie).is_some_and(|flows| flows.len() >= PEERS_MAX) {
            return None;
        }
        let opened =
            Opened { local: seen.local, remote: seen.remote, side, at_ns: seen.value.first_ns, group: seen.is_group() };
        let id = self.enter(Proto::Udp, opened, first_sight(seen.key, seen.value), now_ns)?;
        self.flows[id as usize].guessed = seen.is_older() && seen.known_side().is_none();
        if let Some(view) = seen.peers_view(side.other()) {
            self.flows[id as usize].see(side.other(), view);
        }
        self.udp.insert(*seen.key, id);
        self.list_socket(id, FIRST_END);
        match other {
            Some((newer, side))
                if self.flows[newer as usize].end(side).is_some_and(|end| end.at_ns > seen.value.first_ns) =>
            {
                self.precede(id, newer, now_ns);
            }
            Some((older, _)) => {
                self.index(id, [name, 0]);
                self.succeed(id, older, now_ns);
            }
            None => self.index(id, [name, names.get(1).map_or(0, |(wire_name, ..)| *wire_name)]),
        }
        Some(id)
    }

    /// A socket has too many peers, or there is no room for a flow of its own: it has one with all that have none.
    fn enter_other_peer(&mut self, seen: &Seen<'_>, now_ns: u64) -> Option<u32> {
        if let Some(&id) = self.crowding.other_peers.get(&seen.key.cookie) {
            self.counts.other_peers += 1;
            return Some(id);
        }
        let remote = Endpoint { addr: seen.remote.addr.unspecified(), port: 0 };
        let side = seen.known_side().unwrap_or(seen.first_side());
        let opened = Opened { local: seen.local, remote, side, at_ns: seen.value.first_ns, group: false };
        let end = first_sight(seen.key, seen.value);
        self.make_room_for_others(now_ns);
        let id = self.enter(Proto::Udp, opened, end, now_ns)?;
        self.counts.other_peers += 1;
        self.udp.insert(key_of(&end, seen.local, remote), id);
        self.list_socket(id, FIRST_END);
        self.crowding.other_peers.insert(seen.key.cookie, id);
        Some(id)
    }

    /// What a flow with one end is called on the other side of a translation may come later than the flow: a server's packets
    /// tell of it when it answers. Returns the flow in which the socket is then.
    fn learn_wire(&mut self, id: u32, seen: &Seen<'_>, now_ns: u64) -> u32 {
        let flow = &self.flows[id as usize];
        let is_others = flow.key.is_of_other_peers();
        if seen.wire.is_none() || flow.second_end.is_some() || flow.translated().is_some() || is_others {
            return id;
        }
        let side = flow.side_of(seen.key.cookie);
        let Some(view) = seen.peers_view(side.other()) else { return id };
        self.flows[id as usize].see(side.other(), view);
        let Some((name, local, remote)) = seen.names(&self.names).nth(1) else { return id };
        if let Some(other) = self.partner(name, local, remote).filter(|other| *other != id) {
            self.merge_udp(other, id, now_ns);
            return other;
        }
        let [own, _] = self.flows[id as usize].pair_hashes;
        self.index(id, [own, name]);
        id
    }

    /// Whether a socket on the responder's side belongs into the flow of another one there: it receives the same datagrams, or
    /// the server has opened it for this client, while the one that serves all is still open (QUIC, DTLS).
    fn stands_beside(&self, id: u32, seen: &Seen<'_>) -> bool {
        let flow = &self.flows[id as usize];
        flow.group || seen.is_group() || !flow.end(Side::Responder).is_some_and(|end| end.has(End::CLOSED))
    }

    /// Adds a socket on the responder's side. The newest one is the responder, unless all get the same.
    fn put_beside(&mut self, id: u32, seen: &Seen<'_>) {
        self.flows[id as usize].group |= seen.is_group();
        self.add_other(id, first_sight(seen.key, seen.value));
        let flow = &mut self.flows[id as usize];
        let at = usize::from(flow.first_side != Side::Responder);
        let responder = if at == FIRST_END { Some(&mut flow.first_end) } else { flow.second_end.as_deref_mut() };
        let newest = flow.rare.as_mut().and_then(|rare| rare.others.last_mut());
        if !flow.group
            && let (Some(responder), Some(newest)) = (responder, newest)
        {
            std::mem::swap(responder, &mut newest.end);
            std::mem::swap(&mut flow.udp_positions[at], &mut newest.position);
        }
        self.new_owners.push(ProcKey::new(seen.value.pid, seen.value.start_ticks, seen.value.flags));
    }

    /// Two flows with one end each are one. `kept` is the older one.
    pub(super) fn merge_udp(&mut self, kept: u32, gone: u32, now_ns: u64) {
        let mut gone = self.remove(gone);
        let (end, other) = (gone.first_end, gone.first_side);
        let (local, remote) = (gone.local(other), gone.remote(other));
        let side = self.flows[kept as usize].first_side.other();
        self.attach_udp(kept, end, side, FlowKey::seen_from(Proto::Udp, side, local, remote), now_ns);
        self.udp.insert(key_of(&end, local, remote), kept);
        let flow = &mut self.flows[kept as usize];
        flow.exported.add(&gone.exported);
        flow.reported = flow.reported.take().or_else(|| gone.reported.take());
        flow.opened_ns = flow.opened_ns.min(gone.opened_ns);
        flow.group |= gone.group;
        for other in gone.others() {
            self.add_other(kept, other.end);
        }
    }

    /// More receivers of a group, which have had a flow of their own.
    pub(super) fn gather_udp(&mut self, group: u32, gone: u32) {
        let gone = self.remove(gone);
        let flow = &mut self.flows[group as usize];
        flow.group = true;
        flow.exported.add(&gone.exported);
        for end in gone.ends().copied().chain(gone.others().iter().map(|other| other.end)) {
            self.add_other(group, end);
        }
    }

    /// Adds a socket on the responder's side.
    fn add_other(&mut self, id: u32, end: End) {
        let list = self.udp_sockets.entry(end.cookie).or_default();
        let position = list.len() as u32;
        list.push(id);
        let flow = &mut self.flows[id as usize];
        let key = key_of(&end, flow.local(Side::Responder), flow.remote(Side::Responder));
        flow.rare.get_or_insert_default().others.push(Other { end, position });
        self.udp.insert(key, id);
    }

    /// Adds the second end to a flow, and to those before it by the same name that wait for it too.
    fn join_udp(&mut self, id: u32, seen: &Seen<'_>, now_ns: u64) {
        let (key, value) = (seen.key, seen.value);
        let mut end = first_sight(key, value);
        let flow = &mut self.flows[id as usize];
        // Both are older than the agent, and this one's port tells more.
        if flow.guessed && seen.known_side() == Some(flow.first_side) {
            flow.reverse();
        }
        flow.group |= seen.is_group();
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
            let view = *flow.view(side);
            self.attach_udp(before, end, side, view, now_ns);
            before = next;
        }
        self.attach_udp(id, end, side, FlowKey::seen_from(Proto::Udp, side, seen.local, seen.remote), now_ns);
        self.udp.insert(*key, id);
    }

    fn attach_udp(&mut self, id: u32, end: End, side: Side, view: FlowKey, now_ns: u64) {
        self.attach(id, end, side, view, now_ns);
        self.list_socket(id, SECOND_END);
    }

    /// The newest flow of this name, if its end at the same address is another socket of the same namespace: the port has changed
    /// hands, or several sockets receive what is sent to a group. Also the side of that end in it.
    fn same_name(&self, name: u64, seen: &Seen<'_>) -> Option<(u32, Side)> {
        if seen.local == seen.remote {
            return None;
        }
        let id = *self.pairs.get(&name)?;
        // A socket is never both ends of a flow.
        let flow = self.flows.get(id as usize).filter(|flow| flow.ends().all(|end| end.cookie != seen.key.cookie))?;
        let is_there = |side: &Side| (flow.local(*side), flow.remote(*side)) == (seen.local, seen.remote);
        let side = Side::BOTH.into_iter().find(is_there)?;
        flow.end(side).filter(|end| end.netns == seen.key.netns).map(|_| (id, side))
    }

    /// Flow `id` takes the place of an older one. The peer's socket is the same, and the kernel counts for both in one
    /// place; each flow's own socket has counters of that flow alone.
    fn succeed(&mut self, id: u32, older: u32, now_ns: u64) {
        let since_ns = self.flows[id as usize].opened_ns;
        let Some((peer, key)) = self.peer_of(id, older) else {
            self.flows[id as usize].udp_before = older;
            return;
        };
        if peer.at_ns + COARSE_NS >= since_ns {
            peer.marks |= End::SHARED_COUNTERS;
        }
        let copy = copy_with_shared_counters(peer);
        let side = self.flows[id as usize].first_side.other();
        let view = *self.flows[id as usize].view(side);
        self.attach_udp(id, copy, side, view, now_ns);
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
        let side = self.flows[id as usize].first_side.other();
        let view = *self.flows[id as usize].view(side);
        self.attach_udp(id, copy, side, view, now_ns);
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
}

pub(super) fn key_of(end: &End, local: Endpoint, remote: Endpoint) -> UdpKey {
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
