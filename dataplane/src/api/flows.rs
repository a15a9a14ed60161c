//! `ctl flows`.

use std::collections::BTreeSet;

use sockeye_ctl::protocol::{Direction, Table};
use sockeye_ctl::rows;

use super::filter::direction_of;
use super::who::{self, ends_of, known, label_text};
use crate::flows::Flow;
use crate::model::flow::{End, ProcKey, Side};
use crate::owners::process::ProcessTable;
use crate::owners::workload::Workload;

rows! {
    /// Counters since the connection was opened. A side that is not on this host has no process. Wide: with its place.
    struct Row: "flows" {
        /// what it can be asked for by, for as long as the agent knows it
        id: Text = String,
        /// this host
        node: Text = Option<String>,
        /// transport protocol
        protocol: Text = &'static str,
        /// who connected, or sent first
        initiator: Text = String,
        /// who answered, as the initiator knows it
        responder: Text = String,
        /// the initiator as the responder knows it, where addresses are translated between the two
        translated_initiator: Text = Option<String>,
        /// the responder as it knows itself, likewise
        translated_responder: Text = Option<String>,
        /// what the responder is called, by what the initiator has asked DNS; "a or b": one of both
        responder_name: Text = Option<String>,
        /// who has asked: process, parent, container, network namespace, host
        name_source: Text = Option<&'static str>,
        /// out, in, or local: which side is on this host
        direction: Text = &'static str,
        /// how it stands
        state: Text = &'static str,
        /// name of the process
        initiator_process: Text = Option<String>,
        /// its pid
        initiator_pid: Id = Option<u32>,
        /// its user, where the host's files name it
        initiator_user: Text = Option<String>,
        /// its user id, as the host sees it
        initiator_uid: Id = Option<u32>,
        /// its command line
        initiator_cmdline: Text = Option<String>,
        /// its parent
        initiator_parent: Text = Option<String>,
        /// its container, as namespace/pod/container in a pod, or its systemd unit
        initiator_workload: Text = Option<String>,
        /// name of the process
        responder_process: Text = Option<String>,
        /// its pid
        responder_pid: Id = Option<u32>,
        /// its user, where the host's files name it
        responder_user: Text = Option<String>,
        /// its user id, as the host sees it
        responder_uid: Id = Option<u32>,
        /// its command line
        responder_cmdline: Text = Option<String>,
        /// its parent
        responder_parent: Text = Option<String>,
        /// its container, as namespace/pod/container in a pod, or its systemd unit
        responder_workload: Text = Option<String>,
        /// path of its executable
        initiator_exe: Text = Option<String>,
        /// the package that it came with
        initiator_package: Text = Option<String>,
        /// its parent, that one's parent, and so on, with their pids
        initiator_parents: Text = Option<String>,
        /// its container by name
        initiator_container: Text = Option<String>,
        /// the runtime's id of it
        initiator_container_id: Text = Option<String>,
        /// the container runtime
        initiator_runtime: Text = Option<&'static str>,
        /// the container's image
        initiator_image: Text = Option<String>,
        /// digest of that in its registry
        initiator_image_digest: Text = Option<String>,
        /// its pod
        initiator_pod: Text = Option<String>,
        /// namespace of the pod
        initiator_namespace: Text = Option<String>,
        /// uid of the pod
        initiator_pod_uid: Text = Option<String>,
        /// kind of what it is a part of: Deployment, StatefulSet, a unit of systemd, ...
        initiator_workload_kind: Text = Option<String>,
        /// name of that, with namespace and kind before it
        initiator_workload_name: Text = Option<String>,
        /// labels of the container and its pod, as key=value
        initiator_labels: Text = Option<Vec<String>>,
        /// systemd unit, outside of containers
        initiator_unit: Text = Option<String>,
        /// path of its executable
        responder_exe: Text = Option<String>,
        /// the package that it came with
        responder_package: Text = Option<String>,
        /// its parent, that one's parent, and so on, with their pids
        responder_parents: Text = Option<String>,
        /// its container by name
        responder_container: Text = Option<String>,
        /// the runtime's id of it
        responder_container_id: Text = Option<String>,
        /// the container runtime
        responder_runtime: Text = Option<&'static str>,
        /// the container's image
        responder_image: Text = Option<String>,
        /// digest of that in its registry
        responder_image_digest: Text = Option<String>,
        /// its pod
        responder_pod: Text = Option<String>,
        /// namespace of the pod
        responder_namespace: Text = Option<String>,
        /// uid of the pod
        responder_pod_uid: Text = Option<String>,
        /// kind of what it is a part of: Deployment, StatefulSet, a unit of systemd, ...
        responder_workload_kind: Text = Option<String>,
        /// name of that, with namespace and kind before it
        responder_workload_name: Text = Option<String>,
        /// labels of the container and its pod, as key=value
        responder_labels: Text = Option<Vec<String>>,
        /// systemd unit, outside of containers
        responder_unit: Text = Option<String>,
        /// further processes on the responder's side, as name[pid]: they receive the same datagrams, or had the port before
        other_responders: Text = Option<Vec<String>>,
        /// payload from the initiator; missing where it is not counted
        sent: Bytes = Option<u64>,
        /// payload to the initiator, likewise
        received: Bytes = Option<u64>,
        /// why payload is not counted: "sockmap" means that programs carry it past TCP
        not_counted: Text = Option<&'static str>,
        /// segments or datagrams from the initiator
        packets_sent: Count = u64,
        /// segments or datagrams to the initiator
        packets_received: Count = u64,
        /// payload from the initiator per second, since the last report of the flow
        sent_per_second: Bytes = Option<u64>,
        /// payload to the initiator per second, likewise
        received_per_second: Bytes = Option<u64>,
        /// packets of both directions per second, likewise
        packets_per_second: Count = f64,
        /// segments that the local sides sent again
        retrans: Count = u64,
        /// smoothed round-trip time
        rtt: Microseconds = Option<u32>,
        /// its mean deviation
        rtt_var: Microseconds = Option<u32>,
        /// since it was opened, or first seen
        age: Seconds = u64,
        /// since something was last sent or received
        quiet: Seconds = u64,
        /// of a flow that has ended: until it is forgotten, unless others need its room before
        forgotten_in: Seconds = Option<u64>,
        /// yes: opened before the agent was started
        before_agent: Text = &'static str,
    }
}

