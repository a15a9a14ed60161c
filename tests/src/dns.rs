//! dnsmasq in a network namespace, and programs there that ask it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::net::{Namespace, command};
use crate::{Guard, here, wait_for};

/// Addresses of which the namespace has more than its loopback one.
pub const ADDRESSES: [&str; 4] = ["203.0.113.7", "203.0.113.8", "203.0.113.66", "198.51.100.9"];

/// A namespace in which dnsmasq answers at 127.0.0.1, and resolvers ask it.
pub struct Dns {
    /// The namespace.
    pub netns: Namespace,
    etc: PathBuf,
    log: tempfile::TempPath,
    _server: Guard,
}

impl Dns {
    /// Starts it. `zones`: further options of dnsmasq.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(zones: &[&str]) -> Self {
        let netns = Namespace::new();
        for address in ADDRESSES {
            netns.ip(&format!("addr add {address}/32 dev lo"));
        }
        let etc = PathBuf::from(format!("/etc/netns/{}", netns.name));
        fs::create_dir_all(&etc).expect("a folder");
        fs::write(etc.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n").expect("a file");
        let log = tempfile::NamedTempFile::new().expect("a file").into_temp_path();
        let server = command(netns.some(), "dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file="])
            .args(["--listen-address=127.0.0.1,198.51.100.9", "--bind-interfaces", "--log-queries", "--user=root"])
            .arg(format!("--log-facility={}", log.display()))
            .args(zones)
            .stdin(Stdio::null())
            .spawn()
            .expect("dnsmasq");
        let dns = Self { netns, etc, log, _server: Guard(server) };
        wait_for("dnsmasq", Duration::from_secs(10), || dns.log().contains("started").then_some(()));
        dns
    }

    /// What dnsmasq says.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("a log")
    }

    /// How many questions it has got.
    #[must_use]
    pub fn queries(&self) -> usize {
        self.log().lines().filter(|line| line.contains(" query[")).count()
    }

    /// A program there, with the namespace's resolver.
    #[must_use]
    pub fn command(&self, program: &str) -> std::process::Command {
        let mut command = command(self.netns.some(), "unshare");
        let script = format!("mount --bind {}/resolv.conf /etc/resolv.conf && exec \"$@\"", self.etc.display());
        command.args(["--mount", "sh", "-c", &script, "sh", program]);
        command
    }

    /// Starts a subcommand of `programs/names.py` there.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start_program(&self, args: &[&str]) -> Child {
        let mut command = self.command("/usr/bin/python3");
        command.arg(here("programs/names.py")).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().expect("python3")
    }

    /// Starts one that serves, and returns what it said when it was ready.
    ///
    /// # Panics
    /// If it says nothing.
    #[must_use]
    pub fn serve(&self, args: &[&str]) -> (Guard, Value) {
        let mut server = Guard(self.start_program(args));
        let mut said = String::new();
        BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut said).expect("a line");
        (server, serde_json::from_str(&said).expect("JSON"))
    }

    /// Runs one to its end, and returns what it said.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Vec<Value> {
        let output = self.start_program(args).wait_with_output().expect("an end");
        assert!(output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.etc);
    }
}
