//! UDP flows whose two ends are in different network namespaces.
//!
//! Equal addresses prove nothing there: two tenants, two labs, two clusters on one host have the same ones. What proves it is a
//! packet that both ends saw: on its way over veth pairs and bridges it stays where it lies in memory, and nobody else can use
//! that memory until it has been received. Where the kernel does not tell (before Linux 6.2), or the packet was copied on its way,
//! both ends must be the only ones of their name, and have counted the same.

use super::{FlowTable, Map, pairing};
use crate::flows::entry::Flow;
use crate::model::flow::{Counters, Endpoint, Proto, Side};
use sockeye_bpf::records::{UdpValue, udp_traits};

/// The longest that a packet takes between two namespaces of one host, nanoseconds.
const WAY_MAX_NS: u64 = 1_000_000_000;

/// The first packet of a socket and peer since the last drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    /// Where it lay.
    head: u64,
    at_ns: u64,
    received: bool,
    group: bool,
    /// Of whose end it was. The number of a flow may be used again: the socket tells.
    flow: u32,
    cookie: u64,
}

/// What is known of them.
#[derive(Default)]
pub(super) struct Meeting {
    /// Of the last drain, and of this one: both ends of one packet may fall into different ones.
    packets: [Vec<Packet>; 2],
    /// Flows that have waited for this without success, by name: of both ends, whatever the namespace.
    alone: Map<u64, Vec<u32>>,
}

impl Meeting {
    /// A flow is gone, or has become another.
    pub(super) fn forget(&mut self, names: &ahash::RandomState, id: u32, flow: &Flow) {
        let name = wide_name(names, flow);
        if let Some(list) = self.alone.get_mut(&name) {
            list.retain(|known| *known != id);
            if list.is_empty() {
                self.alone.remove(&name);
            }
        }
    }
}

/// What comes of a flow that may have its other end in another namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meets {
    /// Nothing yet: look again in a second.
    Later,
    /// It is a part of another flow now.
    Joined,
    /// It stays as it is.
    Alone,
}

impl FlowTable {
    /// Notes the first packet of a drain.
    pub(super) fn note_packet(&mut self, id: u32, cookie: u64, value: &UdpValue) {
        let flow = &self.flows[id as usize];
        let group = value.traits & udp_traits::GROUP != 0;
        if value.first_head == 0
            || flow.key.is_of_other_peers()
            || (flow.second_end.is_some() && !flow.group)
            || is_within_namespace(flow)
        {
            return;
        }
        let (received, head, at_ns) = (value.first_sent == 0, value.first_head, value.first_ns);
        self.meeting.packets[1].push(Packet { head, at_ns, received, group, flow: id, cookie });
    }

    /// All counters of a drain are in: ends that saw the same packet are joined.
    pub(super) fn udp_drained(&mut self, now_ns: u64) {
        let [mut all, new] = std::mem::take(&mut self.meeting.packets);
        all.extend_from_slice(&new);
        self.meeting.packets[0] = new;
        all.sort_unstable();
        for (at, packet) in all.iter().enumerate().filter(|(_, packet)| packet.received) {
            let is_it = |before: &&Packet| {
                packet.at_ns - before.at_ns < WAY_MAX_NS && (!before.received || before.group && packet.group)
            };
            // The last one that had this place; receivers of a group may be a part of another flow by now.
            let mut there = all[..at].iter().rev().take_while(|before| before.head == packet.head);
            let last = there.find(|before| self.is_end_of(before));
            if let Some(before) = last.filter(is_it) {
                self.meet(before, packet, now_ns);
            }
        }
    }

    /// Whether the flow that saw a packet is still there: it may be gone, or a part of another one.
    fn is_end_of(&self, packet: &Packet) -> bool {
        self.flows.get(packet.flow as usize).is_some_and(|flow| {
            let mut cookies =
                flow.ends().map(|end| end.cookie).chain(flow.others().iter().map(|other| other.end.cookie));
            flow.key.proto == Proto::Udp && cookies.any(|cookie| cookie == packet.cookie)
        })
    }

