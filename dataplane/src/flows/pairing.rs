//! Finding the other end of a host-local connection.
//!
//! Addresses alone cannot tell: the same 5-tuple may exist in several network namespaces. Both ends of one TCP
//! connection know both initial sequence numbers, so the pair (ISN, ISN) is the connection's name; two connections share
//! it with probability 2^-64. UDP has no such name: a pair is looked for by addresses, loopback ones per namespace.

use crate::model::flow::{Endpoint, Proto, Side, TcpObservation};

/// An entry to look for in the pair index, and the side that this end is on if it is found there.
pub(super) type Candidate = (u64, Side);

/// A role-neutral name of a connection: the same from both ends.
#[derive(Hash)]
struct PairName {
    proto: Proto,
    low: (Endpoint, u32),
    high: (Endpoint, u32),
}

fn name(proto: Proto, a: (Endpoint, u32), b: (Endpoint, u32)) -> PairName {
    if a <= b { PairName { proto, low: a, high: b } } else { PairName { proto, low: b, high: a } }
}

/// Names under which the other end of a TCP connection may have been entered: one if the role is known, else one for
/// each role. The kernel's counter of acknowledged bytes starts at the ISN on the side that connected, one later on the
/// other side.
pub(super) fn tcp(hasher: &ahash::RandomState, o: &TcpObservation) -> [Option<Candidate>; 2] {
    if !o.has_sequence_numbers() {
        return [None, None];
    }
    let remote = (o.remote, o.seq_remote);
    let candidate = |side: Side| {
        let isn = o.end.seq_local.wrapping_sub(u32::from(side == Side::Responder));
        Some((nonzero(hasher.hash_one(name(Proto::Tcp, (o.local, isn), remote))), side))
    };
    match o.side {
        Some(side) => [candidate(side), None],
        None => [candidate(Side::Initiator), candidate(Side::Responder)],
    }
}

/// The name of a UDP flow.
pub(super) fn udp(hasher: &ahash::RandomState, local: Endpoint, remote: Endpoint, netns: u32) -> u64 {
    let scope = if local.addr.is_loopback() || remote.addr.is_loopback() { netns } else { 0 };
    nonzero(hasher.hash_one(name(Proto::Udp, (local, scope), (remote, scope))))
}

/// 0 stands for "no entry".
fn nonzero(hash: u64) -> u64 {
    hash.max(1)
}
