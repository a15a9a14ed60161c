//! The road to ntopng: encryption, collectors that come and go, both dialects.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use sockeye_tests::{Agent, Collector, Traffic, free_port, serve, talk, wait_for};

#[test]
fn the_right_key_works_and_nothing_else_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut cases = Vec::new();
    for what in ["right, as hex", "right, as a file", "wrong", "none"] {
        let port = free_port();
        let key_file = dir.path().join(port.to_string());
        let collector = Collector::start(port, 36, &["--curve", "--key-file", key_file.to_str().expect("a path")]);
        let key = fs::read_to_string(&key_file).expect("the collector's key");
        let wrong = zmq::z85_encode(&zmq::CurveKeyPair::new().expect("a pair").public_key).expect("a key");
        let hex: String = key.bytes().map(|b| format!("{b:02x}")).collect();
        let endpoint = format!("tcp://127.0.0.1:{port}c");
        let key_path = key_file.to_str().expect("a path").to_owned();
        let given = match what {
            "right, as hex" => Some(hex),
            "right, as a file" => Some(key_path),
            "wrong" => Some(wrong),
            _ => None,
        };
        let mut args = vec!["--zmq", endpoint.as_str()];
        if let Some(key) = &given {
            args.extend(["--zmq-encryption-key", key.as_str()]);
        }
        cases.push((what, collector, Agent::start(&args)));
    }
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let _ = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    for (what, collector, agent) in cases {
        let got = collector.wait();
        let complaint = agent.stderr();
        if what.starts_with("right") {
            got.assert_clean();
            assert!(got.flows().iter().any(|f| f["dst_port"] == port), "{what}: {:#}", got.0);
            assert!(!complaint.contains("nobody has subscribed"), "{what}: {complaint}");
        } else {
            assert_eq!(got.0["messages"], 0, "{what}");
            assert!(complaint.contains("nobody has subscribed") && complaint.contains("30 s"), "{what}: {complaint}");
        }
    }
}

