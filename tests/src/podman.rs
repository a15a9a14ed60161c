//! A real Podman with its service, in a network namespace.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::engines::config;
use crate::here;

/// Podman. It ends with it.
pub struct Podman {
    dir: TempDir,
    netns: String,
}

impl Podman {
    /// Starts its service in an existing network namespace.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(netns: &str) -> Self {
        let podman = Self { dir: tempfile::tempdir().expect("a folder"), netns: netns.into() };
        assert!(podman.script("up"), "podman.sh: {}", fs::read_to_string(podman.log()).unwrap_or_default());
        podman
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("podman.log")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("podman")
    }

    fn script(&self, what: &str) -> bool {
        // Not through a pipe: the service would keep it open.
        let log = fs::File::create(self.log()).expect("a log");
        let mut command = Command::new("bash");
        command.arg(here("lab/podman.sh")).args([what, &self.root().display().to_string(), &self.netns]);
        command.stdin(Stdio::null()).stderr(log.try_clone().expect("a log")).stdout(log);
        command.status().expect("bash").success()
    }

    /// A configuration that names it.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        config(self.dir.path(), &[("podman", &self.root().join("podman.sock"))])
    }

    /// Runs `podman`.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, args: &[&str]) {
        // Not through a pipe: conmon would keep it open.
        let log = fs::File::create(self.log()).expect("a log");
        let mut command = Command::new(self.root().join("podman"));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let status = command.status().expect("podman");
        assert!(status.success(), "podman {args:?}: {}", fs::read_to_string(self.log()).unwrap_or_default());
    }

    /// Runs a container of the test image in the network of its namespace.
    pub fn run_container(&self, options: &[&str], shell: &str) {
        let end = ["--network", "host", "ci.local/bb:1", "sh", "-c", shell];
        self.run(&[&["run"], options, &end].concat());
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.script("down");
    }
}
