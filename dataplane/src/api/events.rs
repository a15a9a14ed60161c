//! What wakes the control thread.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use sockeye_ctl::Request;
use sockeye_ctl::protocol::Answer;

use crate::export::ExportPort;
use crate::flows::filter::Filter;
use crate::flows::{Keep, Timeouts};
use crate::metrics::snapshot::Snapshot;

/// What control is woken by.
pub enum Event {
    /// Somebody asks.
    Question(Question),
    /// Prometheus does.
    Scrape(SyncSender<Snapshot>),
    /// A worker's shard is full.
    ShardFull,
    /// Another configuration.
    Change(Box<Change>),
}

/// What wakes the thread that has started all others.
pub enum Command {
    /// A signal has come.
    Signal(i32),
    /// The agent must end.
    End,
    /// Somebody asks about the configuration, or for a new one.
    Question(Question),
}

/// What may change while the agent runs.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Timeouts of flows.
    pub timeouts: Timeouts,
    /// From one scan over all sockets to the next, unless it takes so long that it must be more.
    pub scan_every: Duration,
    /// How much of the recent past is kept.
    pub keep: Keep,
    /// Which flows are left out.
    pub filter: Filter,
    /// Collectors hear of listening ports.
    pub tells_ports: bool,
}

/// Another tuning, and other exporters.
pub struct Change {
    /// All of it, whether or not it is another.
    pub tuning: Tuning,
    /// Names of exporters that are not wanted any more.
    pub gone: Vec<String>,
    /// Exporters that are new.
    pub new: Vec<ExportPort>,
    /// Where those go that are not wanted, to be closed by whoever has time to wait; or why nothing has changed.
    pub reply: SyncSender<Result<Vec<ExportPort>, String>>,
}

/// A question on its way to the control thread.
pub struct Question {
    /// What is asked.
    pub request: Request,
    /// Containers of the host by the ids and paths of their cgroups, where those without flows are asked for, too.
    pub places: Vec<(u64, String)>,
    /// Control adds what it took to answer: nanoseconds of CPU.
    pub cost_ns: Arc<AtomicU64>,
    /// Where the answer goes.
    pub reply: SyncSender<Result<Answer, String>>,
}
