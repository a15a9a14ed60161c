//! What one record costs in user space, stage by stage: shard, flow table, encoder.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sockeye::export::tlv;
use sockeye::flow::{Addr, Counters, Endpoint, FlowKey, FlowReport, Proto, State};
use sockeye::shard::Delta;
use sockeye::table::{FlowTable, Timeouts};
use sockeye_bpf::records::{FlowRecord, Kind, flags};
use zerocopy::{FromZeros, IntoBytes};

const FLOWS: u64 = 10_000;

fn record(cookie: u64) -> FlowRecord {
    let mut r = FlowRecord::new_zeroed();
    r.kind = Kind::Open as u8;
    r.flags = flags::ROLE_INITIATOR | flags::CONFIRMED;
    r.state = 1;
    r.cookie = cookie;
    r.at_ns = cookie + 1;
    r.local_addr[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
    r.remote_addr[10..].copy_from_slice(&[255, 255, 10, 0, (cookie >> 14) as u8, 2]);
    r.local_port = (cookie % 50_000) as u16 + 1024;
    r.remote_port = 443;
    r.seq_local = cookie as u32;
    r
}

fn shard(c: &mut Criterion) {
    let records: Vec<FlowRecord> = (0..FLOWS).map(record).collect();
    let mut group = c.benchmark_group("shard");
    group.throughput(Throughput::Elements(FLOWS));
    let mut delta = Delta::new(&[0]);
    group.bench_function("insert 10 k flows", |b| {
        b.iter(|| {
            delta.clear();
            records.iter().for_each(|r| delta.record(0, r.as_bytes()));
        });
    });
    group.bench_function("update 10 k flows", |b| {
        b.iter(|| records.iter().for_each(|r| delta.record(0, black_box(r).as_bytes())));
    });
    group.finish();
}

fn table(c: &mut Criterion) {
    let records: Vec<FlowRecord> = (0..FLOWS).map(record).collect();
    let fill = |table: &mut FlowTable, later: u64| {
        for r in &records {
            table.tcp_record(&FlowRecord { at_ns: r.at_ns + later, bytes_sent: later, ..*r }, later);
        }
    };
    let empty = || FlowTable::new(1 << 20, Timeouts::default());
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(FLOWS));
    group.bench_function("enter 10 k flows", |b| b.iter_batched(empty, |mut t| fill(&mut t, 0), BatchSize::LargeInput));
    let mut table = empty();
    let mut later = 0;
    group.bench_function("merge 10 k known flows", |b| {
        b.iter(|| {
            later += FLOWS;
            fill(&mut table, later);
        });
    });
    group.finish();
}

fn encode(c: &mut Criterion) {
    let endpoint = |port| Endpoint { addr: Addr(record(1).local_addr), port };
    let report = FlowReport {
        key: FlowKey { proto: Proto::Tcp, initiator: endpoint(40_000), responder: endpoint(443) },
        first_unix_ns: 1,
        last_unix_ns: 2,
        delta: Counters { bytes: [1200, 34_500], packets: [5, 30], ..Counters::default() },
        total: Counters::default(),
        rtt_us: [Some((20_100, 300)), None],
        local: [true, false],
        owners: Default::default(),
        process: [None, None],
        place: [None, None],
        first: false,
        carries_identity: false,
        state: State::Open,
        reset_by: None,
    };
    let mut out = Vec::with_capacity(1024);
    let mut group = c.benchmark_group("export");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode one TLV record", |b| {
        b.iter(|| {
            out.clear();
            tlv::encode(black_box(&report), &mut out)
        });
    });
    group.finish();
}

criterion_group!(benches, shard, table, encode);
criterion_main!(benches);
