//! The global flow table. Owned by the control thread: shards and scans go in, flows with both ends come out.
//!
//! Pure logic: no clock, no I/O. The same set of records gives the same table in any order, because TCP counters are
//! absolute and the newest record of a socket wins, and UDP counters are added.

pub mod aggregates;
mod closed;
pub mod conversations;
mod cookies;
mod crowding;
mod details;
mod entry;
pub mod filter;
mod id;
mod meeting;
mod pairing;
pub mod report;
mod schedule;
mod tcp;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timeouts;
mod udp;
mod udp_sockets;

use std::ops::Range;

use hashbrown::HashMap;
use slab::Slab;
use sockeye_bpf::records::UdpKey;

pub use closed::Keep;
pub use entry::{Flow, Rate};
pub use timeouts::{TICK_NS, Timeouts};

use crate::model::flow::{Addr, End, Endpoint, FlowKey, ProcKey, Proto, Side};
use closed::Closed;
use cookies::Cookies;
use crowding::Crowding;
use filter::Filter;
use meeting::Meeting;
use timeouts::TimerQueue;

/// So many flows have their place from the start: untouched, it is no memory yet, while a list that grows by being copied
/// stops control, and leaves its former places to the allocator.
const FLOWS_RESERVED: usize = 1 << 20;
/// Most addresses of this host that are kept in mind.
const LOCAL_ADDRS_MAX: usize = 4096;
/// How long an address is taken for one of a namespace after its last flow was opened or reported.
const LOCAL_ADDR_KEEP_NS: u64 = 600_000_000_000;

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
    /// Of an IPv6 socket: it takes no IPv4.
    pub v6only: bool,
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
    /// UDP flows that were over early because the table, or UDP's share of it, was full.
    pub given_up: u64,
    /// Counters of UDP peers that went into the flow of their socket's further peers.
    pub other_peers: u64,
    /// TCP flows whose close record never came; found gone by the scan.
    pub vanished: u64,
    /// Flows that a filter leaves out by both ends or their owners.
    pub left_out: u64,
    /// Reports made.
    pub reports: u64,
}

/// All flows of the host.
pub struct FlowTable {
    flows: Slab<Flow>,
    /// One more than the highest place that a flow has had.
    places: usize,
    /// TCP socket cookie -> flow.
    tcp: Cookies,
    udp: Map<UdpKey, u32>,
    /// TCP socket cookie -> the flows before the one in `tcp`, whose closes may still be on their way.
    tcp_before: Map<u64, Vec<u32>>,
    /// UDP socket cookie -> its flows.
    udp_sockets: Map<u64, Vec<u32>>,
    /// Names of TCP flows that have one local end so far, and of all UDP flows -> flow.
    pairs: Map<u64, u32>,
    /// UDP flows with one end whose other end may be in another namespace.
    meeting: Meeting,
    crowding: Crowding,
    closed: Closed,
    names: ahash::RandomState,
    listeners: Map<(Proto, u32, Endpoint), Listener>,
    listeners_next: Map<(Proto, u32, Endpoint), Listener>,
    listening_ports: Map<(u32, u16), ()>,
    /// Start times of the last scans, the newest first.
    scans_ns: [u64; 3],
    /// Start time of the last scan after which every open socket was known, and every close before its end.
    whole_scan_ns: u64,
    /// Start and end of one after which closes may still be on their way.
    whole_scan_next: Option<(u64, u64)>,
    /// All that the kernel told of before this moment has been taken.
    drained_through_ns: u64,
    /// Whether the kernel's programs left something out is known up to this moment, and when it was last noticed that they had.
    told_through_ns: u64,
    untold_ns: u64,
    /// What DNS servers were asked before this moment has been read: what was opened later waits for it before it is told of.
    questions_through_ns: u64,
    /// The same for UDP's counters.
    udp_through_ns: u64,
    /// Addresses of this host that ends of flows had, loopback ones left out: the network namespace that had it last, and when.
    local_addrs: Map<Addr, (u32, u64)>,
    timers: TimerQueue,
    timeouts: Timeouts,
    filter: Filter,
    flows_max: usize,
    /// Collectors that have joined.
    epoch: u32,
    /// Owners of ends that have come since they were last taken.
    new_owners: Vec<ProcKey>,
    /// An accepted connection waits for its reader.
    awaits_owner: bool,
    counts: TableCounts,
}

