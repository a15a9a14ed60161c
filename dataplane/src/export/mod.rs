//! Exporters. Each has a thread and a bounded queue: a slow or dead consumer costs the queue's memory and a counter.

mod batch;
mod community_id;
pub(crate) mod decoder;
mod ecs;
mod elements;
pub mod endpoint;
pub mod json;
mod layer7;
pub mod lines;
pub mod listening;
pub mod messages;
mod people;
pub mod text;
pub mod tlv;
mod xpub;
pub mod zmq;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvError, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::flows::report::FlowReport;
use crate::threads::{Pulse, Threads};

/// Reports between control and an exporter's thread.
pub const QUEUE_REPORTS_MAX: usize = 1 << 14;
/// Reports that are handed over together. One at a time woke the exporter's thread for each.
pub const CHUNK_REPORTS: usize = 256;

/// Figures of one exporter, written by its thread and read by control.
#[derive(Debug, Default)]
pub struct ExportStats {
    /// Reports in the queue between control and the thread.
    waiting: AtomicU64,
    /// Flow records sent.
    pub records: AtomicU64,
    /// Messages sent, of all topics.
    pub messages: AtomicU64,
    /// Payload bytes sent.
    pub bytes: AtomicU64,
    /// Reports dropped because the queue was full.
    pub dropped: AtomicU64,
    /// 1 while a consumer is there.
    pub connected: AtomicU64,
    /// How often a consumer has come.
    pub joined: AtomicU64,
    /// Sends that the socket could not take at once, and that were repeated.
    pub retried: AtomicU64,
    /// Reports that the thread has taken out of its queue and is not done with.
    in_hand: AtomicU64,
}

impl ExportStats {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// The exporter is done with reports that it has taken, in one way or another.
    pub(crate) fn done(&self, reports: u64) {
        self.in_hand.fetch_sub(reports, Ordering::Relaxed);
    }

    /// Reports that wait, in the queue or with the thread.
    #[must_use]
    pub fn queued(&self) -> u64 {
        Self::get(&self.waiting) + Self::get(&self.in_hand)
    }

    /// The current value of a counter.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// What control hands to an exporter.
#[derive(Debug, Clone)]
pub enum Item {
    /// Flows, at most [`CHUNK_REPORTS`].
    Flows(Arc<[FlowReport]>),
    /// A JSON message of another topic.
    Message {
        /// ZMQ topic.
        topic: &'static str,
        /// JSON text.
        body: Arc<str>,
    },
}

impl Item {
    /// What it takes of the queue.
    fn reports(&self) -> u64 {
        match self {
            Self::Flows(reports) => reports.len() as u64,
            Self::Message { .. } => 1,
        }
    }
}

/// The exporter's end of its queue.
pub(crate) struct Queue {
    items: Receiver<Item>,
    stats: Arc<ExportStats>,
}

impl Queue {
    /// Counts what a thread had in hand that has died: it may be that very report that it died of.
    fn give_up_what_was_in_hand(&self) {
        let lost = self.stats.in_hand.load(Ordering::Relaxed);
        self.stats.done(lost);
        ExportStats::add(&self.stats.dropped, lost);
    }

    /// Waits for the next item, as long as there may come one.
    pub(crate) fn recv(&self) -> Result<Item, RecvError> {
        self.items.recv().inspect(|item| self.taken(item))
    }

    /// Waits for the next item, but not for long.
    pub(crate) fn recv_timeout(&self, timeout: Duration) -> Result<Item, RecvTimeoutError> {
        self.items.recv_timeout(timeout).inspect(|item| self.taken(item))
    }

    /// What is there.
    pub(crate) fn try_iter(&self) -> impl Iterator<Item = Item> {
        self.items.try_iter().inspect(|item| self.taken(item))
    }

    fn taken(&self, item: &Item) {
        ExportStats::add(&self.stats.in_hand, item.reports());
        self.stats.waiting.fetch_sub(item.reports(), Ordering::Relaxed);
    }
}

/// Control's end of an exporter's queue.
pub struct ExportPort {
    /// For `ctl stats`.
    pub name: String,
    /// `None` once the thread is asked to end.
    queue: Option<Sender<Item>>,
    /// Shared with the thread.
    pub stats: Arc<ExportStats>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ExportPort {
    /// Starts an exporter's thread, which is given its end of the queue: again, if it has died.
    pub(crate) fn start(
        name: String,
        (threads, thread): (&Threads, &str),
        stats: &Arc<ExportStats>,
        mut export: impl FnMut(&Queue, &Pulse) -> anyhow::Result<()> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, items) = mpsc::channel();
        let queue = Queue { items, stats: Arc::clone(stats) };
        let thread = threads.restarted(thread, move |pulse| {
            queue.give_up_what_was_in_hand();
            export(&queue, pulse)
        })?;
        Ok(Self { name, queue: Some(sender), stats: Arc::clone(stats), thread: Some(thread) })
    }

    /// Hands over without waiting. What does not fit is counted.
    pub fn offer(&self, item: Item) {
        let Some(queue) = &self.queue else { return };
        let reports = item.reports();
        let waiting = self.stats.waiting.fetch_add(reports, Ordering::Relaxed) + reports;
        let full = waiting > QUEUE_REPORTS_MAX as u64;
        if full || queue.send(item).is_err() {
            self.stats.waiting.fetch_sub(reports, Ordering::Relaxed);
            ExportStats::add(&self.stats.dropped, reports);
        }
    }

    /// Lets the thread send what is queued, and waits for its end.
    pub fn close(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