    /// Two flows have seen the same packet, the first one earlier.
    fn meet(&mut self, before: &Packet, packet: &Packet, now_ns: u64) {
        let (earlier, later, group) = (before.flow, packet.flow, packet.group);
        if earlier == later || !self.is_end_of(packet) {
            return;
        }
        let (a, b) = (&self.flows[earlier as usize], &self.flows[later as usize]);
        if b.second_end.is_some() {
            return;
        }
        if a.second_end.is_none() && a.first_side != b.first_side && are_two_ends(a, b) {
            self.merge_udp(earlier, later, now_ns);
        } else if group && are_two_receivers(a, b) {
            self.gather_udp(earlier, later);
        }
    }

    /// A flow that is to be reported for the first time has one end. Its other one may be on this host, in another namespace.
    pub(super) fn meets(&mut self, id: u32, now_ns: u64) -> Meets {
        let flow = &self.flows[id as usize];
        let is_candidate = flow.key.proto == Proto::Udp
            && flow.second_end.is_none()
            && !flow.group
            && !is_within_namespace(flow)
            && self.is_elsewhere(flow.remote(flow.first_side).addr, flow.first_end.netns);
        if !is_candidate {
            return Meets::Alone;
        }
        let alone = self.meeting.alone.entry(wide_name(&self.names, flow)).or_default();
        if !alone.contains(&id) {
            alone.push(id);
            return Meets::Later;
        }
        let others = || {
            alone
                .iter()
                .filter(|other| **other != id)
                .filter_map(|other| Some((*other, self.flows.get(*other as usize)?)))
        };
        // Another one with the same addresses on the same side: nobody can tell which of them is meant.
        let mut ends = others().filter(|(_, other)| other.second_end.is_none());
        let (Some((other, with)), None) = (ends.next(), ends.next()) else { return Meets::Alone };
        if with.first_side == flow.first_side || !are_two_ends(with, flow) || !agree(with, flow) {
            return Meets::Alone;
        }
        let (kept, gone) = if with.opened_ns <= flow.opened_ns { (other, id) } else { (id, other) };
        self.merge_udp(kept, gone, now_ns);
        if kept == id { Meets::Alone } else { Meets::Joined }
    }
}

fn wide_name(names: &ahash::RandomState, flow: &Flow) -> u64 {
    let (local, remote) = seen_by(flow);
    pairing::udp(names, local, remote, 0)
}

/// Local and remote address as the first end sees them.
fn seen_by(flow: &Flow) -> (Endpoint, Endpoint) {
    (flow.local(flow.first_side), flow.remote(flow.first_side))
}

/// Loopback addresses are of one namespace.
fn is_within_namespace(flow: &Flow) -> bool {
    let (local, remote) = seen_by(flow);
    local.addr.is_loopback() || remote.addr.is_loopback()
}

/// Each of two flows has the end that the other one lacks, by the addresses, in another namespace.
fn are_two_ends(a: &Flow, b: &Flow) -> bool {
    let lacks = |flow: &Flow| (flow.local(flow.first_side.other()), flow.remote(flow.first_side.other()));
    a.first_end.netns != b.first_end.netns && (lacks(a) == seen_by(b) || lacks(b) == seen_by(a))
}

/// Both receive what the same sender sends to the same group.
fn are_two_receivers(a: &Flow, b: &Flow) -> bool {
    let receives = |flow: &Flow| (flow.local(Side::Responder), flow.remote(Side::Responder));
    b.first_side == Side::Responder && receives(a) == receives(b)
}

/// Whether two ends have counted the same, but for what was on its way.
fn agree(a: &Flow, b: &Flow) -> bool {
    let (x, y): (Counters, Counters) = (a.totals(), b.totals());
    let near = |x: u64, y: u64| x.abs_diff(y) <= 16 + x.max(y) / 8;
    a.opened_ns.abs_diff(b.opened_ns) < WAY_MAX_NS && (0..2).all(|i| near(x.packets[i], y.packets[i]))
}
