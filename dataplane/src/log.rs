//! The agent's own messages, on standard error: through a bounded queue and a thread of its own, so that nobody who has
//! something to say waits for, or dies of, a reader that is slow or gone.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use jiff::ZonedDateTime;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Registry, reload};

use crate::model::text::{clean, truncated};
use crate::privileges;

/// Lines that wait for a slow reader. More are dropped, and counted.
const LINES_MAX: usize = 4096;
/// Longest message, bytes.
const TEXT_MAX: usize = 4096;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
static LEVEL: OnceLock<reload::Handle<LevelFilter, Registry>> = OnceLock::new();

/// Lines that were not written because the reader was too slow.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |counter| counter.dropped_lines() as u64)
}

/// Begins logging to standard error; a panic is logged as an error. What waits is written when the guard goes.
pub fn start(level: LevelFilter) -> WorkerGuard {
    let open = || {
        let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).lossy(true);
        builder.thread_name("sockeye-log").finish(io::stderr())
    };
    // The thread that writes may do what the one may that starts it.
    let confined = std::thread::spawn(move || {
        privileges::confine("sockeye-log");
        open()
    });
    let (writer, guard) = confined.join().unwrap_or_else(|_| open());
    let _ = DROPPED.set(writer.error_counter());
    let lines = Lines { journal: is_journal(&io::stderr()) };
    let (level, handle) = reload::Layer::new(level);
    let _ = LEVEL.set(handle);
    let subscriber =
        Registry::default().with(level).with(tracing_subscriber::fmt::layer().with_writer(writer).event_format(lines));
    // Only a second call fails.
    let _ = tracing::subscriber::set_global_default(subscriber);
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let text = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("thread {} panicked at {place}: {text}", thread.name().unwrap_or("without a name"));
    }));
    guard
}

/// From now on these messages are wanted.
pub fn set_level(level: LevelFilter) {
    if let Some(handle) = LEVEL.get() {
        // It fails only when there is no log any more.
        let _ = handle.reload(level);
    }
}

/// Says why the agent does not go on, before or after logging: one sentence, which is lost if nobody reads it.
pub fn complain(text: &str) {
    let mut err = io::stderr();
    let prefix = if is_journal(&err) { "<3>" } else { "sockeye: " };
    let _ = writeln!(err, "{prefix}{text}");
}

/// Prints a line for whoever asked for it. A reader that has had enough is no fault.
pub fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Whether the journal reads what is written there (systemd.exec(5), `JOURNAL_STREAM`).
fn is_journal(file: &(impl AsFd + IsTerminal)) -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(file).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// One line per event: with a priority for the journal, which knows the time; else with time and level.
struct Lines {
    journal: bool,
}

/// Priorities of syslog(3), as sd-daemon(3) has them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(writer, "<{}>", priority(level))?;
        } else {
            write!(writer, "{} {level:<5} ", ZonedDateTime::now().strftime("%Y-%m-%dT%H:%M:%S%.3f%:z"))?;
        }
        // A name in it may have a line break, which would be a line of its own.
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{}", truncated(&clean(text.as_bytes()), TEXT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(journal: bool) -> String {
        let kept = Kept::default();
        let to = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(LevelFilter::INFO)
            .with_writer(move || to.clone())
            .event_format(Lines { journal })
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!("the collector at {} has gone", "tcp://x\n<0>:1");
            tracing::debug!("nobody asked for this");
        });
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_journal_gets_priorities_and_others_the_time() {
        assert_eq!(logged(true), "<4>the collector at tcp://x\u{fffd}<0>:1 has gone\n");
        let line = logged(false);
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
        assert_eq!(rest, "WARN  the collector at tcp://x\u{fffd}<0>:1 has gone\n");
    }
}
