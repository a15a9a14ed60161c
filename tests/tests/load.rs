//! Nothing is lost under load, and ending the agent at any moment leaves nothing behind.

use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;
use sockeye_tests::engines::Cgroup;
use sockeye_tests::net::{ADDRESSES, Pair};
use sockeye_tests::{
    Agent, Collected, Guard, Traffic, exporting_agent, exporting_agent_with, output, serve, slowness, wait_for,
};

/// Ids of the kernel programs that are ours, by name.
fn our_programs() -> HashSet<u32> {
    let all = sockeye_bpf::programs::loaded().expect("a list");
    all.into_iter().filter(|(name, _)| name.starts_with("se_")).map(|(_, id)| id).collect()
}

/// Each connection of a storm is one flow with all bytes and both processes. `losses`: what the agent says that it has lost.
fn assert_whole(collected: &Collected, port: u16, connections: u64, losses: &str) {
    collected.assert_clean();
    let flows: Vec<&Value> = collected.flows().iter().filter(|f| f["dst_port"] == port).collect();
    assert_eq!(flows.len() as u64, connections, "{losses}");
    for flow in flows {
        assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&Value::from(8), &Value::from(1)), "{flow:#}\n{losses}");
        assert!(flow["src_pid"].is_u64() && flow["dst_pid"].is_u64(), "{flow:#}\n{losses}");
    }
}

#[test]
fn ten_thousand_short_connections_at_full_speed() {
    let connections = 10_000 / u64::from(slowness()) / 2 * 2;
    let (mut agent, collector) = exporting_agent();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let (port_text, share) = (port.to_string(), (connections / 2).to_string());
    let mut storms: Vec<Traffic> = ["127.0.1.1", "127.0.1.2"]
        .map(|source| Traffic::start(None, &["storm", "127.0.0.1", &port_text, &share, source]))
        .into();
    let done: u64 = storms.iter_mut().map(|storm| storm.says()["done"].as_u64().expect("a count")).sum();
    assert_eq!(done, connections);
    agent.settle();
    // All from one answer; what the agent and the host do meanwhile may be on its way.
    let (offered, lost) = wait_for("balanced counters", Duration::from_secs(10), || {
        let record_counters = agent.sums("rings", ["offered", "delivered", "overflow", "lost"]);
        let [offered, delivered, overflow, lost] = record_counters;
        assert!(offered >= delivered + overflow + lost, "{record_counters:?}");
        (offered - delivered - overflow - lost < 50).then_some((offered, lost))
    });
    assert!(offered >= 2 * connections, "a close on each side: {offered}");
    assert_eq!((lost, agent.loss("flow_vanished"), agent.loss("flow_table_full")), (0, 0, 0));
    assert_eq!(agent.sum("exports", "dropped"), 0);
    let losses = agent.losses();
    agent.stop();
    assert_whole(&collector.finish(), port, connections, &losses);
}

#[test]
fn ending_the_agent_under_load_leaves_nothing_and_breaks_nothing() {
    let before = our_programs();
    let storm_size = 4000 / slowness();
    let (server, port, _) = serve("serve", "127.0.0.1");
    let port_text = port.to_string();
    let mut held: Vec<Traffic> =
        (0..20).map(|_| Traffic::start(None, &["talk_on", "127.0.0.1", &port_text, "1000", "500"])).collect();
    let locals: Vec<Value> = held.iter_mut().map(|t| t.says()["local"].clone()).collect();
    for (how, source) in [("TERM", "127.0.1.3"), ("KILL", "127.0.1.4")] {
        let mut agent = Agent::start(&[]);
        assert!(our_programs().len() > before.len());
        let mut storm = Traffic::start(None, &["storm", "127.0.0.1", &port_text, &storm_size.to_string(), source]);
        std::thread::sleep(Duration::from_millis(300));
        if how == "TERM" {
            agent.stop()
        } else {
            agent.kill()
        }
        // The kernel frees programs after a grace period.
        wait_for("end of our programs", Duration::from_secs(5), || our_programs().is_subset(&before).then_some(()));
        assert_eq!(storm.says()["done"], storm_size, "no connection breaks after SIG{how}");
        let began = Instant::now();
        let again = Agent::start(&[]);
        let shown: HashSet<String> = wait_for("all live flows", Duration::from_secs(3), || {
            let flows = again.flows_of_port(port);
            let open: HashSet<String> = flows
                .iter()
                .filter(|f| f["state"] == "open" && f["responder_pid"] == server.pid())
                .filter_map(|f| Some(f["initiator"].as_str()?.to_owned()))
                .collect();
            (open.len() >= 20).then_some(open)
        });
        assert!(began.elapsed() < Duration::from_secs(3) * slowness(), "{:?}", began.elapsed());
        for local in &locals {
            assert!(shown.contains(&format!("127.0.0.1:{local}")), "{local} is missing in {shown:?}");
        }
    }
    for mut traffic in held {
        traffic.tell();
        assert_eq!(traffic.says()["sent"], 1508);
        traffic.tell();
        traffic.wait();
    }
}

