//! Lines of JSON: true, valid, and whole whatever happens to the file or to who reads them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sockeye_ctl::{Client, Request};
use sockeye_tests::engines::Cgroup;
use sockeye_tests::{Agent, Guard, PYTHON, Traffic, here, output, program, serve, talk, wait_for};

/// All lines, each of which must be whole.
fn lines(text: &str) -> Vec<Value> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is not whole: {:?}", text.lines().last());
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"))).collect()
}

fn lines_of(path: &Path) -> Vec<Value> {
    lines(&fs::read_to_string(path).expect("a file"))
}

/// By a validator of JSON Schema that is not ours.
fn assert_valid(path: &Path) {
    let (validator, schema) = (here("oracle/validate_json.py"), here("../docs/json.schema.json"));
    let args = [&validator, &schema, path].map(|path| path.display().to_string());
    let count: usize = output(PYTHON, &args.each_ref().map(String::as_str)).trim().parse().expect("a count");
    assert!(count > 0 && count == lines_of(path).len());
}

fn of_flow(lines: &[Value], local: &Value) -> Vec<Value> {
    lines.iter().filter(|line| line["source"]["port"] == *local).cloned().collect()
}

fn sum(lines: &[Value], side: &str, field: &str) -> u64 {
    lines.iter().map(|line| line[side][field].as_u64().expect("a count")).sum()
}

fn actions(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"]["action"].as_str().expect("an action")).collect()
}

/// Short connections from an address of their own; returns how many.
fn storm(port: u16, count: u32, source: &str) -> u64 {
    let said = talk(&["storm", "127.0.0.1", &port.to_string(), &count.to_string(), source]);
    said["done"].as_u64().expect("a count")
}

/// Flows of a storm that have ended.
fn ended(lines: &[Value], source: &str) -> u64 {
    let is_end = |line: &&Value| line["source"]["ip"] == source && line["event"]["action"] == "flow-end";
    lines.iter().filter(is_end).count() as u64
}

fn complaints(agent: &Agent, about: &str) -> usize {
    agent.stderr().matches(about).count()
}

#[test]
fn a_line_says_what_the_programs_did() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows.json");
    let target = path.display().to_string();
    let mut agent = Agent::start(&["--json", &target, "--report-interval", "1", "--active-timeout", "5"]);
    let (server, port, _) = serve("serve", "127.0.0.1");
    let mut open = Traffic::start(None, &["client", "127.0.0.1", &port.to_string(), "12345", "54321", "hold"]);
    let said = open.says();
    wait_for("a flow that goes on", Duration::from_secs(20), || {
        actions(&of_flow(&lines_of(&path), &said["local"])).contains(&"flow-update").then_some(())
    });
    open.dismiss();
    open.wait();
    let (_echo, udp_port, _) = serve("udp_echo", "127.0.0.1");
    let datagrams = talk(&["udp_client", "127.0.0.1", &udp_port.to_string(), "3", "100", "connected"]);
    let pod = Cgroup::new(&format!("/kubepods/burstable/pod{}/{}", "5".repeat(32), "e".repeat(64)));
    assert!(pod.brief(port, 5, 700).stdout(Stdio::null()).status().expect("brief").success());
    agent.settle();
    agent.stop();
    assert_valid(&path);
    let all = lines_of(&path);

    let flow = of_flow(&all, &said["local"]);
    let actions = actions(&flow);
    assert_eq!((actions.first(), actions.last()), (Some(&"flow-start"), Some(&"flow-end")), "{actions:?}");
    assert!(actions[1..actions.len() - 1].iter().all(|action| *action == "flow-update"), "{actions:?}");
    assert_eq!((sum(&flow, "source", "bytes"), sum(&flow, "destination", "bytes")), (12_345 + 8, 54_321));
    assert_eq!(sum(&flow, "network", "bytes"), 12_345 + 8 + 54_321);
    let last = flow.last().expect("an end");
    let total = &last["sockeye"]["total"];
    assert_eq!((&total["initiator"]["bytes"], &total["responder"]["bytes"]), (&said["sent"], &said["received"]));
    assert_eq!(last["event"]["type"], serde_json::json!(["connection", "end"]));
    assert_eq!((&last["sockeye"]["state"], &last["event"]["outcome"]), (&"closed".into(), &"success".into()));
    assert!(last["event"]["duration"].as_u64() > Some(3_000_000_000), "{last:#}");
    assert_eq!((&last["process"]["pid"], &last["user"]["name"]), (&said["pid"], &"root".into()), "{last:#}");
    assert_eq!(last["process"]["parent"]["pid"], std::process::id());
    assert_eq!(last["sockeye"]["responder"]["process"]["pid"], server.pid());
    assert!(last["process"]["command_line"].as_str().is_some_and(|line| line.contains("traffic.py client")));
    assert!(last["sockeye"]["initiator"]["rtt_us"].as_u64() > Some(0), "{last:#}");
    assert!(last["network"]["community_id"].as_str().is_some_and(|id| id.len() == 30), "{last:#}");

    let flow = of_flow(&all, &datagrams["local"]);
    assert_eq!((sum(&flow, "source", "bytes"), sum(&flow, "destination", "packets")), (300, 3), "{flow:#?}");
    assert_eq!(flow[0]["network"]["transport"], "udp");
    let flow = of_flow(&all, &10_700.into());
    assert_eq!(flow.last().expect("a flow")["container"]["id"], "e".repeat(64), "{flow:#?}");
    assert_eq!(flow[0]["orchestrator"]["resource"]["type"], "pod", "{flow:#?}");
}

