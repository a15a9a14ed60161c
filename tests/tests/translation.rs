//! One connection is one flow, whatever addresses its two ends know, and no two are joined that are not one.

use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value, json};
use sockeye_ctl::protocol::{FlowsArguments, GroupBy, PeersArguments, Request};
use sockeye_tests::net::{Namespace, shows_packets};
use sockeye_tests::{Agent, Traffic, exporting_agent, wait_for};

fn text(row: &Map<String, Value>, column: &str) -> String {
    row.get(column).and_then(Value::as_str).unwrap_or("-").to_owned()
}

/// Waits for the one flow of a port that has both ends.
fn whole_flow(agent: &Agent, port: u16) -> Map<String, Value> {
    let whole = |rows: &Vec<Map<String, Value>>| rows.len() == 1 && rows[0]["direction"] == "local";
    let mut last = Vec::new();
    wait_for("one flow with both ends", Duration::from_secs(6), || {
        last = agent.flows_of_port(port);
        (whole(&last) && last[0]["received"] != 0).then(|| last[0].clone())
    })
}

/// A client, a router that translates, and a server, each in a namespace.
struct Routed {
    client: Namespace,
    router: Namespace,
    server: Namespace,
}

impl Routed {
    fn new() -> Self {
        let routed = Self { client: Namespace::new(), router: Namespace::new(), server: Namespace::new() };
        routed.client.join("10.71.0.2/24", &routed.router, "10.71.0.1/24");
        routed.router.join("10.72.0.1/24", &routed.server, "10.72.0.2/24");
        routed.router.forward();
        routed.client.ip("route add default via 10.71.0.1");
        routed.server.ip("route add default via 10.72.0.1");
        routed
    }
}

const DNAT: &str = "table ip nat {
    chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.80 tcp dport 80 dnat to 10.72.0.2:8000; }
}";
const DNAT_AND_MASQUERADE: &str = "table ip nat {
    chain prerouting { type nat hook prerouting priority -100; ip daddr 10.96.0.80 tcp dport 80 dnat to 10.72.0.2:8000; }
    chain postrouting { type nat hook postrouting priority 100; ip daddr 10.72.0.2 masquerade random; }
}";

/// As published ports and services of Kubernetes are: neither end can know the other one's address.
#[test]
fn a_connection_through_a_router_that_translates() {
    for (rules, masquerades) in [(DNAT, false), (DNAT_AND_MASQUERADE, true)] {
        let (mut agent, collector) = exporting_agent();
        let net = Routed::new();
        net.router.nft(rules);
        let mut server = Traffic::start(net.server.some(), &["serve", "10.72.0.2", "8000"]);
        server.says();
        let mut client = Traffic::start(net.client.some(), &["client", "10.96.0.80", "80", "1000", "2000", "never"]);
        let said = client.says();
        let local = said["local"].as_u64().expect("a port");
        let flow = whole_flow(&agent, 8000);
        let expected = (format!("10.71.0.2:{local}"), "10.96.0.80:80".to_owned(), "10.72.0.2:8000".to_owned());
        assert_eq!((text(&flow, "initiator"), text(&flow, "responder"), text(&flow, "translated_responder")), expected);
        let seen_by_server = text(&flow, "translated_initiator");
        assert_eq!(seen_by_server.starts_with("10.72.0.1:"), masquerades, "{seen_by_server}");
        assert_eq!((&flow["initiator_pid"], flow["responder_pid"].as_u64()), (&said["pid"], Some(server.pid().into())));
        assert_eq!((&flow["sent"], &flow["received"]), (&said["sent"], &said["received"]), "{flow:#?}");
        assert_eq!(agent.flows_of_port(80).len(), 1, "found by either name");
        agent.settle();
        drop(client);
        agent.settle();
        // Who answers is told with what was asked for.
        let by_process = PeersArguments { by: GroupBy::Process, ..PeersArguments::default() };
        let peers = agent.ask(&Request::Peers(by_process)).expect("peers").rows("peers");
        // The agent's own connection to the collector is there, too.
        let pair: Vec<_> =
            peers.iter().filter(|row| row.get("service").is_some_and(|to| to == "10.96.0.80:80")).collect();
        assert_eq!((pair.len(), pair[0]["flows"].as_u64()), (1, Some(1)), "{peers:#?}");
        assert_eq!((&pair[0]["sent"], &pair[0]["received"]), (&said["sent"], &said["received"]), "{peers:#?}");
        let by_service = FlowsArguments { closed: true, by: Some(GroupBy::Service), ..FlowsArguments::default() };
        let services = agent.ask(&Request::Flows(by_service.into())).expect("services").rows("groups");
        assert_eq!(services.iter().filter(|row| row["name"] == "10.96.0.80:80").count(), 1, "{services:#?}");
        agent.stop();
        let collected = collector.finish();
        collected.assert_clean();
        let flow = collected.flow(local, 80);
        assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&said["sent"], &said["received"]), "{flow:#}");
        assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&said["pid"], Some(server.pid().into())), "{flow:#}");
        assert!(!collected.flows().iter().any(|flow| flow["dst_port"] == 8000), "told of once");
    }
}

