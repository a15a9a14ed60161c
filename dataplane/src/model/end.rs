//! What one local socket tells of a flow, and counters of both directions.

use sockeye_bpf::records::{CONGESTION_LEN, FlowRecord, flags, traits};

use super::flow::{Addr, Endpoint, FlowKey, ProcKey, Proto, Side, State, tcp_state};

/// A counter of which the low 32 bits are told: on from `known` where they wrap, and not back where they are a little less.
fn extend(known: u64, low: u64) -> u64 {
    let step = (low as u32).wrapping_sub(known as u32).cast_signed();
    known + u64::try_from(step).unwrap_or(0)
}

/// One local socket's view of a flow. Counters are totals since the socket was opened, from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Socket cookie.
    pub cookie: u64,
    /// Who uses the socket.
    pub owner: ProcKey,
    /// Inode of its network namespace.
    pub netns: u32,
    /// TCP state; when `closed`, the state that the socket left.
    pub state: u8,
    /// `sk_err`.
    pub error: u8,
    /// First sequence number that the kernel's byte count includes: the same for the whole life of a TCP connection,
    /// and another one for the next connection of the same socket.
    pub seq_local: u32,
    /// `CLOSED`, `OWNER_CONFIRMED` and so on.
    pub marks: u8,
    /// Bytes that the peer acknowledged, with the SYN of a socket that connected (UDP: payload sent).
    pub bytes_sent: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Segments or datagrams sent.
    pub packets_sent: u64,
    /// Segments or datagrams received.
    pub packets_received: u64,
    /// Segments retransmitted.
    pub retrans: u32,
    /// Segments received out of order.
    pub out_of_order: u32,
    /// Smoothed round-trip time, microseconds; 0 = none yet.
    pub srtt_us: u32,
    /// Its mean deviation, microseconds.
    pub rttvar_us: u32,
    /// Of the newest record, `CLOCK_BOOTTIME` nanoseconds.
    pub at_ns: u64,
}

impl End {
    /// The socket is gone.
    pub const CLOSED: u8 = 1;
    /// The owner itself connected, or has read from the socket.
    pub const OWNER_CONFIRMED: u8 = 2;
    /// The socket is older than the agent.
    pub const PRE_EXISTING: u8 = 4;
    /// Its counters are also of other flows: UDP sockets that used the peer's port one after another. The peer's
    /// counters are the flow's alone.
    pub const SHARED_COUNTERS: u8 = 8;
    /// It connected: its SYN is in `bytes_sent`.
    pub const CONNECTED: u8 = 16;
    /// It did not: there is no SYN in `bytes_sent`. With neither mark nobody knows, and it is as the flow's side says.
    pub const NOT_CONNECTED: u8 = 32;
    /// It was made in the middle of a connection (`TCP_REPAIR`).
    pub const RESTORED: u8 = 64;
    /// Programs may carry its data past TCP (sockmap): its byte counts are no truth.
    pub const BYPASSED: u8 = 128;

    /// Clocks and counters of one record are read one after the other, so an older record may have the newer counters: none goes
    /// back. Packets are counted in 32 bits by the kernel, and go on here where those wrap. The bytes of a close are the
    /// last word: the kernel holds the socket then, and no scan does, which may have counted a FIN.
    pub fn never_less_than(&mut self, before: &Self) {
        if !self.has(Self::CLOSED) {
            self.bytes_sent = self.bytes_sent.max(before.bytes_sent);
            self.bytes_received = self.bytes_received.max(before.bytes_received);
        }
        self.packets_sent = extend(before.packets_sent, self.packets_sent);
        self.packets_received = extend(before.packets_received, self.packets_received);
        self.retrans = self.retrans.max(before.retrans);
        self.out_of_order = self.out_of_order.max(before.out_of_order);
    }

    /// Takes away what it has counted.
    pub fn forget_counters(&mut self) {
        (self.bytes_sent, self.bytes_received, self.packets_sent, self.packets_received) = (0, 0, 0, 0);
        (self.retrans, self.out_of_order) = (0, 0);
    }

    /// Whether a mark is set.
    #[must_use]
    pub fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    /// The handshake of a TCP socket is not over.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        matches!(self.state, tcp_state::SYN_SENT | tcp_state::SYN_RECV)
    }

    /// Its process has closed a TCP socket, or its sending side, and its last record has not come.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        use tcp_state as s;
        !self.has(Self::CLOSED) && matches!(self.state, s::FIN_WAIT1 | s::FIN_WAIT2 | s::CLOSING | s::LAST_ACK)
    }

    /// How a TCP socket stands, or how it ended: from the state that it left and its error. A reset by the peer leaves
    /// `sk_err` (`tcp_reset`); an orderly end passes through the states after both FINs.
    #[must_use]
    pub fn tcp_state(&self) -> State {
        const ECONNREFUSED: u8 = 111;
        const ETIMEDOUT: u8 = 110;
        const EHOSTUNREACH: u8 = 113;
        const ENETUNREACH: u8 = 101;
        use tcp_state as s;
        if !self.has(Self::CLOSED) {
            return match self.state {
                s::SYN_SENT | s::SYN_RECV => State::Connecting,
                s::ESTABLISHED => State::Open,
                _ => State::Closing,
            };
        }
        match (self.state, self.error) {
            (_, ETIMEDOUT) => State::TimedOut,
            (_, EHOSTUNREACH | ENETUNREACH) => State::Unreachable,
            (s::SYN_SENT, ECONNREFUSED) => State::Refused,
            (s::SYN_SENT, 0) => State::Aborted,
            (s::FIN_WAIT2 | s::CLOSING | s::LAST_ACK | s::TIME_WAIT, 0) => State::Closed,
            _ => State::Reset,
        }
    }
}

