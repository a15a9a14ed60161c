//! Reading what the kernel keeps: all tracked sockets, the closes that found their ring full, the UDP table.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use libbpf_rs::{Iter, Link, MapCore, MapFlags, MapHandle};
use rustix::time::{ClockId, clock_gettime};

use crate::error::KernelError;
use crate::records::{CloseRecord, FlowRecord, Record, UdpKey, UdpValue};
use crate::ring::{Drain, Ring};
use crate::sys::{Scratch, drain_map};

/// What a scan says of a socket.
#[derive(Debug, Clone, Copy)]
pub enum Scanned<'a> {
    /// All that there is to say.
    Socket(&'a FlowRecord),
    /// The connection with this cookie is there, as it was in the last scan.
    Same(u64),
}

/// Reader of the kernel's tables. One per agent, owned by the control thread.
pub struct Scanner {
    sockets: Link,
    scanned: Ring,
    /// The kernel's switch, and how it stands.
    all: (MapHandle, bool),
    closes: MapHandle,
    close_scratch: Scratch<u64, CloseRecord>,
}

impl Scanner {
    pub(crate) fn new(sockets: Link, scanned: Ring, all: MapHandle, closes: MapHandle) -> Self {
        Self { sockets, scanned, all: (all, false), closes, close_scratch: Scratch::new() }
    }

    /// Bytes of the kernel's buffer between the scan and its reader.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.scanned.size_bytes()
    }

    /// Scans all tracked sockets of all namespaces. Returns how many there were. `all`: none is [`Scanned::Same`].
    ///
    /// # Errors
    /// If the iterator cannot be started or read.
    pub fn sockets(&mut self, all: bool, mut each: impl FnMut(Scanned<'_>)) -> Result<usize, KernelError> {
        self.tell_all(all)?;
        let mut iter = Iter::new(&self.sockets)
            .map_err(|source| KernelError::Bpf { what: "cannot start the socket scan iterator", source })?;
        let mut total = 0;
        loop {
            // The program writes to the ring, and the scan ends or pauses when that is full.
            let ended = match iter.read(&mut [0; 8]) {
                Ok(_) => true,
                Err(err) if matches!(err.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => false,
                Err(source) => {
                    return Err(KernelError::Io { what: "cannot read the socket scan iterator".into(), source });
                }
            };
            total += self.scanned.drain(usize::MAX, |bytes| {
                if let Ok(cookie) = bytes.try_into() {
                    each(Scanned::Same(u64::from_ne_bytes(cookie)));
                } else if let Some(Record::Flow(record)) = Record::parse(bytes) {
                    each(Scanned::Socket(record));
                }
            });
            if ended {
                return Ok(total);
            }
        }
    }

    fn tell_all(&mut self, all: bool) -> Result<(), KernelError> {
        if self.all.1 != all {
            self.all
                .0
                .update(&0u32.to_ne_bytes(), &u32::from(all).to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| KernelError::Bpf { what: "cannot switch the socket scan", source })?;
            self.all.1 = all;
        }
        Ok(())
    }

    /// Takes the close records that found their ring full.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn closes(&mut self, mut each: impl FnMut(&CloseRecord)) -> Result<usize, KernelError> {
        drain_map(self.closes.as_fd(), &mut self.close_scratch, |_, record| each(record))
            .map_err(|source| KernelError::Io { what: "cannot read the close overflow".into(), source })
    }
}

/// The walk over the open files of all processes that finds out who holds a socket which nobody has told of by using it.
pub struct HolderWalk {
    files: Link,
    step: MapHandle,
    number: u32,
}

impl HolderWalk {
    pub(crate) fn new(files: Link, step: MapHandle) -> Self {
        Self { files, step, number: 0 }
    }

    /// Walks twice: to note, and to decide. The next scan tells of owners that have changed.
    ///
    /// # Errors
    /// If the iterator cannot be started or read.
    pub fn walk(&mut self) -> Result<(), KernelError> {
        self.number = self.number.wrapping_add(1).max(1);
        for deciding in [0, 1] {
            let step = self.number << 1 | deciding;
            self.step
                .update(&0u32.to_ne_bytes(), &step.to_ne_bytes(), MapFlags::ANY)
                .map_err(|source| KernelError::Bpf { what: "cannot prepare the walk over open files", source })?;
            run(&self.files, "the walk over open files")?;
        }
        Ok(())
    }
}

/// Runs an iterator that has nothing to say.
pub(crate) fn run(link: &Link, name: &str) -> Result<(), KernelError> {
    let failed = |what: &str, source| KernelError::Io { what: format!("cannot {what} {name}"), source };
    let mut iter = Iter::new(link).map_err(|err| failed("start", std::io::Error::other(err)))?;
    std::io::copy(&mut iter, &mut std::io::sink()).map_err(|source| failed("read", source))?;
    Ok(())
}

/// The UDP table and its empty twin.
pub struct UdpTables {
    slot: MapHandle,
    tables: [MapHandle; 2],
    active: usize,
    scratch: Scratch<UdpKey, UdpValue>,
}

impl UdpTables {
    pub(crate) fn new(slot: MapHandle, tables: [MapHandle; 2]) -> Self {
        Self { slot, tables, active: 0, scratch: Scratch::new() }
    }

    /// Takes all UDP counters since the last call. Exact: the table is first exchanged for an empty one, and that
    /// update returns only when no program can still be writing to the old one, which may take a second.
    ///
    /// # Errors
    /// If the exchange or the reading fails.
    pub fn take(&mut self, mut each: impl FnMut(&UdpKey, &UdpValue)) -> Result<usize, KernelError> {
        let (full, empty) = (self.active, 1 - self.active);
        if self.tables[full].keys().next().is_none() {
            return Ok(0); // what is written from now on is for the next time
        }
        let fd = self.tables[empty].as_fd().as_raw_fd().to_ne_bytes();
        self.slot
            .update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY)
            .map_err(|source| KernelError::Bpf { what: "cannot exchange the UDP table", source })?;
        self.active = empty;
        let suspended = clock_gettime(ClockId::Boottime) - clock_gettime(ClockId::Monotonic);
        // Never suspended: the second clock was read a little later.
        let suspended_ns = Duration::try_from(suspended).unwrap_or_default().as_nanos() as u64;
        let to_boot_time = |key: &UdpKey, value: &UdpValue| {
            each(key, &UdpValue { last_ns: (value.last_ns + suspended_ns).max(value.first_ns), ..*value });
        };
        drain_map(self.tables[full].as_fd(), &mut self.scratch, to_boot_time)
            .map_err(|source| KernelError::Io { what: "cannot read the UDP table".into(), source })
    }
}
