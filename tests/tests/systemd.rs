//! What the agent tells systemd, heard at a socket that stands for it. `ci/packages` has the real one.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sockeye_ctl::{Client, Request};
use sockeye_tests::{Guard, PYTHON, here, program, wait_for};

/// So long systemd would wait for a sign of life.
const PATIENCE: Duration = Duration::from_secs(8);

struct Service {
    agent: Guard,
    notified: UnixDatagram,
    client: Client,
    _folder: tempfile::TempDir,
}

impl Service {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (socket, notify) = (folder.path().join("ctl.sock"), folder.path().join("notify"));
        let notified = UnixDatagram::bind(&notify).expect("a socket");
        notified.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut command = Command::new(program("sockeye"));
        command.arg("--control-socket").arg(&socket).stderr(Stdio::null());
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", PATIENCE.as_micros().to_string());
        let agent = Guard(command.spawn().expect("sockeye starts"));
        Self { agent, notified, client: Client::new(&socket), _folder: folder }
    }

    /// The lines of the next message.
    fn hears(&self) -> Vec<String> {
        let mut bytes = [0; 4096];
        let length = self.notified.recv(&mut bytes).expect("a message");
        String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned).collect()
    }

    /// The next message with this line.
    fn hears_of(&self, line: &str) -> Vec<String> {
        loop {
            let lines = self.hears();
            if lines.iter().any(|other| other == line) {
                return lines;
            }
        }
    }
}

#[test]
fn it_is_ready_when_it_answers_and_says_what_comes_then() {
    let mut service = Service::start();
    let first = service.hears();
    assert!(first[0] == "READY=1" && first.iter().any(|line| line.starts_with("STATUS=Watching")), "{first:?}");
    assert!(service.client.ask(&Request::Stats).is_ok(), "at once");
    service.hears_of("WATCHDOG=1");
    service.agent.signal(Signal::SIGHUP);
    let reloading = service.hears_of("RELOADING=1");
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    service.hears_of("READY=1");
    service.agent.signal(Signal::SIGTERM);
    service.hears_of("STOPPING=1");
    assert!(service.agent.0.wait().expect("an end").success());
}

/// Each thread without which the agent is blind: held by a tracer, and let go again.
#[test]
fn an_agent_with_a_thread_that_stands_still_shows_no_sign_of_life() {
    let service = Service::start();
    service.hears_of("WATCHDOG=1");
    for thread in ["sockeye-w0", "sockeye-control", "sockeye-udp"] {
        let tracer = Command::new(PYTHON)
            .arg(here("programs/hold_thread.py"))
            .args([&service.agent.0.id().to_string(), thread])
            .stdout(Stdio::null())
            .spawn();
        let tracer = Guard(tracer.expect("python"));
        let status = wait_for("a status that names it", 2 * PATIENCE, || {
            service.hears().into_iter().find(|line| line.contains(thread))
        });
        assert!(status.starts_with("STATUS=") && status.contains("stands still"), "{status}");
        // Two looks.
        let until = Instant::now() + PATIENCE / 2;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            service.notified.set_read_timeout(Some(left.max(Duration::from_millis(1)))).expect("a timeout");
            let mut bytes = [0; 4096];
            if let Ok(length) = service.notified.recv(&mut bytes) {
                let said = String::from_utf8_lossy(&bytes[..length]);
                assert!(!said.contains("WATCHDOG=1"), "{thread} is held: {said}");
            }
        }
        service.notified.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        drop(tracer);
        service.hears_of("WATCHDOG=1");
    }
}
