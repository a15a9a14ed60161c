//! Figures per process, per workload (container, pod, service) and per peer network: what they did, and how slow their
//! network was.
//!
//! Bounded: a process that is over, or one too many, is added to the figures of its place, and a peer network too many
//! to those of all others. Nothing that was measured is lost by it, only its detail.

use crate::model::history::History;
use crate::model::rate::{Rates, Window};
use crate::model::rtt::{Network, RttStats};
use hashbrown::HashMap;

use crate::flows::report::FlowReport;
use crate::model::flow::{Counters, ProcKey, Side};
use crate::owners::process::ProcessTable;

/// Processes with figures of their own.
pub const PROCESSES_MAX: usize = 4096;
/// Peer networks with figures of their own.
pub const PEERS_MAX: usize = 1024;
/// How long a process keeps its own figures after its last sign of life, nanoseconds.
const KEEP_NS: u64 = 120_000_000_000;

/// What was done on one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Flows that were reported.
    pub flows: u64,
    /// Payload sent.
    pub bytes_sent: u64,
    /// Payload received.
    pub bytes_received: u64,
    /// Segments and datagrams sent.
    pub packets_sent: u64,
    /// Segments and datagrams received.
    pub packets_received: u64,
    /// Segments that it sent again.
    pub retrans: u64,
}

impl Activity {
    /// Of a side, from counters of both; `flows` is how many they are of.
    #[must_use]
    pub fn of(side: Side, counters: &Counters, flows: u64) -> Self {
        let (i, peer) = (side as usize, side.other() as usize);
        Self {
            flows,
            bytes_sent: counters.bytes[i],
            bytes_received: counters.bytes[peer],
            packets_sent: counters.packets[i],
            packets_received: counters.packets[peer],
            retrans: counters.retrans[i].into(),
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.packets_sent += other.packets_sent;
        self.packets_received += other.packets_received;
        self.retrans += other.retrans;
    }
}

/// Kinds of figures that have a rate: bytes sent, bytes received, packets of both directions, new flows.
pub const RATES: usize = 4;

/// Figures of somebody, as initiator and as responder (indexed by [`Side`]), since the agent was started.
#[derive(Debug, Clone, Default)]
pub struct Aggregate {
    /// What it did.
    pub activity: [Activity; 2],
    /// Its round-trip times.
    pub rtt: [Option<Box<RttStats>>; 2],
    /// What came lately, on both sides.
    pub rates: Rates<RATES>,
    /// What came in the last minutes, from the first traffic on: bytes sent, bytes received, new flows.
    pub history: Option<Box<History<3>>>,
    last_ns: u64,
}

/// Kinds of figures of the host: payload that left it, that came, that stayed on it, packets, new flows.
pub const HOST_RATES: usize = 5;

/// What the host did lately.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// As [`HOST_RATES`] says.
    pub rates: Rates<HOST_RATES>,
    /// The same without packets.
    pub history: History<4>,
}

impl Host {
    fn account(&mut self, report: &FlowReport, window: Window, now_ns: u64) {
        let (bytes, flows) = (&report.delta.bytes, u64::from(report.first));
        let [out, into, stays] = match report.local {
            [true, true] => [0, 0, bytes[0] + bytes[1]],
            [true, false] => [bytes[0], bytes[1], 0],
            [false, _] => [bytes[1], bytes[0], 0],
        };
        self.rates.add([out, into, stays, report.delta.packets.iter().sum(), flows], window, now_ns);
        self.history.add([out, into, stays, flows], now_ns);
    }
}

impl Aggregate {
    /// It has done something.
    #[must_use]
    pub fn has_figures(&self) -> bool {
        self.activity.iter().any(|activity| *activity != Activity::default()) || self.rtt.iter().any(Option::is_some)
    }

