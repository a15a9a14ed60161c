//! What an analyst sees in ntopng for as long as a connection lives: whose it is, how fast it is, also after a restart.

use std::time::Duration;

use serde_json::Value;
use sockeye_tests::{Agent, Collected, Collector, Guard, Traffic, exporting_agent_with, free_port, serve, wait_for};

/// One second more than a record may take to be seen.
const MARGIN_S: f64 = 1.0;

fn port_of(said: &Value) -> u64 {
    said["local"].as_u64().expect("a port")
}

/// Throughputs from the second record on, bits per second.
fn throughputs(flow: &Value) -> Vec<f64> {
    let all = flow["throughput_bps"].as_array().expect("a list");
    all.iter().skip(1).filter_map(Value::as_f64).collect()
}

fn number(flow: &Value, name: &str) -> f64 {
    flow[name].as_f64().unwrap_or_else(|| panic!("{name}: {flow:#}"))
}

fn assert_both_sides(flow: &Value, client: u32, server: u32) {
    assert_eq!(
        (flow["src_pid"].as_u64(), flow["dst_pid"].as_u64()),
        (Some(client.into()), Some(server.into())),
        "{flow:#}"
    );
}

#[test]
fn idle_slow_and_busy_connections_keep_their_processes_and_show_their_throughput() {
    const REPORT_S: f64 = 4.0;
    const ACTIVE_S: f64 = 9.0;
    const SLOW_BPS: f64 = 160_000.0;
    const BUSY_BPS: f64 = 50_000_000.0;
    let (server, port, _) = serve("serve", "127.0.0.1");
    let (sink, sink_port, _) = serve("udp_sink", "127.0.0.1");
    let port = port.to_string();
    // One is older than the agent.
    let mut older = Traffic::start(None, &["client", "127.0.0.1", &port, "100", "100", "hold"]);
    let older_port = port_of(&older.says());
    let (_agent, collector) = exporting_agent_with(&["--report-interval", "4", "--active-timeout", "9"]);
    let mut idle = Traffic::start(None, &["client", "127.0.0.1", &port, "100", "100", "hold"]);
    let idle_port = port_of(&idle.says());
    let mut steady: Vec<(Traffic, f64)> = [SLOW_BPS, BUSY_BPS]
        .map(|bps| (Traffic::start(None, &["steady", "127.0.0.1", &port, &bps.to_string()]), bps))
        .into();
    let mut datagrams =
        Traffic::start(None, &["udp_steady", "127.0.0.1", &sink_port.to_string(), &SLOW_BPS.to_string()]);
    let steady_ports: Vec<u64> = steady.iter_mut().map(|(traffic, _)| port_of(&traffic.says())).collect();
    let datagram_port = port_of(&datagrams.says());
    std::thread::sleep(Duration::from_secs(31));
    let collected = collector.finish();
    collected.assert_clean();
    let port: u64 = port.parse().expect("a number");
    for (traffic, local) in [(&older, older_port), (&idle, idle_port)] {
        let flow = collected.flow(local, port);
        assert_both_sides(flow, traffic.pid(), server.pid());
        assert!(number(flow, "records") >= 3.0 && number(flow, "max_gap_s") <= ACTIVE_S + MARGIN_S, "{flow:#}");
    }
    // What was there before has memory figures, because /proc had to be asked about it.
    let flow = collected.flow(older_port, port);
    assert!(number(flow, "src_proc_memory") > 1000.0 && number(flow, "src_proc_memory_peak") > 1000.0, "{flow:#}");
    let transfers =
        steady.iter().zip(&steady_ports).map(|((traffic, bps), local)| (traffic, *bps, *local, port, &server));
    for (traffic, bps, local, port, server) in
        transfers.chain([(&datagrams, SLOW_BPS, datagram_port, sink_port.into(), &sink)])
    {
        let flow = collected.flow(local, port);
        assert_both_sides(flow, traffic.pid(), server.pid());
        assert!(number(flow, "records") >= 7.0 && number(flow, "max_gap_s") <= REPORT_S + MARGIN_S, "{flow:#}");
        let shown = throughputs(flow);
        assert!(shown.iter().all(|shown| (shown - bps).abs() <= bps / 10.0), "{bps} bit/s: {shown:?}");
    }
}

