//! Flow reports as lines of JSON: into a file, to standard output, or to whoever listens at a Unix socket.
//!
//! While nobody takes them, reports stay in the exporter's queue, which is bounded: what does not fit is counted there. A
//! line is written as a whole, or not at all (`sink.rs`).

mod sink;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::sink::{Sink, Trouble};
pub use self::target::Target;
use super::ecs::Encoder;
use super::{ExportPort, ExportStats, Item, Queue};
use crate::flows::report::FlowReport;
use crate::model::text::clean;
use crate::threads::{Pulse, Threads};

/// Lines that are written at a time, bytes: at least one line.
const BATCH_BYTES: usize = 256 << 10;
/// How long a reader may take nothing before it is said, and how often what cannot be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How soon the thread notices that it shall end, or that the file was renamed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the last lines may take when the agent ends.
const LINGER: Duration = Duration::from_secs(1);

/// Asks all exporters of lines to open their files again, as for SIGHUP.
#[derive(Debug, Clone, Default)]
pub struct Reopen(Vec<Arc<AtomicBool>>);

impl Reopen {
    /// Asks. They do it within some 200 ms, before they write more.
    pub fn ask(&self) {
        self.0.iter().for_each(|asked| asked.store(true, Ordering::Relaxed));
    }

    /// Whether there is any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Starts the thread that writes lines. `reopen` can ask it from then on. When the reader
/// of standard output goes away, `on_closed` is called once, and further reports are counted as dropped.
///
/// # Errors
/// If the file cannot be opened, or the thread cannot be started. A socket may be listened at later.
pub fn start(
    threads: &Threads,
    target: Target,
    reopen: &mut Reopen,
    on_closed: impl Fn() + Send + 'static,
) -> Result<ExportPort> {
    let stats = Arc::new(ExportStats::default());
    let asked = Arc::new(AtomicBool::new(false));
    let name = target.to_string();
    let mut first = Sink::open(&target);
    if !target.may_come_later() {
        let remedy =
            || format!("cannot write to {name}: give --json a file in a folder that is there, unix:PATH, or -");
        first = Ok(first.with_context(remedy)?);
    }
    let host = clean(rustix::system::uname().nodename().to_bytes());
    let (mut first, shared) = (Some(first), Arc::clone(&stats));
    reopen.0.push(Arc::clone(&asked));
    let port = ExportPort::start(name, (threads, "sockeye-json"), &stats, move |items, pulse| {
        let sink = first.take().unwrap_or_else(|| Sink::open(&target));
        let mut exporter = Exporter::new(&target, sink, Encoder::new(host.clone()), (&shared, &asked));
        exporter.run(items, pulse, &on_closed);
        Ok(())
    });
    port.context("cannot start the thread that writes JSON")
}

struct Exporter<'a> {
    target: &'a Target,
    stats: &'a ExportStats,
    reopen: &'a AtomicBool,
    encoder: Encoder,
    sink: Option<Sink>,
    /// Whole lines, of which `written` bytes are gone. The buffer is used again and again.
    lines: Vec<u8>,
    written: usize,
    /// How many are in it.
    count: u64,
    /// Reports that were taken from the queue, from the first one on that is in no line yet.
    taken: Option<(Arc<[FlowReport]>, usize)>,
    /// When what has failed is tried again.
    retry_at: Instant,
    /// Since when the reader has taken nothing.
    stalled_since: Option<Instant>,
    /// When the end does not wait any longer.
    linger_until: Option<Instant>,
    /// The fault was said.
    is_said: bool,
    /// The last write has failed.
    is_full: bool,
    /// The reader of standard output has gone for good.
    is_closed: bool,
}

impl<'a> Exporter<'a> {
    fn new(
        target: &'a Target,
        sink: std::io::Result<Sink>,
        encoder: Encoder,
        (stats, reopen): (&'a ExportStats, &'a AtomicBool),
    ) -> Self {
        let mut exporter = Self {
            target,
            stats,
            reopen,
            encoder,
            sink: None,
            lines: Vec::with_capacity(BATCH_BYTES + (64 << 10)),
            written: 0,
            count: 0,
            taken: None,
            retry_at: Instant::now(),
            stalled_since: None,
            linger_until: None,
            is_said: false,
            is_full: false,
            is_closed: false,
        };
        exporter.opened(sink);
        exporter
    }

