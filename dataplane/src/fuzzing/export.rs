//! What goes to a collector.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::input::{Input, assert_clean};
use crate::export::decoder::{Item, Record, decode, sum};
use crate::export::tlv::{BYTES_MAX, Encoder, RECORDS_MAX, Writer};
use crate::flows::report::{FlowReport, Identity, Opening};
use crate::model::flow::{Addr, Counters, Endpoint, FlowKey, ProcKey, Proto, Side, State};
use crate::model::rtt::RttSummary;
use crate::model::text::clean;
use crate::owners::cmdline::CommandLines;
use crate::owners::process::{Memory, Process};
use crate::owners::workload::{NameReply, Names, Pod, Workload, WorkloadTable};

/// Longest record of what an input of a few kilobytes can name.
const RECORD_MAX: usize = 16 << 10;

/// A report of anything, and then items of anything: an independent decoder finds again what was written.
pub fn tlv(data: &[u8]) {
    let mut input = Input(data);
    let report = report(&mut input);
    let mut out = Vec::new();
    let mut encoder = Encoder::new(IpAddr::V4(Ipv4Addr::from(input.u32())));
    encoder.encode_beginning(&report, &mut out);
    let begin = out.len();
    let count = encoder.encode(&report, &mut out);
    assert!(in_pieces(&report, &mut encoder, 16 * data.len()) == out[begin..], "pieces are the whole");
    assert!(count <= RECORDS_MAX && out.len() <= (1 + count) * RECORD_MAX, "{count} records, {} bytes", out.len());
    let records = decoded(&out);
    assert_eq!(records.len(), 1 + count);
    records.iter().for_each(|record| assert_of_flow(record, &report));
    let (beginning, parts) = (&records[..1], &records[1..]);
    assert_identities(&beginning[0], &report);
    assert_identities(&parts[0], &report);
    for (side, [bytes, packets]) in [[1, 2], [23, 24]].into_iter().enumerate() {
        assert_eq!((sum(beginning, bytes), sum(beginning, packets)), (0, 0));
        assert_eq!(sum(parts, bytes), report.delta.bytes[side].min(BYTES_MAX));
        assert!(sum(parts, packets) >= report.delta.packets[side].min(BYTES_MAX));
        for part in parts.chunks(1) {
            assert!(sum(part, bytes).max(sum(part, packets)) <= u32::MAX.into());
            assert!(sum(part, bytes) == 0 || sum(part, packets) > 0);
        }
    }
    assert!(records.chunks(1).all(|record| sum(record, 21) >= sum(record, 22)), "time goes on");
    items(&mut input);
}

/// The records of a report as they go into messages of at most so many bytes, or of one record.
fn in_pieces(report: &FlowReport, encoder: &mut Encoder, bytes_max: usize) -> Vec<u8> {
    let (mut all, mut piece, mut done) = (Vec::new(), Vec::new(), 0);
    loop {
        piece.clear();
        let (count, whole) = encoder.encode_from(report, done, bytes_max, &mut piece);
        assert!(count == 1 || count > 1 && piece.len() <= bytes_max, "{count} records, {} bytes", piece.len());
        all.extend_from_slice(&piece);
        done += count;
        if whole {
            return all;
        }
    }
}

/// Single items of every type.
fn items(input: &mut Input<'_>) {
    let (mut out, mut written) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let (kind, key, mut writer) = (input.u8(), input.u32(), Writer(&mut out));
        let short = key >> (8 * (kind >> 6));
        match kind % 4 {
            0 => {
                let number = input.u64() >> (kind & 0x3c);
                writer.uint(short, number);
                written.push((short.into(), Item::Number(number)));
            }
            1 => {
                let float = input.u32() as f32 / 1000.0;
                writer.float(short, float);
                written.push((short.into(), Item::Float(float)));
            }
            2 => {
                let text = clean(input.bytes());
                writer.string(short, &text);
                if !text.is_empty() {
                    written.push((short.into(), Item::Text(shown(&text))));
                }
            }
            _ => {
                let [name, text] = [(); 2].map(|()| clean(input.bytes()));
                writer.named_string(&name, &text);
                if !text.is_empty() {
                    written.push((0, Item::Named(shown(&name), shown(&text))));
                }
            }
        }
    }
    if !written.is_empty() {
        Writer(&mut out).end();
        assert_eq!(decoded(&out), [written]);
    }
}

fn decoded(bytes: &[u8]) -> Vec<Record> {
    let records = decode(bytes).unwrap_or_else(|why| panic!("{why}: {bytes:x?}"));
    for (_, item) in records.iter().flatten() {
        if let Item::Text(text) | Item::Named(_, text) = item {
            assert_clean(text, u16::MAX.into());
            assert!(!text.is_empty() && !text.contains(['<', '>', '"', '\'', '&', '`']), "{text:?} is markup");
        }
    }
    records
}

