//! Round-trip times, of a path whose delay is known.

use std::time::Duration;

use sockeye_ctl::protocol::FlowsArguments;
use sockeye_tests::net::{ADDRESSES, Pair};
use sockeye_tests::{Agent, Traffic, exporting_agent, serve, talk};

const ONE_WAY_US: u32 = 10_000;
const ROUND_TRIP_US: f64 = 20_000.0;

fn assert_20_ms(us: f64, what: &str) {
    assert!((us - ROUND_TRIP_US).abs() <= 0.1 * ROUND_TRIP_US, "{what}: {us} us");
}

#[test]
fn twenty_milliseconds_are_twenty_milliseconds() {
    let (mut agent, collector) = exporting_agent();
    let pair = Pair::delayed(ONE_WAY_US);
    let mut server = Traffic::start(Some(&pair.names[1]), &["serve", ADDRESSES[1], "0"]);
    let port = server.says()["port"].as_u64().expect("a port");
    let samples = || agent.figure("rtt", "samples").as_u64().expect("a count");
    let before = samples();
    let mut client =
        Traffic::start(Some(&pair.names[0]), &["client", ADDRESSES[1], &port.to_string(), "60000000", "60000000"]);
    let said = client.says();
    client.wait();
    std::thread::sleep(Duration::from_secs(2));
    // The kernel takes one sample per round trip and connection; the agent's own connections add a handful.
    let after = samples();
    assert!(after > before + 50, "{after} samples, {before} before");
    let p50 = agent.figure("rtt", "p50").as_f64().expect("microseconds");
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
