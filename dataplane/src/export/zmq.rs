//! ZMQ to ntopng: batches, paces, waits for a subscription, reconnects by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use zmq::{DONTWAIT, SNDMORE, Socket, SocketType};

use super::batch::{Batch, Introduction, MESSAGE_BYTES_MAX, MESSAGE_RECORDS_MAX, Pending, batch_json, batch_tlv};
use super::endpoint::{ServerKey, ZmqEndpoint};
use super::messages::Heartbeat;
use super::{ExportPort, ExportStats, Item, QUEUE_REPORTS_MAX, Queue, tlv, xpub};
use crate::threads::{Pulse, Threads};

/// A report waits at most this long for others.
const BATCH_WAIT: Duration = Duration::from_millis(100);
/// From one message to the next: 255,000 records/s, more than ntopng takes.
const MESSAGE_EVERY: Duration = Duration::from_millis(1);
/// How often a collector hears that the agent lives. ntopng forgets a probe that is silent for ten seconds.
const EVENT_EVERY: Duration = Duration::from_secs(5);
/// How long nobody may subscribe before it is said.
const SUBSCRIBER_WAIT: Duration = Duration::from_secs(30);
/// How long the last messages may take when the agent ends.
const LINGER_MS: i32 = 1000;

/// Shape of flow records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// nDPI's TLV: what every ntopng since 5.6 reads.
    Tlv,
    /// JSON with nested objects: a licensed ntopng, or 5.6 and older.
    Json,
}

/// How to reach a collector.
#[derive(Debug, Clone)]
pub struct ZmqOptions {
    /// Where.
    pub endpoint: ZmqEndpoint,
    /// Encrypts with the collector's public key.
    pub server_key: Option<ServerKey>,
    /// Shape of flow records.
    pub format: Format,
    /// Identifies this exporter to the collector; not 0.
    pub source_id: u32,
    /// What is said of the agent beside the flows.
    pub heartbeat: Heartbeat,
}

/// Opens the socket and starts the exporter's thread.
///
/// # Errors
/// If the endpoint cannot be bound, or libzmq has no CURVE and a key is given.
pub fn start(threads: &Threads, options: ZmqOptions) -> Result<ExportPort> {
    let stats = Arc::new(ExportStats::default());
    let name = options.endpoint.address.clone();
    let (opened, first) = mpsc::sync_channel(1);
    let (mut opened, shared) = (Some(opened), Arc::clone(&stats));
    let port = ExportPort::start(name, (threads, "sockeye-zmq"), &stats, move |items, pulse| {
        // Before the socket is opened: libzmq's own threads inherit it.
        pulse.prefer();
        let socket = open(&options);
        let socket = match opened.take() {
            None => socket?,
            // Whoever starts the agent hears what is wrong.
            Some(opened) => {
                let (result, socket) = socket.map_or_else(|err| (Err(err), None), |socket| (Ok(()), Some(socket)));
                let _ = opened.send(result);
                let Some(socket) = socket else { return Ok(()) };
                socket
            }
        };
        Exporter::new(socket, options.clone(), &shared).run(items, pulse);
        Ok(())
    })?;
    first.recv().context("the exporter's thread has not started")??;
    Ok(port)
}

fn open(options: &ZmqOptions) -> Result<Socket> {
    let mut socket = zmq::Context::new().socket(SocketType::XPUB).context("cannot create a ZMQ socket")?;
    socket.set_linger(LINGER_MS)?;
    // Without it a lost connection keeps its subscriptions, and messages to nobody would count as sent.
    socket.set_immediate(true)?;
    socket.set_reconnect_ivl(200)?;
    socket.set_reconnect_ivl_max(5000)?;
    // A second collector at a bound endpoint shows itself too.
    socket.set_xpub_verbose(true)?;
    xpub::set_no_drop(&mut socket).context("cannot forbid silent drops")?;
    if let Some(ServerKey(key)) = &options.server_key {
        if !zmq::has("curve").unwrap_or(false) {
            bail!("this build's libzmq has no CURVE: link it against a libzmq with libsodium, as Debian's libzmq3-dev");
        }
        let pair = zmq::CurveKeyPair::new()?;
        socket.set_curve_serverkey(&zmq::z85_decode(key).context("encryption key")?)?;
        socket.set_curve_publickey(&pair.public_key)?;
        socket.set_curve_secretkey(&pair.secret_key)?;
    }
    let address = &options.endpoint.address;
    if options.endpoint.connect {
        socket.connect(address).with_context(|| format!("cannot connect to {address}"))?;
    } else {
        socket.bind(address).map_err(|err| match err {
            zmq::Error::EADDRINUSE => anyhow::anyhow!(
                "cannot bind {address}: the port is in use; choose another, or add a c to the endpoint if ntopng binds it"
            ),
            err => anyhow::anyhow!("cannot bind {address}: {err}"),
        })?;
    }
    Ok(socket)
}