/// Short ones come one-sided from two rings, and each is still told of once.
#[test]
fn many_short_connections_through_a_router_that_translates() {
    const CONNECTIONS: usize = 1000;
    let (mut agent, collector) = exporting_agent();
    let net = Routed::new();
    net.router.nft(DNAT_AND_MASQUERADE);
    let mut server = Traffic::start(net.server.some(), &["serve", "10.72.0.2", "8000"]);
    server.says();
    let storm = ["storm", "10.96.0.80", "80", &CONNECTIONS.to_string(), "10.71.0.2"];
    let mut client = Traffic::start(net.client.some(), &storm);
    client.says();
    client.wait();
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let of = |port: u64| collected.flows().iter().filter(move |flow| flow["dst_port"] == port);
    let whole = of(80).filter(|flow| flow["src_pid"] == json!(client.pid()) && flow["dst_pid"] == json!(server.pid()));
    assert_eq!((whole.count(), of(80).count(), of(8000).count()), (CONNECTIONS, CONNECTIONS, 0));
}

/// As a mesh's sidecar takes over what its neighbour sends: both ends are in one namespace.
#[test]
fn a_redirected_connection() {
    let (net, agent) = (Namespace::new(), Agent::start(&[]));
    net.nft(
        "table ip nat { chain output { type nat hook output priority -100; tcp dport 9999 redirect to :15001; }
}",
    );
    let mut server = Traffic::start(net.some(), &["serve", "127.0.0.1", "15001"]);
    server.says();
    let mut client = Traffic::start(net.some(), &["client", "127.0.0.1", "9999", "100", "200", "never"]);
    let said = client.says();
    let flow = whole_flow(&agent, 15001);
    assert_eq!(
        (text(&flow, "responder"), text(&flow, "translated_responder")),
        ("127.0.0.1:9999".into(), "127.0.0.1:15001".into())
    );
    assert_eq!((&flow["sent"], &flow["received"]), (&said["sent"], &said["received"]), "{flow:#?}");
}

/// As containers ask Docker's resolver: both ends in one namespace, packets translated on their way there and back.
#[test]
fn a_resolver_behind_a_translation_of_the_sockets_own_namespace() {
    if !shows_packets() {
        return; // the server is not connected, and nothing tells what its answers were called: docs/limits.md
    }
    for how in ["connected", "unconnected"] {
        let (mut agent, collector) = exporting_agent();
        let net = Namespace::new();
        net.nft("table ip nat {
            chain output { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:33053; }
            chain postrouting { type nat hook postrouting priority 100; ip saddr 127.0.0.11 udp sport 33053 snat to 127.0.0.11:53; }
        }");
        let mut server = Traffic::start(net.some(), &["udp_echo", "127.0.0.11", "33053"]);
        server.says();
        let mut client = Traffic::start(net.some(), &["udp_client", "127.0.0.11", "53", "5", "30", how]);
        let said = client.says();
        let flow = whole_flow(&agent, 33053);
        assert_eq!(text(&flow, "responder"), "127.0.0.11:53");
        assert_eq!((flow["sent"].as_u64(), flow["received"].as_u64()), (Some(150), Some(150)), "{flow:#?}");
        agent.settle();
        agent.stop();
        let collected = collector.finish();
        collected.assert_clean();
        let flow = collected.flow(said["local"].as_u64().expect("a port"), 53);
        assert_eq!((flow["in_bytes"].as_u64(), flow["out_bytes"].as_u64()), (Some(150), Some(150)), "{flow:#}");
        assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&said["pid"], Some(server.pid().into())), "{flow:#}");
        assert!(!collected.flows().iter().any(|flow| flow["dst_port"] == 33053), "told of once");
    }
}

/// Two tenants with the same addresses and ports: which process talks to which?
#[test]
fn equal_addresses_in_isolated_networks() {
    let (mut agent, collector) = exporting_agent();
    let tenants = [0, 1].map(|_| [Namespace::new(), Namespace::new()]);
    let mut servers = tenants.each_ref().map(|[a, b]| {
        a.join("10.88.0.1/24", b, "10.88.0.2/24");
        let mut server = Traffic::start(b.some(), &["udp_echo", "10.88.0.2", "500"]);
        server.says();
        server
    });
    // Both at once, as often, and as much.
    let args = ["udp_from", "10.88.0.1", "500", "10.88.0.2", "500", "20"];
    let mut clients = tenants.each_ref().map(|[a, _]| Traffic::odd(a.some(), &args));
    clients.iter_mut().for_each(|client| drop(client.says()));
    if !shows_packets() {
        // Nothing tells them apart: then they are not joined.
        agent.settle();
        let rows = agent.flows_of_port(500);
        assert!(rows.len() == 4 && rows.iter().all(|row| row["direction"] != "local"), "{rows:#?}");
        return;
    }
    let rows = wait_for("two flows with both ends", Duration::from_secs(6), || {
        let rows = agent.flows_of_port(500);
        (rows.len() == 2 && rows.iter().all(|row| row["direction"] == "local")).then_some(rows)
    });
    agent.settle();
    agent.stop();
    // To a collector, which knows no namespaces, the two are one flow: of one of the tenants, never of both.
    let collected = collector.finish();
    let exported: Vec<_> = collected.flows().iter().filter(|flow| flow["dst_port"] == 500).collect();
    assert_eq!(exported.len(), 1, "{exported:#?}");
    let pairs = [0, 1].map(|tenant| (clients[tenant].pid(), servers[tenant].pid()));
    assert!(
        pairs.iter().any(|(from, to)| exported[0]["src_pid"] == *from && exported[0]["dst_pid"] == *to),
        "{exported:#?}"
    );
    for (client, server) in clients.iter().zip(&mut servers) {
        let row = rows.iter().find(|row| row["initiator_pid"] == client.pid()).expect("its flow");
        assert_eq!(row["responder_pid"], server.pid(), "{rows:#?}");
    }
}

