//! Real containers and pods: Docker and containerd of Debian, in a namespace whose way out takes 20 ms.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Map, Value};
use sockeye_ctl::protocol::{FlowsArguments, OwnersArguments, Request};
use sockeye_tests::engines::{Cgroup, Engines};
use sockeye_tests::net::{ADDRESSES, Pair, command};
use sockeye_tests::podman::Podman;
use sockeye_tests::{
    Agent, Collected, Collector, Guard, Traffic, exporting_agent, exporting_agent_with, free_port, serve, wait_for,
};

type Row = Map<String, Value>;

fn rows(agent: &Agent, request: &Request, table: &str) -> Vec<Row> {
    agent.ask(request).expect("an answer").rows(table)
}

fn containers(agent: &Agent) -> Vec<Row> {
    // Also those that only listen.
    let all = OwnersArguments { limit: 0, all: true, ..OwnersArguments::default() };
    rows(agent, &Request::Containers(all), "containers")
}

fn pods(agent: &Agent) -> Vec<Row> {
    rows(agent, &Request::Pods(OwnersArguments::default()), "pods")
}

fn named<'a>(rows: &'a [Row], column: &str, name: &str) -> &'a Row {
    rows.iter().find(|row| row.get(column).is_some_and(|v| v == name)).unwrap_or_else(|| panic!("{name}: {rows:#?}"))
}

fn microseconds(row: &Row, column: &str) -> f64 {
    row.get(column).and_then(Value::as_f64).unwrap_or_else(|| panic!("{column}: {row:#?}"))
}

/// Flows between two addresses.
fn between<'a>(collected: &'a Collected, from: &str, to: &str) -> Vec<&'a Value> {
    collected.flows().iter().filter(|f| f["src_addr"] == from && f["dst_addr"] == to).collect()
}

struct Lab {
    agent: Agent,
    collector: Collector,
    engines: Engines,
    pair: Pair,
}

/// Runtimes in the first namespace of a pair that is 20 ms apart, and an agent that asks them and exports.
fn lab() -> Lab {
    let pair = Pair::delayed(10_000);
    let engines = Engines::start(&pair.names[0]);
    let (agent, collector) = exporting_agent_with(&["--config", &engines.config().display().to_string()]);
    Lab { agent, collector, engines, pair }
}

/// Fetches something twelve times.
fn repeat(url: &str) -> String {
    format!("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do wget -q -O /dev/null {url}; done")
}

/// The same, and stays, so that the container can be inspected.
fn fetch(url: &str) -> String {
    format!("{}; sleep 100", repeat(url))
}

const WEB_SERVER: &str = "mkdir /www; head -c 20000 /dev/zero > /www/file; exec httpd -f -p 80 -h /www";