/// Text as a page may have it.
fn shown(text: &str) -> String {
    let wide = ["<", ">", "\"", "'", "&", "`"].into_iter().zip(["＜", "＞", "＂", "＇", "＆", "｀"]);
    wide.fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn assert_has(record: &Record, key: u64, text: &str) {
    let held = record.iter().any(|item| *item == (key, Item::Text(shown(text))));
    assert!(held || text.is_empty(), "{key} is not {text:?}: {record:?}");
}

/// Every record says which flow it is of, and of which processes.
fn assert_of_flow(record: &Record, report: &FlowReport) {
    let key = &report.key;
    let text = |keys: [u64; 2]| {
        record.iter().find_map(|(known, item)| match item {
            Item::Text(text) if keys.contains(known) => text.parse::<IpAddr>().ok(),
            _ => None,
        })
    };
    let found = [text([8, 27]), text([12, 28])].map(|ip| ip.map(|ip| ip.to_canonical()));
    assert_eq!(found, [Some(key.initiator.addr.ip()), Some(key.responder.addr.ip())]);
    let one = std::slice::from_ref(record);
    let ports = [7, 11, 4].map(|element| sum(one, element));
    let expected = [key.initiator.port, key.responder.port, key.proto.number().into()];
    assert_eq!(ports, expected.map(u64::from));
    for (identity, [pid, name]) in report.identity.iter().zip([[57640, 57641], [57847, 57848]]) {
        let Some(process) = &identity.process else { continue };
        assert_eq!(sum(one, pid), u64::from(process.key.pid));
        assert_has(record, name, process.path_or_name());
    }
}

/// A record that tells all says who is behind both sides.
fn assert_identities(record: &Record, report: &FlowReport) {
    const ELEMENTS: [[u64; 4]; 2] = [[57844, 58028, 58012, 58030], [57849, 58029, 58013, 58031]];
    for (identity, [user, cmdline, package, container]) in report.identity.iter().zip(ELEMENTS) {
        if let Some(process) = &identity.process {
            assert_has(record, user, process.user.as_deref().unwrap_or_default());
            assert_has(record, cmdline, &process.cmdline);
            assert_has(record, package, process.package.as_deref().unwrap_or_default());
        }
        if let Some(workload) = &identity.workload {
            assert_has(record, container, &workload.label().unwrap_or_default());
        }
    }
}

fn report(input: &mut Input<'_>) -> FlowReport {
    let choice = input.u8();
    let key = FlowKey {
        proto: if choice & 1 == 0 { Proto::Tcp } else { Proto::Udp },
        initiator: endpoint(input),
        responder: endpoint(input),
    };
    let state = State::ALL[usize::from(input.u8()) % State::ALL.len()];
    let (delta, total) = (counters(input), counters(input));
    FlowReport {
        key,
        translated: (choice & 2 != 0).then(|| Box::new(key.reversed())),
        first_unix_ns: input.u64(),
        since_unix_ns: input.u64(),
        last_unix_ns: input.u64(),
        delta,
        total,
        bypassed: choice & 4 != 0,
        rtt_us: [0; 2].map(|_| (choice & 8 != 0).then(|| (input.u32(), input.u32()))),
        local: [true, choice & 16 != 0],
        owners: [ProcKey::default(); 2],
        changed: None,
        identity: [0; 2].map(|_| Identity { process: process(input), workload: workload(input) }),
        rtt_samples: (choice & 32 != 0).then(|| RttSummary {
            samples: input.u32(),
            min_us: input.u32(),
            mean_us: input.u32(),
            p99_us: input.u32(),
        }),
        window_max: [input.u16(), input.u16()],
        congestion: [(choice & 64 != 0).then_some("cubic"), None],
        first: choice & 128 != 0,
        ended: state.is_over(),
        state,
        connecting: state == State::Connecting,
        reset_by: (choice & 3 == 3).then_some(Side::Responder),
        peer_name: None,
        dns: None,
        hello: None,
        opening: Opening::default(),
    }
}

fn endpoint(input: &mut Input<'_>) -> Endpoint {
    let mut addr = input.array();
    // Random bytes are hardly ever an IPv4 address.
    if addr[0] & 1 == 0 {
        addr[..12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
    }
    Endpoint { addr: Addr(addr), port: input.u16() }
}

/// A shift makes small ones as likely as large ones.
fn counters(input: &mut Input<'_>) -> Counters {
    let mut number = || input.u64() >> (input.u8() % 64);
    Counters {
        bytes: [number(), number()],
        packets: [number(), number()],
        retrans: [number() as u32, number() as u32],
        out_of_order: [number() as u32, number() as u32],
    }
}

fn process(input: &mut Input<'_>) -> Option<Arc<Process>> {
    let choice = input.u8();
    (choice & 1 != 0).then(|| {
        let mut text = || clean(input.bytes());
        let process = Process {
            name: text(),
            exe: (choice & 2 != 0).then(&mut text),
            user: (choice & 4 != 0).then(&mut text),
            group: (choice & 8 != 0).then(&mut text),
            parent_name: text(),
            parent_user: Some(text()),
            ancestors: (0..choice >> 6).map(|pid| (text(), pid.into())).collect(),
            package: (choice & 16 != 0).then(&mut text),
            parent_package: Some(text()),
            cmdline: CommandLines::Masked.read(input.bytes(), false),
            ..Process::default()
        };
        let memory = Memory { resident_kib: input.u64(), peak_kib: input.u64() };
        Arc::new(Process {
            key: ProcKey { pid: input.u32(), ..ProcKey::default() },
            uid: input.u32(),
            ppid: input.u16().into(),
            memory: (choice & 32 != 0).then_some(memory),
            ..process
        })
    })
}

fn workload(input: &mut Input<'_>) -> Option<Arc<Workload>> {
    let mut workloads = WorkloadTable::default();
    let choice = input.u8();
    match choice & 3 {
        0 => return None,
        1 => workloads.learn(1, &input.text(), 0),
        _ => workloads.learn(1, &format!("/docker/{}", "0123456789abcdef".repeat(4)), 0),
    }
    if choice & 4 != 0 {
        let labels = (0..choice >> 4).map(|_| (input.text(), input.text())).collect();
        let pod = (choice & 8 != 0).then(|| Pod {
            uid: input.text(),
            name: input.text(),
            namespace: input.text(),
            ..Pod::default()
        });
        let names = Names { name: input.text(), image: input.text(), labels, pod, ..Names::default() };
        workloads.named(NameReply::Cgroup { cgroup_id: 1, names: Some(Box::new(names)) });
    }
    workloads.peek(1).map(Arc::clone)
}