/// Each datagram counts once, however many receive it.
#[test]
fn receivers_of_a_group_are_of_one_flow() {
    let (mut agent, collector) = exporting_agent();
    let [a, b] = [Namespace::new(), Namespace::new()];
    a.join("10.77.0.1/24", &b, "10.77.0.2/24");
    let elsewhere = if shows_packets() { (&b, "10.77.0.2") } else { (&a, "10.77.0.1") };
    let mut receivers = [(&a, "10.77.0.1"), elsewhere, elsewhere].map(|(net, address)| {
        let mut receiver = Traffic::odd(net.some(), &["receive_group", address, "45901"]);
        receiver.says();
        receiver
    });
    let mut sender = Traffic::odd(a.some(), &["send_group", "10.77.0.1", "45901"]);
    let local = sender.says()["local"].as_u64().expect("a port");
    receivers.iter_mut().for_each(|receiver| assert_eq!(receiver.says()["multicast"], 10));
    let groups = [("239.7.7.7:45901", 1000), ("10.77.0.255:45901", 350)];
    let rows = wait_for("both groups' flows with all receivers and datagrams", Duration::from_secs(6), || {
        let rows = agent.flows_of_port(45901);
        let all = |row: &Map<String, Value>| {
            groups.iter().any(|(group, bytes)| row["responder"] == *group && row["sent"] == *bytes)
                && row.get("other_responders").and_then(Value::as_array).is_some_and(|o| o.len() == 2)
        };
        (rows.len() == 2 && rows.iter().all(all)).then_some(rows)
    });
    for (responder, bytes) in groups {
        let row = rows.iter().find(|row| row["responder"] == responder).expect("its flow");
        assert_eq!((row["sent"].as_u64(), row["received"].as_u64()), (Some(bytes), Some(0)), "{row:#?}");
        assert_eq!(row["initiator_pid"], sender.pid());
    }
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for (group, bytes) in [("239.7.7.7", 1000), ("10.77.0.255", 350)] {
        let to_group: Vec<_> = collected.flows().iter().filter(|flow| flow["dst_addr"] == group).collect();
        assert_eq!(to_group.len(), 1, "{to_group:#?}");
        assert_eq!((to_group[0]["src_port"].as_u64(), to_group[0]["in_bytes"].as_u64()), (Some(local), Some(bytes)));
        assert_eq!(to_group[0]["src_pid"], sender.pid());
    }
}

/// Only one end is here, and the other one knows other addresses: the kernel's connection tracking knows them all.
#[test]
fn with_one_end_here_both_tuples_are_known() {
    let mut program = Traffic::far_peer("translated");
    program.says();
    let mut command = Command::new("nsenter");
    command.args(["--net", "--target", &program.pid().to_string()]).arg(sockeye_tests::program("sockeye"));
    let agent = Agent::start_by(command);
    program.tell();
    let said = program.says();
    let flow = |port: u64| {
        wait_for("the flow", Duration::from_secs(10), || {
            let flows = agent.flows_of_port(u16::try_from(port).expect("a port"));
            // It is told of, and not only seen.
            flows.into_iter().find(|flow| flow.contains_key("translated_responder"))
        })
    };
    let tuples = |flow: &Map<String, Value>| {
        ["initiator", "responder", "translated_initiator", "translated_responder"]
            .map(|name| flow.get(name).and_then(Value::as_str).unwrap_or("-").to_owned())
    };
    let out = said["out"].as_u64().expect("a port");
    let from = format!("10.33.0.1:{out}");
    assert_eq!(tuples(&flow(out)), [&from, "10.96.0.80:80", &from, "10.33.0.2:8080"]);
    let incoming = flow(40001);
    assert_eq!(tuples(&incoming), ["10.33.0.2:40001", "10.33.0.1:8443", "10.33.0.2:40001", "10.33.0.1:9443"]);
    assert_eq!(
        (incoming["direction"].as_str(), incoming["responder_pid"].as_u64()),
        (Some("in"), Some(program.pid().into()))
    );
    let plain = agent.flows_of_port(said["plain"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port"));
    assert_eq!(plain.iter().map(tuples).map(|all| all[3].clone()).collect::<Vec<_>>(), ["-"]);
    assert_eq!(agent.flows_of_port(8443).len(), 1, "by the port that the world knows");
    program.tell();
    program.wait();
    agent.settle();
}