impl FlowTable {
    /// An empty table that holds at most `flows_max` flows.
    #[must_use]
    pub fn new(flows_max: usize, timeouts: Timeouts) -> Self {
        Self {
            flows: Slab::with_capacity(flows_max.min(FLOWS_RESERVED)),
            places: 0,
            tcp: Cookies::default(),
            tcp_before: Map::default(),
            udp: Map::default(),
            udp_sockets: Map::default(),
            pairs: Map::default(),
            meeting: Meeting::default(),
            crowding: Crowding::default(),
            closed: Closed::default(),
            names: ahash::RandomState::new(),
            listeners: Map::default(),
            listeners_next: Map::default(),
            listening_ports: Map::default(),
            scans_ns: [0; 3],
            whole_scan_ns: 0,
            whole_scan_next: None,
            drained_through_ns: u64::MAX,
            told_through_ns: u64::MAX,
            untold_ns: 0,
            questions_through_ns: u64::MAX,
            udp_through_ns: 0,
            local_addrs: Map::default(),
            timers: TimerQueue::default(),
            timeouts,
            filter: Filter::default(),
            flows_max,
            epoch: 0,
            new_owners: Vec::new(),
            awaits_owner: false,
            counts: TableCounts::default(),
        }
    }

    /// All flows, those included that are over and linger for late records.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().map(|(_, flow)| flow)
    }

    /// Flows have places from 0 on; some are empty.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places
    }

    /// The flow at a place.
    #[must_use]
    pub fn flow_at(&self, place: usize) -> Option<&Flow> {
        self.flows.get(place)
    }

    /// Leaves out other flows from now on; those that were told of are told of to their end.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// When things happen from now on; what is scheduled stays so.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    /// Keeps so much of the recent past.
    pub fn keep_closed(&mut self, keep: Keep) {
        self.closed.keep = keep;
    }

    /// Flows that have left the table lately have numbers in this range.
    #[must_use]
    pub fn closed_numbers(&self) -> Range<usize> {
        self.closed.numbers()
    }

    /// The one with a number, unless it was forgotten.
    #[must_use]
    pub fn closed_flow(&self, number: usize) -> Option<Flow> {
        self.closed.get(number)
    }

    /// The place that it had in the table: another one may be there now.
    #[must_use]
    pub fn place_of_closed(&self, number: usize) -> Option<usize> {
        self.closed.place(number)
    }

    /// How long a flow that has ended can still be asked for, nanoseconds, unless others need its room. Without a number: one that
    /// is still in the table, where late records may reach it. Its time begins when it leaves.
    #[must_use]
    pub fn kept_for_ns(&self, number: Option<usize>, now_ns: u64) -> u64 {
        self.closed.kept_for_ns(number, now_ns)
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

    /// What listens, as of the last complete scan.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.values()
    }

    /// Figures about the table.
    #[must_use]
    pub fn counts(&self) -> TableCounts {
        self.counts
    }

    /// Addresses of a network namespace as its flows have shown them, loopback ones left out.
    pub fn addresses_of(&self, netns: u32) -> impl Iterator<Item = Addr> {
        self.local_addrs.iter().filter(move |(_, (last_netns, _))| *last_netns == netns).map(|(addr, _)| *addr)
    }

    /// Forgets addresses that no flow has had in a while.
    pub fn expire_addresses(&mut self, now_ns: u64) {
        self.local_addrs.retain(|_, (_, last_ns)| *last_ns + LOCAL_ADDR_KEEP_NS > now_ns);
    }

    /// A scan begins. Its records follow through [`Self::tcp_record`].
    pub fn scan_begins(&mut self, now_ns: u64) {
        self.scans_ns = [now_ns, self.scans_ns[0], self.scans_ns[1]];
        self.listeners_next.clear();
    }

    /// The scan is complete: what it did not find does not listen any more. `whole`: each socket that it has found is known
    /// now.
    pub fn scan_ends(&mut self, whole: bool, now_ns: u64) {
        if whole {
            self.whole_scan_next.get_or_insert((self.scans_ns[0], now_ns));
        }
        std::mem::swap(&mut self.listeners, &mut self.listeners_next);
        self.listening_ports =
            self.listeners.values().filter(|l| l.proto == Proto::Tcp).map(|l| ((l.netns, l.local.port), ())).collect();
    }

    /// Whose sockets were heard of since the last call; some twice.
    pub fn take_new_owners(&mut self) -> std::vec::Drain<'_, ProcKey> {
        self.new_owners.drain(..)
    }

    /// Whether, since the last call, the report of an accepted connection had to wait because nobody has read from it.
    pub fn take_awaits_owner(&mut self) -> bool {
        std::mem::take(&mut self.awaits_owner)
    }

    /// All that the kernel told of before this moment has been taken.
    pub fn drained_through(&mut self, at_ns: u64) {
        self.drained_through_ns = at_ns;
        if let Some((began_ns, _)) = self.whole_scan_next.take_if(|(_, ended_ns)| *ended_ns <= at_ns) {
            self.whole_scan_ns = began_ns;
        }
    }

    /// The kernel's programs have told of `all` that happened to sockets between the last such moment and this one, or the
    /// kernel left them out now and then, or a ring had no room.
    pub fn told_through(&mut self, at_ns: u64, all: bool) {
        self.told_through_ns = at_ns;
        if !all {
            self.untold_ns = at_ns;
        }
    }

    /// What DNS servers were asked before this moment has been read.
    pub fn questions_through(&mut self, at_ns: u64) {
        self.questions_through_ns = at_ns;
    }

    /// All that happened on the host before this moment is in the table.
    #[must_use]
    pub fn through_ns(&self) -> u64 {
        self.drained_through_ns.min(self.udp_through_ns)
    }

    /// The UDP flow with this name that still lacks the end at `local`.
    fn partner(&self, hash: u64, local: Endpoint, remote: Endpoint) -> Option<u32> {
        let id = *self.pairs.get(&hash)?;
        let flow = self.flows.get(id as usize)?;
        let side = flow.first_side.other();
        (flow.second_end.is_none() && flow.local(side) == local && flow.remote(side) == remote).then_some(id)
    }

    /// Adds the second end to a flow. Its role also settles that of the first. `view`: the 5-tuple as that end sees it.
    fn attach(&mut self, id: u32, end: End, side: Side, view: FlowKey, now_ns: u64) {
        let flow = &mut self.flows[id as usize];
        if flow.first_side == side {
            flow.reverse();
        }
        flow.guessed = false;
        flow.see(side, view);
        flow.active_ns = flow.active_ns.max(end.at_ns);
        flow.second_end = Some(Box::new(end));
        self.new_owners.push(end.owner);
        let (local, netns) = (flow.local(side).addr, end.netns);
        if flow.is_unreported() && flow.ends().any(|end| end.has(End::PRE_EXISTING)) {
            flow.exported = flow.totals();
        }
        let over = flow.all_closed();
        // A name of a TCP connection never comes again; a UDP port does.
        if flow.key.proto == Proto::Tcp {
            let names = std::mem::take(&mut flow.pair_hashes);
            self.unname(id, names);
        }
        self.counts.paired += 1;
        if !self.flows[id as usize].group {
            self.note_local(local, netns, now_ns);
        }
        if over {
            self.schedule_close(id, now_ns);
        }
    }

    /// Enters a new flow, unless the table is full. Who calls counts that.
    fn enter(&mut self, proto: Proto, opened: Opened, end: End, now_ns: u64) -> Option<u32> {
        if !self.make_room(proto, now_ns) {
            return None;
        }
        let key = FlowKey::seen_from(proto, opened.side, opened.local, opened.remote);
        let id = u32::try_from(self.flows.insert(Flow::new(key, end, opened.side, opened.at_ns))).ok()?;
        self.places = self.places.max(id as usize + 1);
        self.note_entered(id, proto);
        self.flows[id as usize].entered_tick = timeouts::tick_of(now_ns);
        self.flows[id as usize].group = opened.group;
        if !opened.group {
            self.note_local(opened.local.addr, end.netns, now_ns);
        }
        self.new_owners.push(end.owner);
        self.counts.created += 1;
        self.timers.schedule(&mut self.flows, id, now_ns + self.timeouts.settle_ns);
        if end.has(End::CLOSED) {
            self.schedule_close(id, now_ns);
        }
        Some(id)
    }

    /// The other end of a host-local connection may still be on its way from another worker.
    fn schedule_close(&mut self, id: u32, now_ns: u64) {
        self.timers.schedule(&mut self.flows, id, now_ns + self.timeouts.close_grace_ns);
    }

    fn note_local(&mut self, addr: Addr, netns: u32, now_ns: u64) {
        if addr.is_loopback() || addr.is_multicast() {
            return;
        }
        // They come again by themselves.
        if self.local_addrs.len() >= LOCAL_ADDRS_MAX && !self.local_addrs.contains_key(&addr) {
            self.local_addrs.clear();
        }
        self.local_addrs.insert(addr, (netns, now_ns));
    }

    /// Whether an address is one of this host, as far as its flows have told.
    fn is_local(&self, addr: Addr) -> bool {
        addr.is_loopback() || self.local_addrs.contains_key(&addr)
    }

    /// Whether an address is one of this host in another namespace, likewise.
    fn is_elsewhere(&self, addr: Addr, netns: u32) -> bool {
        self.local_addrs.get(&addr).is_some_and(|(last_netns, _)| *last_netns != netns)
    }

    fn index(&mut self, id: u32, hashes: [u64; 2]) {
        self.flows[id as usize].pair_hashes = hashes;
        for hash in hashes.into_iter().filter(|hash| *hash != 0) {
            self.pairs.insert(hash, id);
        }
    }

    /// Takes a flow out of the pair index: it is complete (TCP), or gone.
    fn unname(&mut self, id: u32, hashes: [u64; 2]) {
        for hash in hashes.into_iter().filter(|hash| *hash != 0) {
            if self.pairs.get(&hash) == Some(&id) {
                self.pairs.remove(&hash);
            }
        }
    }

    fn remove(&mut self, id: u32) -> Flow {
        let flow = &self.flows[id as usize];
        if flow.key.proto == Proto::Tcp {
            for cookie in flow.ends().map(|end| end.cookie) {
                self.tcp.remove(&self.flows, cookie, id);
                if let Some(before) = self.tcp_before.get_mut(&cookie) {
                    before.retain(|other| *other != id);
                    if before.is_empty() {
                        self.tcp_before.remove(&cookie);
                    }
                }
            }
        }
        let flow = self.flows.remove(id as usize);
        self.note_removed(id, &flow);
        self.unname(id, flow.pair_hashes);
        if flow.key.proto == Proto::Udp {
            self.forget_udp(id, &flow);
            self.meeting.forget(&self.names, id, &flow);
        }
        flow
    }
}

/// A flow at its first record, seen from its local end.
#[derive(Clone, Copy)]
struct Opened {
    local: Endpoint,
    remote: Endpoint,
    side: Side,
    at_ns: u64,
    /// It goes to a multicast or broadcast address.
    group: bool,
}
