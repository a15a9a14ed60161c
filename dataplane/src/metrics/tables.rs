//! Metrics that are columns of tables of `ctl stats`: what is counted there is served, and counted once.

use std::collections::BTreeMap;

use serde_json::Value;
use sockeye_ctl::protocol::{Answer, Table};

use super::declared::{Metric, counter, gauge};

/// A column that is a metric.
#[derive(Clone, Copy)]
pub(super) struct OfColumn {
    pub(super) metric: Metric,
    /// Table and column. A column of words is 1 where it says `yes` or `up`, and 0 otherwise.
    table: &'static str,
    column: &'static str,
    /// Columns that are its labels, in their order.
    labels: &'static [&'static str],
    /// Of the column's unit to that of the metric.
    scale: f64,
}

const fn of(metric: Metric, table: &'static str, column: &'static str, labels: &'static [&'static str]) -> OfColumn {
    OfColumn { metric, table, column, labels, scale: 1.0 }
}

const fn scaled(column: OfColumn, scale: f64) -> OfColumn {
    OfColumn { scale, ..column }
}

const NS: f64 = 1e-9;
const MS: f64 = 1e-3;
const PERCENT: f64 = 1e-2;

const LOSSES: &[OfColumn] = &[of(
    counter(
        "sockeye_losses",
        "",
        &["reason", "name"],
        "Everything that can be lost, as the table losses of ctl stats; name: of the program or exporter",
    ),
    "losses",
    "count",
    &["reason"],
)];

const FLOWS: &[OfColumn] = &[
    of(
        gauge("sockeye_flows", "", &["protocol", "state"], "Flows in the table"),
        "flows",
        "flows",
        &["protocol", "state"],
    ),
    of(counter("sockeye_flows_entered", "", &[], "Flows that came into the table"), "agent", "flows_seen", &[]),
    of(
        counter("sockeye_flows_paired", "", &[], "Flows whose two ends, both on this host, were joined"),
        "agent",
        "flows_paired",
        &[],
    ),
    of(
        gauge("sockeye_flows_unreported", "", &[], "Flows whose begin or end waits to be reported"),
        "agent",
        "flows_unreported",
        &[],
    ),
    scaled(
        of(
            gauge("sockeye_behind", "seconds", &[], "What happened before this long ago is in the table"),
            "agent",
            "behind",
            &[],
        ),
        NS,
    ),
    of(counter("sockeye_rtt_samples", "", &[], "Round-trip samples of all connections"), "rtt", "samples", &[]),
    of(gauge("sockeye_containers", "", &[], "Containers that are remembered"), "agent", "containers", &[]),
    of(gauge("sockeye_listeners", "", &[], "Sockets that listen"), "agent", "listeners", &[]),
    of(counter("sockeye_scans", "", &[], "Scans of all sockets"), "agent", "scans", &[]),
    of(gauge("sockeye_scan_sockets", "", &[], "Sockets that the last scan found"), "agent", "scan_sockets", &[]),
    scaled(of(gauge("sockeye_scan_cpu", "seconds", &[], "CPU time of the last scan"), "agent", "scan_time", &[]), NS),
];

const RINGS: &[OfColumn] = &[
    of(
        counter(
            "sockeye_ring_records_offered",
            "",
            &["cpu"],
            "Records that the kernel programs wanted to send; cpu: other = all CPUs that came online later",
        ),
        "rings",
        "offered",
        &["cpu"],
    ),
    of(counter("sockeye_ring_records_delivered", "", &["cpu"], "Records that arrived"), "rings", "delivered", &["cpu"]),
    of(
        counter(
            "sockeye_ring_records_overflow",
            "",
            &["cpu"],
            "Close records that found the ring full and took another way",
        ),
        "rings",
        "overflow",
        &["cpu"],
    ),
    of(counter("sockeye_ring_records_lost", "", &["cpu"], "Records that found no room"), "rings", "lost", &["cpu"]),
    of(gauge("sockeye_ring_size", "bytes", &["cpu"], "Capacity of the ring"), "rings", "size", &["cpu"]),
    scaled(
        of(
            gauge(
                "sockeye_ring_fill_max",
                "ratio",
                &["cpu"],
                "Most of a ring that was in use when its worker came, since the start",
            ),
            "rings",
            "fill_max",
            &["cpu"],
        ),
        PERCENT,
    ),
    of(
        gauge("sockeye_kernel_memory", "bytes", &[], "Ring buffers of all CPUs and of the socket scan"),
        "agent",
        "kernel_memory",
        &[],
    ),
    of(
        counter("sockeye_worker_visits", "", &["worker"], "Times that a worker looked into its rings"),
        "workers",
        "visits",
        &["worker"],
    ),
    of(
        counter("sockeye_worker_shards", "", &["worker"], "Shards that a worker handed over"),
        "workers",
        "shards",
        &["worker"],
    ),
    of(
        gauge("sockeye_worker_shard_flows_max", "", &["worker"], "Most flows that a shard has had"),
        "workers",
        "shard_flows_max",
        &["worker"],
    ),
];

