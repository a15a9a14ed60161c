//! TCP records into the table: which connection is meant, and whether its other end is there already.

use sockeye_bpf::records::{FlowRecord, Kind, flags, traits};

use super::{Flow, FlowTable, Listener, Opened, pairing};
use crate::model::flow::{Addr, End, Endpoint, ProcKey, Proto, Side, TcpObservation};

impl FlowTable {
    /// Takes a record of a TCP socket, or of a listener.
    pub fn tcp_record(&mut self, r: &FlowRecord, now_ns: u64) {
        if r.kind == Kind::Listener as u8 {
            self.listener(r);
            return;
        }
        let observation = TcpObservation::new(r, r.kind == Kind::Close as u8);
        self.tcp(&observation, now_ns);
    }

    /// The scan has found a connection as it was before. `false` if none is known by this cookie.
    pub fn tcp_same(&mut self, cookie: u64, now_ns: u64) -> bool {
        let Some(id) = self.tcp.get(&self.flows, cookie) else { return false };
        let flow = &mut self.flows[id as usize];
        let side = flow.side_of(cookie);
        let Some(end) = flow.end_mut(side) else { return false };
        if !end.has(End::CLOSED) {
            end.at_ns = end.at_ns.max(now_ns);
            flow.was_found();
        }
        true
    }

    /// Takes round-trip samples of the connection that began so.
    pub fn tcp_samples(&mut self, cookie: u64, seq_local: u32, samples_us: &[u32]) {
        let Some(id) = self.tcp.get(&self.flows, cookie) else { return };
        let flow = &mut self.flows[id as usize];
        let is_it = flow.end(flow.side_of(cookie)).is_some_and(|end| end.seq_local == seq_local);
        if is_it && flow.is_unreported() {
            flow.rtt.get_or_insert_default().record(samples_us);
        }
    }

    fn listener(&mut self, r: &FlowRecord) {
        let proto = if r.flags & flags::UDP != 0 { Proto::Udp } else { Proto::Tcp };
        // A connected UDP socket serves one peer: that is a flow, not a service.
        if proto == Proto::Udp && r.remote_port != 0 {
            return;
        }
        let addr = Addr(r.local_addr);
        let local = Endpoint { addr, port: r.local_port };
        let owner = ProcKey::new(r.pid, r.start_ticks, r.flags);
        let v6only = r.traits & traits::V6ONLY != 0;
        let listener = Listener { proto, local, v6: addr.ip().is_ipv6(), v6only, netns: r.netns, owner };
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
        let Some(id) = self.tcp.get(&self.flows, cookie) else { return Connection::New };
        let flow = &self.flows[id as usize];
        let Some(end) = flow.end(flow.side_of(cookie)) else { return Connection::New };
        if flow.is_of(o) {
            return Connection::Known(id);
        }
        let mut before = self.tcp_before.get(&cookie).into_iter().flatten();
        if let Some(&before) = before.find(|id| self.flows.get(**id as usize).is_some_and(|flow| flow.is_of(o))) {
            return Connection::Known(before);
        }
        // Newer, or the last word on a connection of which nothing else was heard.
        let news = o.end.at_ns > end.at_ns || o.end.has(End::CLOSED);
        if news { Connection::New } else { Connection::Stale }
    }

    fn new_tcp(&mut self, o: &TcpObservation, now_ns: u64) {
        if o.end.has(End::RESTORED) && self.resume(o) {
            return;
        }
        let candidates = pairing::tcp(o);
        for (name, side) in candidates.into_iter().flatten() {
            if let Some(id) = self.other_end(name, o) {
                let side = self.side_beside(id, side, o);
                self.attach(id, o.end, side, o.view(side), now_ns);
                self.flows[id as usize].observe(side, o);
                self.remember_tcp(o, id);
                return;
            }
        }
        let opened =
            Opened { local: o.local, remote: o.remote, side: self.tcp_side(o), at_ns: o.opened_ns, group: false };
        let Some(id) = self.enter(Proto::Tcp, opened, o.end, now_ns) else {
            self.counts.rejected += 1;
            return;
        };
        let flow = &mut self.flows[id as usize];
        flow.observe(opened.side, o);
        flow.guessed = o.side.is_none();
        if o.end.has(End::PRE_EXISTING) {
            // What it did before we came is in the totals, not in what is exported.
            flow.exported = flow.totals();
        }
        self.remember_tcp(o, id);
        self.index(id, candidates.map(|c| c.map_or(0, |(hash, _)| hash)));
    }

    /// The flow of this name that lacks an end, which the observation is of.
    fn other_end(&self, name: u64, o: &TcpObservation) -> Option<u32> {
        let id = *self.pairs.get(&name)?;
        let flow =
            self.flows.get(id as usize).filter(|flow| flow.key.proto == Proto::Tcp && flow.second_end.is_none())?;
        (flow.first_end.cookie != o.end.cookie).then_some(id)
    }

