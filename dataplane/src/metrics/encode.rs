//! From figures to text, in the two formats that scrapers ask for.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::accounts::{EndFigures, FAILURES, RTT_BOUNDS_US, RttFigures};
use super::declared::{self, Kind, Metric};
use super::far_ends::NameFigures;
use super::labels::{DnsLabels, EndLabels, OTHER, RttLabels};
use super::process::OwnFigures;
use super::resolving::DnsFigures;
use super::series::{SeriesCounts, Shown};
use super::snapshot::Snapshot;
use super::tables::{self, OfColumn};
use crate::model::flow::{Side, State};
use crate::names::service::RCODES;

/// What a scraper asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Classic,
}

impl Format {
    pub(super) const BOTH: [Self; 2] = [Self::OpenMetrics, Self::Classic];

    /// The better one of those that an Accept header names: OpenMetrics only for who asks for it.
    pub(super) fn wanted(accept: &str) -> Self {
        let quality = |part: &str| {
            let q = part.split(';').filter_map(|parameter| parameter.trim().strip_prefix("q=")).next();
            q.map_or(Some(1.0), |q| q.trim().parse::<f32>().ok()).unwrap_or(0.0)
        };
        let best = |wanted: &str| {
            let named =
                accept.split(',').filter(|part| part.split(';').next().is_some_and(|kind| kind.trim() == wanted));
            named.map(quality).fold(0.0, f32::max)
        };
        let open_metrics = best("application/openmetrics-text");
        if open_metrics > 0.0 && open_metrics >= best("text/plain") { Self::OpenMetrics } else { Self::Classic }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Everything that is told at one moment.
pub(super) struct Figures {
    pub(super) snapshot: Snapshot,
    pub(super) own: OwnFigures,
}

/// Makes the text.
///
/// # Errors
/// None: writing to a string cannot fail.
pub(super) fn encode(figures: &Arc<Figures>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(Arc::clone(figures))));
    let mut page = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
        Format::Classic => prometheus_text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

struct Page(Arc<Figures>);

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Figures { snapshot, own } = &*self.0;
        ends(&mut encoder, &snapshot.ends)?;
        rtt(&mut encoder, &snapshot.rtt)?;
        dns(&mut encoder, &snapshot.dns)?;
        names(&mut encoder, &snapshot.names)?;
        totals(&mut encoder, snapshot)?;
        own_figures(&mut encoder, own)?;
        for column in tables::TABLES.iter().flat_map(|(_, columns)| columns.iter()) {
            of_table(&mut encoder, column, snapshot)?;
        }
        Ok(())
    }
}

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// Begins a metric, whose samples follow.
fn family<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    metric: &Metric,
    unit: &'s Option<Unit>,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
        Kind::Info => MetricType::Info,
    };
    encoder.encode_descriptor(metric.stem, metric.help, unit.as_ref(), kind)
}

fn unit_of(metric: &Metric) -> Option<Unit> {
    match metric.unit {
        "" => None,
        "seconds" => Some(Unit::Seconds),
        "bytes" => Some(Unit::Bytes),
        other => Some(Unit::Other(other.to_owned())),
    }
}

/// Counters and gauges with their labels, of which empty ones are left out: Prometheus takes them for the same.
fn write<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let unit = unit_of(metric);
    let mut metric_encoder = family(encoder, metric, &unit)?;
    for (mut labels, value) in samples {
        labels.retain(|(_, value)| !value.is_empty());
        let sample = metric_encoder.encode_family(&labels)?;
        // Whole numbers as such: they are exact up to 2^53.
        let whole = (value >= 0.0 && value.fract() == 0.0 && value < 9e15).then_some(value as u64);
        match (metric.kind, whole) {
            (Kind::Counter, Some(whole)) => ConstCounter::new(whole).encode(sample)?,
            (Kind::Counter, None) => ConstCounter::new(value).encode(sample)?,
            (_, Some(whole)) => ConstGauge::new(whole as i64).encode(sample)?,
            (_, None) => ConstGauge::new(value).encode(sample)?,
        }
    }
    Ok(())
}

