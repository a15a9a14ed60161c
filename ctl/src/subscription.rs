//! Answers again and again: what is asked for once, and told until the client hangs up.
//!
//! ```text
//! -> {"version":2,"request":"subscribe","arguments":{"id":7,"every_ms":1000,"requests":[{"request":"overview"}]}}
//! <- {"version":2,"id":7,"update":1,"skipped":0,"every_ms":1000,"answers":[{"answer":{"tables":[...]}}]}
//! <- {"version":2,"id":7,"update":2,"skipped":0,"every_ms":1000,"answers":[{"answer":{"tables":[...]}}]}
//! ```
//!
//! A table whose columns are those of the update before comes without them. A further line of the client ends the
//! subscription, and is answered as any other: most often it is another subscription.

use serde::{Deserialize, Serialize};

use crate::protocol::{Answer, Request};

/// Most requests of a subscription.
pub const REQUESTS_MAX: usize = 4;
/// Shortest and longest time between two updates, milliseconds.
pub const EVERY_MS: std::ops::RangeInclusive<u64> = 250..=60_000;

/// What is told again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// The client's own number, which each update tells: so it knows which of its subscriptions that is of.
    pub id: u64,
    /// From one update to the next, milliseconds. The agent takes longer where its answers would cost it too much.
    pub every_ms: u64,
    /// What is asked each time.
    pub requests: Vec<Request>,
}

/// One update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Version of the protocol.
    pub version: u32,
    /// The client's own number.
    pub id: u64,
    /// 1, 2, 3, ...
    pub update: u64,
    /// Updates that were due and not made, because the client was too slow to read or the agent to answer.
    pub skipped: u64,
    /// When the next one is due, milliseconds from this one.
    pub every_ms: u64,
    /// One for each request.
    pub answers: Vec<Outcome>,
}

/// An answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The answer, unless there is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

impl Outcome {
    /// Leaves out what the client knows from the answer before, which becomes this one's columns.
    pub fn shorten(&mut self, before: &mut Columns) {
        let tables = self.answer.iter_mut().flat_map(|answer| &mut answer.tables);
        let mut now = Columns::default();
        for (number, table) in tables.enumerate() {
            let known = (table.help.clone(), table.columns.clone());
            if before.0.get(number) == Some(&known) {
                table.help.clear();
                table.columns.clear();
            }
            now.0.push(known);
        }
        *before = now;
    }

    /// Puts in again what was left out.
    pub fn complete(&mut self, before: &mut Columns) {
        let tables = self.answer.iter_mut().flat_map(|answer| &mut answer.tables);
        let mut now = Columns::default();
        for (number, table) in tables.enumerate() {
            if table.columns.is_empty()
                && let Some(known) = before.0.get(number)
            {
                (table.help, table.columns) = known.clone();
            }
            now.0.push((table.help.clone(), table.columns.clone()));
        }
        *before = now;
    }
}

/// What the tables of an answer are about, and their columns.
#[derive(Debug, Clone, Default)]
pub struct Columns(Vec<(String, Vec<crate::Column>)>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Table, Unit};

    fn outcome(columns: &[&str]) -> Outcome {
        let columns: Vec<_> = columns.iter().map(|name| (*name, Unit::Count, "meaning")).collect();
        let mut table = Table::new("t", "What it is about.", &columns);
        table.push(columns.iter().map(|_| 1.into()));
        Outcome { error: None, answer: Some(Answer { tables: vec![table] }) }
    }

    #[test]
    fn columns_are_told_when_they_are_new() {
        let (mut sent, mut known) = (Columns::default(), Columns::default());
        let refused = Outcome { error: Some("no".into()), answer: None };
        let all = [outcome(&["a"]), outcome(&["a"]), outcome(&["b", "c"]), refused, outcome(&["b", "c"])];
        let mut lengths = Vec::new();
        for told in all {
            let mut on_the_way = told.clone();
            on_the_way.shorten(&mut sent);
            lengths.push(on_the_way.answer.as_ref().map_or(9, |answer| answer.tables[0].columns.len()));
            on_the_way.complete(&mut known);
            assert_eq!(on_the_way, told);
        }
        assert_eq!(lengths, [1, 0, 2, 9, 2]);
    }
}
