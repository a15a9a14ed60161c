//! What Prometheus is told, and asks for by query, is what the programs themselves counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sockeye_ctl::protocol::Request;
use sockeye_tests::dns::Dns;
use sockeye_tests::engines::{Cgroup, Engines};
use sockeye_tests::net::Pair;
use sockeye_tests::prometheus::{Prometheus, get, metrics, sample, sum};
use sockeye_tests::{Agent, Guard, PYTHON, free_port, here, output, program, serve_in, wait_for};
use tempfile::TempDir;

fn serving_agent(more: &[&str]) -> (Agent, u16) {
    let port = free_port();
    let agent = Agent::start(&[&["--prometheus", &format!("127.0.0.1:{port}")], more].concat());
    (agent, port)
}

/// Programs that have names of their own, so that nobody else's traffic is counted with theirs.
struct Programs {
    dir: TempDir,
}

impl Programs {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn named(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if !path.exists() {
            symlink(PYTHON, &path).expect("a link");
        }
        path
    }

    /// A subcommand of `traffic.py`, run by a command.
    fn run(&self, mut command: Command, name: &str, args: &[&str]) -> Command {
        command.arg(self.named(name)).arg(here("programs/traffic.py")).args(args);
        command
    }

    fn talk(&self, name: &str, args: &[&str]) -> Value {
        let said = self.run(Command::new("env"), name, args).output().expect("python");
        serde_json::from_slice(&said.stdout).unwrap_or_else(|err| panic!("{said:?}: {err}"))
    }
}

fn sum_of(said: &[Value], key: &str) -> f64 {
    said.iter().map(|said| said[key].as_f64().expect("a count")).sum()
}

