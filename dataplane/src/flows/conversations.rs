//! Who talks to whom: figures of each pair of programs on this host, or of a program and a network elsewhere.
//!
//! Bounded: when there are too many, those that were quiet for longest are added to all others. Nothing is lost by it, only
//! its detail.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::flows::report::FlowReport;
use crate::model::flow::{Endpoint, Side};
use crate::model::history::History;
use crate::model::rate::{Rates, Window};
use crate::model::rtt::{Network, RttStats};
use crate::owners::process::Process;
use crate::owners::workload::Workload;

/// Pairs with figures of their own.
pub const CONVERSATIONS_MAX: usize = 2048;
/// Of a full table, one in so many makes room at once.
const FORGET_SHARE: usize = 8;

/// One side of a conversation: all processes of a name in a cgroup, or a network that is not on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Here { cgroup_id: u64, name: u64 },
    Elsewhere(Network),
}

/// What is shown of one side.
#[derive(Debug, Clone)]
pub struct Talker {
    /// The network of its address.
    pub network: Network,
    /// It is on this host.
    pub is_local: bool,
    /// The last process.
    pub process: Option<Arc<Process>>,
    /// Where that lives.
    pub workload: Option<Arc<Workload>>,
}

/// Kinds of figures that have a rate: bytes from the initiator, bytes to it, packets of both directions, new flows.
pub const RATES: usize = 4;

/// Figures of a pair since the agent was started. Pairs of numbers are of the initiator and the responder.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Flows that were reported.
    pub flows: u64,
    /// Payload sent by each.
    pub bytes: [u64; 2],
    /// Segments and datagrams sent by each.
    pub packets: [u64; 2],
    /// Segments that each sent again, where it is on this host.
    pub retrans: [u64; 2],
    /// Smoothed round-trip times as each measured them, one of each report.
    pub rtt: [Option<Box<RttStats>>; 2],
    /// What came lately.
    pub rates: Rates<RATES>,
    /// What came in the last minutes, from the first traffic on: bytes from the initiator, to it, new flows.
    pub history: Option<Box<History<3>>>,
    last_ns: u64,
}

impl Figures {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.flows += other.flows;
        for i in 0..2 {
            self.bytes[i] += other.bytes[i];
            self.packets[i] += other.packets[i];
            self.retrans[i] += other.retrans[i];
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
        self.last_ns = self.last_ns.max(other.last_ns);
    }

    fn account(&mut self, report: &FlowReport, window: Window, now_ns: u64) {
        let (delta, first) = (&report.delta, u64::from(report.first));
        self.flows += first;
        for i in 0..2 {
            self.bytes[i] += delta.bytes[i];
            self.packets[i] += delta.packets[i];
            self.retrans[i] += u64::from(delta.retrans[i]);
            if let Some((srtt_us, _)) = report.rtt_us[i] {
                self.rtt[i].get_or_insert_default().record(&[srtt_us]);
            }
        }
        self.rates.add([delta.bytes[0], delta.bytes[1], delta.packets.iter().sum(), first], window, now_ns);
        let amounts = [delta.bytes[0], delta.bytes[1], first];
        if self.history.is_some() || amounts != [0; 3] {
            self.history.get_or_insert_default().add(amounts, now_ns);
        }
        self.last_ns = now_ns;
    }
}

/// A pair, and what it did.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Initiator and responder.
    pub talkers: [Talker; 2],
    /// What the initiator asked for, where something else has answered.
    pub service: Option<Endpoint>,
    /// What the responder is called, by what the initiator has asked DNS.
    pub name: Option<Arc<str>>,
    /// How much.
    pub figures: Figures,
}

/// The last: a hash of the name.
type Key = ([Who; 2], Option<Endpoint>, Option<u64>);

/// All conversations. Owned by the control thread.
#[derive(Default)]
pub struct Conversations {
    pairs: HashMap<Key, Conversation, ahash::RandomState>,
    others: Figures,
    window: Window,
    forgotten: u64,
}

