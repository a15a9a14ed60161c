//! Draining one CPU's ring buffer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libbpf_rs::libbpf_sys::{BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::param::page_size;

/// A source of records: a ring in production, a vector in tests, another reader in benches.
pub trait Drain {
    /// Hands at most `limit` pending records to `each`, in order. Returns how many there were.
    fn drain(&mut self, limit: usize, each: impl FnMut(&[u8])) -> usize;

    /// The last call ended before a record that is still being written: it, and what lies behind it, is for the next one.
    fn has_record_in_flight(&self) -> bool {
        false
    }

    /// How much it holds, bytes; without a limit unless it says otherwise.
    fn capacity_bytes(&self) -> usize {
        usize::MAX
    }
}

/// The consumer of one CPU's ring (kernel/bpf/ringbuf.c). May move to another thread; there is exactly one per ring.
///
/// libbpf and aya give the space of each record back at once, and go on as long as there are new ones. That takes two
/// cache lines from the producer for each record. This one takes what was there when it began, and gives it back in
/// portions. Of a record larger than a page, which no program of ours makes, it hands out what is mapped in one piece.
pub struct Ring {
    cpu: usize,
    size_bytes: usize,
    fd: OwnedFd,
    /// One page, written by us: how far records were taken.
    consumer: Mapping,
    /// One page, written by the kernel: how far they were made; then the data, and its first page again, so that no
    /// record is cut in two. All of it again, as libbpf maps it, would count twice in the process's resident memory.
    producer: Mapping,
    position: usize,
    in_flight: bool,
}

/// Space is given back when it is this share of the ring.
const PORTIONS: usize = 16;

struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone, and memory that the kernel shares is accessed by atomics.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, bytes: usize, prot: ProtFlags, offset: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
        let start = unsafe { mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, offset as u64) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    /// The counter in the first word of the first page.
    fn counter(&self) -> &AtomicUsize {
        // SAFETY: the page is mapped as long as self lives, and holds an unsigned long that both sides access atomically.
        unsafe { self.start.cast().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in new() with this length, and borrowed by nobody any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl Ring {
    pub(crate) fn new(cpu: usize, size_bytes: usize, fd: OwnedFd) -> io::Result<Self> {
        Self::mapped(cpu, size_bytes, fd, ProtFlags::READ)
    }

    fn mapped(cpu: usize, size_bytes: usize, fd: OwnedFd, data: ProtFlags) -> io::Result<Self> {
        let page = page_size();
        let consumer = Mapping::new(&fd, page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = Mapping::new(&fd, page + size_bytes + page, data, page)?;
        let position = consumer.counter().load(Ordering::Acquire);
        Ok(Self { cpu, size_bytes, fd, consumer, producer, position, in_flight: false })
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
        self.fd.as_fd().try_clone_to_owned()
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

    fn has_record_in_flight(&self) -> bool {
        self.in_flight
    }

    #[inline]
    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        // SAFETY: the data begins after the first page of the mapping.
        let data = unsafe { self.producer.start.add(page_size()) };
        let mapped = self.producer.bytes - page_size();
        let made = self.producer.counter().load(Ordering::Acquire);
        let (mut drained, mut given_back) = (0, self.position);
        self.in_flight = false;
        while self.position != made && drained < limit {
            let offset = self.position & (self.size_bytes - 1);
            // SAFETY: inside of the data, aligned to 8 bytes; the kernel writes it with an atomic exchange.
            let header = unsafe { data.add(offset).cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
            if header & BPF_RINGBUF_BUSY_BIT != 0 {
                self.in_flight = true;
                break;
            }
            let bytes = (header & !BPF_RINGBUF_DISCARD_BIT) as usize;
            if header & BPF_RINGBUF_DISCARD_BIT == 0 {
                let start = offset + BPF_RINGBUF_HDR_SZ as usize;
                // SAFETY: what is mapped of a finished record, which is not written to again before its space is given
                // back.
                each(unsafe { slice::from_raw_parts(data.add(start).as_ptr(), bytes.min(mapped - start)) });
                drained += 1;
            }
            self.position += (bytes + BPF_RINGBUF_HDR_SZ as usize).next_multiple_of(8);
            if self.position - given_back >= self.size_bytes / PORTIONS {
                given_back = self.position;
                self.consumer.counter().store(given_back, Ordering::Release);
            }
        }
        self.consumer.counter().store(self.position, Ordering::Release);
        drained
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    /// A file with the layout of a ring; its first page is not really there again, so only one record may cross the end.
    struct Kernel(File);

    fn file(size_bytes: usize) -> File {
        let file = File::from(memfd_create("ring", MemfdFlags::CLOEXEC).unwrap());
        file.set_len((2 * page_size() + size_bytes + page_size()) as u64).unwrap();
        file
    }

    impl Kernel {
        fn new(size_bytes: usize) -> (Self, Ring) {
            let file = file(size_bytes);
            let ring = Ring::new(0, size_bytes, file.try_clone().unwrap().into()).unwrap();
            (Self(file), ring)
        }

        fn write(&self, made: usize, flags: u32, record: &[u8]) -> usize {
            let at = (2 * page_size() + made) as u64;
            self.0.write_all_at(&(record.len() as u32 | flags).to_ne_bytes(), at).unwrap();
            self.0.write_all_at(record, at + 8).unwrap();
            let made = made + (record.len() + 8).next_multiple_of(8);
            self.0.write_all_at(&made.to_ne_bytes(), page_size() as u64).unwrap();
            made
        }

        fn given_back(&self) -> usize {
            let mut word = [0; 8];
            self.0.read_exact_at(&mut word, 0).unwrap();
            usize::from_ne_bytes(word)
        }
    }

    fn drain(ring: &mut Ring, limit: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        assert_eq!(ring.drain(limit, |record| records.push(record.to_vec())), records.len());
        records
    }

    #[test]
    fn records_come_in_order_without_those_that_were_discarded() {
        let (kernel, mut ring) = Kernel::new(4096);
        assert!(drain(&mut ring, 10).is_empty());
        let mut made = kernel.write(0, 0, b"one");
        made = kernel.write(made, BPF_RINGBUF_DISCARD_BIT, b"never");
        made = kernel.write(made, 0, b"a second one");
        assert_eq!(drain(&mut ring, 1), [b"one"]);
        assert_eq!(kernel.given_back(), 16);
        assert_eq!(drain(&mut ring, 10), [b"a second one"]);
        assert_eq!(kernel.given_back(), made);
    }

    #[test]
    fn one_that_is_being_written_holds_up_those_behind_it() {
        let (kernel, mut ring) = Kernel::new(4096);
        let made = kernel.write(0, BPF_RINGBUF_BUSY_BIT, b"slow");
        kernel.write(made, 0, b"fast");
        assert!(drain(&mut ring, 10).is_empty() && ring.has_record_in_flight());
        kernel.write(0, 0, b"slow");
        kernel.write(made, 0, b"fast");
        assert_eq!(drain(&mut ring, 10), [b"slow", b"fast"]);
        assert!(!ring.has_record_in_flight());
    }

    #[test]
    fn a_record_across_the_end_comes_whole_and_an_impossible_one_as_far_as_it_is_mapped() {
        let size = page_size();
        let (kernel, mut ring) = Kernel::new(size);
        let made = kernel.write(0, 0, &vec![1; size - 24]);
        assert_eq!(drain(&mut ring, 1).len(), 1);
        let across: Vec<u8> = (0..100).collect();
        kernel.write(made, 0, &across);
        assert_eq!(drain(&mut ring, 1), [across]);

        let (kernel, mut ring) = Kernel::new(size);
        let made = kernel.write(0, 0, &vec![1; size - 16]);
        assert_eq!(drain(&mut ring, 1).len(), 1);
        kernel.write(made, 0, &vec![2; size + 1]);
        assert_eq!(drain(&mut ring, 1), [vec![2; size]]);
    }

    /// Writes as the kernel does, by another thread and into the same mapping: what ThreadSanitizer can see.
    struct Producer {
        made: NonNull<AtomicUsize>,
        given_back: NonNull<AtomicUsize>,
        data: NonNull<u8>,
        size_bytes: usize,
    }

    // SAFETY: what both threads access they access by atomics, or one after the other.
    unsafe impl Send for Producer {}

    impl Producer {
        const RECORD: usize = 24;
        const SPACE: usize = Self::RECORD + BPF_RINGBUF_HDR_SZ as usize;

        /// Of a ring that outlives it, and whose data may be written to.
        fn of(ring: &Ring) -> Self {
            // SAFETY: the data begins after the first page of the mapping.
            let data = unsafe { ring.producer.start.add(page_size()) };
            let (made, given_back) = (ring.producer.start.cast(), ring.consumer.start.cast());
            Self { made, given_back, data, size_bytes: ring.size_bytes }
        }

        fn run(&self, records: u64) {
            // SAFETY: the ring lives longer, and both are accessed atomically.
            let (made, given_back) = unsafe { (self.made.as_ref(), self.given_back.as_ref()) };
            let mut position = 0;
            for number in 0..records {
                while position + Self::SPACE - given_back.load(Ordering::Acquire) > self.size_bytes {
                    std::hint::spin_loop();
                }
                // SAFETY: inside of the data, aligned, and given back by the reader.
                unsafe {
                    let start = self.data.add(position & (self.size_bytes - 1));
                    let header: &AtomicU32 = start.cast().as_ref();
                    header.store(Self::RECORD as u32 | BPF_RINGBUF_BUSY_BIT, Ordering::Relaxed);
                    position += Self::SPACE;
                    made.store(position, Ordering::Release);
                    start.add(BPF_RINGBUF_HDR_SZ as usize).cast().write([number; Self::RECORD / 8]);
                    header.swap(Self::RECORD as u32, Ordering::AcqRel);
                }
            }
        }
    }

    #[test]
    fn each_record_of_a_producer_that_runs_meanwhile_comes_once_and_whole() {
        const RECORDS: u64 = 50_000;
        let size_bytes = page_size();
        let fd = file(size_bytes).into();
        let mut ring = Ring::mapped(0, size_bytes, fd, ProtFlags::READ | ProtFlags::WRITE).unwrap();
        let producer = Producer::of(&ring);
        std::thread::scope(|scope| {
            scope.spawn(move || producer.run(RECORDS));
            let mut next = 0_u64;
            while next < RECORDS {
                ring.drain(7, |record| {
                    assert_eq!(record, [next; Producer::RECORD / 8].map(u64::to_ne_bytes).as_flattened());
                    next += 1;
                });
            }
        });
        assert!(drain(&mut ring, 1).is_empty());
    }
}
