//! What the far end of a connection is called, by what its process has asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value};
use sockeye_ctl::protocol::{DnsArguments, DnsBy, FlowsArguments, Request};
use sockeye_tests::capture::Capture;
use sockeye_tests::dns::Dns;
use sockeye_tests::engines::Cgroup;
use sockeye_tests::{Agent, Guard, exporting_agent_with, here, port_of, serve_in, wait_for};

const ZONES: [&str; 6] = [
    "--host-record=downloads.example.net,203.0.113.7",
    "--host-record=other.example.net,203.0.113.7",
    "--host-record=third.example.net,203.0.113.7",
    "--cname=www.example.org,downloads.example.net",
    "--address=/crowd.example/203.0.113.8",
    "--address=/missing.example/",
];

/// Flows to a port, those that are over, by the port that they come from.
fn closed(agent: &Agent, port: u16) -> BTreeMap<u64, Map<String, Value>> {
    let arguments = FlowsArguments { port: vec![port], closed: true, limit: 0, ..FlowsArguments::default() };
    let from =
        |row: &Map<String, Value>| row["initiator"].as_str().and_then(|text| text.rsplit(':').next()?.parse().ok());
    agent.flows(arguments).into_iter().map(|row| (from(&row).expect("a port"), row)).collect()
}

fn named(flows: &BTreeMap<u64, Map<String, Value>>, said: &Value) -> (String, String) {
    let row = flows.get(&said["local"].as_u64().expect("a port")).unwrap_or_else(|| panic!("no flow of {said}"));
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    (text("responder_name"), text("name_source"))
}

#[test]
fn a_connection_has_the_name_that_its_process_asked_for() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let text = port.to_string();
    let twice = dns.run(&["visit", &text, "downloads.example.net", "=", "www.example.org", "203.0.113.7"]);
    let of_two =
        dns.run(&["visit", &text, "downloads.example.net", "other.example.net", "=", "third.example.net", "="]);
    let child = dns.run(&["child_of", &text, "downloads.example.net"]);
    let children = dns.run(&["child_of", &text, "downloads.example.net", "other.example.net", "third.example.net"]);
    agent.settle();
    let flows = closed(&agent, port);
    let own = |name: &str| (name.to_owned(), "process".to_owned());
    assert_eq!(named(&flows, &twice[0]), own("downloads.example.net"));
    assert_eq!(named(&flows, &twice[1]), own("downloads.example.net"), "the same, without asking again");
    assert_eq!(named(&flows, &twice[2]), own("www.example.org"), "not what that is an alias of");
    assert_eq!(named(&flows, &twice[3]), own("www.example.org or downloads.example.net"), "an address: one of them");
    assert_eq!(named(&flows, &of_two[1]), own("other.example.net"));
    assert_eq!(named(&flows, &of_two[2]), own("other.example.net or downloads.example.net"));
    assert_eq!(named(&flows, &of_two[3]), own("third.example.net"));
    assert_eq!(named(&flows, &of_two[4]), ("-".into(), "-".into()), "one of three");
    assert_eq!(named(&flows, &child[0]), ("downloads.example.net".into(), "parent".into()));
    assert_eq!(named(&flows, &children[0]), ("-".into(), "-".into()), "its parent has asked for three");
    let wanted = |pattern: &str| {
        let arguments =
            FlowsArguments { name: vec![pattern.into()], closed: true, limit: 0, ..FlowsArguments::default() };
        agent.flows(arguments).len()
    };
    assert_eq!((wanted("*.example.org"), wanted("www.*"), wanted("example.org")), (2, 2, 0));
}

