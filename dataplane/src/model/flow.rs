//! The vocabulary: addresses, ends of a connection, flows, and what an exporter is told of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sockeye_bpf::records::flags;

pub use super::end::{Counters, End, TcpObservation};

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
