//! Lines as readers see them.

use serde_json::{Value, json};

use super::*;
use crate::flows::report::Identity;
use crate::flows::testing;
use crate::model::flow::{Addr, Endpoint, FlowKey};

fn encoded(report: &FlowReport) -> Value {
    let mut out = Vec::new();
    Encoder::new("h1".into()).line(report, &mut out);
    assert_eq!(out.pop(), Some(b'\n'));
    assert!(!out.contains(&b'\n') && out.starts_with(b"{\"@timestamp\":"));
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn a_flow_has_the_names_of_ecs() {
    let line = encoded(&testing::report());
    assert_eq!(line["@timestamp"], "1970-01-01T00:00:02Z");
    assert_eq!(line["event"]["type"], json!(["connection", "start", "end"]));
    assert_eq!((&line["event"]["duration"], &line["event"]["outcome"]), (&json!(1_000_000_000), &json!("success")));
    assert_eq!(line["source"], json!({"ip": "10.0.0.1", "port": 40000, "bytes": 1200, "packets": 5}));
    assert_eq!(line["destination"], json!({"ip": "10.0.0.2", "port": 443, "bytes": 34500, "packets": 30}));
    let network = &line["network"];
    assert_eq!((&network["bytes"], &network["direction"]), (&json!(35_700), &json!("internal")));
    assert_eq!(line["process"]["command_line"], "curl --option");
    let parent = json!({"pid": 4000, "name": "bash", "user": {"id": "0"}});
    assert_eq!(line["process"]["parent"], parent);
    assert_eq!(line["user"], json!({"id": "1000", "name": "alice", "group": {"id": "0"}}));
    assert_eq!(line["container"]["image"], json!({"name": "registry.example/app:1"}));
    assert_eq!(
        (&line["orchestrator"]["namespace"], &line["orchestrator"]["resource"]["name"]),
        (&json!("shop"), &json!("web-1"))
    );
    let own = &line["sockeye"];
    assert_eq!(own["initiator"]["process"], line["process"]);
    assert_eq!(own["responder"]["process"]["executable"], "/usr/bin/nginx");
    assert_eq!(own["responder"]["place"]["unit"], "nginx.service");
    assert_eq!((&own["initiator"]["rtt_us"], &own["responder"]["rtt_us"]), (&json!(20_100), &json!(19_900)));
    assert_eq!(
        own["total"]["responder"],
        json!({"bytes": 34500, "packets": 30, "retransmissions": 0, "out_of_order": 0})
    );
}

#[test]
fn the_side_that_is_here_is_told() {
    let report = FlowReport { local: [false, true], first: false, state: State::Open, ..testing::report() };
    let line = encoded(&report);
    assert_eq!((&line["process"]["pid"], &line["network"]["direction"]), (&json!(43), &json!("ingress")));
    assert_eq!((&line["sockeye"]["initiator"], &line["event"]["outcome"]), (&Value::Null, &Value::Null));
    assert_eq!(line["event"]["action"], "flow-update");
    // Of a process that is not known there is the pid.
    let identity = [Identity::default(), Identity::default()];
    let line = encoded(&FlowReport { identity, ..testing::report() });
    assert_eq!((&line["process"], &line["user"]), (&json!({"pid": 42}), &Value::Null));
}

#[test]
fn what_is_not_known_is_left_out() {
    let other = Endpoint { addr: Addr([0; 16]), port: 0 };
    let key = FlowKey { proto: Proto::Udp, responder: other, ..testing::report().key };
    let line = encoded(&FlowReport { key, bypassed: true, ..testing::report() });
    assert_eq!(line["destination"], json!({"packets": 30}));
    assert_eq!((&line["network"]["community_id"], &line["sockeye"]["other_peers"]), (&Value::Null, &json!(true)));
    assert_eq!(line["sockeye"]["total"]["initiator"], json!({"packets": 5}));
    let key = testing::report().key;
    let view = FlowKey { responder: Endpoint { port: 8443, ..key.responder }, ..key };
    let line = encoded(&FlowReport { translated: Some(Box::new(view)), ..testing::report() });
    assert_eq!((&line["source"]["nat"], &line["destination"]["nat"]["port"]), (&Value::Null, &json!(8443)));
}

#[test]
fn a_process_that_is_known_costs_no_memory_again() {
    let (mut encoder, report) = (Encoder::new("h1".into()), testing::report());
    let mut out = Vec::with_capacity(1 << 16);
    encoder.line(&report, &mut out);
    let counted = allocation_counter::measure(|| encoder.line(&report, &mut out));
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
