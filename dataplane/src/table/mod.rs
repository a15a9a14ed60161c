//! The global flow table. Owned by the control thread: deltas and sweeps go in, flows with both ends come out.
//!
//! Pure logic: no clock, no I/O. The same set of records gives the same table in any order, because TCP counters are
//! absolute and the newest record of a socket wins, and UDP counters are added.

mod flow;
mod pairing;
mod plan;
#[cfg(test)]
mod tests;

use hashbrown::HashMap;
use slab::Slab;
use sockeye_bpf::records::{FlowRecord, Kind, UdpKey, UdpValue, flags};

pub use flow::Flow;
pub use plan::{TICK_NS, Timeouts};

use crate::flow::{Addr, End, Endpoint, FlowKey, ProcKey, Proto, Side, TcpObservation};
use plan::Wheel;

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// A socket that waits for connections or datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Transport protocol.
    pub proto: Proto,
    /// Where it listens; the unspecified address for all.
    pub local: Endpoint,
    /// Whether an IPv6 socket.
    pub v6: bool,
    /// Inode of its network namespace.
    pub netns: u32,
    /// Who listens.
    pub owner: ProcKey,
}

/// What the table has to tell about itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Flows ever entered.
    pub created: u64,
    /// Host-local flows whose two ends were joined.
    pub paired: u64,
    /// Flows not entered because the table was full.
    pub rejected: u64,
    /// TCP flows whose close record never came; found gone by the sweep.
    pub vanished: u64,
    /// Reports made.
    pub reports: u64,
}

/// All flows of the host.
pub struct FlowTable {
    flows: Slab<Flow>,
    /// TCP socket cookie -> flow.
    tcp: Map<u64, u32>,
    udp: Map<UdpKey, u32>,
    /// TCP socket cookie -> the flow before the one in `tcp`, whose close may still be on its way.
    tcp_before: Map<u64, u32>,
    /// UDP socket cookie -> its flows.
    udp_sockets: Map<u64, Vec<u32>>,
    /// Names of flows with one local end -> flow.
    pairs: Map<u64, u32>,
    names: ahash::RandomState,
    listeners: Map<(Proto, u32, Endpoint), Listener>,
    listeners_next: Map<(Proto, u32, Endpoint), Listener>,
    listening_ports: Map<(u32, u16), ()>,
    /// Start times of the last sweeps, the newest first.
    sweeps_ns: [u64; 3],
    wheel: Wheel,
    timeouts: Timeouts,
    flows_max: usize,
    identity_epoch: u32,
    counts: TableCounts,
}

impl FlowTable {
    /// An empty table that holds at most `flows_max` flows.
    #[must_use]
    pub fn new(flows_max: usize, timeouts: Timeouts) -> Self {
        Self {
            flows: Slab::new(),
            tcp: Map::default(),
            tcp_before: Map::default(),
            udp: Map::default(),
            udp_sockets: Map::default(),
            pairs: Map::default(),
            names: ahash::RandomState::new(),
            listeners: Map::default(),
            listeners_next: Map::default(),
            listening_ports: Map::default(),
            sweeps_ns: [0; 3],
            wheel: Wheel::default(),
            timeouts,
            flows_max,
            identity_epoch: 1,
            counts: TableCounts::default(),
        }
    }