struct Exporter {
    socket: Socket,
    options: ZmqOptions,
    stats: Arc<ExportStats>,
    /// Reports that wait for a collector or for their batch.
    pending: Pending,
    payload: Vec<u8>,
    scratch: Vec<u8>,
    /// Consecutive over all topics: a gap counts as drops at the collector.
    msg_id: u32,
    subscribed: bool,
    without_subscriber_since: Option<Instant>,
    /// When the oldest pending report came.
    oldest: Option<Instant>,
    /// When the next event is sent.
    event_due: Instant,
    introduction: Introduction,
    encoder: tlv::Encoder,
    /// What `payload` holds when the socket did not take it.
    unsent: Option<Batch>,
}

impl Exporter {
    fn new(socket: Socket, options: ZmqOptions, stats: &Arc<ExportStats>) -> Self {
        stats.connected.store(0, Ordering::Relaxed);
        Self {
            socket,
            stats: Arc::clone(stats),
            pending: Pending::default(),
            payload: Vec::with_capacity(MESSAGE_BYTES_MAX),
            scratch: Vec::with_capacity(4096),
            msg_id: 0,
            subscribed: false,
            without_subscriber_since: Some(Instant::now()),
            event_due: Instant::now(),
            oldest: None,
            introduction: Introduction::default(),
            encoder: tlv::Encoder::new(options.heartbeat.probe.ip),
            unsent: None,
            options,
        }
    }

