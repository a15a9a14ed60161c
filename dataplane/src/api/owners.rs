//! `ctl processes`, `containers`, `pods`, `ports` and `rtt`: who is behind the flows, and how slow their network is.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;
use sockeye_ctl::declare::NamedRow;
use sockeye_ctl::protocol::{Answer, OwnerSort, OwnersArguments, RttArguments, RttBy, Table, keep};
use sockeye_ctl::rows;

use super::pass::OpenFlows;
use super::{round2, summary};
use crate::flows::FlowTable;
use crate::flows::aggregates::{Aggregate, Aggregates};
use crate::model::clock::boot_ns;
use crate::model::flow::ProcKey;
use crate::model::rtt::RttStats;
use crate::owners::process::ProcessTable;
use crate::owners::workload::{Pod, Workload};

/// What the figures are read from.
pub(crate) struct Owners<'a> {
    pub(crate) processes: &'a ProcessTable,
    pub(crate) aggregates: &'a Aggregates,
    /// Open flows by owner.
    pub(crate) open: &'a OpenFlows,
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
    }
}

/// A line of one of the tables: its own columns, and where the figures come from.
struct Line<H> {
    head: H,
    aggregate: Aggregate,
    open: u64,
}

impl<H> Line<H> {
    fn sort_key(&self, sort: OwnerSort) -> u64 {
        let [out, into] = self.aggregate.activity;
        match sort {
            OwnerSort::Bytes => out.bytes_sent + into.bytes_sent + out.bytes_received + into.bytes_received,
            OwnerSort::Flows => out.flows + into.flows + self.open,
            OwnerSort::Retrans => out.retrans + into.retrans,
            OwnerSort::Rtt => self.aggregate.rtt.iter().flatten().map(|rtt| rtt.quantile_us(0.5)).max().unwrap_or(0),
        }
    }

    fn figures(&self) -> Figures {
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
        }
    }
}

/// Mean and deviation, microseconds; nothing without samples.
fn averages(rtt: Option<&RttStats>) -> [Option<f64>; 2] {
    let rtt = rtt.filter(|rtt| rtt.samples() > 0);
    [rtt.map(|rtt| round2(rtt.mean_us())), rtt.map(|rtt| round2(rtt.deviation_us()))]
}

/// p50, p90 and p99, microseconds; nothing without samples.
fn quantiles(rtt: Option<&RttStats>) -> [Option<u64>; 3] {
    let rtt = rtt.filter(|rtt| rtt.samples() > 0);
    [0.5, 0.9, 0.99].map(|quantile| rtt.map(|rtt| rtt.quantile_us(quantile)))
}

