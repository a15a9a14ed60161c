//! The newest record of each TCP socket, as a worker collects them.

use hashbrown::HashTable;
use sockeye_bpf::records::{FlowRecord, Kind};

/// What a new record is compared with. Apart from the records, so that it stays in the cache when those do not: then an
/// update only writes to memory, and waits for none.
#[derive(Clone, Copy)]
struct Head {
    cookie: u64,
    at_ns: u64,
    closed: bool,
}

/// Records by socket cookie, one each.
pub struct Newest {
    /// Positions in the other two.
    index: HashTable<u32>,
    heads: Vec<Head>,
    records: Vec<FlowRecord>,
    hasher: ahash::RandomState,
}

impl Newest {
    /// Room for so many sockets, at once: to grow would stop the worker for milliseconds. Memory that was never written
    /// to is not resident.
    pub fn with_capacity(sockets: usize) -> Self {
        Self {
            index: HashTable::with_capacity(sockets),
            heads: Vec::with_capacity(sockets),
            records: Vec::with_capacity(sockets),
            hasher: ahash::RandomState::new(),
        }
    }

    /// Takes a record. Counters are absolute, so nothing is lost by forgetting the older one, unless it closed a
    /// connection and the same socket has opened another since: that one goes to `earlier`.
    #[inline]
    pub fn put(&mut self, new: &FlowRecord, earlier: &mut Vec<FlowRecord>) {
        let head = Head { cookie: new.cookie, at_ns: new.at_ns, closed: new.kind == Kind::Close as u8 };
        let hash = self.hasher.hash_one(new.cookie);
        let heads = &mut self.heads;
        let Some(&at) = self.index.find(hash, |at| heads[*at as usize].cookie == new.cookie) else {
            let rehash = |at: &u32| self.hasher.hash_one(heads[*at as usize].cookie);
            self.index.insert_unique(hash, heads.len() as u32, rehash);
            self.heads.push(head);
            self.records.push(*new);
            return;
        };
        let (old, record) = (&mut self.heads[at as usize], &mut self.records[at as usize]);
        if old.at_ns > head.at_ns {
            if head.closed {
                earlier.push(*new);
            }
            return;
        }
        if old.closed {
            earlier.push(*record);
        }
        (*old, *record) = (head, *new);
    }

    /// All records, in the order in which their sockets were first seen.
    pub fn records(&self) -> &[FlowRecord] {
        &self.records
    }

    /// Empties it, and keeps the memory.
    pub fn clear(&mut self) {
        self.index.clear();
        self.heads.clear();
        self.records.clear();
    }
}
