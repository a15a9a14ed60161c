//! One worker's share of the truth: what its rings said since the last hand-over. No lock, no system call, and in steady
//! state no allocation per record: tables keep their memory when they are emptied.

use std::hash::Hash;

use hashbrown::HashMap;
use sockeye_bpf::records::{
    CLOSE_RTT, CgroupRecord, CloseRecord, DatagramRecord, FlowRecord, IdentityRecord, KINDS, RTT_BATCH, Record,
    RttRecord, UdpKey, UdpValue, flags,
};
use zerocopy::FromZeros;

use crate::ingest::latest::LatestBySocket;
use crate::ingest::messages::Messages;
use crate::model::flow::{ProcKey, Side};
use crate::model::rtt::{Network, RttHistogram, RttStats, rtt_histogram};

/// Records taken from one ring before the next gets its turn.
pub const VISIT_RECORDS_MAX: usize = 4096;
/// Flows that one shard holds. When it is full the worker hands over early, or leaves records in the ring. With the records of
/// one more visit they are what a hash table of 32,768 places takes.
pub const FLOWS_MAX: usize = 24_576;
/// Flows for which a shard has room without growing: what thousands of connections per second leave between hand-overs.
pub const FLOWS_USUAL: usize = 2048;
/// Groups of round-trip times that one shard holds: 1.5 KB each.
pub const GROUPS_MAX: usize = 512;
/// Process identities that one shard holds.
pub const IDENTITIES_MAX: usize = 1 << 12;

/// Messages of DNS that one shard holds.
pub const MESSAGES_MAX: usize = 1 << 12;

/// Records taken from one CPU's ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// By [`sockeye_bpf::records::Kind`].
    pub delivered: [u64; KINDS],
    /// Entries that were no record: never, unless the two sides of the boundary disagree.
    pub malformed: u64,
    /// The most bytes that one visit found.
    pub fill_bytes_max: u64,
}

/// Round-trip samples of one connection.
#[derive(Debug, Clone, Copy)]
pub struct FlowSamples {
    /// Of its socket.
    pub cookie: u64,
    /// With which the connection began.
    pub seq_local: u32,
    samples_us: [u32; CLOSE_RTT],
    count: u8,
}

impl FlowSamples {
    /// At most as many as a close brings.
    fn new(cookie: u64, seq_local: u32, samples_us: &[u32]) -> Self {
        let mut held = [0; CLOSE_RTT];
        held[..samples_us.len()].copy_from_slice(samples_us);
        Self { cookie, seq_local, samples_us: held, count: samples_us.len() as u8 }
    }

    /// Microseconds.
    #[must_use]
    pub fn samples_us(&self) -> &[u32] {
        &self.samples_us[..usize::from(self.count)]
    }
}

/// Round-trip times by group. Emptied histograms are kept and used again.
pub struct RttGroups<K> {
    used: HashMap<K, RttStats, ahash::RandomState>,
    spare: Vec<RttStats>,
}

impl<K> Default for RttGroups<K> {
    fn default() -> Self {
        Self { used: HashMap::default(), spare: Vec::new() }
    }
}

impl<K: Hash + Eq> RttGroups<K> {
    /// The group's figures, empty at first.
    #[inline]
    pub fn of(&mut self, key: K) -> &mut RttStats {
        self.used.entry(key).or_insert_with(|| self.spare.pop().unwrap_or_default())
    }

    /// All groups.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &RttStats)> {
        self.used.iter()
    }

    fn len(&self) -> usize {
        self.used.len()
    }

    fn clear(&mut self) {
        for (_, mut stats) in self.used.drain() {
            stats.clear();
            self.spare.push(stats);
        }
    }
}

/// What a worker hands to the control thread: a buffer that travels back empty.
pub struct Shard {
    /// The newest record of each TCP socket.
    pub tcp: LatestBySocket,
    /// Last records of connections whose socket connected again within the same shard.
    pub tcp_earlier: Vec<FlowRecord>,
    /// UDP packets that did not fit into the kernel's table.
    pub udp: HashMap<UdpKey, UdpValue, ahash::RandomState>,
    /// UDP sockets that are gone, by cookie.
    pub udp_closed: Vec<u64>,
    /// Processes seen for the first time.
    pub identities: Vec<IdentityRecord>,
    /// Cgroups seen for the first time.
    pub cgroups: Vec<CgroupRecord>,
    /// Messages of DNS, and first data of clients.
    pub payloads: Messages,
    /// Round-trip samples by connection, as they came.
    pub flow_rtt: Vec<FlowSamples>,
    /// Round-trip samples of all sockets.
    pub rtt: RttHistogram,
    /// The same by process and side.
    pub process_rtt: RttGroups<(ProcKey, Side)>,
    /// The same by the peer's network.
    pub peer_rtt: RttGroups<Network>,
    /// Per ring of this worker, in the worker's order.
    pub rings: Vec<(usize, RingCounts)>,
    /// The most flows that it ever held: their memory it keeps.
    held_max: usize,
}

