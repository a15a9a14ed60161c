//! Another configuration without a restart: nothing that is open is lost, what is wrong changes nothing, and what needs a restart
//! is named.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use sockeye_ctl::protocol::Request;
use sockeye_tests::{Agent, Collector, Traffic, free_port, serve, wait_for};

fn reload(agent: &Agent) -> Vec<Map<String, Value>> {
    agent.ask(&Request::Reload).expect("an answer").rows("changes")
}

fn in_force(agent: &Agent, key: &str) -> Map<String, Value> {
    let rows = agent.ask(&Request::Config).expect("an answer").rows("config");
    rows.into_iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("no {key}"))
}

fn write(path: &Path, zmq: &[u16], more: &str) {
    let endpoints: Vec<String> = zmq.iter().map(|port| format!("\"tcp://127.0.0.1:{port}c\"")).collect();
    fs::write(path, format!("zmq = [{}]\n{more}", endpoints.join(", "))).expect("a file");
}

#[test]
fn a_collector_is_added_and_another_taken_away_while_flows_are_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sockeye.toml");
    let ports = [free_port(), free_port(), free_port()];
    let [first, kept, added] = ports.map(|port| Collector::start(port, 120, &[]));
    write(&path, &ports[..2], "report_interval = 2\n");
    let mut agent = Agent::start(&["--config", &path.display().to_string()]);
    agent.wait_connected();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut talker = Traffic::start(None, &["talk_on", "127.0.0.1", &port.to_string(), "1000", "500"]);
    let source = talker.says()["local"].as_u64().expect("a port");
    agent.settle();

    write(&path, &ports[1..], "report_interval = 1\nring_kib = 1024\n");
    let changes = reload(&agent);
    let applies = |key: &str| changes.iter().find(|row| row["key"] == key).map(|row| row["applies"].clone());
    assert_eq!(applies("zmq"), Some("at once".into()), "{changes:?}");
    assert_eq!(applies("report_interval"), Some("at once".into()));
    assert_eq!((applies("ring_kib"), changes.len()), (Some("after a restart".into()), 3));
    assert_eq!(in_force(&agent, "report_interval")["value"], "1");
    let ring = in_force(&agent, "ring_kib");
    assert_eq!((ring.get("value"), ring.get("next_start")), (None, Some(&Value::from("1024"))));
    agent.wait_connected();
    talker.tell();
    let _ = talker.says();
    talker.tell();
    talker.wait();
    agent.settle();
    agent.stop();
    let [first, kept, added] = [first, kept, added].map(Collector::finish);
    for collected in [&first, &kept, &added] {
        collected.assert_clean();
    }
    assert_eq!(kept.flow(source, port.into())["in_bytes"], 1508, "all of it");
    assert_eq!(first.flow(source, port.into())["in_bytes"], 1008, "up to the reload");
    assert!(added.flow(source, port.into())["in_bytes"].as_u64() >= Some(500), "from the reload on");
}

#[test]
fn a_wrong_configuration_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sockeye.toml");
    let zmq = free_port();
    let collector = Collector::start(zmq, 60, &[]);
    write(&path, &[zmq], "");
    let mut agent = Agent::start(&["--config", &path.display().to_string(), "--scan-interval", "3"]);
    agent.wait_connected();
    let pid = Pid::from_raw(i32::try_from(agent.pid()).expect("a pid"));
    let refused = |text: &str| {
        fs::write(&path, text).expect("a file");
        agent.ask(&Request::Reload).expect_err("it is wrong").to_string()
    };
    let why = refused("zmqq = 1\n");
    assert!(why.contains("`zmqq` in line 1: did you mean `zmq`?") && why.contains("stays in force"), "{why}");
    let why = refused("\nidle_timeout = \"soon\"\n");
    assert!(why.contains("line 2: `idle_timeout`"), "{why}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let why = refused(&format!("zmq = \"tcp://{}\"\n", taken.local_addr().expect("an address")));
    assert!(why.contains("the port is in use") && why.contains("stays in force"), "{why}");
    assert!(in_force(&agent, "zmq")["value"].as_str().is_some_and(|value| value.contains(&zmq.to_string())));
    // A signal has no answer: the log has it.
    kill(pid, Signal::SIGHUP).expect("it lives");
    wait_for("a second refusal", Duration::from_secs(10), || {
        (agent.stderr().matches("cannot reload: cannot bind").count() == 2).then_some(())
    });
    write(&path, &[zmq], "log_level = \"error\"\nscan_interval = 5\n");
    kill(pid, Signal::SIGHUP).expect("it lives");
    wait_for("the level", Duration::from_secs(10), || {
        (in_force(&agent, "log_level").get("value") == Some(&"error".into())).then_some(())
    });
    // The command line overrides the file, still.
    let scan = in_force(&agent, "scan_interval");
    assert_eq!((&scan["value"], &scan["from"]), (&"3".into(), &"command line".into()));
    assert_eq!(reload(&agent).len(), 0);
    agent.stop();
    collector.finish().assert_clean();
}
