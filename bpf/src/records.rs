//! The records that cross the kernel boundary: the Rust side of `bpf/intf.h`.
//!
//! `tests/layout.rs` compares size and offset of every field with the BTF of the compiled object.

mod payload;
mod tcp;
mod udp;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use payload::*;
pub use tcp::*;
pub use udp::*;

/// Length of a task's name, with its NUL (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;
/// Bytes for an executable's path in an [`IdentityRecord`].
pub const EXE_LEN: usize = 256;
/// Bytes of the command line in an [`IdentityRecord`].
pub const ARGS_LEN: usize = 512;
/// Bytes for a path in a [`CgroupRecord`].
pub const CGROUP_LEN: usize = 512;
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
    /// Closes by a process that were not told of because the ring was full. Not lost: the end of the connection follows.
    pub shut_dropped: u64,
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
