//! The exported totals of a flow equal what the two programs counted, to the byte.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use sockeye_tests::{
    Agent, Collector, Traffic, exporting_agent, exporting_agent_with, free_port, serve, talk, wait_for,
};

fn port(value: &Value) -> u64 {
    value["local"].as_u64().expect("a port")
}

#[test]
fn every_way_to_end_a_tcp_flow() {
    let (mut agent, collector) = exporting_agent();
    let (server, server_port, _) = serve("serve", "127.0.0.1");
    let server_text = server_port.to_string();
    let mut flows = Vec::new();
    for (send, want, end) in [
        ("0", "0", "close"),
        ("1", "1", "close"),
        ("104857600", "104857600", "close"),
        ("70000", "3000", "reset"),
        ("12345", "54321", "kill"),
    ] {
        flows.push((talk(&["client", "127.0.0.1", &server_text, send, want, end]), end));
    }
    // A connection without a single byte: the server waits for a request that never comes.
    let mut silent = Traffic::start(None, &["client", "127.0.0.1", &server_text, "0", "0", "silent"]);
    let silent_port = port(&silent.says());
    silent.wait();
    let refused = talk(&["connect", "127.0.0.1", "1"]);
    assert_eq!(refused["error"], 111);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for (said, end) in &flows {
        let flow = collected.flow(port(said), server_port.into());
        assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"], &said["received"]), "{end}: {flow:#}");
        assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&said["pid"], Some(server.pid().into())), "{end}");
        let expected = if *end == "reset" { "reset" } else { "closed" };
        assert_eq!(flow["end_reason"], expected, "{end}: {flow:#}");
    }
    let flow = collected.flow(silent_port, server_port.into());
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&Value::from(0), &Value::from(0)), "{flow:#}");
    let flow = collected.flow(port(&refused), 1);
    assert_eq!((&flow["end_reason"], &flow["src_pid"]), (&Value::from("refused"), &refused["pid"]), "{flow:#}");
    assert_eq!(flow["l7_risk"], 1u64 << 50, "an issue of TCP: {flow:#}");
    assert_eq!((&flow["client_tcp_flags"], &flow["server_tcp_flags"]), (&Value::from(2), &Value::from(0x14)));
}

