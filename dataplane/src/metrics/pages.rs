//! What is written about the metrics elsewhere agrees with the declarations: the reference page, alerts, the dashboard.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use sockeye_ctl::protocol::{Answer, Table, Unit};

use super::accounts::{Accounts, EndFigures};
use super::declared::{self, Kind, Metric};
use super::encode::{Figures, Format, encode};
use super::labels::EndLabels;
use super::process::{OwnFigures, ThreadFigures};
use super::series::Shown;
use super::snapshot::Snapshot;
use super::tables;
use crate::model::flow::Side;

fn docs(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(path)
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

impl Metric {
    /// As it is called in queries; of a histogram without `_bucket`, `_count` and `_sum`.
    fn name(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!("_{}", self.unit) };
        let end = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        format!("{}{unit}{end}", self.stem)
    }
}

/// Those that are not a column of a table of `ctl stats`, by what they are about.
const OWN: [(&str, &[&Metric]); 5] = [
    (
        "Flows",
        &[
            &declared::OPENED,
            &declared::ENDED,
            &declared::BYTES,
            &declared::PACKETS,
            &declared::RETRANS,
            &declared::RESETS,
            &declared::FAILED,
            &declared::RTT,
        ],
    ),
    (
        "DNS and names",
        &[
            &declared::DNS_QUERIES,
            &declared::DNS_ANSWERS,
            &declared::DNS_TRUNCATED,
            &declared::DNS_RETRIED,
            &declared::DNS_TIMEOUTS,
            &declared::DNS_LATENCY,
            &declared::NAME_OPENED,
            &declared::NAME_BYTES,
        ],
    ),
    (
        "Totals and bounds",
        &[
            &declared::REPORTED_BYTES,
            &declared::REPORTED_PACKETS,
            &declared::LABEL_SETS,
            &declared::LABEL_SETS_MAX,
            &declared::FOLDED,
            &declared::TABLE_ENTRIES,
            &declared::TABLE_LIMIT,
            &declared::UNNAMED,
        ],
    ),
    (
        "Threads and scrapes",
        &[
            &declared::DATA_PATH,
            &declared::THREAD_CPU,
            &declared::THREAD_QUIET,
            &declared::THREAD_WORKING,
            &declared::THREAD_RESTARTS,
            &declared::PORTION,
            &declared::REQUESTS,
            &declared::CLIENTS_CUT,
            &declared::BPF_STATS,
        ],
    ),
    (
        "Process",
        &[
            &declared::BUILD,
            &declared::PROCESS_CPU,
            &declared::PROCESS_MEMORY,
            &declared::PROCESS_START,
            &declared::PROCESS_FDS,
            &declared::PROCESS_FDS_MAX,
        ],
    ),
];

/// All metrics, by what they are about.
fn all() -> Vec<(&'static str, Vec<Metric>)> {
    let mut all: Vec<_> = OWN.iter().map(|(title, metrics)| (*title, metrics.iter().map(|m| **m).collect())).collect();
    all.extend(tables::TABLES.iter().map(|(title, columns)| (*title, columns.iter().map(|c| c.metric).collect())));
    all
}

/// The reference page's part that is made of the declarations.
fn reference() -> String {
    let mut page = String::new();
    for (title, metrics) in all() {
        page += &format!("## {title}\n\n| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n");
        for metric in metrics {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, help) = (metric.name(), metric.kind.name(), metric.help);
            page += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        }
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}

fn metrics() -> Vec<Metric> {
    all().into_iter().flat_map(|(_, metrics)| metrics).collect()
}

/// Names of samples, as queries have them.
fn sample_names() -> BTreeSet<String> {
    let names = |metric: &Metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_count", "_sum"].map(|end| metric.name() + end).to_vec(),
        _ => vec![metric.name()],
    };
    metrics().iter().flat_map(names).collect()
}

/// The end of the page, from this line on, is made of the declarations.
const BEGIN: &str = "<!-- made of dataplane/src/metrics/declared.rs and tables.rs -->\n";

