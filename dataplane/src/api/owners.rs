//! `ctl processes` and `containers`: who is behind the flows, and how slow their network is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use hashbrown::HashMap;
use sockeye_ctl::declare::NamedRow;
use sockeye_ctl::protocol::{Answer, OwnerSort, OwnersArguments, Table};
use sockeye_ctl::rows;

use super::pass::{OpenFlows, rows_at_most};
use super::who::{known, label_text, workload_name};
use super::{round2, summary};
use crate::flows::aggregates::{Aggregate, Aggregates, RATES};
use crate::model::flow::ProcKey;
use crate::model::history::History;
use crate::model::rate::Window;
use crate::model::rtt::RttStats;
use crate::owners::cgroup_tree::is_alive;
use crate::owners::process::ProcessTable;
use crate::owners::workload::Workload;

/// What the figures are read from.
pub(crate) struct Owners<'a> {
    pub(crate) processes: &'a ProcessTable,
    pub(crate) aggregates: &'a Aggregates,
    /// Open flows by owner.
    pub(crate) open: &'a OpenFlows,
    pub(crate) now_ns: u64,
    /// Where the host's cgroups are, if they can be seen.
    pub(crate) cgroup_root: Option<&'a Path>,
}

impl Owners<'_> {
    /// What is wanted of histories.
    pub(super) fn recent(&self, parts: usize) -> Recent {
        Recent { parts, window: self.aggregates.window(), now_ns: self.now_ns }
    }

    /// Whether one of these places is still there.
    pub(super) fn state_of<'a>(&self, places: impl IntoIterator<Item = &'a Workload>) -> Option<&'static str> {
        let root = self.cgroup_root?;
        let is_there = |place: &Workload| is_alive(&root.join(place.path.trim_start_matches('/')));
        Some(if places.into_iter().any(is_there) { "running" } else { "gone" })
    }
}

/// How much of histories is wanted.
#[derive(Clone, Copy)]
pub(super) struct Recent {
    pub(super) parts: usize,
    pub(super) window: Window,
    pub(super) now_ns: u64,
}

/// Bytes each way and new flows, per second of each part.
pub(super) type RecentFigures = (Option<Vec<u64>>, Option<Vec<u64>>, Option<Vec<f64>>);

impl Recent {
    /// Nothing, unless it was asked for.
    pub(super) fn of(self, history: Option<&History<3>>) -> RecentFigures {
        let Some(history) = history.filter(|_| self.parts > 0) else { return (None, None, None) };
        let parts = history.per_second(self.parts, self.window, self.now_ns);
        let column = |i: usize| Some(parts.iter().map(|part| part[i].round() as u64).collect());
        (column(0), column(1), Some(parts.iter().map(|part| round2(part[2])).collect()))
    }
}

rows! {
    /// Figures that each of the tables has.
    struct Figures {
        /// flows that are open now
        open: Count = u64,
        /// flows as initiator, since the agent was started
        flows_out: Count = u64,
        /// flows as responder, since the agent was started
        flows_in: Count = u64,
        /// payload sent
        sent: Bytes = u64,
        /// payload received
        received: Bytes = u64,
        /// segments and datagrams sent
        packets_sent: Count = u64,
        /// segments and datagrams received
        packets_received: Count = u64,
        /// payload sent per second, over the last ten seconds
        sent_per_second: Bytes = u64,
        /// payload received per second, over the last ten seconds
        received_per_second: Bytes = u64,
        /// packets of both directions per second, over the last ten seconds
        packets_per_second: Count = f64,
        /// new flows per second, over the last ten seconds
        flows_per_second: Count = f64,
        /// segments sent again
        retrans: Count = u64,
        /// round-trip time as initiator: average of all samples
        rtt_out_mean: Microseconds = Option<f64>,
        /// their standard deviation, the root of the variance
        rtt_out_dev: Microseconds = Option<f64>,
        /// half are shorter
        rtt_out_p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        rtt_out_p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        rtt_out_p99: Microseconds = Option<u64>,
        /// round-trip time as responder: average of all samples
        rtt_in_mean: Microseconds = Option<f64>,
        /// their standard deviation, the root of the variance
        rtt_in_dev: Microseconds = Option<f64>,
        /// half are shorter
        rtt_in_p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        rtt_in_p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        rtt_in_p99: Microseconds = Option<u64>,
        /// payload sent per second in each 5 s of the last minutes, the oldest first, where that was asked for
        history_sent: Bytes = Option<Vec<u64>>,
        /// payload received per second, likewise
        history_received: Bytes = Option<Vec<u64>>,
        /// new flows per second, likewise
        history_flows: Count = Option<Vec<f64>>,
    }
}

