//! `ctl processes`, `containers`, `pods`, `ports` and `rtt`: who is behind the flows, and how slow their network is.

use crate::flows::FlowTable;
use crate::flows::aggregates::Aggregates;
use crate::owners::process::ProcessTable;
use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use serde_json::{Value, json};
use sockeye_ctl::protocol::{Answer, OwnerSort, OwnersArguments, RttArguments, RttBy, Table, Unit, keep};

use super::{round2, summary};
use crate::flows::aggregates::Aggregate;
use crate::model::clock::boot_ns;
use crate::model::flow::ProcKey;
use crate::model::rtt::RttStats;
use crate::owners::process::Process;
use crate::owners::workload::{Pod, Workload};

/// What the figures are read from.
pub(crate) struct Owners<'a> {
    pub(crate) table: &'a FlowTable,
    pub(crate) processes: &'a ProcessTable,
    pub(crate) aggregates: &'a Aggregates,
}

type Columns = [(&'static str, Unit, &'static str)];

/// Figures that each of the tables has.
const FIGURES: [(&str, Unit, &str); 16] = [
    ("open", Unit::Count, "flows that are open now"),
    ("flows_out", Unit::Count, "flows as initiator, since the agent was started"),
    ("flows_in", Unit::Count, "flows as responder, since the agent was started"),
    ("sent", Unit::Bytes, "payload sent"),
    ("received", Unit::Bytes, "payload received"),
    ("retrans", Unit::Count, "segments sent again"),
    ("rtt_out_mean", Unit::Microseconds, "round-trip time as initiator: average of all samples"),
    ("rtt_out_dev", Unit::Microseconds, "their standard deviation, the root of the variance"),
    ("rtt_out_p50", Unit::Microseconds, "half are shorter"),
    ("rtt_out_p90", Unit::Microseconds, "nine of ten are shorter"),
    ("rtt_out_p99", Unit::Microseconds, "99 of 100 are shorter"),
    ("rtt_in_mean", Unit::Microseconds, "round-trip time as responder: average of all samples"),
    ("rtt_in_dev", Unit::Microseconds, "their standard deviation, the root of the variance"),
    ("rtt_in_p50", Unit::Microseconds, "half are shorter"),
    ("rtt_in_p90", Unit::Microseconds, "nine of ten are shorter"),
    ("rtt_in_p99", Unit::Microseconds, "99 of 100 are shorter"),
];

/// A line of one of the tables: its own columns, and the figures.
#[derive(Default)]
struct Row {
    head: Vec<Value>,
    group: Aggregate,
    open: u64,
}

impl Row {
    fn figures(&self) -> impl Iterator<Item = Value> {
        let [out, into] = self.group.activity;
        let counts = [
            self.open,
            out.flows,
            into.flows,
            out.bytes_sent + into.bytes_sent,
            out.bytes_received + into.bytes_received,
            out.retrans + into.retrans,
        ];
        let rtt = self.group.rtt.each_ref().map(|rtt| rtt_figures(rtt.as_deref()));
        counts.map(|count| json!(count)).into_iter().chain(rtt.into_iter().flatten())
    }

    fn sort_key(&self, sort: OwnerSort) -> u64 {
        let [out, into] = self.group.activity;
        match sort {
            OwnerSort::Bytes => out.bytes_sent + into.bytes_sent + out.bytes_received + into.bytes_received,
            OwnerSort::Flows => out.flows + into.flows + self.open,
            OwnerSort::Retrans => out.retrans + into.retrans,
            OwnerSort::Rtt => self.group.rtt.iter().flatten().map(|rtt| rtt.quantile_us(0.5)).max().unwrap_or(0),
        }
    }
}

/// Mean, deviation, p50, p90, p99; null without samples.
fn rtt_figures(rtt: Option<&RttStats>) -> [Value; 5] {
    let Some(rtt) = rtt.filter(|rtt| rtt.samples() > 0) else { return [const { Value::Null }; 5] };
    [
        json!(round2(rtt.mean_us())),
        json!(round2(rtt.deviation_us())),
        json!(rtt.quantile_us(0.5)),
        json!(rtt.quantile_us(0.9)),
        json!(rtt.quantile_us(0.99)),
    ]
}

