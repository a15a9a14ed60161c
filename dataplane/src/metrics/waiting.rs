//! Figures of processes whose names are still being asked for: they wait until it is known under which they are counted.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::model::flow::ProcKey;
use crate::owners::process::{Process, ProcessTable};

/// How long: reports of flows wait likewise.
pub(super) const NAMES_WAIT_NS: u64 = 2_000_000_000;

/// Figures by process and what else divides them, and since when they wait.
pub(super) struct Waiting<K, F> {
    figures: HashMap<(ProcKey, K), (F, u64), ahash::RandomState>,
    max: usize,
}

impl<K: Copy + Eq + Hash, F: Default> Waiting<K, F> {
    /// Nothing yet, and never more than so many.
    pub(super) fn new(max: usize) -> Self {
        Self { figures: HashMap::default(), max }
    }

    /// What to add to. `None`: they need not wait, or there is no room for more.
    pub(super) fn of(&mut self, key: (ProcKey, K), processes: &ProcessTable, now_ns: u64) -> Option<&mut F> {
        let waits = self.figures.len() < self.max && awaits_names(key.0, processes);
        if !waits && !self.figures.contains_key(&key) {
            return None;
        }
        Some(&mut self.figures.entry(key).or_insert((F::default(), now_ns)).0)
    }

    /// Takes those of which the names have come, or do not come.
    pub(super) fn take_settled(
        &mut self,
        processes: &ProcessTable,
        now_ns: u64,
    ) -> impl Iterator<Item = ((ProcKey, K), F)> {
        let is_over = move |(process, _): &(ProcKey, K), (_, since_ns): &mut (F, u64)| {
            *since_ns + NAMES_WAIT_NS <= now_ns || !awaits_names(*process, processes)
        };
        self.figures.extract_if(is_over).map(|(key, (figures, _))| (key, figures))
    }
}

/// Who it is, or where it lives, is being asked for.
fn awaits_names(key: ProcKey, processes: &ProcessTable) -> bool {
    let known = |process: &Arc<Process>| !processes.workloads.awaits_names(process.cgroup_id);
    key.is_known() && !processes.peek(key).is_some_and(known)
}