/// Many times within the second after which flows are told of.
#[test]
fn a_process_that_asks_for_the_same_names_again_and_again() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let text = port.to_string();
    let names = ["downloads.example.net", "other.example.net", "third.example.net"].repeat(40);
    let visits = [
        dns.run(&[&["visit", &text], &names[..]].concat()),
        dns.run(&[&["visit", &text], &[names[0]; 40][..]].concat()),
    ];
    agent.settle();
    let mut flows = closed(&agent, port);
    // The socket of a question may have the server's number by chance.
    flows.retain(|_, row| row["protocol"] == "tcp");
    let locals: BTreeSet<u64> = visits.iter().flatten().filter_map(|said| said["local"].as_u64()).collect();
    let others: Vec<_> = flows.iter().filter(|(from, _)| !locals.contains(from)).collect();
    assert!((locals.len(), others.len()) == (160, 0), "{} visits, and {others:#?}", locals.len());
    for said in visits.iter().flatten() {
        let name = said["name"].as_str().expect("a name");
        assert_eq!(named(&flows, said), (name.to_owned(), "process".to_owned()), "{said}");
    }
}

/// Many names of one address, and clients that fork: no name is better than a wrong one.
#[test]
fn of_a_crowd_of_names_none_is_wrong() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let crowd: Vec<Child> =
        (0..8).map(|seed| dns.start_program(&["crowd", &port.to_string(), "50", &seed.to_string()])).collect();
    let mut truth = BTreeMap::new();
    for child in crowd {
        let output = child.wait_with_output().expect("an end");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for (local, told) in said["told"].as_object().expect("an object") {
            let text = |at: usize| told[at].as_str().expect("text").to_owned();
            truth.insert(local.parse::<u64>().expect("a port"), (text(0), text(1)));
        }
    }
    agent.settle();
    let flows = closed(&agent, port);
    let (mut right, mut own) = (0, 0);
    for (local, (name, who)) in &truth {
        let row = flows.get(local).unwrap_or_else(|| {
            let lost = agent.losses();
            let port = local.to_owned() as u16;
            let known = FlowsArguments { port: vec![port], ended: true, ..FlowsArguments::default() };
            let known = agent.flows(known);
            panic!("no flow of {local} among {} of {}: {known:#?}; lost: {lost}", flows.len(), truth.len())
        });
        own += usize::from(who == "process");
        let Some(said) = row.get("responder_name").and_then(Value::as_str) else { continue };
        assert!(said.split(" or ").any(|one| one == name), "{local} is {name} ({who}), and not {said}: {row:#?}");
        right += usize::from(said == name);
    }
    println!("{right} of {} right, {own} by the process that has asked", truth.len());
    assert_eq!(truth.len(), 400);
    assert!(right >= own, "{right} right of {own} whose process has asked");
}

fn figures(agent: &Agent, by: DnsBy) -> BTreeMap<String, Map<String, Value>> {
    let arguments = DnsArguments { by, limit: 0, ..DnsArguments::default() };
    let rows = agent.ask(&Request::Dns(arguments)).expect("an answer").rows("dns");
    rows.into_iter().map(|row| (row.get("name").and_then(Value::as_str).unwrap_or("-").to_owned(), row)).collect()
}