#[test]
fn a_collector_that_comes_late_goes_and_comes_back() {
    let zmq = free_port();
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{zmq}c")]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut open = Traffic::start(None, &["client", "127.0.0.1", &port.to_string(), "20", "30", "hold"]);
    let said = open.says();
    let early = talk(&["client", "127.0.0.1", &port.to_string(), "1", "1"]);
    wait_for("a report that waits", Duration::from_secs(10), || (agent.sum("exports", "queued") >= 1).then_some(()));
    // It starts after the flows: what was waiting for it arrives.
    let first = Collector::start(zmq, 6, &[]).wait();
    first.assert_clean();
    let flow = first.flow(early["local"].as_u64().expect("a port"), port.into());
    assert_eq!((&flow["in_bytes"], &flow["src_pid"]), (&early["sent"], &early["pid"]));
    assert!(first.0["events"].as_u64() >= Some(1));
    wait_for("notice that it is gone", Duration::from_secs(10), || {
        (agent.figure("exports", "connected") == "no").then_some(())
    });
    let alone = talk(&["client", "127.0.0.1", &port.to_string(), "2", "2"]);
    wait_for("a report that waits", Duration::from_secs(10), || (agent.sum("exports", "queued") >= 1).then_some(()));
    let second = Collector::start(zmq, 120, &[]);
    agent.wait_connected();
    open.wait(); // the long flow ends now, and a new ntopng has not been told whose it is
    agent.settle();
    let second = second.finish();
    second.assert_clean();
    let flow = second.flow(alone["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["in_bytes"], alone["sent"]);
    let flow = second.flow(said["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["src_pid"], said["pid"], "identity is sent again to a collector that came back: {flow:#}");
    assert_eq!(agent.sum("exports", "dropped"), 0);
    agent.stop();
}

#[test]
fn two_exporters_and_a_bound_endpoint() {
    let (a, b) = (free_port(), free_port());
    let mut agent =
        Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{a}c"), "--zmq", &format!("tcp://127.0.0.1:{b}")]);
    let context = zmq::Context::new();
    let subscriber = context.socket(zmq::SUB).expect("a socket");
    subscriber.set_subscribe(b"flow").expect("subscribes");
    subscriber.set_rcvtimeo(10_000).expect("a timeout");
    subscriber.connect(&format!("tcp://127.0.0.1:{b}")).expect("connects");
    let collector = Collector::start(a, 120, &[]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let said = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    let message = subscriber.recv_multipart(0).expect("a message at the bound endpoint");
    assert_eq!((message.len(), &message[0][..5], &message[1][..2]), (2, &b"flow\0"[..], &[1u8, 1][..]));
    agent.settle();
    let collected = collector.finish();
    collected.assert_clean();
    let _ = collected.flow(said["local"].as_u64().expect("a port"), port.into());
    agent.stop();
}

#[test]
fn json_for_a_licensed_ntopng() {
    let port = free_port();
    let context = zmq::Context::new();
    let subscriber = context.socket(zmq::SUB).expect("a socket");
    subscriber.set_subscribe(b"flow").expect("subscribes");
    subscriber.set_rcvtimeo(1000).expect("a timeout");
    subscriber.bind(&format!("tcp://127.0.0.1:{port}")).expect("binds");
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{port}c"), "--zmq-format", "json"]);
    // libzmq subscribes when the application next asks for a message.
    assert!(subscriber.recv_multipart(0).is_err(), "nothing has happened yet");
    agent.wait_connected();
    let (server, server_port, _) = serve("serve", "127.0.0.1");
    let said = talk(&["client", "127.0.0.1", &server_port.to_string(), "1234", "4321"]);
    let began = Instant::now();
    let flow = loop {
        assert!(began.elapsed() < Duration::from_secs(10), "no flow");
        let Ok(message) = subscriber.recv_multipart(0) else { continue };
        assert_eq!((message[0].len(), message[0][16]), (28, 2), "a 28-byte header of version 2");
        let flows: Vec<Value> = serde_json::from_slice(&message[1]).expect("a JSON array");
        if let Some(flow) = flows.into_iter().find(|f| f["L4_DST_PORT"] == server_port) {
            break flow;
        }
    };
    assert_eq!(flow["LOCAL_PROCESS"]["PID"], said["pid"], "{flow:#}");
    assert_eq!(flow["LOCAL_PROCESS"]["UID_NAME"], "root");
    assert_eq!(flow["DST_PROC_PID"], server.pid());
    assert_eq!((&flow["IN_BYTES"], &flow["OUT_BYTES"]), (&said["sent"], &said["received"]));
    for key in ["SRC_PROC_CMDLINE", "DST_PROC_CMDLINE"] {
        assert!(flow[key].as_str().is_some_and(|line| line.contains("traffic.py")), "{key}: {flow:#}");
    }
    assert_eq!(flow["LOCAL_FATHER_PROCESS"]["PID"], std::process::id());
    assert_eq!(flow["DST_FATHER_PROC_PID"], std::process::id());
    // Flags of both sides, the latency, whose interval it is.
    assert_eq!((&flow["57550"], &flow["57551"], &flow["58051"]), (&0x1b.into(), &0x1b.into(), &1.into()), "{flow:#}");
    assert!(flow["SERVER_NW_LATENCY_MS"].as_f64() > Some(0.0), "{flow:#}");
    assert!(flow["SRC_PROC_PKG_NAME"].as_str().is_some_and(|package| package.starts_with("python3")), "{flow:#}");
    assert_eq!(flow["TCP"]["BYTES_ACKED"], said["sent"]);
    assert!(flow["TCP"]["RTT"].as_f64() > Some(0.0));
    assert!(!flow.as_object().expect("an object").keys().any(|key| key.starts_with("INTERFA")));
    agent.stop();
}

#[test]
fn without_a_collector_the_queue_is_bounded_and_drops_are_counted() {
    const EACH: u64 = 9_500;
    let zmq = free_port();
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{zmq}c")]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let (port_text, each) = (port.to_string(), EACH.to_string());
    let mut storms: Vec<Traffic> = ["127.0.4.1", "127.0.4.2"]
        .map(|source| Traffic::start(None, &["storm", "127.0.0.1", &port_text, &each, source]))
        .into();
    let done: u64 = storms.iter_mut().map(|storm| storm.says()["done"].as_u64().expect("a count")).sum();
    assert_eq!(done, 2 * EACH);
    agent.settle();
    let queued = agent.figure("exports", "queued").as_u64().expect("a count");
    assert!(queued <= 16_384, "{queued}");
    assert!(agent.sum("exports", "dropped") >= 2 * EACH - 16_384);
    let collector = Collector::start(zmq, 60, &[]);
    wait_for("empty queue", Duration::from_secs(20), || {
        (agent.figure("exports", "queued") == 0 && agent.figure("exports", "connected") == "yes").then_some(())
    });
    let dropped = agent.sum("exports", "dropped");
    let sent = agent.sum("exports", "records");
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    // Flows of the agent's own attempts to connect were queued and dropped, too.
    let arrived = collected.flows().iter().filter(|f| f["dst_port"] == port).count() as u64;
    let records = collected.0["records"].as_u64().expect("a count");
    assert!(records >= sent, "{sent} sent, {records} arrived");
    let missing = 2 * EACH - arrived;
    assert!(missing <= dropped && dropped <= missing + 100, "{arrived} arrived, {dropped} dropped, {queued} queued");
}
