//! UDP sockets that ask, and whom they ask: as it truly is, and as the kernel's table has it.

use std::collections::BTreeMap;

use sockeye_bpf::records::{DatagramRecord, Kind, UdpCloseRecord, UdpKey, UdpValue, flags, udp_traits};
use zerocopy::FromZeros;

use super::kernel::Kernel;
use super::plan::faults;
use super::ring::Entry;
use crate::model::flow::{Endpoint, FlowKey, Proto};

/// Whom a socket may ask. The first two are on this host.
const PEERS: [(&str, u16); 4] = [("10.0.0.1", 53), ("10.0.0.1", 5353), ("93.0.0.8", 53), ("93.0.0.8", 123)];
const PEERS_HERE: usize = 2;
const ASKERS_COOKIE: u64 = 1_000_000;
const SERVERS_COOKIE: u64 = 2_000_000;
const FIRST_PORT: u16 = 5000;
/// The socket that is flooded, and most datagrams that it gets between two visits of the workers.
const FLOODED_COOKIE: u64 = 3_000_000;
const FLOODED_PORT: u16 = 9000;
const FLOOD_MAX: u64 = 60;
/// The kernel's coarse clock goes on by so much.
const COARSE_NS: u64 = 4_000_000;

/// What the two ends of a pair have counted, as far as it was told.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    /// Bytes and datagrams that the one who asks sent, and received.
    pub(super) asker: [(u64, u64); 2],
    /// Those that the one who is asked received, and sent.
    pub(super) peer: [(u64, u64); 2],
    /// Some of it went through a ring, because the table was full: later than the rest.
    pub(super) spilled: bool,
    /// Some of it was lost, and counted.
    pub(super) lost: bool,
}

impl Asked {
    /// Bytes and datagrams of a direction. The end that saw more is nearer to the truth.
    pub(super) fn total(&self, direction: usize) -> (u64, u64) {
        let ((a, b), (c, d)) = (self.asker[direction], self.peer[direction]);
        (a.max(c), b.max(d))
    }
}

pub(super) struct Datagrams {
    askers: u64,
    table: BTreeMap<UdpKey2, UdpValue>,
    table_max: usize,
    /// By who asks and whom.
    pub(super) asked: BTreeMap<(usize, usize), Asked>,
    /// Bytes and datagrams of the flood, as far as they were told.
    pub(super) flooded: (u64, u64),
    /// Senders of the flood so far.
    flooders: u32,
    /// The sockets are older than the agent.
    older: bool,
    pub(super) close_lost: bool,
    closed: bool,
}

/// A key that has an order.
type UdpKey2 = (u64, [u8; 16], [u8; 16], u16, u16);

fn endpoint(text: &str, port: u16) -> Endpoint {
    Endpoint { addr: text.parse::<std::net::IpAddr>().expect("an address").into(), port }
}

fn asks_from(asker: usize) -> Endpoint {
    endpoint("10.0.0.1", FIRST_PORT + asker as u16)
}

fn asks(peer: usize) -> Endpoint {
    endpoint(PEERS[peer].0, PEERS[peer].1)
}

/// Which pair a flow is, and whether it is the right way round.
pub(super) fn pair_of(key: &FlowKey) -> Option<((usize, usize), bool)> {
    let turned = key.responder.port >= FIRST_PORT && key.responder.port < 5300;
    let (from, to) = if turned { (key.responder, key.initiator) } else { (key.initiator, key.responder) };
    let peer = (0..PEERS.len()).find(|peer| asks(*peer) == to)?;
    (key.proto == Proto::Udp).then_some(((usize::from(from.port.checked_sub(FIRST_PORT)?), peer), !turned))
}

/// A flow of the flood.
pub(super) fn is_flood(key: &FlowKey) -> bool {
    key.proto == Proto::Udp && key.responder == endpoint("10.0.0.1", FLOODED_PORT)
}

/// Both ends are on this host.
pub(super) fn is_local(peer: usize) -> bool {
    peer < PEERS_HERE
}