/// The rows that were asked for, and how many there are.
fn answer<H: NamedRow>(mut lines: Vec<Line<H>>, a: &OwnersArguments) -> Answer {
    let matching = lines.len();
    lines.sort_by_key(|line| std::cmp::Reverse(line.sort_key(a.sort)));
    keep(&mut lines, a.limit);
    let summary = summary(matching, lines.len());
    let rows = lines.into_iter().map(|line| {
        let figures = line.figures();
        (line.head, figures)
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
        /// command line, at most 4096 bytes
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
    let (processes, now_ns) = (of.processes, boot_ns());
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
        .map(|(key, (aggregate, open))| Line { head: process_head(key, processes, now_ns), aggregate, open })
        .collect();
    answer(lines, a)
}

fn matches(name: Option<&str>, a: &OwnersArguments) -> bool {
    a.name.as_deref().is_none_or(|wanted| name.is_some_and(|name| name.contains(wanted)))
}

fn process_head(key: ProcKey, processes: &ProcessTable, now_ns: u64) -> ProcessHead {
    let (process, workload) = (processes.peek(key), processes.workload(key));
    let started_s = (now_ns / 10_000_000).saturating_sub(u64::from(key.start_ticks)) / 100;
    ProcessHead {
        process: process.map(|process| process.name.clone()),
        pid: key.pid,
        user: process.map(|process| process.user_or_uid()),
        uid: process.map(|process| process.uid),
        group: process.map(|process| process.group_or_gid()),
        gid: process.map(|process| process.gid),
        exe: process.and_then(|process| process.exe.clone()),
        package: process.and_then(|process| process.package.clone()),
        cmdline: process.map(|process| process.cmdline.clone()),
        parents: process.map(|process| process.chain()),
        started: process.map(|_| started_s),
        workload: workload.and_then(|workload| workload.title()),
        cgroup: workload.map(|workload| workload.path.clone()),
        slice: workload.and_then(|workload| workload.slice.clone()),
    }
}

/// Workloads with the figures of all their processes; the key says what belongs together.
fn by_workload<K: Ord>(
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
    /// Containers with flows, and services of the host in their place.
    struct ContainerHead: "containers" {
        /// name by its runtime, or the id; a systemd unit where there is no container
        container: Text = String,
        /// the runtime's id
        id: Text = Option<String>,
        /// the container runtime, or systemd
        runtime: Text = &'static str,
        /// image
        image: Text = Option<String>,
        /// its pod
        pod: Text = Option<String>,
        /// namespace of the pod
        namespace: Text = Option<String>,
        /// systemd slice
        slice: Text = Option<String>,
        /// path of the cgroup
        cgroup: Text = String,
        /// labels, as key=value
        labels: Text = Vec<String>,
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
        .map(|(workload, aggregate, open)| Line { head: container_head(&workload), aggregate, open })
        .collect();
    answer(lines, a)
}

fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn container_head(workload: &Workload) -> ContainerHead {
    let (container, pod) = (workload.container.as_ref(), workload.pod.as_ref());
    let labels = |labels: &[(String, String)]| labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let name = container.map(|container| container.name_or_id().to_owned()).or_else(|| workload.unit.clone());
    ContainerHead {
        container: name.unwrap_or_default(),
        id: container.map(|container| container.id.clone()),
        runtime: container.map_or("systemd", |container| container.runtime.name()),
        image: container.and_then(|container| known(&container.image)),
        pod: pod.and_then(|pod| known(&pod.name)),
        namespace: pod.and_then(|pod| known(&pod.namespace)),
        slice: workload.slice.clone(),
        cgroup: workload.path.clone(),
        labels: container.map(|container| labels(&container.labels)).unwrap_or_default(),
    }
}

rows! {
    /// Pods with flows.
    struct PodHead: "pods" {
        /// name
        pod: Text = Option<String>,
        /// namespace
        namespace: Text = Option<String>,
        /// uid
        uid: Text = String,
        /// its containers with flows
        containers: Text = Vec<String>,
    }
}

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
    let lines = pods
        .into_values()
        .filter(|(pod, ..)| matches(Some(&pod.name), a))
        .map(|(pod, containers, aggregate, open)| {
            let head = PodHead { pod: known(&pod.name), namespace: known(&pod.namespace), uid: pod.uid, containers };
            Line { head, aggregate, open }
        })
        .collect();
    answer(lines, a)
}

rows! {
    /// Sockets that listen, in all network namespaces.
    struct Port: "ports" {
        /// transport protocol
        protocol: Text = &'static str,
        /// local address; 0.0.0.0 or :: for all
        address: Text = String,
        /// port
        port: Id = u16,
        /// who listens
        process: Text = Option<String>,
        /// its pid
        pid: Id = Option<u32>,
        /// its user
        user: Text = Option<String>,
        /// the package that it came with
        package: Text = Option<String>,
        /// container or systemd unit
        workload: Text = Option<String>,
        /// inode of the network namespace
        netns: Id = u32,
    }
}

/// Sockets that wait for connections or datagrams.
pub(crate) fn ports(flows: &FlowTable, processes: &ProcessTable) -> Answer {
    let mut listeners: Vec<_> = flows.listeners().collect();
    listeners.sort_by_key(|l| (l.proto, l.local.port, l.local.addr, l.netns));
    let rows = listeners.into_iter().map(|listener| {
        let process = processes.peek(listener.owner);
        Port {
            protocol: listener.proto.name(),
            address: listener.local.addr.to_string(),
            port: listener.local.port,
            process: process.map(|p| p.name.clone()),
            pid: listener.owner.is_known().then_some(listener.owner.pid),
            user: process.map(|p| p.user_or_uid()),
            package: process.and_then(|p| p.package.clone()),
            workload: processes.workload(listener.owner).and_then(|workload| workload.title()),
            netns: listener.netns,
        }
    });
    Answer { tables: vec![Table::of(rows)] }
}

rows! {
    /// Round-trip times of TCP connections, as measured on either side, since the agent was started.
    struct Distribution: "rtt" {
        /// whose
        name: Text = String,
        /// how many
        samples: Count = u64,
        /// average
        mean: Microseconds = Option<f64>,
        /// standard deviation
        dev: Microseconds = Option<f64>,
        /// half are shorter
        p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        p99: Microseconds = Option<u64>,
        /// pairs: up to so many microseconds, so many samples
        histogram: Other = Vec<(u64, u64)>,
    }
}

/// Distributions of round-trip times, those with the most samples first.
pub(crate) fn rtt(of: &Owners<'_>, a: &RttArguments) -> Answer {
    let mut aggregates = distributions(of, a.by);
    aggregates.retain(|(name, rtt)| rtt.samples() > 0 && a.name.as_deref().is_none_or(|wanted| name.contains(wanted)));
    aggregates.sort_by_key(|(_, rtt)| std::cmp::Reverse(rtt.samples()));
    keep(&mut aggregates, a.limit);
    let rows = aggregates.into_iter().map(|(name, rtt)| {
        let [mean, dev] = averages(Some(&rtt));
        let [p50, p90, p99] = quantiles(Some(&rtt));
        Distribution { name, samples: rtt.samples(), mean, dev, p50, p90, p99, histogram: rtt.decades() }
    });
    Answer { tables: vec![Table::of(rows)] }
}

fn distributions(of: &Owners<'_>, by: RttBy) -> Vec<(String, RttStats)> {
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
