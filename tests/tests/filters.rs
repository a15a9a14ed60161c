//! What is left out is left out at both ends, costs no state where the kernel can decide, and is counted; the rest is all there.

use std::fs;

use sockeye_ctl::protocol::{FlowsArguments, Request};
use sockeye_tests::engines::Cgroup;
use sockeye_tests::{Agent, Traffic, exporting_agent_with, serve, talk};

/// How many of a kind were left out.
fn ignored(agent: &Agent, what: &str) -> u64 {
    let answer = agent.ask(&Request::Stats).expect("an answer");
    let rows = answer.rows("ignored");
    rows.iter().find(|row| row["what"] == what).and_then(|row| row["count"].as_u64()).expect("a count")
}

fn client(port: u16, bytes: u64) -> u64 {
    let said = talk(&["client", "127.0.0.1", &port.to_string(), &bytes.to_string(), "10"]);
    said["local"].as_u64().expect("a port")
}

fn udp_client(port: u16, datagrams: u64) {
    let _ = talk(&["udp_client", "127.0.0.1", &port.to_string(), &datagrams.to_string(), "100", "connected"]);
}

#[test]
fn ports_are_left_out_in_the_kernel_and_counted() {
    const CONNECTIONS: u64 = 20;
    let (_wanted_server, wanted, _) = serve("serve", "127.0.0.1");
    let (_unwanted_server, unwanted, _) = serve("serve", "127.0.0.1");
    let (_echo, unwanted_udp, _) = serve("udp_echo", "127.0.0.1");
    let (_echo_too, wanted_udp, _) = serve("udp_echo", "127.0.0.1");
    let (rule, udp_rule) = (format!("port={unwanted}"), format!("port={unwanted_udp}-{unwanted_udp}"));
    let (mut agent, collector) = exporting_agent_with(&["--ignore", &rule, "--ignore", &udp_rule]);
    let wanted_ports: Vec<u64> = (0..CONNECTIONS)
        .map(|_| {
            client(unwanted, 1000);
            client(wanted, 1000)
        })
        .collect();
    udp_client(unwanted_udp, 5);
    udp_client(wanted_udp, 5);
    agent.settle();
    assert_eq!(ignored(&agent, "tcp_sockets"), 2 * CONNECTIONS, "both ends of each");
    assert_eq!(ignored(&agent, "udp_packets"), 2 * 2 * 5, "questions and answers, each sent and received");
    assert_eq!((ignored(&agent, "flows"), agent.loss("close_untracked")), (0, 0));
    assert_eq!(agent.flows_of_port(unwanted).len() + agent.flows_of_port(unwanted_udp).len(), 0);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for port in wanted_ports {
        assert_eq!(collected.flow(port, wanted.into())["in_bytes"], 1008);
    }
    let of = |port: u16| collected.flows().iter().filter(|f| f["dst_port"] == port || f["src_port"] == port).count();
    assert_eq!((of(unwanted), of(unwanted_udp), of(wanted_udp)), (0, 0, 1));
}

/// Each by another way to say it: nothing of loopback, and all of it.
#[test]
fn loopback_networks_and_protocols() {
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let (_echo, udp, _) = serve("udp_echo", "127.0.0.1");
    for (arguments, sees) in [
        (&["-l"][..], [false, false]),
        (&["--ignore", "loopback"], [false, false]),
        (&["--ignore", "network=127.0.0.0/8"], [false, false]),
        (&["--ignore", "network=::ffff:127.0.0.0/104"], [false, false]),
        (&["--only", "network=10.0.0.0/8"], [false, false]),
        (&["--only", "network=10.0.0.0/8", "--only", "network=127.0.0.1"], [true, true]),
        (&["--only", "loopback"], [true, true]),
        (&["--only", "loopback", "--ignore", "network=127.0.0.0/8"], [false, false]),
        (&["--ignore", "protocol=udp"], [true, false]),
        (&["--only", "protocol=udp"], [false, true]),
    ] {
        let mut agent = Agent::start(arguments);
        client(port, 100);
        udp_client(udp, 3);
        agent.settle();
        let open_or_over = |port: u16| {
            let wanted = |closed| FlowsArguments { port: vec![port], closed, ..FlowsArguments::default() };
            agent.flows(wanted(false)).len() + agent.flows(wanted(true)).len()
        };
        assert_eq!([port, udp].map(|port| open_or_over(port) > 0), sees, "{arguments:?}");
        // What is seen is not counted; other traffic of the host may be.
        let counted = [ignored(&agent, "tcp_sockets") >= 2, ignored(&agent, "udp_packets") >= 12];
        assert!((0..2).all(|i| sees[i] || counted[i]), "{arguments:?}: {counted:?}");
        agent.stop();
    }
}

/// What only the owners tell, when both are known.
#[test]
fn owners_are_left_out_when_they_are_known() {
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let there = Cgroup::new("sockeye-filter/inner");
    for (label, (rule, is_left_out)) in (1..).zip([
        ("process=brief", true),
        ("process=brie", false),
        ("cgroup=/sockeye-filter", true),
        ("cgroup=/sockeye-filter/inner/", true),
        ("cgroup=/sockeye-filt", false),
        ("user=0", true),
        ("user=nobody", false),
        ("pod=sockeye-filter", false),
    ]) {
        let (mut agent, collector) = exporting_agent_with(&["--ignore", rule]);
        let mut command = there.brief(port, 20, label);
        assert!(command.status().expect("brief").success());
        agent.settle();
        let shown = agent.flows(FlowsArguments { port: vec![port], closed: true, ..FlowsArguments::default() });
        let counted = ignored(&agent, "flows");
        agent.stop();
        let collected = collector.finish();
        collected.assert_clean();
        let exported = collected.flows().iter().filter(|flow| flow["dst_port"] == port).count();
        let expected = usize::from(!is_left_out);
        assert_eq!((exported, counted >= 1), (expected, is_left_out), "{rule}: {shown:?}");
    }
}

/// Another filter while connections are open: those that were left out can be seen again, as what they are.
#[test]
fn a_filter_that_is_taken_away_shows_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sockeye.toml");
    let (_server, port, _) = serve("serve", "127.0.0.1");
    fs::write(&path, format!("ignore = [\"port={port}\"]\n")).expect("a file");
    let mut agent = Agent::start(&["--config", &path.display().to_string()]);
    let mut talker = Traffic::start(None, &["talk_on", "127.0.0.1", &port.to_string(), "1000", "500"]);
    let _ = talker.says();
    agent.settle();
    assert_eq!(agent.flows_of_port(port).len(), 0);
    fs::write(&path, "").expect("a file");
    let answer = agent.ask(&Request::Reload).expect("an answer");
    assert_eq!(answer.rows("changes")[0]["key"], "ignore");
    talker.tell();
    let _ = talker.says();
    agent.settle();
    let flows = agent.flows_of_port(port);
    assert_eq!(flows.len(), 1, "{flows:?}");
    assert_eq!(flows[0]["before_agent"], "yes", "{flows:?}");
    client(port, 10);
    agent.settle();
    assert_eq!(agent.loss("close_untracked"), 0);
    agent.stop();
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let refused = |arguments: &[&str]| {
        let output =
            std::process::Command::new(sockeye_tests::program("sockeye")).args(arguments).output().expect("it");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, why) = refused(&["--ignore", "prot=5"]);
    assert!(code == Some(64) && why.contains("there is no kind \"prot\"") && why.contains("port=53"), "{code:?} {why}");
    let (code, why) = refused(&["--only", "port=0"]);
    assert!(code == Some(64) && why.contains("1 to 65535"), "{code:?} {why}");
}
