//! What the end-to-end tests share: an agent, the independent collector, programs that talk, network namespaces.
//!
//! Everything that a test starts ends with it: each guard kills its own child, by pid.

pub mod capture;
pub mod cri;
pub mod daemonset;
pub mod dns;
pub mod engines;
pub mod net;
pub mod podman;
pub mod prometheus;
pub mod tmux;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use sockeye_ctl::protocol::{Answer, FlowsArguments, Request};
use sockeye_ctl::{Client, ClientError};
use tempfile::TempDir;

/// Debian's interpreter: it has pyzmq.
pub const PYTHON: &str = "/usr/bin/python3";

/// A file of this crate.
#[must_use]
pub fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program of the workspace, built in the profile of the tests unless `SOCKEYE_BIN` names a folder.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    if let Some(dir) = std::env::var_os("SOCKEYE_BIN") {
        return PathBuf::from(dir).join(name);
    }
    let test = std::env::current_exe().expect("the test has a path");
    // target/PROFILE/deps/test-hash -> target/PROFILE/name
    test.ancestors().nth(2).expect("cargo's layout").join(name)
}

/// Factor for waiting times on slow machines (emulated ones), from `SOCKEYE_TEST_SLOW`.
#[must_use]
pub fn slowness() -> u32 {
    std::env::var("SOCKEYE_TEST_SLOW").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Polls until `what` is there.
///
/// # Panics
/// If it does not come in time.
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let timeout = timeout * slowness();
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < timeout, "no {what} within {timeout:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How long [`Agent::settle`] waits for names of containers.
const NAMES_WAIT: Duration = Duration::from_secs(3);

/// [`Agent::settle`] for an agent behind this control socket.
///
/// # Panics
/// If that does not happen within half a minute.
pub fn settle_at(socket: &Path) {
    let (client, began) = (Client::new(socket), Instant::now());
    let mut quiet = 0;
    wait_for("settled agent", Duration::from_secs(30), || {
        let (asked, answer) = (began.elapsed(), client.ask(&Request::Stats).ok()?);
        let sum = |table: &str, column: &str, of: &dyn Fn(&Map<String, Value>) -> bool| -> Option<u64> {
            answer.rows(table).iter().filter(|row| of(row)).map(|row| row.get(column)?.as_u64()).sum()
        };
        let is_through = Duration::from_nanos(sum("agent", "behind", &|_| true)?) < asked;
        // An engine that does not answer is asked for minutes.
        let is_asked = |row: &Map<String, Value>| row["about"] != "containers" || asked < NAMES_WAIT * slowness();
        let waiting = sum("agent", "flows_unreported", &|_| true)?
            + sum("exports", "queued", &|row| row["connected"] == "yes")?
            + sum("questions", "waiting", &is_asked)?;
        // Twice: what was taken from one queue may not be in the next one yet.
        quiet = if is_through && waiting == 0 { quiet + 1 } else { 0 };
        (quiet == 2).then_some(())
    });
}

/// Kills its process when it goes out of scope.
pub struct Guard(pub Child);

impl Guard {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running sockeye with a control socket of its own.
pub struct Agent {
    process: Guard,
    socket: PathBuf,
    dir: TempDir,
}

impl Agent {
    /// Starts the agent and waits until it answers.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(program("sockeye"));
        command.args(args);
        Self::start_by(command)
    }

    /// The same by a command that becomes the agent, and takes more arguments of it.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_by(mut command: Command) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("ctl.sock");
        let log = |name| fs::File::create(dir.path().join(name)).expect("a log");
        let child = command
            .arg("--control-socket")
            .arg(&socket)
            .env("COLUMNS", "160")
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .spawn()
            .expect("sockeye starts");
        let mut agent = Self { process: Guard(child), socket, dir };
        wait_for("answer of the agent", Duration::from_secs(20), || {
            if let Ok(Some(status)) = agent.process.0.try_wait() {
                panic!("the agent ended with {status}: {}", agent.stderr());
            }
            agent.ask(&Request::Stats).ok()
        });
        agent
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Asks it.
    ///
    /// # Errors
    /// As the client does.
    pub fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        Client::new(&self.socket).ask(request)
    }

    /// Its control socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until all that has happened so far is in its table, was looked up, and has gone to its exporters.
    ///
    /// # Panics
    /// If that does not happen within half a minute.
    pub fn settle(&self) {
        settle_at(&self.socket);
    }

    /// One figure of a table with one row.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn figure(&self, table: &str, column: &str) -> Value {
        let answer = self.ask(&Request::Stats).expect("an answer");
        answer.rows(table).first().and_then(|row| row.get(column)).cloned().unwrap_or_default()
    }

    /// Sum of a column of counts.
    ///
    /// # Panics
    /// If the agent does not answer.
    #[must_use]
    pub fn sum(&self, table: &str, column: &str) -> u64 {
        self.sums(table, [column])[0]
    }

    /// Sums of columns, of one moment.
    ///
    /// # Panics
    /// If the agent does not answer.
    #[must_use]
    pub fn sums<const N: usize>(&self, table: &str, columns: [&str; N]) -> [u64; N] {
        let answer = self.ask(&Request::Stats).expect("an answer");
        let rows = answer.rows(table);
        columns.map(|column| rows.iter().filter_map(|row| row.get(column)?.as_u64()).sum())
    }

    /// A loss counter.
    ///
    /// # Panics
    /// If there is none of that name.
    #[must_use]
    pub fn loss(&self, reason: &str) -> u64 {
        let answer = self.ask(&Request::Stats).expect("an answer");
        let rows = answer.rows("losses");
        rows.iter().find(|row| row["reason"] == reason).expect("the reason")["count"].as_u64().expect("a count")
    }

    /// The flows that it shows.
    ///
    /// # Panics
    /// If it does not answer.
    #[must_use]
    pub fn flows(&self, arguments: FlowsArguments) -> Vec<Map<String, Value>> {
        let answer = self.ask(&Request::Flows(arguments.into())).expect("flows");
        answer.rows("flows")
    }

    /// The flows of a port.
    #[must_use]
    pub fn flows_of_port(&self, port: u16) -> Vec<Map<String, Value>> {
        self.flows(FlowsArguments { port: vec![port], limit: usize::MAX, ..FlowsArguments::default() })
    }

    /// Waits until its first exporter has a consumer.
    pub fn wait_connected(&self) {
        wait_for("collector", Duration::from_secs(10), || (self.figure("exports", "connected") == "yes").then_some(()));
    }

    /// Ends it in order and waits for it.
    pub fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let _ = self.process.0.wait();
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
    }

    /// What it has printed.
    #[must_use]
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.dir.path().join("stdout")).unwrap_or_default()
    }

    /// What it has complained about.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default()
    }
}