/// A line of one of the tables: what its own columns are made from, and where the figures come from.
pub(super) struct Line<T> {
    pub(super) of: T,
    pub(super) aggregate: Aggregate,
    pub(super) open: u64,
    /// As in [`crate::flows::aggregates::RATES`].
    pub(super) rates: [f64; RATES],
    /// Of workloads.
    pub(super) pods: usize,
}

impl<T> Line<T> {
    pub(super) fn new(of: T, (aggregate, open): (Aggregate, u64), owners: &Owners<'_>) -> Self {
        let rates = aggregate.rates.per_second(owners.aggregates.window(), owners.now_ns);
        Self { of, aggregate, open, rates, pods: 0 }
    }

    /// Texts are sorted by themselves.
    fn sort_key(&self, sort: OwnerSort) -> u64 {
        let [out, into] = self.aggregate.activity;
        let rate = |rate: f64| (1000.0 * rate) as u64;
        let rtt =
            |quantile| self.aggregate.rtt.iter().flatten().map(|rtt| rtt.quantile_us(quantile)).max().unwrap_or(0);
        match sort {
            OwnerSort::Sent => out.bytes_sent + into.bytes_sent,
            OwnerSort::Received => out.bytes_received + into.bytes_received,
            OwnerSort::SentRate => rate(self.rates[0]),
            OwnerSort::ReceivedRate => rate(self.rates[1]),
            OwnerSort::PacketRate => rate(self.rates[2]),
            OwnerSort::FlowRate => rate(self.rates[3]),
            OwnerSort::Open => self.open,
            OwnerSort::Bytes => out.bytes_sent + into.bytes_sent + out.bytes_received + into.bytes_received,
            OwnerSort::Flows => out.flows + into.flows + self.open,
            OwnerSort::Retrans => out.retrans + into.retrans,
            OwnerSort::Rate => rate(self.rates[0] + self.rates[1]),
            OwnerSort::Rtt => rtt(0.5),
            OwnerSort::RttP99 => rtt(0.99),
            OwnerSort::Pods => self.pods as u64,
            _ => 0,
        }
    }

    fn figures(&self, recent: Option<Recent>) -> Figures {
        let (history_sent, history_received, history_flows) =
            recent.map(|recent| recent.of(self.aggregate.history.as_deref())).unwrap_or_default();
        let [out, into] = self.aggregate.activity;
        let [rtt_out, rtt_in] = self.aggregate.rtt.each_ref().map(Option::as_deref);
        let [rtt_out_mean, rtt_out_dev] = averages(rtt_out);
        let [rtt_out_p50, rtt_out_p90, rtt_out_p99] = quantiles(rtt_out);
        let [rtt_in_mean, rtt_in_dev] = averages(rtt_in);
        let [rtt_in_p50, rtt_in_p90, rtt_in_p99] = quantiles(rtt_in);
        Figures {
            open: self.open,
            flows_out: out.flows,
            flows_in: into.flows,
            sent: out.bytes_sent + into.bytes_sent,
            received: out.bytes_received + into.bytes_received,
            packets_sent: out.packets_sent + into.packets_sent,
            packets_received: out.packets_received + into.packets_received,
            sent_per_second: self.rates[0] as u64,
            received_per_second: self.rates[1] as u64,
            packets_per_second: round2(self.rates[2]),
            flows_per_second: round2(self.rates[3]),
            retrans: out.retrans + into.retrans,
            rtt_out_mean,
            rtt_out_dev,
            rtt_out_p50,
            rtt_out_p90,
            rtt_out_p99,
            rtt_in_mean,
            rtt_in_dev,
            rtt_in_p50,
            rtt_in_p90,
            rtt_in_p99,
            history_sent,
            history_received,
            history_flows,
        }
    }
}

/// Mean and deviation, microseconds; nothing without samples.
pub(super) fn averages(rtt: Option<&RttStats>) -> [Option<f64>; 2] {
    let rtt = rtt.filter(|rtt| rtt.samples() > 0);
    [rtt.map(|rtt| round2(rtt.mean_us())), rtt.map(|rtt| round2(rtt.deviation_us()))]
}

/// p50, p90 and p99, microseconds; nothing without samples.
pub(super) fn quantiles(rtt: Option<&RttStats>) -> [Option<u64>; 3] {
    let rtt = rtt.filter(|rtt| rtt.samples() > 0);
    [0.5, 0.9, 0.99].map(|quantile| rtt.map(|rtt| rtt.quantile_us(quantile)))
}

/// Whether somebody is in a table of those with flows, or of all.
pub(super) fn is_shown(aggregate: &Aggregate, open: u64, all: bool) -> bool {
    all || open > 0 || aggregate.has_figures()
}