#[test]
fn sums_by_query_are_what_the_programs_counted() {
    let (agent, port) = serving_agent(&["--report-interval", "1"]);
    let prometheus = Prometheus::start(port);
    let programs = Programs::new();
    let unit = Cgroup::new("/system.slice/promserver.service");
    let mut server = programs.run(unit.shell(), "promserver", &["serve", "127.0.0.1", "0"]);
    let mut server = Guard(server.stdout(Stdio::piped()).spawn().expect("a server"));
    let mut line = String::new();
    let mut out = std::io::BufReader::new(server.0.stdout.take().expect("a pipe"));
    std::io::BufRead::read_line(&mut out, &mut line).expect("a line");
    let server_port = serde_json::from_str::<Value>(&line).expect("JSON")["port"].to_string();

    let talk = |send: &str, want: &str, end: &str| {
        programs.talk("promclient", &["client", "127.0.0.1", &server_port, send, want, end])
    };
    let mut said: Vec<Value> =
        ["1", "70000", "5000000", "123"].into_iter().map(|send| talk(send, "45678", "close")).collect();
    said.push(talk("3000", "10", "reset"));
    let refused: Vec<Value> = (0..3).map(|_| programs.talk("promrefused", &["connect", "127.0.0.1", "1"])).collect();
    assert!(refused.iter().all(|said| said["error"] == 111), "{refused:?}");

    let (sent, received) = (sum_of(&said, "sent"), sum_of(&said, "received"));
    let of = |metric: &str, labels: &str| format!("sum(sockeye_{metric}{{{labels}}})");
    for (metric, labels, wanted) in [
        ("flows_opened_total", r#"process="promclient",role="initiator""#, 5.0),
        ("flows_ended_total", r#"process="promclient",state="closed""#, 4.0),
        ("flows_ended_total", r#"process="promclient",state="reset""#, 1.0),
        ("flows_ended_total", r#"process="promserver",workload="Service/promserver""#, 5.0),
        ("traffic_bytes_total", r#"process="promclient",role="initiator",direction="sent""#, sent),
        ("traffic_bytes_total", r#"process="promclient",direction="received""#, received),
        ("traffic_bytes_total", r#"workload="Service/promserver",role="responder",direction="received""#, sent),
        ("traffic_bytes_total", r#"workload="Service/promserver",direction="sent""#, received),
        ("resets_total", r#"process="promclient",direction="sent""#, 1.0),
        ("resets_total", r#"process="promserver",direction="received""#, 1.0),
        ("connections_failed_total", r#"process="promrefused",reason="refused""#, 3.0),
        ("connections_failed_total", r#"process="promrefused",reason!="refused""#, 0.0),
        ("flows_ended_total", r#"process="promrefused",state="refused""#, 3.0),
        ("connections_failed_total", r#"process="promclient""#, 0.0),
    ] {
        prometheus.wait_until(&of(metric, labels), wanted);
    }
    // Round-trip times are those that the agent has in all.
    prometheus.wait_until(
        "sockeye_rtt_samples_total - sum without (namespace, workload, role) (sockeye_rtt_seconds_count)",
        0.0,
    );
    let of_server = prometheus.query(r#"sum(sockeye_rtt_seconds_bucket{workload="Service/promserver",le="+Inf"})"#);
    assert!(of_server.is_some_and(|samples| samples >= 5.0), "{of_server:?}");
    // What ctl stats tells of the agent.
    let reasons = agent.ask(&Request::Stats).expect("an answer").rows("losses").len();
    assert_eq!(prometheus.query("count(sockeye_losses_total)"), Some(reasons as f64 - 1.0), "but for a gauge");
    for (query, at_least) in [
        (r#"sum(sockeye_ring_records_delivered_total)"#, 10.0),
        ("sockeye_flows_entered_total", 8.0),
        (r#"sockeye_table_entries_limit{table="flows"}"#, 1e6),
        ("count(sockeye_bpf_program_runs_total)", 5.0),
        (r#"count(sockeye_thread_cpu_seconds_total{thread="sockeye-control"})"#, 1.0),
        ("process_resident_memory_bytes", 1e6),
        (r#"count(sockeye_build_info{version!=""})"#, 1.0),
    ] {
        let value = prometheus.query(query);
        assert!(value.is_some_and(|value| value >= at_least), "{query}: {value:?}");
    }
    let portion = prometheus.query("sockeye_scrape_control_longest_seconds");
    assert!(portion.is_some_and(|seconds| seconds > 0.0 && seconds < 0.005), "{portion:?}");
}

/// Deployments and StatefulSets as Kubernetes names their pods.
#[test]
fn pods_are_told_of_by_their_names() {
    const CART: &str = "cart-5d4f8c7b9d-x2x4z";
    const SERVER: &str = "mkdir /www; head -c 20000 /dev/zero > /www/file; exec httpd -f -p 80 -h /www";
    let pair = Pair::veth();
    let engines = Engines::start(&pair.names[0]);
    let config = engines.config().display().to_string();
    let (agent, port) = serving_agent(&["--config", &config, "--report-interval", "1"]);
    let cri = engines.cri();
    let db = cri.run_labelled_pod("data", "db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")]);
    cri.run_container(&db, "server", SERVER);
    wait_for("the server", Duration::from_secs(10), || {
        let ports = agent.ask(&Request::Ports).ok()?;
        ports
            .tables
            .last()?
            .objects()
            .any(|row| row.get("workload").is_some_and(|w| w == "data/db-0/server"))
            .then_some(())
    });
    let cart = cri.run_labelled_pod("shop", CART, &[("pod-template-hash", "5d4f8c7b9d")]);
    let fetch = format!("for i in 1 2 3; do wget -q -O /dev/null http://{}/file; done; sleep 1000", db.ip);
    cri.run_container(&cart, "app", &fetch);

    let of_cart = format!(r#"process="wget",container="app",pod="{CART}",namespace="shop",workload="Deployment/cart""#);
    let of_db = r#"container="server",pod="db-0",namespace="data",workload="StatefulSet/db",role="responder""#;
    let page = wait_for("three fetches", Duration::from_secs(30), || {
        let page = metrics(port, "text/plain").1;
        let ended = |labels: &str| sum(&page, "sockeye_flows_ended_total", &[labels, r#"state="closed""#]);
        (ended(&of_cart) == 3.0 && ended(of_db) == 3.0).then_some(page)
    });
    let bytes = |labels: &str, direction: &str| sum(&page, "sockeye_traffic_bytes_total", &[labels, direction]);
    let (received, sent) = (bytes(&of_cart, r#"direction="received""#), bytes(of_db, r#"direction="sent""#));
    assert!(received >= 60_000.0 && received == sent, "{received} {sent}");
    let rtt =
        sum(&page, "sockeye_rtt_seconds_count", &[r#"namespace="shop",workload="Deployment/cart",role="initiator""#]);
    assert!(rtt >= 3.0, "{rtt}");
}

#[test]
fn both_formats_are_well_made_and_counters_go_on() {
    let (_agent, port) = serving_agent(&[]);
    let (head, open_metrics) = metrics(port, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(open_metrics.ends_with("# EOF\n") && !open_metrics.is_empty());
    let (head, classic) = metrics(port, "text/plain");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    promtool.stdin.take().expect("a pipe").write_all(classic.as_bytes()).expect("it reads");
    let checked = promtool.wait_with_output().expect("an end");
    assert!(checked.status.success() && checked.stdout.is_empty() && checked.stderr.is_empty(), "{checked:?}");
    let scans = sample(&classic, "sockeye_scans_total");
    wait_for("scan", Duration::from_secs(10), || {
        (sample(&metrics(port, "text/plain").1, "sockeye_scans_total") > scans).then_some(())
    });
}

#[test]
fn a_slow_or_hostile_client_stops_no_other() {
    let (agent, port) = serving_agent(&[]);
    let mut hostile = Vec::new();
    for number in 0..30 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let _ = match number % 3 {
            // Nothing at all, a part of a head, a whole one and never a look at the answer.
            0 => Ok(()),
            1 => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:"),
            _ => stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n"),
        };
        hostile.push(stream);
        let began = Instant::now();
        let (_, page) = metrics(port, "text/plain");
        assert!(
            page.contains("sockeye_build_info") && began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
    }
    let threads = agent.ask(&Request::Stats).expect("ctl is answered, too").rows("threads");
    assert!(threads.iter().any(|thread| thread["name"] == "sockeye-http"), "{threads:#?}");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("threads").flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let serving = names.filter(|name| name.trim() == "sockeye-scrape").count();
    assert!(serving <= 16, "{serving}");
    wait_for("clients that were cut off", Duration::from_secs(10), || {
        (sample(&metrics(port, "text/plain").1, "sockeye_http_clients_cut_total") >= 10.0).then_some(())
    });
    drop(hostile);

    assert_eq!(get(port, "GET /healthz HTTP/1.1\r\n\r\n").2, "ok\n");
    assert_eq!(get(port, "GET /nothing HTTP/1.1\r\n\r\n").0, 404);
    let (status, head, _) = get(port, "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert!(status == 405 && head.contains("allow: get, head"), "{head}");
    assert_eq!(get(port, "\x16\x03\x01 nonsense\r\n\r\n").0, 400);
    assert_eq!(get(port, &format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(20_000))).0, 431);
    let (status, head, body) = get(port, "HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(status == 200 && body.is_empty() && !head.contains("content-length: 0"), "{head}");
    // One that has sent all and waits for the answer.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").expect("it reads");
    stream.shutdown(Shutdown::Write).expect("half closed");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

fn sockeye(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("ctl.sock");
    Command::new(program("sockeye")).args(args).arg("--control-socket").arg(socket).output().expect("sockeye")
}

#[test]
fn an_address_that_cannot_be_is_refused_with_the_remedy() {
    let refused = |address: &str, code: i32, parts: &[&str]| {
        let output = sockeye(&["--prometheus", address]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} {text}");
    };
    refused("9980", 64, &["--prometheus <ADDRESS:PORT>", "such as 127.0.0.1:9980"]);
    refused("localhost:metrics", 64, &["such as 127.0.0.1:9980"]);
    refused("127.0.0.1:0", 64, &["such as 127.0.0.1:9980"]);
    refused("192.0.2.1:9980", 69, &["192.0.2.1:9980", "name an address of this host"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    refused(&address.to_string(), 69, &[&address.to_string(), "in use", "name another port", "ss -ltnp"]);
}

#[test]
fn more_label_sets_than_there_are_places_are_other_and_nothing_is_lost() {
    let (agent, port) = serving_agent(&["--prometheus-series-max", "2", "--report-interval", "1"]);
    let programs = Programs::new();
    let (_server, server_port, _) = sockeye_tests::serve("serve", "127.0.0.1");
    let said: Vec<Value> = (0..6)
        .map(|number| {
            let name = format!("promone{number}");
            programs.talk(&name, &["client", "127.0.0.1", &server_port.to_string(), "100", "200", "close"])
        })
        .collect();
    agent.settle();
    let (_, page) = metrics(port, "text/plain");
    let sent = sum(&page, "sockeye_traffic_bytes_total", &[r#"direction="sent""#]);
    let reported = sample(&page, r#"sockeye_reported_bytes_total{sender="initiator"}"#)
        + sample(&page, r#"sockeye_reported_bytes_total{sender="responder"}"#);
    let talked = sum_of(&said, "sent") + sum_of(&said, "received");
    assert!(sent >= talked && sent <= reported, "{page}");
    assert_eq!(sample(&page, r#"sockeye_label_sets{of="ends",state="shown"}"#), 2.0);
    assert!(sample(&page, r#"sockeye_label_sets_folded_total{of="ends"}"#) >= 5.0, "{page}");
    assert!(sample(&page, r#"sockeye_flows_opened_total{process="other",role="other"}"#) >= 5.0, "{page}");
}

/// Control has other work to do, however many flows a scrape has to count.
#[test]
fn a_scrape_of_many_flows_keeps_control_from_its_work_for_a_moment_only() {
    const SOCKETS: u8 = 4;
    const PEERS: u32 = 62_500;
    let (_agent, port) = serving_agent(&["--idle-timeout", "600"]);
    let sockets: Vec<UdpSocket> = (0..SOCKETS)
        .map(|number| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            for peer in 0..PEERS {
                let [_, _, third, fourth] = peer.to_be_bytes();
                let _ = socket.send_to(b"x", (Ipv4Addr::new(127, 1 + number, third, fourth), 9));
            }
            socket
        })
        .collect();
    let flows = f64::from(u32::from(SOCKETS) * PEERS);
    let mut page = String::new();
    wait_for("flows in the table", Duration::from_secs(30), || {
        page = metrics(port, "text/plain").1;
        (sample(&page, r#"sockeye_table_entries{table="flows"}"#) >= flows).then_some(())
    });
    for _ in 0..3 {
        // Later than what is kept of the last answer.
        std::thread::sleep(Duration::from_millis(300));
        page = metrics(port, "text/plain").1;
    }
    let portion = sample(&page, "sockeye_scrape_control_longest_seconds");
    assert!(portion > 0.0 && portion < 0.005, "{portion}");
    let open = sample(&page, r#"sockeye_flows{protocol="udp",state="open"}"#);
    assert!(open >= flows, "{open}");
    println!("control was away for at most {:.1} ms of CPU time for a scrape of {open} flows", portion * 1e3);
    drop(sockets);
}

#[test]
fn alert_rules_are_valid_and_fire() {
    let path = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string();
    let checked = output("promtool", &["check", "rules", &path("../docs/alerts.yml")]);
    assert!(checked.contains("SUCCESS"), "{checked}");
    let tested = output("promtool", &["test", "rules", &path("prometheus/alerts_test.yml")]);
    assert!(tested.contains("SUCCESS"), "{tested}");
}

#[test]
fn dns_by_who_asks_whom_and_traffic_by_name() {
    let hosts = ["downloads.example.net", "other.example.net"];
    let dns = Dns::start(&hosts.map(|host| format!("--host-record={host},203.0.113.7")).each_ref().map(String::as_str));
    let (agent, port) = serving_agent(&["--prometheus-names-max", "1", "--report-interval", "1"]);
    let (_server, web) = serve_in(&dns.netns, "0.0.0.0");
    let visited = dns.run(&["visit", &web.to_string(), hosts[0], hosts[0], hosts[1]]);
    assert_eq!(visited.len(), 3);
    let asked = dns.run(&["ask", "127.0.0.1", "200", "1000", "n"]);
    let silent = dns.run(&["ask", "203.0.113.66", "1", "1", "lost"]);
    assert_eq!((&asked[0]["answers"], &silent[0]["answers"]), (&200.into(), &0.into()));
    let page = || metrics(port, "text/plain").1;
    wait_for("the question that nobody answers", Duration::from_secs(20), || {
        (sum(&page(), "sockeye_dns_timeouts_total", &[r#"server="203.0.113.66""#]) == 1.0).then_some(())
    });
    agent.settle();
    let page = page();
    let of_server = |metric: &str, labels: &[&str]| sum(&page, metric, &[labels, &[r#"server="127.0.0.1""#]].concat());
    assert_eq!(of_server("sockeye_dns_queries_total", &[r#"process="python3""#]), dns.queries() as f64);
    assert_eq!(of_server("sockeye_dns_answers_total", &[]), dns.queries() as f64, "as dnsmasq has counted");
    assert_eq!(of_server("sockeye_dns_latency_seconds_count", &[]), dns.queries() as f64);
    assert_eq!(of_server("sockeye_dns_timeouts_total", &[]), 0.0);
    let named = |metric: &str, labels: &[&str]| sum(&page, metric, labels);
    let first = format!("name=\"{}\"", hosts[0]);
    assert_eq!(named("sockeye_name_flows_opened_total", &[&first]), 2.0);
    assert_eq!(named("sockeye_name_flows_opened_total", &[r#"name="other""#]), 1.0, "one name has a place");
    assert!(named("sockeye_name_traffic_bytes_total", &[&first, r#"direction="received""#]) > 0.0, "{page}");
}
