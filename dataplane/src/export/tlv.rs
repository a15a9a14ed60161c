//! Flow records as ntopng reads them: nDPI's TLV serialisation with numeric information elements.
//!
//! ```text
//! message := 0x01 (version) 0x01 (TLV) record*
//! record  := item+ 0x01
//! item    := key_type<<4 | value_type, key, value
//! ```
//!
//! Integers are big endian in the narrowest width, floats little endian, strings have a 16-bit length.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::elements::{self, Element, Part, Sink};
use super::layer7;
use crate::flows::report::{FlowReport, Identity};
use crate::model::flow::{Counters, Side};
use crate::model::text::{neutral, truncated};

/// First bytes of a message.
pub const MESSAGE_START: [u8; 2] = [1, 1];
/// End of a record.
const RECORD_END: u8 = 1;

const U8: u8 = 2;
const U16: u8 = 3;
const U32: u8 = 4;
const U64: u8 = 5;
const FLOAT: u8 = 10;
const STRING: u8 = 11;

/// Writes TLV items to the end of a buffer.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    fn header(&mut self, key: u32, value_type: u8) {
        let [b0, b1, b2, b3] = key.to_be_bytes();
        match key {
            0..=0xff => self.0.extend([U8 << 4 | value_type, b3]),
            0x100..=0xffff => self.0.extend([U16 << 4 | value_type, b2, b3]),
            _ => self.0.extend([U32 << 4 | value_type, b0, b1, b2, b3]),
        }
    }

    /// An unsigned integer in the narrowest width.
    pub fn uint(&mut self, key: u32, value: u64) {
        let bytes = value.to_be_bytes();
        let (kind, width) = match value {
            0..=0xff => (U8, 1),
            0x100..=0xffff => (U16, 2),
            0x1_0000..=0xffff_ffff => (U32, 4),
            _ => (U64, 8),
        };
        self.header(key, kind);
        self.0.extend_from_slice(&bytes[8 - width..]);
    }

    /// A float, little endian.
    pub fn float(&mut self, key: u32, value: f32) {
        self.header(key, FLOAT);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Text of at most 65,535 bytes, without what a page could take for markup; longer text is cut at a character. Empty text
    /// is left out: ntopng ignores it.
    pub fn string(&mut self, key: u32, text: &str) {
        if !text.is_empty() {
            self.header(key, STRING);
            self.bytes(text);
        }
    }

    /// Text under a name that ntopng does not know: it shows such elements as they are.
    pub fn named_string(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.0.push(STRING << 4 | STRING);
            self.bytes(name);
            self.bytes(text);
        }
    }

    fn bytes(&mut self, text: &str) {
        let text = neutral(text);
        let text = truncated(&text, usize::from(u16::MAX));
        self.0.extend_from_slice(&(text.len() as u16).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Closes the record.
    pub fn end(&mut self) {
        self.0.push(RECORD_END);
    }
}

impl Sink for Writer<'_> {
    fn uint(&mut self, element: &Element, value: u64) {
        Writer::uint(self, element.0, value);
    }

    fn float(&mut self, element: &Element, value: f32) {
        Writer::float(self, element.0, value);
    }

    fn text(&mut self, element: &Element, text: &str) {
        self.string(element.0, text);
    }

    fn row(&mut self, label: &str, text: &str) {
        self.named_string(label, text);
    }
}

/// Most records of one report: with one about the beginning of its flow and one about its protocol they fill a message,
/// whose records ntopng counts in a byte.
pub(crate) const RECORDS_MAX: usize = 253;
/// Most bytes, and most packets, of one direction in them: a terabyte. More in one interval is no traffic, but a
/// counter that went wrong, and must not become millions of records.
pub(crate) const BYTES_MAX: u64 = RECORDS_MAX as u64 * u32::MAX as u64;

/// Most sides whose elements are remembered.
const IDENTITIES_MAX: usize = 4096;
/// Most bytes of them: command lines may be long.
const IDENTITY_BYTES_MAX: usize = 4 << 20;

/// Where process and workload are in memory, which the value holds, and the side.
type IdentityKey = (usize, usize, Side);

/// Writes reports. Who is behind a side is written once, and copied as long as it stays the same: that is most of a record.
pub struct Encoder {
    /// Address of the agent.
    probe: String,
    identities: HashMap<IdentityKey, (Identity, Box<[u8]>), ahash::RandomState>,
    identity_bytes: usize,
}