/// Opens so many connections of one process.
fn hold(port: &str, connections: u32, size: u32) -> (Traffic, Vec<u64>, u64) {
    let mut many = Traffic::start(None, &["hold_many", "127.0.0.1", port, &connections.to_string(), &size.to_string()]);
    let said = many.says();
    let locals = said["locals"].as_array().expect("ports").iter().filter_map(Value::as_u64).collect();
    (many, locals, said["sent"].as_u64().expect("a count"))
}

#[test]
fn a_collector_that_is_restarted_under_load_has_all_open_connections_within_five_seconds() {
    const CONNECTIONS: u32 = 200;
    let zmq = free_port();
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{zmq}c")]);
    let before = Collector::start(zmq, 120, &[]);
    agent.wait_connected();
    let (server, port, _) = serve("serve", "127.0.0.1");
    let text = port.to_string();
    let (mut many, locals, first) = hold(&text, CONNECTIONS, 1000);
    assert_eq!(locals.len(), CONNECTIONS as usize);
    agent.settle();
    let before = before.finish();
    wait_for("notice that it is gone", Duration::from_secs(10), || {
        (agent.figure("exports", "connected") == "no").then_some(())
    });
    // Between the two collectors, and while the second one joins, bytes go on and short connections come and go.
    many.tell();
    let second = many.says()["sent"].as_u64().expect("a count");
    let mut storm = Traffic::start(None, &["storm", "127.0.0.1", &text, "20000", "127.0.5.1"]);
    let after = Collector::start(zmq, 120, &[]);
    agent.wait_connected();
    agent.settle();
    many.tell();
    let third = many.says()["sent"].as_u64().expect("a count");
    let _ = storm.says();
    // Open flows have their turn within ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    let after = after.finish();
    agent.stop();
    let port = u64::from(port);
    for collected in [&before, &after] {
        collected.assert_clean();
    }
    for local in locals {
        let (old, new) = (before.flow(local, port), after.flow(local, port));
        for flow in [old, new] {
            assert_both_sides(flow, many.pid(), server.pid());
        }
        assert!(number(new, "first_record_s") <= 5.0, "{new:#}");
        // Its beginning is that of the connection, not that of the collector.
        assert!(number(new, "first") <= number(old, "first") + 1.0, "{old:#} {new:#}");
        let bytes = [old, new].map(|flow| flow["in_bytes"].as_u64().expect("a count"));
        assert_eq!((bytes[0], bytes[1]), (first, second + third), "no byte is lost or counted twice");
    }
    assert_eq!(agent_drops(&after), 0);
}

/// Reports that the agent had to drop, as it tells the collector.
fn agent_drops(collected: &Collected) -> u64 {
    collected.0["last_event"]["drops"]["export_queue_full"].as_u64().expect("a count")
}

#[test]
fn a_program_in_a_folder_that_is_named_like_a_tag_runs_no_script() {
    const TAG: &str = "<img src=x onerror=alert('1')>&`\"";
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().join(TAG);
    std::fs::create_dir(&folder).expect("a folder of that name");
    let hostile = folder.join("brief");
    std::fs::copy(sockeye_tests::program("brief"), &hostile).expect("a copy");
    let (mut agent, collector) = exporting_agent_with(&[]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut child = std::process::Command::new(&hostile);
    child.args([&format!("127.0.0.1:{port}"), "8000", "77"]).stdout(std::process::Stdio::null());
    let _child = Guard(child.spawn().expect("brief"));
    agent.settle();
    let socket = agent.socket().display().to_string();
    let ctl = sockeye_tests::program("ctl").display().to_string();
    let shown = sockeye_tests::output(&ctl, &["--socket", &socket, "--json", "flows", "--port", &port.to_string()]);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(10_077, port.into());
    let safe = "＜img src=x onerror=alert(＇1＇)＞＆｀＂/brief";
    for element in ["src_proc", "src_cmdline", "Client Command Line"] {
        assert!(flow[element].as_str().is_some_and(|text| text.contains(safe)), "{element}: {flow:#}");
    }
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert!(
        shown.to_string().contains(&format!("{}/brief", TAG.replace('"', "\\\""))),
        "ctl shows the truth: {shown:#}"
    );
}