/// An agent that exports to a collector which is already listening.
#[must_use]
pub fn exporting_agent() -> (Agent, Collector) {
    exporting_agent_with(&[])
}

/// The same, with more on its command line.
#[must_use]
pub fn exporting_agent_with(more: &[&str]) -> (Agent, Collector) {
    let port = free_port();
    let collector = Collector::start(port, 120, &[]);
    let endpoint = format!("tcp://127.0.0.1:{port}c");
    let agent = Agent::start(&[&["--zmq", endpoint.as_str()], more].concat());
    agent.wait_connected();
    (agent, collector)
}

/// The strict collector, which shares no code with the agent.
pub struct Collector {
    process: Guard,
    out: PathBuf,
    _dir: TempDir,
}

impl Collector {
    /// Binds a port and collects, for some seconds at most.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(port: u16, seconds: u32, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (out, ready) = (dir.path().join("out.json"), dir.path().join("ready"));
        let child = Command::new(PYTHON)
            .arg(here("oracle/until_told.py"))
            .args(["--bind", &format!("tcp://127.0.0.1:{port}"), "--seconds", &(seconds * slowness()).to_string()])
            .arg("--out")
            .arg(&out)
            .arg("--ready-file")
            .arg(&ready)
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("the collector starts");
        wait_for("collector", Duration::from_secs(10), || ready.exists().then_some(()));
        Self { process: Guard(child), out, _dir: dir }
    }

    /// Ends it once it has read what is on its way, and returns what it saw.
    ///
    /// # Panics
    /// If it left nothing.
    #[must_use]
    pub fn finish(self) -> Collected {
        self.process.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits until its time is over, and returns what it saw.
    ///
    /// # Panics
    /// If it left nothing.
    #[must_use]
    pub fn wait(mut self) -> Collected {
        let _ = self.process.0.wait();
        let text = fs::read_to_string(&self.out).expect("a summary");
        Collected(serde_json::from_str(&text).expect("JSON"))
    }
}

