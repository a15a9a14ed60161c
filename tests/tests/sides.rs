//! Which side began, where the handshake does not tell or was not seen.

use std::time::Duration;

use sockeye_tests::{Agent, Collected, Traffic, exporting_agent, wait_for};

fn port(value: &serde_json::Value) -> u16 {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port")
}

/// Bytes of both directions at the collector, of the flow between two ports.
fn bytes(collected: &Collected, from: u16, to: u16) -> (Option<u64>, Option<u64>) {
    collected.assert_clean();
    let flow = collected.flow(from.into(), to.into());
    (flow["in_bytes"].as_u64(), flow["out_bytes"].as_u64())
}

/// Both ends connect: no SYN is taken for data.
#[test]
fn a_simultaneous_open() {
    let (mut agent, collector) = exporting_agent();
    let net = sockeye_tests::net::Namespace::new();
    net.nft(
        "table ip f { chain i { type filter hook input priority 0
 tcp flags & (syn|ack) == syn drop
}
}",
    );
    let (a, b) = ("24301", "24302");
    let mut peers = [(a, b, "1000"), (b, a, "3000")].map(|(local, remote, size)| {
        let mut peer = Traffic::odd(net.some(), &["meet", local, remote, size]);
        peer.says();
        peer
    });
    peers.iter_mut().for_each(Traffic::tell);
    // Their first SYNs are dropped, so that both have sent one when the second ones cross.
    std::thread::sleep(Duration::from_millis(500));
    net.nft("flush ruleset");
    peers.iter_mut().for_each(|peer| drop(peer.says()));
    let flows = agent.flows_of_port(24301);
    assert_eq!(flows.len(), 1, "{flows:#?}");
    let mut shown = [&flows[0]["sent"], &flows[0]["received"]].map(|bytes| bytes.as_u64().expect("bytes"));
    shown.sort_unstable();
    assert_eq!(shown, [1000, 3000]);
    peers.iter_mut().for_each(Traffic::wait);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    let began = if flows[0]["initiator"] == "127.0.0.1:24301" { (24301, 24302) } else { (24302, 24301) };
    let (sent, received) = bytes(&collected, began.0, began.1);
    assert_eq!([sent, received].iter().flatten().sum::<u64>(), 4000);
}

/// One end is frozen and made again in another process, as CRIU does it: it goes on with the flow.
#[test]
fn a_restored_connection() {
    for which in ["client", "server"] {
        let (mut agent, collector) = exporting_agent();
        let mut program = Traffic::odd(None, &["restored", which]);
        let said = program.says();
        let (client, server) = (port(&said["client"]), port(&said["server"]));
        wait_for("the flow", Duration::from_secs(5), || (!agent.flows_of_port(server).is_empty()).then_some(()));
        program.tell();
        let restored = program.says();
        let flow = wait_for("all bytes", Duration::from_secs(5), || {
            let flows = agent.flows_of_port(server);
            assert_eq!(flows.len(), 1, "{which}: {flows:#?}");
            (flows[0]["received"] == 2700).then(|| flows[0].clone())
        });
        assert_eq!((flow["sent"].as_u64(), &flow["state"]), (Some(1500), &"open".into()), "{which}: {flow:#?}");
        let pid = if which == "client" { "initiator_pid" } else { "responder_pid" };
        assert_eq!(flow[pid], restored["pid"], "{which}");
        program.wait();
        agent.settle();
        agent.stop();
        assert_eq!(bytes(&collector.finish(), client, server), (Some(1500), Some(2700)), "{which}");
    }
}

/// The client asked once before the agent came; then only the server has sent.
#[test]
fn a_udp_download_that_is_under_way() {
    for bound in ["unbound", "bound"] {
        let mut server = Traffic::odd(None, &["download", "0"]);
        let server_port = port(&server.says()["port"]);
        let mut client = Traffic::odd(None, &["downloading", &server_port.to_string(), bound]);
        let local = port(&client.says()["local"]);
        std::thread::sleep(Duration::from_millis(300));
        let agent = Agent::start(&[]);
        agent.settle();
        let flows = agent.flows_of_port(server_port);
        assert!(flows.len() == 1 && flows[0]["direction"] == "local", "{bound}: {flows:#?}");
        assert_eq!(flows[0]["initiator"], format!("127.0.0.1:{local}"), "{bound}: {flows:#?}");
        assert_eq!(flows[0]["responder_pid"], server.pid(), "{bound}");
    }
}