#[test]
fn one_socket_that_connects_again_and_again() {
    let (mut agent, collector) = exporting_agent();
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let said = talk(&["reconnect", "127.0.0.1", &server_port.to_string()]);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for (i, reason) in ["reset", "closed"].into_iter().enumerate() {
        let flow = collected.flow(said["locals"][i].as_u64().expect("a port"), server_port.into());
        assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"][i], &said["received"][i]), "{flow:#}");
        assert_eq!((&flow["src_pid"], &flow["end_reason"]), (&said["pid"], &Value::from(reason)), "{flow:#}");
    }
}

#[test]
fn an_end_that_stays_open_long_after_the_other() {
    // No scan sees them open: they come right after one, and the next is in ten seconds.
    let (mut agent, collector) = exporting_agent_with(&["--scan-interval", "10"]);
    let (server, server_port, _) = serve("serve_lazily", "127.0.0.1");
    let said: Vec<Value> =
        (0..3).map(|_| talk(&["client", "127.0.0.1", &server_port.to_string(), "500", "70", "leave"])).collect();
    // Until the other end is known, the one that has closed is all there is.
    let is_over = |flow: &Map<String, Value>| flow["state"] == "closed" && flow["direction"] == "local";
    wait_for("ends", Duration::from_secs(20), || {
        let flows = agent.flows_of_port(server_port);
        (flows.len() == 3 && flows.iter().all(is_over)).then_some(())
    });
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for said in said {
        let flow = collected.flow(port(&said), server_port.into());
        assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"], &said["received"]), "{flow:#}");
        assert_eq!(flow["dst_pid"], server.pid(), "{flow:#}");
        assert!(flow["src_pid"].is_u64() && flow["end_reason"] == "closed", "{flow:#}");
    }
}

#[test]
fn a_flow_that_is_older_than_the_agent() {
    let (server, server_port, _) = serve("serve", "127.0.0.1");
    let mut old = Traffic::start(None, &["talk_on", "127.0.0.1", &server_port.to_string(), "5000", "777"]);
    let first = old.says();
    let (mut agent, collector) = exporting_agent();
    let shown = agent.flows_of_port(server_port);
    assert_eq!(shown.len(), 1, "{shown:#?}");
    assert_eq!(shown[0]["sent"], first["sent"], "the whole total is in ctl: {shown:#?}");
    assert_eq!(shown[0]["before_agent"], "yes");
    assert_eq!(shown[0]["initiator_pid"], first["pid"]);
    assert_eq!(shown[0]["responder_pid"], server.pid());
    old.tell();
    let second = old.says();
    wait_for("new total", Duration::from_secs(5), || {
        (agent.flows_of_port(server_port)[0]["sent"] == second["sent"]).then_some(())
    });
    old.tell();
    old.wait();
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(port(&first), server_port.into());
    assert_eq!(flow["in_bytes"], 777, "only what came after the agent is exported: {flow:#}");
}

#[test]
fn an_open_flow_is_reported_before_each_active_timeout() {
    let zmq = free_port();
    let collector = Collector::start(zmq, 120, &[]);
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{zmq}c"), "--active-timeout", "6"]);
    agent.wait_connected();
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let mut open = Traffic::start(None, &["client", "127.0.0.1", &server_port.to_string(), "99", "55", "hold"]);
    let said = open.says();
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(17));
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(port(&said), server_port.into());
    let records = flow["records"].as_u64().expect("a count");
    assert!(records >= 3, "{records} records in {:?}: {flow:#}", began.elapsed());
    assert!(flow["max_gap_s"].as_f64().expect("seconds") <= 6.0, "{flow:#}");
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"], &said["received"]), "{flow:#}");
    assert_eq!(flow.get("end_reason"), None);
}

#[test]
fn udp_datagrams_and_payload() {
    let (mut agent, collector) = exporting_agent();
    let mut checks = Vec::new();
    let (v4, v4_port, _) = serve("udp_echo", "127.0.0.1");
    let (v6, v6_port, _) = serve("udp_echo", "::1");
    for (host, server, port) in [("127.0.0.1", v4.pid(), v4_port), ("::1", v6.pid(), v6_port)] {
        for (how, count, size) in
            [("connected", "300", "1000"), ("unconnected", "77", "0"), ("connected", "1", "60000")]
        {
            let said = talk(&["udp_client", host, &port.to_string(), count, size, how]);
            checks.push((said, server, port));
        }
    }
    // A server of its own: a hundred ports may well be some of the ports above, which for a collector is the same flow.
    let (_many, many_port, _) = serve("udp_echo", "127.0.0.1");
    let peers = talk(&["udp_peers", "127.0.0.1", &many_port.to_string(), "100"]);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for (said, server, server_port) in &checks {
        let flow = collected.flow(port(said), (*server_port).into());
        for side in ["in", "out"] {
            assert_eq!(flow[&format!("{side}_pkts")], said["datagrams"], "{flow:#}");
            assert_eq!(flow[&format!("{side}_bytes")], said["bytes"], "{flow:#}");
        }
        assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&said["pid"], Some((*server).into())), "{flow:#}");
    }
    let peers = peers["peers"].as_object().expect("peers");
    assert_eq!(peers.len(), 100);
    for (source, datagrams) in peers {
        let flow = collected.flow(source.parse().expect("a port"), many_port.into());
        assert_eq!((&flow["in_pkts"], &flow["out_pkts"]), (datagrams, datagrams), "{flow:#}");
        assert_eq!(flow["in_bytes"].as_u64(), datagrams.as_u64().map(|n| n * 10), "{flow:#}");
    }
}

/// The server's socket stays, so the kernel counts for both in one place: each flow must have its own share.
#[test]
fn a_udp_port_that_changes_hands() {
    let (mut agent, collector) = exporting_agent();
    let (server, server_port, _) = serve("udp_echo", "127.0.0.1");
    let said = talk(&["udp_turns", "127.0.0.1", &server_port.to_string(), "0,0,1.2,0", "3", "5", "7", "2"]);
    let source = port(&said);
    let mut shown = wait_for("the flows of four sockets", Duration::from_secs(3), || {
        let shown = agent.flows_of_port(server_port);
        let all = |column| shown.iter().filter_map(|flow| flow[column].as_u64()).sum::<u64>() >= 170;
        // An exchange of the counters may come between a datagram and its echo.
        (all("sent") && all("received")).then_some(shown)
    });
    shown.sort_by_key(|flow| flow["sent"].as_u64());
    assert_eq!(shown.len(), 4, "{shown:#?}");
    for (flow, bytes) in shown.iter().zip([20, 30, 50, 70]) {
        assert_eq!((flow["sent"].as_u64(), flow["received"].as_u64()), (Some(bytes), Some(bytes)), "{flow:#?}");
        assert_eq!((&flow["initiator_pid"], flow["responder_pid"].as_u64()), (&said["pid"], Some(server.pid().into())));
    }
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    // For a collector the four are one.
    let flow = collected.flow(source, server_port.into());
    assert_eq!((flow["in_bytes"].as_u64(), flow["out_bytes"].as_u64()), (Some(170), Some(170)), "{flow:#}");
}

/// Programs carry the data past TCP and its counters: that is said, and no wrong figure is shown.
#[test]
fn what_a_sockmap_carries_is_not_counted() {
    let agent = Agent::start(&[]);
    let mut program = Traffic::odd(None, &["sockmap"]);
    let said = program.says();
    let port = said["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    let flow = wait_for("the flow", Duration::from_secs(5), || agent.flows_of_port(port).first().cloned());
    assert_eq!((flow["not_counted"].as_str(), flow.get("sent"), flow.get("received")), (Some("sockmap"), None, None));
}
