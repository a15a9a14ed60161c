//! Programs that people run, seen by a collector that shares no code with the agent.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sockeye_tests::net::{ADDRESSES, Pair};
use sockeye_tests::{Collected, Guard, Traffic, exporting_agent, free_port, output, serve, talk, wait_for};

/// One side of a flow, as the test knows it.
struct Side<'a> {
    pid: u32,
    exe: &'a str,
    cmdline_part: &'a str,
    user: &'a str,
    parent: u32,
}

fn check_side(flow: &Value, side: &str, expected: &Side<'_>) {
    let get = |name: &str| &flow[&format!("{side}_{name}")];
    assert_eq!(get("pid"), expected.pid, "{flow:#}");
    assert_eq!(get("proc"), expected.exe, "{flow:#}");
    assert!(get("cmdline").as_str().is_some_and(|text| text.contains(expected.cmdline_part)), "{flow:#}");
    assert_eq!(get("user"), expected.user, "{flow:#}");
    let uid: u64 = output("id", &["-u", expected.user]).trim().parse().expect("a uid");
    assert_eq!(get("uid"), uid, "{flow:#}");
    assert_eq!(get("father_pid"), expected.parent, "{flow:#}");
    assert!(get("father_proc").as_str().is_some_and(|name| !name.is_empty()), "{flow:#}");
}

fn exe_of(pid: u32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).expect("a living process").display().to_string()
}

fn parent_of(pid: u32) -> u32 {
    output("ps", &["-o", "ppid=", "-p", &pid.to_string()]).trim().parse().expect("a pid")
}

fn wait_listening(port: u16) {
    wait_for("server", Duration::from_secs(10), || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
}

struct Nginx {
    master: Guard,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// A master as root with one worker as www-data, on IPv4 and IPv6.
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let config = dir.path().join("nginx.conf");
        let text = format!(
            "daemon off; user www-data; worker_processes 1; pid {0}/pid; error_log {0}/log;\n\
             events {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:{port}; listen [::1]:{port}; \
             location / {{ return 200 'hello'; }} }} }}\n",
            dir.path().display()
        );
        fs::write(&config, text).expect("a configuration");
        let child = Command::new("nginx").arg("-c").arg(&config).stderr(Stdio::null()).spawn().expect("nginx");
        wait_listening(port);
        Self { master: Guard(child), port, _dir: dir }
    }

    fn worker(&self) -> u32 {
        output("pgrep", &["-P", &self.master.0.id().to_string()]).trim().parse().expect("one worker")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.master.signal(nix::sys::signal::Signal::SIGTERM); // lets it end its worker
        let _ = self.master.0.wait();
    }
}

/// curl, and the source port that it used.
fn curl(url: &str) -> (u32, u64) {
    let child = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{local_port}", url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl");
    let pid = child.id();
    let out = child.wait_with_output().expect("an end");
    assert!(out.status.success(), "curl {url}: {}", out.status);
    (pid, String::from_utf8_lossy(&out.stdout).parse().expect("a port"))
}

fn check_web(collected: &Collected, nginx: &Nginx, worker: u32, (pid, local): (u32, u64), address: &str) {
    let flow = collected.flow(local, nginx.port.into());
    assert_eq!((&flow["src_addr"], &flow["dst_addr"]), (&Value::from(address), &Value::from(address)));
    let curl = Side {
        pid,
        exe: "/usr/bin/curl",
        cmdline_part: "-w %{local_port} http",
        user: "root",
        parent: std::process::id(),
    };
    check_side(flow, "src", &curl);
    let server = Side {
        pid: worker,
        exe: "/usr/sbin/nginx",
        cmdline_part: "nginx: worker process",
        user: "www-data",
        parent: nginx.master.0.id(),
    };
    check_side(flow, "dst", &server);
    assert_eq!(flow["src_pkg"], "curl", "{flow:#}");
    assert!(flow["dst_pkg"].as_str().is_some_and(|package| package.starts_with("nginx")), "{flow:#}");
    assert!(flow["dst_father_pkg"].as_str().is_some_and(|package| package.starts_with("nginx")), "{flow:#}");
    assert_eq!(flow["end_reason"], "closed");
    // The rows of the flow page.
    let row = |name: &str| flow[name].as_str().unwrap_or_else(|| panic!("{name}: {flow:#}"));
    assert!(row("Client Command Line").contains("-w %{local_port} http"));
    assert!(row("Client Ancestry").ends_with(&format!("({})", std::process::id())), "{flow:#}");
    assert_eq!(
        (row("Client UID / GID"), row("Server UID / GID")),
        ("0 (root) / 0 (root)", "33 (www-data) / 33 (www-data)")
    );
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").expect("a name");
    assert_eq!(
        (row("Client Congestion Control"), row("Server Congestion Control")),
        (congestion.trim(), congestion.trim())
    );
    let rtt = row("TCP RTT");
    assert!(rtt.starts_with("min 0.") && rtt.contains(" / average ") && rtt.contains(" / p99 "), "{rtt}");
    assert!(
        flow["tcp_win_max_in"].as_u64() > Some(30_000) && flow["tcp_win_max_out"].as_u64() > Some(30_000),
        "{flow:#}"
    );
    assert!(flow["probe_addr"].as_str().is_some_and(|addr| addr.parse::<std::net::Ipv4Addr>().is_ok()), "{flow:#}");
    assert!(flow["in_bytes"].as_u64() > Some(50) && flow["out_bytes"].as_u64() > Some(100), "{flow:#}");
}

