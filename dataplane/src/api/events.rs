//! What wakes the control thread.

use std::sync::mpsc::SyncSender;

use sockeye_ctl::Request;
use sockeye_ctl::protocol::Answer;

use crate::metrics::snapshot::Snapshot;

/// What control is woken by.
pub enum Event {
    /// Somebody asks.
    Question(Question),
    /// Prometheus does.
    Scrape(SyncSender<Snapshot>),
    /// A worker's shard is full.
    ShardFull,
}

/// A question on its way to the control thread.
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Containers of the host by the ids and paths of their cgroups, where those without flows are asked for, too.
    pub places: Vec<(u64, String)>,
    /// Where the answer goes.
    pub reply: SyncSender<Result<Answer, String>>,
}
