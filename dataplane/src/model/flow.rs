//! The vocabulary: addresses, ends of a connection, flows, and what an exporter is told of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sockeye_bpf::records::{CONGESTION_LEN, FlowRecord, flags, traits};

/// An IP address in 16 bytes, IPv4 as `::ffff:a.b.c.d`. Displayed as IPv4 where it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The address in the standard library's type, IPv4-mapped ones as IPv4.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }

    /// Sockets that share such an address all get what is sent to it.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        let ip = self.ip();
        ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
    }

    /// Every or no address, of the same version.
    #[must_use]
    pub fn unspecified(self) -> Self {
        match self.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED).into(),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED).into(),
        }
    }

    /// 127.0.0.0/8 or ::1.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        self.ip().is_loopback()
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// Address and port. Displayed as `1.2.3.4:80` or `[2001:db8::1]:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// IP address.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::SocketAddr::new(self.addr.ip(), self.port).fmt(f)
    }
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
}

impl Proto {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Lower-case name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The 5-tuple, oriented: the initiator connected, or sent the first datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Transport protocol.
    pub proto: Proto,
    /// Who started it.
    pub initiator: Endpoint,
    /// Who answered.
    pub responder: Endpoint,
}

impl FlowKey {
    /// The 5-tuple of a socket on a side.
    #[must_use]
    pub fn seen_from(proto: Proto, side: Side, local: Endpoint, remote: Endpoint) -> Self {
        match side {
            Side::Initiator => Self { proto, initiator: local, responder: remote },
            Side::Responder => Self { proto, initiator: remote, responder: local },
        }
    }

    /// Address and port of a side.
    #[must_use]
    pub fn endpoint(&self, side: Side) -> Endpoint {
        match side {
            Side::Initiator => self.initiator,
            Side::Responder => self.responder,
        }
    }

    /// It stands for all peers of a UDP socket that have no flow of their own: they have no address.
    #[must_use]
    pub fn is_of_other_peers(&self) -> bool {
        let nobody = |side| self.endpoint(side).port == 0 && self.endpoint(side).addr.ip().is_unspecified();
        self.proto == Proto::Udp && Side::BOTH.into_iter().any(nobody)
    }

    /// Address and port of a side, for people.
    #[must_use]
    pub fn text(&self, side: Side) -> String {
        let endpoint = self.endpoint(side);
        if self.is_of_other_peers() && endpoint.port == 0 { "other peers".into() } else { endpoint.to_string() }
    }

    /// The same connection with the roles exchanged.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { proto: self.proto, initiator: self.responder, responder: self.initiator }
    }
}

/// A side of a flow; indexes pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Who started it.
    Initiator = 0,
    /// Who answered.
    Responder = 1,
}

impl Side {
    /// Both, in the order of their indexes.
    pub const BOTH: [Self; 2] = [Self::Initiator, Self::Responder];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// A process in time: pids are reused, start times are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProcKey {
    /// Thread group id in the initial pid namespace; 0 = unknown.
    pub pid: u32,
    /// Start time, 10 ms units since boot, truncated to 32 bits.
    pub start_ticks: u32,
    /// Number of its `exec()`, modulo 8: the same process may run one program after another.
    pub exec: u8,
}

impl ProcKey {
    /// From the fields of a record of the kernel.
    #[must_use]
    pub fn new(pid: u32, start_ticks: u32, flags: u8) -> Self {
        Self { pid, start_ticks, exec: flags & flags::EXEC_MASK }
    }

    /// Whether it names a process at all.
    #[must_use]
    pub fn is_known(self) -> bool {
        self.pid != 0
    }
}

/// TCP states, by the kernel's numbers (`include/net/tcp_states.h`).
pub mod tcp_state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// How a flow stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// SYN sent, nothing heard.
    Connecting,
    /// TCP is open, or UDP is talking.
    Open,
    /// One side has closed.
    Closing,
    /// Both sides closed in order.
    Closed,
    /// The peer refused the connection.
    Refused,
    /// The peer could not be reached.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// Torn down by a reset.
    Reset,
    /// Given up by the application while connecting.
    Aborted,
    /// UDP without traffic for the idle timeout.
    Idle,
    /// Gone without a close record: the loss is counted, the last figures stand.
    Vanished,
}

impl State {
    /// Every state, for statistics.
    pub const ALL: [Self; 11] = [
        Self::Connecting,
        Self::Open,
        Self::Closing,
        Self::Closed,
        Self::Refused,
        Self::Unreachable,
        Self::TimedOut,
        Self::Reset,
        Self::Aborted,
        Self::Idle,
        Self::Vanished,
    ];

    /// Lower-case word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed out",
            Self::Reset => "reset",
            Self::Aborted => "aborted",
            Self::Idle => "idle",
            Self::Vanished => "vanished",
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Connecting | Self::Open | Self::Closing)
    }
}

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
    /// back. Packets are counted in 32 bits by the kernel, and go on here where those wrap.
    pub fn never_less_than(&mut self, before: &Self) {
        self.bytes_sent = self.bytes_sent.max(before.bytes_sent);
        self.bytes_received = self.bytes_received.max(before.bytes_received);
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