/// The rows that were asked for, and how many there are.
pub(super) fn answer<T, H: NamedRow>(
    mut lines: Vec<Line<T>>,
    a: &OwnersArguments,
    recent: Option<Recent>,
    text: impl Fn(&T, OwnerSort) -> String,
    head: impl Fn(T) -> H,
) -> Answer {
    let matching = lines.len();
    if a.sort.is_text() {
        lines.sort_by_cached_key(|line| text(&line.of, a.sort));
    } else {
        lines.sort_by_key(|line| std::cmp::Reverse(line.sort_key(a.sort)));
    }
    if a.reverse {
        lines.reverse();
    }
    lines.truncate(rows_at_most(a.limit));
    let summary = summary(matching, lines.len());
    let rows = lines.into_iter().map(|line| {
        let figures = line.figures(recent);
        (head(line.of), figures)
    });
    Answer { tables: vec![summary, Table::with(H::NAME, H::HELP, rows)] }
}

rows! {
    /// Processes with flows; those that were quiet for two minutes are in their workload's figures only.
    struct ProcessHead: "processes" {
        /// name
        process: Text = Option<String>,
        /// process id
        pid: Id = u32,
        /// its user, by the host's files
        user: Text = Option<String>,
        /// user id, as the host sees it
        uid: Id = Option<u32>,
        /// its group
        group: Text = Option<String>,
        /// group id, as the host sees it
        gid: Id = Option<u32>,
        /// path of the executable
        exe: Text = Option<String>,
        /// the package that it came with
        package: Text = Option<String>,
        /// command line, at most 4096 bytes, with *** for what looks like a secret unless --command-line says otherwise
        cmdline: Text = Option<String>,
        /// parent, its parent, and so on, with their pids
        parents: Text = Option<String>,
        /// since it was started
        started: Seconds = Option<u64>,
        /// container, as namespace/pod/container in a pod, or systemd unit
        workload: Text = Option<String>,
        /// path of its cgroup
        cgroup: Text = Option<String>,
        /// systemd slice
        slice: Text = Option<String>,
    }
}

/// Processes with flows.
pub(crate) fn processes(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let (processes, now_ns) = (of.processes, of.now_ns);
    let mut found: HashMap<ProcKey, (Aggregate, u64), ahash::RandomState> = HashMap::default();
    for (key, aggregate) in of.aggregates.processes() {
        found.entry(key).or_default().0 = aggregate.clone();
    }
    for (&key, &open) in of.open {
        found.entry(key).or_default().1 = open;
    }
    let lines = found
        .into_iter()
        .filter(|(key, _)| matches(processes.peek(*key).map(|process| process.name.as_str()), a))
        .map(|(key, figures)| Line::new(key, figures, of))
        .collect();
    let text = |key: &ProcKey, sort| {
        let process = processes.peek(*key);
        match sort {
            OwnerSort::Pid => format!("{:>10}", key.pid),
            OwnerSort::User => process.map(|process| process.user_or_uid()).unwrap_or_default(),
            OwnerSort::Command => process.map(|process| process.cmdline.clone()).unwrap_or_default(),
            OwnerSort::Place => processes.workload(*key).and_then(|workload| workload.title()).unwrap_or_default(),
            _ => process.map(|process| process.name.clone()).unwrap_or_default(),
        }
    };
    answer(lines, a, Some(of.recent(a.history)), text, |key| process_head(key, processes, now_ns))
}

pub(super) fn matches(name: Option<&str>, a: &OwnersArguments) -> bool {
    a.name.as_deref().is_none_or(|wanted| name.is_some_and(|name| name.contains(wanted)))
}

fn process_head(key: ProcKey, processes: &ProcessTable, now_ns: u64) -> ProcessHead {
    let (process, workload) = (processes.peek(key), processes.workload(key));
    let started_s = (now_ns / 10_000_000).saturating_sub(u64::from(key.start_ticks)) / 100;
    ProcessHead {
        process: process.map(|process| process.name.clone()),
        pid: key.pid,
        user: process.and_then(|process| process.user.clone()),
        uid: process.map(|process| process.uid),
        group: process.and_then(|process| process.group.clone()),
        gid: process.map(|process| process.gid),
        exe: process.and_then(|process| process.exe.clone()),
        package: process.and_then(|process| process.package.clone()),
        cmdline: process.and_then(|process| known(&process.cmdline)),
        parents: process.map(|process| process.chain()),
        started: process.map(|_| started_s),
        workload: workload.and_then(|workload| workload.title()),
        cgroup: workload.map(|workload| workload.path.clone()),
        slice: workload.and_then(|workload| workload.slice.clone()),
    }
}

