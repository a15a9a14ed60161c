//! What is copied of packets: messages of DNS, and the first data of clients.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(doc)]
use super::{Kind, flags};

/// A message to or from a DNS server, of one of its clients, or the first data of a client (`struct se_payload`). Its first bytes
/// follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PayloadHead {
    /// [`Kind::Dns`] or [`Kind::Hello`].
    pub kind: u8,
    /// 1: went out, 0: came in.
    pub sent: u8,
    /// [`flags`] of the owner.
    pub flags: u8,
    /// 1: a segment of TCP, which may begin with the length of the message, or be nothing else.
    pub is_tcp: u8,
    /// Owner.
    pub pid: u32,
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub at_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// Start time of the owner, 10 ms units.
    pub start_ticks: u32,
    /// Inode of the network namespace, 0 = not known (TCP).
    pub netns: u32,
    /// Whom it asks, as it knows that. Network order, IPv4 as `::ffff:a.b.c.d`.
    pub remote_addr: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Bytes that follow.
    pub copied: u16,
    /// Bytes of the datagram or segment; if it is large, fewer were copied.
    pub bytes: u32,
}

/// A record of [`PayloadHead`] and the beginning of the message.
#[derive(Debug, Clone, Copy)]
pub struct PayloadRecord<'a> {
    /// Whose message.
    pub head: &'a PayloadHead,
    /// As much of it as was copied.
    pub message: &'a [u8],
}

impl<'a> PayloadRecord<'a> {
    /// `None` if the bytes are no such record.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = PayloadHead::ref_from_prefix(bytes).ok()?;
        Some(Self { head, message: rest.get(..usize::from(head.copied))? })
    }
}
