//! What the control thread is given: how it works, and its ends of the threads that it asks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use sockeye_bpf::preflight::Need;
use tokio::sync::mpsc::Sender;

use crate::api::events::Tuning;
use crate::export::messages::AgentFigures;
use crate::metrics::series::SeriesBounds;
use crate::model::rate::Window;
use crate::owners::cmdline::CommandLines;
use crate::owners::desk::Desk;
use crate::owners::packages::{PackageRequest, PackageStats};
use crate::owners::process::{LookupReply, LookupRequest};
use crate::owners::runtimes::{NamingStats, RuntimeList};
use crate::owners::workload::{NameReply, NameRequest};
use crate::threads::Threads;

/// How the control thread works.
#[derive(Clone)]
pub struct ControlOptions {
    /// What may change later.
    pub tuning: Tuning,
    /// Most flows in the table.
    pub flows_max: usize,
    /// Figures that the exporters tell collectors.
    pub figures: Arc<AgentFigures>,
    /// All threads, for their figures.
    pub threads: Threads,
    /// As whom the agent runs: a name, or a number if it has none.
    pub user: String,
    /// What cannot be seen from where the agent runs.
    pub limits: Vec<Need>,
    /// Of how long a time rates are.
    pub window: Window,
    /// Where the host's cgroups are, if they can be seen.
    pub cgroup_root: Option<PathBuf>,
    /// How much of command lines is kept.
    pub command_lines: CommandLines,
    /// The connection tracking is asked for flows with one end.
    pub nat: bool,
    /// Most label sets that Prometheus is shown, if it is to be served.
    pub prometheus_series: Option<SeriesBounds>,
}

/// The control thread's ends of the threads that ask /proc and the container runtimes.
pub struct Enrichment {
    /// Questions about processes.
    pub lookup_requests: Desk<LookupRequest>,
    /// Answers.
    pub lookup_replies: Receiver<Box<LookupReply>>,
    /// Questions about packages, of which there are figures only.
    pub package_requests: Arc<Desk<PackageRequest>>,
    /// The same.
    pub packages: Arc<PackageStats>,
    /// Questions about containers.
    pub name_requests: Sender<NameRequest>,
    /// Answers.
    pub name_replies: Receiver<NameReply>,
    /// Who is asked.
    pub runtimes: RuntimeList,
    /// Figures.
    pub naming: Arc<NamingStats>,
}
