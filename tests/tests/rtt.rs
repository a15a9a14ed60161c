//! Round-trip times, of a path whose delay is known.

use serde_json::{Map, Value};
use sockeye_ctl::Request;
use sockeye_ctl::protocol::{FlowsArguments, GroupBy, RttArguments};
use sockeye_tests::capture::Capture;
use sockeye_tests::net::{ADDRESSES, Namespace, Pair, nft};
use sockeye_tests::{Agent, Traffic, exporting_agent, serve, talk};

const ONE_WAY_US: u32 = 10_000;
const ROUND_TRIP_US: f64 = 20_000.0;

/// Samples and median, microseconds, of the namespaces' network alone: the host has other connections.
fn distribution(agent: &Agent) -> (u64, f64) {
    let of = RttArguments { by: GroupBy::Network, limit: 1, name: Some("10.77.0.0".into()) };
    let answer = agent.ask(&Request::Rtt(of)).expect("an answer");
    let row = answer.rows("rtt").pop().unwrap_or_default();
    let figure = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or_default();
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
    agent.settle();
    let (samples, p50) = distribution(&agent);
    assert!(samples > 50, "{samples} samples");
    let shown = agent.flows(FlowsArguments { port: vec![port as u16], ..FlowsArguments::default() });
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
        agent.settle();
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
    agent.settle();
    let p50 = agent.figure("rtt", "p50").as_f64().expect("microseconds");
    assert!(p50 > 0.0 && p50 < 1000.0, "{p50} us");
    for flow in agent.flows_of_port(port) {
        assert!(flow["rtt"].as_f64().expect("microseconds") < 1000.0, "{flow:#?}");
    }
    agent.stop();
}

/// The distribution of one process.
fn of_process(agent: &Agent, pid: u64) -> Map<String, Value> {
    let of = RttArguments { by: GroupBy::Process, limit: usize::MAX, name: None };
    let answer = agent.ask(&Request::Rtt(of)).expect("an answer");
    let rows = answer.rows("rtt");
    let row = rows.into_iter().find(|row| row["name"].as_str().is_some_and(|name| name.contains(&format!("[{pid}]"))));
    row.unwrap_or_default()
}

/// Samples of a process on one side, and its 90th percentile in microseconds.
fn process_p90(agent: &Agent, pid: u64) -> (u64, f64) {
    let row = of_process(agent, pid);
    let figure = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or_default();
    (figure("samples") as u64, figure("p90"))
}

/// The FIN is acknowledged by a timer of 40 ms, which is none of the network's.
#[test]
fn a_server_that_lingers_is_not_a_slow_network() {
    let (mut agent, collector) = exporting_agent();
    let mut program = Traffic::odd(None, &["lingers", "0", "5"]);
    let said = program.says();
    let port = said["port"].as_u64().expect("a port");
    agent.settle();
    let flows = agent.flows_of_port(port as u16);
    let seen = said["seen"].as_object().expect("ports");
    assert_eq!((flows.len(), seen.len()), (5, 5));
    for (local, kernel) in seen {
        let row = flows.iter().find(|row| row["initiator"] == format!("127.0.0.1:{local}")).expect("its flow");
        assert_eq!(row["rtt"], kernel[0], "the kernel's just before the close: {row:#?}");
    }
    let (samples, p90) = process_p90(&agent, said["pid"].as_u64().expect("a pid"));
    assert!(samples >= 5 && p90 < 5000.0, "{samples} samples, p90 {p90} us");
    agent.stop();
    collector.finish().assert_clean();
}

/// The client's thinking time is none of the network's either.
#[test]
fn a_deferred_accept_is_not_a_slow_network() {
    let agent = Agent::start(&[]);
    let mut program = Traffic::odd(None, &["defers", "0", "3"]);
    let said = program.says();
    agent.settle();
    let (samples, p90) = process_p90(&agent, said["server"].as_u64().expect("a pid"));
    assert!(samples >= 3 && p90 < 5000.0, "{samples} samples, p90 {p90} us");
}

/// Stalled readers, probes of closed windows, keepalives, segments that nobody answers and segments that are lost: what the agent
/// takes for the network's time is what the packets show, timers of the ends taken away.
fn assert_only_the_network(what: &str, [client_at, server_at]: [&str; 2], host: &str, device: &str, lossy: bool) {
    let (mut agent, collector) = exporting_agent();
    let mut server = Traffic::odd(Some(server_at), &["troubled_server", host]);
    let port = server.says()["port"].as_u64().expect("a port");
    if lossy {
        let rule = format!("tcp dport {port} meta length > 200 numgen inc mod 9 == 4 drop");
        nft(
            server_at,
            &format!("table inet t {{\n chain c {{\n type filter hook input priority 0;\n {rule}\n }}\n }}\n"),
        );
    }
    let capture = Capture::start(client_at, device);
    let mut client = Traffic::odd(Some(client_at), &["troubles", host, &port.to_string()]);
    let said = client.says();
    let packets_us = capture.finish().data_round_trips_us(port);
    agent.settle();
    let network_us: Vec<u64> = packets_us.iter().copied().filter(|us| us - packets_us[0] < 38_000).collect();
    assert!(network_us.len() >= 40 && network_us.len() < packets_us.len(), "{what}: no timer fired? {packets_us:?}");
    let (median_us, longest_us) = (network_us[network_us.len() / 2], network_us[network_us.len() - 1]);

    let row = of_process(&agent, u64::from(client.pid()));
    let samples = row["samples"].as_u64().expect("a number");
    let p50 = row["p50"].as_u64().expect("microseconds");
    eprintln!(
        "{what}: {samples} samples, p50 {p50} us; packets: {} of {}, {median_us} us",
        network_us.len(),
        packets_us.len()
    );
    assert!(samples >= 40 && samples as usize <= packets_us.len(), "{what}: {samples} of {} packets", packets_us.len());
    assert!(p50.abs_diff(median_us) <= 100 + median_us / 10, "{what}: p50 {p50} us, packets {median_us} us");
    for bucket in row["histogram"].as_array().expect("pairs") {
        // A bucket is named by its upper bound, a tenth of a decade above its lower one.
        let from_us = bucket[0].as_f64().expect("microseconds") / 10f64.powf(0.1);
        assert!(from_us <= longest_us as f64 + 1000.0, "{what}: longer than any packet ({longest_us} us): {row:?}");
    }
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for (trouble, kernel) in said["ports"].as_object().expect("ports") {
        let flow = collected.flow(kernel["port"].as_u64().expect("a port"), port);
        let exported_us = flow["server_rtt_ms"].as_f64().expect("milliseconds") * 1000.0;
        let kernel_us = kernel["smoothed_us"].as_f64().expect("microseconds");
        assert!(
            (exported_us - kernel_us).abs() < 1.0,
            "{what}, {trouble}: {exported_us} us, before the close {kernel_us}"
        );
    }
}

#[test]
fn timers_and_probes_of_the_ends_are_not_the_network() {
    let own = Namespace::new();
    assert_only_the_network("loopback", [&own.name, &own.name], "127.0.0.1", "lo", false);
    let pair = Pair::veth();
    assert_only_the_network("veth, lossy", [&pair.names[0], &pair.names[1]], ADDRESSES[1], "v0", true);
    let pair = Pair::delayed(ONE_WAY_US);
    assert_only_the_network("20 ms, lossy", [&pair.names[0], &pair.names[1]], ADDRESSES[1], "dly0", true);
}