/// An id, as it is shown and asked for.
fn id_text(id: u64) -> String {
    format!("{id:016x}")
}

/// The end whose round-trip time is shown: the initiator's, where it has one.
pub(super) fn shown_rtt(flow: &Flow) -> Option<&End> {
    Side::BOTH.into_iter().find_map(|side| flow.end(side).filter(|end| end.srtt_us > 0))
}

/// The columns of one side.
#[derive(Default)]
struct SideRow {
    process: Option<String>,
    pid: Option<u32>,
    user: Option<String>,
    uid: Option<u32>,
    cmdline: Option<String>,
    parent: Option<String>,
    place: Option<String>,
    exe: Option<String>,
    package: Option<String>,
    parents: Option<String>,
    wide: Wide,
}

/// Where it lives, in columns.
#[derive(Default)]
struct Wide {
    container: Option<String>,
    container_id: Option<String>,
    runtime: Option<&'static str>,
    image: Option<String>,
    image_digest: Option<String>,
    pod: Option<String>,
    namespace: Option<String>,
    pod_uid: Option<String>,
    workload_kind: Option<String>,
    workload_name: Option<String>,
    labels: Option<Vec<String>>,
    unit: Option<String>,
}

impl Wide {
    fn new(workload: &Workload) -> Self {
        let (container, pod) = (workload.container.as_ref(), workload.pod.as_ref());
        let (workload_kind, workload_name) = who::workload_name(workload).unzip();
        Self {
            container: container.map(|container| container.name_or_id().to_owned()),
            container_id: container.map(|container| container.id.clone()),
            runtime: container.map(|container| container.runtime.name()),
            image: container.and_then(|container| known(&container.image)),
            image_digest: container.and_then(|container| known(&container.image_digest)),
            pod: pod.and_then(|pod| known(&pod.name)),
            namespace: pod.and_then(|pod| known(&pod.namespace)),
            pod_uid: pod.map(|pod| pod.uid.clone()),
            workload_kind,
            workload_name,
            labels: container.map(|container| container.labels.iter().map(label_text).collect()),
            unit: workload.unit.clone(),
        }
    }
}

fn side_row(owner: ProcKey, end: who::End<'_>, wide: bool) -> SideRow {
    let process = end.process;
    let more = process.filter(|_| wide);
    SideRow {
        process: process.map(|p| p.name.clone()),
        pid: owner.is_known().then_some(owner.pid),
        user: process.and_then(|p| p.user.clone()),
        uid: process.map(|p| p.uid),
        cmdline: process.and_then(|p| known(&p.cmdline)),
        parent: process.map(|p| format!("{}[{}]", p.parent_name, p.ppid)),
        place: end.workload.and_then(|workload| workload.title()),
        exe: more.and_then(|p| p.exe.clone()),
        package: more.and_then(|p| p.package.clone()),
        parents: more.and_then(|p| known(&p.chain())),
        wide: end.workload.filter(|_| wide).map(|workload| Wide::new(workload)).unwrap_or_default(),
    }
}

fn other_responders(flow: &Flow, processes: &ProcessTable) -> Option<Vec<String>> {
    let shown = flow.end(Side::Responder).map(|end| end.owner);
    let owners: BTreeSet<_> =
        flow.other_owners().filter(|owner| Some(*owner) != shown).map(|owner| (owner.pid, owner)).collect();
    let text = |(pid, owner)| format!("{}[{pid}]", processes.peek(owner).map_or("?", |process| &process.name));
    (!owners.is_empty()).then(|| owners.into_iter().map(text).collect())
}