impl Encoder {
    /// For an agent with this address.
    #[must_use]
    pub fn new(probe: IpAddr) -> Self {
        Self { probe: elements::probe_text(probe), identities: HashMap::default(), identity_bytes: 0 }
    }

    /// Appends a report: one record, or several of equal parts of its interval when a counter does not fit the 32 bits that
    /// ntopng keeps of a record. Returns how many.
    pub fn encode(&mut self, report: &FlowReport, out: &mut Vec<u8>) -> usize {
        self.encode_from(report, 0, usize::MAX, out).0
    }

    /// Appends those of these records that come after the first `written`, as long as `out` has at most so many bytes;
    /// into an empty one goes one record at least. Returns how many, and whether they were the last.
    pub(crate) fn encode_from(
        &mut self,
        report: &FlowReport,
        written: usize,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> (usize, bool) {
        let counted = bounded(&report.delta);
        let (written, parts) = (written as u64, parts_needed(&counted));
        let (since_ns, ns) = (report.since_unix_ns, report.last_unix_ns.saturating_sub(report.since_unix_ns));
        let moment = |number: u64| since_ns + share(ns, number, parts);
        for number in written..parts {
            let begin = out.len();
            let delta = part_of(&counted, number, parts);
            self.record(report, [moment(number), moment(number + 1)], &delta, number == 0, out);
            if out.len() > bytes_max && begin > 0 {
                out.truncate(begin);
                return ((number - written) as usize, false);
            }
        }
        ((parts - written) as usize, true)
    }

    /// Appends one record by which a collector learns when a flow began of which it has not heard before: from then until
    /// where the report begins, with nothing counted.
    pub fn encode_beginning(&mut self, report: &FlowReport, out: &mut Vec<u8>) {
        self.record(report, [report.first_unix_ns, report.since_unix_ns], &Counters::default(), true, out);
    }

    /// Appends one record by which a collector learns which protocol a flow speaks, if that is worth one. Returns how many.
    pub fn encode_protocol(&mut self, report: &FlowReport, out: &mut Vec<u8>) -> usize {
        let Some(protocol) = layer7::of(report) else { return 0 };
        let (nothing, since_s) = (Counters::default(), elements::seconds(report.first_unix_ns));
        let part = Part { probe: &self.probe, counters: &nothing, interval_s: [since_s; 2], delta: &nothing };
        elements::write_protocol(report, &part, &protocol, &mut Writer(out));
        Writer(out).end();
        1
    }

    /// One record, with all that is known of both sides or, where that was in the record before, with what marks them.
    fn record(&mut self, report: &FlowReport, interval_ns: [u64; 2], delta: &Counters, whole: bool, out: &mut Vec<u8>) {
        let interval_s = interval_ns.map(elements::seconds);
        let part = Part { probe: &self.probe, counters: delta, interval_s, delta };
        elements::write_flow(report, &part, &mut Writer(out));
        for (side, identity) in Side::BOTH.into_iter().zip(&report.identity) {
            if !whole {
                elements::write_mark(side, identity, &mut Writer(out));
            } else if identity.is_known() {
                out.extend_from_slice(self.identity(side, identity));
            }
        }
        Writer(out).end();
    }

    fn identity(&mut self, side: Side, identity: &Identity) -> &[u8] {
        let process = identity.process.as_ref().map_or(0, |process| Arc::as_ptr(process).addr());
        let workload = identity.workload.as_ref().map_or(0, |workload| Arc::as_ptr(workload).addr());
        let key = (process, workload, side);
        let full = self.identities.len() >= IDENTITIES_MAX || self.identity_bytes >= IDENTITY_BYTES_MAX;
        if full && !self.identities.contains_key(&key) {
            self.identities.clear();
            self.identity_bytes = 0;
        }
        let (_, bytes) = self.identities.entry(key).or_insert_with(|| {
            let mut bytes = Vec::new();
            elements::write_identity(side, identity, &mut Writer(&mut bytes));
            self.identity_bytes += bytes.len();
            (identity.clone(), bytes.into())
        });
        bytes
    }
}

/// What fits into the records that a report may take.
fn bounded(delta: &Counters) -> Counters {
    let most = |counters: [u64; 2]| counters.map(|counter| counter.min(BYTES_MAX));
    Counters { bytes: most(delta.bytes), packets: most(delta.packets), ..*delta }
}

/// Records that a report takes.
fn parts_needed(delta: &Counters) -> u64 {
    let most = delta.bytes.into_iter().chain(delta.packets).max().unwrap_or(0);
    most.div_ceil(u32::MAX.into()).max(1)
}

/// What a total comes to after so many of all parts.
fn share(total: u64, number: u64, parts: u64) -> u64 {
    (u128::from(total) * u128::from(number) / u128::from(parts)) as u64
}

/// One of equal parts, with at least a packet for its bytes. Loss and order go with the first.
fn part_of(delta: &Counters, number: u64, parts: u64) -> Counters {
    let of = |total| share(total, number + 1, parts) - share(total, number, parts);
    let first = Counters { retrans: delta.retrans, out_of_order: delta.out_of_order, ..Counters::default() };
    let mut part = if number == 0 { first } else { Counters::default() };
    for i in 0..2 {
        part.bytes[i] = of(delta.bytes[i]);
        part.packets[i] = of(delta.packets[i]).max(u64::from(part.bytes[i] > 0));
    }
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::export::decoder::{self, Item, Record, sum};
    use crate::flows::testing;

    const PROBE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 8, 7));

    /// The vector of ntop's own serialiser.
    const GOLDEN: &str = "01012b08000831302e312e322e332b0c000931302e312e322e35332307ea63220b35220411223c0424166b03d7f0\
        24156b03d7f522014622020122177822180133e1280d053be12900112f7573722f7362696e2f646e736d61737132e229653be1f40007\
        646e736d6173713ae0fb0000a03f01";

    #[test]
    fn items_are_those_of_ntops_serialiser() {
        let mut out = MESSAGE_START.to_vec();
        let mut w = Writer(&mut out);
        w.string(8, "10.1.2.3");
        w.string(12, "10.1.2.53");
        for (key, value) in [
            (7, 60003),
            (11, 53),
            (4, 17),
            (60, 4),
            (22, 1_795_414_000),
            (21, 1_795_414_005),
            (1, 70),
            (2, 1),
            (23, 120),
            (24, 1),
            (57640, 3333),
        ] {
            w.uint(key, value);
        }
        w.string(57641, "/usr/sbin/dnsmasq");
        w.uint(57897, 101);
        w.string(57844, "dnsmasq");
        w.float(57595, 1.25);
        w.end();
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    fn decode(bytes: &[u8]) -> Vec<Record> {
        decoder::decode(bytes).unwrap()
    }

    #[test]
    fn a_pod_is_told_in_the_field_of_the_container_and_in_labelled_rows() {
        let mut out = Vec::new();
        Encoder::new(PROBE).encode(&testing::report(), &mut out);
        let record = &decode(&out)[0];
        assert!(record.contains(&(58030, Item::Text("shop/web-1/app".into()))));
        for (name, text) in [
            ("Client Kubernetes Pod", "web-1"),
            ("Client Namespace", "shop"),
            ("Client Container Image", "registry.example/app:1"),
            ("Client Command Line", "curl --option"),
            // `>` is markup to a page.
            ("Client Ancestry", "systemd(1) \u{ff1e} sshd(812) \u{ff1e} bash(4000)"),
            ("Server UID / GID", "1000 (www-data) / 1001"),
            ("Server Systemd Unit", "nginx.service"),
            ("TCP RTT", "min 18.000 ms / average 20.500 ms / p99 31.250 ms (12 samples)"),
            ("Client Congestion Control", "cubic"),
        ] {
            assert!(record.contains(&(0, Item::Named(name.into(), text.into()))), "{name}: {record:?}");
        }
        assert!(!record.iter().any(|(key, _)| *key == 58031));
    }

    #[test]
    fn a_record_is_about_its_interval_and_names_the_agent() {
        let report = FlowReport {
            first_unix_ns: 100_500_000_000,
            since_unix_ns: 150_500_000_000,
            last_unix_ns: 160_500_000_000,
            ..testing::report()
        };
        let mut out = Vec::new();
        let mut encoder = Encoder::new(PROBE);
        encoder.encode(&report, &mut out);
        encoder.encode_beginning(&report, &mut out);
        let records = decode(&out);
        let times = |record: &[(u64, Item)]| [22, 21, 58051, 1].map(|key| sum(&[record.to_vec()], key));
        assert_eq!(times(&records[0]), [150, 160, 1, 1200]);
        assert_eq!(times(&records[1]), [100, 150, 1, 0]);
        for record in &records {
            assert!(record.contains(&(57943, Item::Text("10.9.8.7".into()))));
            assert!(record.contains(&(57640, Item::Number(42))) && record.contains(&(57847, Item::Number(43))));
        }
    }

    #[test]
    fn a_connection_that_failed_is_an_issue() {
        use crate::model::flow::State;
        for (state, risk) in [(State::Refused, 1 << 50), (State::TimedOut, 1 << 50), (State::Closed, 0)] {
            let mut out = Vec::new();
            Encoder::new(PROBE).encode(&FlowReport { state, ..testing::report() }, &mut out);
            assert_eq!(sum(&decode(&out), 57981), risk, "{state:?}");
        }
    }

    #[test]
    fn a_counter_that_went_wrong_takes_no_more_than_a_message() {
        let delta = Counters { bytes: [u64::MAX, 7], packets: [1, u64::MAX], ..Counters::default() };
        let mut out = Vec::new();
        let count = Encoder::new(PROBE).encode(&FlowReport { delta, ..testing::report() }, &mut out);
        let records = decode(&out);
        assert_eq!((count, records.len()), (RECORDS_MAX, RECORDS_MAX));
        assert_eq!([1, 23].map(|key| sum(&records, key)), [BYTES_MAX, 7]);
        assert!(out.len() < 128 << 10, "{} bytes", out.len());
    }

    proptest! {
        #[test]
        fn an_independent_decoder_reads_what_was_written(
            items in prop::collection::vec((any::<u32>(), any::<u64>(), ".{1,50}"), 1..20),
        ) {
            let mut out = Vec::new();
            let mut expected = Vec::new();
            let mut w = Writer(&mut out);
            for (key, value, text) in &items {
                w.uint(*key, *value);
                w.string(*key, text);
                w.float(*key, *value as f32);
                let key = u64::from(*key);
                expected.push((key, Item::Number(*value)));
                let safe = ["<", ">", "\"", "'", "&", "`"].into_iter().zip(["＜", "＞", "＂", "＇", "＆", "｀"]);
                let text = safe.fold(text.clone(), |text, (from, to)| text.replace(from, to));
                expected.push((key, Item::Text(text)));
                expected.push((key, Item::Float(*value as f32)));
            }
            w.end();
            prop_assert_eq!(decode(&out), vec![expected]);
        }

        #[test]
        fn counters_add_up_and_each_fits_32_bits(
            bytes in any::<[u64; 2]>().prop_map(|b| b.map(|b| b >> 28)),
            packets in any::<[u64; 2]>().prop_map(|p| p.map(|p| p >> 31)),
            cmdline in ".{0,40}",
        ) {
            let mut report = testing::report();
            let mut process = (**report.identity[0].process.as_ref().unwrap()).clone();
            process.cmdline = crate::model::text::clean(cmdline.as_bytes());
            report.identity[0].process = Some(Arc::new(process));
            report.delta = Counters { bytes, packets, ..Counters::default() };
            let mut out = Vec::new();
            let count = Encoder::new(PROBE).encode(&report, &mut out);
            let records = decode(&out);
            prop_assert_eq!(records.len(), count);
            for (key, value) in [(1, bytes[0]), (23, bytes[1])] {
                prop_assert_eq!(sum(&records, key), value);
            }
            for (packet_key, byte_key, reported) in [(2, 1, packets[0]), (24, 23, packets[1])] {
                let sent = sum(&records, packet_key);
                prop_assert!(sent >= reported, "no packet is lost");
                prop_assert!(sent <= reported + count as u64, "at most one is added to a record that has bytes and no packet");
                for record in &records {
                    let one = std::slice::from_ref(record);
                    prop_assert!(sum(one, byte_key) <= u64::from(u32::MAX) && sum(one, packet_key) <= u64::from(u32::MAX));
                    prop_assert!(sum(one, byte_key) == 0 || sum(one, packet_key) > 0);
                }
            }
            // Each part is about its own part of the interval.
            let seconds: Vec<[u64; 2]> = records.iter().map(|r| [22, 21].map(|key| sum(std::slice::from_ref(r), key))).collect();
            prop_assert_eq!((seconds[0][0], seconds[count - 1][1]), (1, 2));
            prop_assert!(seconds.windows(2).all(|pair| pair[0][1] == pair[1][0]), "{seconds:?}");
            // A record without the process would let an idle flow come back bare.
            let has_pid = |record: &Vec<(u64, Item)>| record.iter().any(|(key, _)| *key == 57640);
            prop_assert!(records.iter().all(has_pid));
        }
    }
}