    /// Adds another's figures.
    pub fn add(&mut self, other: &Self) {
        self.last_ns = self.last_ns.max(other.last_ns);
        for i in 0..2 {
            self.activity[i].add(&other.activity[i]);
            if let Some(rtt) = &other.rtt[i] {
                self.rtt[i].get_or_insert_default().add(rtt);
            }
        }
        self.rates.add_all(&other.rates);
        if let Some(history) = &other.history {
            match &mut self.history {
                Some(own) => own.add_all(history),
                none => *none = Some(history.clone()),
            }
        }
    }
}

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// All aggregates. Owned by the control thread.
#[derive(Default)]
pub struct Aggregates {
    processes: Map<ProcKey, Aggregate>,
    /// By cgroup: what its forgotten processes did. 0 = the workload is not known.
    workloads: Map<u64, Aggregate>,
    peers: Map<Network, RttStats>,
    other_peers: RttStats,
    host: Host,
    window: Window,
    rolled_up: u64,
    peers_refused: u64,
}

impl Aggregates {
    /// None yet.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self { window, ..Self::default() }
    }

    /// Of what time the rates are.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// What the host did lately.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Adds a shard's round-trip times of a process.
    pub fn process_rtt(&mut self, key: ProcKey, side: Side, rtt: &RttStats, processes: &ProcessTable, now_ns: u64) {
        self.aggregate(key, processes, now_ns).rtt[side as usize].get_or_insert_default().add(rtt);
    }

    /// Adds a shard's round-trip times to a peer network.
    pub fn peer_rtt(&mut self, network: Network, rtt: &RttStats) {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&network) {
            self.peers_refused += 1;
            self.other_peers.add(rtt);
        } else {
            self.peers.entry(network).or_default().add(rtt);
        }
    }

    /// Adds what a report tells.
    pub fn account(&mut self, report: &FlowReport, processes: &ProcessTable, now_ns: u64) {
        self.host.account(report, self.window, now_ns);
        for side in Side::BOTH.into_iter().filter(|side| report.local[*side as usize]) {
            let i = side as usize;
            let activity = Activity::of(side, &report.delta, u64::from(report.first));
            let window = self.window;
            let aggregate = self.aggregate(report.owners[i], processes, now_ns);
            aggregate.activity[i].add(&activity);
            let packets = activity.packets_sent + activity.packets_received;
            let amounts = [activity.bytes_sent, activity.bytes_received, packets, activity.flows];
            aggregate.rates.add(amounts, window, now_ns);
            let amounts = [activity.bytes_sent, activity.bytes_received, activity.flows];
            if aggregate.history.is_some() || amounts != [0; 3] {
                aggregate.history.get_or_insert_default().add(amounts, now_ns);
            }
        }
    }

    /// The aggregate of a process, or that of its workload if there are too many.
    fn aggregate(&mut self, key: ProcKey, processes: &ProcessTable, now_ns: u64) -> &mut Aggregate {
        let full = self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&key);
        let aggregate = if full || !key.is_known() {
            self.rolled_up += u64::from(full);
            self.workloads.entry(workload_of(key, processes)).or_default()
        } else {
            self.processes.entry(key).or_default()
        };
        aggregate.last_ns = now_ns;
        aggregate
    }

    /// Adds processes that have been quiet, or the quietest of too many, to their workloads. Call it before the table of
    /// processes forgets where they lived.
    pub fn roll_up(&mut self, processes: &ProcessTable, now_ns: u64) {
        let mut keep_ns = KEEP_NS;
        while keep_ns > 1_000_000_000 && self.quieter_than(keep_ns, now_ns) * 4 > PROCESSES_MAX * 3 {
            keep_ns /= 2;
        }
        let workloads = &mut self.workloads;
        self.processes.retain(|key, aggregate| {
            let stays = aggregate.last_ns + keep_ns > now_ns;
            if !stays {
                workloads.entry(workload_of(*key, processes)).or_default().add(aggregate);
            }
            stays
        });
        // Where nobody knows any more where it was, it is one of the others.
        let gone: Vec<u64> =
            workloads.keys().copied().filter(|id| *id != 0 && processes.workloads.peek(*id).is_none()).collect();
        for id in gone {
            if let Some(aggregate) = workloads.remove(&id) {
                workloads.entry(0).or_default().add(&aggregate);
            }
        }
    }

    /// How many processes would stay.
    fn quieter_than(&self, keep_ns: u64, now_ns: u64) -> usize {
        self.processes.values().filter(|aggregate| aggregate.last_ns + keep_ns > now_ns).count()
    }

    /// Processes with figures of their own.
    pub fn processes(&self) -> impl Iterator<Item = (ProcKey, &Aggregate)> {
        self.processes.iter().map(|(key, aggregate)| (*key, aggregate))
    }

    /// Everything by cgroup: its processes, and what those did that are forgotten. 0 = not known where.
    #[must_use]
    pub fn by_workload(&self, processes: &ProcessTable) -> Map<u64, Aggregate> {
        let mut workloads = self.workloads.clone();
        for (key, aggregate) in &self.processes {
            workloads.entry(workload_of(*key, processes)).or_default().add(aggregate);
        }
        workloads
    }

    /// Peer networks, and all others together.
    pub fn peers(&self) -> (impl Iterator<Item = (Network, &RttStats)>, &RttStats) {
        (self.peers.iter().map(|(network, rtt)| (*network, rtt)), &self.other_peers)
    }

    /// How often figures of a process went to its place at once, and those of a peer network to "other".
    #[must_use]
    pub fn refused(&self) -> (u64, u64) {
        (self.rolled_up, self.peers_refused)
    }
}

