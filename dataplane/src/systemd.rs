//! Tells systemd how the agent does (sd_notify(3)): that it works, that it reads its configuration again, that it ends, and
//! that it lives, for as long as the data path moves. Where systemd has not started it, nobody is told.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context as _;
use sd_notify::NotifyState;
use sockeye::export::messages::Heartbeat;
use sockeye::threads::{Pulse, Stuck, Threads};
use sockeye_ctl::{Client, FlowsArguments, Request};

/// Pause between two questions whether the agent answers yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// So often the data path is looked at while systemd waits for a sign of life.
const LOOKS: u32 = 4;
/// From one look to the next where systemd waits for none.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The configuration is being read again. [`ready`] must follow.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(err) => tracing::warn!("cannot tell systemd of the reload: {err}"),
    }
}

/// The agent works, with the configuration that there is now.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The agent is ending.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("Ending: the exporters send what is left")]);
}

fn tell(states: &[NotifyState]) {
    if let Err(err) = sd_notify::notify(states) {
        tracing::warn!("cannot tell systemd how the agent does: {err}");
    }
}

/// Starts the thread that says when the agent answers at its control socket, and from then on that it lives.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(threads: &Threads, control_socket: &Path, heartbeat: &Heartbeat) -> io::Result<()> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(());
    }
    let (client, all, heartbeat) = (Client::new(control_socket), threads.clone(), heartbeat.clone());
    let patience = sd_notify::watchdog_enabled();
    threads.restarted("sockeye-systemd", move |pulse| {
        let question = Request::Flows(Box::new(FlowsArguments { limit: 1, ..FlowsArguments::default() }));
        while client.ask(&question).is_err() && !pulse.is_stopping() {
            sleep(ASK_AGAIN);
        }
        watch(pulse, patience, || Sign::of(&all, patience, &heartbeat))
    })?;
    Ok(())
}

/// Says how the agent does until it ends: from then on systemd counts how long that takes.
fn watch(pulse: &Pulse, patience: Option<Duration>, sign: impl Fn() -> Sign) -> anyhow::Result<()> {
    let every = patience.map_or(LOOK_EVERY, |patience| patience / LOOKS);
    let mut said = None;
    let mut is_first = true;
    while !pulse.is_stopping() {
        pulse.working();
        let Sign { lives, status } = sign();
        let mut states = Vec::new();
        if std::mem::take(&mut is_first) {
            states.push(NotifyState::Ready);
        }
        if lives && patience.is_some() {
            states.push(NotifyState::Watchdog);
        }
        if said.as_ref() != Some(&status) {
            if !lives {
                tracing::error!("{status}");
            }
            states.push(NotifyState::Status(&status));
        }
        if !states.is_empty() {
            sd_notify::notify(&states).context("cannot tell systemd how the agent does")?;
        }
        said = Some(status);
        pulse.waiting();
        sleep(every);
    }
    Ok(())
}

/// What is said of the agent.
#[derive(Debug, PartialEq, Eq)]
struct Sign {
    /// Its data path moves.
    lives: bool,
    /// One line.
    status: String,
}

impl Sign {
    /// A thread is stuck that has said nothing for half of what systemd waits, so that a look that comes late ends nobody.
    fn of(threads: &Threads, patience: Option<Duration>, heartbeat: &Heartbeat) -> Self {
        let lost = heartbeat.agent.lost.load(Ordering::Relaxed);
        Self::new(
            patience.and_then(|patience| threads.stuck(patience / 2)),
            heartbeat.agent.exporters.load(Ordering::Relaxed),
            lost,
        )
    }

    fn new(stuck: Option<Stuck>, exporters: u64, lost: u64) -> Self {
        let Some(Stuck { thread }) = stuck else {
            return Self {
                lives: true,
                status: format!("Watching all flows, {exporters} exporters, {lost} records lost"),
            };
        };
        // Not for how long, which would be another line each time.
        Self { lives: false, status: format!("The thread {thread} stands still: systemd ends the agent soon") }
    }
}

#[cfg(test)]
mod tests {
    use sockeye_ctl::exit;

    use super::*;

    #[test]
    fn an_agent_that_stands_still_is_not_said_to_live() {
        let sign = Sign::new(None, 2, 7);
        assert_eq!((sign.lives, sign.status.as_str()), (true, "Watching all flows, 2 exporters, 7 records lost"));
        let sign = Sign::new(Some(Stuck { thread: "sockeye-w0".into() }), 2, 7);
        assert!(!sign.lives && sign.status.contains("sockeye-w0"), "{sign:?}");
    }
    #[test]
    fn the_unit_is_not_started_again_for_what_stays_wrong() {
        let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/sockeye.service"))
            .unwrap();
        let line = format!("RestartPreventExitStatus={} {} {}", exit::USAGE, exit::NO_PERMISSION, exit::CONFIG);
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}
