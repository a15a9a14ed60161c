//! Answers that need a look at every flow, a portion at a time: with a million flows that takes longer than control may be
//! away from its other work.

mod selection;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use sockeye_ctl::protocol::{Answer, FlowsArguments, Request};

use super::events::Question;
use super::stats::StateCounts;
use crate::flows::{Flow, FlowTable};
use crate::model::flow::ProcKey;
use crate::owners::process::ProcessTable;
pub use selection::Selection;

/// How long control works on one answer before it looks for other work.
pub(crate) const PORTION: Duration = Duration::from_millis(5);
/// Flows between two looks at the clock.
const FLOWS_AT_ONCE: usize = 1024;
/// Most rows of an answer.
pub const ROWS_MAX: usize = 10_000;

/// How many rows a request's `limit` asks for, of which 0 is as many as an answer takes.
pub(super) fn rows_at_most(limit: usize) -> usize {
    if limit == 0 { ROWS_MAX } else { limit.min(ROWS_MAX) }
}

/// Open flows by owner.
pub(crate) type OpenFlows = HashMap<ProcKey, u64, ahash::RandomState>;

/// What is gathered from all flows.
pub(crate) enum Gathered {
    /// Nothing: the answer is not about flows.
    Nothing,
    /// How many there are in each state.
    States(StateCounts),
    /// How many each owner has open.
    Open(OpenFlows),
    /// Those that were asked for.
    Flows(Box<Selection>),
}

/// A question that is being answered.
pub(crate) struct Pass {
    pub(crate) question: Question,
    next: Next,
    pub(crate) gathered: Gathered,
}

/// What is looked at next: a place in the table, then a number of those that have left it.
#[derive(Default)]
struct Next {
    place: usize,
    closed: Option<usize>,
    left: Option<Left>,
}

/// Flows that have left the table since the pass began: between two of its portions control does its other work.
struct Left {
    /// Numbers of those that had left before are below this one.
    begin: usize,
    /// The next one is not looked at yet.
    next: usize,
    /// Where those are now that had been looked at, by their place.
    moved: HashMap<usize, usize, ahash::RandomState>,
}

/// Where a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Where {
    Place(usize),
    Closed(usize),
}

impl Where {
    fn find(self, table: &FlowTable) -> Option<Cow<'_, Flow>> {
        match self {
            Self::Place(place) => table.flow_at(place).map(Cow::Borrowed),
            Self::Closed(number) => table.closed_flow(number).map(Cow::Owned),
        }
    }

    fn place(self) -> Option<usize> {
        match self {
            Self::Place(place) => Some(place),
            Self::Closed(_) => None,
        }
    }

    /// How long what has ended can still be asked for.
    fn kept_ns(self, flow: &Flow, table: &FlowTable, now_ns: u64) -> Option<u64> {
        let number = match self {
            Self::Place(_) => None,
            Self::Closed(number) => Some(number),
        };
        flow.state().is_over().then(|| table.kept_for_ns(number, now_ns))
    }
}

impl Pass {
    /// Begins. A question that cannot be answered gets its refusal at once.
    pub(crate) fn begin(question: Question) -> Option<Self> {
        let gathered = match &question.request {
            Request::Stats => Gathered::States(StateCounts::default()),
            Request::Processes(_) | Request::Containers(_) | Request::Pods(_) | Request::Workloads(_) => {
                Gathered::Open(OpenFlows::default())
            }
            Request::Ports
            | Request::Rtt(_)
            | Request::Peers(_)
            | Request::Dns(_)
            | Request::Overview
            | Request::Subscribe(_)
            | Request::Config
            | Request::Reload => Gathered::Nothing,
            Request::Flows(arguments) => match Selection::new(arguments) {
                Ok(selection) => Gathered::Flows(Box::new(selection)),
                Err(why) => {
                    let _ = question.reply.send(Err(why));
                    return None;
                }
            },
        };
        Some(Self { question, next: Next::default(), gathered })
    }

    /// Goes on until it is done (true), or the time is up.
    pub(crate) fn go_on(&mut self, table: &FlowTable, processes: &ProcessTable, until: Instant) -> bool {
        self.gathered.go_on(&mut self.next, table, processes, until)
    }
}

/// How many flows there are in each state, for a scrape.
#[derive(Default)]
pub(crate) struct Count {
    next: Next,
    counts: StateCounts,
}