#[test]
fn web_servers_databases_name_servers_and_namespaces() {
    // Some are there before the agent, some come after it.
    let nginx = Nginx::start();
    let (mut agent, collector) = exporting_agent();

    let (v4, v6) = (curl(&format!("http://127.0.0.1:{}/", nginx.port)), curl(&format!("http://[::1]:{}/", nginx.port)));

    let redis_port = free_port();
    let redis = Command::new("redis-server")
        .args(["--port", &redis_port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server");
    let redis = Guard(redis);
    wait_listening(redis_port);
    let mut bench = Command::new("redis-benchmark")
        .args(["-p", &redis_port.to_string(), "-n", "20000", "-c", "10", "-t", "set", "-q"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-benchmark");
    let bench_pid = bench.id();
    bench.wait().expect("an end");

    let (dns, dns_port, _) = serve("udp_echo", "127.0.0.1");
    // The server only echoes, which is no answer to dig; the flow is there all the same.
    let mut dig = Command::new("dig")
        .args(["@127.0.0.1", "-p", &dns_port.to_string(), "+time=1", "+tries=1", "sockeye.example"])
        .stdout(Stdio::null())
        .spawn()
        .expect("dig");
    let dig_pid = dig.id();
    let _ = dig.wait();

    let (echo, echo_port, _) = serve("serve", "::1");
    let echo_client = talk(&["client", "::1", &echo_port.to_string(), "1000", "2000"]);

    let pair = Pair::veth();
    let mut far = Traffic::start(Some(&pair.names[1]), &["serve", ADDRESSES[1], "0"]);
    let far_port = far.says()["port"].as_u64().expect("a port");
    let mut near =
        Traffic::start(Some(&pair.names[0]), &["client", ADDRESSES[1], &far_port.to_string(), "4000", "5000"]);
    let near_said = near.says();
    near.wait();

    let worker = nginx.worker();
    agent.settle();
    // The listening ports are announced some seconds after the start.
    wait_for("the ports", Duration::from_secs(20), || {
        (agent.figure("agent", "uptime").as_u64() > Some(6)).then_some(())
    });
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();

    check_web(&collected, &nginx, worker, v4, "127.0.0.1");
    check_web(&collected, &nginx, worker, v6, "::1");

    let redis_flows: Vec<&Value> =
        collected.flows().iter().filter(|f| f["dst_port"] == redis_port && f["src_pid"] == bench_pid).collect();
    assert!(redis_flows.len() >= 10, "{redis_flows:#?}");
    for flow in redis_flows {
        let pid = redis.0.id();
        let exe = exe_of(pid);
        let server = Side { pid, exe: &exe, cmdline_part: "redis-server", user: "root", parent: std::process::id() };
        check_side(flow, "dst", &server);
    }

    let dig_flow = collected.flows().iter().find(|f| f["dst_port"] == dns_port && f["src_pid"] == dig_pid);
    let dig_flow = dig_flow.expect("dig's flow");
    assert_eq!((&dig_flow["protocol"], dig_flow["dst_pid"].as_u64()), (&Value::from(17), Some(dns.pid().into())));
    let dig_side = Side {
        pid: dig_pid,
        exe: "/usr/bin/dig",
        cmdline_part: "sockeye.example",
        user: "root",
        parent: std::process::id(),
    };
    check_side(dig_flow, "src", &dig_side);

    let flow = collected.flow(echo_client["local"].as_u64().expect("a port"), echo_port.into());
    assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&echo_client["pid"], Some(echo.pid().into())));
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&echo_client["sent"], &echo_client["received"]));

    let flow = collected.flow(near_said["local"].as_u64().expect("a port"), far_port);
    assert_eq!((&flow["src_addr"], &flow["dst_addr"]), (&Value::from(ADDRESSES[0]), &Value::from(ADDRESSES[1])));
    assert_eq!((&flow["src_pid"], flow["dst_pid"].as_u64()), (&near_said["pid"], Some(far.pid().into())), "{flow:#}");
    assert_eq!(flow["dst_father_pid"], parent_of(far.pid()), "{flow:#}");
    assert_eq!((&flow["in_bytes"], &flow["out_bytes"]), (&near_said["sent"], &near_said["received"]));

    check_listening_ports(&collected, &nginx);
}

/// The message goes out once a minute: what was started after the agent is not in it yet.
fn check_listening_ports(collected: &Collected, nginx: &Nginx) {
    let ports = &collected.0["ports_by_address"];
    let has = |address: &str, list: &str, port: u16, name: &str| {
        ports[address][list].as_array().expect("a list").iter().any(|p| {
            p["port"] == port
                && p["proc"]
                    .as_str()
                    .is_some_and(|exe| Path::new(exe).file_name().is_some_and(|f| f.to_string_lossy().contains(name)))
        })
    };
    assert!(has("127.0.0.1", "tcp4", nginx.port, "nginx") && has("::1", "tcp6", nginx.port, "nginx"), "{ports:#}");
}
