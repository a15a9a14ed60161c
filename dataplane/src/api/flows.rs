//! `ctl flows`.

use serde_json::{Value, json};
use sockeye_ctl::protocol::{Answer, FlowsArguments, SortBy, Table, Unit, keep};

use super::summary;
use crate::flows::{Flow, FlowTable};
use crate::model::clock::boot_ns;
use crate::model::flow::{End, Side, State};
use crate::owners::process::{Process, ProcessTable};
use crate::owners::workload::Workload;

/// Flows that match, in the order that was asked for.
///
/// # Errors
/// If there is no such state.
pub fn flows(table: &FlowTable, processes: &ProcessTable, a: &FlowsArguments) -> Result<Answer, String> {
    let state = match a.state.as_deref() {
        None => None,
        Some(name) => Some(State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
            let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
            format!("there is no state {name:?}: {} are known", known.join(", "))
        })?),
    };
    let mut found: Vec<&Flow> = table
        .flows()
        .filter(|flow| state.is_none_or(|state| flow.state() == state) && matches(flow, processes, a))
        .collect();
    let total = found.len();
    found.sort_by_key(|flow| std::cmp::Reverse(sort_key(flow, a.sort)));
    keep(&mut found, a.limit);
    let summary = summary(total, found.len());
    let mut shown = flows_table();
    let now_ns = boot_ns();
    for flow in found {
        shown.push(flow_row(flow, processes, now_ns));
    }
    Ok(Answer { tables: vec![summary, shown] })
}

fn matches(flow: &Flow, processes: &ProcessTable, a: &FlowsArguments) -> bool {
    let any_process = |wanted: &dyn Fn(&Process) -> bool| {
        flow.ends().any(|end| processes.peek(end.owner).is_some_and(|process| wanted(process)))
    };
    let endpoints = [flow.key.initiator, flow.key.responder];
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

/// Whether a place is meant: by the name or the beginning of the id of its container, its pod, or its unit.
fn is_called(workload: &Workload, text: &str) -> bool {
    let container = workload.container.as_ref().is_some_and(|c| c.name == text || c.id.starts_with(text));
    let pod = workload.pod.as_ref().is_some_and(|pod| pod.name == text || pod.uid == text);
    container || pod || workload.unit.as_deref() == Some(text)
}

fn sort_key(flow: &Flow, sort: SortBy) -> u64 {
    let total = flow.totals();
    match sort {
        SortBy::Bytes => total.bytes.iter().sum(),
        SortBy::Retrans => u64::from(total.retrans[0]) + u64::from(total.retrans[1]),
        SortBy::Rtt => flow.ends().map(|end| u64::from(end.srtt_us)).max().unwrap_or(0),
        SortBy::Active => flow.active_ns,
        SortBy::Age => u64::MAX - flow.opened_ns,
    }
}

fn flows_table() -> Table {
    Table::new(
        "flows",
        "One row per flow. Counters since the connection was opened. A process is missing where its side is not on this host.",
        &[
            ("protocol", Unit::Text, "transport protocol"),
            ("initiator", Unit::Text, "who connected, or sent first"),
            ("responder", Unit::Text, "who answered"),
            ("direction", Unit::Text, "out, in, or local: which side is on this host"),
            ("state", Unit::Text, "how it stands"),
            ("initiator_process", Unit::Text, "name of the process"),
            ("initiator_pid", Unit::Id, "its pid"),
            ("initiator_user", Unit::Text, "its user"),
            ("initiator_cmdline", Unit::Text, "its command line"),
            ("initiator_parent", Unit::Text, "its parent"),
            (
                "initiator_workload",
                Unit::Text,
                "its container, as namespace/pod/container in a pod, or its systemd unit",
            ),
            ("responder_process", Unit::Text, "name of the process"),
            ("responder_pid", Unit::Id, "its pid"),
            ("responder_user", Unit::Text, "its user"),
            ("responder_cmdline", Unit::Text, "its command line"),
            ("responder_parent", Unit::Text, "its parent"),
            (
                "responder_workload",
                Unit::Text,
                "its container, as namespace/pod/container in a pod, or its systemd unit",
            ),
            ("sent", Unit::Bytes, "payload from the initiator"),
            ("received", Unit::Bytes, "payload to the initiator"),
            ("packets_sent", Unit::Count, "segments or datagrams from the initiator"),
            ("packets_received", Unit::Count, "segments or datagrams to the initiator"),
            ("retrans", Unit::Count, "segments that the local sides sent again"),
            ("rtt", Unit::Microseconds, "smoothed round-trip time"),
            ("rtt_var", Unit::Microseconds, "its mean deviation"),
            ("age", Unit::Seconds, "since it was opened, or first seen"),
            ("quiet", Unit::Seconds, "since something was last sent or received"),
            ("before_agent", Unit::Text, "yes: opened before the agent was started"),
        ],
    )
}

fn flow_row(flow: &Flow, processes: &ProcessTable, now_ns: u64) -> Vec<Value> {
    let total = flow.totals();
    let local = Side::BOTH.map(|side| flow.end(side).is_some());
    let rtt = Side::BOTH.into_iter().find_map(|side| flow.end(side).filter(|end| end.srtt_us > 0));
    let mut row = vec![
        json!(flow.key.proto.name()),
        json!(flow.key.initiator.to_string()),
        json!(flow.key.responder.to_string()),
        json!(match local {
            [true, true] => "local",
            [true, false] => "out",
            _ => "in",
        }),
        json!(flow.state().name()),
    ];
    for side in Side::BOTH {
        let owner = flow.end(side).map(|end| end.owner).filter(|owner| owner.is_known());
        let process = owner.and_then(|owner| processes.peek(owner));
        row.extend([
            json!(process.map(|p| &p.name)),
            json!(owner.map(|owner| owner.pid)),
            json!(process.map(|p| p.user_or_uid())),
            json!(process.map(|p| &p.cmdline)),
            json!(process.map(|p| format!("{}[{}]", p.parent_name, p.ppid))),
            json!(owner.and_then(|owner| processes.workload(owner)).and_then(|workload| workload.title())),
        ]);
    }
    let since_s = |then_ns: u64| now_ns.saturating_sub(then_ns) / 1_000_000_000;
    row.extend([
        json!(total.bytes[0]),
        json!(total.bytes[1]),
        json!(total.packets[0]),
        json!(total.packets[1]),
        json!(u64::from(total.retrans[0]) + u64::from(total.retrans[1])),
        json!(rtt.map(|end| end.srtt_us)),
        json!(rtt.map(|end| end.rttvar_us)),
        json!(since_s(flow.opened_ns)),
        json!(since_s(flow.active_ns)),
        json!(if flow.ends().any(|end| end.has(End::PRE_EXISTING)) { "yes" } else { "no" }),
    ]);
    row
}
