//! Flow records as ntopng reads them: nDPI's TLV serialisation with numeric information elements.
//!
//! ```text
//! message := 0x01 (version) 0x01 (TLV) record*
//! record  := item+ 0x01
//! item    := key_type<<4 | value_type, key, value
//! ```
//!
//! Integers are big endian in the narrowest width, floats little endian, strings have a 16-bit length. Ids are those
//! of IPFIX (RFC 7012) below 57344 and ntop's own (base 57472) above.

use crate::flow::{Counters, FlowReport, Proto, Side, State};
use crate::place::Place;
use crate::process::Process;

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

/// Information elements.
mod id {
    pub(super) const IN_BYTES: u32 = 1;
    pub(super) const IN_PKTS: u32 = 2;
    pub(super) const PROTOCOL: u32 = 4;
    pub(super) const L4_SRC_PORT: u32 = 7;
    pub(super) const IPV4_SRC_ADDR: u32 = 8;
    pub(super) const L4_DST_PORT: u32 = 11;
    pub(super) const IPV4_DST_ADDR: u32 = 12;
    pub(super) const LAST_SWITCHED: u32 = 21;
    pub(super) const FIRST_SWITCHED: u32 = 22;
    pub(super) const OUT_BYTES: u32 = 23;
    pub(super) const OUT_PKTS: u32 = 24;
    pub(super) const IPV6_SRC_ADDR: u32 = 27;
    pub(super) const IPV6_DST_ADDR: u32 = 28;
    pub(super) const IP_PROTOCOL_VERSION: u32 = 60;
    pub(super) const FLOW_END_REASON: u32 = 136;
    pub(super) const CLIENT_TCP_FLAGS: u32 = 57550;
    pub(super) const SERVER_TCP_FLAGS: u32 = 57551;
    pub(super) const RETRANSMITTED_IN_PKTS: u32 = 57581;
    pub(super) const RETRANSMITTED_OUT_PKTS: u32 = 57582;
    pub(super) const OOORDER_IN_PKTS: u32 = 57583;
    pub(super) const OOORDER_OUT_PKTS: u32 = 57584;
    pub(super) const CLIENT_NW_LATENCY_MS: u32 = 57595;
    pub(super) const SERVER_NW_LATENCY_MS: u32 = 57596;

