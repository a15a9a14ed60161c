//! How the thread that serves metrics asks control.

use std::sync::mpsc::{RecvTimeoutError, Sender, sync_channel};
use std::time::Duration;

use super::events::Event;
use crate::metrics::server::Ask;
use crate::metrics::snapshot::Snapshot;

/// Control answers within milliseconds. Prometheus gives a scrape 10 s by default.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks control through its events.
#[must_use]
pub fn through(events: Sender<Event>) -> Ask {
    Box::new(move || ask(&events))
}

fn ask(events: &Sender<Event>) -> Result<Snapshot, String> {
    let (reply, answer) = sync_channel(1);
    let ending = || "the agent is ending".to_owned();
    events.send(Event::Scrape(reply)).map_err(|_| ending())?;
    answer.recv_timeout(CONTROL_TIMEOUT).map_err(|err| match err {
        RecvTimeoutError::Disconnected => ending(),
        RecvTimeoutError::Timeout => format!("the agent is busy: no figures within {} s", CONTROL_TIMEOUT.as_secs()),
    })
}