    /// The side of the second end of a flow. Both have connected if their SYNs crossed: then the one that did so first is the
    /// initiator, as far as the milliseconds tell in which the kernel's records give the age of a socket.
    fn side_beside(&self, id: u32, side: Side, o: &TcpObservation) -> Side {
        const RESOLUTION_NS: u64 = 2_000_000;
        let flow = &self.flows[id as usize];
        if flow.guessed || flow.first_side != side {
            return side;
        }
        let was_first = if flow.opened_ns.abs_diff(o.opened_ns) > RESOLUTION_NS {
            o.opened_ns < flow.opened_ns
        } else {
            o.local < flow.local(side)
        };
        if was_first { Side::Initiator } else { Side::Responder }
    }

    /// A socket that was made in the middle of a connection takes the place of the one that was there. The other end has
    /// counted all the time. False if no such connection is known.
    fn resume(&mut self, o: &TcpObservation) -> bool {
        let resumed = |(id, flow): (usize, &Flow)| flow.resumed_on(o).map(|side| (id as u32, side));
        let Some((id, side)) = self.flows.iter().find_map(resumed) else { return false };
        let gone = self.flows[id as usize].end(side).map_or(0, |end| end.cookie);
        self.tcp.remove(&self.flows, gone, id);
        let flow = &mut self.flows[id as usize];
        if let Some(end) = flow.end_mut(side) {
            *end = End { marks: o.end.marks | End::SHARED_COUNTERS, ..o.end };
        }
        flow.active_ns = flow.active_ns.max(o.end.at_ns);
        self.tcp.insert(&self.flows, o.end.cookie, id);
        true
    }

    /// Notes which flow the socket is in now.
    fn remember_tcp(&mut self, o: &TcpObservation, id: u32) {
        let cookie = o.end.cookie;
        if let Some(current) = self.tcp.get(&self.flows, cookie) {
            let flow = &self.flows[current as usize];
            let newest = flow.end(flow.side_of(cookie)).is_none_or(|end| end.at_ns < o.end.at_ns);
            let before = if newest { current } else { id };
            self.tcp_before.entry(cookie).or_default().push(before);
            if !newest {
                return;
            }
        }
        self.tcp.insert(&self.flows, cookie, id);
    }

    fn update_tcp(&mut self, id: u32, o: &TcpObservation, now_ns: u64) {
        let flow = &mut self.flows[id as usize];
        let side = flow.side_of(o.end.cookie);
        let Some(end) = flow.end_mut(side) else { return };
        // The close is the last word even if a scan on another CPU has looked at its clock later: the kernel tells of
        // the new state before it sets it.
        let last_word = o.end.has(End::CLOSED);
        // And a scan looks at the state before it looks at its clock: no socket goes back to its handshake.
        let further = end.is_connecting() && !o.end.is_connecting();
        if end.has(End::CLOSED) || (o.end.at_ns <= end.at_ns && !last_word && !further) {
            return;
        }
        let before = *end;
        *end = o.end;
        end.marks |= before.marks & (End::PRE_EXISTING | End::SHARED_COUNTERS | End::BYPASSED);
        end.never_less_than(&before);
        end.at_ns = end.at_ns.max(before.at_ns);
        if before.owner != o.end.owner {
            self.new_owners.push(o.end.owner);
        }
        // What was taken for closed, and was told of, is closed indeed: nothing is to be added.
        let was_over = (flow.last_look, flow.state());
        flow.was_found();
        flow.last_look = was_over == (true, flow.state());
        flow.observe(side, o);
        let reported = |end: &End| (end.bytes_sent, end.bytes_received, end.state, end.marks);
        if reported(&before) != reported(&o.end) {
            flow.active_ns = flow.active_ns.max(o.end.at_ns);
        }
        let named = flow.is_named();
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
        let candidates = pairing::tcp(o);
        for (name, side) in candidates.into_iter().flatten() {
            let Some(other) = self.other_end(name, o) else { continue };
            let side = self.side_beside(other, side, o);
            let gone = self.remove(id);
            let (mut exported, first_side) =
                (self.flows[other as usize].exported, self.flows[other as usize].first_side);
            self.attach(other, gone.first_end, side, o.view(side), now_ns);
            let kept = &mut self.flows[other as usize];
            // What was before the agent is known: it is in what was exported of both.
            if kept.first_side != first_side {
                exported.reverse();
            }
            kept.exported = exported;
            kept.exported.add(&gone.exported);
            kept.details.add(&gone.details);
            kept.rtt = kept.rtt.take().or(gone.rtt);
            kept.reported = kept.reported.take().or(gone.reported);
            kept.opened_ns = kept.opened_ns.min(gone.opened_ns);
            // The socket may have connected again since.
            self.remember_tcp(o, other);
            return;
        }
        self.index(id, candidates.map(|c| c.map_or(0, |(hash, _)| hash)));
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
}

/// Where a record belongs.
enum Connection {
    Known(u32),
    New,
    /// Older than what is known.
    Stale,
}