fn role(side: Side) -> Cow<'static, str> {
    match side {
        Side::Initiator => "initiator".into(),
        Side::Responder => "responder".into(),
    }
}

fn end_labels(labels: &EndLabels) -> Labels<'_> {
    vec![
        ("process", Cow::Borrowed(labels.process.as_str())),
        ("container", Cow::Borrowed(labels.container.as_str())),
        ("pod", Cow::Borrowed(labels.pod.as_str())),
        ("namespace", Cow::Borrowed(labels.namespace.as_str())),
        ("workload", Cow::Borrowed(labels.workload.as_str())),
        ("role", role(labels.role)),
    ]
}

type Ends = Shown<EndLabels, EndFigures>;

/// One counter of all ends; `name` and `pick`: the label that is added, and its values.
fn by_end(
    encoder: &mut DescriptorEncoder<'_>,
    ends: &Ends,
    metric: &Metric,
    pick: impl Fn(&EndFigures) -> Vec<(&'static str, u64)>,
) -> fmt::Result {
    let more = metric.labels.last().copied().filter(|label| *label != "role");
    let other = (vec![("process", Cow::Borrowed(OTHER)), ("role", OTHER.into())], &ends.other);
    let sets = ends.sets.iter().map(|(labels, figures)| (end_labels(labels), figures));
    let samples = sets.chain([other]).flat_map(|(labels, figures)| {
        pick(figures).into_iter().map(move |(value, count)| {
            let mut labels = labels.clone();
            labels.extend(more.map(|more| (more, Cow::Borrowed(value))));
            (labels, count as f64)
        })
    });
    write(encoder, metric, samples)
}

fn ends(encoder: &mut DescriptorEncoder<'_>, ends: &Ends) -> fmt::Result {
    const DIRECTIONS: [&str; 3] = ["sent", "received", "unknown"];
    let directed = |counts: &[u64]| DIRECTIONS.into_iter().zip(counts.iter().copied()).collect();
    by_end(encoder, ends, &declared::OPENED, |figures| vec![("", figures.opened)])?;
    by_end(encoder, ends, &declared::ENDED, |figures| {
        let all = State::ALL.into_iter().zip(figures.ended);
        all.filter(|(_, count)| *count > 0).map(|(state, count)| (word(state), count)).collect()
    })?;
    by_end(encoder, ends, &declared::BYTES, |figures| directed(&figures.bytes))?;
    by_end(encoder, ends, &declared::PACKETS, |figures| directed(&figures.packets))?;
    by_end(encoder, ends, &declared::RETRANS, |figures| vec![("", figures.retrans)])?;
    by_end(encoder, ends, &declared::RESETS, |figures| directed(&figures.resets))?;
    by_end(encoder, ends, &declared::FAILED, |figures| FAILURES.into_iter().map(word).zip(figures.failed).collect())
}

/// A state as a label.
fn word(state: State) -> &'static str {
    if state == State::TimedOut { "timed_out" } else { state.name() }
}

fn rtt(encoder: &mut DescriptorEncoder<'_>, rtt: &Shown<RttLabels, RttFigures>) -> fmt::Result {
    let other = (vec![("workload", Cow::Borrowed(OTHER)), ("role", OTHER.into())], rtt.other);
    let sets = rtt.sets.iter().map(|(labels, figures)| {
        let labels = vec![
            ("namespace", Cow::Borrowed(labels.namespace.as_str())),
            ("workload", Cow::Borrowed(labels.workload.as_str())),
            ("role", role(labels.role)),
        ];
        (labels, *figures)
    });
    histogram(encoder, &declared::RTT, sets.chain([other]))
}

