//! What one record costs in user space, stage by stage: parse, shard, histogram, hand-over, merge, encode, answer.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sockeye::api::pass::answer_flows;
use sockeye::api::peers::peers;
use sockeye::export::{json, tlv};
use sockeye::flows::conversations::{CONVERSATIONS_MAX, Conversations};
use sockeye::flows::report::{FlowReport, Identity};
use sockeye::flows::{FlowTable, Timeouts};
use sockeye::ingest::shard::Shard;
use sockeye::ingest::worker::Worker;
use sockeye::metrics::accounts::Accounts;
use sockeye::model::flow::{Addr, Counters, Endpoint, FlowKey, ProcKey, Proto, State};
use sockeye::model::rate::Window;
use sockeye::model::rtt::{RttStats, RttSummary, rtt_histogram};
use sockeye::owners::cgroup::read_path;
use sockeye::owners::process::{Process, ProcessTable};
use sockeye_bpf::records::{FlowRecord, Kind, Record, RttRecord, flags};
use sockeye_bpf::ring::Drain;
use sockeye_ctl::protocol::{FlowsArguments, GroupBy, PeersArguments};
use zerocopy::{FromZeros, IntoBytes};

/// Records per measurement: each of them goes to another flow.
const RECORDS: u64 = 10_000;
const FLOWS: [u64; 3] = [10_000, 100_000, 1_000_000];

fn record(cookie: u64) -> FlowRecord {
    let mut r = FlowRecord::new_zeroed();
    r.kind = Kind::Scan as u8;
    r.flags = flags::ROLE_INITIATOR | flags::OWNER_CONFIRMED;
    r.state = 1;
    r.cookie = cookie;
    r.at_ns = cookie + 1;
    r.local_addr[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
    r.remote_addr[10..].copy_from_slice(&[255, 255, 10, (cookie >> 22) as u8, (cookie >> 14) as u8, 2]);
    r.local_port = (cookie % 16_384) as u16 + 1024;
    r.remote_port = 443;
    r.seq_local = cookie as u32;
    r
}

/// Records of all flows in an order that no prefetcher guesses, in portions of [`RECORDS`]: a portion comes again only
/// when all others were there, or the caches would hold what a real table of this size does not leave there.
struct Scattered {
    records: Vec<FlowRecord>,
    at: usize,
}

impl Scattered {
    fn over(flows: u64) -> Self {
        // An odd factor makes a permutation of the numbers below a power of two; what is beyond is left out.
        let size = flows.next_power_of_two();
        let order = (0..size).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (size - 1)).filter(|c| *c < flows);
        Self { records: order.take(flows as usize).map(record).collect(), at: 0 }
    }

    fn portion(&mut self) -> &[FlowRecord] {
        let portions = self.records.len() / RECORDS as usize;
        self.at = (self.at + 1) % portions;
        &self.records[self.at * RECORDS as usize..][..RECORDS as usize]
    }
}

fn parse(c: &mut Criterion) {
    let records: Vec<FlowRecord> = (0..RECORDS).map(record).collect();
    let mut group = c.benchmark_group("parse");
    group.throughput(Throughput::Elements(RECORDS));
    group.bench_function("flow record", |b| {
        b.iter(|| records.iter().filter(|r| Record::parse(black_box(r.as_bytes())).is_some()).count());
    });
    group.finish();
}

fn shard(c: &mut Criterion) {
    let mut group = c.benchmark_group("shard");
    group.throughput(Throughput::Elements(RECORDS));
    for flows in FLOWS {
        let mut shard = Shard::new(&[0]);
        (0..flows).for_each(|cookie| shard.record(0, record(cookie).as_bytes()));
        let mut records = Scattered::over(flows);
        group.bench_function(BenchmarkId::new("hit", flows), |b| {
            b.iter(|| records.portion().iter().for_each(|r| shard.record(0, black_box(r).as_bytes())));
        });
        // What the machine charges for the memory alone: no record is looked for.
        let mut workloads: Vec<FlowRecord> = (0..flows).map(record).collect();
        group.bench_function(BenchmarkId::new("written where it belongs", flows), |b| {
            b.iter(|| records.portion().iter().for_each(|r| workloads[black_box(r).cookie as usize] = *r));
        });
    }
    let records: Vec<FlowRecord> = (0..RECORDS).map(record).collect();
    let mut shard = Shard::new(&[0]);
    group.bench_function("insert and clear", |b| {
        b.iter(|| {
            shard.clear();
            records.iter().for_each(|r| shard.record(0, r.as_bytes()));
        });
    });
    group.finish();
}