/// Threads that drain the rings.
fn workers(agent: &Agent) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("the agent's threads");
    let name = |task: &Path| fs::read_to_string(task.join("comm")).unwrap_or_default();
    let tasks = tasks
        .filter_map(|task| Some(task.ok()?.path()))
        .filter(|task| name(task).trim().strip_prefix("sockeye-w").is_some_and(|number| number.parse::<u32>().is_ok()));
    tasks.filter_map(|task| Some(task.file_name()?.to_str()?.to_owned())).collect()
}

/// Keeps a CPU busy.
fn busy(cpu: usize) -> Guard {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string(), "sh", "-c", "while :; do :; done"]);
    Guard(command.spawn().expect("taskset starts"))
}

/// A delta ends between the closes of two ends, and the next one comes seconds later.
#[test]
fn starved_workers_tell_of_both_ends_of_a_flow_at_once() {
    let connections = 8000 / u64::from(slowness());
    let (mut agent, collector) = exporting_agent();
    let (_server, port, _) = serve("serve", "127.0.0.1");
    for worker in workers(&agent) {
        let _ = output("chrt", &["--idle", "--pid", "0", &worker]);
    }
    let cpus = std::thread::available_parallelism().expect("CPUs").get();
    let load: Vec<Guard> = (0..cpus).map(busy).collect();
    let mut storm =
        Traffic::start(None, &["storm", "127.0.0.1", &port.to_string(), &connections.to_string(), "127.0.1.5"]);
    assert_eq!(storm.says()["done"], connections);
    drop(load);
    agent.settle();
    let losses = agent.losses();
    agent.stop();
    assert_whole(&collector.finish(), port, connections, &losses);
}

/// Datagrams from made-up addresses fill UDP's half of a small table: each is counted, and no TCP connection is left out.
#[test]
fn a_flood_from_made_up_addresses_keeps_no_tcp_connection_out() {
    const DATAGRAMS: u64 = 30_000;
    const CONNECTIONS: u64 = 1500;
    let (mut agent, collector) = exporting_agent_with(&["--flows-max", "4000"]);
    let pair = Pair::veth();
    let mut sink = Traffic::start(Some(&pair.names[1]), &["udp_sink", ADDRESSES[1], "9"]);
    sink.says();
    let mut flood =
        Traffic::odd(Some(&pair.names[0]), &["flood", ADDRESSES[0], ADDRESSES[1], "9", &DATAGRAMS.to_string()]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut storm = Traffic::start(None, &["storm", "127.0.0.1", &port.to_string(), &CONNECTIONS.to_string()]);
    assert_eq!(storm.says()["done"], CONNECTIONS);
    let said = flood.says();
    let flows = agent.figure("agent", "flows").as_u64().expect("a number");
    // An eighth more, while flows that were given up wait for their last report.
    assert!(flows <= 4500, "{flows} flows");
    wait_for("the end of the flood's flows", Duration::from_secs(60), || {
        (agent.sum("flows", "flows") < 1000 && agent.sum("exports", "queued") == 0).then_some(())
    });
    let given_up = agent.loss("udp_given_up") + agent.loss("udp_other_peers");
    assert_eq!((agent.loss("flow_table_full"), given_up > 0), (0, true));
    agent.settle();
    let losses = agent.losses();
    sink.dismiss();
    agent.stop();
    let collected = collector.finish();
    assert_whole(&collected, port, CONNECTIONS, &losses);
    let flows: Vec<&Value> = collected.flows().iter().filter(|f| f["dst_port"] == 9).collect();
    let sum = |column: &str| flows.iter().filter_map(|flow| flow[column].as_u64()).sum::<u64>();
    let size = said["size"].as_u64().expect("bytes");
    assert_eq!((sum("in_pkts"), sum("in_bytes")), (DATAGRAMS, DATAGRAMS * size), "in {} flows", flows.len());
}

#[test]
fn the_state_of_sockets_is_charged_to_no_cgroup() {
    const SOCKETS: i64 = 4000;
    setrlimit(Resource::RLIMIT_NOFILE, 8192, 8192).expect("more descriptors");
    let cgroup = Cgroup::of_memory("sockeye-test-charge");
    let agent = Agent::start_by(cgroup.command("sockeye"));
    agent.settle();
    let before = cgroup.kernel_bytes();
    let listeners: Vec<TcpListener> =
        (0..SOCKETS).map(|_| TcpListener::bind("127.0.0.1:0").expect("a listener")).collect();
    let more = cgroup.kernel_bytes() - before;
    wait_for("all of them", Duration::from_secs(10), || {
        (agent.figure("agent", "listeners").as_i64()? >= SOCKETS).then_some(())
    });
    assert!(more < SOCKETS * 100, "{more} bytes more for {} sockets", listeners.len());
}