impl Conversations {
    /// None yet.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self { window, ..Self::default() }
    }

    /// Adds what a report tells.
    pub fn account(&mut self, report: &FlowReport, now_ns: u64) {
        let hasher = self.pairs.hasher();
        let who = Side::BOTH.map(|side| who(report, side, hasher));
        let service = report.translated.as_ref().map(|_| report.key.responder);
        let name = report.peer_name.as_ref().and_then(|name| name.sole());
        let key = (who, service, name.map(|name| hasher.hash_one(name)));
        if let Some(known) = self.pairs.get_mut(&key) {
            known.figures.account(report, self.window, now_ns);
            for side in Side::BOTH {
                known.talkers[side as usize].learn(report, side);
            }
            return;
        }
        if self.pairs.len() >= CONVERSATIONS_MAX {
            self.make_room();
        }
        let mut figures = Figures::default();
        figures.account(report, self.window, now_ns);
        let talkers = Side::BOTH.map(|side| Talker::new(report, side));
        self.pairs.insert(key, Conversation { talkers, service, name: name.cloned(), figures });
    }

    /// Those that were quiet for longest become others.
    fn make_room(&mut self) {
        let mut last: Vec<u64> = self.pairs.values().map(|pair| pair.figures.last_ns).collect();
        let (_, &mut bound_ns, _) = last.select_nth_unstable(CONVERSATIONS_MAX / FORGET_SHARE - 1);
        // Many may have the same moment: no more than needed.
        let mut left = CONVERSATIONS_MAX / FORGET_SHARE;
        let others = &mut self.others;
        let forgotten = &mut self.forgotten;
        self.pairs.retain(|_, pair| {
            let goes = pair.figures.last_ns <= bound_ns && left > 0;
            if goes {
                left -= 1;
                *forgotten += 1;
                others.add(&pair.figures);
            }
            !goes
        });
    }

    /// Those with figures of their own.
    pub fn iter(&self) -> impl Iterator<Item = &Conversation> {
        self.pairs.values()
    }

    /// All others together.
    #[must_use]
    pub fn others(&self) -> &Figures {
        &self.others
    }

    /// Pairs that have become others.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

fn who(report: &FlowReport, side: Side, hasher: &ahash::RandomState) -> Who {
    if !report.local[side as usize] {
        return Who::Elsewhere(Network::of(report.key.endpoint(side).addr.0));
    }
    match &report.current()[side as usize].process {
        Some(process) => Who::Here { cgroup_id: process.cgroup_id, name: hasher.hash_one(&process.name) },
        None => Who::Here { cgroup_id: 0, name: 0 },
    }
}

impl Talker {
    fn new(report: &FlowReport, side: Side) -> Self {
        let identity = &report.current()[side as usize];
        Self {
            network: Network::of(report.key.endpoint(side).addr.0),
            is_local: report.local[side as usize],
            process: identity.process.clone(),
            workload: identity.workload.clone(),
        }
    }

    /// More may be known of it by now, or another name.
    fn learn(&mut self, report: &FlowReport, side: Side) {
        let identity = &report.current()[side as usize];
        let is_new = |old: Option<*const Workload>, new: Option<*const Workload>| new.is_some() && old != new;
        if is_new(self.workload.as_ref().map(Arc::as_ptr), identity.workload.as_ref().map(Arc::as_ptr)) {
            self.workload.clone_from(&identity.workload);
            self.process.clone_from(&identity.process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::report::Identity;
    use crate::flows::report::Opening;
    use crate::model::flow::{Addr, Counters, FlowKey, ProcKey, Proto, State};

    fn report(network: [u8; 3]) -> FlowReport {
        let endpoint = |addr: [u8; 4]| Endpoint { addr: Addr::from(std::net::IpAddr::from(addr)), port: 1 };
        let [a, b, c] = network;
        FlowReport {
            key: FlowKey { proto: Proto::Tcp, initiator: endpoint([10, 0, 0, 1]), responder: endpoint([a, b, c, 1]) },
            translated: None,
            first_unix_ns: 0,
            since_unix_ns: 0,
            last_unix_ns: 0,
            delta: Counters { bytes: [10, 20], retrans: [1, 0], ..Counters::default() },
            total: Counters::default(),
            bypassed: false,
            rtt_us: [Some((500, 1)), None],
            local: [true, false],
            owners: [ProcKey::default(); 2],
            changed: None,
            identity: [Identity::default(), Identity::default()],
            rtt_samples: None,
            window_max: [0; 2],
            congestion: [None; 2],
            first: true,
            ended: false,
            connecting: false,
            state: State::Open,
            reset_by: None,
            peer_name: None,
            dns: None,
            hello: None,
            opening: Opening::default(),
        }
    }

    #[test]
    fn what_becomes_others_is_not_lost() {
        let mut conversations = Conversations::default();
        for number in 0..CONVERSATIONS_MAX as u32 + 100 {
            let [_, a, b, c] = number.to_be_bytes();
            conversations.account(&report([a, b, c]), u64::from(number) + 1);
        }
        assert!(conversations.iter().count() <= CONVERSATIONS_MAX);
        let mut all = conversations.others().clone();
        conversations.iter().for_each(|pair| all.add(&pair.figures));
        let flows = CONVERSATIONS_MAX as u64 + 100;
        assert_eq!((all.flows, all.bytes, all.retrans), (flows, [flows * 10, flows * 20], [flows, 0]));
        assert_eq!(conversations.forgotten(), 256);
        // The quiet ones have gone.
        assert!(conversations.iter().all(|pair| pair.figures.last_ns > 256));
    }
}
