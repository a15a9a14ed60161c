//! Runtimes that reply nonsense, and names that want to break a terminal, a JSON document or ntopng.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sockeye_ctl::protocol::{FlowsArguments, OwnersArguments, Request};
use sockeye_tests::engines::{Cgroup, config};
use sockeye_tests::{Agent, Traffic, exporting_agent, exporting_agent_with, output, program, serve, talk, wait_for};

/// How a runtime may behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Garbage,
    HalfAMessage,
    Silence,
    HundredMegabytes,
    HostileNames,
}

/// Answers each connection in its manner. Ends with the test.
fn engine(socket: &Path, manner: Manner) {
    let listener = UnixListener::bind(socket).expect("a socket");
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().flatten() {
            let kept = stream.try_clone();
            std::thread::spawn(move || answer(stream, manner));
            // Silence is not an end of file.
            open.push(kept);
        }
    });
}

fn answer(mut stream: UnixStream, manner: Manner) {
    let mut request = [0; 4096];
    let n = stream.read(&mut request).unwrap_or(0);
    let ok = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    let _ = match manner {
        Manner::Garbage => stream.write_all(&[0xff; 3000]),
        Manner::HalfAMessage => stream.write_all(format!("{}{{\"Name\":\"/we", ok(1000)).as_bytes()),
        Manner::Silence => Ok(()),
        Manner::HundredMegabytes => stream
            .write_all(ok(100 << 20).as_bytes())
            .and_then(|()| (0..100).try_for_each(|_| stream.write_all(&vec![b' '; 1 << 20]))),
        Manner::HostileNames if request[..n].starts_with(b"GET /containers") => {
            let body = json!({"Name": "/evil\u{1b}[2J\u{202e}\n", "Config": {"Image": "i\u{7}",
                "Labels": {"long": "x".repeat(1 << 20), "a\nb": "\u{1b}]0;owned\u{7}"}}})
            .to_string();
            stream.write_all(format!("{}{body}", ok(body.len())).as_bytes())
        }
        Manner::HostileNames => Ok(()),
    };
    if manner == Manner::HalfAMessage {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    std::thread::sleep(Duration::from_secs(60));
}

fn resident_kib(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("alive");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// One connection by a process in a cgroup; returns its source port.
fn connect_from(cgroup: &Cgroup, port: u16, label: u16) -> u64 {
    let child = cgroup.brief(port, 5, label).spawn().expect("brief");
    let said = child.wait_with_output().expect("an end").stdout;
    String::from_utf8_lossy(&said).trim().parse().expect("a port")
}

#[test]
fn engines_that_reply_nonsense_change_nothing() {
    let ids = ["d", "e"].map(|digit| digit.repeat(64));
    let docker = Cgroup::new(&format!("/docker/{}", ids[0]));
    let pod = Cgroup::new(&format!("/kubepods/burstable/pod{}/{}", "5".repeat(32), ids[1]));
    for manner in [Manner::Garbage, Manner::HalfAMessage, Manner::Silence, Manner::HundredMegabytes] {
        let dir = tempfile::tempdir().expect("a folder");
        let sockets = ["docker", "cri"].map(|kind| dir.path().join(kind));
        sockets.iter().for_each(|socket| engine(socket, manner));
        let config = config(dir.path(), &[("docker", &sockets[0]), ("cri", &sockets[1])]);
        let (mut agent, collector) = exporting_agent_with(&["--config", &config.display().to_string()]);
        let (_server, server_port, _) = serve("serve", "127.0.0.1");
        let before_kib = resident_kib(&agent);
        let from = [(&docker, 1), (&pod, 2)].map(|(cgroup, label)| connect_from(cgroup, server_port, label));
        wait_for("failures of both engines", Duration::from_secs(10), || {
            let answer = agent.ask(&Request::Stats).expect("an answer");
            let engines = answer.rows("runtimes");
            (engines.len() == 2 && engines.iter().all(|row| row["failed"].as_u64() > Some(0))).then_some(())
        });
        agent.settle();
        let grown_kib = resident_kib(&agent).saturating_sub(before_kib);
        let unnamed = agent.loss("container_unnamed");
        let complaints = agent.stderr();
        agent.stop();
        let collected = collector.finish();
        collected.assert_clean();
        for (local, id) in from.iter().zip(&ids) {
            assert_eq!(collected.flow(*local, server_port.into())["src_container"], id[..12], "{manner:?}");
        }
        assert_eq!((unnamed, complaints.matches("does not answer").count()), (2, 2), "{manner:?}: {complaints}");
        assert!(grown_kib < 24 << 10, "{manner:?}: {grown_kib} KiB more");
    }
}

/// Printable text and ends of lines only.
fn assert_harmless(text: &str) {
    let bad: Vec<char> = text.chars().filter(|c| c.is_control() && *c != '\n' || *c == '\u{202e}').collect();
    assert!(bad.is_empty(), "{bad:?} in {text}");
}

#[test]
fn hostile_names_are_shown_safely_everywhere() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("docker");
    engine(&socket, Manner::HostileNames);
    let config = config(dir.path(), &[("docker", &socket)]);
    let (mut agent, collector) = exporting_agent_with(&["-v", "--config", &config.display().to_string()]);
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    // A container whose runtime lies, and a process with 64 KB of rubbish for a command line and an escape for a name.
    let container = Cgroup::new(&format!("/docker/{}", "f".repeat(64)));
    let contained = connect_from(&container, server_port, 3);
    let said = talk(&["hostile", "127.0.0.1", &server_port.to_string()]);
    agent.settle();
    let shown = agent.flows(FlowsArguments { limit: 0, ..FlowsArguments::default() });
    let containers = agent.ask(&Request::Containers(OwnersArguments::default())).expect("containers");
    let socket = agent.socket().display().to_string();
    let ctl = program("ctl").display().to_string();
    for command in ["flows", "processes", "containers", "pods", "workloads", "peers", "ports", "stats"] {
        assert_harmless(&output(&ctl, &["--socket", &socket, command]));
        let document = output(&ctl, &["--socket", &socket, "--json", command]);
        assert_harmless(document.trim_end());
        let _: Value = serde_json::from_str(&document).expect("JSON");
    }
    for by in ["process", "container", "pod", "workload", "image", "label:tier", "peer"] {
        assert_harmless(&output(&ctl, &["--socket", &socket, "rtt", "--by", by]));
    }
    agent.stop();
    assert_harmless(&agent.stdout());
    let collected = collector.finish();
    collected.assert_clean();
    let flow = collected.flow(contained, server_port.into());
    assert_eq!(flow["src_container"], "evil\u{fffd}[2J\u{fffd}\u{fffd}", "{flow:#}");
    let labels = &containers.rows("containers")[0]["labels"];
    assert!(labels.as_array().expect("labels").iter().all(|l| l.as_str().is_some_and(|l| l.len() < 600)), "{labels}");
    let flow = collected.flow(said["local"].as_u64().expect("a port"), server_port.into());
    let cmdline = flow["src_cmdline"].as_str().expect("a command line");
    assert!(cmdline.contains(" \u{fffd}\u{fffd}[31m\u{fffd}") && cmdline.len() <= 4096, "{cmdline}");
    assert!(!shown.is_empty());
}

#[test]
fn one_program_after_another_in_the_same_process() {
    let (mut agent, collector) = exporting_agent();
    let (_server, server_port, _) = serve("serve", "127.0.0.1");
    let brief = program("brief").display().to_string();
    let mut traffic = Traffic::start(None, &["exec_into", "127.0.0.1", &server_port.to_string(), &brief]);
    let (said, pid) = (traffic.says(), traffic.pid());
    let second = traffic.says().as_u64().expect("the second program's port");
    traffic.wait();
    agent.settle();
    agent.stop();
    let collected = collector.finish();
    collected.assert_clean();
    let first = collected.flow(said["local"].as_u64().expect("a port"), server_port.into());
    let second = collected.flow(second, server_port.into());
    for (flow, name) in [(first, "traffic.py exec_into"), (second, "brief 127.0.0.1")] {
        assert_eq!(flow["src_pid"], pid, "{flow:#}");
        assert!(flow["src_cmdline"].as_str().is_some_and(|line| line.contains(name)), "{name}: {flow:#}");
    }
}
