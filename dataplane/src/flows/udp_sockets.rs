//! Which flows a UDP socket has: they end with it, unless another one goes on for it.

use super::entry::Other;
use super::udp::key_of;
use super::{Flow, FlowTable};
use crate::model::flow::{End, Side};

/// Positions in [`Flow::ends`].
pub(super) const FIRST_END: usize = 0;
pub(super) const SECOND_END: usize = 1;

impl FlowTable {
    /// Enters a flow into the list of the socket at one of its ends.
    pub(super) fn list_socket(&mut self, id: u32, end: usize) {
        let flow = &mut self.flows[id as usize];
        let Some(cookie) = flow.ends().nth(end).map(|end| end.cookie) else { return };
        let list = self.udp_sockets.entry(cookie).or_default();
        flow.udp_positions[end] = list.len() as u32;
        list.push(id);
    }

    /// A UDP socket is gone: so are its flows, once their last counters are in, unless another one goes on for it.
    pub fn udp_closed(&mut self, cookie: u64, now_ns: u64) {
        for id in self.udp_sockets.get(&cookie).cloned().unwrap_or_default() {
            let flow = &mut self.flows[id as usize];
            if flow.goes_on_without(cookie) {
                continue;
            }
            flow.first_end.marks |= End::CLOSED;
            if let Some(second_end) = &mut flow.second_end {
                second_end.marks |= End::CLOSED;
            }
            self.schedule_close(id, now_ns);
        }
    }

    pub(super) fn forget_udp(&mut self, id: u32, flow: &Flow) {
        let ends = Side::BOTH.into_iter().filter_map(|side| Some((side, *flow.end(side)?)));
        for (side, end) in ends.chain(flow.others().iter().map(|other| (Side::Responder, other.end))) {
            let key = key_of(&end, flow.local(side), flow.remote(side));
            // Unless another flow has taken its place.
            if self.udp.get(&key) == Some(&id) {
                self.udp.remove(&key);
            }
        }
        for (end, position) in flow.ends().zip(flow.udp_positions) {
            self.unlist(end.cookie, position as usize);
        }
        for other in flow.others() {
            self.unlist(other.end.cookie, other.position as usize);
        }
    }

    /// Takes one flow out of its socket's list; the last one of the list moves to its place.
    fn unlist(&mut self, cookie: u64, at: usize) {
        let Some(list) = self.udp_sockets.get_mut(&cookie) else { return };
        list.swap_remove(at);
        if let Some(&moved) = list.get(at) {
            self.flows[moved as usize].set_position(cookie, at as u32);
        }
        if list.is_empty() {
            self.udp_sockets.remove(&cookie);
        }
    }
}

impl Flow {
    /// Notes where a socket's list has this flow.
    fn set_position(&mut self, cookie: u64, position: u32) {
        if self.first_end.cookie == cookie {
            self.udp_positions[FIRST_END] = position;
        } else if self.second_end.as_ref().is_some_and(|end| end.cookie == cookie) {
            self.udp_positions[SECOND_END] = position;
        } else if let Some(rare) = &mut self.rare {
            let own = |other: &&mut Other| other.end.cookie == cookie;
            rare.others.iter_mut().filter(own).for_each(|other| other.position = position);
        }
    }

    /// A socket is gone, and another one of the same side is still there, which takes its place.
    fn goes_on_without(&mut self, cookie: u64) -> bool {
        let at = usize::from(self.first_side != Side::Responder);
        let position = self.udp_positions[at];
        let Some(rare) = &mut self.rare else { return false };
        if let Some(other) = rare.others.iter_mut().find(|other| other.end.cookie == cookie) {
            other.end.marks |= End::CLOSED;
            return true;
        }
        let heir = rare.others.iter_mut().find(|other| !other.end.has(End::CLOSED));
        let responder = if at == FIRST_END { Some(&mut self.first_end) } else { self.second_end.as_deref_mut() };
        let (Some(heir), Some(responder)) = (heir, responder.filter(|end| end.cookie == cookie)) else { return false };
        std::mem::swap(&mut heir.end, responder);
        heir.end.marks |= End::CLOSED;
        self.udp_positions[at] = std::mem::replace(&mut heir.position, position);
        true
    }
}