/// A TCP record of the kernel, in the table's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpObservation {
    /// Local address and port.
    pub local: Endpoint,
    /// The peer's.
    pub remote: Endpoint,
    /// The side that this socket is on, if the kernel has told: not always of one older than the agent, and never of one
    /// that was restored.
    pub side: Option<Side>,
    /// The peer's ISN.
    pub seq_remote: u32,
    /// When the socket was opened, `CLOCK_BOOTTIME` nanoseconds.
    pub opened_ns: u64,
    /// Windows in bytes, at most 65,535: what the peer may send, and the most that it ever let us send.
    pub windows: [u16; 2],
    /// Beginning of the name of the congestion control.
    pub congestion: [u8; CONGESTION_LEN],
    /// Everything else.
    pub end: End,
}

impl TcpObservation {
    /// Reads a flow record. `closed`: it is the socket's last.
    #[must_use]
    pub fn new(r: &FlowRecord, closed: bool) -> Self {
        let side = match r.flags & flags::ROLE_MASK {
            flags::ROLE_INITIATOR => Some(Side::Initiator),
            flags::ROLE_RESPONDER => Some(Side::Responder),
            _ => None,
        };
        let mut marks = 0;
        for (set, mark) in [
            (closed, End::CLOSED),
            (r.flags & flags::OWNER_CONFIRMED != 0, End::OWNER_CONFIRMED),
            (r.flags & flags::PRE_EXISTING != 0, End::PRE_EXISTING),
            (side == Some(Side::Initiator), End::CONNECTED),
            (side == Some(Side::Responder) || r.traits & traits::RESTORED != 0, End::NOT_CONNECTED),
            (r.traits & traits::RESTORED != 0, End::RESTORED),
            (r.traits & traits::BYPASSED != 0, End::BYPASSED),
        ] {
            marks |= if set { mark } else { 0 };
        }
        Self {
            local: Endpoint { addr: Addr(r.local_addr), port: r.local_port },
            remote: Endpoint { addr: Addr(r.remote_addr), port: r.remote_port },
            side,
            seq_remote: r.seq_remote,
            opened_ns: r.at_ns.saturating_sub(r.age_ns()),
            windows: [r.window_local, r.window_remote],
            congestion: r.congestion,
            end: End {
                cookie: r.cookie,
                owner: ProcKey::new(r.pid, r.start_ticks, r.flags),
                netns: r.netns,
                state: r.state,
                error: r.error,
                seq_local: r.seq_local,
                marks,
                bytes_sent: r.bytes_sent,
                bytes_received: r.bytes_received,
                packets_sent: u64::from(r.segs_out),
                packets_received: u64::from(r.segs_in),
                retrans: r.retrans,
                out_of_order: r.out_of_order,
                srtt_us: r.srtt_us,
                rttvar_us: r.rttvar_us,
                at_ns: r.at_ns,
            },
        }
    }

    /// Whether both initial sequence numbers are known: the handshake got far enough, and the socket saw it.
    #[must_use]
    pub fn has_sequence_numbers(&self) -> bool {
        !self.end.is_connecting() && !self.end.has(End::RESTORED)
    }

    /// The connection as this end sees it, if it is on that side.
    #[must_use]
    pub fn view(&self, side: Side) -> FlowKey {
        FlowKey::seen_from(Proto::Tcp, side, self.local, self.remote)
    }
}

/// Counters of both directions, indexed by the sending [`Side`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Payload bytes.
    pub bytes: [u64; 2],
    /// Segments or datagrams.
    pub packets: [u64; 2],
    /// Retransmitted segments.
    pub retrans: [u32; 2],
    /// Segments that arrived out of order.
    pub out_of_order: [u32; 2],
}

impl Counters {
    /// What was added since `before`; never negative.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut delta = Self::default();
        for i in 0..2 {
            delta.bytes[i] = self.bytes[i].saturating_sub(before.bytes[i]);
            delta.packets[i] = self.packets[i].saturating_sub(before.packets[i]);
            delta.retrans[i] = self.retrans[i].saturating_sub(before.retrans[i]);
            delta.out_of_order[i] = self.out_of_order[i].saturating_sub(before.out_of_order[i]);
        }
        delta
    }

    /// The sum.
    pub fn add(&mut self, other: &Self) {
        for i in 0..2 {
            self.bytes[i] += other.bytes[i];
            self.packets[i] += other.packets[i];
            self.retrans[i] += other.retrans[i];
            self.out_of_order[i] += other.out_of_order[i];
        }
    }

    /// Segments that either side sent again.
    #[must_use]
    pub fn retrans_of_both(&self) -> u64 {
        self.retrans.into_iter().map(u64::from).sum()
    }

    /// The same with the sides exchanged.
    pub fn reverse(&mut self) {
        self.bytes.reverse();
        self.packets.reverse();
        self.retrans.reverse();
        self.out_of_order.reverse();
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}
