//! TCP connections as they truly are, and what the programs tell of them.

use sockeye_bpf::records::{FlowRecord, Kind, flags};
use zerocopy::FromZeros;

use super::plan::{Rng, faults};
use crate::model::flow::{Endpoint, FlowKey, Proto, Side, State, tcp_state};

/// What the kernel has counted at one end, its SYN left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) packets_sent: u64,
    pub(super) packets_received: u64,
    pub(super) retrans: u32,
    pub(super) out_of_order: u32,
}

impl Figures {
    fn most(self, other: Self) -> Self {
        Self {
            bytes_sent: self.bytes_sent.max(other.bytes_sent),
            bytes_received: self.bytes_received.max(other.bytes_received),
            packets_sent: self.packets_sent.max(other.packets_sent),
            packets_received: self.packets_received.max(other.packets_received),
            retrans: self.retrans.max(other.retrans),
            out_of_order: self.out_of_order.max(other.out_of_order),
        }
    }
}

/// What reached user space of one end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    pub(super) records: u32,
    /// The highest figures, and those of the last word so far.
    pub(super) most: Figures,
    pub(super) last: Figures,
    /// State that the socket left, and its error.
    pub(super) closed: Option<(u8, u8)>,
    /// The close found no room anywhere, and was counted, or nobody was there to tell it.
    pub(super) close_lost: bool,
    /// That its process has closed it found no room, or no program, which is no loss: mostly the close follows.
    pub(super) shut_dropped: bool,
    /// When the agent came. All 0 if it was there before.
    pub(super) before: Figures,
}

/// One end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    /// On this host.
    pub(super) here: bool,
    pub(super) cookie: u64,
    pub(super) local: Endpoint,
    pub(super) remote: Endpoint,
    pub(super) netns: u32,
    pub(super) seq_local: u32,
    pub(super) seq_remote: u32,
    pub(super) pid: u32,
    pub(super) flags: u8,
    /// 0 = before the agent.
    pub(super) opened_ns: u64,
    pub(super) owner_changes: u8,
    pub(super) state: u8,
    pub(super) error: u8,
    /// What the scan told of last.
    pub(super) scanned: u64,
    /// The programs know it.
    pub(super) tracked: bool,
    /// A process has it open.
    pub(super) held: bool,
    pub(super) figures: Figures,
    pub(super) told: Told,
    /// Packets since a full record, for counters that wrap: the kernel is scanned long before half a turn.
    pub(super) since_scan: u64,
}

impl Socket {
    /// `scanned_mark()` of the programs.
    pub(super) fn mark(&self, state: u8) -> u64 {
        let owner = 16u64 << 24 | u64::from(state) << 16 | u64::from(self.owner_changes) << 8 | u64::from(self.flags);
        let segments = (self.figures.packets_sent as u32).wrapping_add(self.figures.packets_received as u32);
        owner << 32 | u64::from(segments)
    }

    /// `fill_flow()` of the programs: the clock was looked at before the counters are.
    pub(super) fn record(&self, side: Side, kind: Kind, state: u8, at_ns: u64) -> FlowRecord {
        let mut r = FlowRecord::new_zeroed();
        (r.kind, r.flags, r.state, r.error) = (kind as u8, self.flags, state, self.error);
        (r.pid, r.start_ticks, r.cookie, r.at_ns, r.netns) = (self.pid, 1, self.cookie, at_ns, self.netns);
        r.age = if self.opened_ns == 0 { 0 } else { (at_ns.saturating_sub(self.opened_ns) / 1000) as u32 };
        (r.local_addr, r.local_port) = (self.local.addr.0, self.local.port);
        (r.remote_addr, r.remote_port) = (self.remote.addr.0, self.remote.port);
        let (figures, is_open) = (&self.figures, self.seq_remote != 0);
        r.bytes_sent = figures.bytes_sent + u64::from(side == Side::Initiator && is_open);
        r.bytes_received = figures.bytes_received;
        (r.segs_out, r.segs_in) = (figures.packets_sent as u32, figures.packets_received as u32);
        (r.retrans, r.out_of_order) = (figures.retrans, figures.out_of_order);
        (r.seq_local, r.seq_remote) = (self.seq_local, self.seq_remote);
        r
    }

    /// A record has found its way.
    pub(super) fn tell(&mut self, record: &FlowRecord) {
        // The kernel's counters have 32 bits: which turn they are in is known here.
        let widen = |now: u64, low: u32| now - u64::from((now as u32).wrapping_sub(low));
        let figures = Figures {
            packets_sent: widen(self.figures.packets_sent, record.segs_out),
            packets_received: widen(self.figures.packets_received, record.segs_in),
            ..self.figures
        };
        self.told.records += 1;
        self.told.most = self.told.most.most(figures);
        self.since_scan = 0;
        if self.told.closed.is_none() {
            self.told.last = figures;
        }
        if record.kind == Kind::Close as u8 {
            self.told.closed = Some((record.state, record.error));
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.here && self.state != tcp_state::CLOSE
    }

    /// The scan finds it.
    pub(super) fn is_scanned(&self, sees_orphans: bool) -> bool {
        self.is_open() && self.tracked && (self.held || sees_orphans)
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Open,
    /// That side has sent its FIN.
    HalfClosed(Side),
    /// That side is all that is left of it.
    Widowed(Side),
    /// The same, and its process has closed it: the last acknowledgement is on its way.
    LastAck(Side),
    Over,
}

/// A connection with both its ends, wherever they are.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) number: u32,
    pub(super) sockets: [Socket; 2],
    pub(super) phase: Phase,
    /// It carries so much that packet counters wrap.
    pub(super) heavy: bool,
}

/// Owners are numbered so that they tell whose they are: connection, side, and which process of that side.
pub(super) const FIRST_PID: u32 = 1000;

/// Connection and side of an owner.
pub(super) fn whose(pid: u32) -> Option<(u32, Side)> {
    let number = pid.checked_sub(FIRST_PID)?;
    Some((number / 8, if number % 8 < 4 { Side::Initiator } else { Side::Responder }))
}

impl Connection {
    /// What it is called: as the initiator sees it, if that is here.
    pub(super) fn key(&self, here: [bool; 2]) -> FlowKey {
        let side = if here[0] { Side::Initiator } else { Side::Responder };
        let socket = &self.sockets[side as usize];
        FlowKey::seen_from(Proto::Tcp, side, socket.local, socket.remote)
    }

