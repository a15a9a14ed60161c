//! Flow records as JSON, for a licensed ntopng or one up to 5.6: fills its pages of containers and pods.
//!
//! An object that carries a process, a container or TCP figures switches ntopng to absolute counters for that record,
//! so totals are sent with them and deltas without. `INTERFACE_NAME` must never appear: it crashes ntopng.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::elements::{self, Element, Part, Sink};
use crate::flows::report::{FlowReport, Identity};
use crate::model::flow::{Proto, Side, State};
use crate::model::text::neutral;
use crate::owners::process::Process;
use crate::owners::workload::Workload;

/// What the nested objects of the client carry already: ntopng takes each of them once.
const NESTED: [&str; 9] = [
    "SRC_PROC_PID",
    "SRC_PROC_NAME",
    "SRC_PROC_UID",
    "SRC_PROC_USER_NAME",
    "SRC_FATHER_PROC_PID",
    "SRC_FATHER_PROC_NAME",
    "SRC_FATHER_PROC_UID",
    "SRC_FATHER_PROC_USER_NAME",
    "SRC_PROC_CONTAINER_ID",
];

/// One flow as an object of ntopng's "agent" dialect. `probe`: the address of the agent. `from_beginning`: the collector has
/// not heard of the flow before.
#[must_use]
pub fn encode(report: &FlowReport, probe: IpAddr, from_beginning: bool) -> Value {
    let Identity { process: client, workload: client_workload } = &report.identity[Side::Initiator as usize];
    let absolute = client.is_some() || report.key.proto == Proto::Tcp;
    let counters = if absolute { &report.total } else { &report.delta };
    let since_unix_ns = if from_beginning { report.first_unix_ns } else { report.since_unix_ns };
    let interval_s = [since_unix_ns, report.last_unix_ns].map(elements::seconds);
    let mut flow = Object(Map::new());
    let probe = &elements::probe_text(probe);
    elements::write_flow(report, &Part { probe, counters, interval_s, delta: &report.delta }, &mut flow);
    for (side, identity) in Side::BOTH.into_iter().zip(&report.identity) {
        elements::write_identity(side, identity, &mut flow);
    }
    let Object(mut flow) = flow;
    if let Some(process) = client {
        flow.insert("LOCAL_PROCESS".into(), process_object(process));
        if process.ppid > 0 {
            flow.insert("LOCAL_FATHER_PROCESS".into(), parent_object(process));
        }
    }
    if let Some(container) = client_workload.as_deref().and_then(container_object) {
        flow.insert("LOCAL_CONTAINER".into(), container);
    }
    if report.key.proto == Proto::Tcp {
        flow.insert("TCP".into(), tcp_object(report));
    }
    Value::Object(flow)
}

/// The nested objects always mean the client; the server has flat names.
struct Object(Map<String, Value>);

impl Object {
    fn insert(&mut self, element: &Element, value: Value) {
        let Element(id, name) = element;
        if !NESTED.contains(name) {
            self.0.insert(if name.is_empty() { id.to_string() } else { (*name).to_owned() }, value);
        }
    }
}

impl Sink for Object {
    fn uint(&mut self, element: &Element, value: u64) {
        self.insert(element, json!(value));
    }

    fn float(&mut self, element: &Element, value: f32) {
        self.insert(element, json!(value));
    }

    fn text(&mut self, element: &Element, text: &str) {
        if !text.is_empty() {
            self.insert(element, json!(neutral(text)));
        }
    }

    fn row(&mut self, label: &str, text: &str) {
        if !text.is_empty() {
            self.0.insert(label.to_owned(), json!(neutral(text)));
        }
    }
}

fn parent_object(process: &Process) -> Value {
    json!({
        "PID": process.ppid,
        "UID": process.parent_uid,
        "UID_NAME": neutral(process.parent_user.as_deref().unwrap_or_default()),
        "PROCESS_PATH": neutral(&process.parent_name),
    })
}

fn process_object(process: &Process) -> Value {
    json!({
        "PID": process.key.pid,
        "UID": process.uid,
        "UID_NAME": neutral(process.user.as_deref().unwrap_or_default()),
        "GID": process.gid,
        "PROCESS_PATH": neutral(process.path_or_name()),
    })
}

/// A pod for ntopng's page of pods, any other container under the name of Docker, which is all that it knows.
fn container_object(workload: &Workload) -> Option<Value> {
    let container = workload.container.as_ref()?;
    let (id, name) = (neutral(container.short_id()), neutral(container.name_or_id()));
    Some(match &workload.pod {
        Some(pod) if !pod.name.is_empty() => {
            json!({"ID": id, "K8S": {"NAME": name, "POD": neutral(&pod.name), "NS": neutral(&pod.namespace)}})
        }
        _ => json!({"ID": id, "DOCKER": {"NAME": name}}),
    })
}

fn tcp_object(report: &FlowReport) -> Value {
    let total = &report.total;
    let (rtt_us, rttvar_us) = report.rtt_us[0].or(report.rtt_us[1]).unwrap_or((0, 0));
    json!({
        "CONN_STATE": conn_state(report.state),
        "SEGS_IN": total.packets[1],
        "SEGS_OUT": total.packets[0],
        "RETRAN_PKTS": total.retrans_of_both(),
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
    use crate::flows::testing;

    #[test]
    fn has_the_objects_and_never_the_key_that_crashes_ntopng() {
        let flow = encode(&testing::report(), IpAddr::from([10, 9, 8, 7]), false);
        let object = flow.as_object().unwrap();
        assert_eq!(object["LOCAL_PROCESS"]["PID"], 42);
        assert_eq!(object["TCP"]["BYTES_ACKED"], object["IN_BYTES"]);
        assert_eq!(object["DST_PROC_PID"], 43);
        let pod = json!({"NAME": "app", "POD": "web-1", "NS": "shop"});
        assert_eq!(object["LOCAL_CONTAINER"], json!({"ID": "0123456789ab", "K8S": pod}));
        assert!(!object.keys().any(|key| key.starts_with("INTERFA")));
    }

    #[test]
    fn says_as_much_as_the_binary_records() {
        let mut report = testing::report();
        report.delta.retrans = [3, 0];
        report.delta.out_of_order = [0, 2];
        report.identity.reverse();
        let flow = encode(&report, IpAddr::from([10, 9, 8, 7]), false);
        for (key, value) in [
            ("57550", json!(27)),
            ("57551", json!(27)),
            ("SERVER_NW_LATENCY_MS", json!(20.1f32)),
            ("RETRANSMITTED_IN_PKTS", json!(3)),
            ("OOORDER_OUT_PKTS", json!(2)),
            ("SRC_PROC_CMDLINE", json!("nginx --option")),
            ("DST_PROC_CMDLINE", json!("curl --option")),
            ("SRC_PROC_PKG_NAME", json!("nginx-core")),
            ("DST_PROC_PKG_NAME", json!("curl")),
            ("SRC_FATHER_PROC_PKG_NAME", json!("systemd")),
            ("DST_FATHER_PROC_PID", json!(4000)),
            ("DST_PROC_CONTAINER_ID", json!("shop/web-1/app")),
            ("Server Kubernetes Pod", json!("web-1")),
            ("57888", json!(64_240)),
            ("58051", json!(1)),
            ("NPROBE_IPV4_ADDRESS", json!("10.9.8.7")),
        ] {
            assert_eq!(flow[key], value, "{key}: {flow:#}");
        }
        assert_eq!(flow["LOCAL_FATHER_PROCESS"]["PID"], 1);
    }
}
