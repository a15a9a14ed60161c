//! ZMQ to ntopng: batches, paces, waits for a subscription, reconnects by itself.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use zmq::{DONTWAIT, SNDMORE, Socket, SocketType};

use super::endpoint::{ServerKey, ZmqEndpoint};
use super::messages::Heartbeat;
use super::{ExportPort, ExportStats, Item, QUEUE_REPORTS_MAX, Queue, json, tlv, xpub};
use crate::flows::report::FlowReport;
use crate::threads::{Pulse, Threads};

/// Records in one message: ntopng counts them in a byte.
const MESSAGE_RECORDS_MAX: usize = 255;
/// Payload of one message; ntopng drops 128 KiB and more.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// A report waits at most this long for others.
const BATCH_WAIT: Duration = Duration::from_millis(100);
/// From one message to the next: 255,000 records/s, more than ntopng takes.
const MESSAGE_EVERY: Duration = Duration::from_millis(1);
/// How often a collector hears that the agent lives. ntopng forgets a probe that is silent for ten seconds.
const EVENT_EVERY: Duration = Duration::from_secs(5);
/// How long nobody may subscribe before it is said.
const SUBSCRIBER_WAIT: Duration = Duration::from_secs(30);
/// For so long after it has joined a collector hears of flows that are older: control reports all open ones within five
/// seconds, or 16,000 a second of more than 64,000, and what was waiting comes first.
const INTRODUCTION: Duration = Duration::from_secs(30);
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
    /// Address of the agent.
    pub probe: IpAddr,
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
            encoder: tlv::Encoder::new(options.probe),
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
            Format::Json => batch_json(&self.pending, self.options.probe, &mut self.introduction, &mut self.payload),
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

/// A collector that has joined knows nothing of flows that were reported before. It takes the beginning of a flow from the
/// first record of it, and its throughput from the interval of each: so a flow whose first record would not begin with it
/// has one more, without counters, from its beginning on.
#[derive(Default)]
struct Introduction {
    /// `None`: no collector has joined of late.
    until: Option<Instant>,
    /// Hashes of the flows that it has heard of since, those of the next message included.
    heard: HashSet<u64, ahash::RandomState>,
    /// Those of them that are in the next message for the first time.
    in_message: Vec<u64>,
}

impl Introduction {
    fn start() -> Self {
        Self { until: Some(Instant::now() + INTRODUCTION), ..Self::default() }
    }

    fn end_in_time(&mut self) {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            *self = Self::default();
        }
    }

    /// Whether the collector hears of a flow for the first time.
    fn is_news(&mut self, report: &FlowReport) -> bool {
        // What is over already will not be heard of again.
        let is_last = report.first && report.state.is_over();
        if self.until.is_none() || is_last {
            return false;
        }
        let hash = self.heard.hasher().hash_one(report.key);
        let is_news = self.heard.insert(hash);
        if is_news {
            self.in_message.push(hash);
        }
        is_news
    }

    /// The last flow that was news is not in the message after all.
    fn take_back(&mut self) {
        if let Some(hash) = self.in_message.pop() {
            self.heard.remove(&hash);
        }
    }

    /// The message has been sent.
    fn sent(&mut self) {
        self.in_message.clear();
    }

    /// The message will be made anew.
    fn not_sent(&mut self) {
        for hash in self.in_message.drain(..) {
            self.heard.remove(&hash);
        }
    }
}

/// Reports in their order, in the chunks in which they came.
#[derive(Default)]
struct Pending {
    chunks: VecDeque<Arc<[FlowReport]>>,
    /// Of the first chunk, what is done with.
    done: usize,
    /// Records of the next report that have been sent.
    records_done: usize,
    len: usize,
}

impl Pending {
    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn push(&mut self, chunk: Arc<[FlowReport]>) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    fn iter(&self) -> impl Iterator<Item = &FlowReport> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).skip(self.done)
    }

    /// What is in a message has been sent.
    fn sent(&mut self, batch: &Batch) {
        self.drop_oldest(batch.count);
        self.records_done = batch.records_of_next;
    }

    /// Drops that many, or all.
    fn drop_oldest(&mut self, count: usize) {
        let count = count.min(self.len);
        if count > 0 {
            self.records_done = 0;
        }
        self.len -= count;
        self.done += count;
        while self.chunks.front().is_some_and(|chunk| chunk.len() <= self.done) {
            self.done -= self.chunks.pop_front().map_or(0, |chunk| chunk.len());
        }
    }
}

/// What a payload holds.
#[derive(Debug, PartialEq, Eq)]
struct Batch {
    /// Reports from the front of the queue.
    count: usize,
    /// Records that they became, and those of the next report that has begun.
    records: usize,
    /// Of the report after them, the records that have been sent by then: it did not fit into a message.
    records_of_next: usize,
}

