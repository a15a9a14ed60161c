//! Programs that talk.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use crate::{Guard, PYTHON, here, net};

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
