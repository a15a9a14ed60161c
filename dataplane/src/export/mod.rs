//! Exporters. Each has a thread and a bounded queue: a slow or dead consumer costs the queue's memory and a counter.

pub mod endpoint;
pub mod json;
pub mod messages;
#[cfg(test)]
mod testing;
pub mod text;
pub mod tlv;
pub mod zmq;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use crate::flow::FlowReport;

/// Reports between control and an exporter's thread.
pub const QUEUE_REPORTS_MAX: usize = 1 << 14;

/// Figures of one exporter, written by its thread and read by control.
#[derive(Debug, Default)]
pub struct ExportStats {
    /// Reports that wait.
    pub queued: AtomicU64,
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
}

impl ExportStats {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
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
    /// A flow.
    Flow(Arc<FlowReport>),
    /// A JSON message of another topic.
    Message {
        /// ZMQ topic.
        topic: &'static str,
        /// JSON text.
        body: Arc<str>,
    },
}

/// Control's end of an exporter's queue.
pub struct ExportPort {
    /// For `ctl stats`.
    pub name: String,
    /// `None` once the thread is asked to end.
    queue: Option<SyncSender<Item>>,
    /// Shared with the thread.
    pub stats: Arc<ExportStats>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ExportPort {
    pub(crate) fn new(
        name: String,
        queue: SyncSender<Item>,
        stats: Arc<ExportStats>,
        thread: std::thread::JoinHandle<()>,
    ) -> Self {
        Self { name, queue: Some(queue), stats, thread: Some(thread) }
    }

    /// Hands over without waiting. What does not fit is counted.
    pub fn offer(&self, item: Item) {
        let Some(queue) = &self.queue else { return };
        ExportStats::add(&self.stats.queued, 1);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(item) {
            self.stats.queued.fetch_sub(1, Ordering::Relaxed);
            ExportStats::add(&self.stats.dropped, 1);
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