    pub(super) fn socket(&mut self, side: Side) -> &mut Socket {
        &mut self.sockets[side as usize]
    }

    /// Some payload from one side to the other, all of it acknowledged.
    pub(super) fn transfer(&mut self, from: Side, rng: &mut Rng) {
        let room = self.sockets.iter().map(|socket| (1 << 30_u64) - socket.since_scan.min(1 << 30)).min().unwrap_or(0);
        let mut packets = 1 + rng.below(20);
        if self.heavy && rng.chance(50) {
            packets = (1 << 28) + rng.below(1 << 28);
        }
        packets = packets.min(room / 2).max(1);
        let bytes = 1 + rng.below(packets * 1400);
        let (retrans, stray) = (u64::from(rng.chance(10)), u32::from(rng.chance(10)));
        let sender = self.socket(from);
        sender.figures.packets_sent += packets + retrans;
        sender.figures.packets_received += 1;
        sender.figures.bytes_sent += bytes;
        sender.figures.retrans += retrans as u32;
        sender.since_scan += packets + 1;
        let receiver = self.socket(from.other());
        receiver.figures.packets_received += packets;
        receiver.figures.packets_sent += 1;
        receiver.figures.bytes_received += bytes;
        receiver.figures.out_of_order += stray;
        receiver.since_scan += packets;
    }

    /// A segment without payload.
    pub(super) fn segment(&mut self, from: Side) {
        self.socket(from).figures.packets_sent += 1;
        self.socket(from.other()).figures.packets_received += 1;
    }

    /// How it must be called in the end, from what was told of both ends; `None` if a close was lost.
    pub(super) fn end_state(&self) -> Option<State> {
        let mut worst = None;
        for socket in self.sockets.iter().filter(|socket| socket.told.records > 0) {
            let state = word(socket.told.closed?);
            worst = worst.max(Some((badness(state), state)));
        }
        worst.map(|(_, state)| state)
    }
}

/// What the end of one socket is called.
fn word((state, error): (u8, u8)) -> State {
    match (state, error) {
        (_, 110) => State::TimedOut,
        (tcp_state::SYN_SENT, 111) => State::Refused,
        (tcp_state::SYN_SENT, 0) => State::Aborted,
        (tcp_state::FIN_WAIT2 | tcp_state::LAST_ACK, 0) => State::Closed,
        _ => State::Reset,
    }
}

fn badness(state: State) -> u8 {
    match state {
        State::Aborted => 1,
        State::Reset => 2,
        State::TimedOut => 3,
        State::Refused => 4,
        _ => 0,
    }
}

/// Where the ends of a new connection are.
pub(super) fn placed(number: u32, faults: u32, rng: &mut Rng) -> Connection {
    let at = |text: &str, port| Endpoint { addr: text.parse::<std::net::IpAddr>().expect("an address").into(), port };
    let port = 20_000 + number as u16 % 20_000;
    let translated = faults & faults::TRANSLATION != 0 && rng.chance(50);
    // Local and remote of the initiator, then of the responder, their namespaces, and which of them are here.
    let (initiator, responder, seen, netns, here) = match rng.below(4) {
        0 => (at("127.0.0.1", port), at("127.0.0.1", 8080), None, [1, 1], [true, true]),
        1 => (at("10.0.0.2", port), at("10.0.0.1", 8080), Some(at("10.96.0.1", 80)), [2, 1], [true, true]),
        2 => (at("10.0.0.1", port), at("93.0.0.9", 443), None, [1, 0], [true, false]),
        _ => (at("93.0.0.9", port), at("10.0.0.1", 8080), None, [0, 1], [false, true]),
    };
    let seen = seen.filter(|_| translated).unwrap_or(responder);
    let isn = [rng.next() as u32 | 1, rng.next() as u32 | 1];
    let socket = |side: Side, local, remote| Socket {
        here: here[side as usize],
        cookie: u64::from(number) * 2 + side as u64 + 1,
        local,
        remote,
        netns: netns[side as usize],
        seq_local: isn[side as usize].wrapping_add(side as u32),
        seq_remote: 0,
        pid: FIRST_PID + number * 8 + side as u32 * 4,
        flags: if side == Side::Initiator {
            flags::ROLE_INITIATOR | flags::OWNER_CONFIRMED
        } else {
            flags::ROLE_RESPONDER
        },
        opened_ns: 0,
        owner_changes: 0,
        state: tcp_state::CLOSE,
        error: 0,
        scanned: 0,
        tracked: false,
        held: false,
        figures: Figures::default(),
        told: Told::default(),
        since_scan: 0,
    };
    let sockets = [socket(Side::Initiator, initiator, seen), socket(Side::Responder, responder, initiator)];
    let heavy = faults & faults::WRAP != 0 && rng.chance(30);
    Connection { number, sockets, phase: Phase::Connecting, heavy }
}
