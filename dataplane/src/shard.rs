//! One worker's share of the truth: what its rings said since the last hand-over. No lock, no system call, and in steady
//! state no allocation per record: tables keep their memory when they are emptied.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use hdrhistogram::Histogram;
use sockeye_bpf::records::{
    DatagramRecord, FlowRecord, IdentityRecord, KINDS, Kind, Record, RttRecord, UdpKey, UdpValue,
};
use zerocopy::FromZeros;

/// Round-trip times in microseconds, 1 us to 60 s, two significant digits (1 %): about 20 KB.
pub type RttHistogram = Histogram<u64>;

/// Longest round-trip time that is told apart, microseconds.
pub const RTT_MAX_US: u64 = 60_000_000;
/// Flows that one delta holds. When it is full the worker hands over early, or leaves records in the ring.
pub const FLOWS_MAX: usize = 1 << 15;
/// Process identities that one delta holds.
pub const IDENTITIES_MAX: usize = 1 << 12;

/// An empty histogram with the bounds that all of sockeye uses, so that they can be merged.
#[must_use]
pub fn rtt_histogram() -> RttHistogram {
    Histogram::new_with_bounds(1, RTT_MAX_US, 2).expect("the bounds are constants that hdrhistogram accepts")
}

/// Records taken from one CPU's ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingCounts {
    /// By [`Kind`].
    pub delivered: [u64; KINDS],
    /// Entries that were no record: never, unless the two sides of the boundary disagree.
    pub malformed: u64,
    /// The most bytes that one visit found.
    pub fill_bytes_max: u64,
}

/// What a worker hands to the control thread: a box that travels back empty.
pub struct Delta {
    /// The newest record of each TCP socket, by cookie.
    pub tcp: HashMap<u64, FlowRecord, ahash::RandomState>,
    /// Last records of connections whose socket connected again within the same delta.
    pub tcp_earlier: Vec<FlowRecord>,
    /// UDP packets that did not fit into the kernel's table.
    pub udp: HashMap<UdpKey, UdpValue, ahash::RandomState>,
    /// UDP sockets that are gone, by cookie.
    pub udp_closed: Vec<u64>,
    /// Processes seen for the first time.
    pub identities: Vec<IdentityRecord>,
    /// Round-trip samples of all sockets.
    pub rtt: RttHistogram,
    /// Per ring of this worker, in the worker's order.
    pub rings: Vec<(usize, RingCounts)>,
}

impl Delta {
    /// An empty delta for a worker that drains the rings of these CPUs.
    #[must_use]
    pub fn new(cpus: &[usize]) -> Self {
        Self {
            tcp: HashMap::default(),
            tcp_earlier: Vec::new(),
            udp: HashMap::default(),
            udp_closed: Vec::new(),
            identities: Vec::new(),
            rtt: rtt_histogram(),
            rings: cpus.iter().map(|cpu| (*cpu, RingCounts::default())).collect(),
        }
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.tcp.clear();
        self.tcp_earlier.clear();
        self.udp.clear();
        self.udp_closed.clear();
        self.identities.clear();
        self.rtt.reset();
        for (_, counts) in &mut self.rings {
            *counts = RingCounts::default();
        }
    }

    /// Whether no more records may be added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.tcp.len() + self.tcp_earlier.len() + self.udp.len() + self.udp_closed.len() >= FLOWS_MAX
            || self.identities.len() >= IDENTITIES_MAX
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
            Record::Rtt(rtt) => self.rtt(rtt),
            Record::Datagram(datagram) => self.datagram(datagram),
            Record::UdpClose(close) => self.udp_closed.push(close.cookie),
            Record::Identity(identity) => self.identities.push(*identity),
        }
    }

    /// Keeps the newest record of a socket. Counters are absolute, so nothing is lost by forgetting the older one,
    /// unless it closed a connection and the same socket has opened another since.
    #[inline]
    fn flow(&mut self, new: &FlowRecord) {
        match self.tcp.entry(new.cookie) {
            Entry::Vacant(slot) => {
                slot.insert(*new);
            }
            Entry::Occupied(mut slot) => {
                let old = *slot.get();
                let (first, last) = if old.at_ns <= new.at_ns { (&old, new) } else { (new, &old) };
                if first.kind == Kind::Close as u8 {
                    self.tcp_earlier.push(*first);
                }
                *slot.get_mut() = *last;
            }
        }
    }

    #[inline]
    fn rtt(&mut self, batch: &RttRecord) {
        for sample in batch.samples_us.iter().take(usize::from(batch.count)) {
            self.rtt.saturating_record(u64::from(*sample).max(1));
        }
    }

    #[inline]
    fn datagram(&mut self, d: &DatagramRecord) {
        let value = self.udp.entry(d.key).or_insert_with(|| {
            let mut fresh = UdpValue::new_zeroed();
            fresh.first_ns = d.at_ns;
            fresh.first_sent = d.sent;
            fresh.pid = d.pid;
            fresh.start_ticks = d.start_ticks;
            fresh
        });
        if d.sent != 0 {
            value.bytes_sent += d.bytes;
            value.packets_sent += d.packets;
        } else {
            value.bytes_received += d.bytes;
            value.packets_received += d.packets;
        }
        value.last_ns = value.last_ns.max(d.at_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn flow(kind: Kind, cookie: u64, at_ns: u64) -> FlowRecord {
        let mut r = FlowRecord::new_zeroed();
        r.kind = kind as u8;
        r.cookie = cookie;
        r.at_ns = at_ns;
        r
    }

    #[test]
    fn newest_record_wins_whatever_the_order() {
        let (open, close) = (flow(Kind::Open, 1, 10), flow(Kind::Close, 1, 20));
        for order in [[open, close], [close, open]] {
            let mut delta = Delta::new(&[0]);
            order.iter().for_each(|r| delta.record(0, r.as_bytes()));
            assert_eq!(delta.tcp[&1], close);
            assert!(delta.tcp_earlier.is_empty());
        }
    }

    #[test]
    fn close_survives_a_new_connection_of_the_same_socket() {
        let mut delta = Delta::new(&[0]);
        let (close, again) = (flow(Kind::Close, 1, 20), flow(Kind::Open, 1, 30));
        delta.record(0, close.as_bytes());
        delta.record(0, again.as_bytes());
        assert_eq!((delta.tcp[&1], delta.tcp_earlier.as_slice()), (again, &[close][..]));
    }

    #[test]
    fn clear_keeps_nothing() {
        let mut delta = Delta::new(&[3]);
        delta.record(0, flow(Kind::Open, 1, 1).as_bytes());
        delta.record(0, b"\xff");
        assert_eq!((delta.rings[0].1.delivered[0], delta.rings[0].1.malformed), (1, 1));
        delta.clear();
        assert!(delta.is_empty() && delta.tcp.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_counted_and_harmless(entry in proptest::collection::vec(any::<u8>(), 0..900)) {
            let mut words = vec![0u64; entry.len().div_ceil(8)];
            let aligned = &mut words.as_mut_bytes()[..entry.len()];
            aligned.copy_from_slice(&entry);
            let mut delta = Delta::new(&[0]);
            delta.record(0, aligned);
            let counts = delta.rings[0].1;
            prop_assert_eq!(counts.malformed + counts.delivered.iter().sum::<u64>(), 1);
        }
    }
}