/// The table, without rows yet.
pub(super) fn no_rows() -> Table {
    Table::of(std::iter::empty::<Row>())
}

/// What a row is made of.
pub(super) struct MadeOf<'a> {
    pub(super) flow: &'a Flow,
    pub(super) processes: &'a ProcessTable,
    pub(super) now_ns: u64,
    /// How long it can still be asked for, if it has ended.
    pub(super) kept_ns: Option<u64>,
}

pub(super) fn add_row(rows: &mut Table, of: &MadeOf<'_>, wide: bool) {
    rows.add(flow_row(of, wide));
}

fn flow_row(of: &MadeOf<'_>, wide: bool) -> Row {
    let MadeOf { flow, processes, now_ns, kept_ns } = *of;
    let total = flow.totals();
    let counted = !flow.is_bypassed();
    let translated = |side| flow.translated().map(|view| view.endpoint(side).to_string());
    let rtt = shown_rtt(flow);
    let ends = ends_of(flow, processes);
    let [initiator, responder] = Side::BOTH.map(|side| {
        let end = flow.end(side).filter(|end| end.owner.is_known()).zip(ends[side as usize]);
        end.map(|(end, who)| side_row(end.owner, who, wide)).unwrap_or_default()
    });
    let since_s = |then_ns: u64| now_ns.saturating_sub(then_ns) / 1_000_000_000;
    let rate = flow.rate(now_ns);
    Row {
        id: id_text(flow.id()),
        node: wide.then(who::node),
        protocol: flow.key.proto.name(),
        initiator: flow.key.text(Side::Initiator),
        responder: flow.key.text(Side::Responder),
        translated_initiator: translated(Side::Initiator),
        translated_responder: translated(Side::Responder),
        responder_name: flow.peer_name().map(ToString::to_string),
        name_source: flow.peer_name().map(|name| name.source.name()),
        direction: match direction_of(flow) {
            Direction::Local => "local",
            Direction::Out => "out",
            Direction::In => "in",
        },
        state: flow.state().name(),
        initiator_process: initiator.process,
        initiator_pid: initiator.pid,
        initiator_user: initiator.user,
        initiator_uid: initiator.uid,
        initiator_cmdline: initiator.cmdline,
        initiator_parent: initiator.parent,
        initiator_workload: initiator.place,
        initiator_exe: initiator.exe,
        initiator_package: initiator.package,
        initiator_parents: initiator.parents,
        initiator_container: initiator.wide.container,
        initiator_container_id: initiator.wide.container_id,
        initiator_runtime: initiator.wide.runtime,
        initiator_image: initiator.wide.image,
        initiator_image_digest: initiator.wide.image_digest,
        initiator_pod: initiator.wide.pod,
        initiator_namespace: initiator.wide.namespace,
        initiator_pod_uid: initiator.wide.pod_uid,
        initiator_workload_kind: initiator.wide.workload_kind,
        initiator_workload_name: initiator.wide.workload_name,
        initiator_labels: initiator.wide.labels,
        initiator_unit: initiator.wide.unit,
        responder_process: responder.process,
        responder_pid: responder.pid,
        responder_user: responder.user,
        responder_uid: responder.uid,
        responder_cmdline: responder.cmdline,
        responder_parent: responder.parent,
        responder_workload: responder.place,
        responder_exe: responder.exe,
        responder_package: responder.package,
        responder_parents: responder.parents,
        responder_container: responder.wide.container,
        responder_container_id: responder.wide.container_id,
        responder_runtime: responder.wide.runtime,
        responder_image: responder.wide.image,
        responder_image_digest: responder.wide.image_digest,
        responder_pod: responder.wide.pod,
        responder_namespace: responder.wide.namespace,
        responder_pod_uid: responder.wide.pod_uid,
        responder_workload_kind: responder.wide.workload_kind,
        responder_workload_name: responder.wide.workload_name,
        responder_labels: responder.wide.labels,
        responder_unit: responder.wide.unit,
        other_responders: other_responders(flow, processes),
        sent: counted.then_some(total.bytes[0]),
        received: counted.then_some(total.bytes[1]),
        not_counted: (!counted).then_some("sockmap"),
        packets_sent: total.packets[0],
        packets_received: total.packets[1],
        sent_per_second: counted.then_some(rate.bytes[0] as u64),
        received_per_second: counted.then_some(rate.bytes[1] as u64),
        packets_per_second: super::round2(f64::from(rate.packets)),
        retrans: total.retrans_of_both(),
        rtt: rtt.map(|end| end.srtt_us),
        rtt_var: rtt.map(|end| end.rttvar_us),
        age: since_s(flow.opened_ns),
        quiet: since_s(flow.active_ns),
        forgotten_in: kept_ns.map(|ns| ns / 1_000_000_000),
        before_agent: if flow.ends().any(|end| end.has(End::PRE_EXISTING)) { "yes" } else { "no" },
    }
}
