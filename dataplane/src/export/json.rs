//! Flow records as JSON, for a licensed ntopng or one up to 5.6: fills its pages of containers and pods.
//!
//! An object that carries a process, a container or TCP figures switches ntopng to absolute counters for that record,
//! so totals are sent with them and deltas without. `INTERFACE_NAME` must never appear: it crashes ntopng.

use serde_json::{Map, Value, json};

use crate::flow::{FlowReport, Proto, Side, State};
use crate::place::Place;
use crate::process::Process;

/// One flow as an object of ntopng's "agent" dialect.
#[must_use]
pub fn encode(report: &FlowReport) -> Value {
    const NS_PER_S: u64 = 1_000_000_000;
    let key = &report.key;
    let v4 = key.initiator.addr.ip().is_ipv4();
    let family = if v4 { "IPV4" } else { "IPV6" };
    let mut flow = Map::new();
    flow.insert(format!("{family}_SRC_ADDR"), json!(key.initiator.addr.to_string()));
    flow.insert(format!("{family}_DST_ADDR"), json!(key.responder.addr.to_string()));
    flow.insert("L4_SRC_PORT".into(), json!(key.initiator.port));
    flow.insert("L4_DST_PORT".into(), json!(key.responder.port));
    flow.insert("PROTOCOL".into(), json!(key.proto.number()));
    flow.insert("IP_PROTOCOL_VERSION".into(), json!(if v4 { 4 } else { 6 }));
    flow.insert("FIRST_SWITCHED".into(), json!(report.first_unix_ns / NS_PER_S));
    flow.insert("LAST_SWITCHED".into(), json!(report.last_unix_ns.max(report.first_unix_ns) / NS_PER_S));
    let [client, server] = [Side::Initiator, Side::Responder].map(|side| report.process[side as usize].as_deref());
    let absolute = client.is_some() || key.proto == Proto::Tcp;
    let counters = if absolute { &report.total } else { &report.delta };
    flow.insert("IN_BYTES".into(), json!(counters.bytes[0]));
    flow.insert("IN_PKTS".into(), json!(counters.packets[0]));
    flow.insert("OUT_BYTES".into(), json!(counters.bytes[1]));
    flow.insert("OUT_PKTS".into(), json!(counters.packets[1]));
    if let Some(process) = client {
        flow.insert("LOCAL_PROCESS".into(), process_object(process));
        if process.ppid > 0 {
            flow.insert(
                "LOCAL_FATHER_PROCESS".into(),
                json!({"PID": process.ppid, "UID": process.parent_uid,
                    "UID_NAME": process.parent_user.as_deref().unwrap_or_default(), "PROCESS_PATH": process.parent_name}),
            );
        }
    }
    let [client_place, server_place] = report.place.each_ref().map(Option::as_deref);
    if let Some(container) = client_place.and_then(container_object) {
        flow.insert("LOCAL_CONTAINER".into(), container);
    }
    if let Some(label) = server_place.and_then(Place::label) {
        flow.insert("DST_PROC_CONTAINER_ID".into(), json!(label));
    }
    // The nested objects always mean the client; the server has flat names.
    if let Some(process) = server {
        flow.insert("DST_PROC_PID".into(), json!(process.key.pid));
        flow.insert("DST_PROC_NAME".into(), json!(process.path_or_name()));
        flow.insert("DST_PROC_UID".into(), json!(process.uid));
        flow.insert("DST_PROC_USER_NAME".into(), json!(process.user.as_deref().unwrap_or_default()));
        flow.insert("DST_PROC_CMDLINE".into(), json!(process.cmdline));
        if let Some(package) = &process.package {
            flow.insert("DST_PROC_PKG_NAME".into(), json!(package));
        }
    }
    if key.proto == Proto::Tcp {
        flow.insert("TCP".into(), tcp_object(report));
    }
    if report.state.is_over() {
        flow.insert("FLOW_END_REASON".into(), json!(report.state.name()));
    }
    Value::Object(flow)
}

fn process_object(process: &Process) -> Value {
    json!({
        "PID": process.key.pid,
        "UID": process.uid,
        "UID_NAME": process.user.as_deref().unwrap_or_default(),
        "GID": process.gid,
        "PROCESS_PATH": process.path_or_name(),
    })
}

/// A pod for ntopng's page of pods, any other container under the name of Docker, which is all that it knows.
fn container_object(place: &Place) -> Option<Value> {
    let container = place.container.as_ref()?;
    let name = container.name_or_id();
    Some(match &place.pod {
        Some(pod) if !pod.name.is_empty() => {
            json!({"ID": container.short_id(), "K8S": {"NAME": name, "POD": pod.name, "NS": pod.namespace}})
        }
        _ => json!({"ID": container.short_id(), "DOCKER": {"NAME": name}}),
    })
}

fn tcp_object(report: &FlowReport) -> Value {
    let total = &report.total;
    let (rtt_us, rttvar_us) = report.rtt_us[0].or(report.rtt_us[1]).unwrap_or((0, 0));
    json!({
        "CONN_STATE": conn_state(report.state),
        "SEGS_IN": total.packets[1],
        "SEGS_OUT": total.packets[0],
        "RETRAN_PKTS": total.retrans[0] + total.retrans[1],
        "RTT": f64::from(rtt_us) / 1000.0,
        "RTT_VARIANCE": f64::from(rttvar_us) / 1000.0,
        "BYTES_ACKED": total.bytes[0],
        "BYTES_RCVD": total.bytes[1],
    })
}

fn conn_state(state: State) -> &'static str {
    match state {
        State::Connecting => "SYN_SENT",
        State::Open => "ESTABLISHED",
        State::Closing => "CLOSE_WAIT",
        _ => "CLOSE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::testing;

    #[test]
    fn has_the_objects_and_never_the_key_that_crashes_ntopng() {
        let flow = encode(&testing::report());
        let object = flow.as_object().unwrap();
        assert_eq!(object["LOCAL_PROCESS"]["PID"], 42);
        assert_eq!(object["TCP"]["BYTES_ACKED"], object["IN_BYTES"]);
        assert_eq!(object["DST_PROC_PID"], 43);
        let pod = json!({"NAME": "app", "POD": "web-1", "NS": "shop"});
        assert_eq!(object["LOCAL_CONTAINER"], json!({"ID": "0123456789ab", "K8S": pod}));
        assert!(!object.keys().any(|key| key.starts_with("INTERFA")));
    }
}
