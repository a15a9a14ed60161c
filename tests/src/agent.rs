//! A running agent, and what it says of itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Map, Value};
use sockeye_ctl::protocol::{Answer, FlowsArguments, Request};
use sockeye_ctl::{Client, ClientError};
use tempfile::TempDir;

use crate::{Collector, Guard, free_port, program, settle_at, wait_for};

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

    /// All that it says was lost or left out, to tell in the message of a failed test.
    ///
    /// # Panics
    /// If the agent does not answer.
    #[must_use]
    pub fn losses(&self) -> String {
        let answer = self.ask(&Request::Stats).expect("an answer");
        let rows = answer.rows("losses").into_iter().filter(|row| row["count"] != 0);
        rows.map(|row| format!("{} {}\n", row["reason"], row["count"])).collect()
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
