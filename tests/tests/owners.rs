//! The owner of a flow is the process that really uses the socket, however short it lives.

use std::collections::{HashMap, HashSet};
use std::process::{Command, Stdio};

use serde_json::Value;
use sockeye_tests::{Agent, Collector, PYTHON, exporting_agent, here, program, serve, settle, slowness, talk};

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
        settle();
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
    // root in there, and nobody on the host
    let out = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "-U", "-r", PYTHON])
        .arg(here("programs/traffic.py"))
        .args(["client", "127.0.0.1", &port.to_string(), "10", "10"])
        .output()
        .expect("setpriv");
    let said: Value = serde_json::from_slice(&out.stdout).expect("what it did");
    let collected = lab.finish();
    let flow = collected.flow(said["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["src_uid"], 65534, "{flow:#}");
}