fn batch_tlv(
    pending: &Pending,
    encoder: &mut tlv::Encoder,
    introduction: &mut Introduction,
    payload: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
) -> Batch {
    payload.extend_from_slice(&tlv::MESSAGE_START);
    let mut batch = Batch { count: 0, records: 0, records_of_next: 0 };
    for report in pending.iter() {
        scratch.clear();
        let mut records = 0;
        let done = if batch.count == 0 { pending.records_done } else { 0 };
        // A collector takes the beginning of a flow from the first record that it gets.
        let is_news = introduction.is_news(report);
        if is_news && !report.first {
            encoder.encode_beginning(report, scratch);
            records += 1;
        }
        let bytes_max = MESSAGE_BYTES_MAX - tlv::MESSAGE_START.len();
        let (encoded, whole) = encoder.encode_from(report, done, bytes_max, scratch);
        records += encoded;
        let fits = batch.records + records <= MESSAGE_RECORDS_MAX && payload.len() + scratch.len() <= MESSAGE_BYTES_MAX;
        if !(fits && whole) && batch.count > 0 {
            if is_news {
                introduction.take_back();
            }
            break;
        }
        payload.extend_from_slice(scratch);
        batch.records += records;
        if !whole {
            // It has a message for itself, and the next one begins with the rest.
            batch.records_of_next = done + encoded;
            break;
        }
        batch.count += 1;
    }
    batch
}