    fn run(&mut self, items: &Queue, pulse: &Pulse, on_closed: &impl Fn()) {
        let mut on_closed = Some(on_closed);
        loop {
            pulse.working();
            self.look_at_target();
            if self.is_closed {
                self.drop_all();
                if let Some(on_closed) = on_closed.take() {
                    on_closed();
                }
            }
            if !self.is_closed && (self.sink.is_none() || !self.write_all_taken()) {
                pulse.waiting();
                // What is queued stays there: it is bounded, and what does not fit is counted.
                if !pulse.is_stopping() {
                    thread::sleep(LOOK_EVERY);
                    continue;
                }
                self.linger();
            }
            pulse.waiting();
            match items.recv_timeout(LOOK_EVERY) {
                Ok(Item::Flows(reports)) => self.taken = Some((reports, 0)),
                Ok(item @ Item::Message { .. }) => self.stats.done(item.reports()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if !self.write_all_taken() {
            self.linger();
        }
    }

    /// At the end: tries for a while, and gives up.
    fn linger(&mut self) {
        let until = *self.linger_until.get_or_insert_with(|| Instant::now() + LINGER);
        while !self.is_closed && self.sink.is_some() && Instant::now() < until {
            if self.write_all_taken() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.drop_all();
    }

    /// Opens what is not open, and opens again what was renamed or removed.
    fn look_at_target(&mut self) {
        let asked = self.reopen.swap(false, Ordering::Relaxed) && matches!(self.target, Target::File(_));
        let is_elsewhere = self.sink.as_ref().is_some_and(|sink| asked || !sink.is_at(self.target));
        // In the middle of a line, as in a pipe, the next one would get the rest of it.
        if is_elsewhere && self.is_at_end_of_line() {
            self.opened(Sink::open(self.target));
        }
        if self.sink.is_none() && !self.is_closed && Instant::now() >= self.retry_at {
            self.opened(Sink::open(self.target));
        }
    }

    fn is_at_end_of_line(&self) -> bool {
        self.written == 0 || self.lines.get(self.written - 1) == Some(&b'\n')
    }

    fn opened(&mut self, sink: std::io::Result<Sink>) {
        match sink {
            Ok(sink) => {
                self.sink = Some(sink);
                // Whether there is room on a disk again, only a write can tell.
                if !(self.is_full && matches!(self.target, Target::File(_))) {
                    self.works();
                }
            }
            Err(err) => self.fails(&err),
        }
    }

    /// Writes what was taken. `false`: not all of it, for now.
    fn write_all_taken(&mut self) -> bool {
        loop {
            self.encode();
            if self.lines.is_empty() {
                return true;
            }
            if !self.write() {
                return false;
            }
        }
    }

    /// Makes lines of reports that were taken, as many as are written at a time.
    fn encode(&mut self) {
        while self.lines.len() < BATCH_BYTES
            && let Some((reports, next)) = &mut self.taken
        {
            let Some(report) = reports.get(*next) else {
                self.taken = None;
                return;
            };
            self.encoder.line(report, &mut self.lines);
            *next += 1;
            self.count += 1;
        }
    }

    /// Writes the lines that are there. `false`: not all of them, for now.
    fn write(&mut self) -> bool {
        let Some(sink) = &mut self.sink else { return false };
        while self.written < self.lines.len() {
            match sink.write(&self.lines, self.written) {
                Ok(bytes) => {
                    self.written += bytes;
                    self.stalled_since = None;
                    ExportStats::add(&self.stats.messages, 1);
                    ExportStats::add(&self.stats.bytes, bytes as u64);
                }
                Err(Trouble::Busy) => {
                    self.stalled();
                    return false;
                }
                Err(Trouble::Broken { written, why }) => {
                    self.broken(written, &why);
                    return false;
                }
            }
        }
        self.works();
        ExportStats::add(&self.stats.records, self.count);
        self.stats.done(self.count);
        self.forget_lines();
        true
    }

    /// The reader takes nothing: it is asked again soon, and said once if that goes on.
    fn stalled(&mut self) {
        ExportStats::add(&self.stats.retried, 1);
        let since = *self.stalled_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= RETRY_EVERY && !self.is_said {
            self.is_said = true;
            self.stats.connected.store(0, Ordering::Relaxed);
            tracing::warn!(
                "nobody reads what is written to {}: flows that do not fit into the queue are dropped",
                self.target
            );
        }
    }

    /// `written`: where the last line ends that is there as a whole.
    fn broken(&mut self, written: usize, why: &std::io::Error) {
        self.keep_from(written);
        (self.sink, self.is_full) = (None, true);
        if *self.target == Target::Stdout && why.kind() == std::io::ErrorKind::BrokenPipe {
            self.is_closed = true;
            self.stats.connected.store(0, Ordering::Relaxed);
            return;
        }
        self.fails(why);
    }

    /// Lines before this place are written, the others are written again.
    fn keep_from(&mut self, written: usize) {
        let begin = self.lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let whole = self.lines[..begin].iter().filter(|byte| **byte == b'\n').count() as u64;
        ExportStats::add(&self.stats.records, whole);
        self.stats.done(whole);
        self.count -= whole;
        self.lines.drain(..begin);
        self.written = 0;
    }

    fn fails(&mut self, why: &std::io::Error) {
        self.sink = None;
        self.retry_at = Instant::now() + RETRY_EVERY;
        self.stats.connected.store(0, Ordering::Relaxed);
        if !std::mem::replace(&mut self.is_said, true) {
            tracing::warn!(
                "cannot write to {}: {why}; it is tried again each second, and flows that do not fit into the queue are dropped",
                self.target
            );
        }
    }

    fn works(&mut self) {
        self.is_full = false;
        self.stats.connected.store(1, Ordering::Relaxed);
        if std::mem::replace(&mut self.is_said, false) {
            tracing::info!("{} takes flows again", self.target);
        }
    }

    /// Nobody will read what was taken.
    fn drop_all(&mut self) {
        let rest = self.taken.take().map_or(0, |(reports, next)| (reports.len() - next) as u64);
        self.keep_from(self.written.min(self.lines.len()));
        let lost = self.count + rest;
        self.stats.done(lost);
        ExportStats::add(&self.stats.dropped, lost);
        self.forget_lines();
    }

    fn forget_lines(&mut self) {
        self.lines.clear();
        // A batch with very long lines may have made it large.
        self.lines.shrink_to(2 * BATCH_BYTES);
        (self.written, self.count) = (0, 0);
    }
}