fn histogram<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = (Labels<'a>, RttFigures)>,
) -> fmt::Result {
    let unit = unit_of(metric);
    let mut family = family(encoder, metric, &unit)?;
    for (mut labels, figures) in samples {
        labels.retain(|(_, value)| !value.is_empty());
        let bounds = RTT_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(figures.buckets).collect();
        let (sum_s, count) = (figures.sum_us as f64 / 1e6, figures.buckets.iter().sum());
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum_s, count, &buckets, None)?;
    }
    Ok(())
}

type Dns = Shown<DnsLabels, DnsFigures>;

/// Each who has asked a server, without a role: all of them are initiators.
fn askers(dns: &Dns) -> impl Iterator<Item = (Labels<'_>, &DnsFigures)> {
    let other = (vec![("process", Cow::Borrowed(OTHER)), ("server", OTHER.into())], &dns.other);
    let sets = dns.sets.iter().map(|(labels, figures)| {
        let mut shown = end_labels(&labels.client);
        shown.retain(|(label, _)| *label != "role");
        shown.push(("server", Cow::Borrowed(labels.server.as_str())));
        (shown, figures)
    });
    sets.chain([other])
}

fn dns(encoder: &mut DescriptorEncoder<'_>, dns: &Dns) -> fmt::Result {
    let mut counted = |metric: &Metric, pick: fn(&DnsFigures) -> u64| {
        write(encoder, metric, askers(dns).map(|(labels, figures)| (labels, pick(figures) as f64)))
    };
    counted(&declared::DNS_QUERIES, |figures| figures.queries)?;
    counted(&declared::DNS_TRUNCATED, |figures| figures.truncated)?;
    counted(&declared::DNS_RETRIED, |figures| figures.retried)?;
    counted(&declared::DNS_TIMEOUTS, |figures| figures.timeouts)?;
    let rcodes = || RCODES.iter().map(|(_, name)| *name).chain(["other"]);
    let answers = askers(dns).flat_map(|(labels, figures)| {
        rcodes().zip(figures.answers).filter(|(_, count)| *count > 0).map(move |(rcode, count)| {
            let mut labels = labels.clone();
            labels.push(("rcode", Cow::Borrowed(rcode)));
            (labels, count as f64)
        })
    });
    write(encoder, &declared::DNS_ANSWERS, answers)?;
    histogram(encoder, &declared::DNS_LATENCY, askers(dns).map(|(labels, figures)| (labels, figures.latency)))
}

fn names(encoder: &mut DescriptorEncoder<'_>, names: &Shown<Arc<str>, NameFigures>) -> fmt::Result {
    let all = || {
        let sets = names.sets.iter().map(|(name, figures)| (&***name, figures));
        sets.chain([(OTHER, &names.other)]).map(|(name, figures)| (vec![("name", Cow::Borrowed(name))], figures))
    };
    write(encoder, &declared::NAME_OPENED, all().map(|(labels, figures)| (labels, figures.opened as f64)))?;
    let directed = all().flat_map(|(labels, figures)| {
        ["sent", "received"].into_iter().zip(figures.bytes).map(move |(direction, bytes)| {
            let mut labels = labels.clone();
            labels.push(("direction", direction.into()));
            (labels, bytes as f64)
        })
    });
    write(encoder, &declared::NAME_BYTES, directed)
}