const EXPORTS: &[OfColumn] = &[
    of(gauge("sockeye_export_connected", "", &["to"], "1 while a collector is there"), "exports", "connected", &["to"]),
    of(counter("sockeye_export_joined", "", &["to"], "How often a collector came"), "exports", "joined", &["to"]),
    of(gauge("sockeye_export_queued", "", &["to"], "Reports that wait"), "exports", "queued", &["to"]),
    of(counter("sockeye_export_records", "", &["to"], "Flow records sent"), "exports", "records", &["to"]),
    of(counter("sockeye_export_messages", "", &["to"], "Messages sent"), "exports", "messages", &["to"]),
    of(counter("sockeye_export_sent", "bytes", &["to"], "Payload sent"), "exports", "bytes", &["to"]),
    of(
        counter("sockeye_export_retried", "", &["to"], "Sends repeated because the collector was slow"),
        "exports",
        "retried",
        &["to"],
    ),
    of(
        counter("sockeye_export_dropped", "", &["to"], "Reports dropped because the queue was full"),
        "exports",
        "dropped",
        &["to"],
    ),
];

const PROGRAMS: &[OfColumn] = &[
    of(
        counter("sockeye_bpf_program_runs", "", &["program"], "Runs while the kernel counted them"),
        "programs",
        "runs",
        &["program"],
    ),
    scaled(
        of(
            counter("sockeye_bpf_program_run", "seconds", &["program"], "Time of those runs"),
            "programs",
            "run_time",
            &["program"],
        ),
        NS,
    ),
    of(
        gauge("sockeye_bpf_program_verified_instructions", "", &["program"], "Instructions that the verifier walked"),
        "programs",
        "verified",
        &["program"],
    ),
];

const NAMES: &[OfColumn] = &[
    of(
        gauge("sockeye_questions_waiting", "", &["about"], "Questions about owners of sockets that wait"),
        "questions",
        "waiting",
        &["about"],
    ),
    scaled(
        of(
            gauge("sockeye_questions_oldest", "seconds", &["about"], "Since the oldest without an answer was asked"),
            "questions",
            "oldest",
            &["about"],
        ),
        MS,
    ),
    of(counter("sockeye_questions_asked", "", &["about"], "Questions ever"), "questions", "asked", &["about"]),
    of(
        counter("sockeye_questions_not_asked", "", &["about"], "Those that found too many waiting"),
        "questions",
        "not_asked",
        &["about"],
    ),
    of(
        counter("sockeye_questions_given_up", "", &["about"], "Those without an answer in time"),
        "questions",
        "given_up",
        &["about"],
    ),
    of(
        gauge("sockeye_questions_stuck_threads", "", &["about"], "Threads that hang in a question"),
        "questions",
        "stuck",
        &["about"],
    ),
    of(
        gauge("sockeye_runtime_up", "", &["api", "socket"], "1 while a container runtime answers"),
        "runtimes",
        "state",
        &["api", "socket"],
    ),
    of(
        counter("sockeye_runtime_requests", "", &["api", "socket"], "Requests to a container runtime"),
        "runtimes",
        "asked",
        &["api", "socket"],
    ),
    of(
        counter("sockeye_runtime_failed", "", &["api", "socket"], "Those without a reply that is understood"),
        "runtimes",
        "failed",
        &["api", "socket"],
    ),
];

/// All of them, by what they are about.
pub(super) const TABLES: [(&str, &[OfColumn]); 6] = [
    ("Losses", LOSSES),
    ("The flow table", FLOWS),
    ("Rings and workers", RINGS),
    ("Exporters", EXPORTS),
    ("Kernel programs", PROGRAMS),
    ("Names", NAMES),
];

/// Labels and figures of a metric; each set of labels is there once.
pub(super) type Samples = BTreeMap<Vec<(&'static str, String)>, f64>;

/// A count in the table of losses that says how many there are, and goes down again.
pub(super) const UNNAMED_REASON: &str = "container_unnamed";

impl OfColumn {
    /// What the tables have of it.
    pub(super) fn samples(&self, stats: &Answer) -> Samples {
        let mut samples = Samples::new();
        let Some(table) = stats.tables.iter().find(|table| table.name == self.table) else { return samples };
        let labels: Vec<usize> = self.labels.iter().filter_map(|label| index(table, label)).collect();
        let Some(column) = index(table, self.column) else { return samples };
        for row in &table.rows {
            let Some(figure) = row.get(column).and_then(figure) else { continue };
            let mut set: Vec<_> =
                self.metric.labels.iter().copied().zip(labels.iter().map(|label| text(&row[*label]))).collect();
            if self.table == "losses" {
                if set[0].1 == UNNAMED_REASON {
                    continue;
                }
                // "program_busy NAME".
                if let Some((reason, name)) = set[0].1.split_once(' ') {
                    set = vec![("reason", reason.to_owned()), ("name", name.to_owned())];
                }
            }
            *samples.entry(set).or_default() += figure * self.scale;
        }
        samples
    }
}

/// One figure of a table with one row.
pub(super) fn figure_of(stats: &Answer, table: &str, column: &str) -> Option<f64> {
    let table = stats.tables.iter().find(|known| known.name == table)?;
    figure(table.rows.first()?.get(index(table, column)?)?)
}

/// The count of a loss.
pub(super) fn loss(stats: &Answer, reason: &str) -> Option<f64> {
    let table = stats.tables.iter().find(|known| known.name == "losses")?;
    let (name, count) = (index(table, "reason")?, index(table, "count")?);
    figure(&table.rows.iter().find(|row| row[name] == reason)?[count])
}

fn index(table: &Table, column: &str) -> Option<usize> {
    table.columns.iter().position(|known| known.name == column)
}

/// What is not known has none.
fn figure(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(word) => Some(f64::from(u8::from(word == "yes" || word == "up"))),
        _ => None,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "other".to_owned(),
        other => other.to_string(),
    }
}