impl Datagrams {
    pub(super) fn new(askers: u64, table_max: usize) -> Self {
        let (table, asked) = (BTreeMap::new(), BTreeMap::new());
        Self {
            askers,
            table,
            table_max,
            asked,
            flooded: (0, 0),
            flooders: 0,
            older: false,
            close_lost: false,
            closed: false,
        }
    }

    /// The agent is gone: what was counted for it, too.
    pub(super) fn forget(&mut self) {
        (self.older, self.close_lost) = (true, false);
        self.flooded = (0, 0);
        self.asked.clear();
        self.table.clear();
    }

    /// Nothing waits to be taken.
    pub(super) fn is_idle(&self) -> bool {
        self.table.is_empty()
    }

    /// Exchanges the table for an empty one.
    pub(super) fn take(&mut self) -> Vec<(UdpKey, UdpValue)> {
        let rows = std::mem::take(&mut self.table).into_iter();
        rows.map(|((cookie, local_addr, remote_addr, local_port, remote_port), value)| {
            (UdpKey { cookie, local_addr, remote_addr, local_port, remote_port, netns: 1 }, value)
        })
        .collect()
    }
}

/// How a packet was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// In the table.
    Counted,
    /// Through a ring.
    Spilled,
    /// Not at all, which is counted.
    Lost,
}

/// One packet at one end.
#[derive(Clone, Copy)]
struct Packet {
    cookie: u64,
    pid: u32,
    local: Endpoint,
    remote: Endpoint,
    sent: bool,
    bytes: u64,
    packets: u32,
    serves: bool,
}

impl Kernel {
    /// A socket asks somebody, who may answer.
    pub(super) fn ask(&mut self) {
        if self.udp.askers == 0 {
            return;
        }
        let (asker, peer) = (self.rng.index(self.udp.askers as usize), self.rng.index(PEERS.len()));
        let (bytes, packets) = (1 + self.rng.below(3000), 1 + self.rng.below(4) as u32);
        let ask = Packet {
            cookie: ASKERS_COOKIE + asker as u64,
            pid: 100 + asker as u32,
            local: asks_from(asker),
            remote: asks(peer),
            sent: true,
            bytes,
            packets,
            serves: false,
        };
        let heard = Packet {
            cookie: SERVERS_COOKIE + peer as u64,
            pid: 200 + peer as u32,
            local: ask.remote,
            remote: ask.local,
            sent: false,
            serves: true,
            ..ask
        };
        self.told((asker, peer), ask);
        if self.rng.chance(95) {
            self.told((asker, peer), heard);
        }
        if self.rng.chance(70) {
            let answer = 1 + self.rng.below(5000);
            self.told((asker, peer), Packet { sent: true, bytes: answer, packets: 1, ..heard });
            self.told((asker, peer), Packet { sent: false, bytes: answer, packets: 1, ..ask });
        }
    }

    /// Datagrams to one socket, each of another sender.
    pub(super) fn flood(&mut self) {
        if !self.plan.has(faults::FLOOD) || self.udp.closed {
            return;
        }
        for _ in 0..self.rng.below(FLOOD_MAX) {
            self.udp.flooders += 1;
            let [_, a, b, c] = self.udp.flooders.to_be_bytes();
            let p = Packet {
                cookie: FLOODED_COOKIE,
                pid: 300,
                local: endpoint("10.0.0.1", FLOODED_PORT),
                remote: endpoint(&format!("100.{a}.{b}.{c}"), 53),
                sent: false,
                bytes: 1 + self.rng.below(500),
                packets: 1,
                serves: true,
            };
            if self.packet(p) != Told::Lost {
                let flooded = &mut self.udp.flooded;
                (flooded.0, flooded.1) = (flooded.0 + p.bytes, flooded.1 + 1);
            }
        }
    }

