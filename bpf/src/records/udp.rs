//! Traffic of UDP.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(doc)]
use super::{Kind, flags};

/// What identifies the traffic of a UDP socket with one peer (`struct se_udp_key`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UdpKey {
    /// Socket cookie.
    pub cookie: u64,
    /// Network order, IPv4 as `::ffff:a.b.c.d`.
    pub local_addr: [u8; 16],
    /// Network order, IPv4 as `::ffff:a.b.c.d`.
    pub remote_addr: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
    /// Inode of the network namespace, 0 = unknown (a kernel socket).
    pub netns: u32,
}

/// Bits of [`UdpValue::traits`] (`enum se_udp_traits`).
pub mod udp_traits {
    /// The peer knows other addresses than this end: those in `wire_local` and `wire_remote`.
    pub const TRANSLATED: u8 = 0x01;
    /// The socket is older than the agent, was bound to a port, and not connected.
    pub const SERVES: u8 = 0x02;
    /// Something came to a multicast or broadcast address.
    pub const GROUP: u8 = 0x04;
    /// The socket is older than the agent, is connected, and was given no port by `bind()`.
    pub const ASKS: u8 = 0x08;
    /// The socket is the kernel's own: it has no process.
    pub const KERNEL: u8 = 0x10;
}

/// Counters since the last drain (`struct se_udp_value`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UdpValue {
    /// Payload bytes sent.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// First packet, `CLOCK_BOOTTIME`, nanoseconds.
    pub first_ns: u64,
    /// Last packet, nanoseconds: `CLOCK_MONOTONIC_COARSE` in the kernel's table, `CLOCK_BOOTTIME` as
    /// [`UdpTables::take`](crate::scan::UdpTables::take) gives it.
    pub last_ns: u64,
    /// Datagrams sent.
    pub packets_sent: u32,
    /// Datagrams received.
    pub packets_received: u32,
    /// Owner.
    pub pid: u32,
    /// Start time of the owner, 10 ms units.
    pub start_ticks: u32,
    /// 1: the first packet went out.
    pub first_sent: u8,
    /// [`flags`] of the owner.
    pub flags: u8,
    /// [`udp_traits`].
    pub traits: u8,
    /// Padding.
    pub pad0: u8,
    /// Host order; with `udp_traits::TRANSLATED`.
    pub wire_local_port: u16,
    /// Host order; with `udp_traits::TRANSLATED`.
    pub wire_remote_port: u16,
    /// Where the first packet lay in the kernel's memory, 0 = not known: who received the same one has the same here.
    pub first_head: u64,
    /// With `udp_traits::TRANSLATED`: this end as its peer sees it, network order, IPv4 as `::ffff:a.b.c.d`.
    pub wire_local: [u8; 16],
    /// The peer as it sees itself, likewise.
    pub wire_remote: [u8; 16],
}

/// One UDP packet that found the UDP table full (`struct se_datagram`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatagramRecord {
    /// [`Kind::Datagram`].
    pub kind: u8,
    /// 1: went out, 0: came in.
    pub sent: u8,
    /// [`flags`] of the owner.
    pub flags: u8,
    /// Padding.
    pub pad0: u8,
    /// Owner.
    pub pid: u32,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub at_ns: u64,
    /// Whose traffic it is.
    pub key: UdpKey,
    /// Start time of the owner, 10 ms units.
    pub start_ticks: u32,
    /// Datagrams in this packet (more than one with segmentation offload).
    pub packets: u32,
    /// Payload bytes.
    pub bytes: u64,
}

/// A UDP socket is gone (`struct se_udp_close`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UdpCloseRecord {
    /// [`Kind::UdpClose`].
    pub kind: u8,
    /// Padding.
    pub pad0: [u8; 7],
    /// Socket cookie.
    pub cookie: u64,
}
