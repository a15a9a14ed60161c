//! How long things take, and the queue of flows that are due.

use std::collections::BTreeMap;

use slab::Slab;

use super::Flow;

/// Resolution of the schedule.
pub const TICK_NS: u64 = 250_000_000;
pub(super) const SECOND_NS: u64 = 1_000_000_000;

/// When things happen, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP flows without traffic for this long are over.
    pub idle_ns: u64,
    /// A flow is reported at least this often.
    pub active_ns: u64,
    /// And this often while something is sent or received.
    pub report_ns: u64,
    /// From the first record to the first report.
    pub settle_ns: u64,
    /// From the close to the last report: the other end's close may still be on its way.
    pub close_grace_ns: u64,
    /// From the last report until it is forgotten.
    pub linger_ns: u64,
    /// The same for an idle UDP flow: longer than a collector keeps it, so that its direction stays the same.
    pub idle_linger_ns: u64,
    /// A TCP socket that three scans have missed, and for this long, is gone.
    pub vanished_ns: u64,
    /// Scans find what is left of a connection after its process closed it.
    pub sees_orphans: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle_ns: 30 * SECOND_NS,
            active_ns: 60 * SECOND_NS,
            report_ns: 10 * SECOND_NS,
            settle_ns: 2 * SECOND_NS,
            close_grace_ns: SECOND_NS / 2,
            linger_ns: 3 * SECOND_NS,
            idle_linger_ns: 60 * SECOND_NS,
            vanished_ns: 10 * SECOND_NS,
            sees_orphans: true,
        }
    }
}

impl Timeouts {
    /// For scans that do not find what is left of a connection after its process has closed it: the kernel keeps that up to
    /// some minutes (`tcp_fin_timeout`, `tcp_orphan_retries`).
    #[must_use]
    pub fn without_orphans(self) -> Self {
        Self { vanished_ns: 300 * SECOND_NS, sees_orphans: false, ..self }
    }

    /// Early enough that batching and a late tick do not exceed the active timeout.
    pub(super) fn report_quiet_ns(&self) -> u64 {
        self.active_ns - (self.active_ns / 6).min(10 * SECOND_NS)
    }

    /// Ticks from one look at a flow that goes on to the next.
    pub(super) fn look_ticks(&self) -> u32 {
        u32::try_from(self.report_ns.min(self.report_quiet_ns()) / TICK_NS).unwrap_or(u32::MAX).max(1)
    }
}

/// Ticks since boot: enough for 34 years.
pub(super) fn tick_of(at_ns: u64) -> u32 {
    u32::try_from(at_ns.div_ceil(TICK_NS)).unwrap_or(u32::MAX)
}

/// Flows by the tick in which they are due. Entries are never removed: a flow knows its own due tick.
#[derive(Default)]
pub(super) struct TimerQueue {
    slots: BTreeMap<u32, Vec<u32>>,
}

impl TimerQueue {
    pub(super) fn schedule(&mut self, flows: &mut Slab<Flow>, id: u32, at_ns: u64) {
        let tick = tick_of(at_ns);
        let flow = &mut flows[id as usize];
        if flow.due_tick != tick {
            flow.due_tick = tick;
            self.slots.entry(tick).or_default().push(id);
        }
    }

    /// The part of a slot that is still to be done.
    pub(super) fn give_back(&mut self, tick: u32, ids: Vec<u32>) {
        self.slots.entry(tick).or_default().extend(ids);
    }

    /// Removes one slot that is due.
    pub(super) fn take_due(&mut self, now_tick: u32) -> Option<(u32, Vec<u32>)> {
        let entry = self.slots.first_entry().filter(|slot| *slot.key() <= now_tick)?;
        Some(entry.remove_entry())
    }
}