/// `SOCKEYE_WRITE_DOCS=1 cargo test -p sockeye --lib reference_page` writes it anew.
#[test]
fn the_reference_page_is_that_of_the_declarations() {
    let path = docs("metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let (prose, tables) = page.split_once(BEGIN).expect("the line that divides the page");
    let wanted = format!("\n{}", reference());
    if std::env::var_os("SOCKEYE_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{prose}{BEGIN}{wanted}")).unwrap();
        return;
    }
    assert!(
        tables == wanted,
        "docs/metrics.md differs from the declarations: write it anew with\n\
         SOCKEYE_WRITE_DOCS=1 cargo test -p sockeye --lib reference_page"
    );
}

/// Names of metrics of the agent in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    // A reason of a loss may begin with process_, too.
    let of_process = ["process_cpu_", "process_resident_", "process_start_", "process_open_", "process_max_"];
    let is_name = |word: &&str| word.starts_with("sockeye_") || of_process.iter().any(|begin| word.starts_with(begin));
    words.filter(is_name).map(str::to_owned).collect()
}

#[test]
fn alerts_name_metrics_that_there_are() {
    let names = names_in(&fs::read_to_string(docs("alerts.yml")).unwrap());
    let unknown: Vec<_> = names.difference(&sample_names()).cloned().collect();
    assert!(names.len() > 5 && unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_dashboard_is_one_and_names_metrics_that_there_are() {
    let text = fs::read_to_string(docs("grafana/sockeye.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["schemaVersion"], 38, "of Grafana 10");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each has a number of its own");
    let mut names = BTreeSet::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel:#}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["title"].is_string(), "{panel:#}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel:#}");
            names.extend(names_in(target["expr"].as_str().unwrap()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        names.extend(names_in(variable["definition"].as_str().unwrap_or_default()));
    }
    let unknown: Vec<_> = names.difference(&sample_names()).cloned().collect();
    assert!(names.len() > 15 && unknown.is_empty(), "{unknown:?}");
}

/// A table with one row of every column that is a metric.
fn answer() -> Answer {
    let table = |name: &str, columns: &[(&str, Unit, &str)], row: &[Value]| {
        let mut table = Table::new(name, "", columns);
        table.push(row.to_vec());
        table
    };
    let losses = [("reason", Unit::Text, ""), ("count", Unit::Count, "")];
    let mut lost = table("losses", &losses, &["record_malformed".into(), 3.into()]);
    lost.push(["program_busy se_close".into(), 4.into()]);
    lost.push([tables::UNNAMED_REASON.into(), 5.into()]);
    let exports = [("to", Unit::Text, ""), ("connected", Unit::Text, ""), ("bytes", Unit::Bytes, "")];
    let mut sent = table("exports", &exports, &["tcp://a".into(), "yes".into(), 10.into()]);
    sent.push(["tcp://a".into(), "yes".into(), 20.into()]);
    let rings = [("cpu", Unit::Id, ""), ("fill_max", Unit::Percent, "")];
    Answer { tables: vec![lost, sent, table("rings", &rings, &[Value::Null, 12.5.into()])] }
}

fn figures(process: &str) -> Arc<Figures> {
    let labels = EndLabels {
        process: process.to_owned(),
        container: String::new(),
        pod: "p".into(),
        namespace: "n".into(),
        workload: "Deployment/d".into(),
        role: Side::Responder,
    };
    let figures = EndFigures { opened: 7, bytes: [100, 200], ..EndFigures::default() };
    let (mut ends, rtt) = Accounts::new(5).shown();
    ends = Shown { sets: vec![(Arc::new(labels), figures)], ..ends };
    let thread = ThreadFigures { cpu_s: 1.5, ..ThreadFigures::default() };
    let own =
        OwnFigures { threads: [("sockeye-w0".to_owned(), thread)].into(), healthy: true, ..OwnFigures::default() };
    Arc::new(Figures {
        snapshot: Snapshot {
            stats: answer(),
            ends,
            rtt,
            limits: ["flows", "processes", "cgroups"].map(|table| (table, 9)),
            ..Snapshot::default()
        },
        own,
    })
}

#[test]
fn every_metric_is_served_in_both_formats() {
    let figures = figures("a\"b\\c");
    let [open_metrics, classic] = Format::BOTH.map(|format| encode(&figures, format).unwrap());
    assert_eq!(classic.matches("# TYPE ").count(), metrics().len(), "each that is served is on the page");
    for metric in metrics() {
        let name = metric.name();
        let family = name.strip_suffix("_total").or(name.strip_suffix("_info")).unwrap_or(&name);
        let family = if metric.kind == Kind::Gauge { &name } else { family };
        assert!(open_metrics.contains(&format!("# TYPE {family} ")), "{name}");
        assert!(classic.contains(&format!("# TYPE {name} ")), "{name}");
    }
    for line in [
        r#"sockeye_traffic_bytes_total{process="a\"b\\c",pod="p",namespace="n",workload="Deployment/d",role="responder",direction="received"} 200"#,
        r#"sockeye_flows_opened_total{process="other",role="other"} 0"#,
        r#"sockeye_losses_total{reason="record_malformed"} 3"#,
        r#"sockeye_losses_total{reason="program_busy",name="se_close"} 4"#,
        "sockeye_containers_unnamed 5",
        // The same collector twice is one.
        r#"sockeye_export_sent_bytes_total{to="tcp://a"} 30"#,
        r#"sockeye_ring_fill_max_ratio{cpu="other"} 0.125"#,
        r#"sockeye_thread_cpu_seconds_total{thread="sockeye-w0"} 1.5"#,
    ] {
        assert!(open_metrics.lines().any(|known| known == line), "{line}\n{open_metrics}");
        assert!(classic.lines().any(|known| known == line), "{line}\n{classic}");
    }
    for (page, line) in [
        (&open_metrics, r#"sockeye_rtt_seconds_bucket{le="+Inf",workload="other",role="other"} 0"#),
        (&classic, r#"sockeye_rtt_seconds_bucket{workload="other",role="other",le="+Inf"} 0"#),
    ] {
        assert!(page.lines().any(|known| known == line), "{line}\n{page}");
    }
    assert!(open_metrics.ends_with("# EOF\n") && !classic.contains("# EOF"));
    assert!(!open_metrics.contains("container_unnamed"), "it goes down again, and is no counter");
}

#[test]
fn no_sample_is_there_twice() {
    let page = encode(&figures("p"), Format::Classic).unwrap();
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, _) = line.rsplit_once(' ').unwrap();
        assert!(seen.insert(series), "{series}");
    }
}

#[test]
fn names_keep_to_the_rules() {
    let mut names = BTreeSet::new();
    for metric in metrics() {
        let name = metric.name();
        assert!(names.insert(name.clone()), "{name} is declared twice");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert!(name.starts_with("sockeye_") || name.starts_with("process_"), "{name}");
        assert!(["", "seconds", "bytes", "ratio"].contains(&metric.unit), "{name}: {}", metric.unit);
        assert!(!metric.help.is_empty() && !metric.help.ends_with('.') && !metric.help.contains('|'), "{name}");
    }
}

#[test]
fn a_format_is_served_to_who_asks_for_it() {
    let wanted = |accept| Format::wanted(accept);
    assert_eq!(wanted(""), Format::Classic);
    assert_eq!(wanted("*/*"), Format::Classic);
    // Prometheus 2.42, and 2.0.
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(wanted(prometheus), Format::OpenMetrics);
    assert_eq!(
        wanted("application/vnd.google.protobuf;q=0.7,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"),
        Format::Classic
    );
    assert_eq!(wanted("application/openmetrics-text;q=0.2,text/plain;q=0.9"), Format::Classic);
    assert_eq!(wanted("application/openmetrics-text;q=nonsense"), Format::Classic);
}
