//! `ctl flows`.

use std::collections::BTreeSet;

use sockeye_ctl::protocol::{FlowsArguments, SortBy, Table};
use sockeye_ctl::rows;

use crate::flows::Flow;
use crate::model::flow::{End, Side, State};
use crate::owners::process::{Process, ProcessTable};
use crate::owners::workload::Workload;

/// Which flows are wanted, and in which order.
pub(super) struct Wanted {
    arguments: FlowsArguments,
    state: Option<State>,
}

impl Wanted {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// If there is no such state.
    pub(super) fn new(arguments: &FlowsArguments) -> Result<Self, String> {
        let state = match arguments.state.as_deref() {
            None => None,
            Some(name) => Some(State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
                let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
                format!("there is no state {name:?}: {} are known", known.join(", "))
            })?),
        };
        Ok(Self { arguments: arguments.clone(), state })
    }

    pub(super) fn is(&self, flow: &Flow, processes: &ProcessTable) -> bool {
        self.state.is_none_or(|state| flow.state() == state) && matches(flow, processes, &self.arguments)
    }

    /// The larger, the sooner it is shown.
    pub(super) fn sort_key(&self, flow: &Flow) -> u64 {
        sort_key(flow, self.arguments.sort)
    }
}

fn matches(flow: &Flow, processes: &ProcessTable, a: &FlowsArguments) -> bool {
    let any_process = |wanted: &dyn Fn(&Process) -> bool| {
        flow.ends().any(|end| processes.peek(end.owner).is_some_and(|process| wanted(process)))
    };
    let views = [Some(&flow.key), flow.translated()];
    let endpoints: Vec<_> = views.into_iter().flatten().flat_map(|view| [view.initiator, view.responder]).collect();
    a.port.is_none_or(|port| endpoints.iter().any(|e| e.port == port))
        && a.address.is_none_or(|ip| endpoints.iter().any(|e| e.addr.ip() == ip.to_canonical()))
        && a.process.as_deref().is_none_or(|text| {
            let pid = text.parse::<u32>().ok();
            flow.ends().any(|end| pid.is_some_and(|pid| end.owner.pid == pid))
                || any_process(&|p| p.name.contains(text) || p.exe.as_deref().is_some_and(|exe| exe.contains(text)))
        })
        && a.user.as_deref().is_none_or(|text| {
            let uid = text.parse::<u32>().ok();
            any_process(&|p| p.user.as_deref() == Some(text) || uid == Some(p.uid))
        })
        && a.container.as_deref().is_none_or(|text| {
            flow.ends().any(|end| processes.workload(end.owner).is_some_and(|workload| is_called(workload, text)))
        })
}

/// Whether a workload is meant: by the name or the beginning of the id of its container, its pod, or its unit.
fn is_called(workload: &Workload, text: &str) -> bool {
    let container = workload.container.as_ref().is_some_and(|c| c.name == text || c.id.starts_with(text));
    let pod = workload.pod.as_ref().is_some_and(|pod| pod.name == text || pod.uid == text);
    container || pod || workload.unit.as_deref() == Some(text)
}

fn sort_key(flow: &Flow, sort: SortBy) -> u64 {
    let total = flow.totals();
    match sort {
        SortBy::Bytes => total.bytes.iter().sum(),
        SortBy::Retrans => total.retrans_of_both(),
        SortBy::Rtt => shown_rtt(flow).map_or(0, |end| u64::from(end.srtt_us)),
        SortBy::Active => flow.active_ns,
        SortBy::Age => u64::MAX - flow.opened_ns,
    }
}

