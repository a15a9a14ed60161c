//! Flow records as ntopng reads them: nDPI's TLV serialisation with numeric information elements.
//!
//! ```text
//! message := 0x01 (version) 0x01 (TLV) record*
//! record  := item+ 0x01
//! item    := key_type<<4 | value_type, key, value
//! ```
//!
//! Integers are big endian in the narrowest width, floats little endian, strings have a 16-bit length.

#[cfg(test)]
mod tests;

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