#[test]
fn questions_and_answers_are_counted() {
    let many: Vec<String> = (1..=40).map(|i| format!("--host-record=many.example,192.0.2.{i}")).collect();
    let zones: Vec<&str> = ZONES.into_iter().chain(many.iter().map(String::as_str)).collect();
    let dns = Dns::start(&zones);
    let agent = Agent::start(&[]);
    let dig = |args: &[&str]| {
        let output = dns.command("dig").args(["+noedns", "@127.0.0.1"]).args(args).output().expect("dig");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(dig(&["many.example"]).contains("192.0.2.40"), "by TCP, after one that did not fit");
    assert!(dig(&["nothing.missing.example"]).contains("NXDOMAIN"));
    agent.settle();
    let names = figures(&agent, DnsBy::Name);
    let figure =
        |row: &Map<String, Value>, name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row:#?}"));
    assert_eq!(figure(&names["many.example"], "queries"), 2, "over UDP, and over TCP");
    let asked = dns.run(&["ask", "127.0.0.1", "1000", "1000", "n"]);
    assert_eq!((&asked[0]["asked"], &asked[0]["answers"]), (&1000.into(), &1000.into()));
    let lost = dns.run(&["ask", "203.0.113.66", "1", "1", "lost"]);
    agent.settle();
    let of_server = || figures(&agent, DnsBy::Server).remove("127.0.0.1").expect("the server");
    let server = of_server();
    assert_eq!(figure(&server, "queries"), dns.queries() as u64, "as dnsmasq has counted");
    assert_eq!((figure(&server, "answers"), figure(&server, "timeouts")), (1003, 0), "{server:#?}");
    assert_eq!((figure(&server, "truncated"), figure(&server, "nxdomain")), (1, 1));
    let asker = figures(&agent, DnsBy::Process).remove(&format!("python3[{}]", asked[0]["pid"])).expect("who asked");
    assert_eq!(figure(&asker, "answers"), 1000);
    let _ = lost;
    wait_for("the one that nobody answers", Duration::from_secs(10), || {
        let silent = figures(&agent, DnsBy::Server).remove("203.0.113.66")?;
        (figure(&silent, "timeouts") == 1 && figure(&silent, "answers") == 0).then_some(())
    });
    let losses = agent.ask(&Request::Stats).expect("an answer").rows("losses");
    let count = |reason: &str| losses.iter().find(|row| row["reason"] == reason).map(|row| row["count"].clone());
    assert_eq!((count("dns_left_out"), count("dns_not_read")), (Some(0.into()), Some(0.into())));
}

#[test]
fn hostile_answers_name_nothing_and_break_nothing() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let (_server, _) = dns.serve(&["hostile", "203.0.113.66"]);
    let (_web, port) = serve_in(&dns.netns, "0.0.0.0");
    let asked = dns.run(&["ask", "203.0.113.66", "60", "100000", "hostile"]);
    let visited = dns.run(&["visit", &port.to_string(), "203.0.113.66"]);
    agent.settle();
    assert_eq!(named(&closed(&agent, port), &visited[0]), ("-".into(), "-".into()));
    let told = figures(&agent, DnsBy::Server).remove("203.0.113.66").expect("the server");
    assert_eq!(told["queries"], asked[0]["asked"]);
    assert!(told["answers"].as_u64() < asked[0]["answers"].as_u64(), "not each is one: {told:#?}");
    assert_eq!(agent.sum("rings", "lost"), 0);
}

