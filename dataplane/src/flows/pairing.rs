//! Finding the other end of a host-local connection.
//!
//! Addresses cannot tell: the same 5-tuple may exist in several network namespaces, and where addresses are translated between
//! both ends, each knows another one. Both ends of one TCP connection know both initial sequence numbers, which pass
//! translation unchanged, so the pair (ISN, ISN) is the connection's name; two connections share it with probability 2^-64.
//! UDP has no such name. Within a namespace a pair is looked for by addresses; across namespaces they prove nothing, and both
//! ends must have seen the same packets (`meeting.rs`).

use crate::model::flow::{Endpoint, Side, TcpObservation};

/// An entry to look for in the pair index, and the side that this end is on if it is found there.
pub(super) type Candidate = (u64, Side);

/// Names under which the other end of a TCP connection may have been entered: one if the role is known, else one for
/// each role, and none if the connection has gone on for an unknown time. The kernel's counter of acknowledged bytes starts at
/// the ISN on the side that connected, one later on the other side.
pub(super) fn tcp(o: &TcpObservation) -> [Option<Candidate>; 2] {
    if !o.has_sequence_numbers() {
        return [None, None];
    }
    let candidate = |side: Side| {
        let isn = o.end.seq_local.wrapping_sub(u32::from(side == Side::Responder));
        let (low, high) = (isn.min(o.seq_remote), isn.max(o.seq_remote));
        Some((nonzero(u64::from(low) << 32 | u64::from(high)), side))
    };
    match o.side {
        Some(side) => [candidate(side), None],
        None => [candidate(Side::Initiator), candidate(Side::Responder)],
    }
}

/// The name of a UDP flow, the same from both ends: `netns` is that of both, or 0 where it does not matter.
pub(super) fn udp(hasher: &ahash::RandomState, local: Endpoint, remote: Endpoint, netns: u32) -> u64 {
    nonzero(hasher.hash_one((local.min(remote), local.max(remote), netns)))
}

/// A name that no other end has.
pub(super) fn unique(hasher: &ahash::RandomState, local: Endpoint, remote: Endpoint, cookie: u64) -> u64 {
    nonzero(hasher.hash_one((local, remote, cookie)))
}

/// 0 stands for "no entry".
fn nonzero(hash: u64) -> u64 {
    hash.max(1)
}