fn histogram(c: &mut Criterion) {
    let mut batch = RttRecord::new_zeroed();
    batch.kind = Kind::Rtt as u8;
    batch.count = batch.samples_us.len() as u8;
    batch.samples_us.iter_mut().enumerate().for_each(|(i, sample)| *sample = 20_000 + 37 * i as u32);
    let mut group = c.benchmark_group("histogram");
    group.throughput(Throughput::Elements(batch.samples_us.len() as u64));
    let mut shard = Shard::new(&[0]);
    group.bench_function("batch of 24 samples: host, process, peer", |b| b.iter(|| shard.record(0, batch.as_bytes())));
    group.throughput(Throughput::Elements(1));
    let mut host = rtt_histogram();
    host.saturating_record(20_000);
    let other = host.clone();
    group.bench_function("merge, 2 digits", |b| b.iter(|| host.add(black_box(&other))));
    let mut stats = RttStats::default();
    stats.record(&batch.samples_us);
    let other = stats.clone();
    group.bench_function("merge, 1 digit", |b| b.iter(|| stats.add(black_box(&other))));
    group.finish();
}

/// A ring that always has one record more.
struct Endless(FlowRecord);

impl Drain for Endless {
    fn drain(&mut self, _limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        each(self.0.as_bytes());
        1
    }
}

fn hand_over(c: &mut Criterion) {
    let (mut worker, mut port) = Worker::new(0, vec![(Endless(record(1)), 0)], Box::new(|| {}));
    c.bench_function("hand-over: a delta to control and back", |b| {
        b.iter(|| {
            worker.visit();
            worker.hand_over();
            let mut shard = port.shards.pop().expect("it was handed over");
            shard.clear();
            port.recycle.push(shard).expect("room for all boxes");
        });
    });
}

fn filled(flows: u64) -> FlowTable {
    let mut table = FlowTable::new(1 << 21, Timeouts::default());
    (0..flows).for_each(|cookie| table.tcp_record(&record(cookie), 0));
    table
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Elements(RECORDS));
    for flows in FLOWS {
        let mut table = filled(flows);
        let mut records = Scattered::over(flows);
        let mut later = 1u64;
        group.bench_function(BenchmarkId::new("known flow", flows), |b| {
            b.iter(|| {
                later += flows;
                for r in records.portion() {
                    table.tcp_record(&FlowRecord { at_ns: r.at_ns + later, bytes_sent: later, ..*r }, later);
                }
            });
        });
    }
    let records: Vec<FlowRecord> = (0..RECORDS).map(record).collect();
    // No larger than needed: its memory is that of the table before, as a slot of a long-lived table was another flow's.
    let empty = || FlowTable::new(RECORDS as usize, Timeouts::default());
    group.bench_function("new flow", |b| {
        b.iter_batched(empty, |mut t| records.iter().for_each(|r| t.tcp_record(r, 0)), BatchSize::LargeInput);
    });
    group.finish();
}

/// Address of the agent.
const PROBE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn report() -> FlowReport {
    let endpoint = |port| Endpoint { addr: Addr(record(1).local_addr), port };
    let process = Process {
        key: ProcKey { pid: 42, start_ticks: 1, exec: 0 },
        name: "curl".into(),
        exe: Some("/usr/bin/curl".into()),
        cmdline: "curl -s https://example.org/".into(),
        user: Some("alice".into()),
        ppid: 7,
        parent_name: "bash".into(),
        ..Process::default()
    };
    FlowReport {
        key: FlowKey { proto: Proto::Tcp, initiator: endpoint(40_000), responder: endpoint(443) },
        translated: None,
        bypassed: false,
        first_unix_ns: 1,
        since_unix_ns: 1,
        last_unix_ns: 2,
        delta: Counters { bytes: [1200, 34_500], packets: [5, 30], ..Counters::default() },
        total: Counters::default(),
        rtt_us: [Some((20_100, 300)), None],
        local: [true, false],
        owners: [process.key, ProcKey::default()],
        changed: None,
        identity: [Identity { process: Some(Arc::new(process)), workload: None }, Identity::default()],
        rtt_samples: Some(RttSummary { samples: 12, min_us: 18_000, mean_us: 20_500, p99_us: 31_250 }),
        window_max: [64_240, 65_535],
        congestion: [Some("cubic"), None],
        first: true,
        ended: false,
        connecting: false,
        state: State::Open,
        reset_by: None,
        peer_name: None,
        hello: None,
        dns: None,
        opening: sockeye::flows::report::Opening::default(),
    }
}