#[test]
fn docker_containers_and_pods_are_named_with_their_traffic() {
    let Lab { mut agent, collector, engines, pair } = lab();
    let (web_id, web_ip) = engines.run_container("web", &["-p", "8080:80", "--label", "tier=front"], WEB_SERVER);
    let (_, peer_ip) = engines.run_container("peer", &[], &fetch(&format!("http://{web_ip}/file")));
    let mut outside = Traffic::start(Some(&pair.names[1]), &["http", ADDRESSES[1], "0"]);
    let outside_port = outside.says()["port"].as_u64().expect("a port");
    let mut host = Traffic::start(Some(&pair.names[0]), &["http", "0.0.0.0", "0"]);
    let host_port = host.says()["port"].as_u64().expect("a port");
    let both = format!(
        "{}; {}",
        repeat(&format!("http://172.17.0.1:{host_port}/")),
        fetch(&format!("http://{}:{outside_port}/", ADDRESSES[1]))
    );
    let (_, roamer_ip) = engines.run_container("roamer", &[], &both);

    let cri = engines.cri();
    let (shop, far) = (cri.run_pod("shop", "cart", false), cri.run_pod("shop", "far", false));
    cri.run_container(&shop, "app", WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "shop/cart/app").then_some(()));
    cri.run_container(&shop, "sidecar", &fetch(&format!("http://{web_ip}/file")));
    cri.run_container_of(&cri.image_id(), &far, "probe", &fetch(&format!("http://{}:{outside_port}/", ADDRESSES[1])));
    let near = cri.run_pod("shop", "near", false);
    cri.run_container(&near, "probe", &fetch(&format!("http://{}/file", shop.ip)));
    let hostnet = cri.run_pod("kube-system", "node-agent", true);
    cri.run_container(&hostnet, "agent", &fetch(&format!("http://{web_ip}/file")));
    let published = command(Some(&pair.names[0]), "curl").args(["-s", "http://127.0.0.1:8080/file"]).output();
    assert_eq!(published.expect("curl").stdout.len(), 20_000);

    wait_for("all fetches", Duration::from_secs(30), || {
        let shown = pods(&agent);
        let done = |pod| {
            shown
                .iter()
                .any(|row| row.get("pod").is_some_and(|name| name == pod) && row["flows_out"].as_u64() >= Some(12))
        };
        let roamed = || containers(&agent).iter().any(|row| row["container"] == "roamer" && row["flows_out"] == 24);
        (["cart", "far", "near", "node-agent"].into_iter().all(done) && roamed()).then_some(())
    });
    let flows = agent.flows(FlowsArguments { limit: 0, ..FlowsArguments::default() });
    agent.settle();
    let (all, pods) = (containers(&agent), pods(&agent));
    agent.stop();
    let collected = collector.finish();
    for pod in [&shop, &far, &near, &hostnet] {
        cri.remove_pod(pod);
    }
    collected.assert_clean();

    // The collector: who talked to whom.
    let cases = [(&peer_ip, &web_ip, "peer", "web"), (&near.ip, &shop.ip, "shop/near/probe", "shop/cart/app")];
    for (from, to, client, server) in cases {
        let flows = between(&collected, from, to);
        assert_eq!(flows.len(), 12, "{client} -> {server}: {flows:#?}");
        for flow in flows {
            assert_eq!((&flow["src_container"], &flow["dst_container"]), (&client.into(), &server.into()), "{flow:#}");
            assert!(flow["out_bytes"].as_u64() > Some(20_000), "{flow:#}");
        }
    }
    // To the host's own server, which is in no container, and to the outside, behind a masquerade.
    for (to, server) in [("172.17.0.1", host.pid()), (ADDRESSES[1], outside.pid())] {
        let flows = between(&collected, &roamer_ip, to);
        assert_eq!(flows.len(), 12, "to {to}: {flows:#?}");
        for flow in flows {
            assert_eq!((&flow["src_container"], &flow["dst_container"]), (&"roamer".into(), &Value::Null), "{flow:#}");
            assert_eq!(flow["dst_pid"], server, "{flow:#}");
        }
    }
    // From the pods' bridge to Docker's the addresses are translated, and both ends are one flow.
    let translated = between(&collected, &shop.ip, &web_ip);
    assert_eq!(translated.len(), 12);
    assert!(translated.iter().all(|f| f["src_container"] == "shop/cart/sidecar" && f["dst_container"] == "web"));
    let far_flows = between(&collected, &far.ip, ADDRESSES[1]);
    assert_eq!(far_flows.len(), 12);
    for flow in far_flows {
        assert_eq!(flow["src_container"], "shop/far/probe", "{flow:#}");
        for (element, text) in [
            ("Client Kubernetes Pod", "far"),
            ("Client Namespace", "shop"),
            ("Client Container Image", "ci.local/bb:1"),
        ] {
            assert_eq!(flow[element], text, "{flow:#}");
        }
    }
    // In the host's network, the address says nothing and the cgroup everything. 8080 goes through Docker's proxy.
    let by = |name: &str| collected.flows().iter().filter(|f| f["src_container"] == name).count();
    assert_eq!(by("kube-system/node-agent/agent"), 12);
    let proxied =
        |f: &&Value| f["src_proc"].as_str().is_some_and(|p| p.ends_with("docker-proxy")) && f["dst_container"] == "web";
    assert_eq!(collected.flows().iter().filter(proxied).count(), 1);

    // ctl: names, runtimes, images, and how slow each network is.
    let web = named(&all, "container", "web");
    assert_eq!(
        (&web["runtime"], &web["id"], &web["image"]),
        (&"docker".into(), &web_id.as_str().into(), &"ci.local/bb:1".into())
    );
    assert!(web["labels"].as_array().expect("labels").contains(&"tier=front".into()), "{web:#?}");
    // 12 of its peer, 12 of the sidecar, 12 of the host's pod, one of the proxy.
    assert_eq!(web["flows_in"], 37, "{web:#?}");
    let app = named(&all, "container", "app");
    assert_eq!(
        (&app["runtime"], &app["pod"], &app["namespace"]),
        (&"containerd".into(), &"cart".into(), &"shop".into())
    );
    let cart = named(&pods, "pod", "cart");
    assert_eq!(cart["uid"], shop.uid.as_str());
    let mut members: Vec<_> =
        cart["containers"].as_array().expect("containers").iter().filter_map(Value::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["app", "sidecar"]);
    let far_us = microseconds(named(&pods, "pod", "far"), "rtt_out_p50");
    assert!((far_us - 20_000.0).abs() <= 2_000.0, "{far_us} us");
    let near_us = microseconds(named(&pods, "pod", "near"), "rtt_out_p50");
    assert!(near_us < 1_000.0, "{near_us} us");
    let place = |flow: &Row| flow.get("initiator_workload").and_then(Value::as_str).unwrap_or_default().to_owned();
    assert!(
        flows.iter().any(|flow| ["shop/", "kube-system/"].iter().any(|ns| place(flow).starts_with(ns))),
        "{flows:#?}"
    );
}

