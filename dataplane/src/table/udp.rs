//! UDP counters into the table. A flow is a socket and a peer; it ends by silence, or with its socket.

use sockeye_bpf::records::{UdpKey, UdpValue};

use super::{Flow, FlowTable, Opened, pairing};
use crate::flow::{Addr, End, Endpoint, ProcKey, Proto, Side};

impl FlowTable {
    /// Adds counters of a UDP socket and peer.
    pub fn udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) {
        let id = match self.udp.get(key) {
            Some(&id) => id,
            None => match self.enter_udp(key, value, now_ns) {
                Some(id) => id,
                None => return,
            },
        };
        let timeouts = self.timeouts;
        let flow = &mut self.flows[id as usize];
        let side = flow.side_of(key.cookie);
        let woken = flow.verdict.take().is_some();
        flow.last_look = false;
        flow.active_ns = flow.active_ns.max(value.last_ns);
        let Some(end) = flow.end_mut(side) else { return };
        end.bytes_sent += value.bytes_sent;
        end.bytes_received += value.bytes_received;
        end.packets_sent += u64::from(value.packets_sent);
        end.packets_received += u64::from(value.packets_received);
        end.at_ns = end.at_ns.max(value.last_ns);
        if woken {
            self.wheel.schedule(&mut self.flows, id, now_ns + timeouts.settle_ns);
        }
    }

    fn enter_udp(&mut self, key: &UdpKey, value: &UdpValue, now_ns: u64) -> Option<u32> {
        let local = Endpoint { addr: Addr(key.local_addr), port: key.local_port };
        let remote = Endpoint { addr: Addr(key.remote_addr), port: key.remote_port };
        let end = End {
            cookie: key.cookie,
            owner: ProcKey::new(value.pid, value.start_ticks, value.flags),
            netns: key.netns,
            state: 0,
            error: 0,
            seq_local: 0,
            marks: End::CONFIRMED,
            bytes_sent: 0,
            bytes_received: 0,
            packets_sent: 0,
            packets_received: 0,
            retrans: 0,
            out_of_order: 0,
            srtt_us: 0,
            rttvar_us: 0,
            at_ns: value.last_ns,
        };
        let hash = pairing::udp(&self.names, local, remote, key.netns);
        let partner = self.partner(hash, local, remote).filter(|_| local != remote);
        let id = if let Some(id) = partner {
            let side = self.flows[id as usize].near_side.other();
            self.attach(id, end, side, now_ns);
            id
        } else {
            let side = if value.first_sent != 0 { Side::Initiator } else { Side::Responder };
            let opened = Opened { local, remote, side, at_ns: value.first_ns };
            let id = self.enter(Proto::Udp, opened, end, now_ns)?;
            self.index(id, [hash, 0]);
            id
        };
        self.udp.insert(*key, id);
        let siblings = self.udp_sockets.entry(key.cookie).or_default();
        if partner.is_none() {
            self.flows[id as usize].udp_position = siblings.len() as u32;
        }
        siblings.push(id);
        Some(id)
    }

    /// A UDP socket is gone: so are its flows, once their last counters are in.
    pub fn udp_closed(&mut self, cookie: u64, now_ns: u64) {
        for id in self.udp_sockets.get(&cookie).cloned().unwrap_or_default() {
            let flow = &mut self.flows[id as usize];
            flow.near.marks |= End::CLOSED;
            if let Some(far) = &mut flow.far {
                far.marks |= End::CLOSED;
            }
            self.schedule_close(id, now_ns);
        }
    }

    pub(super) fn forget_udp(&mut self, id: u32, flow: &Flow) {
        for side in Side::BOTH {
            let Some(end) = flow.end(side) else { continue };
            let (local, remote) = (flow.endpoint(side), flow.endpoint(side.other()));
            let key = UdpKey {
                cookie: end.cookie,
                local_addr: local.addr.0,
                remote_addr: remote.addr.0,
                local_port: local.port,
                remote_port: remote.port,
                netns: end.netns,
            };
            self.udp.remove(&key);
        }
        // The end that came first knows its place among its socket's flows; the other socket is a client with few.
        let near = self.udp_sockets.get(&flow.near.cookie);
        let near_at =
            near.filter(|list| list.get(flow.udp_position as usize) == Some(&id)).map(|_| flow.udp_position as usize);
        self.forget_sibling(flow.near.cookie, id, near_at);
        if let Some(far) = &flow.far {
            self.forget_sibling(far.cookie, id, None);
        }
    }

    fn forget_sibling(&mut self, cookie: u64, id: u32, at: Option<usize>) {
        let Some(siblings) = self.udp_sockets.get_mut(&cookie) else { return };
        if let Some(at) = at.or_else(|| siblings.iter().position(|sibling| *sibling == id)) {
            siblings.swap_remove(at);
            if let Some(&moved) = siblings.get(at)
                && let Some(flow) = self.flows.get_mut(moved as usize).filter(|flow| flow.near.cookie == cookie)
            {
                flow.udp_position = at as u32;
            }
        }
        if siblings.is_empty() {
            self.udp_sockets.remove(&cookie);
        }
    }
}