    /// All flows, those included that are over and linger for late records.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().map(|(_, flow)| flow)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// What listens, as of the last complete sweep.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.values()
    }

    /// Figures about the table.
    #[must_use]
    pub fn counts(&self) -> TableCounts {
        self.counts
    }

    /// A collector has (re)connected: processes are sent again with the next report of each flow.
    pub fn collector_joined(&mut self) {
        self.identity_epoch = self.identity_epoch.wrapping_add(1).max(1);
    }

    /// A sweep begins. Its records follow through [`Self::tcp_record`].
    pub fn sweep_begins(&mut self, now_ns: u64) {
        self.sweeps_ns = [now_ns, self.sweeps_ns[0], self.sweeps_ns[1]];
        self.listeners_next.clear();
    }

    /// The sweep is complete: what it did not find does not listen any more.
    pub fn sweep_ends(&mut self) {
        std::mem::swap(&mut self.listeners, &mut self.listeners_next);
        self.listening_ports =
            self.listeners.values().filter(|l| l.proto == Proto::Tcp).map(|l| ((l.netns, l.local.port), ())).collect();
    }

    /// Takes a record of a TCP socket, or of a listener.
    pub fn tcp_record(&mut self, r: &FlowRecord, now_ns: u64) {
        if r.kind == Kind::Listener as u8 {
            self.listener(r);
            return;
        }
        let observation = TcpObservation::new(r, r.kind == Kind::Close as u8);
        self.tcp(&observation, now_ns);
    }

    fn listener(&mut self, r: &FlowRecord) {
        let proto = if r.flags & flags::UDP != 0 { Proto::Udp } else { Proto::Tcp };
        // A connected UDP socket serves one peer: that is a flow, not a service.
        if proto == Proto::Udp && r.remote_port != 0 {
            return;
        }
        let addr = Addr(r.local_addr);
        let local = Endpoint { addr, port: r.local_port };
        let owner = ProcKey { pid: r.pid, start_ticks: r.start_ticks };
        let listener = Listener { proto, local, v6: addr.ip().is_ipv6(), netns: r.netns, owner };
        self.listeners_next.insert((proto, r.netns, local), listener);
    }

    /// Takes one observation of one end of a TCP connection.
    pub fn tcp(&mut self, o: &TcpObservation, now_ns: u64) {
        match self.connection_of(o) {
            Connection::Known(id) => self.update_tcp(id, o, now_ns),
            Connection::New => self.new_tcp(o, now_ns),
            Connection::Stale => {}
        }
    }

    /// Which connection of the socket is meant: a socket may connect again, and records come in any order.
    fn connection_of(&self, o: &TcpObservation) -> Connection {
        let cookie = o.end.cookie;
        let Some(&id) = self.tcp.get(&cookie) else { return Connection::New };
        let flow = &self.flows[id as usize];
        let Some(end) = flow.end(flow.side_of(cookie)) else { return Connection::New };
        let newer = o.end.at_ns > end.at_ns;
        // Nothing follows a close, so a later record tells of the socket's next connection.
        if flow.has_tuple(o) && !(newer && end.has(End::CLOSED)) {
            return Connection::Known(id);
        }
        if newer {
            return Connection::New;
        }
        match self.tcp_before.get(&cookie) {
            Some(&before) if self.flows.get(before as usize).is_some_and(|flow| flow.has_tuple(o)) => {
                Connection::Known(before)
            }
            // The last word on a connection of which nothing else was heard.
            _ if o.end.has(End::CLOSED) && !flow.has_tuple(o) => Connection::New,
            _ => Connection::Stale,
        }
    }

    fn new_tcp(&mut self, o: &TcpObservation, now_ns: u64) {
        // Between connect() and the choice of a source port; the next record has it.
        if o.local.port == 0 && !o.end.has(End::CLOSED) {
            return;
        }
        let candidates = pairing::tcp(&self.names, o);
        for (hash, side) in candidates.into_iter().flatten() {
            if let Some(id) = self.partner(hash, o.local, o.remote) {
                self.attach(id, o.end, side, now_ns);
                self.remember_tcp(o, id);
                return;
            }
        }
        let opened = Opened { local: o.local, remote: o.remote, side: self.tcp_side(o), at_ns: o.opened_ns };
        let Some(id) = self.enter(Proto::Tcp, opened, o.end, now_ns) else { return };
        let flow = &mut self.flows[id as usize];
        flow.guessed = o.side.is_none();
        if o.end.has(End::SEEDED) {
            // What it did before we came is in the totals, not in what is exported.
            flow.exported = flow.totals();
        }
        self.remember_tcp(o, id);
        self.index(id, candidates.map(|c| c.map_or(0, |(hash, _)| hash)));
    }

    /// Notes which flow the socket is in now.
    fn remember_tcp(&mut self, o: &TcpObservation, id: u32) {
        let cookie = o.end.cookie;
        if let Some(&current) = self.tcp.get(&cookie) {
            let flow = &self.flows[current as usize];
            let newest = flow.end(flow.side_of(cookie)).is_none_or(|end| end.at_ns < o.end.at_ns);
            if !newest {
                return;
            }
            self.tcp_before.insert(cookie, current);
        }
        self.tcp.insert(cookie, id);
    }

    fn update_tcp(&mut self, id: u32, o: &TcpObservation, now_ns: u64) {
        let flow = &mut self.flows[id as usize];
        let side = flow.side_of(o.end.cookie);
        let Some(end) = flow.end_mut(side) else { return };
        if o.end.at_ns <= end.at_ns || end.has(End::CLOSED) {
            return;
        }
        let before = *end;
        *end = o.end;
        end.marks |= before.marks & End::SEEDED;
        end.packets_sent = extend(before.packets_sent, o.end.packets_sent);
        end.packets_received = extend(before.packets_received, o.end.packets_received);
        let told = |end: &End| (end.bytes_sent, end.bytes_received, end.state, end.marks);
        if told(&before) != told(&o.end) {
            flow.active_ns = flow.active_ns.max(o.end.at_ns);
        }
        let named = flow.pair_hashes != [0; 2] || flow.far.is_some();
        if o.end.has(End::CLOSED) && flow.all_closed() {
            self.schedule_close(id, now_ns);
        }
        if !named {
            self.join_late(id, o, now_ns);
        }
    }

    /// A flow that was entered before its handshake was over has learnt its name. Its other end may be there already,
    /// as a flow of its own: then the two become one.
    fn join_late(&mut self, id: u32, o: &TcpObservation, now_ns: u64) {
        let candidates = pairing::tcp(&self.names, o);
        for (hash, side) in candidates.into_iter().flatten() {
            let Some(other) = self.partner(hash, o.local, o.remote) else { continue };
            if other == id {
                return;
            }
            let gone = self.remove(id);
            self.attach(other, gone.near, side, now_ns);
            let kept = &mut self.flows[other as usize];
            kept.exported.add(&gone.exported);
            kept.reports += gone.reports;
            kept.opened_ns = kept.opened_ns.min(gone.opened_ns);
            kept.frozen = kept.frozen.or(gone.frozen);
            self.tcp.insert(o.end.cookie, other);
            return;
        }
        self.index(id, candidates.map(|c| c.map_or(0, |(hash, _)| hash)));
    }

    /// The flow with this name that still lacks the end at `local`.
    fn partner(&self, hash: u64, local: Endpoint, remote: Endpoint) -> Option<u32> {
        let id = *self.pairs.get(&hash)?;
        let flow = self.flows.get(id as usize)?;
        let (near, far) = (flow.endpoint(flow.near_side), flow.endpoint(flow.near_side.other()));
        (flow.far.is_none() && near == remote && far == local).then_some(id)
    }

    /// Adds the second end to a flow. Its role also settles that of the first.
    fn attach(&mut self, id: u32, end: End, side: Side, now_ns: u64) {
        let flow = &mut self.flows[id as usize];
        if flow.near_side == side && flow.guessed {
            flow.reverse();
        }
        flow.guessed = false;
        flow.active_ns = flow.active_ns.max(end.at_ns);
        flow.far = Some(Box::new(end));
        if flow.reports == 0 && flow.ends().any(|end| end.has(End::SEEDED)) {
            flow.exported = flow.totals();
        }
        let over = flow.all_closed();
        self.counts.paired += 1;
        if over {
            self.schedule_close(id, now_ns);
        }
    }

    /// Which side a TCP end is on. For one older than the agent: it accepted if something listens on its port; else it
    /// is taken for the initiator unless the port numbers say the contrary.
    fn tcp_side(&self, o: &TcpObservation) -> Side {
        if let Some(side) = o.side {
            return side;
        }
        let listens = |port| self.listening_ports.contains_key(&(o.end.netns, port));
        let well_known = !listens(o.remote.port) && o.local.port < 1024 && o.remote.port >= 1024;
        if listens(o.local.port) || well_known { Side::Responder } else { Side::Initiator }
    }

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

    fn enter_udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) -> Option<u32> {
        let local = Endpoint { addr: Addr(key.local_addr), port: key.local_port };
        let remote = Endpoint { addr: Addr(key.remote_addr), port: key.remote_port };
        let end = End {
            cookie: key.cookie,
            owner: ProcKey { pid: value.pid, start_ticks: value.start_ticks },
            netns: key.netns,
            state: 0,
            error: 0,
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
        };
        let hash = pairing::udp(&self.names, local, remote, key.netns);
        let partner = self.partner(hash, local, remote).filter(|_| local != remote);
        let id = if let Some(id) = partner {
            let side = self.flows[id as usize].near_side.other();
            self.attach(id, end, side, now_ns);
            id
        } else {
            let side = if value.first_sent != 0 { Side::Initiator } else { Side::Responder };
            let opened = Opened { local, remote, side, at_ns: value.first_ns };
            let id = self.enter(Proto::Udp, opened, end, now_ns)?;
            self.index(id, [hash, 0]);
            id
        };
        self.udp.insert(*key, id);
        let siblings = self.udp_sockets.entry(key.cookie).or_default();
        if partner.is_none() {
            self.flows[id as usize].udp_position = siblings.len() as u32;
        }
        siblings.push(id);
        Some(id)
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

    fn enter(&mut self, proto: Proto, opened: Opened, end: End, now_ns: u64) -> Option<u32> {
        if self.flows.len() >= self.flows_max {
            self.counts.rejected += 1;
            return None;
        }
        let key = FlowKey { proto, initiator: opened.local, responder: opened.remote };
        let key = if opened.side == Side::Initiator { key } else { key.reversed() };
        let id = u32::try_from(self.flows.insert(Flow::new(key, end, opened.side, opened.at_ns))).ok()?;
        self.flows[id as usize].entered_ns = now_ns;
        self.counts.created += 1;
        self.wheel.schedule(&mut self.flows, id, now_ns + self.timeouts.settle_ns);
        if end.has(End::CLOSED) {
            self.schedule_close(id, now_ns);
        }
        Some(id)
    }

    /// The other end of a host-local connection may still be on its way from another worker.
    fn schedule_close(&mut self, id: u32, now_ns: u64) {
        self.wheel.schedule(&mut self.flows, id, now_ns + self.timeouts.close_grace_ns);
    }

    fn index(&mut self, id: u32, hashes: [u64; 2]) {
        self.flows[id as usize].pair_hashes = hashes;
        for hash in hashes.into_iter().filter(|hash| *hash != 0) {
            self.pairs.insert(hash, id);
        }
    }

    fn remove(&mut self, id: u32) -> Flow {
        let flow = self.flows.remove(id as usize);
        for hash in flow.pair_hashes.into_iter().filter(|hash| *hash != 0) {
            if self.pairs.get(&hash) == Some(&id) {
                self.pairs.remove(&hash);
            }
        }
        match flow.key.proto {
            Proto::Tcp => {
                for cookie in flow.ends().map(|end| end.cookie) {
                    for index in [&mut self.tcp, &mut self.tcp_before] {
                        if index.get(&cookie) == Some(&id) {
                            index.remove(&cookie);
                        }
                    }
                }
            }
            Proto::Udp => self.forget_udp(id, &flow),
        }
        flow
    }

    fn forget_udp(&mut self, id: u32, flow: &Flow) {
        for side in Side::BOTH {
            let Some(end) = flow.end(side) else { continue };
            let (local, remote) = (flow.endpoint(side), flow.endpoint(side.other()));
            let key = UdpKey {
                cookie: end.cookie,
                local_addr: local.addr.0,
                remote_addr: remote.addr.0,
                local_port: local.port,
                remote_port: remote.port,
                netns: end.netns,
            };
            self.udp.remove(&key);
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

/// Where a record belongs.
enum Connection {
    Known(u32),
    New,
    /// Older than what is known.
    Stale,
}

/// A flow at its first record, seen from its local end.
#[derive(Clone, Copy)]
struct Opened {
    local: Endpoint,
    remote: Endpoint,
    side: Side,
    at_ns: u64,
}

/// The kernel's segment counters have 32 bits; ours go on where they wrap.
fn extend(known: u64, low: u64) -> u64 {
    let step = (low as u32).wrapping_sub(known as u32);
    known + u64::from(step)
}