#[test]
fn collectors_hear_what_was_asked_and_what_a_server_is_called() {
    let dns = Dns::start(&ZONES);
    let (agent, collector) = exporting_agent_with(&[]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let visited = dns.run(&["visit", &port.to_string(), "downloads.example.net"]);
    agent.settle();
    drop(agent);
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(visited[0]["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["Server Name"], "downloads.example.net (by process)", "{flow:#}");
    let questions: Vec<&Value> = collected.flows().iter().filter(|flow| flow["dst_port"] == 53).collect();
    assert!(questions.iter().any(|flow| flow["dns_query"] == "downloads.example.net"), "{questions:#?}");
}

/// A flow that nobody was told of before the agent ends.
#[test]
fn the_last_flows_have_names_as_well() {
    let dns = Dns::start(&ZONES);
    let (mut agent, collector) = exporting_agent_with(&[]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let visited = dns.run(&["visit", &port.to_string(), "downloads.example.net"]);
    agent.stop();
    let collected = collector.finish();
    let flow = collected.flow(visited[0]["local"].as_u64().expect("a port"), port.into());
    assert_eq!(flow["Server Name"], "downloads.example.net (by process)", "{flow:#}");
}

#[test]
fn without_dns_nothing_is_read() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&["--no-dns"]);
    let (_server, port) = serve_in(&dns.netns, "0.0.0.0");
    let visited = dns.run(&["visit", &port.to_string(), "downloads.example.net"]);
    agent.settle();
    assert_eq!(named(&closed(&agent, port), &visited[0]), ("-".into(), "-".into()));
    assert!(figures(&agent, DnsBy::Host).is_empty());
}

/// A server of HTTP, and its port.
fn web(dns: &Dns) -> (Guard, u16) {
    let (server, said) = dns.serve(&["web", "0.0.0.0"]);
    (server, port_of(&said))
}

/// A certificate that nobody checks.
fn certificate(dir: &Path) -> String {
    let path = dir.join("server.pem").display().to_string();
    let args =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", "-keyout", &path, "-out"];
    let certificate = dir.join("certificate.pem");
    let status = Command::new("openssl").args(args).arg(&certificate).stderr(Stdio::null()).status().expect("openssl");
    assert!(status.success());
    let both = fs::read_to_string(&path).expect("a key") + &fs::read_to_string(&certificate).expect("a certificate");
    fs::write(&path, both).expect("a file");
    path
}

#[test]
fn clients_that_say_whom_they_mean() {
    let dir = tempfile::tempdir().expect("a folder");
    let dns = Dns::start(&ZONES);
    let (agent, collector) = exporting_agent_with(&["--sni"]);
    let (_secure, _) = dns.serve(&["secure", "203.0.113.8", "443", &certificate(dir.path())]);
    let (_plain, plain_port) = web(&dns);
    let greet = |args: &[&str]| dns.run(&[&["greet", "203.0.113.8", "443"], args].concat())[0]["local"].clone();
    let python = greet(&["python.example.net", "h2", "http/1.1"]);
    let nobody = greet(&[""]);
    let web = format!("http://203.0.113.7:{plain_port}/");
    let curl =
        |args: &[&str]| drop(dns.command("curl").args(["-sk", "-m", "3", "-o", "/dev/null"]).args(args).status());
    curl(&["--resolve", "curl.example.net:443:203.0.113.8", "https://curl.example.net/"]);
    curl(&["-H", "Host: plain.example.net", &web]);
    curl(&["-x", &web, "http://behind.example.net/"]);
    let openssl = ["s_client", "-connect", "203.0.113.8:443", "-servername", "openssl.example.net"];
    let status =
        dns.command("openssl").args(openssl).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("openssl").success());
    let late = dns.run(&["later", "203.0.113.7", &plain_port.to_string(), "late.example.net", "http"]);
    let corpus = |name: &str| here("fuzz/corpus/quic_initial").join(name).display().to_string();
    let quic = ["chromium", "aioquic-v1", "aioquic-v2", "aioquic-no-name"]
        .map(|name| dns.run(&["datagrams", "203.0.113.66", &corpus(name)])[0]["local"].clone());
    agent.settle();
    let (secured, plain) = (closed(&agent, 443), closed(&agent, plain_port));
    let all = agent.flows(FlowsArguments { port: vec![443], limit: 0, ..FlowsArguments::default() });
    let name_from = |local: &Value| {
        let from = format!(":{local}");
        let row = all
            .iter()
            .chain(secured.values())
            .find(|row| row["initiator"].as_str().is_some_and(|i| i.ends_with(&from)));
        let row = row.unwrap_or_else(|| panic!("no flow from {local}"));
        ["responder_name", "name_source"].map(|name| row.get(name).and_then(Value::as_str).unwrap_or("-").to_owned())
    };
    assert_eq!(name_from(&python), ["python.example.net", "tls"]);
    assert_eq!(name_from(&nobody), ["-", "-"]);
    let quic = quic.each_ref().map(name_from);
    assert_eq!(quic[1..3], [["aioquic.example", "quic"], ["second.example", "quic"]]);
    assert_eq!((quic[0][0].as_str(), quic[3][0].as_str()), ("chromium.example", "-"));
    let names = |flows: &BTreeMap<u64, Map<String, Value>>| -> Vec<String> {
        let mut names: Vec<_> = flows
            .values()
            .filter_map(|row| row.get("responder_name").and_then(Value::as_str).map(str::to_owned))
            .collect();
        names.sort();
        names
    };
    let of_quic = ["aioquic.example", "chromium.example", "second.example"];
    let of_tls = ["curl.example.net", "openssl.example.net", "python.example.net"];
    assert_eq!(names(&secured), BTreeSet::from_iter(of_quic.into_iter().chain(of_tls)).into_iter().collect::<Vec<_>>());
    // What a proxy shall pass on is not the proxy's name.
    assert_eq!(names(&plain), ["plain.example.net"]);
    assert!(plain.contains_key(&late[0]["local"].as_u64().expect("a port")), "and its second data is not read");
    assert_eq!(agent.sum("rings", "lost"), 0);
    drop(agent);
    let collected = collector.finish();
    collected.assert_clean();
    let told = collected.flow(python.as_u64().expect("a port"), 443);
    assert_eq!(
        (&told["tls_server_name"], &told["ALPN"]),
        (&"python.example.net".into(), &"h2 http/1.1".into()),
        "{told:#}"
    );
    assert_eq!(told["l7_proto"], Value::Null, "ntopng knows the port");
    let by_curl = |flow: &&Value| flow["http_site"] == "plain.example.net";
    let site = collected.flows().iter().find(by_curl).expect("a site at a port of its own");
    assert_eq!((&site["l7_proto"], &site["dst_port"]), (&"7".into(), &plain_port.into()), "{site:#}");
    assert!(site["src_proc"].as_str().is_some_and(|path| path.ends_with("/curl")), "{site:#}");
    let sites: BTreeSet<_> = collected.flows().iter().filter_map(|flow| flow["http_site"].as_str()).collect();
    assert_eq!(sites, ["behind.example.net", "plain.example.net"].into());
}

#[test]
fn without_sni_no_first_data_is_read() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let (_server, port) = web(&dns);
    let url = format!("http://203.0.113.7:{port}/");
    drop(
        dns.command("curl")
            .args(["-s", "-m", "3", "-H", "Host: plain.example.net", &url])
            .stdout(Stdio::null())
            .status(),
    );
    agent.settle();
    let flows = closed(&agent, port);
    assert!(flows.len() == 1 && flows.values().all(|row| row.get("responder_name").is_none()), "{flows:#?}");
}

#[test]
fn answers_take_as_long_as_packets_say() {
    let dns = Dns::start(&ZONES);
    let agent = Agent::start(&[]);
    let capture = Capture::start_of(&dns.netns.name, "lo", "udp port 53");
    let _ = dns.run(&["ask", "127.0.0.1", "200", "200", "t"]);
    let truth = capture.finish().dns_us();
    agent.settle();
    let told = figures(&agent, DnsBy::Name);
    assert_eq!(truth.len(), 200);
    // A bucket of the histogram is 3 % wide. Both look at a packet one after the other: who has lost the CPU in between is late.
    let is_equal = |name: &String, truth_us: u64| {
        told[name]["latency_p50"].as_u64().is_some_and(|us| us.abs_diff(truth_us) <= 100 + truth_us / 20)
    };
    let others: Vec<_> = truth.iter().filter(|(name, truth_us)| !is_equal(name, **truth_us)).collect();
    assert!(others.len() <= 10, "of 200 by packets: {others:#?}");
}

/// As Docker's resolver at 127.0.0.11: what a program asks goes elsewhere.
#[test]
fn a_server_behind_a_translation_is_the_one_that_was_asked() {
    let dns = Dns::start(&ZONES);
    let rules = "table ip t {
        chain o {
            type nat hook output priority -100;
            ip daddr 203.0.113.66 udp dport 53 dnat to 198.51.100.9:53
        }
    }";
    dns.netns.nft(rules);
    let agent = Agent::start(&[]);
    let said = dns.run(&["ask", "203.0.113.66", "10", "100", "d"]);
    assert_eq!(said[0]["answers"], 10);
    agent.settle();
    let servers = figures(&agent, DnsBy::Server);
    // Linux 6.1 shows programs no more than a connected socket's peer, which this one has.
    assert_eq!(servers["203.0.113.66"]["answers"], 10, "{servers:#?}");
}