fn encode(c: &mut Criterion) {
    let report = report();
    let mut out = Vec::with_capacity(1024);
    let mut encoder = tlv::Encoder::new(PROBE);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("TLV, with process", |b| {
        b.iter(|| {
            out.clear();
            encoder.encode(black_box(&report), &mut out)
        });
    });
    let unknown = FlowReport { identity: Default::default(), ..report.clone() };
    group.bench_function("TLV, without a process", |b| {
        b.iter(|| {
            out.clear();
            encoder.encode(black_box(&unknown), &mut out)
        });
    });
    group.bench_function("JSON, with process", |b| {
        b.iter(|| {
            out.clear();
            serde_json::to_writer(&mut out, &json::encode(black_box(&report), PROBE, false))
        });
    });
    group.finish();
}

fn answer(c: &mut Criterion) {
    let table = filled(RECORDS);
    let processes = ProcessTable::default();
    let all = FlowsArguments { limit: usize::MAX, ..FlowsArguments::default() };
    let mut group = c.benchmark_group("answer");
    group.sample_size(20);
    group.bench_function("ctl flows of 10 k, as JSON", |b| {
        b.iter(|| serde_json::to_vec(&answer_flows(&all, &table, &processes).expect("an answer").0));
    });
    let million = filled(1_000_000);
    let fifty = FlowsArguments::default();
    let mut longest = Duration::ZERO;
    for (arguments, what) in [(&fifty, "ctl flows, 50 of a million"), (&all, "ctl flows, 10 k of a million")] {
        group.bench_function(what, |b| {
            b.iter(|| {
                let (answer, portion) = answer_flows(arguments, &million, &processes).expect("an answer");
                longest = longest.max(portion);
                answer
            });
        });
    }
    let mut conversations = Conversations::default();
    for number in 0..CONVERSATIONS_MAX as u32 {
        let mut report = report();
        let [_, a, b, c] = number.to_be_bytes();
        report.key.responder.addr = IpAddr::from([a, b, c, 1]).into();
        conversations.account(&report, 1);
    }
    let by_process = PeersArguments { by: GroupBy::Process, ..PeersArguments::default() };
    group.bench_function("ctl peers, 2048 pairs", |b| {
        b.iter(|| peers(&conversations, Window::default(), &by_process, 1));
    });
    let known = report();
    group.bench_function("account a report to its pair", |b| b.iter(|| conversations.account(black_box(&known), 1)));
    let mut accounts = Accounts::new(10_000);
    group.bench_function("account a report to its labels", |b| b.iter(|| accounts.account(black_box(&known), 1)));
    for number in 0..10_000 {
        let mut other = report();
        other.owners[0].pid = number;
        let process = Process { name: format!("p{number}"), ..Process::default() };
        other.identity[0].process = Some(Arc::new(process));
        accounts.account(&other, 1);
    }
    group.bench_function("copy the figures of 10 k label sets", |b| b.iter(|| accounts.shown()));
    println!("control is away from its other work for at most {longest:?} with an answer about a million flows");
    group.finish();
}

fn cgroup(c: &mut Criterion) {
    let id = "0123456789abcdef".repeat(4);
    let path = format!(
        "/kubepods.slice/kubepods-burstable.slice/\
         kubepods-burstable-pod1d8c0f5c_58a4_4d3c_8a7e_6a3d2f1b9c10.slice/cri-containerd-{id}.scope"
    );
    c.bench_function("read a cgroup path of a pod", |b| b.iter(|| read_path(black_box(&path))));
}

criterion_group!(benches, parse, shard, histogram, hand_over, merge, encode, answer, cgroup);
criterion_main!(benches);