/// What a collector saw.
pub struct Collected(pub Value);

impl Collected {
    /// Fails if a rule of ntopng was broken.
    ///
    /// # Panics
    /// Then.
    pub fn assert_clean(&self) {
        let violations = self.0["violations"].as_array().expect("a list");
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// All flows.
    ///
    /// # Panics
    /// If there is no list.
    #[must_use]
    pub fn flows(&self) -> &[Value] {
        self.0["flows"].as_array().expect("flows")
    }

    /// The one flow between these ports.
    ///
    /// # Panics
    /// If there is none, or more than one.
    #[must_use]
    pub fn flow(&self, source: u64, destination: u64) -> &Value {
        let found: Vec<_> =
            self.flows().iter().filter(|f| f["src_port"] == source && f["dst_port"] == destination).collect();
        assert_eq!(found.len(), 1, "flows {source} -> {destination}: {found:#?}");
        found[0]
    }
}

/// A program that talks: a subcommand of `programs/traffic.py`, perhaps in a network namespace.
pub struct Traffic {
    process: Guard,
    out: BufReader<ChildStdout>,
    input: Option<ChildStdin>,
}

impl Traffic {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(netns: Option<&str>, args: &[&str]) -> Self {
        Self::start_program("programs/traffic.py", netns, args)
    }

    /// Starts a subcommand of `programs/odd.py`: programs that use the network in uncommon ways.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn odd(netns: Option<&str>, args: &[&str]) -> Self {
        Self::start_program("programs/odd.py", netns, args)
    }

    /// Starts `programs/far_peer.py`: a TCP peer that is not on this host.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn far_peer(mode: &str) -> Self {
        Self::start_program("programs/far_peer.py", None, &[mode])
    }

    fn start_program(program: &str, netns: Option<&str>, args: &[&str]) -> Self {
        let mut command = net::command(netns, PYTHON);
        let mut child = command
            .arg(here(program))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let input = child.stdin.take();
        Self { process: Guard(child), out, input }
    }

    /// The next thing that it says.
    ///
    /// # Panics
    /// If it says nothing.
    pub fn says(&mut self) -> Value {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|err| panic!("{line:?}: {err}"))
    }

    /// Writes a line to it.
    ///
    /// # Panics
    /// If it is gone.
    pub fn tell(&mut self) {
        self.input.as_mut().expect("open").write_all(b"go\n").expect("it reads");
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Tells it that nothing more will come.
    pub fn dismiss(&mut self) {
        self.input = None;
    }

    /// Waits for its end.
    pub fn wait(&mut self) {
        self.input = None;
        let _ = self.process.0.wait();
    }
}

/// Runs a program of `traffic.py` to its end and returns what it said first.
///
/// # Panics
/// If it says nothing.
#[must_use]
pub fn talk(args: &[&str]) -> Value {
    let mut traffic = Traffic::start(None, args);
    let said = traffic.says();
    traffic.wait();
    said
}

/// A server of `traffic.py` and its port.
#[must_use]
pub fn serve(program: &str, host: &str) -> (Traffic, u16, Value) {
    let mut server = Traffic::start(None, &[program, host, "0"]);
    let said = server.says();
    (server, port_of(&said), said)
}

/// The port that a program says it listens at.
///
/// # Panics
/// If it says none.
#[must_use]
pub fn port_of(said: &Value) -> u16 {
    said["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port")
}

/// The server of `traffic.py` in a network namespace, and its port.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn serve_in(netns: &net::Namespace, host: &str) -> (Traffic, u16) {
    let mut server = Traffic::start(netns.some(), &["serve", host, "0"]);
    let port = port_of(&server.says());
    (server, port)
}

/// A TCP port that nobody uses.
///
/// # Panics
/// If the system has none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Runs a command and returns its standard output.
///
/// # Panics
/// If it fails.
#[must_use]
pub fn output(program: &str, args: &[&str]) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|err| panic!("{program}: {err}"));
    let mut text = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("text");
    let status = child.wait().expect("an end");
    assert!(status.success(), "{program} {args:?}: {status}");
    text
}