impl Shard {
    /// An empty shard for a worker that drains the rings of these CPUs.
    #[must_use]
    pub fn new(cpus: &[usize]) -> Self {
        Self {
            // One visit may go on for some records when it is full.
            tcp: LatestBySocket::with_capacity(FLOWS_MAX + VISIT_RECORDS_MAX, FLOWS_USUAL),
            tcp_earlier: Vec::new(),
            udp: HashMap::default(),
            udp_closed: Vec::new(),
            identities: Vec::new(),
            cgroups: Vec::new(),
            payloads: Messages::default(),
            flow_rtt: Vec::with_capacity(FLOWS_MAX + VISIT_RECORDS_MAX * RTT_BATCH.div_ceil(CLOSE_RTT)),
            rtt: rtt_histogram(),
            process_rtt: RttGroups::default(),
            peer_rtt: RttGroups::default(),
            rings: cpus.iter().map(|cpu| (*cpu, RingCounts::default())).collect(),
            held_max: 0,
        }
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.held_max = self.held_max.max(self.flows());
        self.tcp.clear();
        self.tcp_earlier.clear();
        self.udp.clear();
        self.udp_closed.clear();
        self.identities.clear();
        self.cgroups.clear();
        self.payloads.clear();
        self.flow_rtt.clear();
        self.rtt.reset();
        self.process_rtt.clear();
        self.peer_rtt.clear();
        for (_, counts) in &mut self.rings {
            *counts = RingCounts::default();
        }
    }

