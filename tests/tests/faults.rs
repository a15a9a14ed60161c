//! Faults of the agent's surroundings and of itself: it goes on, or ends and says why. It never goes blind in silence.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sockeye_ctl::{Client, Request};
use sockeye_tests::{
    Agent, Collector, Guard, exporting_agent, free_port, program, prometheus, serve, settle_at, talk, wait_for,
};

/// An agent whose standard output and error go where the test wants, beside a collector.
struct Bare {
    agent: Guard,
    client: Client,
    socket: PathBuf,
    collector: Collector,
    _folder: tempfile::TempDir,
}

fn bare(change: impl FnOnce(&mut Command)) -> Bare {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let collector = Collector::start(port, 120, &[]);
    let socket = folder.path().join("ctl.sock");
    let mut command = Command::new(program("sockeye"));
    command.args(["-v", "--zmq", &format!("tcp://127.0.0.1:{port}c"), "--control-socket"]).arg(&socket);
    change(&mut command);
    let agent = Guard(command.spawn().expect("sockeye starts"));
    let client = Client::new(&socket);
    wait_for("a collector", Duration::from_secs(20), || {
        let answer = client.ask(&Request::Stats).ok()?;
        answer.rows("exports").iter().any(|row| row["connected"] == "yes" && row["to"] != "stdout").then_some(())
    });
    Bare { agent, client, socket, collector, _folder: folder }
}

/// Connections, each of which the collector must hear of.
fn connections(count: u64) -> (u16, u64) {
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let _ = talk(&["storm", "127.0.0.1", &port.to_string(), &count.to_string()]);
    (port, count)
}

fn assert_all_heard_of(collector: Collector, (port, count): (u16, u64)) {
    let collected = collector.finish();
    collected.assert_clean();
    let heard = collected.flows().iter().filter(|flow| flow["dst_port"] == port).count() as u64;
    assert_eq!(heard, count);
}

fn end(agent: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(agent.id()).expect("a pid")), signal).expect("it lives");
}

/// `sockeye -v --zmq … 2>&1 | head -3`: messages are lost, exports are not.
#[test]
fn nobody_reads_what_it_says() {
    for closed in [true, false] {
        let mut ends = None;
        let mut bare = bare(|command| {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            command.stdout(writer.try_clone().expect("a copy")).stderr(writer);
            ends = Some(reader);
        });
        // Closed: each write fails. Open, and nobody reads: each write waits for ever, once the pipe is full.
        if closed {
            ends = None;
        }
        let made = connections(30);
        settle_at(&bare.socket);
        let threads = bare.client.ask(&Request::Stats).expect("an answer").rows("threads");
        assert!(threads.iter().all(|row| row["restarts"] == 0), "{threads:#?}");
        end(&bare.agent.0, Signal::SIGTERM);
        let _ = bare.agent.0.wait();
        drop(ends);
        assert_all_heard_of(bare.collector, made);
    }
}

/// Threads that answer questions: where one dies another one takes its place.
const ANSWERING: [&str; 2] = ["sockeye-enrich", "sockeye-package"];
/// Threads that are started again.
const RESTARTED: [&str; 9] = [
    "sockeye-ctl",
    "sockeye-http",
    "sockeye-json",
    "sockeye-names",
    "sockeye-signals",
    "sockeye-systemd",
    "sockeye-text",
    "sockeye-watch",
    "sockeye-zmq",
];

/// An agent with all that it can be asked to do, beside a collector.
struct Whole {
    agent: Agent,
    collector: Collector,
    lines: PathBuf,
    metrics: u16,
    notified: UnixDatagram,
    _folder: tempfile::TempDir,
}

impl Whole {
    /// The thread of this name panics once.
    fn start(panics: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (lines, notify) = (folder.path().join("flows.json"), folder.path().join("notify"));
        let notified = UnixDatagram::bind(&notify).expect("a socket");
        let (port, metrics) = (free_port(), free_port());
        let collector = Collector::start(port, 120, &[]);
        let mut command = Command::new(program("sockeye"));
        command.args(["-v", "--zmq", &format!("tcp://127.0.0.1:{port}c"), "--json"]).arg(&lines);
        command.args(["--prometheus", &format!("127.0.0.1:{metrics}")]);
        command.env("NOTIFY_SOCKET", &notify).env("SOCKEYE_TEST_PANIC", panics);
        Self { agent: Agent::start_by(command), collector, lines, metrics, notified, _folder: folder }
    }

