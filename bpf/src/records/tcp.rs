//! Connections of TCP.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(doc)]
use super::Kind;

/// Round-trip samples in an [`RttRecord`].
pub const RTT_BATCH: usize = 22;
/// Round-trip samples in a [`CloseRecord`].
pub const CLOSE_RTT: usize = 8;
/// Bytes of the name of a congestion control in a [`FlowRecord`].
pub const CONGESTION_LEN: usize = 3;

/// Bits of [`FlowRecord::flags`] (`enum se_flags`).
pub mod flags {
    /// The role, one of `ROLE_*`.
    pub const ROLE_MASK: u8 = 0x03;
    /// Not known: the socket is older than the agent.
    pub const ROLE_UNKNOWN: u8 = 0;
    /// This end connected.
    pub const ROLE_INITIATOR: u8 = 1;
    /// This end accepted.
    pub const ROLE_RESPONDER: u8 = 2;
    /// The socket listens.
    pub const ROLE_LISTENER: u8 = 3;
    /// The owner itself connected, or has read from the socket.
    pub const OWNER_CONFIRMED: u8 = 0x04;
    /// The socket is older than the agent.
    pub const PRE_EXISTING: u8 = 0x08;
    /// UDP, not TCP.
    pub const UDP: u8 = 0x10;
    /// Number of the owner's `exec()`, modulo 8.
    pub const EXEC_MASK: u8 = 0xe0;
}

/// Bits of [`FlowRecord::traits`] (`enum se_traits`).
pub mod traits {
    /// A listener on an IPv6 address that takes no IPv4.
    pub const V6ONLY: u8 = 0x01;
    /// Made by `TCP_REPAIR`: its counters begin in the middle of a connection.
    pub const RESTORED: u8 = 0x02;
    /// Was in a sockmap: programs may carry its data past TCP and its counters.
    pub const BYPASSED: u8 = 0x04;
}

/// One end of a TCP connection, or a listening socket (`struct se_flow`). Counters are absolute, of the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FlowRecord {
    /// [`Kind`].
    pub kind: u8,
    /// [`flags`].
    pub flags: u8,
    /// TCP state number; in a close record the state that the socket left.
    pub state: u8,
    /// `sk_err`, an errno.
    pub error: u8,
    /// Thread group id of the owner, 0 = unknown.
    pub pid: u32,
    /// The kernel's socket cookie, unique per boot.
    pub cookie: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub at_ns: u64,
    /// Start time of the owner, 10 ms units since boot, truncated to 32 bits.
    pub start_ticks: u32,
    /// Since the socket connected or was accepted: microseconds, or with [`AGE_MS`] milliseconds. See [`Self::age_ns`].
    pub age: u32,
    /// Network order, IPv4 as `::ffff:a.b.c.d`.
    pub local_addr: [u8; 16],
    /// Network order, IPv4 as `::ffff:a.b.c.d`.
    pub remote_addr: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Bytes that the peer acknowledged, without a FIN; on the initiator the SYN counts as one.
    pub bytes_sent: u64,
    /// Bytes received in order, without a FIN.
    pub bytes_received: u64,
    /// Segments sent.
    pub segs_out: u32,
    /// Segments received.
    pub segs_in: u32,
    /// Segments retransmitted.
    pub retrans: u32,
    /// Segments received out of order.
    pub out_of_order: u32,
    /// Smoothed round-trip time, microseconds.
    pub srtt_us: u32,
    /// Its mean deviation, microseconds.
    pub rttvar_us: u32,
    /// Bytes that the peer may send now, at most 65,535: collectors keep no more.
    pub window_local: u16,
    /// The most that the peer ever let us send, likewise.
    pub window_remote: u16,
    /// Beginning of the name of the congestion control.
    pub congestion: [u8; CONGESTION_LEN],
    /// [`traits`].
    pub traits: u8,
    /// First sequence number that `bytes_acked` counts: the ISN of who connected, ISN + 1 of who accepted.
    pub seq_local: u32,
    /// ISN of the peer.
    pub seq_remote: u32,
}

/// Marks a [`FlowRecord::age`] in milliseconds: microseconds have room for 35 minutes.
pub const AGE_MS: u32 = 0x8000_0000;

impl FlowRecord {
    /// Since the socket connected or was accepted, nanoseconds, in steps of a microsecond, or after 35 minutes of a millisecond.
    #[must_use]
    #[inline]
    pub fn age_ns(&self) -> u64 {
        let step_ns = if self.age & AGE_MS == 0 { 1000 } else { 1_000_000 };
        u64::from(self.age & !AGE_MS) * step_ns
    }
}

/// A connection that is over, with the round-trip samples that were not sent before (`struct se_close`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CloseRecord {
    /// Its last figures.
    pub flow: FlowRecord,
    /// Microseconds; 0 = none.
    pub samples_us: [u32; CLOSE_RTT],
}

impl CloseRecord {
    /// The samples that are filled.
    #[must_use]
    #[inline]
    pub fn samples_us(&self) -> &[u32] {
        let filled = self.samples_us.iter().position(|sample| *sample == 0).unwrap_or(CLOSE_RTT);
        &self.samples_us[..filled]
    }
}

/// Round-trip samples of one socket (`struct se_rtt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RttRecord {
    /// [`Kind::Rtt`].
    pub kind: u8,
    /// Samples that are filled.
    pub count: u8,
    /// [`flags`].
    pub flags: u8,
    /// Padding.
    pub pad0: u8,
    /// Owner.
    pub pid: u32,
    /// Start time of the owner, 10 ms units.
    pub start_ticks: u32,
    /// As in [`FlowRecord`]: tells the connections of one socket apart.
    pub seq_local: u32,
    /// Socket cookie.
    pub cookie: u64,
    /// Network order, IPv4 as `::ffff:a.b.c.d`.
    pub remote_addr: [u8; 16],
    /// Microseconds, at least 1.
    pub samples_us: [u32; RTT_BATCH],
}
