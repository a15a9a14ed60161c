//! A ring of one CPU in memory, in place of the kernel's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use sockeye_bpf::records::{CloseRecord, DatagramRecord, FlowRecord, UdpCloseRecord};
use sockeye_bpf::ring::Drain;
use zerocopy::IntoBytes;

/// Length word and page offset before each entry.
const ENTRY_HEADER_BYTES: usize = 8;

/// What the programs write.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Flow(FlowRecord),
    Close(CloseRecord),
    Datagram(DatagramRecord),
    UdpClose(UdpCloseRecord),
}

impl Entry {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Flow(record) => record.as_bytes(),
            Self::Close(record) => record.as_bytes(),
            Self::Datagram(record) => record.as_bytes(),
            Self::UdpClose(record) => record.as_bytes(),
        }
    }
}

struct Written {
    entry: Entry,
    /// When its program looked at the clock.
    at_ns: u64,
    /// When it was submitted: until then it is in flight.
    ready_ns: u64,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Written>,
    used_bytes: usize,
    in_flight: bool,
    /// The oldest record that a worker has in its hands.
    held_ns: Option<u64>,
}

/// Both ends of it: the programs and a worker share it.
#[derive(Clone)]
pub(super) struct SimulatedRing {
    state: Rc<RefCell<State>>,
    clock: Rc<Cell<u64>>,
    capacity_bytes: usize,
}

impl SimulatedRing {
    pub(super) fn new(clock: &Rc<Cell<u64>>, capacity_bytes: usize) -> Self {
        Self { state: Rc::default(), clock: Rc::clone(clock), capacity_bytes }
    }

    /// False if there is no room.
    pub(super) fn write(&self, entry: Entry, at_ns: u64, ready_ns: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let bytes = entry.bytes().len() + ENTRY_HEADER_BYTES;
        if state.used_bytes + bytes > self.capacity_bytes {
            return false;
        }
        state.used_bytes += bytes;
        state.entries.push_back(Written { entry, at_ns, ready_ns });
        true
    }

    /// The worker has given to control what it had.
    pub(super) fn handed_over(&self) {
        self.state.borrow_mut().held_ns = None;
    }

    /// The oldest record that control has not been given.
    pub(super) fn oldest_ns(&self) -> Option<u64> {
        let state = self.state.borrow();
        state.entries.iter().map(|written| written.at_ns).chain(state.held_ns).min()
    }
}

impl Drain for SimulatedRing {
    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let mut state = self.state.borrow_mut();
        let mut taken = 0;
        state.in_flight = false;
        while taken < limit {
            let Some(first) = state.entries.front() else { break };
            if first.ready_ns > self.clock.get() {
                state.in_flight = true;
                break;
            }
            let Some(written) = state.entries.pop_front() else { break };
            state.used_bytes -= written.entry.bytes().len() + ENTRY_HEADER_BYTES;
            state.held_ns = Some(state.held_ns.map_or(written.at_ns, |held_ns| held_ns.min(written.at_ns)));
            each(written.entry.bytes());
            taken += 1;
        }
        taken
    }

    fn has_record_in_flight(&self) -> bool {
        self.state.borrow().in_flight
    }

    fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }
}