    fn run(mut self, items: &Queue, pulse: &Pulse) {
        loop {
            pulse.working();
            self.watch_subscriptions();
            self.send_event_if_due();
            match items.recv_timeout(BATCH_WAIT / 2) {
                Ok(item) => std::iter::once(item).chain(items.try_iter()).for_each(|item| self.take(item)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let full = self.pending.len() >= MESSAGE_RECORDS_MAX;
            let waited = self.oldest.is_some_and(|since| since.elapsed() >= BATCH_WAIT);
            if self.subscribed && (full || waited) {
                self.flush();
            }
            self.warn_without_subscriber();
        }
        self.watch_subscriptions();
        if self.subscribed {
            self.flush();
        }
        ExportStats::add(&self.stats.dropped, self.pending.len() as u64);
        self.stats.done(self.pending.len() as u64);
    }

    /// By this thread's own clock: what control and the queue do must not matter.
    fn send_event_if_due(&mut self) {
        let now = Instant::now();
        if self.subscribed && now >= self.event_due {
            self.event_due = now + EVENT_EVERY;
            let event = self.options.heartbeat.event(&self.stats);
            self.send("event", 2, event.as_bytes());
        }
    }

    fn take(&mut self, item: Item) {
        match item {
            Item::Flows(reports) => {
                // The oldest: what is happening now matters more to whoever comes back.
                let dropped = (self.pending.len() + reports.len()).saturating_sub(QUEUE_REPORTS_MAX);
                if dropped > 0 {
                    self.forget_unsent();
                    self.pending.drop_oldest(dropped);
                }
                self.stats.done(dropped as u64);
                ExportStats::add(&self.stats.dropped, dropped as u64);
                self.pending.push(reports);
                self.oldest.get_or_insert_with(Instant::now);
            }
            Item::Message { topic, body } => {
                self.stats.done(1);
                // Without a collector it is stale before it could be read: the next one comes soon.
                if self.subscribed {
                    self.send(topic, 2, body.as_bytes());
                }
            }
        }
    }

    /// What was encoded and not sent is encoded anew.
    fn forget_unsent(&mut self) {
        if self.unsent.take().is_some() {
            self.introduction.not_sent();
        }
    }

    /// An XPUB socket receives each subscription as a message: 1 or 0, then the topic's prefix.
    fn watch_subscriptions(&mut self) {
        while let Ok(frame) = self.socket.recv_bytes(DONTWAIT) {
            let Some((&on, topic)) = frame.split_first() else { continue };
            if !b"flow".starts_with(topic) {
                continue;
            }
            self.subscribed = on == 1;
            self.stats.connected.store(u64::from(self.subscribed), Ordering::Relaxed);
            if self.subscribed {
                ExportStats::add(&self.stats.joined, 1);
                self.without_subscriber_since = None;
                self.introduction = Introduction::start();
                self.unsent = None;
                // It subscribes to other topics one after another.
                self.event_due = Instant::now() + BATCH_WAIT;
                tracing::info!("a collector subscribed at {}", self.options.endpoint.address);
            } else {
                self.without_subscriber_since = Some(Instant::now());
                tracing::warn!("the collector at {} has gone", self.options.endpoint.address);
            }
        }
    }

    fn warn_without_subscriber(&mut self) {
        if self.without_subscriber_since.is_some_and(|since| since.elapsed() >= SUBSCRIBER_WAIT) {
            self.without_subscriber_since = None;
            let hint = if self.options.server_key.is_some() {
                "is the encryption key the collector's?"
            } else {
                "is ntopng running, without encryption?"
            };
            tracing::warn!(
                "nobody has subscribed at {} for {} s: {hint}",
                self.options.endpoint.address,
                SUBSCRIBER_WAIT.as_secs()
            );
        }
    }

    /// Sends all pending reports, in paced messages. Stops when the socket takes no more.
    fn flush(&mut self) {
        while !self.pending.is_empty() && self.subscribed {
            let reports = self.unsent.take().unwrap_or_else(|| self.batch());
            let version = if self.options.format == Format::Tlv { 3 } else { 2 };
            let payload = std::mem::take(&mut self.payload);
            let sent = self.send("flow", version, &payload);
            self.payload = payload;
            if !sent {
                ExportStats::add(&self.stats.retried, 1);
                self.unsent = Some(reports);
                return;
            }
            self.pending.sent(&reports);
            self.introduction.sent();
            self.stats.done(reports.count as u64);
            ExportStats::add(&self.stats.records, reports.records as u64);
            let (bytes, to) = (self.payload.len(), &self.options.endpoint.address);
            tracing::debug!("exported {} flow records ({bytes} bytes) to {to}", reports.records);
            thread::sleep(MESSAGE_EVERY);
            self.watch_subscriptions();
            self.send_event_if_due();
        }
        self.oldest = (!self.pending.is_empty()).then(Instant::now);
    }

    /// Encodes as many reports as one message takes into `payload`.
    fn batch(&mut self) -> Batch {
        self.payload.clear();
        self.introduction.end_in_time();
        match self.options.format {
            Format::Tlv => {
                let (encoder, introduction) = (&mut self.encoder, &mut self.introduction);
                batch_tlv(&self.pending, encoder, introduction, &mut self.payload, &mut self.scratch)
            }
            Format::Json => {
                batch_json(&self.pending, self.options.heartbeat.probe.ip, &mut self.introduction, &mut self.payload)
            }
        }
    }

    /// Header and payload. `false` if the socket takes nothing now; the message id is not used up then.
    fn send(&mut self, topic: &str, version: u8, payload: &[u8]) -> bool {
        let header = header(topic, version, payload.len(), self.msg_id, self.options.source_id);
        if self.socket.send(&header[..], DONTWAIT | SNDMORE).is_err() {
            return false;
        }
        // The first frame reserved the place: the rest of a message is always taken.
        if self.socket.send(payload, DONTWAIT).is_err() {
            return false;
        }
        self.msg_id = self.msg_id.wrapping_add(1);
        ExportStats::add(&self.stats.messages, 1);
        ExportStats::add(&self.stats.bytes, payload.len() as u64);
        true
    }
}

/// ntopng's 28-byte header: topic, version, size (16 bits, ignored), message id big endian, source id little endian.
fn header(topic: &str, version: u8, size: usize, msg_id: u32, source_id: u32) -> [u8; 28] {
    let mut header = [0; 28];
    let topic = topic.as_bytes();
    header[..topic.len()].copy_from_slice(topic);
    header[16] = version;
    header[18..20].copy_from_slice(&(size as u16).to_le_bytes());
    header[20..24].copy_from_slice(&msg_id.to_be_bytes());
    header[24..28].copy_from_slice(&source_id.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_ntopngs() {
        let h = header("flow", 3, 115, 1, 0x0102_0304);
        let hex: String = h.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "666c6f77000000000000000000000000030073000000000104030201");
        assert_eq!(&header("listening-ports", 2, 0, 0, 1)[..16], b"listening-ports\0");
    }

    #[test]
    fn libzmq_has_curve() {
        assert!(zmq::has("curve").unwrap_or(false));
    }
}