    /// How often a thread was started again, or replaced by another one.
    fn restarts(&self, name: &str) -> u64 {
        let answer = self.agent.ask(&Request::Stats).expect("an answer");
        let sum = |table: &str, key: &str, value: &str, column: &str| {
            let rows = answer.rows(table).into_iter().filter(|row| row[key] == value);
            let figures: Vec<_> = rows.map(|row| row[column].as_u64().expect("a count")).collect();
            assert!(!figures.is_empty(), "{value} is not listed");
            figures.iter().sum()
        };
        match name {
            "sockeye-enrich" => sum("questions", "about", "processes", "replaced"),
            "sockeye-package" => sum("questions", "about", "packages", "replaced"),
            _ => sum("threads", "name", name, "restarts"),
        }
    }

    /// Waits until the thread has died and runs again.
    fn wait_for_restart(&self, name: &str) {
        wait_for(name, Duration::from_secs(10), || {
            // Some work only when somebody wants something.
            let _ = TcpStream::connect(("127.0.0.1", self.metrics));
            let again = self.restarts(name);
            assert!(again <= 1, "{again}");
            (again == 1).then_some(())
        });
    }

    /// Each part does its work.
    fn assert_whole(mut self, name: &str) {
        wait_for("a collector", Duration::from_secs(20), || {
            let exports = self.agent.ask(&Request::Stats).expect("an answer").rows("exports");
            exports.iter().all(|row| row["connected"] == "yes").then_some(())
        });
        let made = connections(10);
        self.agent.settle();
        let (_, metrics) = prometheus::metrics(self.metrics, "*/*");
        assert!(metrics.contains("sockeye_thread_restarts_total"), "{metrics}");
        self.agent.stop();
        let said = self.agent.stderr();
        assert!(said.contains(&format!("thread {name} panicked")), "{said}");
        let collected = self.collector.finish();
        collected.assert_clean();
        let heard: Vec<_> = collected.flows().iter().filter(|flow| flow["dst_port"] == made.0).collect();
        assert_eq!(heard.len() as u64, made.1, "{name}");
        let is_named = |flow: &&serde_json::Value| flow["src_proc"].as_str().is_some_and(|p| p.contains("python3"));
        assert!(heard.iter().all(is_named), "{name}: {heard:#?}");
        let lines = fs::read_to_string(&self.lines).expect("lines");
        let about = |text: &str, port: &str| text.lines().filter(|line| line.contains(port)).count() as u64;
        assert!(about(&lines, &format!("\"port\":{}", made.0)) >= made.1, "{name}: {lines}");
        assert!(about(&self.agent.stdout(), &format!(":{}", made.0)) >= made.1, "{name}: {}", self.agent.stdout());
        self.notified.set_nonblocking(true).expect("a socket");
        let mut bytes = [0; 4096];
        let told = std::iter::from_fn(|| self.notified.recv(&mut bytes).ok().map(|length| bytes[..length].to_vec()));
        let told = told.map(|message| String::from_utf8_lossy(&message).into_owned()).collect::<Vec<_>>().join("\n");
        assert!(told.contains("READY=1") && told.contains("STOPPING=1"), "{name}: {told}");
    }
}

/// Each thread, but for those without which the agent is blind, is started again, and does its work.
#[test]
fn a_thread_that_dies_is_started_again() {
    for name in RESTARTED.iter().chain(&ANSWERING) {
        let whole = Whole::start(name);
        let _ = connections(1);
        whole.wait_for_restart(name);
        whole.assert_whole(name);
    }
}

/// A thread that is new has its test as well.
#[test]
fn each_thread_that_is_started_again_is_tested() {
    let whole = Whole::start("none");
    let threads = whole.agent.ask(&Request::Stats).expect("an answer").rows("threads");
    let restarted = threads.iter().filter(|row| row["essential"] == "no").filter_map(|row| row["name"].as_str());
    let restarted: BTreeSet<_> = restarted.filter(|name| !ANSWERING.contains(name)).collect();
    assert_eq!(restarted, RESTARTED.into());
}

/// Without one of these the agent would see nothing, or only half: it ends, and says which it was.
#[test]
fn without_an_essential_thread_the_agent_ends() {
    for name in ["sockeye-control", "sockeye-w0", "sockeye-udp"] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = Command::new(program("sockeye"))
            .arg("--control-socket")
            .arg(folder.path().join("ctl.sock"))
            .env("SOCKEYE_TEST_PANIC", name)
            .output()
            .expect("sockeye");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{name}: {said}");
        assert!(said.contains(&format!("the thread {name} has died")), "{said}");
    }
}

