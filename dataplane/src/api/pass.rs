//! Answers that need a look at every flow, a portion at a time: with a million flows that takes longer than control may be
//! away from its other work.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use sockeye_ctl::protocol::{Answer, FlowsArguments, GroupBy, Request, Table};
use sockeye_ctl::rows;

use super::events::Question;
use super::filter::Wanted;
use super::flows::{MadeOf, add_row, no_rows};
use super::groups::Groups;
use super::stats::StateCounts;
use super::summary;
use crate::flows::{Flow, FlowTable};
use crate::model::clock::boot_ns;
use crate::model::flow::ProcKey;
use crate::owners::process::ProcessTable;

/// How long control works on one answer before it looks for other work.
pub(crate) const PORTION: Duration = Duration::from_millis(5);
/// Flows and rows between two looks at the clock.
const FLOWS_AT_ONCE: usize = 1024;
const ROWS_AT_ONCE: usize = 64;
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
        if self.wants_open() && self.wants_closed() {
            self.follow(next, table, processes);
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

    /// Each flow is looked at once, at its place or after it has left it.
    fn follow(&mut self, next: &mut Next, table: &FlowTable, processes: &ProcessTable) {
        let end = table.closed_numbers().end;
        let left = next.left.get_or_insert_with(|| Left { begin: end, next: end, moved: HashMap::default() });
        for number in left.next..end {
            match table.place_of_closed(number) {
                Some(place) if place < next.place => drop(left.moved.entry(place).or_insert(number)),
                _ => self.look(Where::Closed(number), table, processes),
            }
        }
        left.next = end;
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

rows! {
    /// Where to go on with flows that have ended.
    struct Cursor: "cursor" {
        /// number of the next one
        next: Count = u64,
        /// those that were forgotten before they were asked for
        missed: Count = u64,
    }
}

/// The first flows in the order that was asked for, and then their rows; or all of them, added up.
pub struct Selection {
    wanted: Wanted,
    groups: Option<Groups>,
    limit: usize,
    matching: usize,
    /// Sort key, place and socket; the least on top.
    best: BinaryHeap<Reverse<(u128, Where, u64)>>,
    cursor: Option<Cursor>,
    /// Those that still need a row, the last first.
    rest: Option<Vec<(Where, u64)>>,
    rows: Table,
}

impl Selection {
    /// Nothing yet.
    ///
    /// # Errors
    /// If there is no such state.
    pub fn new(arguments: &FlowsArguments) -> Result<Self, String> {
        let limit = rows_at_most(arguments.limit);
        let now_ns = boot_ns();
        let by = arguments.by.clone().or(arguments.pairs.then_some(GroupBy::Workload));
        Ok(Self {
            wanted: Wanted::new(arguments, now_ns)?,
            groups: by.map(|by| Groups::new(by, arguments.pairs, now_ns)),
            limit,
            matching: 0,
            best: BinaryHeap::new(),
            cursor: None,
            rest: None,
            rows: no_rows(),
        })
    }

    fn take(&mut self, at: Where, flow: &Flow, processes: &ProcessTable) {
        if !self.wanted.is(flow, processes) {
            return;
        }
        self.matching += 1;
        if let Some(groups) = &mut self.groups {
            groups.take(flow, processes);
            return;
        }
        let key = match (self.wanted.arguments().after, at) {
            // One after another.
            (Some(_), Where::Closed(number)) => u128::MAX - number as u128,
            _ => self.wanted.sort_key(flow, processes),
        };
        let entry = (key, at, flow.cookie());
        if self.best.len() < self.limit {
            self.best.push(Reverse(entry));
        } else if let Some(mut least) = self.best.peek_mut().filter(|least| least.0 < entry) {
            *least = Reverse(entry);
        }
    }

    /// The number to begin with, where one was asked for.
    fn first_closed(&mut self, table: &FlowTable) -> Option<usize> {
        let after = usize::try_from(self.wanted.arguments().after?).unwrap_or(usize::MAX);
        let numbers = table.closed_numbers();
        // A number that was not given yet is of another agent, or stands for those to come.
        let begin = after.min(numbers.end).max(numbers.start);
        self.cursor = Some(Cursor { next: begin as u64, missed: numbers.start.saturating_sub(after) as u64 });
        Some(begin)
    }

    fn looked_until(&mut self, closed: Option<usize>, table: &FlowTable) {
        if let (Some(cursor), Some(closed), None) = (&mut self.cursor, closed, &self.rest) {
            cursor.next = closed.min(table.closed_numbers().end) as u64;
            // The others are told next time.
            if let Some(Reverse((_, Where::Closed(last), _))) = self.best.peek().filter(|_| self.matching > self.limit)
            {
                cursor.next = *last as u64 + 1;
            }
        }
    }

    /// Rows of what was selected; a flow that was forgotten since has none.
    fn make_rows(&mut self, left: Option<&Left>, table: &FlowTable, processes: &ProcessTable, until: Instant) -> bool {
        let best = &mut self.best;
        let rest = self.rest.get_or_insert_with(|| {
            let sorted = std::mem::take(best).into_sorted_vec();
            sorted.into_iter().rev().map(|Reverse((_, at, cookie))| (at, cookie)).collect()
        });
        let now_ns = boot_ns();
        while !rest.is_empty() {
            for (at, cookie) in rest.split_off(rest.len().saturating_sub(ROWS_AT_ONCE)).into_iter().rev() {
                let is_it = |flow: &Cow<'_, Flow>| flow.cookie() == cookie;
                let found = at.find(table).filter(is_it).map(|flow| (at, flow)).or_else(|| {
                    let at = left.zip(at.place()).and_then(|(left, place)| left.moved.get(&place))?;
                    let at = Where::Closed(*at);
                    Some((at, at.find(table).filter(is_it)?))
                });
                if let Some((at, flow)) = found {
                    let row = MadeOf { flow: &flow, kept_ns: at.kept_ns(&flow, table, now_ns), processes, now_ns };
                    add_row(&mut self.rows, &row, self.wanted.arguments().wide);
                }
            }
            if Instant::now() >= until {
                return rest.is_empty();
            }
        }
        true
    }

    /// The answer, when all rows are made.
    pub(crate) fn take_answer(&mut self) -> Answer {
        if let Some(groups) = self.groups.take() {
            return groups.into_answer(self.wanted.arguments());
        }
        let rows = std::mem::replace(&mut self.rows, no_rows());
        let cursor = self.cursor.take().map(|cursor| Table::of([cursor]));
        Answer { tables: [summary(self.matching, rows.rows.len()), rows].into_iter().chain(cursor).collect() }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Timeouts;
    use sockeye_bpf::records::{UdpKey, UdpValue};
    use sockeye_ctl::protocol::SortBy;
    use std::sync::Arc;
    use std::sync::mpsc::sync_channel;
    use zerocopy::FromZeros;

    /// Flows of 1 to so many bytes, each of a socket of its own.
    fn table(flows: u64) -> FlowTable {
        let mut table = FlowTable::new(flows as usize * 3, Timeouts::default());
        for number in 1..=flows {
            let (mut key, mut value) = (UdpKey::new_zeroed(), UdpValue::new_zeroed());
            (key.cookie, key.local_port, key.netns) = (number, number as u16, number as u32);
            (key.remote_port, value.first_sent) = (53, 1);
            (value.bytes_sent, value.packets_sent) = (number, 1);
            table.udp(&key, &value, 1);
        }
        table
    }

    fn answered(request: &Request, flows: u64) -> (Answer, u32) {
        let (table, processes) = (table(flows), ProcessTable::default());
        let (reply, _answer) = sync_channel(1);
        let mut pass =
            Pass::begin(Question { request: request.clone(), places: Vec::new(), cost_ns: Arc::default(), reply })
                .unwrap();
        let mut portions = 1;
        // Its time is always up.
        while !pass.go_on(&table, &processes, Instant::now()) {
            portions += 1;
        }
        let Gathered::Flows(mut selection) = pass.gathered else { panic!("flows") };
        (selection.take_answer(), portions)
    }

    #[test]
    fn the_first_of_many_in_portions() {
        for sort in [SortBy::Bytes, SortBy::Active] {
            let wanted = FlowsArguments { limit: 3, sort, ..FlowsArguments::default() };
            let (answer, portions) = answered(&Request::Flows(wanted.into()), 5000);
            let summary = &answer.rows("summary")[0];
            assert_eq!((&summary["matching"], &summary["shown"]), (&5000.into(), &3.into()));
            let sent: Vec<_> = answer.rows("flows").iter().map(|row| row["sent"].as_u64()).collect();
            if sort == SortBy::Bytes {
                assert_eq!(sent, [Some(5000), Some(4999), Some(4998)]);
            }
            assert!(portions >= 5, "{portions}");
        }
    }

    /// Flows leave the table between two portions: each is told of once all the same.
    #[test]
    fn what_leaves_the_table_meanwhile_is_told_of_once() {
        const SECOND_NS: u64 = 1_000_000_000;
        let processes = ProcessTable::default();
        for (portions_before, by) in (0..90).flat_map(|portions| [(portions, None), (portions, Some(GroupBy::Host))]) {
            let mut table = table(2000);
            (1..=2000).for_each(|cookie| table.udp_closed(cookie, SECOND_NS));
            let clock = crate::model::clock::WallClock::now();
            let tick = |table: &mut FlowTable, seconds: std::ops::Range<u64>| {
                for second in seconds {
                    while table.tick(second * SECOND_NS, &clock, &mut ProcessTable::default(), |_| ()) {}
                }
            };
            // Reported, and lingering.
            tick(&mut table, 1..3);
            assert_eq!((table.len(), table.closed_numbers().len()), (2000, 0));
            let grouped = by.is_some();
            let wanted = FlowsArguments { closed: true, limit: 0, by, ..FlowsArguments::default() };
            let (mut selection, mut next) =
                (Gathered::Flows(Box::new(Selection::new(&wanted).unwrap())), Next::default());
            let mut portions = 0;
            while !selection.go_on(&mut next, &table, &processes, Instant::now()) {
                portions += 1;
                if portions == portions_before {
                    tick(&mut table, 3..30);
                    assert_eq!((table.len(), table.closed_numbers().len()), (0, 2000));
                }
            }
            let Gathered::Flows(mut selection) = selection else { unreachable!() };
            let answer = selection.take_answer();
            if grouped {
                let group = &answer.rows("groups")[0];
                assert_eq!(group["flows_out"].as_u64(), Some(2000), "{portions_before}: {group:?}");
            } else {
                let (summary, rows) = (&answer.rows("summary")[0], answer.rows("flows"));
                assert_eq!((&summary["matching"], rows.len()), (&2000.into(), 2000), "{portions_before}");
            }
        }
    }

    #[test]
    fn no_limit_is_what_one_answer_takes() {
        let all = FlowsArguments { limit: 0, ..FlowsArguments::default() };
        let (answer, portions) = answered(&Request::Flows(all.into()), 12_000);
        let summary = &answer.rows("summary")[0];
        assert_eq!((&summary["matching"], &summary["shown"]), (&12_000.into(), &ROWS_MAX.into()));
        assert!(portions > 100, "{portions}");
    }

    #[test]
    fn any_order_and_its_reverse() {
        let first = |sort, reverse| {
            let wanted = FlowsArguments { limit: 1, sort, reverse, ..FlowsArguments::default() };
            let (answer, _) = answered(&Request::Flows(wanted.into()), 300);
            answer.rows("flows")[0]["sent"].as_u64().unwrap()
        };
        assert_eq!([first(SortBy::Sent, false), first(SortBy::Sent, true)], [300, 1]);
        for sort in <SortBy as clap::ValueEnum>::value_variants() {
            let _ = (first(*sort, false), first(*sort, true));
        }
    }

    #[test]
    fn a_flow_is_found_by_its_id_and_by_what_is_shown_of_it() {
        let found = |wanted: FlowsArguments| answered(&Request::Flows(wanted.into()), 300).0.rows("flows");
        let all = found(FlowsArguments { limit: 0, ..FlowsArguments::default() });
        let ids: std::collections::BTreeSet<_> = all.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!((all.len(), ids.len()), (300, 300));
        let one =
            found(FlowsArguments { id: vec![all[7]["id"].as_str().unwrap().into()], ..FlowsArguments::default() });
        assert_eq!((one.len(), &one[0]["initiator"]), (1, &all[7]["initiator"]));
        let text = |words: &[&str]| {
            let text = words.iter().map(|word| (*word).to_owned()).collect();
            found(FlowsArguments { text, limit: 0, ..FlowsArguments::default() }).len()
        };
        assert_eq!([text(&[":53"]), text(&[":299"]), text(&[":53", ":299"]), text(&["nobody"])], [300, 1, 1, 0]);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let wanted = FlowsArguments { id: vec!["flow".into()], ..FlowsArguments::default() };
        assert!(Selection::new(&wanted).err().unwrap().contains("\"flow\" is no id"));
    }

    #[test]
    fn a_state_that_does_not_exist_is_refused_at_once() {
        let (reply, answer) = sync_channel(1);
        let wanted = FlowsArguments { state: vec!["half".into()], ..FlowsArguments::default() };
        assert!(
            Pass::begin(Question {
                request: Request::Flows(wanted.into()),
                places: Vec::new(),
                cost_ns: Arc::default(),
                reply
            })
            .is_none()
        );
        assert!(answer.recv().unwrap().unwrap_err().contains("\"half\""));
    }
}
