//! Other readers of a ring, to compare ours with: aya's and libbpf's.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::rc::Rc;

use aya::maps::{Map, MapData, RingBuf};
use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};

use crate::error::{KernelError, bpf};
use crate::ring::{Drain, Ring};

/// A ring read by aya: an iterator of records that gives back the space of each.
pub struct AyaRing {
    reader: RingBuf<MapData>,
    size_bytes: usize,
}

impl AyaRing {
    /// Reads a ring from where it is.
    ///
    /// # Errors
    /// If aya does not take it.
    pub fn new(ring: &Ring) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Io { what: "aya cannot read a ring".into(), source };
        let data = MapData::from_fd(ring.event_fd().map_err(failed)?);
        let map = Map::RingBuf(data.map_err(|err| failed(io::Error::other(err)))?);
        let reader = RingBuf::try_from(map).map_err(|err| failed(io::Error::other(err)))?;
        Ok(Self { reader, size_bytes: ring.size_bytes() })
    }
}

impl Drain for AyaRing {
    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(record) = self.reader.next() else { break };
            each(&record);
            taken += 1;
        }
        taken
    }

    fn capacity_bytes(&self) -> usize {
        self.size_bytes
    }
}

/// What libbpf shall call for each record: a closure, and a function that knows its type.
type Callback = (NonNull<()>, fn(NonNull<()>, &[u8]));

/// A ring read by libbpf: a callback for each record, whose space is given back after it.
pub struct LibbpfRing {
    reader: RingBuffer<'static>,
    callback: Rc<Cell<Option<Callback>>>,
    size_bytes: usize,
}

impl LibbpfRing {
    /// Reads a ring from where it is.
    ///
    /// # Errors
    /// If libbpf does not take it.
    pub fn new(ring: &Ring) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Io { what: "libbpf cannot read a ring".into(), source };
        let fd = ring.event_fd().map_err(failed)?;
        let info = libbpf_rs::MapInfo::new(std::os::fd::AsFd::as_fd(&fd)).map_err(bpf("cannot look at a ring"))?;
        let map = MapHandle::from_map_id(info.info.id).map_err(bpf("cannot open a ring"))?;
        let callback: Rc<Cell<Option<Callback>>> = Rc::default();
        let current = Rc::clone(&callback);
        let mut builder = RingBufferBuilder::new();
        let call = move |record: &[u8]| {
            if let Some((closure, call)) = current.get() {
                call(closure, record);
            }
            0
        };
        builder.add(&map, call).map_err(bpf("libbpf cannot map a ring"))?;
        let reader = builder.build().map_err(bpf("libbpf cannot read a ring"))?;
        Ok(Self { reader, callback, size_bytes: ring.size_bytes() })
    }

    fn consume<F: FnMut(&[u8])>(&mut self, limit: usize, mut each: F) -> usize {
        let call = |closure: NonNull<()>, record: &[u8]| {
            // SAFETY: `closure` points to `each` of this call, which is borrowed by nobody else until consume_raw_n()
            // returns, and the callback is taken away right after.
            let each = unsafe { closure.cast::<F>().as_mut() };
            each(record);
        };
        self.callback.set(Some((NonNull::from(&mut each).cast(), call)));
        let taken = self.reader.consume_raw_n(limit);
        self.callback.set(None);
        usize::try_from(taken).unwrap_or(0)
    }
}

impl Drain for LibbpfRing {
    fn drain(&mut self, limit: usize, each: impl FnMut(&[u8])) -> usize {
        self.consume(limit, each)
    }

    fn capacity_bytes(&self) -> usize {
        self.size_bytes
    }
}