fn ended(agent: &mut Child, within: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if let Some(status) = agent.try_wait().expect("a child") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Whoever presses Ctrl-C twice does not want to wait for a terminal that takes nothing.
#[test]
fn a_second_interrupt_ends_it_at_once() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut bare = bare(|command| {
        command.stdout(writer).stderr(Stdio::null());
    });
    // More lines than a pipe holds, and nobody reads them.
    let (_server, port, _) = serve("serve", "127.0.0.1");
    let _ = talk(&["storm", "127.0.0.1", &port.to_string(), "3000"]);
    wait_for("a terminal that takes nothing", Duration::from_secs(20), || {
        let exports = bare.client.ask(&Request::Stats).ok()?.rows("exports");
        exports.iter().any(|row| row["to"] == "stdout" && row["queued"].as_u64() > Some(0)).then_some(())
    });
    end(&bare.agent.0, Signal::SIGINT);
    assert_eq!(ended(&mut bare.agent.0, Duration::from_secs(3)), None, "it waits for its terminal");
    end(&bare.agent.0, Signal::SIGINT);
    let status = ended(&mut bare.agent.0, Duration::from_secs(3)).expect("an end");
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    drop(reader);
}

#[test]
fn a_hang_up_does_not_end_it() {
    let agent = Agent::start(&[]);
    kill(Pid::from_raw(i32::try_from(agent.pid()).expect("a pid")), Signal::SIGHUP).expect("it lives");
    wait_for("a word about it", Duration::from_secs(5), || agent.stderr().contains("reloaded").then_some(()));
    assert!(agent.ask(&Request::Stats).is_ok());
}

/// CPU time of a process, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("ticks")).sum()
}

/// Clients that cannot be accepted wait, and the agent does not spin.
#[test]
fn no_file_is_left_for_a_client() {
    let agent = Agent::start(&[]);
    let pid = agent.pid();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten();
    let open: BTreeSet<usize> = open.filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect();
    // Room for three more: new files get the lowest number that is free.
    let limit = (0..).find(|limit| (0..*limit).filter(|fd| !open.contains(fd)).count() == 3).expect("a number");
    let status =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={limit}:{limit}")]).status();
    assert!(status.expect("util-linux").success());
    let mut waiting: Vec<_> = (0..10).map(|_| UnixStream::connect(agent.socket()).expect("a place to wait")).collect();
    wait_for("the limit", Duration::from_secs(5), || agent.stderr().contains("cannot accept").then_some(()));
    let before = cpu_ticks(pid);
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_ticks(pid) - before;
    assert!(used < 30, "{used} of 100 ticks");
    assert_eq!(agent.stderr().matches("cannot accept").count(), 1, "{}", agent.stderr());
    waiting.drain(..).for_each(drop);
    assert!(agent.ask(&Request::Stats).is_ok(), "as soon as there is room");
}

/// However many ask, and however often: what is due is done.
#[test]
fn sixteen_clients_that_never_stop_asking_do_not_stop_the_reports() {
    let (mut agent, collector) = exporting_agent();
    let stop = AtomicBool::new(false);
    let (made, exported, answers) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..15)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = 0;
                    while !stop.load(Ordering::Relaxed) {
                        answers += u64::from(agent.ask(&Request::Flows(Box::default())).is_ok());
                    }
                    answers
                })
            })
            .collect();
        let made = connections(30);
        // Heard of while they go on asking, not after.
        agent.settle();
        let exported = std::iter::repeat_with(|| agent.ask(&Request::Stats)).take(100).find_map(Result::ok);
        stop.store(true, Ordering::Relaxed);
        let exported = exported.expect("a turn").rows("exports")[0]["records"].as_u64();
        (made, exported, clients.into_iter().map(|client| client.join().expect("answers")).sum::<u64>())
    });
    assert!(answers > 15 && exported >= Some(made.1), "{answers} answers, {exported:?} records");
    agent.settle();
    agent.stop();
    assert_all_heard_of(collector, made);
}

/// khugepaged has the lowest priority, and holds the address space of whom it works for: on a busy host for half a minute.
#[test]
fn no_thread_waits_for_huge_pages() {
    let agent = Agent::start(&[]);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("a status");
    assert!(status.lines().any(|line| line.split_whitespace().eq(["THP_enabled:", "0"])), "{status}");
}

/// `sockeye check | head -1`.
#[test]
fn a_reader_of_check_that_has_had_enough_is_no_fault() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut child = Command::new(program("sockeye"))
        .arg("check")
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("sockeye starts");
    reader.read_exact(&mut [0; 2]).expect("a beginning");
    drop(reader);
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert!(child.wait().expect("an end").success() && !said.contains("panicked"), "{said}");
}