/// A connection to a listed host, by a script's child in a container: user, process, ancestry, container and name.
#[test]
fn the_story_of_a_connection_to_a_malware_host() {
    let id = "e".repeat(64);
    let cgroup = Cgroup::new(&format!("/system.slice/docker-{id}.scope"));
    let dir = tempfile::tempdir().expect("a folder");
    let dns = Dns::start(&["--host-record=malware.example.net,203.0.113.66"]);
    let (agent, collector) = exporting_agent_with(&["--sni"]);
    let (_secure, _) = dns.serve(&["secure", "203.0.113.66", "443", &certificate(dir.path())]);
    let script = "/usr/bin/python3 \"$0\" beacon 443 malware.example.net & wait";
    let mut command = cgroup.shell();
    let inside = dns.command("/usr/bin/setpriv");
    command.arg(inside.get_program()).args(inside.get_args());
    // Where every user may read it.
    let program = dir.path().join("names.py");
    fs::copy(here("programs/names.py"), &program).expect("a copy");
    for (path, mode) in [(dir.path(), 0o755), (program.as_path(), 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    }
    command.args(["--reuid=54324", "--regid=54324", "--clear-groups", "sh", "-c", script]).arg(&program);
    let output = command.output().expect("a shell");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|err| panic!("{err}: {output:?}"));
    let local = said["local"].as_u64().expect("a port");
    agent.settle();
    let flow = closed(&agent, 443).remove(&local).expect("the flow");
    let told = |name: &str| flow.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    assert_eq!([told("responder_name"), told("name_source")], ["malware.example.net", "tls"]);
    assert_eq!([told("initiator_process"), told("initiator_workload")], ["python3", &id[..12]]);
    assert_eq!((flow["initiator_uid"].as_u64(), flow["initiator_pid"].as_u64()), (Some(54_324), said["pid"].as_u64()));
    assert!(told("initiator_parent").starts_with("sh["), "{flow:#?}");
    assert!(told("initiator_cmdline").contains("beacon 443 malware.example.net"), "{flow:#?}");
    drop(agent);
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(local, 443);
    assert_eq!(
        (&flow["tls_server_name"], &flow["src_container"], &flow["src_uid"], &flow["src_father_proc"]),
        (&"malware.example.net".into(), &id[..12].into(), &54_324.into(), &"sh".into()),
        "{flow:#}"
    );
    let asked = collected.flows().iter().find(|flow| flow["dns_query"] == "malware.example.net").expect("the question");
    assert_eq!(asked["src_container"], id[..12]);
}

