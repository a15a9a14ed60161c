//! The owner of a flow is the process that really uses the socket, however short it lives.

use std::collections::{HashMap, HashSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sockeye_ctl::Request;
use sockeye_tests::{
    Agent, Collector, PYTHON, Traffic, exporting_agent, here, program, serve, slowness, talk, wait_for,
};

struct Lab {
    agent: Agent,
    collector: Collector,
}

fn lab() -> Lab {
    let (agent, collector) = exporting_agent();
    Lab { agent, collector }
}

impl Lab {
    fn finish(mut self) -> sockeye_tests::Collected {
        self.agent.settle();
        self.agent.stop();
        let collected = self.collector.finish();
        collected.assert_clean();
        collected
    }
}

fn parent_of_this_test() -> u64 {
    std::process::id().into()
}

#[test]
fn two_thousand_processes_of_five_milliseconds() {
    let processes = 2000 / slowness() as usize;
    let lab = lab();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let address = format!("127.0.0.1:{port}");
    let mut expected = HashMap::new();
    for label in 0..processes {
        let child = Command::new(program("brief"))
            .args([&address, "5", &label.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("brief starts");
        let pid = child.id();
        let out = child.wait_with_output().expect("an end");
        let local: u64 = String::from_utf8_lossy(&out.stdout).trim().parse().expect("a port");
        expected.insert(local, (pid, label));
    }
    let losses = lab.agent.sum("rings", "lost");
    let collected = lab.finish();
    assert_eq!(losses, 0);
    let exe = program("brief").canonicalize().expect("a path").display().to_string();
    for (local, (pid, label)) in expected {
        let flow = collected.flow(local, port.into());
        assert_eq!(flow["src_pid"], pid, "{flow:#}");
        assert_eq!(flow["src_proc"], exe.as_str(), "{flow:#}");
        let cmdline = flow["src_cmdline"].as_str().expect("a command line");
        assert!(cmdline.ends_with(&format!("brief {address} 5 {label}")), "{flow:#}");
        assert_eq!(flow["src_user"], "root", "{flow:#}");
        assert_eq!(flow["src_father_pid"], parent_of_this_test(), "{flow:#}");
    }
}

#[test]
fn prefork_servers_children_own_their_connections() {
    let lab = lab();
    let (_server, port, said) = serve("prefork", "127.0.0.1");
    let children: Vec<u64> = said["children"].as_array().expect("a list").iter().filter_map(Value::as_u64).collect();
    let answers: Vec<Value> = (21_100..21_112)
        .map(|local| talk(&["ask_prefork", "127.0.0.1", &port.to_string(), &local.to_string()]))
        .collect();
    let collected = lab.finish();
    for answer in answers {
        let flow = collected.flow(answer["local"].as_u64().expect("a port"), port.into());
        assert_eq!(flow["dst_pid"], answer["child"], "{flow:#}");
        assert!(children.contains(&answer["child"].as_u64().expect("a pid")));
        assert_eq!(flow["dst_father_pid"], said["pid"], "{flow:#}");
    }
}

#[test]
fn a_connection_that_nobody_reads_from_belongs_to_its_own_listener() {
    let lab = lab();
    let (_server, port, said) = serve("reuseport", "127.0.0.1");
    let answers: Vec<Value> =
        (21_000..21_016).map(|local| talk(&["hear", "127.0.0.1", &port.to_string(), &local.to_string()])).collect();
    let collected = lab.finish();
    let mut heard = HashSet::new();
    for answer in answers {
        let flow = collected.flow(answer["local"].as_u64().expect("a port"), port.into());
        assert_eq!(flow["dst_pid"], answer["child"], "{flow:#}");
        assert_eq!(flow["dst_father_pid"], said["pid"], "{flow:#}");
        heard.insert(answer["child"].as_u64());
    }
    assert!(heard.len() > 1, "all connections went to the same listener, which proves nothing");
}

#[test]
fn a_passed_socket_belongs_to_the_one_that_reads_it() {
    let lab = lab();
    let (server, port, said) = serve("passed", "127.0.0.1");
    let client = talk(&["client", "127.0.0.1", &port.to_string(), "500", "300"]);
    let collected = lab.finish();
    let flow = collected.flow(client["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["dst_pid"], said["child"], "not the parent {}: {flow:#}", server.pid());
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&client["sent"], &client["received"]));
}

#[test]
fn a_thread_is_its_process() {
    let lab = lab();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let client = talk(&["threaded_client", "127.0.0.1", &port.to_string()]);
    let collected = lab.finish();
    let flow = collected.flow(client["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["src_pid"], client["pid"], "{flow:#}");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_named() {
    let lab = lab();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let client = talk(&["leader_gone", "127.0.0.1", &port.to_string()]);
    let collected = lab.finish();
    let flow = collected.flow(client["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["src_pid"], client["pid"], "{flow:#}");
    assert!(flow["src_cmdline"].as_str().is_some_and(|line| line.contains("leader_gone")), "{flow:#}");
    assert!(flow["src_proc"].as_str().is_some_and(|path| path.contains("/python3")), "{flow:#}");
}

#[test]
fn a_user_namespace_does_not_make_root() {
    let lab = lab();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    // root in there, and nobody on the host, who may not read where this clone lies
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-U", "-r", PYTHON, "-"])
        .args(["client", "127.0.0.1", &port.to_string(), "10", "10"])
        .stdin(std::fs::File::open(here("programs/traffic.py")).expect("the program"))
        .output()
        .expect("setpriv");
    let said: Value = serde_json::from_slice(&out.stdout).expect("what it did");
    let collected = lab.finish();
    let flow = collected.flow(said["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["src_uid"], 65534, "{flow:#}");
}

/// Rows of `ctl ports` for a port.
fn listeners(agent: &Agent, port: u64) -> Vec<Map<String, Value>> {
    let answer = agent.ask(&Request::Ports).expect("ports");
    let rows: Vec<_> = answer.tables.last().expect("a table").objects().collect();
    rows.iter().filter(|row| row["port"] == port).cloned().collect()
}

/// Daemons make their sockets as root, and then become what they are.
#[test]
fn a_daemon_is_who_serves_and_not_who_made_its_sockets() {
    for mode in ["drop", "fork", "rename"] {
        let lab = lab();
        let mut daemon = Traffic::odd(None, &["daemon", mode, "0"]);
        let serves = daemon.says();
        let port = serves["port"].as_u64().expect("a port");
        let mut client = Traffic::odd(None, &["ask_daemon", &port.to_string()]);
        let said = client.says();
        let user = if mode == "drop" { "www-data" } else { "root" };
        let name = if mode == "rename" { "renamed" } else { "python3" };
        let is_right = |row: &Map<String, Value>, side: &str| {
            row.get(&format!("{side}pid")) == Some(&serves["pid"])
                && row.get(&format!("{side}user")) == Some(&json!(user))
                && row.get(&format!("{side}process")) == Some(&json!(name))
        };
        let mut last = (Vec::new(), Vec::new());
        wait_for("the daemon behind its ports and flows", Duration::from_secs(15), || {
            last = (listeners(&lab.agent, port), lab.agent.flows_of_port(port as u16));
            let ports = last.0.len() == 2 && last.0.iter().all(|row| is_right(row, ""));
            let flows = last.1.len() == 2 && last.1.iter().all(|row| is_right(row, "responder_"));
            (ports && flows).then_some(())
        });
        let collected = lab.finish();
        for local in [&said["tcp"], &said["udp"]] {
            let flow = collected.flow(local.as_u64().expect("a port"), port);
            assert_eq!((&flow["dst_pid"], &flow["dst_user"]), (&serves["pid"], &json!(user)), "{mode}: {flow:#}");
        }
    }
}

/// The parent accepts, a child writes, and nobody ever reads: the child has the descriptor.
#[test]
fn a_stream_that_nobody_reads_from_belongs_to_who_holds_it() {
    let lab = lab();
    let mut server = Traffic::odd(None, &["streams", "0"]);
    let port = server.says()["port"].as_u64().expect("a port");
    let mut client = Traffic::odd(None, &["listen_to_stream", &port.to_string()]);
    let local = client.says()["local"].as_u64().expect("a port");
    let child = server.says()["pid"].clone();
    wait_for("the child as the owner", Duration::from_secs(6), || {
        lab.agent.flows_of_port(port as u16).first().filter(|flow| flow["responder_pid"] == child).map(|_| ())
    });
    lab.agent.settle();
    let flow = lab.finish();
    assert_eq!(flow.flow(local, port)["dst_pid"], child);
}

/// Helpers that take turns: the owner is who reads now, however often it has changed.
#[test]
fn twenty_readers_one_after_another() {
    let lab = lab();
    let mut program = Traffic::odd(None, &["readers", "0", "20"]);
    let last = program.says();
    let local = last["local"].as_u64().expect("a port");
    wait_for("the last reader as the owner", Duration::from_secs(6), || {
        lab.agent.flows_of_port(local as u16).first().filter(|flow| flow["responder_pid"] == last["pid"]).map(|_| ())
    });
    drop(program);
    let collected = lab.finish();
    assert_eq!(collected.flow(local, last["port"].as_u64().expect("a port"))["dst_pid"], last["pid"]);
}

/// The first reply after the start names processes that are older than the agent.
#[test]
fn older_processes_are_named_at_once() {
    let (server, port, _) = serve("serve", "127.0.0.1");
    let mut old = Traffic::start(None, &["talk_on", "127.0.0.1", &port.to_string(), "10", "20"]);
    old.says();
    let agent = Agent::start(&[]);
    let flows = agent.flows_of_port(port);
    assert_eq!(flows.len(), 1, "{flows:#?}");
    let shown = ["responder_process", "before_agent"].map(|column| flows[0].get(column).and_then(Value::as_str));
    assert_eq!(shown, [Some("python3"), Some("yes")], "{flows:#?}");
    assert_eq!(flows[0]["responder_pid"], server.pid());
    let mut ctl = Command::new(program("ctl"));
    ctl.arg("--socket").arg(agent.socket()).args(["flows", "--port", &port.to_string()]);
    let text = String::from_utf8(ctl.output().expect("ctl runs").stdout).expect("text");
    assert!(text.contains("> "), "its age is not known, only that it is more: {text}");
}
