//! Secrets in command lines stay on the host, and out of every table.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;
use sockeye_ctl::protocol::{FlowsArguments, OwnersArguments, Request};
use sockeye_tests::{Agent, Guard, PYTHON, exporting_agent_with, output, program, serve};

/// Connects, says from which port, and stays. With a title, it gives itself that first, as setproctitle(3) does: over its
/// own arguments.
const CONNECTS: &str = r#"
import ctypes, socket, sys
port, title = int(sys.argv[1]), sys.argv[2].replace("+", " ").encode()
if title:
    stat = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
    begin, end = int(stat[45]), int(stat[46])
    ctypes.memmove(begin, title.ljust(end - begin, b"\0"), end - begin)
s = socket.create_connection(("127.0.0.1", port))
s.sendall(bytes(8))
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"#;

/// It is nowhere else.
const SECRET: &str = "hunter2";

struct Connected {
    process: Guard,
    local: u64,
}

fn connect(port: u16, title: &str, more: &[&str]) -> Connected {
    // Not on the command line, of which the kernel tells 512 bytes.
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("connects.py");
    fs::write(&script, CONNECTS).expect("a script");
    let mut command = Command::new(PYTHON);
    command.arg(&script).args([&port.to_string(), title]).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3");
    let mut said = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
    Connected { process: Guard(child), local: said.trim().parse().expect("a port") }
}

fn cmdline_of(agent: &Agent, local: u64) -> Value {
    let flows = agent.flows_of_port(u16::try_from(local).expect("a port"));
    assert_eq!(flows.len(), 1, "{flows:#?}");
    flows[0].get("initiator_cmdline").cloned().unwrap_or_default()
}

#[test]
fn what_looks_like_a_secret_is_told_to_nobody() {
    let (mut agent, collector) = exporting_agent_with(&["-v"]);
    let mut program_only = Agent::start(&["--command-line", "program"]);
    let mut off = Agent::start(&["--command-line", "off"]);
    let (mut full, told_all) = exporting_agent_with(&["--command-line", "full", "--zmq-format", "tlv"]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let url = format!("postgresql://app:{SECRET}@db/shop");
    let token = format!("API_TOKEN={SECRET}");
    let plain = connect(port, "", &["--password", SECRET, &url, &token, "--password-file", "/run/secrets/db"]);
    // The kernel's record has the beginning only, and ends within the secret; /proc has the rest.
    let long = connect(port, "", &[&format!("--client-secret={}", SECRET.repeat(100)), "--end"]);
    let titled = connect(port, &format!("shop:+worker+--password={SECRET}+ready"), &[&"x".repeat(60)]);
    for agent in [&agent, &program_only, &off, &full] {
        agent.settle();
    }

    let shown = cmdline_of(&agent, plain.local);
    let end = "--password *** postgresql://app:***@db/shop API_TOKEN=*** --password-file /run/secrets/db";
    assert!(shown.as_str().is_some_and(|line| line.ends_with(end)), "{shown}");
    let shown = cmdline_of(&agent, long.local);
    assert!(shown.as_str().is_some_and(|line| line.ends_with("--client-secret=*** --end")), "{shown}");
    assert_eq!(cmdline_of(&agent, titled.local), "shop: worker --password=*** ready");
    // Neither may a filter tell it.
    let asked = FlowsArguments { process: vec![SECRET.into()], ..FlowsArguments::default() };
    assert_eq!(agent.flows(asked), []);
    let asked = Request::Processes(OwnersArguments { name: Some(SECRET.into()), ..OwnersArguments::default() });
    assert_eq!(agent.ask(&asked).expect("an answer").rows("processes"), []);

    for (local, program) in [(plain.local, PYTHON), (long.local, PYTHON), (titled.local, "shop:")] {
        assert_eq!(cmdline_of(&program_only, local), program);
        assert_eq!(cmdline_of(&off, local), Value::Null);
    }
    let ctl = program("ctl").display().to_string();
    for agent in [&agent, &program_only, &off] {
        let socket = agent.socket().display().to_string();
        for command in ["flows", "processes", "ports", "peers", "rtt", "workloads", "stats"] {
            for form in [&["--socket", &socket, command][..], &["--socket", &socket, "--json", command]] {
                let text = output(&ctl, form);
                assert!(!text.contains(SECRET), "{form:?}: {text}");
            }
        }
    }
    for connected in [plain, long, titled] {
        let mut child = connected.process;
        drop(child.0.stdin.take());
        child.0.wait().expect("an end");
    }
    for agent in [&mut agent, &mut program_only, &mut off, &mut full] {
        agent.stop();
    }
    for text in [agent.stdout(), agent.stderr()] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert!(agent.stdout().contains("python3["), "{}", agent.stdout());
    let collected = collector.finish();
    collected.assert_clean();
    let text = collected.0.to_string();
    assert!(!text.contains(SECRET) && text.contains("--client-secret=***"), "{text}");
    // The test would see it.
    assert!(told_all.finish().0.to_string().contains(&format!("--password {SECRET}")));
}

/// The other shape of records.
#[test]
fn json_for_ntopng_has_no_secret_either() {
    let context = zmq::Context::new();
    let subscriber = context.socket(zmq::SUB).expect("a socket");
    subscriber.set_subscribe(b"flow").expect("subscribes");
    subscriber.set_rcvtimeo(10_000).expect("a timeout");
    let zmq_port = sockeye_tests::free_port();
    subscriber.bind(&format!("tcp://127.0.0.1:{zmq_port}")).expect("binds");
    let endpoint = format!("tcp://127.0.0.1:{zmq_port}c");
    let mut agent = Agent::start(&["--zmq", &endpoint, "--zmq-format", "json"]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let connected = connect(port, "", &["--password", SECRET]);
    loop {
        let message = subscriber.recv_multipart(0).expect("a flow");
        let flows: Vec<Value> = serde_json::from_slice(&message[1]).expect("JSON");
        let Some(flow) = flows.iter().find(|flow| flow["L4_SRC_PORT"] == connected.local) else { continue };
        let text = flow.to_string();
        assert!(text.contains("--password ***") && !text.contains(SECRET), "{text}");
        break;
    }
    agent.stop();
}