rows! {
    /// One row per flow. Counters since the connection was opened. A process is missing where its side is not on this host.
    struct Row: "flows" {
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
        /// out, in, or local: which side is on this host
        direction: Text = &'static str,
        /// how it stands
        state: Text = &'static str,
        /// name of the process
        initiator_process: Text = Option<String>,
        /// its pid
        initiator_pid: Id = Option<u32>,
        /// its user
        initiator_user: Text = Option<String>,
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
        /// its user
        responder_user: Text = Option<String>,
        /// its command line
        responder_cmdline: Text = Option<String>,
        /// its parent
        responder_parent: Text = Option<String>,
        /// its container, as namespace/pod/container in a pod, or its systemd unit
        responder_workload: Text = Option<String>,
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
        /// yes: opened before the agent was started
        before_agent: Text = &'static str,
    }
}

/// The end whose round-trip time is shown: the initiator's, where it has one.
fn shown_rtt(flow: &Flow) -> Option<&End> {
    Side::BOTH.into_iter().find_map(|side| flow.end(side).filter(|end| end.srtt_us > 0))
}

/// The columns of one side.
#[derive(Default)]
struct SideRow {
    process: Option<String>,
    pid: Option<u32>,
    user: Option<String>,
    cmdline: Option<String>,
    parent: Option<String>,
    workload: Option<String>,
}

fn side_row(flow: &Flow, side: Side, processes: &ProcessTable) -> SideRow {
    let Some(owner) = flow.end(side).map(|end| end.owner).filter(|owner| owner.is_known()) else {
        return SideRow::default();
    };
    let process = processes.peek(owner);
    SideRow {
        process: process.map(|p| p.name.clone()),
        pid: Some(owner.pid),
        user: process.map(|p| p.user_or_uid()),
        cmdline: process.map(|p| p.cmdline.clone()),
        parent: process.map(|p| format!("{}[{}]", p.parent_name, p.ppid)),
        workload: processes.workload(owner).and_then(|workload| workload.title()),
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

pub(super) fn add_row(rows: &mut Table, flow: &Flow, processes: &ProcessTable, now_ns: u64) {
    rows.add(flow_row(flow, processes, now_ns));
}

fn flow_row(flow: &Flow, processes: &ProcessTable, now_ns: u64) -> Row {
    let total = flow.totals();
    let counted = !flow.is_bypassed();
    let translated = |side| flow.translated().map(|view| view.endpoint(side).to_string());
    let rtt = shown_rtt(flow);
    let [initiator, responder] = Side::BOTH.map(|side| side_row(flow, side, processes));
    let since_s = |then_ns: u64| now_ns.saturating_sub(then_ns) / 1_000_000_000;
    Row {
        protocol: flow.key.proto.name(),
        initiator: flow.key.text(Side::Initiator),
        responder: flow.key.text(Side::Responder),
        translated_initiator: translated(Side::Initiator),
        translated_responder: translated(Side::Responder),
        direction: match Side::BOTH.map(|side| flow.end(side).is_some()) {
            [true, true] => "local",
            [true, false] => "out",
            _ => "in",
        },
        state: flow.state().name(),
        initiator_process: initiator.process,
        initiator_pid: initiator.pid,
        initiator_user: initiator.user,
        initiator_cmdline: initiator.cmdline,
        initiator_parent: initiator.parent,
        initiator_workload: initiator.workload,
        responder_process: responder.process,
        responder_pid: responder.pid,
        responder_user: responder.user,
        responder_cmdline: responder.cmdline,
        responder_parent: responder.parent,
        responder_workload: responder.workload,
        other_responders: other_responders(flow, processes),
        sent: counted.then_some(total.bytes[0]),
        received: counted.then_some(total.bytes[1]),
        not_counted: (!counted).then_some("sockmap"),
        packets_sent: total.packets[0],
        packets_received: total.packets[1],
        retrans: total.retrans_of_both(),
        rtt: rtt.map(|end| end.srtt_us),
        rtt_var: rtt.map(|end| end.rttvar_us),
        age: since_s(flow.opened_ns),
        quiet: since_s(flow.active_ns),
        before_agent: if flow.ends().any(|end| end.has(End::PRE_EXISTING)) { "yes" } else { "no" },
    }
}