/// Workloads with the figures of all their processes; the key says what belongs together.
pub(super) fn by_workload<K: Ord>(
    of: &Owners<'_>,
    key: impl Fn(&Workload) -> Option<K>,
) -> BTreeMap<K, (Arc<Workload>, Aggregate, u64)> {
    let workloads = &of.processes.workloads;
    let mut open_by_cgroup: HashMap<u64, u64, ahash::RandomState> = HashMap::default();
    for (&owner, &open) in of.open {
        if let Some(process) = of.processes.peek(owner) {
            *open_by_cgroup.entry(process.cgroup_id).or_default() += open;
        }
    }
    let aggregates = of.aggregates.by_workload(of.processes);
    let mut found = BTreeMap::new();
    for (id, workload) in workloads.iter() {
        let Some(key) = key(workload) else { continue };
        let entry = found.entry(key).or_insert_with(|| (Arc::clone(workload), Aggregate::default(), 0));
        if let Some(group) = aggregates.get(&id) {
            entry.1.add(group);
        }
        entry.2 += open_by_cgroup.get(&id).unwrap_or(&0);
    }
    found
}

rows! {
    /// Containers with flows, and services of the host in their place. With all: those without flows, too.
    struct ContainerHead: "containers" {
        /// name by its runtime, or the id; a systemd unit where there is no container
        container: Text = String,
        /// the runtime's id
        id: Text = Option<String>,
        /// the container runtime, or systemd
        runtime: Text = &'static str,
        /// image
        image: Text = Option<String>,
        /// digest of the image in its registry
        image_digest: Text = Option<String>,
        /// its pod
        pod: Text = Option<String>,
        /// namespace of the pod
        namespace: Text = Option<String>,
        /// systemd slice
        slice: Text = Option<String>,
        /// path of the cgroup
        cgroup: Text = String,
        /// labels of the container and its pod, as key=value
        labels: Text = Vec<String>,
        /// kind of what it is a part of: Deployment, StatefulSet, a unit of systemd, ...
        workload_kind: Text = Option<String>,
        /// name of that, with namespace and kind before it
        workload_name: Text = Option<String>,
        /// running, or gone
        state: Text = Option<&'static str>,
    }
}

/// Containers, and systemd's units as those of plain services.
pub(crate) fn containers(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let key = |workload: &Workload| {
        let unit =
            || workload.unit.as_ref().map(|unit| format!("{}/{unit}", workload.slice.as_deref().unwrap_or_default()));
        workload.container.as_ref().map(|container| container.id.clone()).or_else(unit)
    };
    let lines = by_workload(of, key)
        .into_values()
        .filter(|(workload, ..)| matches(workload.title().as_deref(), a))
        .filter(|(_, aggregate, open)| is_shown(aggregate, *open, a.all))
        .map(|(workload, aggregate, open)| Line::new(workload, (aggregate, open), of))
        .collect();
    let text = |workload: &Arc<Workload>, sort| match sort {
        OwnerSort::State => of.state_of([&**workload]).unwrap_or_default().to_owned(),
        OwnerSort::Image => workload.container.as_ref().map(|container| container.image.clone()).unwrap_or_default(),
        OwnerSort::Place => {
            let pod = workload.pod.as_ref().map(|pod| pod.name.clone());
            pod.or_else(|| workload.slice.clone()).unwrap_or_default()
        }
        _ => workload
            .container
            .as_ref()
            .map(|container| container.name_or_id().to_owned())
            .or_else(|| workload.unit.clone())
            .unwrap_or_default(),
    };
    answer(lines, a, Some(of.recent(a.history)), text, |workload| container_head(&workload, of))
}

fn container_head(workload: &Workload, of: &Owners<'_>) -> ContainerHead {
    let (container, pod) = (workload.container.as_ref(), workload.pod.as_ref());
    let name = container.map(|container| container.name_or_id().to_owned()).or_else(|| workload.unit.clone());
    let (workload_kind, workload_name) = workload_name(workload).unzip();
    ContainerHead {
        container: name.unwrap_or_default(),
        id: container.map(|container| container.id.clone()),
        runtime: container.map_or("systemd", |container| container.runtime.name()),
        image: container.and_then(|container| known(&container.image)),
        image_digest: container.and_then(|container| known(&container.image_digest)),
        pod: pod.and_then(|pod| known(&pod.name)),
        namespace: pod.and_then(|pod| known(&pod.namespace)),
        slice: workload.slice.clone(),
        cgroup: workload.path.clone(),
        labels: container.map(|container| container.labels.iter().map(label_text).collect()).unwrap_or_default(),
        workload_kind,
        workload_name,
        state: of.state_of([workload]),
    }
}
