//! What the end-to-end tests share: an agent, the independent collector, programs that talk, network namespaces.
//!
//! Everything that a test starts ends with it: each guard kills its own child, by pid.

mod agent;
pub mod capture;
mod collector;
pub mod cri;
pub mod daemonset;
pub mod dns;
pub mod engines;
pub mod net;
pub mod podman;
pub mod prometheus;
pub mod tmux;
mod traffic;

pub use agent::{Agent, exporting_agent, exporting_agent_with};
pub use collector::{Collected, Collector};
pub use traffic::{Traffic, port_of, serve, serve_in, talk};

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use sockeye_ctl::Client;
use sockeye_ctl::protocol::Request;

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