impl Count {
    /// Goes on until it is done (true), or the time is up.
    pub(crate) fn go_on(&mut self, table: &FlowTable, until: Instant) -> bool {
        while self.next.place < table.places() {
            let places = self.next.place..self.next.place + FLOWS_AT_ONCE;
            places.filter_map(|place| table.flow_at(place)).for_each(|flow| self.counts.add(flow));
            self.next.place += FLOWS_AT_ONCE;
            if Instant::now() >= until {
                return false;
            }
        }
        true
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> &StateCounts {
        &self.counts
    }
}

impl Gathered {
    fn go_on(&mut self, next: &mut Next, table: &FlowTable, processes: &ProcessTable, until: Instant) -> bool {
        if self.wants_open() && self.wants_closed() && !self.follow(next, table, processes, until) {
            return false;
        }
        while next.place < table.places() && self.wants_open() {
            for place in next.place..next.place + FLOWS_AT_ONCE {
                self.look(Where::Place(place), table, processes);
            }
            next.place += FLOWS_AT_ONCE;
            if Instant::now() >= until {
                return false;
            }
        }
        if let Self::Flows(selection) = self
            && next.closed.is_none()
        {
            next.closed = selection.first_closed(table);
        }
        let end = next.left.as_ref().map_or_else(|| table.closed_numbers().end, |left| left.begin);
        while self.wants_closed() && next.closed.is_none_or(|number| number < end) {
            let begin = next.closed.unwrap_or(0).max(table.closed_numbers().start);
            for number in begin..(begin + FLOWS_AT_ONCE).min(end) {
                self.look(Where::Closed(number), table, processes);
            }
            next.closed = Some(begin + FLOWS_AT_ONCE);
            if Instant::now() >= until {
                return false;
            }
        }
        match self {
            Self::Flows(selection) => {
                selection.looked_until(next.closed, table);
                selection.make_rows(next.left.as_ref(), table, processes, until)
            }
            _ => true,
        }
    }

    /// Each flow is looked at once, at its place or after it has left it: until all that have left were (true), or the time
    /// is up.
    fn follow(&mut self, next: &mut Next, table: &FlowTable, processes: &ProcessTable, until: Instant) -> bool {
        let end = table.closed_numbers().end;
        let left = next.left.get_or_insert_with(|| Left { begin: end, next: end, moved: HashMap::default() });
        while left.next < end {
            let begin = left.next;
            left.next = (begin + FLOWS_AT_ONCE).min(end);
            for number in begin..left.next {
                match table.place_of_closed(number) {
                    Some(place) if place < next.place => drop(left.moved.entry(place).or_insert(number)),
                    _ => self.look(Where::Closed(number), table, processes),
                }
            }
            if left.next < end && Instant::now() >= until {
                return false;
            }
        }
        true
    }

    fn wants_closed(&self) -> bool {
        matches!(self, Self::Flows(selection) if selection.wanted.has_ended())
    }

    /// Flows in the table.
    fn wants_open(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Flows(selection) => selection.wanted.arguments().after.is_none(),
            _ => true,
        }
    }

    fn look(&mut self, at: Where, table: &FlowTable, processes: &ProcessTable) {
        let Some(flow) = at.find(table) else { return };
        let flow = &*flow;
        match self {
            Self::Nothing => {}
            Self::States(counts) => counts.add(flow),
            Self::Open(open) if !flow.state().is_over() => {
                for end in flow.ends().filter(|end| end.owner.is_known()) {
                    *open.entry(end.owner).or_default() += 1;
                }
            }
            Self::Open(_) => {}
            Self::Flows(selection) => selection.take(at, flow, processes),
        }
    }
}

/// An answer about flows, and its longest portion: what control would be away from its other work. For benchmarks.
///
/// # Errors
/// If there is no such state.
pub fn answer_flows(
    arguments: &FlowsArguments,
    table: &FlowTable,
    processes: &ProcessTable,
) -> Result<(Answer, Duration), String> {
    let mut gathered = Gathered::Flows(Box::new(Selection::new(arguments)?));
    let (mut longest, mut next) = (Duration::ZERO, Next::default());
    loop {
        let began = Instant::now();
        let is_done = gathered.go_on(&mut next, table, processes, began + PORTION);
        longest = longest.max(began.elapsed());
        if let (true, Gathered::Flows(selection)) = (is_done, &mut gathered) {
            return Ok((selection.take_answer(), longest));
        }
    }
}
