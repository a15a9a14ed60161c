//! Network namespaces, a veth pair, and a delay between them.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Guard, here};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A command in a namespace. nsenter, not `ip netns exec`: that one remounts /sys and hides the cgroup mounts.
#[must_use]
pub fn command(netns: Option<&str>, program: &str) -> Command {
    match netns {
        None => Command::new(program),
        Some(name) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg(program);
            command
        }
    }
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("iproute2");
    assert!(status.success(), "ip {args}: {status}");
}

/// Whether programs at the cgroup hooks see the kernel's own packet (Linux 6.2 and later): where it lies, and its entry in the
/// connection tracking.
#[must_use]
pub fn shows_packets() -> bool {
    std::fs::read_to_string("/proc/kallsyms").is_ok_and(|symbols| symbols.contains(" bpf_cast_to_kern_ctx"))
}

/// Rules for nftables in a namespace.
///
/// # Panics
/// If they are refused.
pub fn nft(netns: &str, rules: &str) {
    let mut child = command(Some(netns), "nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nftables");
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("it reads");
    let status = child.wait().expect("an end");
    assert!(status.success(), "nft: {status}: {rules}");
}

/// A namespace of its own, deleted in the end.
pub struct Namespace {
    /// Name below /run/netns.
    pub name: String,
}

impl Namespace {
    /// With loopback up.
    #[must_use]
    pub fn new() -> Self {
        let name = format!("se{}s{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name }
    }

    /// Its name, as programs are started with it.
    #[must_use]
    pub fn some(&self) -> Option<&str> {
        Some(&self.name)
    }

    /// `ip` in it.
    pub fn ip(&self, args: &str) {
        ip(&format!("-n {} {args}", self.name));
    }

    /// Rules for nftables in it.
    pub fn nft(&self, rules: &str) {
        nft(&self.name, rules);
    }

    /// Forwards packets.
    ///
    /// # Panics
    /// If it cannot be switched on.
    pub fn forward(&self) {
        let script = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        let status = command(self.some(), "sh").args(["-c", script]).status().expect("sh");
        assert!(status.success(), "{script}: {status}");
    }

    /// A veth pair between two, each end with an address and its prefix length.
    pub fn join(&self, address: &str, other: &Self, other_address: &str) {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.ip(&format!("link add e{number} type veth peer name f{number} netns {}", other.name));
        for (side, device, address) in [(self, 'e', address), (other, 'f', other_address)] {
            side.ip(&format!("addr add {address} broadcast + dev {device}{number}"));
            side.ip(&format!("link set {device}{number} up"));
        }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Two namespaces with an address each: 10.77.0.1 and 10.77.0.2.
pub struct Pair {
    /// Names below /run/netns.
    pub names: [String; 2],
    _forwarder: Option<Guard>,
}

/// Addresses of a [`Pair`].
pub const ADDRESSES: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

impl Pair {
    fn namespaces() -> [String; 2] {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        ["a", "b"].map(|side| {
            let name = format!("se{}n{number}{side}", std::process::id());
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            name
        })
    }

    /// Joined by a veth pair.
    #[must_use]
    pub fn veth() -> Self {
        let names = Self::namespaces();
        ip(&format!("-n {} link add v0 type veth peer name v0 netns {}", names[0], names[1]));
        for (name, address) in names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} addr add {address}/24 dev v0"));
            ip(&format!("-n {name} link set v0 up"));
        }
        Self { names, _forwarder: None }
    }

    /// Joined by a queue that delays each packet.
    ///
    /// # Panics
    /// If the forwarder cannot be built or started.
    #[must_use]
    pub fn delayed(one_way_us: u32) -> Self {
        let names = Self::namespaces();
        let mut child = Command::new(build_forwarder())
            .args([&names[0], &names[1], &one_way_us.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the forwarder starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "up");
        for (name, address) in names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} addr add {address}/24 dev dly0"));
            ip(&format!("-n {name} link set dly0 mtu 1400 up"));
        }
        Self { names, _forwarder: Some(Guard(child)) }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// SOCKEYE_BIN may hold a ready one, where there is no compiler.
fn build_forwarder() -> PathBuf {
    let ready = crate::program("tundelay");
    if std::env::var_os("SOCKEYE_BIN").is_some() && ready.exists() {
        return ready;
    }
    let status = Command::new("gcc")
        .args(["-O2", "-Wall", "-o"])
        .arg(&ready)
        .arg(here("programs/tundelay.c"))
        .status()
        .expect("gcc");
    assert!(status.success(), "gcc: {status}");
    ready
}