/// The rows that were asked for, and how many there are.
fn answer(name: &str, help: &str, columns: &Columns, mut rows: Vec<Row>, a: &OwnersArguments) -> Answer {
    let all: Vec<_> = columns.iter().chain(&FIGURES).copied().collect();
    let mut table = Table::new(name, help, &all);
    let matching = rows.len();
    rows.sort_by_key(|row| std::cmp::Reverse(row.sort_key(a.sort)));
    keep(&mut rows, a.limit);
    for row in &rows {
        table.push(row.head.iter().cloned().chain(row.figures()));
    }
    Answer { tables: vec![summary(matching, rows.len()), table] }
}

/// Open flows by owner.
fn open_flows(of: &Owners<'_>) -> HashMap<ProcKey, u64, ahash::RandomState> {
    let mut open = HashMap::default();
    for flow in of.table.flows().filter(|flow| !flow.state().is_over()) {
        for end in flow.ends().filter(|end| end.owner.is_known()) {
            *open.entry(end.owner).or_default() += 1;
        }
    }
    open
}

const PROCESSES: [(&str, Unit, &str); 14] = [
    ("process", Unit::Text, "name"),
    ("pid", Unit::Id, "process id"),
    ("user", Unit::Text, "its user, by the host's files"),
    ("uid", Unit::Id, "user id, as the host sees it"),
    ("group", Unit::Text, "its group"),
    ("gid", Unit::Id, "group id, as the host sees it"),
    ("exe", Unit::Text, "path of the executable"),
    ("package", Unit::Text, "the package that it came with"),
    ("cmdline", Unit::Text, "command line, at most 4096 bytes"),
    ("parents", Unit::Text, "parent, its parent, and so on, with their pids"),
    ("started", Unit::Seconds, "since it was started"),
    ("workload", Unit::Text, "container, as namespace/pod/container in a pod, or systemd unit"),
    ("cgroup", Unit::Text, "path of its cgroup"),
    ("slice", Unit::Text, "systemd slice"),
];

/// Processes with flows.
pub(crate) fn processes(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let (table, now_ns) = (of.processes, boot_ns());
    let mut found: HashMap<ProcKey, Row, ahash::RandomState> = HashMap::default();
    for (key, group) in of.aggregates.processes() {
        found.entry(key).or_default().group = group.clone();
    }
    for (key, open) in open_flows(of) {
        found.entry(key).or_default().open = open;
    }
    let rows = found
        .into_iter()
        .filter(|(key, _)| matches(table.peek(*key).map(|process| process.name.as_str()), a))
        .map(|(key, row)| Row { head: process_head(key, table.peek(key), table.workload(key), now_ns), ..row })
        .collect();
    answer(
        "processes",
        "Processes with flows; those that were quiet for two minutes are in their place's figures only.",
        &PROCESSES,
        rows,
        a,
    )
}

fn matches(name: Option<&str>, a: &OwnersArguments) -> bool {
    a.name.as_deref().is_none_or(|wanted| name.is_some_and(|name| name.contains(wanted)))
}

fn process_head(
    key: ProcKey,
    process: Option<&Arc<Process>>,
    workload: Option<&Arc<Workload>>,
    now_ns: u64,
) -> Vec<Value> {
    let started_s = (now_ns / 10_000_000).saturating_sub(u64::from(key.start_ticks)) / 100;
    let Some(process) = process else {
        return vec![Value::Null, json!(key.pid)];
    };
    vec![
        json!(process.name),
        json!(key.pid),
        json!(process.user_or_uid()),
        json!(process.uid),
        json!(process.group_or_gid()),
        json!(process.gid),
        json!(process.exe),
        json!(process.package),
        json!(process.cmdline),
        json!(process.chain()),
        json!(started_s),
        json!(workload.and_then(|workload| workload.title())),
        json!(workload.map(|workload| &workload.path)),
        json!(workload.and_then(|workload| workload.slice.clone())),
    ]
}