/// What an analyst sees of it in a collector, as pictures for docs/ntopng.md: with SOCKEYE_PICTURES they are put there.
#[test]
fn pictures_of_what_a_collector_shows() {
    let dir = tempfile::tempdir().expect("a folder");
    let dns = Dns::start(&["--host-record=malware.example.net,203.0.113.66", ZONES[0]]);
    let (agent, collector) = exporting_agent_with(&["--sni"]);
    let (_secure, _) = dns.serve(&["secure", "203.0.113.66", "443", &certificate(dir.path())]);
    let (_web, port) = serve_in(&dns.netns, "0.0.0.0");
    let beacon = dns.run(&["beacon", "443", "malware.example.net"])[0]["local"].clone();
    let _ = dns.run(&["visit", &port.to_string(), "downloads.example.net"]);
    agent.settle();
    drop(agent);
    let collected = collector.finish();
    collected.assert_clean();
    let flows = dir.path().join("flows.json");
    fs::write(&flows, Value::from(collected.flows().to_vec()).to_string()).expect("a file");
    let folder =
        if std::env::var_os("SOCKEYE_PICTURES").is_some() { here("../docs/ntopng") } else { dir.path().into() };
    let status = Command::new("/usr/bin/python3")
        .arg(here("oracle/picture.py"))
        .args([&flows, &folder])
        .arg(beacon.to_string())
        .status();
    assert!(status.expect("python3").success());
    let picture = |name: &str| fs::read_to_string(folder.join(name)).expect("a picture");
    let (all, one) = (picture("flows.svg"), picture("flow.svg"));
    assert!(
        all.contains("malware.example.net") && all.contains("downloads.example.net") && all.contains("[dnsmasq]"),
        "{all}"
    );
    for text in [
        "Client Process",
        "python3",
        "Client Command Line",
        "beacon 443 malware.example.net",
        "malware.example.net (by tls)",
    ] {
        assert!(one.contains(text), "{text} is missing in {one}");
    }
}
