//! Round-trip times, of a path whose delay is known.

use std::time::Duration;

use sockeye_ctl::Request;
use sockeye_ctl::protocol::{FlowsArguments, RttArguments, RttBy};
use sockeye_tests::net::{ADDRESSES, Pair};
use sockeye_tests::{Agent, Traffic, exporting_agent, serve, talk};

const ONE_WAY_US: u32 = 10_000;
const ROUND_TRIP_US: f64 = 20_000.0;

/// Samples and median, microseconds, of the namespaces' network alone: the host has other connections.
fn distribution(agent: &Agent) -> (u64, f64) {
    let of = RttArguments { by: RttBy::Peer, limit: 1, name: Some("10.77.0.0".into()) };
    let answer = agent.ask(&Request::Rtt(of)).expect("an answer");
    let row = answer.table("rtt").and_then(|table| table.rows.first()).cloned().unwrap_or_default();
    let figure = |name: &str| row.get(name).and_then(serde_json::Value::as_f64).unwrap_or_default();
    (figure("samples") as u64, figure("p50"))
}

fn assert_20_ms(us: f64, what: &str) {
    assert!((us - ROUND_TRIP_US).abs() <= 0.1 * ROUND_TRIP_US, "{what}: {us} us");
}

#[test]
fn twenty_milliseconds_are_twenty_milliseconds() {
    let (mut agent, collector) = exporting_agent();
    let pair = Pair::delayed(ONE_WAY_US);
    let mut server = Traffic::start(Some(&pair.names[1]), &["serve", ADDRESSES[1], "0"]);
    let port = server.says()["port"].as_u64().expect("a port");
    // More would queue before the path that delays, and its round trips would really take longer.
    let mut client =
        Traffic::start(Some(&pair.names[0]), &["client", ADDRESSES[1], &port.to_string(), "2000000", "2000000"]);
    let said = client.says();
    client.wait();
    std::thread::sleep(Duration::from_secs(2));
    let (samples, p50) = distribution(&agent);
    assert!(samples > 50, "{samples} samples");
    let shown = agent.flows(FlowsArguments { port: Some(port as u16), ..FlowsArguments::default() });
    let flow_us = shown[0]["rtt"].as_f64().expect("microseconds");
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(said["local"].as_u64().expect("a port"), port);
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"], &said["received"]), "{flow:#}");
    assert_20_ms(flow["server_rtt_ms"].as_f64().expect("milliseconds") * 1000.0, "exported flow");
    assert_20_ms(flow_us, "flow in ctl");
    assert_20_ms(p50, "distribution");
}

#[test]
fn a_connection_that_is_older_than_the_agent_has_a_distribution() {
    let pair = Pair::delayed(ONE_WAY_US);
    let mut server = Traffic::start(Some(&pair.names[1]), &["serve", ADDRESSES[1], "0"]);
    let port = server.says()["port"].as_u64().expect("a port").to_string();
    for args in [&[][..], &["--no-cgroup"]] {
        let mut old = Traffic::start(Some(&pair.names[0]), &["talk_on", ADDRESSES[1], &port, "10", "600000"]);
        old.says();
        let mut agent = Agent::start(args);
        old.tell();
        old.says();
        old.tell();
        old.wait();
        std::thread::sleep(Duration::from_secs(1));
        let (samples, p50) = distribution(&agent);
        agent.stop();
        assert!(samples > 5, "{args:?}: {samples} samples");
        assert_20_ms(p50, "distribution");
    }
}

#[test]
fn loopback_is_well_under_a_millisecond() {
    let mut agent = Agent::start(&[]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    for _ in 0..20 {
        let _ = talk(&["client", "127.0.0.1", &port.to_string(), "2000", "2000"]);
    }
    std::thread::sleep(Duration::from_secs(1));
    let p50 = agent.figure("rtt", "p50").as_f64().expect("microseconds");
    assert!(p50 > 0.0 && p50 < 1000.0, "{p50} us");
    for flow in agent.flows_of_port(port) {
        assert!(flow["rtt"].as_f64().expect("microseconds") < 1000.0, "{flow:#?}");
    }
    agent.stop();
}
