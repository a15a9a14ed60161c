//! TCP socket cookie -> flow. Only the flow's number is stored, and the cookie read from the flow: with two sockets for
//! each host-local connection, an index that repeats the cookies takes as much memory as a quarter of the flows.

use hashbrown::HashTable;
use slab::Slab;

use super::Flow;

/// Flow numbers times two, plus one for the end that came second.
#[derive(Default)]
pub(super) struct Cookies {
    slots: HashTable<u32>,
    hasher: ahash::RandomState,
}

fn cookie_of(flows: &Slab<Flow>, slot: u32) -> Option<u64> {
    let flow = flows.get(slot as usize / 2)?;
    if slot.is_multiple_of(2) { Some(flow.first_end.cookie) } else { flow.second_end.as_ref().map(|end| end.cookie) }
}

impl Cookies {
    /// The flow of a socket.
    pub(super) fn get(&self, flows: &Slab<Flow>, cookie: u64) -> Option<u32> {
        let found = self.slots.find(self.hasher.hash_one(cookie), |slot| cookie_of(flows, *slot) == Some(cookie));
        found.map(|slot| slot / 2)
    }

    /// Notes that a socket, which is an end of flow `id`, is in it now.
    pub(super) fn insert(&mut self, flows: &Slab<Flow>, cookie: u64, id: u32) {
        let second = flows.get(id as usize).is_some_and(|flow| flow.first_end.cookie != cookie);
        let slot = id * 2 + u32::from(second);
        let hash = self.hasher.hash_one(cookie);
        match self.slots.find_mut(hash, |slot| cookie_of(flows, *slot) == Some(cookie)) {
            Some(old) => *old = slot,
            None => {
                let hasher = &self.hasher;
                self.slots.insert_unique(hash, slot, |slot| hasher.hash_one(cookie_of(flows, *slot).unwrap_or(0)));
            }
        }
    }

    /// Forgets a socket, if it is in flow `id`. To be called while the flow is still there.
    pub(super) fn remove(&mut self, flows: &Slab<Flow>, cookie: u64, id: u32) {
        let hash = self.hasher.hash_one(cookie);
        let mine = |slot: &u32| *slot / 2 == id && cookie_of(flows, *slot) == Some(cookie);
        if let Ok(entry) = self.slots.find_entry(hash, mine) {
            entry.remove();
        }
    }
}
