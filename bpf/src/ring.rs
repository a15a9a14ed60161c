//! Draining one CPU's ring buffer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map, MapData, MapError, RingBuf};

/// A source of records: a ring in production, a vector in tests, another reader in benches.
pub trait Drain {
    /// Hands at most `limit` pending records to `each`, in order. Returns how many there were.
    fn drain(&mut self, limit: usize, each: impl FnMut(&[u8])) -> usize;

    /// How much it holds, bytes; without a limit unless it says otherwise.
    fn capacity_bytes(&self) -> usize {
        usize::MAX
    }
}

/// The consumer of one CPU's ring. May move to another thread; there is exactly one per ring.
pub struct Ring {
    cpu: usize,
    size_bytes: usize,
    ring: RingBuf<MapData>,
}

impl Ring {
    pub(crate) fn new(cpu: usize, size_bytes: usize, fd: OwnedFd) -> Result<Self, MapError> {
        let ring = RingBuf::try_from(Map::RingBuf(MapData::from_fd(fd)?))?;
        Ok(Self { cpu, size_bytes, ring })
    }

    /// The CPU whose programs write to this ring.
    #[must_use]
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// A descriptor that is readable while there are records, for who wants to be woken.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn event_fd(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    /// Capacity in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }
}

impl Drain for Ring {
    fn capacity_bytes(&self) -> usize {
        self.size_bytes
    }

    #[inline]
    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut drained = 0;
        while drained < limit {
            // The item gives its space back to the producer when it is dropped, right after `each`.
            let Some(item) = self.ring.next() else { break };
            each(&item);
            drained += 1;
        }
        drained
    }
}