/// By rename as logrotate does it, with SIGHUP, and by copying and truncating.
#[test]
fn rotation_loses_no_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows.json");
    let mut agent = Agent::start(&["--json", &path.display().to_string()]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let done = std::thread::scope(|scope| {
        let storm = scope.spawn(|| storm(port, 8_000, "127.0.5.1"));
        for number in 0..5 {
            // Each has some lines, and the next one is there when the agent has noticed.
            wait_for("lines", Duration::from_secs(20), || (!fs::read(&path).ok()?.is_empty()).then_some(()));
            fs::rename(&path, folder.path().join(format!("flows.json.{number}"))).expect("renamed");
            if number % 2 == 0 {
                kill(Pid::from_raw(i32::try_from(agent.pid()).expect("a pid")), Signal::SIGHUP).expect("it lives");
            }
            wait_for("a new file", Duration::from_secs(10), || path.exists().then_some(()));
            if storm.is_finished() {
                break;
            }
        }
        storm.join().expect("an end")
    });
    agent.settle();
    // Nothing is written meanwhile.
    let copy = folder.path().join("copy");
    fs::copy(&path, &copy).expect("a copy");
    fs::File::options().write(true).open(&path).and_then(|file| file.set_len(0)).expect("truncated");
    let more = storm(port, 100, "127.0.5.2");
    agent.settle();
    agent.stop();
    let files: Vec<_> = fs::read_dir(folder.path()).expect("a folder").flatten().map(|file| file.path()).collect();
    assert!(files.len() >= 4, "{files:?}");
    let all: Vec<Value> = files.iter().flat_map(|file| lines_of(file)).collect();
    assert_eq!((ended(&all, "127.0.5.1"), ended(&all, "127.0.5.2")), (done, more));
    assert_eq!(ended(&lines_of(&path), "127.0.5.2"), more, "from its beginning, without a hole");
    let last = fs::read(&path).expect("a file");
    assert!(last.starts_with(b"{\"@timestamp\""));
}

#[test]
fn sighup_opens_the_file_again_even_where_nobody_would_notice() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows.json");
    // As a killed agent may leave it, and as others may.
    fs::write(&path, "{\"@timestamp\":\"2026-01-01T0").expect("a file");
    let agent = Agent::start(&["--json", &path.display().to_string()]);
    assert_eq!(fs::read_to_string(&path).expect("a file"), "", "half a line is no line");
    let descriptor = || {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it lives").flatten();
        open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == path))
            .map(|fd| fd.file_name())
            .collect::<Vec<_>>()
    };
    let before = descriptor();
    assert_eq!(before.len(), 1, "{before:?}");
    kill(Pid::from_raw(i32::try_from(agent.pid()).expect("a pid")), Signal::SIGHUP).expect("it lives");
    wait_for("another descriptor", Duration::from_secs(5), || {
        let now = descriptor();
        (now.len() == 1 && now != before).then_some(())
    });
}

