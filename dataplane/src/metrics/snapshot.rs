//! What control hands out for a scrape.

use std::sync::Arc;

use sockeye_ctl::protocol::Answer;

use super::accounts::{EndFigures, RttFigures};
use super::far_ends::NameFigures;
use super::labels::{DnsLabels, EndLabels, RttLabels};
use super::resolving::DnsFigures;
use super::series::Shown;
use crate::model::flow::Counters;

/// The figures of one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// As `ctl stats` answers.
    pub stats: Answer,
    /// By who is behind an end of a flow.
    pub ends: Shown<EndLabels, EndFigures>,
    /// Round-trip times.
    pub rtt: Shown<RttLabels, RttFigures>,
    /// DNS, by who has asked whom.
    pub dns: Shown<DnsLabels, DnsFigures>,
    /// By what the far end is called.
    pub names: Shown<Arc<str>, NameFigures>,
    /// Of all flows, each once.
    pub reported: Counters,
    /// Tables by their names, and what they take at most.
    pub limits: [(&'static str, u64); 3],
    /// The longest that control ever worked on a scrape at a time, nanoseconds.
    pub portion_max_ns: u64,
}