fn workload_of(key: ProcKey, processes: &ProcessTable) -> u64 {
    processes.peek(key).map_or(0, |process| process.cgroup_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::process::Process;
    use std::net::IpAddr;

    use crate::model::flow::Addr;

    #[test]
    fn a_forgotten_process_lives_on_in_its_place() {
        let mut processes = ProcessTable::default();
        let key = ProcKey { pid: 5, start_ticks: 1, exec: 0 };
        processes.workloads.learn(9, "/system.slice/a.service", 0);
        processes.learn(Process { key, name: "p".into(), cgroup_id: 9, ..Process::default() }, 0);
        let mut aggregates = Aggregates::default();
        let mut rtt = RttStats::default();
        rtt.record(&[20_000; 10]);
        aggregates.process_rtt(key, Side::Initiator, &rtt, &processes, 0);
        aggregates.roll_up(&processes, KEEP_NS + 1);
        assert_eq!(aggregates.processes().count(), 0);
        aggregates.process_rtt(key, Side::Initiator, &rtt, &processes, KEEP_NS + 2);
        let workload = &aggregates.by_workload(&processes)[&9];
        assert_eq!(workload.rtt[0].as_ref().unwrap().samples(), 20);
    }

    #[test]
    fn what_is_too_much_is_counted_and_not_lost() {
        let processes = ProcessTable::default();
        let mut aggregates = Aggregates::default();
        let mut rtt = RttStats::default();
        rtt.record(&[5]);
        for i in 0..PROCESSES_MAX as u32 + 10 {
            aggregates.process_rtt(
                ProcKey { pid: i + 1, start_ticks: 0, exec: 0 },
                Side::Responder,
                &rtt,
                &processes,
                1,
            );
        }
        for i in 0..PEERS_MAX as u32 + 10 {
            let [a, b, c, d] = (i << 8).to_be_bytes();
            aggregates.peer_rtt(Network::of(Addr::from(IpAddr::from([a, b, c, d])).0), &rtt);
        }
        assert_eq!(aggregates.refused(), (10, 10));
        let total: u64 =
            aggregates.by_workload(&processes).values().map(|g| g.rtt[1].as_ref().unwrap().samples()).sum();
        assert_eq!(total, PROCESSES_MAX as u64 + 10);
        assert_eq!(aggregates.peers().1.samples(), 10);
        aggregates.roll_up(&processes, 1_000_000_010);
        assert!(aggregates.processes().count() <= PROCESSES_MAX);
    }
}
