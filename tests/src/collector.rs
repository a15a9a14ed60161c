//! The collector of the tests, and what it was told.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Guard, PYTHON, here, slowness, wait_for};

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
