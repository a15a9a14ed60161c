//! Flows that have ended lately: "what was that just now" is asked when they are over.

use std::collections::VecDeque;
use std::ops::Range;

use super::Flow;

/// How much is kept of the recent past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At most so many flows.
    pub flows_max: usize,
    /// So long after their end, nanoseconds.
    pub for_ns: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { flows_max: 10_000, for_ns: 300_000_000_000 }
    }
}

/// The last flows that ended, each with a number that it keeps.
#[derive(Default)]
pub(super) struct Closed {
    pub(super) keep: Keep,
    flows: VecDeque<(u64, Flow)>,
    /// Number of the first.
    first: usize,
}

impl Closed {
    /// Keeps a flow that leaves the table.
    pub(super) fn add(&mut self, mut flow: Flow, now_ns: u64) {
        if self.keep.flows_max == 0 {
            return;
        }
        // What nobody asks for any more.
        flow.rtt = None;
        while self.flows.len() >= self.keep.flows_max {
            self.forget_first();
        }
        self.flows.push_back((now_ns, flow));
    }

    /// Forgets what ended too long ago.
    pub(super) fn expire(&mut self, now_ns: u64) {
        while self.flows.front().is_some_and(|(at_ns, _)| at_ns + self.keep.for_ns <= now_ns) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        self.first += usize::from(self.flows.pop_front().is_some());
    }

    pub(super) fn numbers(&self) -> Range<usize> {
        self.first..self.first + self.flows.len()
    }

    pub(super) fn get(&self, number: usize) -> Option<&Flow> {
        self.flows.get(number.checked_sub(self.first)?).map(|(_, flow)| flow)
    }
}