/// Whether something listens in this place, and its name is known.
fn listens(agent: &Agent, place: &str) -> bool {
    rows(agent, &Request::Ports, "ports").iter().any(|row| row.get("workload").is_some_and(|shown| shown == place))
}

#[test]
fn a_container_that_is_gone_at_once_is_named() {
    let Lab { mut agent, collector, engines, .. } = lab();
    let (_, web_ip) = engines.run_container("web", &[], WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "web").then_some(()));
    for number in 0..5 {
        // One request: a few milliseconds. The runtime forgets the container at its end.
        let (name, url) = (format!("brief-{number}"), format!("http://{web_ip}/file"));
        // All get the same address, and may draw the same port: ports of its own keep each another flow to a collector.
        let first = 20_000 + 10 * number;
        let ports = format!("net.ipv4.ip_local_port_range={first} {}", first + 9);
        let engine = ["run", "--rm", "--name", &name, "--sysctl", &ports, "ci.local/bb:1"];
        let run = [&engine[..], &["wget", "-q", "-O", "/dev/null", &url]].concat();
        let _ = engines.docker(&run);
    }
    agent.settle();
    let all = containers(&agent);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for number in 0..5 {
        let name = format!("brief-{number}");
        let brief = named(&all, "container", &name);
        assert_eq!(brief["flows_out"], 1, "{brief:#?}");
        let flow = collected.flows().iter().find(|f| f["src_container"] == name.as_str());
        let flow = flow.unwrap_or_else(|| panic!("{name}"));
        assert!(flow["src_cmdline"].as_str().is_some_and(|line| line.starts_with("wget -q")), "{flow:#}");
        assert_eq!(flow["Client Container ID"], brief["id"], "{flow:#}");
    }
}

#[test]
fn a_container_that_is_renamed_has_its_new_name() {
    let Lab { mut agent, collector, engines, pair } = lab();
    // Its path has the id only: who answers made it.
    let (_, web_ip) = engines.run_container("web", &["--cgroup-parent", "/sockeye-parent"], WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "web").then_some(()));
    assert_eq!(named(&containers(&agent), "container", "web")["runtime"], "docker");
    engines.docker(&["rename", "web", "shop"]);
    wait_for("the new name", Duration::from_secs(5), || listens(&agent, "shop").then_some(()));
    let fetched = command(Some(&pair.names[0]), "curl").args(["-s", &format!("http://{web_ip}/file")]).output();
    assert_eq!(fetched.expect("curl").stdout.len(), 20_000);
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let flows = collected.flows();
    assert!(flows.iter().any(|flow| flow["dst_addr"] == web_ip && flow["dst_container"] == "shop"), "{flows:#?}");
}