    /// A packet at the end that is on this host.
    fn told(&mut self, pair: (usize, usize), p: Packet) {
        if p.serves && !is_local(pair.1) {
            return;
        }
        let told = self.packet(p);
        let asked = self.udp.asked.entry(pair).or_default();
        (asked.spilled, asked.lost) = (asked.spilled | (told != Told::Counted), asked.lost | (told == Told::Lost));
        if told == Told::Lost {
            return;
        }
        let counts =
            if p.serves { &mut asked.peer[usize::from(p.sent)] } else { &mut asked.asker[usize::from(!p.sent)] };
        (counts.0, counts.1) = (counts.0 + p.bytes, counts.1 + u64::from(p.packets));
    }

    /// `account()` of the programs.
    fn packet(&mut self, p: Packet) -> Told {
        self.pass(50_000);
        let now_ns = self.clock.get();
        let key = (p.cookie, p.local.addr.0, p.remote.addr.0, p.local.port, p.remote.port);
        if self.udp.table.len() >= self.udp.table_max && !self.udp.table.contains_key(&key) {
            return if self.spill(p) { Told::Spilled } else { Told::Lost };
        }
        let older = self.udp.older;
        let value = self.udp.table.entry(key).or_insert_with(|| fresh(p, now_ns, older));
        if p.sent {
            (value.bytes_sent, value.packets_sent) = (value.bytes_sent + p.bytes, value.packets_sent + p.packets);
        } else {
            (value.bytes_received, value.packets_received) =
                (value.bytes_received + p.bytes, value.packets_received + p.packets);
        }
        value.last_ns = (now_ns - now_ns % COARSE_NS).max(value.first_ns);
        Told::Counted
    }

    /// Through the ring. False if that is full, which is counted.
    fn spill(&mut self, p: Packet) -> bool {
        let mut d = DatagramRecord::new_zeroed();
        (d.kind, d.sent, d.flags) = (Kind::Datagram as u8, u8::from(p.sent), flags::UDP | flags::OWNER_CONFIRMED);
        (d.pid, d.start_ticks, d.bytes, d.packets) = (p.pid, 1, p.bytes, p.packets);
        d.key = UdpKey {
            cookie: p.cookie,
            local_addr: p.local.addr.0,
            remote_addr: p.remote.addr.0,
            local_port: p.local.port,
            remote_port: p.remote.port,
            netns: 1,
        };
        let told = self.offer(|at_ns| Entry::Datagram(DatagramRecord { at_ns, ..d }));
        self.losses.datagrams += u64::from(!told);
        told
    }

    /// All sockets are closed.
    pub(super) fn close_udp(&mut self) {
        self.udp.closed = true;
        if self.plan.udp == 0 && !self.plan.has(faults::FLOOD) {
            return;
        }
        let askers = (0..self.udp.askers).map(|asker| ASKERS_COOKIE + asker);
        let servers = (0..PEERS_HERE as u64).map(|peer| SERVERS_COOKIE + peer);
        let all: Vec<u64> = askers.chain(servers).chain([FLOODED_COOKIE]).collect();
        for cookie in all {
            let close = UdpCloseRecord { kind: Kind::UdpClose as u8, pad0: [0; _], cookie };
            if !self.offer(|_| Entry::UdpClose(close)) {
                self.losses.udp_closes += 1;
                self.udp.close_lost = true;
            }
            self.pass(10_000);
        }
        self.udp.askers = 0;
    }

    /// How often something happens on UDP sockets in a tick.
    pub(super) fn asks_per_tick(&self) -> u64 {
        if self.plan.has(faults::SMALL_RINGS) { 3 } else { 1 }
    }
}

/// An entry at its first packet.
fn fresh(p: Packet, now_ns: u64, older: bool) -> UdpValue {
    let mut value = UdpValue::new_zeroed();
    (value.first_ns, value.first_sent) = (now_ns, u8::from(p.sent));
    (value.pid, value.start_ticks, value.flags) = (p.pid, 1, flags::UDP | flags::OWNER_CONFIRMED);
    if older {
        value.flags |= flags::PRE_EXISTING;
        value.traits = if p.serves { udp_traits::SERVES } else { 0 };
    }
    value
}
