//! The agent in a container: what it cannot see from there, it says.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use sockeye_ctl::Request;
use sockeye_tests::{Agent, Collector, Traffic, free_port, program, serve, wait_for};

fn limits(agent: &Agent) -> Vec<String> {
    let answer = agent.ask(&Request::Stats).expect("an answer");
    let rows = answer.rows("limits");
    rows.iter().filter_map(|row| row["name"].as_str()).map(str::to_owned).collect()
}

#[test]
fn on_a_host_nothing_is_out_of_sight() {
    let agent = Agent::start(&["--log-level", "warn"]);
    assert_eq!((limits(&agent), agent.stderr()), (Vec::new(), String::new()));
}

/// Without the host's pid namespace, processes that are older than the agent cannot be looked at.
#[test]
fn without_the_hosts_processes() {
    let (server, port, _) = serve("serve", "127.0.0.1");
    let mut old = Traffic::start(None, &["talk_on", "127.0.0.1", &port.to_string(), "10", "20"]);
    let local = old.says()["local"].as_u64().expect("a port");
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(program("sockeye"));
    let collecting_at = free_port();
    let collector = Collector::start(collecting_at, 120, &[]);
    command.args(["--zmq", &format!("tcp://127.0.0.1:{collecting_at}c")]);
    let agent = Agent::start_by(command);
    agent.wait_connected();
    assert_eq!(limits(&agent), ["pid namespace"]);
    assert!(agent.stderr().contains("--pid=host") && agent.stderr().contains("hostPID: true"), "{}", agent.stderr());
    old.tell();
    old.says();
    let flow = wait_for("the older connection", std::time::Duration::from_secs(5), || {
        agent.flows_of_port(port).first().cloned()
    });
    assert_eq!(flow["initiator"], format!("127.0.0.1:{local}"), "{flow:#?}");
    assert_eq!((flow["before_agent"].as_str(), &flow["responder_pid"]), (Some("yes"), &json!(server.pid())));
    let process = flow.get("responder_process").and_then(Value::as_str);
    assert_eq!(process, Some("python3"), "known by what the kernel told when it read");
    old.tell();
    old.wait();
    wait_for("its report", std::time::Duration::from_secs(10), || {
        (agent.figure("exports", "records").as_u64() >= Some(1)).then_some(())
    });
    // Of the report that was just sent.
    agent.settle();
    drop(agent);
    let collected = collector.finish();
    assert_eq!(collected.flow(local, port.into())["dst_pid"], server.pid());
}

/// A cgroup below the root of version 2, of which the agent sees a part.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let root = sockeye_bpf::preflight::find_cgroup2().expect("cgroup v2");
        let dir = root.join(format!("sockeye-test-{}", std::process::id()));
        fs::create_dir(&dir).expect("a cgroup");
        Self(dir)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Docker's default on cgroup v2: the container's /sys/fs/cgroup is its own part of the tree.
#[test]
fn without_the_hosts_cgroups() {
    let cgroup = Cgroup::new();
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c 'umount -l /sys/fs/cgroup/unified /sys/fs/cgroup \
         2>/dev/null; mount -t cgroup2 own /sys/fs/cgroup && exec \"$0\" \"$@\"' {} \"$@\"",
        cgroup.0.display(),
        program("sockeye").display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]);
    let mut agent = Agent::start_by(command);
    assert_eq!(limits(&agent), ["cgroup root"]);
    assert!(agent.stderr().contains("UDP") && agent.stderr().contains("--cgroupns=host"), "{}", agent.stderr());
    agent.stop();
}
