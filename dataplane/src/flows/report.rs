//! What exporters get of a flow.

use std::sync::Arc;

use crate::model::flow::{Counters, FlowKey, ProcKey, Side, State};
use crate::model::rtt::RttSummary;
use crate::names::hello::Hello;
use crate::names::service::Last;
use crate::names::table::PeerName;
use crate::owners::process::Process;
use crate::owners::workload::Workload;

/// Who uses the socket on one side of a flow, and where.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The process, where it is known.
    pub process: Option<Arc<Process>>,
    /// Where it lives.
    pub workload: Option<Arc<Workload>>,
}

/// The same entries of the tables: what was learnt since makes another one.
impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
        }
        same(self.process.as_ref(), other.process.as_ref()) && same(self.workload.as_ref(), other.workload.as_ref())
    }
}

impl Identity {
    /// Whether there is anything to tell.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.process.is_some() || self.workload.is_some()
    }
}

impl FlowReport {
    /// Who uses the sockets now.
    #[must_use]
    pub fn current(&self) -> &[Identity; 2] {
        self.changed.as_deref().unwrap_or(&self.identity)
    }
}

/// How a flow was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Opening {
    /// `CLOCK_BOOTTIME` nanoseconds; 0 = before the agent.
    pub at_ns: u64,
    /// The initiator's socket, 0 = not on this host.
    pub cookie: u64,
    /// Its network namespace.
    pub netns: u32,
    /// Where the table has the flow.
    pub place: u32,
}

/// What exporters get: one flow at one moment.
#[derive(Debug, Clone)]
pub struct FlowReport {
    /// The 5-tuple as the initiator sees it.
    pub key: FlowKey,
    /// As the responder sees it, where addresses are translated between the two.
    pub translated: Option<Box<FlowKey>>,
    /// First seen, nanoseconds since the epoch.
    pub first_unix_ns: u64,
    /// Where the previous report ended; in the first one, when the flow was first seen. What `delta` holds came between
    /// this and `last_unix_ns`.
    pub since_unix_ns: u64,
    /// Last seen: of TCP the moment of the newest figures, of UDP the last datagram.
    pub last_unix_ns: u64,
    /// Since the previous report of this flow.
    pub delta: Counters,
    /// Since the flow began.
    pub total: Counters,
    /// The bytes in both are not all: some bypassed the kernel's counters (sockmap).
    pub bypassed: bool,
    /// Smoothed round-trip time and its deviation as measured by the socket on each side, microseconds.
    pub rtt_us: [Option<(u32, u32)>; 2],
    /// Which sides are on this host.
    pub local: [bool; 2],
    /// Who uses the sockets, whether or not more is known of them.
    pub owners: [ProcKey; 2],
    /// Who uses them now, where that is not what collectors were told.
    pub changed: Option<Box<[Identity; 2]>>,
    /// What a collector is told of them, the same in every report: ntopng keeps what it heard first. Taken anew only when
    /// a collector has joined.
    pub identity: [Identity; 2],
    /// Round-trip samples of the flow up to its first report.
    pub rtt_samples: Option<RttSummary>,
    /// The largest window that each side has offered, bytes, at most 65,535; 0 = not known.
    pub window_max: [u16; 2],
    /// Congestion control of each local side.
    pub congestion: [Option<&'static str>; 2],
    /// The first report of this flow.
    pub first: bool,
    /// It is over, and no report before has said so.
    pub ended: bool,
    /// How the flow stands.
    pub state: State,
    /// The handshake of a TCP connection is not over; of one that is, it was never established.
    pub connecting: bool,
    /// Which side sent a reset, when `state` is [`State::Reset`] and it is known.
    pub reset_by: Option<Side>,
    /// What the responder is called, by what the initiator's process has asked.
    pub peer_name: Option<Arc<PeerName>>,
    /// What its client has said at the beginning.
    pub hello: Option<Arc<Hello>>,
    /// What was asked over it, of a flow to a DNS server.
    pub dns: Option<Arc<Last>>,
    /// Its opening, which decides about the name.
    pub opening: Opening,
}