#[test]
fn containers_of_podman_have_names_and_pods_also_when_they_are_gone_at_once() {
    let pair = Pair::veth();
    let podman = Podman::start(&pair.names[0]);
    let (mut agent, collector) = exporting_agent_with(&["--config", &podman.config().display().to_string()]);
    podman.run(&["pod", "create", "--infra=false", "--name", "front"]);
    podman.run_container(&["-d", "--pod", "front", "--name", "web"], WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "front/web").then_some(()));
    for number in 0..3 {
        let name = format!("brief-{number}");
        podman.run_container(
            &["--rm", "--name", &name, "--label", "tier=front"],
            "wget -q -O /dev/null http://127.0.0.1/file",
        );
    }
    podman.run(&["rename", "web", "shop"]);
    wait_for("the new name", Duration::from_secs(15), || listens(&agent, "front/shop").then_some(()));
    agent.settle();
    let all = containers(&agent);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    for number in 0..3 {
        let name = format!("brief-{number}");
        let brief = named(&all, "container", &name);
        assert_eq!((&brief["runtime"], &brief["image"]), (&"podman".into(), &"ci.local/bb:1".into()), "{brief:#?}");
        assert_eq!(brief["labels"], Value::from(vec!["tier=front"]), "{brief:#?}");
        assert!(
            collected.flows().iter().any(|flow| flow["src_container"] == name.as_str()),
            "{name}: {:#?}",
            collected.flows()
        );
    }
    let shop = named(&all, "container", "shop");
    assert_eq!((&shop["pod"], shop.get("namespace")), (&"front".into(), None), "{shop:#?}");
}

#[test]
fn containers_of_plain_containerd_are_named_also_after_its_restart() {
    // The restart needs the namespace still.
    let Lab { mut agent, engines, pair: _pair, .. } = lab();
    let httpd = |port: u16| format!("exec httpd -f -p {port}");
    let shown = |agent: &Agent, name: &str| {
        wait_for(name, Duration::from_secs(10), || listens(agent, name).then_some(()));
        named(&containers(agent), "container", name).clone()
    };
    engines.ctr(&["images", "import", &engines.path("bb.tar").display().to_string()]);
    let run = |id: &str, labels: &[&str], port: u16| {
        let run = ["run", "-d", "--net-host"];
        engines.ctr(&[&run[..], labels, &["ci.local/bb:1", id, "sh", "-c", &httpd(port)]].concat());
    };
    run("plain1", &["--label", "tier=front"], 7001);
    let plain = shown(&agent, "plain1");
    assert_eq!((&plain["runtime"], &plain["image"]), (&"containerd".into(), &"ci.local/bb:1".into()), "{plain:#?}");
    assert_eq!(plain["cgroup"], "/default/plain1");
    assert!(plain["labels"].as_array().expect("labels").contains(&"tier=front".into()), "{plain:#?}");
    // As nerdctl makes them.
    run(&"ab".repeat(32), &["--label", "nerdctl/name=web"], 7002);
    assert_eq!(shown(&agent, "web")["id"], "ab".repeat(32));
    // A cgroup that only looks like one of containerd is none.
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let cgroup = Cgroup::new("/default/nothing");
    let status = cgroup.brief(server_port, 5, 500).stdout(Stdio::null()).status();
    assert!(status.expect("brief").success());
    agent.settle();
    let processes =
        rows(&agent, &Request::Processes(OwnersArguments { limit: 0, ..OwnersArguments::default() }), "processes");
    let brief = named(&processes, "cgroup", "/default/nothing");
    assert_eq!(brief.get("workload"), None, "{brief:#?}");
    // Its socket is another one then.
    engines.restart_containerd();
    run("plain2", &[], 7003);
    assert_eq!(shown(&agent, "plain2")["runtime"], "containerd");
    agent.stop();
}

