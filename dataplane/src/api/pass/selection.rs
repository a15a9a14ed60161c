//! Which flows an answer is about, and their rows.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use sockeye_ctl::protocol::{Answer, FlowsArguments, GroupBy, Table};
use sockeye_ctl::rows;

use super::super::filter::Wanted;
use super::super::flows::{MadeOf, add_row, no_rows};
use super::super::groups::Groups;
use super::super::summary;
use super::{Left, Where, rows_at_most};
use crate::flows::{Flow, FlowTable};
use crate::model::clock::boot_ns;
use crate::owners::process::ProcessTable;

/// Rows between two looks at the clock.
const ROWS_AT_ONCE: usize = 64;

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
    pub(super) wanted: Wanted,
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

    pub(super) fn take(&mut self, at: Where, flow: &Flow, processes: &ProcessTable) {
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
    pub(super) fn first_closed(&mut self, table: &FlowTable) -> Option<usize> {
        let after = usize::try_from(self.wanted.arguments().after?).unwrap_or(usize::MAX);
        let numbers = table.closed_numbers();
        // A number that was not given yet is of another agent, or stands for those to come.
        let begin = after.min(numbers.end).max(numbers.start);
        self.cursor = Some(Cursor { next: begin as u64, missed: numbers.start.saturating_sub(after) as u64 });
        Some(begin)
    }

    pub(super) fn looked_until(&mut self, closed: Option<usize>, table: &FlowTable) {
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
    pub(super) fn make_rows(
        &mut self,
        left: Option<&Left>,
        table: &FlowTable,
        processes: &ProcessTable,
        until: Instant,
    ) -> bool {
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
