//! Which reports go into one message, and what a collector that has joined must hear first.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{json, tlv};
use crate::flows::report::FlowReport;

/// Records in one message: ntopng counts them in a byte.
pub(super) const MESSAGE_RECORDS_MAX: usize = 255;
/// Payload of one message; ntopng drops 128 KiB and more.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// For so long after it has joined a collector hears of flows that are older: control reports all open ones within five
/// seconds, or 16,000 a second of more than 64,000, and what was waiting comes first.
const INTRODUCTION: Duration = Duration::from_secs(30);

/// A collector that has joined knows nothing of flows that were reported before. It takes the beginning of a flow from the
/// first record of it, and its throughput from the interval of each: so a flow whose first record would not begin with it
/// has one more, without counters, from its beginning on.
#[derive(Default)]
pub(super) struct Introduction {
    /// `None`: no collector has joined of late.
    until: Option<Instant>,
    /// Hashes of the flows that it has heard of since, those of the next message included.
    heard: HashSet<u64, ahash::RandomState>,
    /// Those of them that are in the next message for the first time.
    in_message: Vec<u64>,
}

impl Introduction {
    pub(super) fn start() -> Self {
        Self { until: Some(Instant::now() + INTRODUCTION), ..Self::default() }
    }

    pub(super) fn end_in_time(&mut self) {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            *self = Self::default();
        }
    }

    /// Whether the collector hears of a flow for the first time.
    pub(super) fn is_news(&mut self, report: &FlowReport) -> bool {
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
    pub(super) fn take_back(&mut self) {
        if let Some(hash) = self.in_message.pop() {
            self.heard.remove(&hash);
        }
    }

    /// The message has been sent.
    pub(super) fn sent(&mut self) {
        self.in_message.clear();
    }

    /// The message will be made anew.
    pub(super) fn not_sent(&mut self) {
        for hash in self.in_message.drain(..) {
            self.heard.remove(&hash);
        }
    }
}

/// Reports in their order, in the chunks in which they came.
#[derive(Default)]
pub(super) struct Pending {
    chunks: VecDeque<Arc<[FlowReport]>>,
    /// Of the first chunk, what is done with.
    done: usize,
    /// Records of the next report that have been sent.
    records_done: usize,
    len: usize,
}

impl Pending {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, chunk: Arc<[FlowReport]>) {
        self.len += chunk.len();
        self.chunks.push_back(chunk);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &FlowReport> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).skip(self.done)
    }

    /// What is in a message has been sent.
    pub(super) fn sent(&mut self, batch: &Batch) {
        self.drop_oldest(batch.count);
        self.records_done = batch.records_of_next;
    }

    /// Drops that many, or all.
    pub(super) fn drop_oldest(&mut self, count: usize) {
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
pub(super) struct Batch {
    /// Reports from the front of the queue.
    pub(super) count: usize,
    /// Records that they became, and those of the next report that has begun.
    pub(super) records: usize,
    /// Of the report after them, the records that have been sent by then: it did not fit into a message.
    pub(super) records_of_next: usize,
}

pub(super) fn batch_tlv(
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
        if done == 0 && (is_news || report.first) {
            records += encoder.encode_protocol(report, scratch);
        }
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

pub(super) fn batch_json(
    pending: &Pending,
    probe: IpAddr,
    introduction: &mut Introduction,
    payload: &mut Vec<u8>,
) -> Batch {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::decoder::{decode, sum};
    use crate::flows::report::Identity;
    use crate::flows::testing;
    use crate::model::flow::State;

    const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

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
}
