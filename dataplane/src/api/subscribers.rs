//! Clients that are told again and again. Control answers the same questions as ever: the client's own thread asks them, so
//! that a slow reader holds up nobody else.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sockeye_ctl::Request;
use sockeye_ctl::protocol::{Answer, Outcome, Subscription, Update, VERSION};
use sockeye_ctl::subscription::{Columns, EVERY_MS};

use super::server::send;
use crate::model::clock::thread_cpu_ns;

/// All subscribers together take at most one part in so many of a CPU: what costs more is told less often. A fifth of the one
/// per cent that is promised is left for what their own clocks do not see, the kernel's part in waking and sending.
const CPU_SHARE: u64 = 125;

/// Tells until the client hangs up, or says something else, which is left to be read. `ask` answers one request and adds what
/// that cost; `subscribers` says how many there are.
///
/// # Errors
/// If the client does not read in time, or is gone.
pub(super) fn serve(
    stream: &UnixStream,
    reader: &mut BufReader<&UnixStream>,
    subscription: &Subscription,
    ask: impl Fn(Request, &Arc<AtomicU64>) -> Result<Answer, String>,
    subscribers: impl Fn() -> usize,
) -> io::Result<()> {
    let mut columns = vec![Columns::default(); subscription.requests.len()];
    let (mut update, mut skipped, mut send_ns) = (0, 0, 0);
    loop {
        let (began, own_ns, cost_ns) = (Instant::now(), thread_cpu_ns(), Arc::default());
        let answers = subscription.requests.iter().zip(&mut columns).map(|(request, columns)| {
            let mut outcome = match ask(request.clone(), &cost_ns) {
                Ok(answer) => Outcome { answer: Some(answer), error: None },
                Err(error) => Outcome { error: Some(error), answer: None },
            };
            outcome.shorten(columns);
            outcome
        });
        let answers = answers.collect();
        update += 1;
        // To write it out takes as long as it took the last time.
        let asked_ns = thread_cpu_ns();
        let cost_ns = cost_ns.load(Ordering::Relaxed) + asked_ns - own_ns + send_ns;
        let every_ms = every_ms(subscription.every_ms, cost_ns, subscribers());
        let id = subscription.id;
        send(stream, &Update { version: VERSION, id, update, skipped, every_ms, answers })?;
        send_ns = thread_cpu_ns() - asked_ns;
        let (next, missed) = next_turn(began, Duration::from_millis(every_ms), Instant::now());
        skipped += missed;
        if !reader.buffer().is_empty() || is_readable(stream, next)? {
            return Ok(());
        }
    }
}

/// From one update to the next.
fn every_ms(wanted_ms: u64, cost_ns: u64, subscribers: usize) -> u64 {
    let affordable_ms = cost_ns * CPU_SHARE * subscribers.max(1) as u64 / 1_000_000;
    wanted_ms.max(affordable_ms).min(*EVERY_MS.end())
}

/// When the next one is due that is not over yet, and how many were due before.
fn next_turn(began: Instant, every: Duration, now: Instant) -> (Instant, u64) {
    let missed = now.saturating_duration_since(began).as_nanos() / every.as_nanos().max(1);
    let missed = u32::try_from(missed).unwrap_or(u32::MAX);
    (began + every * missed.saturating_add(1), missed.into())
}

/// Whether the client says something, or hangs up, before `until`.
fn is_readable(stream: &UnixStream, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};
    use std::thread;

    fn subscription(every_ms: u64) -> Subscription {
        Subscription { id: 3, every_ms, requests: vec![Request::Overview, Request::Ports] }
    }

    fn answered(request: &Request) -> Result<Answer, String> {
        if *request == Request::Ports { Err("no".into()) } else { Ok(Answer::default()) }
    }

    fn update(reader: &mut impl BufRead) -> Update {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("an update")
    }

    #[test]
    fn a_client_is_told_until_it_says_something() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let served = thread::spawn(move || {
            let mut reader = BufReader::new(&ours);
            serve(&ours, &mut reader, &subscription(250), |request, _| answered(&request), || 1)?;
            let mut line = String::new();
            reader.read_line(&mut line).map(|_| line)
        });
        let mut reader = BufReader::new(&theirs);
        let first = update(&mut reader);
        assert_eq!((first.id, first.update, first.skipped, first.every_ms), (3, 1, 0, 250));
        assert_eq!(first.answers[0], Outcome { answer: Some(Answer::default()), error: None });
        assert_eq!(first.answers[1].error.as_deref(), Some("no"));
        assert_eq!(update(&mut reader).update, 2);
        (&theirs).write_all(b"something\n").expect("written");
        assert_eq!(served.join().expect("no panic").expect("served"), "something\n");
    }

    #[test]
    fn what_is_dear_is_told_less_often_and_what_was_due_is_counted() {
        assert_eq!([every_ms(1000, 5_000_000, 1), every_ms(1000, 50_000_000, 1)], [1000, 6250]);
        assert_eq!([every_ms(250, 5_000_000, 4), every_ms(1000, 5_000_000_000, 8)], [2500, 60_000]);
        let (began, ms) = (Instant::now(), Duration::from_millis);
        let turn = |now_ms| {
            let (next, missed) = next_turn(began, ms(250), began + ms(now_ms));
            (next.duration_since(began).as_millis(), missed)
        };
        assert_eq!([turn(0), turn(249), turn(250), turn(1300)], [(250, 0), (250, 0), (500, 1), (1500, 5)]);
    }
}