/// The agent in a mount namespace of its own, where a small file system is.
fn agent_on(folder: &Path, size: &str) -> Agent {
    let mount = format!("mount -t tmpfs -o size={size} json {0} && exec \"$@\"", folder.display());
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &mount, "sh"]).arg(program("sockeye"));
    command.arg("--json").arg(folder.join("flows.json"));
    Agent::start_by(command)
}

fn in_its_namespace(agent: &Agent, command: &[&str]) {
    let pid = agent.pid().to_string();
    let _ = output("nsenter", &[&["-t", &pid, "-m"], command].concat());
}

#[test]
fn a_full_disk_costs_a_counter_and_one_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut agent = agent_on(folder.path(), "64k");
    let seen = Path::new("/proc").join(agent.pid().to_string()).join("root");
    let path = seen.join(folder.path().join("flows.json").strip_prefix("/").expect("absolute"));
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let done = storm(port, 500, "127.0.6.1");
    wait_for("a full disk", Duration::from_secs(10), || (agent.figure("exports", "connected") == "no").then_some(()));
    agent.settle();
    // It is full, it stays full, and it is said once. There is no half line in it.
    std::thread::sleep(Duration::from_secs(3));
    let written = lines_of(&path).len();
    assert!(written > 0 && (written as u64) < done, "{written}");
    assert_eq!(complaints(&agent, "cannot write to"), 1, "{}", agent.stderr());
    assert!(agent.stderr().contains("No space left on device"), "{}", agent.stderr());
    assert!(agent.sum("exports", "queued") > 0);
    in_its_namespace(&agent, &["mount", "-o", "remount,size=64m", &folder.path().display().to_string()]);
    wait_for("room", Duration::from_secs(10), || (agent.figure("exports", "connected") == "yes").then_some(()));
    agent.settle();
    assert_eq!(complaints(&agent, "takes flows again"), 1, "{}", agent.stderr());
    assert_eq!((agent.sum("exports", "dropped"), ended(&lines_of(&path), "127.0.6.1")), (0, done));
    let copy = folder.path().join("copy.json");
    fs::copy(&path, &copy).expect("a copy");
    assert_valid(&copy);
    agent.stop();
}

#[test]
fn a_folder_may_vanish_and_come_back() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("log");
    fs::create_dir(&folder).expect("a folder");
    let path = folder.join("flows.json");
    let mut agent = Agent::start(&["--json", &path.display().to_string()]);
    let (_server, port, _) = serve("serve", "127.0.0.1");
    fs::remove_dir_all(&folder).expect("removed");
    wait_for("its end", Duration::from_secs(10), || (agent.figure("exports", "connected") == "no").then_some(()));
    let done = storm(port, 100, "127.0.6.2");
    agent.settle();
    fs::create_dir(&folder).expect("a folder");
    wait_for("a file", Duration::from_secs(10), || (agent.figure("exports", "connected") == "yes").then_some(()));
    agent.settle();
    assert_eq!((ended(&lines_of(&path), "127.0.6.2"), complaints(&agent, "cannot write to")), (done, 1));
    agent.stop();
    let refused = Command::new(program("sockeye")).args(["--json", "/nowhere/flows.json"]).output().expect("sockeye");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), why.lines().count()), (Some(69), 1), "{why}");
    assert!(why.contains("/nowhere/flows.json") && why.contains("a folder that is there"), "{why}");
}

/// Accepts once, and hands over what it reads when that is over.
fn listen(path: &Path) -> mpsc::Receiver<String> {
    let listener = UnixListener::bind(path).expect("a socket");
    let (send, received) = mpsc::channel();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the agent");
        drop(listener);
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    received
}