fn batch_json(pending: &Pending, probe: IpAddr, introduction: &mut Introduction, payload: &mut Vec<u8>) -> Batch {
    payload.push(b'[');
    let mut count = 0;
    for report in pending.iter().take(MESSAGE_RECORDS_MAX) {
        // Totals since its beginning, so the interval may begin there.
        let is_news = introduction.is_news(report);
        let text = json::encode(report, probe, is_news && !report.first).to_string();
        if count > 0 && payload.len() + text.len() + 2 > MESSAGE_BYTES_MAX {
            if is_news {
                introduction.take_back();
            }
            break;
        }
        if count > 0 {
            payload.push(b',');
        }
        payload.extend_from_slice(text.as_bytes());
        count += 1;
    }
    payload.push(b']');
    Batch { count, records: count, records_of_next: 0 }
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
    use crate::export::decoder::{decode, sum};
    use crate::export::testing;
    use crate::flows::report::Identity;
    use crate::model::flow::State;

    const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn header_is_ntopngs() {
        let h = header("flow", 3, 115, 1, 0x0102_0304);
        let hex: String = h.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "666c6f77000000000000000000000000030073000000000104030201");
        assert_eq!(&header("listening-ports", 2, 0, 0, 1)[..16], b"listening-ports\0");
    }

    #[test]
    fn batches_respect_both_limits() {
        let mut long = testing::report();
        let mut process = (**long.identity[0].process.as_ref().unwrap()).clone();
        process.cmdline = "x".repeat(4000);
        long.identity[0].process = Some(Arc::new(process));
        let short = FlowReport { identity: Default::default(), ..testing::report() };
        for (report, limit_by_size) in [(short, false), (long, true)] {
            let mut pending = Pending::default();
            pending.push(std::iter::repeat_n(report, 400).collect());
            let (mut payload, mut scratch) = (Vec::new(), Vec::new());
            let batch = batch_tlv(
                &pending,
                &mut tlv::Encoder::new(PROBE),
                &mut Introduction::default(),
                &mut payload,
                &mut scratch,
            );
            assert!(payload.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(batch.count < MESSAGE_RECORDS_MAX, limit_by_size);
            assert!(batch.records <= MESSAGE_RECORDS_MAX && batch.count > 0);
            payload.clear();
            let batch = batch_json(&pending, PROBE, &mut Introduction::default(), &mut payload);
            assert!(payload.len() <= MESSAGE_BYTES_MAX && batch.count > 0);
            let parsed: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!(parsed.as_array().unwrap().len(), batch.count);
        }
    }

    #[test]
    fn a_collector_that_joins_hears_once_when_an_older_flow_began() {
        let old = FlowReport { first: false, ..testing::report() };
        let mut pending = Pending::default();
        pending.push([old.clone(), old, testing::report()].into());
        for (mut introduction, records) in [(Introduction::start(), 4), (Introduction::default(), 3)] {
            let (mut payload, mut scratch) = (Vec::new(), Vec::new());
            let mut encoder = tlv::Encoder::new(PROBE);
            let batch = batch_tlv(&pending, &mut encoder, &mut introduction, &mut payload, &mut scratch);
            assert_eq!((batch.count, batch.records), (3, records));
            introduction.until = introduction.until.map(|_| Instant::now());
            introduction.end_in_time();
            assert!(introduction.heard.is_empty() && introduction.until.is_none());
        }
    }

    /// ntopng drops a longer message whole.
    #[test]
    fn a_report_of_many_long_records_goes_into_several_messages() {
        const NTOPNG_BYTES_MAX: usize = 128 << 10;
        let mut report = FlowReport { first: false, ..testing::report() };
        let mut process = (**report.identity[0].process.as_ref().unwrap()).clone();
        // As long as paths and command lines may be, and three times as long when nothing of it is markup any more.
        process.exe = Some("<".repeat(4096));
        process.cmdline = "<".repeat(4096);
        report.identity = [(); 2].map(|()| Identity { process: Some(Arc::new(process.clone())), workload: None });
        report.delta.bytes = [300 << 32, 7];
        report.key.initiator.port += 1;
        let short = testing::report();
        let mut pending = Pending::default();
        pending.push([short.clone(), report, short].into());
        let (mut scratch, mut turn, mut records) = (Vec::new(), 0, Vec::new());
        let (mut encoder, mut introduction) = (tlv::Encoder::new(PROBE), Introduction::start());
        while !pending.is_empty() {
            let mut payload = Vec::new();
            let batch = batch_tlv(&pending, &mut encoder, &mut introduction, &mut payload, &mut scratch);
            turn += 1;
            if turn % 2 == 0 {
                introduction.not_sent();
                continue;
            }
            introduction.sent();
            pending.sent(&batch);
            assert!(payload.len() < NTOPNG_BYTES_MAX, "{} bytes", payload.len());
            let sent = decode(&payload[tlv::MESSAGE_START.len()..]).unwrap();
            assert!(sent.len() == batch.records && (1..=MESSAGE_RECORDS_MAX).contains(&batch.records));
            records.extend(sent);
        }
        assert!(turn > 100, "{turn} messages");
        // The two short ones, and the beginning of the flow.
        assert_eq!(records.len(), 2 + 1 + tlv::RECORDS_MAX);
        let short_bytes = 2 * testing::report().delta.bytes[0];
        assert_eq!(sum(&records, 1), tlv::BYTES_MAX + short_bytes);
        assert_eq!(sum(&records[1..2], 1), 0, "the beginning comes once, and first");
    }

    /// Reports that find no room in a message, or whose message is made anew, are of flows that may have been heard of before.
    #[test]
    fn nothing_is_introduced_twice() {
        let report = |number: u16, first| {
            let mut report = FlowReport { first, state: State::Open, ..testing::report() };
            report.key.initiator.port = number;
            report
        };
        let mut pending = Pending::default();
        // Twice as many as a message takes, each of them twice.
        let flows = 2 * MESSAGE_RECORDS_MAX as u16;
        pending.push((0..flows).map(|n| report(n, true)).chain((0..flows).map(|n| report(n, false))).collect());
        let (mut payload, mut scratch) = (Vec::new(), Vec::new());
        let (mut encoder, mut introduction) = (tlv::Encoder::new(PROBE), Introduction::start());
        let (mut records, mut turn) = (0, 0);
        while !pending.is_empty() {
            payload.clear();
            let batch = batch_tlv(&pending, &mut encoder, &mut introduction, &mut payload, &mut scratch);
            turn += 1;
            if turn % 2 == 0 {
                introduction.not_sent();
                continue;
            }
            introduction.sent();
            records += batch.records;
            pending.drop_oldest(batch.count);
        }
        assert_eq!(records, 2 * usize::from(flows));
    }

    #[test]
    fn pending_reports_keep_their_order_across_chunks() {
        let mut pending = Pending::default();
        let mut next = 0;
        for size in [3, 1, 0, 4] {
            pending.push(
                (0..size)
                    .map(|_| {
                        next += 1;
                        FlowReport { first_unix_ns: next, ..testing::report() }
                    })
                    .collect(),
            );
        }
        let numbers = |pending: &Pending| pending.iter().map(|report| report.first_unix_ns).collect::<Vec<_>>();
        assert_eq!((pending.len(), numbers(&pending)), (8, (1..=8).collect()));
        for (dropped, first) in [(2, 3), (1, 4), (2, 6)] {
            pending.drop_oldest(dropped);
            assert_eq!(numbers(&pending), (first..=8).collect::<Vec<_>>());
        }
        pending.drop_oldest(99);
        assert!(pending.is_empty() && pending.chunks.is_empty() && pending.done == 0);
    }

    #[test]
    fn libzmq_has_curve() {
        assert!(zmq::has("curve").unwrap_or(false));
    }
}