#[test]
fn an_engine_that_is_killed_is_asked_again_when_it_is_back() {
    let Lab { mut agent, collector, engines, pair } = lab();
    let (_, web_ip) = engines.run_container("web", &["--restart", "no"], WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "web").then_some(()));
    // The container is made while the runtime lives, its first socket while the runtime is dead.
    let (late_id, _) = engines.run_container(
        "late",
        &[],
        &format!("while [ ! -e /go ]; do sleep 0.1; done; {}", fetch(&format!("http://{web_ip}/file"))),
    );
    engines.docker(&["exec", "late", "sh", "-c", "(sleep 3; touch /go) >/dev/null 2>&1 &"]);
    // Each with a source port of its own: one that comes back is the same flow to a collector.
    let load = Guard(
        command(Some(&pair.names[0]), "sh")
            .args(["-c", &format!("p=20000; while :; do p=$((p+1)); curl -s -o /dev/null --local-port $p http://{web_ip}/file; sleep 0.05; done")])
            .spawn()
            .expect("load"),
    );
    engines.kill_dockerd();
    // Its flows are there at once, under its id.
    wait_for("flows by id", Duration::from_secs(30), || {
        containers(&agent).iter().any(|row| row["id"] == late_id.as_str() && row["flows_out"] == 12).then_some(())
    });
    let shown = containers(&agent);
    assert_eq!(named(&shown, "id", &late_id)["container"], late_id[..12], "no engine can have told the name");
    engines.restart_dockerd();
    wait_for("the name", Duration::from_secs(60), || {
        containers(&agent).iter().any(|row| row["container"] == "late").then_some(())
    });
    drop(load);
    let complaints = agent.stderr();
    agent.stop();
    collector.finish().assert_clean();
    assert_eq!(complaints.matches("does not answer").count(), 1, "{complaints}");
    assert_eq!(complaints.matches("answers again").count(), 1, "{complaints}");
}

#[test]
fn five_hundred_containers_at_once() {
    const HAND_MADE: u16 = 490;
    let Lab { mut agent, collector, engines, .. } = lab();
    let (_, web_ip) = engines.run_container("web", &[], WEB_SERVER);
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "web").then_some(()));
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let cost = |agent: &Agent| {
        let answer = agent.ask(&Request::Overview).expect("an answer");
        let figure = |name: &str| answer.rows("overview")[0][name].as_f64().expect("a figure");
        (figure("memory") / 1024.0, figure("cpu_time") / 1e6)
    };
    let before = cost(&agent);
    // Ten of a real runtime, the others with real cgroups of the same shape, of which the runtime knows nothing.
    let made: Vec<_> = (0..HAND_MADE).map(|n| (n, Cgroup::new(&format!("/docker/{n:064x}")))).collect();
    let mut living: Vec<_> = made
        .iter()
        .map(|(n, cgroup)| Guard(cgroup.brief(port, 30_000, *n).stdout(Stdio::null()).spawn().expect("brief")))
        .collect();
    for n in 0..9 {
        let _ = engines.run_container(&format!("real-{n}"), &[], &fetch(&format!("http://{web_ip}/file")));
    }
    let shown = wait_for("500 containers", Duration::from_secs(30), || {
        let shown = containers(&agent);
        let of_engine =
            shown.iter().filter(|row| row["container"].as_str().is_some_and(|name| name.starts_with("real-")));
        (shown.len() >= 500 && of_engine.count() == 9).then_some(shown)
    });
    agent.settle();
    let after = cost(&agent);
    living.clear();
    drop(made);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    assert_eq!(shown.iter().filter(|row| row["runtime"] == "docker").count(), 500);
    for n in 0..HAND_MADE {
        let flow = collected.flow(10_000 + u64::from(n), port.into());
        assert_eq!(flow["src_container"], format!("{n:064x}")[..12], "{flow:#}");
    }
    let (kib, ms) = (after.0 - before.0, after.1 - before.1);
    println!("500 containers: {kib:.0} KiB and {ms:.0} ms of CPU more, flows, processes and questions included");
    assert!(kib < 16.0 * 1024.0, "{kib} KiB");
}

/// Ports and processes that a collector has heard of at an address.
fn ports_at(collected: &Collected, address: &str) -> Vec<(u64, String)> {
    let lists = collected.0["ports_by_address"][address].as_object().unwrap_or_else(|| panic!("{address}: nothing"));
    let ports = lists.values().flat_map(|list| list.as_array().expect("a list"));
    ports.map(|p| (p["port"].as_u64().expect("a port"), p["proc"].as_str().expect("a name").to_owned())).collect()
}