fn one(value: f64) -> [(Labels<'static>, f64); 1] {
    [(Vec::new(), value)]
}

fn totals(encoder: &mut DescriptorEncoder<'_>, s: &Snapshot) -> fmt::Result {
    let by_sender =
        |counts: [u64; 2]| Side::BOTH.map(|side| (vec![("sender", role(side))], counts[side as usize] as f64));
    write(encoder, &declared::REPORTED_BYTES, by_sender(s.reported.bytes))?;
    write(encoder, &declared::REPORTED_PACKETS, by_sender(s.reported.packets))?;
    let sets = [("ends", s.ends.counts), ("rtt", s.rtt.counts), ("dns", s.dns.counts), ("names", s.names.counts)];
    let states = |(of, counts): (&'static str, SeriesCounts)| {
        let states = [("shown", counts.shown), ("hidden", counts.hidden), ("forgotten", counts.forgotten)];
        states.map(|(state, count)| (vec![("of", of.into()), ("state", state.into())], count as f64))
    };
    write(encoder, &declared::LABEL_SETS, sets.into_iter().flat_map(states))?;
    let of = |count: fn(&SeriesCounts) -> u64| {
        sets.map(move |(of, counts)| (vec![("of", Cow::Borrowed(of))], count(&counts) as f64))
    };
    write(encoder, &declared::LABEL_SETS_MAX, of(|counts| counts.shown_max))?;
    write(encoder, &declared::FOLDED, of(|counts| counts.folded))?;
    let table = |name: &'static str, count: f64| (vec![("table", Cow::Borrowed(name))], count);
    let entries = ["flows", "processes", "cgroups"]
        .map(|name| table(name, tables::figure_of(&s.stats, "agent", name).unwrap_or_default()));
    write(encoder, &declared::TABLE_ENTRIES, entries)?;
    write(encoder, &declared::TABLE_LIMIT, s.limits.map(|(name, limit)| table(name, limit as f64)))?;
    let unnamed = tables::loss(&s.stats, tables::UNNAMED_REASON).unwrap_or_default();
    write(encoder, &declared::UNNAMED, one(unnamed))?;
    write(encoder, &declared::PORTION, one(s.portion_max_ns as f64 / 1e9))
}

fn own_figures(encoder: &mut DescriptorEncoder<'_>, own: &OwnFigures) -> fmt::Result {
    let by_thread = |figure: fn(&super::process::ThreadFigures) -> f64| {
        own.threads.iter().map(move |(name, thread)| (vec![("thread", Cow::Borrowed(name.as_str()))], figure(thread)))
    };
    write(encoder, &declared::DATA_PATH, one(f64::from(u8::from(own.healthy))))?;
    write(encoder, &declared::THREAD_CPU, by_thread(|thread| thread.cpu_s))?;
    write(encoder, &declared::THREAD_QUIET, by_thread(|thread| thread.quiet_s))?;
    write(encoder, &declared::THREAD_WORKING, by_thread(|thread| thread.working as f64))?;
    write(encoder, &declared::THREAD_RESTARTS, by_thread(|thread| thread.restarts as f64))?;
    let codes = own.requests.iter().map(|(code, count)| (vec![("code", Cow::Owned(code.to_string()))], *count as f64));
    write(encoder, &declared::REQUESTS, codes)?;
    write(encoder, &declared::CLIENTS_CUT, one(own.clients_cut as f64))?;
    write(encoder, &declared::BPF_STATS, own.bpf_stats.map(f64::from).map(one).into_iter().flatten())?;
    let unit = unit_of(&declared::BUILD);
    family(encoder, &declared::BUILD, &unit)?.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
    for (metric, value) in [
        (&declared::PROCESS_CPU, own.cpu_s),
        (&declared::PROCESS_MEMORY, own.memory_bytes),
        (&declared::PROCESS_START, own.started_unix_s),
        (&declared::PROCESS_FDS, own.open_fds),
        (&declared::PROCESS_FDS_MAX, own.max_fds),
    ] {
        write(encoder, metric, value.map(one).into_iter().flatten())?;
    }
    Ok(())
}

fn of_table(encoder: &mut DescriptorEncoder<'_>, column: &OfColumn, snapshot: &Snapshot) -> fmt::Result {
    let samples = column.samples(&snapshot.stats).into_iter();
    let owned = |labels: Vec<(&'static str, String)>| labels.into_iter().map(|(key, value)| (key, Cow::Owned(value)));
    write(encoder, &column.metric, samples.map(|(labels, value)| (owned(labels).collect(), value)))
}