/// A server that opens a connected socket for each client, as those of QUIC and DTLS do.
#[test]
fn a_udp_server_with_a_socket_per_client() {
    for who in ["same", "worker"] {
        let (mut agent, collector) = exporting_agent();
        let mut server = Traffic::odd(None, &["per_client", "0", who]);
        let server_port = port(&server.says()["port"]);
        let mut client = Traffic::odd(None, &["one_client", &server_port.to_string()]);
        let (said, served) = (client.says(), server.says());
        let local = port(&said["local"]);
        assert_eq!((&said["got"], &served["got"]), (&served["sent"], &said["sent"]));
        agent.settle();
        let flows = agent.flows_of_port(server_port);
        assert_eq!(flows.len(), 1, "{who}: {flows:#?}");
        assert_eq!(flows[0]["initiator"], format!("127.0.0.1:{local}"), "{who}");
        assert_eq!((&flows[0]["sent"], &flows[0]["received"]), (&said["sent"], &said["got"]), "{who}: {flows:#?}");
        assert_eq!(flows[0]["responder_pid"], served["pid"], "{who}: who talks to the client now");
        agent.stop();
        assert_eq!(bytes(&collector.finish(), local, server_port), (Some(5000), Some(10_000)), "{who}");
    }
}

/// Nothing listens any more, and no port is well known: what an accepted socket inherits from its listener tells.
#[test]
fn an_older_connection_whose_listener_is_gone() {
    let mut program = Traffic::odd(None, &["accepted", "150", "2500"]);
    let said = program.says();
    let (client, server) = (port(&said["client"]), port(&said["server"]));
    let agent = Agent::start(&[]);
    program.tell();
    program.says();
    let flow = wait_for("the flow", Duration::from_secs(5), || {
        let flows = agent.flows_of_port(server);
        (flows.len() == 1 && flows[0]["received"] == 3000).then(|| flows[0].clone())
    });
    assert_eq!(flow["initiator"], format!("127.0.0.1:{client}"), "{flow:#?}");
    assert_eq!((flow["sent"].as_u64(), &flow["before_agent"]), (Some(250), &"yes".into()), "{flow:#?}");
}

/// A peer that is not on this host, and an agent that comes late: the listener, or what an accepted socket keeps of it, tells who
/// connected, also where a service of our own has the peer's port number.
#[test]
fn an_older_connection_with_a_peer_elsewhere() {
    for (mode, initiator, responder, bytes_each_way) in [
        ("listener", ("10.33.0.2", 40001), ("10.33.0.1", 8080), (250, 3000)),
        ("closed", ("10.33.0.2", 40001), ("10.33.0.1", 8080), (250, 3000)),
        ("out", ("10.33.0.1", 38080), ("10.33.0.2", 8080), (3000, 250)),
    ] {
        let mut program = Traffic::far_peer(mode);
        program.says();
        let (mut agent, collector) = exporting_agent();
        program.tell();
        program.says();
        let flow = wait_for("the flow", Duration::from_secs(5), || {
            let flows = agent.flows_of_port(initiator.1);
            flows.first().filter(|flow| flow["received"] == bytes_each_way.1).cloned()
        });
        let endpoint = |(ip, port): (&str, u16)| format!("{ip}:{port}");
        assert_eq!(flow["initiator"], endpoint(initiator), "{mode}: {flow:#?}");
        assert_eq!((&flow["responder"], flow["sent"].as_u64()), (&endpoint(responder).into(), Some(bytes_each_way.0)));
        let pid = if mode == "out" { "initiator_pid" } else { "responder_pid" };
        assert_eq!(flow[pid], program.pid(), "{mode}: {flow:#?}");
        program.tell();
        if mode == "listener" {
            // A handshake that was reset is a flow; one that was never completed is none.
            let flows = wait_for("the one that was reset", Duration::from_secs(5), || {
                let flows = agent.flows_of_port(8080);
                flows.iter().any(|flow| flow["initiator"] == "10.33.0.2:42000").then_some(flows)
            });
            assert!(flows.len() <= 2, "{flows:#?}");
            program.tell();
        }
        program.says();
        agent.settle();
        agent.stop();
        let collected = collector.finish();
        // What was exchanged before the agent came is none of its reports.
        let since = if mode == "out" { (500, 100) } else { (100, 500) };
        assert_eq!(bytes(&collected, initiator.1, responder.1), (Some(since.0), Some(since.1)), "{mode}");
        let owner = if mode == "out" { "src_pid" } else { "dst_pid" };
        assert_eq!(collected.flow(initiator.1.into(), responder.1.into())[owner], program.pid(), "{mode}");
        let begun =
            collected.flows().iter().filter(|flow| flow["dst_port"] == 8080 && flow["src_port"] != 40001).count();
        assert_eq!(begun, usize::from(mode != "closed"), "{mode}: {:#?}", collected.flows());
    }
}