    /// Elements of a process, for the side that connected and for the side that accepted.
    pub(super) struct ProcessIds {
        pub(super) pid: u32,
        pub(super) name: u32,
        pub(super) uid: u32,
        pub(super) user: u32,
        pub(super) parent_pid: u32,
        pub(super) parent_name: u32,
        pub(super) parent_uid: u32,
        pub(super) parent_user: u32,
        pub(super) cmdline: u32,
        pub(super) package: u32,
        pub(super) container: u32,
    }
    pub(super) const PROCESS: [ProcessIds; 2] = [
        ProcessIds {
            pid: 57640,
            name: 57641,
            uid: 57897,
            user: 57844,
            parent_pid: 57845,
            parent_name: 57846,
            parent_uid: 58036,
            parent_user: 58037,
            cmdline: 58028,
            package: 58012,
            container: 58030,
        },
        ProcessIds {
            pid: 57847,
            name: 57848,
            uid: 57898,
            user: 57849,
            parent_pid: 57850,
            parent_name: 57851,
            parent_uid: 58039,
            parent_user: 58040,
            cmdline: 58029,
            package: 58013,
            container: 58031,
        },
    ];
}

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

    /// Text of at most 65,535 bytes; longer text is cut at a character. Empty text is left out: ntopng ignores it.
    pub fn string(&mut self, key: u32, text: &str) {
        if text.is_empty() {
            return;
        }
        let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
        self.header(key, STRING);
        self.0.extend_from_slice(&(text.len() as u16).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Text under a name that ntopng does not know: it shows such elements as they are.
    pub fn named_string(&mut self, name: &str, text: &str) {
        if text.is_empty() {
            return;
        }
        self.0.push(STRING << 4 | STRING);
        for part in [name, &text[..text.floor_char_boundary(usize::from(u16::MAX))]] {
            self.0.extend_from_slice(&(part.len() as u16).to_be_bytes());
            self.0.extend_from_slice(part.as_bytes());
        }
    }

    /// Closes the record.
    pub fn end(&mut self) {
        self.0.push(RECORD_END);
    }
}

/// Appends a report: one record, or several when a counter does not fit the 32 bits that ntopng keeps of a record.
/// Returns how many.
pub fn encode(report: &FlowReport, out: &mut Vec<u8>) -> usize {
    let mut left = report.delta;
    let mut records = 0;
    loop {
        let part = take_u32(&mut left);
        encode_record(report, &part, records == 0, out);
        records += 1;
        if left.bytes == [0, 0] && left.packets == [0, 0] {
            return records;
        }
    }
}

/// Takes what fits 32 bits from `left`, and leaves packets for the bytes that remain.
fn take_u32(left: &mut Counters) -> Counters {
    const MAX: u64 = u32::MAX as u64;
    let mut part = Counters { retrans: left.retrans, out_of_order: left.out_of_order, ..Counters::default() };
    for i in 0..2 {
        part.bytes[i] = left.bytes[i].min(MAX);
        let more = left.bytes[i] > part.bytes[i];
        // In proportion, so that each record has packets for its bytes.
        part.packets[i] = if more {
            let share = u128::from(left.packets[i]) * u128::from(part.bytes[i]) / u128::from(left.bytes[i]);
            (share as u64).clamp(1, MAX)
        } else {
            left.packets[i].min(MAX).max(u64::from(part.bytes[i] > 0))
        };
        left.bytes[i] -= part.bytes[i];
        left.packets[i] = left.packets[i].saturating_sub(part.packets[i]);
    }
    left.retrans = [0; 2];
    left.out_of_order = [0; 2];
    part
}

fn encode_record(report: &FlowReport, delta: &Counters, first: bool, out: &mut Vec<u8>) {
    const NS_PER_S: u64 = 1_000_000_000;
    let key = &report.key;
    let w = &mut Writer(out);
    let (src, dst) = (key.initiator.addr.ip(), key.responder.addr.ip());
    // A socket bound to an IPv6 address can only talk IPv6, so both are of one family.
    let v4 = src.is_ipv4() && dst.is_ipv4();
    let addresses = if v4 { [id::IPV4_SRC_ADDR, id::IPV4_DST_ADDR] } else { [id::IPV6_SRC_ADDR, id::IPV6_DST_ADDR] };
    w.string(addresses[0], &address_text(key.initiator.addr, v4));
    w.string(addresses[1], &address_text(key.responder.addr, v4));
    w.uint(id::L4_SRC_PORT, key.initiator.port.into());
    w.uint(id::L4_DST_PORT, key.responder.port.into());
    w.uint(id::PROTOCOL, key.proto.number().into());
    w.uint(id::IP_PROTOCOL_VERSION, if v4 { 4 } else { 6 });
    w.uint(id::FIRST_SWITCHED, report.first_unix_ns / NS_PER_S);
    w.uint(id::LAST_SWITCHED, report.last_unix_ns.max(report.first_unix_ns) / NS_PER_S);
    w.uint(id::IN_BYTES, delta.bytes[0]);
    w.uint(id::IN_PKTS, delta.packets[0]);
    w.uint(id::OUT_BYTES, delta.bytes[1]);
    w.uint(id::OUT_PKTS, delta.packets[1]);
    if key.proto == Proto::Tcp {
        tcp_elements(report, delta, w);
    }
    if report.state.is_over() {
        w.string(id::FLOW_END_REASON, report.state.name());
    }
    if first && report.carries_identity {
        for side in Side::BOTH {
            if let Some(process) = &report.process[side as usize] {
                process_elements(&id::PROCESS[side as usize], process, w);
            }
            if let Some(place) = &report.place[side as usize] {
                place_elements(side, place, w);
            }
        }
    }
    w.end();
}

/// IPv4-mapped text is not understood by ntopng, and `Ipv6Addr` prints it for the odd flow that mixes both.
fn address_text(addr: crate::flow::Addr, v4: bool) -> String {
    if v4 { addr.ip().to_string() } else { std::net::Ipv6Addr::from(addr.0).to_string() }
}

fn tcp_elements(report: &FlowReport, delta: &Counters, w: &mut Writer<'_>) {
    let [client, server] = tcp_flags(report);
    w.uint(id::CLIENT_TCP_FLAGS, client.into());
    w.uint(id::SERVER_TCP_FLAGS, server.into());
    for (key, value) in [
        (id::RETRANSMITTED_IN_PKTS, delta.retrans[0]),
        (id::RETRANSMITTED_OUT_PKTS, delta.retrans[1]),
        (id::OOORDER_IN_PKTS, delta.out_of_order[0]),
        (id::OOORDER_OUT_PKTS, delta.out_of_order[1]),
    ] {
        if value > 0 {
            w.uint(key, value.into());
        }
    }
    // ntopng adds the two halves up. Measured at one end, the round trip belongs to the other side.
    match report.rtt_us {
        [Some((us, _)), _] => w.float(id::SERVER_NW_LATENCY_MS, us as f32 / 1000.0),
        [None, Some((us, _))] => w.float(id::CLIENT_NW_LATENCY_MS, us as f32 / 1000.0),
        [None, None] => {}
    }
}

/// The flags that each side has sent so far, from which ntopng derives the state.
fn tcp_flags(report: &FlowReport) -> [u8; 2] {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const PSH_ACK: u8 = 0x18;
    const ACK: u8 = 0x10;
    const OPEN: u8 = SYN | PSH_ACK;
    match report.state {
        State::Connecting | State::Unreachable | State::TimedOut | State::Aborted if report.total.packets[1] == 0 => {
            [SYN, 0]
        }
        State::Refused => [SYN, RST | ACK],
        State::Closed => [OPEN | FIN, OPEN | FIN],
        State::Reset => match report.reset_by {
            Some(Side::Responder) => [OPEN, OPEN | RST],
            _ => [OPEN | RST, OPEN],
        },
        _ => [OPEN, OPEN],
    }
}

fn process_elements(ids: &id::ProcessIds, process: &Process, w: &mut Writer<'_>) {
    w.uint(ids.pid, process.key.pid.into());
    w.string(ids.name, process.path_or_name());
    w.uint(ids.uid, process.uid.into());
    w.string(ids.user, process.user.as_deref().unwrap_or_default());
    w.string(ids.cmdline, &process.cmdline);
    w.string(ids.package, process.package.as_deref().unwrap_or_default());
    if process.ppid > 0 {
        w.uint(ids.parent_pid, process.ppid.into());
        w.string(ids.parent_name, &process.parent_name);
        w.uint(ids.parent_uid, process.parent_uid.into());
        w.string(ids.parent_user, process.parent_user.as_deref().unwrap_or_default());
    }
}

/// ntopng has one field for a container, and none for pods: the rest goes along under names of our own.
fn place_elements(side: Side, place: &Place, w: &mut Writer<'_>) {
    let (Some(container), Some(label)) = (&place.container, place.label()) else { return };
    w.string(id::PROCESS[side as usize].container, &label);
    let prefix = if side == Side::Initiator { "SRC" } else { "DST" };
    let pod = place.pod.as_ref();
    for (name, text) in [
        ("CONTAINER_NAME", container.name.as_str()),
        ("CONTAINER_IMAGE", &container.image),
        ("CONTAINER_RUNTIME", container.runtime.name()),
        ("CONTAINER_FULL_ID", &container.id),
        ("K8S_POD", pod.map_or("", |pod| &pod.name)),
        ("K8S_NAMESPACE", pod.map_or("", |pod| &pod.namespace)),
        ("K8S_POD_UID", pod.map_or("", |pod| &pod.uid)),
    ] {
        w.named_string(&format!("{prefix}_{name}"), text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::export::testing;

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

    /// A decoder that shares nothing with the encoder: record by record, key to value.
    fn decode(mut b: &[u8]) -> Vec<Vec<(u64, Item)>> {
        fn take<'a>(b: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = b.split_at(n);
            *b = tail;
            head
        }
        fn number(b: &mut &[u8], kind: u8) -> u64 {
            take(b, 1 << (kind - 2)).iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
        }
        let (mut records, mut record) = (Vec::new(), Vec::new());
        while !b.is_empty() {
            let kind = take(&mut b, 1)[0];
            if kind == 1 {
                records.push(std::mem::take(&mut record));
                continue;
            }
            if kind == 0xbb {
                let [name, text] = [(); 2].map(|()| {
                    let n = number(&mut b, 3) as usize;
                    String::from_utf8(take(&mut b, n).to_vec()).unwrap()
                });
                record.push((0, Item::Named(name, text)));
                continue;
            }
            let key = number(&mut b, kind >> 4);
            record.push((
                key,
                match kind & 15 {
                    10 => Item::Float(f32::from_le_bytes(take(&mut b, 4).try_into().unwrap())),
                    11 => {
                        let n = number(&mut b, 3) as usize;
                        Item::Text(String::from_utf8(take(&mut b, n).to_vec()).unwrap())
                    }
                    kind => Item::Number(number(&mut b, kind)),
                },
            ));
        }
        assert!(record.is_empty(), "the last record is not closed");
        records
    }

    #[derive(Debug, Clone, PartialEq)]
    enum Item {
        Number(u64),
        Float(f32),
        Text(String),
        Named(String, String),
    }

    #[test]
    fn a_pod_is_told_in_the_field_of_the_container_and_under_names_of_our_own() {
        let mut out = Vec::new();
        encode(&testing::report(), &mut out);
        let record = &decode(&out)[0];
        assert!(record.contains(&(58030, Item::Text("shop/web-1/app".into()))));
        for (name, text) in [("SRC_K8S_POD", "web-1"), ("SRC_CONTAINER_IMAGE", "registry.example/app:1")] {
            assert!(record.contains(&(0, Item::Named(name.into(), text.into()))), "{record:?}");
        }
        assert!(!record.iter().any(|(key, _)| *key == 58031));
    }

    fn sum(records: &[Vec<(u64, Item)>], key: u64) -> u64 {
        let numbers = records.iter().flatten().filter_map(|(k, item)| match item {
            Item::Number(n) if *k == key => Some(*n),
            _ => None,
        });
        numbers.sum()
    }

    proptest! {
        #[test]
        fn an_independent_decoder_reads_what_was_written(
            items in prop::collection::vec((any::<u32>(), any::<u64>(), ".{1,50}"), 0..20),
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
                expected.push((key, Item::Text(text.clone())));
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
            let mut process = (**report.process[0].as_ref().unwrap()).clone();
            process.cmdline = crate::process::clean(cmdline.as_bytes());
            report.process[0] = Some(std::sync::Arc::new(process));
            report.delta = Counters { bytes, packets, ..Counters::default() };
            let mut out = Vec::new();
            let count = encode(&report, &mut out);
            let records = decode(&out);
            prop_assert_eq!(records.len(), count);
            for (key, value) in [(1, bytes[0]), (23, bytes[1])] {
                prop_assert_eq!(sum(&records, key), value);
            }
            for (packet_key, byte_key, told) in [(2, 1, packets[0]), (24, 23, packets[1])] {
                let sent = sum(&records, packet_key);
                prop_assert!(sent >= told, "no packet is lost");
                prop_assert!(sent <= told + count as u64, "at most one is added to a record that has bytes and no packet");
                for record in &records {
                    let one = std::slice::from_ref(record);
                    prop_assert!(sum(one, byte_key) <= u64::from(u32::MAX) && sum(one, packet_key) <= u64::from(u32::MAX));
                    prop_assert!(sum(one, byte_key) == 0 || sum(one, packet_key) > 0);
                }
            }
            // The process is in the first record and in no other.
            let has_pid = |record: &Vec<(u64, Item)>| record.iter().any(|(key, _)| *key == 57640);
            prop_assert!(has_pid(&records[0]) && !records[1..].iter().any(has_pid));
        }
    }
}