#[test]
fn a_listener_may_come_late_go_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows.sock");
    let mut agent = Agent::start(&["--json", &format!("unix:{}", path.display())]);
    assert_eq!(agent.figure("exports", "connected"), "no");
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let mut expected = BTreeMap::new();
    let mut all = String::new();
    for source in ["127.0.7.1", "127.0.7.2"] {
        // Before anybody listens, and while somebody does.
        expected.insert(source, storm(port, 200, source));
        agent.settle();
        let received = listen(&path);
        agent.wait_connected();
        let while_there = format!("{source}1");
        let more = storm(port, 50, &while_there);
        agent.settle();
        let is_last = |text: &str| ended(&lines(text), &while_there) == more;
        while !is_last(&all) {
            let line = received.recv_timeout(Duration::from_secs(10)).expect("a line");
            all += &(line + "\n");
        }
        // It leaves: the agent notices with the next line that nobody takes.
        drop(received);
        fs::remove_file(&path).expect("removed");
        wait_for("its end", Duration::from_secs(20), || {
            let _ = storm(port, 5, &format!("{source}2"));
            (agent.figure("exports", "connected") == "no").then_some(())
        });
    }
    assert_eq!(complaints(&agent, "cannot write to"), 3, "once before, and whenever it leaves: {}", agent.stderr());
    for (source, done) in expected {
        assert_eq!(ended(&lines(&all), source), done, "{source}");
    }
    assert_eq!(agent.sum("exports", "dropped"), 0);
    agent.stop();
    let copy = folder.path().join("copy.json");
    fs::write(&copy, &all).expect("a copy");
    assert_valid(&copy);
}

#[test]
fn a_listener_that_does_not_read_costs_a_counter() {
    const EACH: u32 = 9_500;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("flows.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut agent = Agent::start(&["--json", &format!("unix:{}", path.display())]);
    let (mut stream, _): (UnixStream, _) = listener.accept().expect("the agent");
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let done: u64 = ["127.0.8.1", "127.0.8.2"].map(|source| storm(port, EACH, source)).iter().sum();
    wait_for("a word about it", Duration::from_secs(20), || {
        (agent.figure("exports", "connected") == "no" && agent.sum("exports", "dropped") > 0).then_some(())
    });
    agent.settle();
    assert_eq!(complaints(&agent, "nobody reads"), 1, "{}", agent.stderr());
    assert!(agent.sum("exports", "queued") <= 16_384 + 512);
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        text
    });
    wait_for("all of the queue", Duration::from_secs(30), || {
        (agent.sum("exports", "queued") == 0 && agent.figure("exports", "connected") == "yes").then_some(())
    });
    let dropped = agent.sum("exports", "dropped");
    agent.stop();
    let all = lines(&reader.join().expect("an end"));
    let missing = done - ended(&all, "127.0.8.1") - ended(&all, "127.0.8.2");
    // Others than the storms are in the queue as well, and a flow may have two reports.
    assert!(missing > 0 && missing <= dropped && dropped <= missing + done / 2, "{missing} missing, {dropped} dropped");
}

/// `sockeye --json - | head -1`.
#[test]
fn standard_output_ends_with_its_reader() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("ctl.sock");
    let mut command = Command::new(program("sockeye"));
    command.args(["-v", "--json", "-", "--control-socket"]).arg(&socket).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut agent = Guard(command.spawn().expect("sockeye starts"));
    let mut out = BufReader::new(agent.0.stdout.take().expect("a pipe"));
    wait_for("the agent", Duration::from_secs(20), || Client::new(&socket).ask(&Request::Stats).ok());
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let said = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    let line = loop {
        let mut text = String::new();
        out.read_line(&mut text).expect("a line");
        // Each is one: -v prints nothing in between.
        let line = lines(&text).remove(0);
        if line["source"]["port"] == said["local"] {
            break line;
        }
    };
    assert_eq!(line["process"]["pid"], said["pid"]);
    drop(out);
    let _ = talk(&["client", "127.0.0.1", &port.to_string(), "10", "10"]);
    let status = wait_for("its end", Duration::from_secs(10), || agent.0.try_wait().expect("a child"));
    assert!(status.success(), "{status}");
}
