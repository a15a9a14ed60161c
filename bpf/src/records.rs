//! The records that cross the kernel boundary: the Rust side of `bpf/intf.h`.
//!
//! `tests/layout.rs` compares size and offset of every field with the BTF of the compiled object.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of a task's name, with its NUL (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;
/// Bytes for an executable's path in an [`IdentityRecord`].
pub const EXE_LEN: usize = 256;
/// Bytes of the command line in an [`IdentityRecord`].
pub const ARGS_LEN: usize = 512;
/// Bytes for a path in a [`CgroupRecord`].
pub const CGROUP_LEN: usize = 512;
/// Round-trip samples in an [`RttRecord`].
pub const RTT_BATCH: usize = 22;
/// Round-trip samples in a [`CloseRecord`].
pub const CLOSE_RTT: usize = 8;
/// Bytes of the name of a congestion control in a [`FlowRecord`].
pub const CONGESTION_LEN: usize = 3;
/// Kinds of records; also the length of the per-kind counters.
pub const KINDS: usize = 10;

/// First byte of every record (`enum se_kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The last word on a TCP connection.
    Close = 0,
    /// A live TCP socket, seen by the scan, or when its process has closed it.
    Scan = 1,
    /// A listening TCP or bound UDP socket, seen by the scan.
    Listener = 2,
    /// A batch of round-trip samples.
    Rtt = 3,
    /// One UDP packet that found the UDP table full.
    Datagram = 4,
    /// A UDP socket is gone.
    UdpClose = 5,
    /// A process, at its first socket.
    Identity = 6,
    /// A cgroup, at the first process in it that is seen.
    Cgroup = 7,
    /// A message to or from a DNS server, of one of its clients.
    Dns = 8,
    /// The first data that a client sends, if that is wanted.
    Hello = 9,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
        Self::Close,
        Self::Scan,
        Self::Listener,
        Self::Rtt,
        Self::Datagram,
        Self::UdpClose,
        Self::Identity,
        Self::Cgroup,
        Self::Dns,
        Self::Hello,
    ];

    /// The kind of the record that starts with `byte`.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// Name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Scan => "scan",
            Self::Listener => "listener",
            Self::Rtt => "rtt",
            Self::Datagram => "datagram",
            Self::UdpClose => "udp_close",
            Self::Identity => "identity",
            Self::Cgroup => "cgroup",
            Self::Dns => "dns",
            Self::Hello => "hello",
        }
    }
}

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

/// A process at its first socket (`struct se_identity`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentityRecord {
    /// [`Kind::Identity`].
    pub kind: u8,
    /// 1: `exe` holds the path up to the root.
    pub exe_complete: u8,
    /// Bytes of `exe` that are filled.
    pub exe_len: u16,
    /// Thread group id.
    pub pid: u32,
    /// Start time, 10 ms units.
    pub start_ticks: u32,
    /// Thread group id of the parent.
    pub ppid: u32,
    /// Real user id, as the host sees it.
    pub uid: u32,
    /// Real group id, as the host sees it.
    pub gid: u32,
    /// Real user id of the parent.
    pub parent_uid: u32,
    /// Length of the whole command line.
    pub args_total: u32,
    /// Bytes of `args` that are filled.
    pub args_len: u32,
    /// [`flags::EXEC_MASK`].
    pub flags: u8,
    /// Padding.
    pub pad0: [u8; 3],
    /// When it was so, `CLOCK_BOOTTIME` nanoseconds. Records of several CPUs come in any order.
    pub at_ns: u64,
    /// Inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// Name of the process.
    pub comm: [u8; COMM_LEN],
    /// Name of its parent.
    pub parent_comm: [u8; COMM_LEN],
    /// Path components, the last one first, each with a NUL.
    pub exe: [u8; EXE_LEN],
    /// As in `/proc/PID/cmdline`.
    pub args: [u8; ARGS_LEN],
}

/// Path of a cgroup v2 directory (`struct se_cgroup`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CgroupRecord {
    /// [`Kind::Cgroup`].
    pub kind: u8,
    /// 1: `path` holds the path up to the root of the hierarchy.
    pub complete: u8,
    /// Bytes of `path` that are filled.
    pub len: u16,
    /// Padding.
    pub pad0: u32,
    /// Inode of the directory.
    pub cgroup_id: u64,
    /// Path components, the last one first, each with a NUL.
    pub path: [u8; CGROUP_LEN],
}

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

/// Counters of one CPU (`struct se_stats`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CpuStats {
    /// Records offered to the ring, by [`Kind`].
    pub offered: [u64; KINDS],
    /// Records that did not fit, by [`Kind`].
    pub lost: [u64; KINDS],
    /// Closes that went to the overflow map instead of the ring. Not lost.
    pub close_overflow: u64,
    /// Sockets that could not be tracked for want of memory.
    pub storage_failed: u64,
    /// Connections that ended without ever having been tracked.
    pub untracked_close: u64,
    /// UDP packets sent through the ring because the UDP table was full. Not lost.
    pub udp_table_full: u64,
    /// Packets of UDP sockets whose headers could not be read.
    pub udp_unparsed: u64,
    /// Command lines that were not in memory when the process was first seen.
    pub args_unreadable: u64,
    /// TCP sockets that a filter left out.
    pub ignored_tcp: u64,
    /// UDP packets that a filter left out.
    pub ignored_udp: u64,
    /// Messages of DNS that were more than is looked at.
    pub dns_left_out: u64,
    /// First data of clients, likewise.
    pub hellos_left_out: u64,
}

impl CpuStats {
    /// Records that found neither room in the ring nor in the overflow.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.lost.iter().sum()
    }
}

/// A record of any kind, borrowed from a ring.
#[derive(Debug, Clone, Copy)]
pub enum Record<'a> {
    /// Scan or listener.
    Flow(&'a FlowRecord),
    /// End of a TCP connection.
    Close(&'a CloseRecord),
    /// Round-trip samples.
    Rtt(&'a RttRecord),
    /// A single UDP packet.
    Datagram(&'a DatagramRecord),
    /// End of a UDP socket.
    UdpClose(&'a UdpCloseRecord),
    /// A process.
    Identity(&'a IdentityRecord),
    /// Path of a cgroup.
    Cgroup(&'a CgroupRecord),
    /// A message of DNS, or the first data of a client.
    Payload(PayloadRecord<'a>),
}

impl<'a> Record<'a> {
    /// Reads a record from the bytes of a ring entry, which are aligned to 8 bytes there. The length of an entry is the
    /// record's, rounded up to 8, which all of them are; a message of DNS has room for more than it needs. `None` if the bytes are no record.
    #[must_use]
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Some(match Kind::from_byte(*bytes.first()?)? {
            Kind::Scan | Kind::Listener => Self::Flow(FlowRecord::ref_from_bytes(bytes).ok()?),
            Kind::Close => Self::Close(CloseRecord::ref_from_bytes(bytes).ok()?),
            Kind::Rtt => Self::Rtt(RttRecord::ref_from_bytes(bytes).ok()?),
            Kind::Datagram => Self::Datagram(DatagramRecord::ref_from_bytes(bytes).ok()?),
            Kind::UdpClose => Self::UdpClose(UdpCloseRecord::ref_from_bytes(bytes).ok()?),
            Kind::Identity => Self::Identity(IdentityRecord::ref_from_bytes(bytes).ok()?),
            Kind::Cgroup => Self::Cgroup(CgroupRecord::ref_from_bytes(bytes).ok()?),
            Kind::Dns | Kind::Hello => Self::Payload(PayloadRecord::parse(bytes)?),
        })
    }
}