#[test]
fn every_address_has_exactly_the_ports_that_listen_there() {
    let pair = Pair::veth();
    let engines = Engines::start(&pair.names[0]);
    let zmq = free_port();
    let config = engines.config().display().to_string();
    let mut agent = Agent::start(&["--zmq", &format!("tcp://127.0.0.1:{zmq}c"), "--config", &config]);
    // The same port everywhere: of the host on one address only, of two namespaces, and of a container.
    let port = free_port();
    let text = port.to_string();
    let mut host = Traffic::start(None, &["http", "127.0.0.7", &text]);
    let mut near = Traffic::start(Some(&pair.names[0]), &["serve", ADDRESSES[0], &text]);
    let mut far = Traffic::start(Some(&pair.names[1]), &["serve", "::", &text]);
    for server in [&mut host, &mut near, &mut far] {
        let _ = server.says();
    }
    let (_, web_ip) = engines.run_container("web", &[], &format!("exec httpd -f -p {port}"));
    wait_for("web server", Duration::from_secs(10), || listens(&agent, "web").then_some(()));
    // Who listens on all addresses of a namespace is found at those that its flows have shown.
    for to in [ADDRESSES[1], &web_ip] {
        wait_for("a flow", Duration::from_secs(20), || {
            let url = format!("http://{to}:{port}/");
            let _ = command(Some(&pair.names[0]), "curl").args(["-s", "-m", "1", &url]).output();
            let closed = FlowsArguments { port: vec![port], closed: true, limit: 0, ..FlowsArguments::default() };
            let is_seen = |flow: &Row| flow["responder"] == format!("{to}:{port}") && flow["responder_pid"].is_u64();
            agent.flows(closed).iter().any(is_seen).then_some(())
        });
    }
    agent.settle();
    let collector = Collector::start(zmq, 60, &[]);
    agent.wait_connected();
    // A new collector hears of the ports three seconds after it was noticed, and three seconds later once more.
    std::thread::sleep(Duration::from_secs(8));
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let port = u64::from(port);
    for (address, process) in [(ADDRESSES[0], "python3"), (ADDRESSES[1], "python3"), (&web_ip, "busybox")] {
        let at = ports_at(&collected, address);
        assert_eq!(at.len(), 1, "{address}: {at:?}");
        assert!(at[0].0 == port && at[0].1.contains(process), "{address}: {at:?}");
    }
    assert!(ports_at(&collected, "127.0.0.7").iter().any(|(p, process)| *p == port && process.contains("python3")));
    assert!(ports_at(&collected, "127.0.0.1").iter().all(|(p, _)| *p != port), "nothing of the others is the host's");
}

#[test]
fn a_service_is_shown_by_its_unit_and_not_exported_as_a_container() {
    let (mut agent, collector) = exporting_agent();
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let cgroup = Cgroup::new("/sockeye-test.slice/demo.service");
    let status = cgroup.brief(server_port, 5, 500).stdout(Stdio::null()).status();
    assert!(status.expect("brief").success());
    agent.settle();
    let shown = containers(&agent);
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let service = named(&shown, "container", "demo.service");
    assert_eq!((&service["runtime"], &service["slice"]), (&"systemd".into(), &"sockeye-test.slice".into()));
    assert_eq!(service["flows_out"], 1);
    let flow = collected.flow(10_500, server_port.into());
    assert!(flow["src_container"].is_null(), "{flow:#}");
}

#[test]
fn the_same_addresses_in_other_namespaces_are_other_connections() {
    let mut agent = Agent::start(&[]);
    let pairs = [Pair::veth(), Pair::veth()];
    let talks: Vec<_> = pairs
        .iter()
        .map(|pair| {
            let mut server = Traffic::start(Some(&pair.names[1]), &["serve", ADDRESSES[1], "7000"]);
            let _ = server.says();
            let client = ["client", ADDRESSES[1], "7000", "100", "100", "hold"];
            let mut client = Traffic::start(Some(&pair.names[0]), &client);
            let _ = client.says();
            (client, server)
        })
        .collect();
    let shown = wait_for("two paired flows", Duration::from_secs(10), || {
        let shown = agent.flows_of_port(7000);
        (shown.len() == 2 && shown.iter().all(|flow| flow["direction"] == "local")).then_some(shown)
    });
    for (client, server) in &talks {
        let pids = |row: &&Row| row["initiator_pid"] == client.pid() && row["responder_pid"] == server.pid();
        assert_eq!(shown.iter().filter(pids).count(), 1, "{shown:#?}");
    }
    agent.stop();
}