    /// Flows in it.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.tcp.records().len() + self.tcp_earlier.len() + self.udp.len()
    }

    #[cfg(test)]
    pub(crate) fn held_max(&self) -> usize {
        self.held_max
    }

    /// An empty one gives its memory back, if it is that of many more flows than are needed.
    pub fn shrink(&mut self, needed: usize) {
        if self.held_max > 2 * needed {
            let cpus: Vec<usize> = self.rings.iter().map(|(cpu, _)| *cpu).collect();
            *self = Self::new(&cpus);
        }
    }

    /// Whether no more records may be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        (self.flows() + self.udp_closed.len()).max(self.flow_rtt.len()) >= FLOWS_MAX
            || self.identities.len().max(self.cgroups.len()) >= IDENTITIES_MAX
            || self.payloads.len() >= MESSAGES_MAX
            || self.process_rtt.len().max(self.peer_rtt.len()) >= GROUPS_MAX
    }

    /// Whether a hand-over would tell anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rings.iter().all(|(_, counts)| *counts == RingCounts::default())
    }

    /// Takes one ring entry, from the `ring`-th ring of this worker.
    #[inline]
    pub fn record(&mut self, ring: usize, bytes: &[u8]) {
        let counts = &mut self.rings[ring].1;
        let Some(record) = Record::parse(bytes) else {
            counts.malformed += 1;
            return;
        };
        counts.delivered[usize::from(bytes[0])] += 1;
        match record {
            Record::Flow(flow) => self.flow(flow),
            Record::Close(close) => self.close(close),
            Record::Rtt(rtt) => self.rtt(rtt),
            Record::Datagram(datagram) => self.datagram(datagram),
            Record::UdpClose(close) => self.udp_closed.push(close.cookie),
            Record::Identity(identity) => self.identities.push(*identity),
            Record::Cgroup(cgroup) => self.cgroups.push(*cgroup),
            Record::Payload(message) => self.payloads.push(&message),
        }
    }

    #[inline]
    fn flow(&mut self, new: &FlowRecord) {
        self.tcp.put(new, &mut self.tcp_earlier);
    }

    /// Takes the last figures of a connection, and the samples that came with them.
    #[inline]
    pub fn close(&mut self, close: &CloseRecord) {
        let flow = &close.flow;
        self.flow(flow);
        if close.samples_us[0] != 0 {
            let owner = ProcKey::new(flow.pid, flow.start_ticks, flow.flags);
            self.flow_rtt.push(FlowSamples::new(flow.cookie, flow.seq_local, close.samples_us()));
            self.samples(owner, flow.flags, flow.remote_addr, close.samples_us());
        }
    }

    #[inline]
    fn rtt(&mut self, batch: &RttRecord) {
        let owner = ProcKey::new(batch.pid, batch.start_ticks, batch.flags);
        let samples_us = &batch.samples_us[..usize::from(batch.count).min(RTT_BATCH)];
        for part in samples_us.chunks(CLOSE_RTT) {
            self.flow_rtt.push(FlowSamples::new(batch.cookie, batch.seq_local, part));
        }
        self.samples(owner, batch.flags, batch.remote_addr, samples_us);
    }

    fn samples(&mut self, owner: ProcKey, role: u8, remote: [u8; 16], samples_us: &[u32]) {
        for sample in samples_us {
            self.rtt.saturating_record(u64::from(*sample).max(1));
        }
        let initiator = role & flags::ROLE_MASK == flags::ROLE_INITIATOR;
        let side = if initiator { Side::Initiator } else { Side::Responder };
        self.process_rtt.of((owner, side)).record(samples_us);
        self.peer_rtt.of(Network::of(remote)).record(samples_us);
    }

    #[inline]
    fn datagram(&mut self, d: &DatagramRecord) {
        let value = self.udp.entry(d.key).or_insert_with(|| {
            let mut fresh = UdpValue::new_zeroed();
            fresh.first_ns = d.at_ns;
            fresh.first_sent = d.sent;
            fresh.pid = d.pid;
            fresh.start_ticks = d.start_ticks;
            fresh.flags = d.flags;
            fresh
        });
        if d.sent != 0 {
            value.bytes_sent = value.bytes_sent.saturating_add(d.bytes);
            value.packets_sent = value.packets_sent.saturating_add(d.packets);
        } else {
            value.bytes_received = value.bytes_received.saturating_add(d.bytes);
            value.packets_received = value.packets_received.saturating_add(d.packets);
        }
        value.last_ns = value.last_ns.max(d.at_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sockeye_bpf::records::Kind;
    use zerocopy::IntoBytes;

    fn scan(cookie: u64, at_ns: u64) -> FlowRecord {
        let mut r = FlowRecord::new_zeroed();
        r.kind = Kind::Scan as u8;
        r.cookie = cookie;
        r.at_ns = at_ns;
        r
    }

    fn close(cookie: u64, at_ns: u64) -> CloseRecord {
        let flow = FlowRecord { kind: Kind::Close as u8, ..scan(cookie, at_ns) };
        CloseRecord { flow, samples_us: [0; _] }
    }

    #[test]
    fn newest_record_wins_whatever_the_order() {
        let (live, close) = (scan(1, 10), close(1, 20));
        for order in [[live.as_bytes(), close.as_bytes()], [close.as_bytes(), live.as_bytes()]] {
            let mut shard = Shard::new(&[0]);
            order.iter().for_each(|r| shard.record(0, r));
            assert_eq!(shard.tcp.records(), [close.flow]);
            assert!(shard.tcp_earlier.is_empty());
        }
    }

    #[test]
    fn close_survives_a_new_connection_of_the_same_socket() {
        let mut shard = Shard::new(&[0]);
        let (first, second) = (close(1, 20), close(1, 30));
        shard.record(0, first.as_bytes());
        shard.record(0, second.as_bytes());
        assert_eq!((shard.tcp.records(), shard.tcp_earlier.as_slice()), (&[second.flow][..], &[first.flow][..]));
    }

    #[test]
    fn samples_come_with_the_close() {
        let mut shard = Shard::new(&[0]);
        let mut last = close(1, 20);
        last.samples_us[..2].copy_from_slice(&[300, 500]);
        shard.record(0, last.as_bytes());
        assert_eq!((shard.rtt.len(), shard.rtt.max()), (2, 501));
        assert_eq!((shard.flow_rtt[0].cookie, shard.flow_rtt[0].samples_us()), (1, &[300, 500][..]));
        assert_eq!(shard.process_rtt.iter().count(), 1);
    }

    #[test]
    fn counters_of_datagrams_stop_at_their_end() {
        let mut shard = Shard::new(&[0]);
        let mut datagram = DatagramRecord::new_zeroed();
        (datagram.kind, datagram.packets, datagram.bytes) = (Kind::Datagram as u8, u32::MAX, u64::MAX);
        for sent in [0, 0, 1, 1] {
            datagram.sent = sent;
            shard.record(0, datagram.as_bytes());
        }
        let value = shard.udp[&datagram.key];
        assert_eq!((value.bytes_sent, value.bytes_received), (u64::MAX, u64::MAX));
        assert_eq!((value.packets_sent, value.packets_received), (u32::MAX, u32::MAX));
    }

    #[test]
    fn clear_keeps_nothing() {
        let mut shard = Shard::new(&[3]);
        shard.record(0, close(1, 1).as_bytes());
        shard.record(0, b"\xff");
        assert_eq!((shard.rings[0].1.delivered[0], shard.rings[0].1.malformed), (1, 1));
        shard.clear();
        assert!(shard.is_empty() && shard.tcp.records().is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_counted_and_harmless(entry in proptest::collection::vec(any::<u8>(), 0..900)) {
            let mut words = vec![0u64; entry.len().div_ceil(8)];
            let aligned = &mut words.as_mut_bytes()[..entry.len()];
            aligned.copy_from_slice(&entry);
            let mut shard = Shard::new(&[0]);
            shard.record(0, aligned);
            let counts = shard.rings[0].1;
            prop_assert_eq!(counts.malformed + counts.delivered.iter().sum::<u64>(), 1);
        }
    }
}