/// Places with the figures of all their processes; the key says what belongs together.
fn by_workload<K: Ord>(
    of: &Owners<'_>,
    key: impl Fn(&Workload) -> Option<K>,
) -> BTreeMap<K, (Arc<Workload>, Aggregate, u64)> {
    let workloads = &of.processes.workloads;
    let mut open_by_cgroup: HashMap<u64, u64, ahash::RandomState> = HashMap::default();
    for (owner, open) in open_flows(of) {
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

const CONTAINERS: [(&str, Unit, &str); 9] = [
    ("container", Unit::Text, "name by its runtime, or the id; a systemd unit where there is no container"),
    ("id", Unit::Text, "the runtime's id"),
    ("runtime", Unit::Text, "the container runtime, or systemd"),
    ("image", Unit::Text, "image"),
    ("pod", Unit::Text, "its pod"),
    ("namespace", Unit::Text, "namespace of the pod"),
    ("slice", Unit::Text, "systemd slice"),
    ("cgroup", Unit::Text, "path of the cgroup"),
    ("labels", Unit::Text, "labels, as key=value"),
];

/// Containers, and systemd's units as those of plain services.
pub(crate) fn containers(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let key = |workload: &Workload| {
        let unit =
            || workload.unit.as_ref().map(|unit| format!("{}/{unit}", workload.slice.as_deref().unwrap_or_default()));
        workload.container.as_ref().map(|container| container.id.clone()).or_else(unit)
    };
    let rows = by_workload(of, key)
        .into_values()
        .filter(|(workload, ..)| matches(workload.title().as_deref(), a))
        .map(|(workload, group, open)| Row { head: container_head(&workload), group, open })
        .collect();
    answer("containers", "Containers with flows, and services of the host in their place.", &CONTAINERS, rows, a)
}

fn container_head(workload: &Workload) -> Vec<Value> {
    let container = workload.container.as_ref();
    let pod = workload.pod.as_ref();
    let known = |text: &str| if text.is_empty() { Value::Null } else { json!(text) };
    let labels = |labels: &[(String, String)]| labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
    vec![
        json!(container.map_or_else(|| workload.unit.clone().unwrap_or_default(), |c| c.name_or_id().to_owned())),
        json!(container.map(|c| &c.id)),
        json!(container.map_or("systemd", |c| c.runtime.name())),
        container.map_or(Value::Null, |c| known(&c.image)),
        pod.map_or(Value::Null, |pod| known(&pod.name)),
        pod.map_or(Value::Null, |pod| known(&pod.namespace)),
        json!(workload.slice),
        json!(workload.path),
        json!(container.map(|c| labels(&c.labels)).unwrap_or_default()),
    ]
}

const PODS: [(&str, Unit, &str); 4] = [
    ("pod", Unit::Text, "name"),
    ("namespace", Unit::Text, "namespace"),
    ("uid", Unit::Text, "uid"),
    ("containers", Unit::Text, "its containers with flows"),
];

/// Kubernetes' pods.
pub(crate) fn pods(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let mut pods: BTreeMap<String, (Pod, Vec<String>, Aggregate, u64)> = BTreeMap::new();
    let key = |workload: &Workload| {
        let pod = workload.pod.as_ref()?;
        Some((pod.uid.clone(), workload.container.as_ref().map(|container| container.id.clone())))
    };
    for ((uid, _), (workload, group, open)) in by_workload(of, key) {
        let Some(named) = &workload.pod else { continue };
        let (pod, containers, total, total_open) = pods.entry(uid).or_default();
        if pod.name.is_empty() {
            *pod = named.clone();
        }
        containers.extend(workload.container.as_ref().map(|container| container.name_or_id().to_owned()));
        total.add(&group);
        *total_open += open;
    }
    let rows = pods
        .into_values()
        .filter(|(pod, ..)| matches(Some(&pod.name), a))
        .map(|(pod, containers, group, open)| {
            let known = |text: String| if text.is_empty() { Value::Null } else { json!(text) };
            Row { head: vec![known(pod.name), known(pod.namespace), json!(pod.uid), json!(containers)], group, open }
        })
        .collect();
    answer("pods", "Pods with flows.", &PODS, rows, a)
}

/// Sockets that wait for connections or datagrams.
pub(crate) fn ports(flows: &FlowTable, processes: &ProcessTable) -> Answer {
    let mut table = Table::new(
        "ports",
        "Sockets that listen, in all network namespaces.",
        &[
            ("protocol", Unit::Text, "transport protocol"),
            ("address", Unit::Text, "local address; 0.0.0.0 or :: for all"),
            ("port", Unit::Id, "port"),
            ("process", Unit::Text, "who listens"),
            ("pid", Unit::Id, "its pid"),
            ("user", Unit::Text, "its user"),
            ("package", Unit::Text, "the package that it came with"),
            ("workload", Unit::Text, "container or systemd unit"),
            ("netns", Unit::Id, "inode of the network namespace"),
        ],
    );
    let mut listeners: Vec<_> = flows.listeners().collect();
    listeners.sort_by_key(|l| (l.proto, l.local.port, l.local.addr, l.netns));
    for listener in listeners {
        let process = processes.peek(listener.owner);
        let workload = processes.workload(listener.owner);
        table.push([
            json!(listener.proto.name()),
            json!(listener.local.addr.to_string()),
            json!(listener.local.port),
            json!(process.map(|p| &p.name)),
            json!(listener.owner.is_known().then_some(listener.owner.pid)),
            json!(process.map(|p| p.user_or_uid())),
            json!(process.and_then(|p| p.package.clone())),
            json!(workload.and_then(|workload| workload.title())),
            json!(listener.netns),
        ]);
    }
    Answer { tables: vec![table] }
}

/// Distributions of round-trip times, those with the most samples first.
pub(crate) fn rtt(of: &Owners<'_>, a: &RttArguments) -> Answer {
    let mut aggregates = rtt_groups(of, a.by);
    aggregates.retain(|(name, rtt)| rtt.samples() > 0 && a.name.as_deref().is_none_or(|wanted| name.contains(wanted)));
    aggregates.sort_by_key(|(_, rtt)| std::cmp::Reverse(rtt.samples()));
    keep(&mut aggregates, a.limit);
    let mut table = Table::new(
        "rtt",
        "Round-trip times of TCP connections, as measured on either side, since the agent was started.",
        &[
            ("name", Unit::Text, "whose"),
            ("samples", Unit::Count, "how many"),
            ("mean", Unit::Microseconds, "average"),
            ("dev", Unit::Microseconds, "standard deviation"),
            ("p50", Unit::Microseconds, "half are shorter"),
            ("p90", Unit::Microseconds, "nine of ten are shorter"),
            ("p99", Unit::Microseconds, "99 of 100 are shorter"),
            ("histogram", Unit::Other, "pairs: up to so many microseconds, so many samples"),
        ],
    );
    for (name, rtt) in aggregates {
        let head = [json!(name), json!(rtt.samples())];
        table.push(head.into_iter().chain(rtt_figures(Some(&rtt))).chain([json!(rtt.decades())]));
    }
    Answer { tables: vec![table] }
}

fn rtt_groups(of: &Owners<'_>, by: RttBy) -> Vec<(String, RttStats)> {
    fn total(group: &Aggregate) -> RttStats {
        let mut total = RttStats::default();
        group.rtt.iter().flatten().for_each(|rtt| total.add(rtt));
        total
    }
    match by {
        RttBy::Process => {
            let name = |key: ProcKey| of.processes.peek(key).map_or("?", |process| &process.name);
            of.aggregates.processes().map(|(key, g)| (format!("{}[{}]", name(key), key.pid), total(g))).collect()
        }
        RttBy::Container => {
            by_workload(of, Workload::title).into_iter().map(|(name, (_, g, _))| (name, total(&g))).collect()
        }
        RttBy::Pod => {
            let key = |workload: &Workload| {
                let pod = workload.pod.as_ref()?;
                let named = !pod.name.is_empty();
                Some(if named { format!("{}/{}", pod.namespace, pod.name) } else { pod.uid.clone() })
            };
            by_workload(of, key).into_iter().map(|(name, (_, g, _))| (name, total(&g))).collect()
        }
        RttBy::Peer => {
            let (peers, others) = of.aggregates.peers();
            let named = peers.map(|(network, rtt)| (network.to_string(), rtt.clone()));
            named.chain([("other networks".to_owned(), others.clone())]).collect()
        }
        RttBy::Host => {
            let mut host = RttStats::default();
            of.aggregates.by_workload(of.processes).values().for_each(|group| host.add(&total(group)));
            vec![("host".into(), host)]
        }
    }
}
