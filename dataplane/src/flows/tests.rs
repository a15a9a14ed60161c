mod late;
mod reporting;
mod roles;
mod translation;
mod udp;
mod udp_meeting;
mod udp_sides;

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use sockeye_bpf::records::{FlowRecord, Kind, flags};
use zerocopy::FromZeros;

use super::*;
use crate::flows::report::FlowReport;
use crate::model::clock::WallClock;
use crate::model::flow::{Addr, Counters, State, tcp_state};
use crate::owners::process::{LookupReply, Process, ProcessTable};

const S: u64 = 1_000_000_000;

/// One TCP connection between two sockets of this host, as the kernel would tell of it.
#[derive(Debug, Clone, Copy)]
struct Connection {
    number: u32,
    sent: u64,
    received: u64,
    /// Older than the agent: the records do not tell the roles.
    pre_existing: bool,
}

fn addr(last: u8) -> [u8; 16] {
    Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))).0
}

impl Connection {
    fn record(&self, side: Side, kind: Kind, at_ns: u64, share: u64) -> FlowRecord {
        let initiator = side == Side::Initiator;
        let mut r = FlowRecord::new_zeroed();
        r.kind = kind as u8;
        let role = match (self.pre_existing, initiator) {
            (true, _) => flags::ROLE_UNKNOWN | flags::PRE_EXISTING,
            (false, true) => flags::ROLE_INITIATOR,
            (false, false) => flags::ROLE_RESPONDER,
        };
        r.flags = role | flags::OWNER_CONFIRMED;
        r.state = if kind == Kind::Close { tcp_state::LAST_ACK } else { tcp_state::ESTABLISHED };
        r.cookie = u64::from(self.number) * 2 + u64::from(initiator);
        r.pid = 100 + u32::from(initiator);
        r.start_ticks = 1;
        r.at_ns = at_ns;
        let (first_end, second_end) = if initiator { (1, 2) } else { (2, 1) };
        (r.local_addr, r.remote_addr) = (addr(first_end), addr(second_end));
        let port = 20_000 + self.number as u16;
        (r.local_port, r.remote_port) = if initiator { (port, 30_000) } else { (30_000, port) };
        // Shares in hundredths of what the connection carries in the end.
        let (out, back) = if initiator { (self.sent, self.received) } else { (self.received, self.sent) };
        r.bytes_sent = out * share / 100 + u64::from(initiator);
        r.bytes_received = back * share / 100;
        (r.segs_out, r.segs_in) = ((out * share / 100 / 1000 + 1) as u32, (back * share / 100 / 1000 + 1) as u32);
        let (isn_initiator, isn_responder) = (self.number.wrapping_mul(2_654_435_761), !self.number);
        (r.seq_local, r.seq_remote) =
            if initiator { (isn_initiator, isn_responder) } else { (isn_responder.wrapping_add(1), isn_initiator) };
        r
    }

    /// Segments in the end.
    fn packets(&self) -> [u64; 2] {
        [self.sent, self.received].map(|bytes| bytes / 1000 + 1)
    }

    /// Everything that is told of it, in time order.
    fn life(&self) -> Vec<FlowRecord> {
        let mut all = Vec::new();
        for (step, share) in [0u64, 40, 100].into_iter().enumerate() {
            let kind = [Kind::Scan, Kind::Scan, Kind::Close][step];
            for side in Side::BOTH {
                let at_ns = 10 * S + step as u64 * S + u64::from(self.number) * 10 + side as u64;
                all.push(self.record(side, kind, at_ns, share));
            }
        }
        all
    }

    fn key(&self) -> FlowKey {
        let endpoint = |last, port| Endpoint { addr: Addr(addr(last)), port };
        FlowKey {
            proto: Proto::Tcp,
            initiator: endpoint(1, 20_000 + self.number as u16),
            responder: endpoint(2, 30_000),
        }
    }
}

impl FlowTable {
    /// There is no flow, and nothing that leads to one.
    pub(crate) fn holds_nothing(&self) -> bool {
        let indexes = [self.udp.len(), self.udp_sockets.len(), self.pairs.len(), self.tcp_before.len()];
        self.is_empty() && indexes == [0; 4]
    }
}

fn table() -> FlowTable {
    FlowTable::new(1000, Timeouts::default())
}

fn processes(now_ns: u64) -> ProcessTable {
    let mut processes = ProcessTable::default();
    for pid in [100, 101, 102] {
        let key = ProcKey { pid, start_ticks: 1, exec: 0 };
        let process = Process { key, name: format!("p{pid}"), ..Process::default() };
        processes.found(LookupReply { key, process: Some(process), complete: true, cgroup: None }, now_ns);
    }
    processes
}

fn reports(table: &mut FlowTable, now_ns: u64) -> Vec<FlowReport> {
    let (mut out, mut processes) = (Vec::new(), processes(now_ns));
    while table.tick(now_ns, &WallClock::with_boot_at(0), &mut processes, |report| out.push(report)) {}
    out
}

#[test]
fn many_reports_come_in_portions_and_in_order() {
    let mut t = FlowTable::new(10_000, Timeouts::default());
    for number in 0..10_000 {
        let c = Connection { number, sent: 1, received: 1, pre_existing: false };
        t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 50), 10 * S);
    }
    let (mut ports, mut portions, mut processes) = (Vec::new(), 1, processes(20 * S));
    while t.tick(20 * S, &WallClock::with_boot_at(0), &mut processes, |r| ports.push(r.key.initiator.port)) {
        portions += 1;
    }
    assert_eq!((ports.len(), portions), (10_000, 3));
    assert!(ports.is_sorted());
}

#[test]
fn a_flow_is_small() {
    assert!(size_of::<Flow>() <= 280, "{}: SPECIFICATION.md promises 400 bytes with all indexes", size_of::<Flow>());
    assert!(size_of::<End>() <= 88, "{}", size_of::<End>());
}

#[test]
fn both_ends_become_one_flow_with_both_processes() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let mut t = table();
    c.life().iter().for_each(|r| t.tcp_record(r, 12 * S));
    let reported = reports(&mut t, 13 * S);
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].key, reported[0].state), (c.key(), State::Closed));
    assert_eq!((reported[0].total.bytes, reported[0].delta.bytes), ([5000, 70_000], [5000, 70_000]));
    let names = reported[0].identity.clone().map(|side| side.process.unwrap().name.clone());
    assert_eq!(names, ["p101", "p100"]);
}

/// A whole scan that finds nothing new.
fn scan(t: &mut FlowTable, at_ns: u64) {
    t.scan_begins(at_ns);
    t.scan_ends(true, at_ns);
}

/// Pids of both sides, by report.
fn owners(reported: &[FlowReport]) -> Vec<[u32; 2]> {
    reported.iter().map(|r| r.owners.map(|owner| owner.pid)).collect()
}

/// The same between loopback addresses.
fn on_loopback(mut r: FlowRecord) -> FlowRecord {
    let here = |last| Addr::from(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))).0;
    (r.local_addr, r.remote_addr) = (here(r.local_addr[15]), here(r.remote_addr[15]));
    r
}

#[test]
fn an_end_that_stays_open_long_after_the_other_is_waited_for() {
    // It lived between two scans: only its closes are told of, five seconds apart.
    for loopback in [true, false] {
        let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
        let mut t = table();
        let reported = |side, kind, at_ns| {
            let r = c.record(side, kind, at_ns, 100);
            if loopback { on_loopback(r) } else { r }
        };
        // By an earlier flow the address of the other side is known as one of this host.
        let before = Connection { number: 2, sent: 1, received: 1, pre_existing: false };
        t.tcp_record(&before.record(Side::Responder, Kind::Scan, 9 * S, 50), 9 * S);
        scan(&mut t, 9 * S);
        t.drained_through(9 * S);
        t.tcp_record(&reported(Side::Initiator, Kind::Close, 10 * S), 10 * S);
        let about = |reported: Vec<FlowReport>| -> Vec<_> {
            let of_it = |r: &FlowReport| r.key.initiator.port == c.key().initiator.port;
            reported.into_iter().filter(of_it).map(|r| (r.state, r.delta.bytes, r.owners.map(|o| o.pid))).collect()
        };
        for second in 11..14 {
            assert_eq!(about(reports(&mut t, second * S)), []);
        }
        t.scan_begins(14 * S);
        t.tcp_record(&reported(Side::Responder, Kind::Scan, 14 * S), 14 * S);
        t.scan_ends(true, 14 * S);
        assert_eq!(about(reports(&mut t, 15 * S)), [(State::Closing, [5000, 70_000], [101, 100])]);
        t.tcp_record(&reported(Side::Responder, Kind::Close, 20 * S), 20 * S);
        assert_eq!(about(reports(&mut t, 21 * S)), [(State::Closed, [0, 0], [101, 100])]);
        assert_eq!(t.counts().paired, 1);
    }
}

#[test]
fn an_end_on_another_host_is_not_waited_for() {
    let c = Connection { number: 1, sent: 1, received: 1, pre_existing: false };
    let mut t = table();
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 10 * S, 100), 10 * S);
    assert_eq!(reports(&mut t, 11 * S).len(), 1);
}

#[test]
fn the_same_addresses_in_other_namespaces_never_pair() {
    let (mut a, mut b) = (Connection { number: 1, sent: 1, received: 1, pre_existing: false }.life(), Vec::new());
    // Another namespace has the same addresses and ports, and other sequence numbers.
    for mut r in a.clone() {
        r.cookie += 1000;
        r.netns = 9;
        r.seq_local = r.seq_local.wrapping_add(77);
        r.seq_remote = r.seq_remote.wrapping_add(77);
        b.push(r);
    }
    a.append(&mut b);
    let mut t = table();
    a.iter().for_each(|r| t.tcp_record(r, 12 * S));
    assert_eq!((t.len(), t.counts().paired), (2, 2));
    for flow in t.flows() {
        let namespaces: Vec<u32> = flow.ends().map(|end| end.netns).collect();
        assert_eq!(namespaces[0], namespaces[1]);
    }
}

#[test]
fn a_socket_that_connects_again_is_two_flows() {
    let first = Connection { number: 4, sent: 10, received: 20, pre_existing: false };
    let close = first.record(Side::Initiator, Kind::Close, 10 * S, 100);
    let second = Connection { number: 5, sent: 30, received: 40, pre_existing: false };
    let mut open = second.record(Side::Initiator, Kind::Scan, 11 * S, 50);
    open.cookie = close.cookie;
    for order in [[close, open], [open, close]] {
        let mut t = table();
        order.iter().for_each(|r| t.tcp_record(r, 12 * S));
        let mut found: Vec<_> = t.flows().map(|flow| (flow.key, flow.state(), flow.totals().bytes)).collect();
        found.sort_by_key(|(key, ..)| key.initiator.port);
        assert_eq!(found, [(first.key(), State::Closed, [10, 20]), (second.key(), State::Open, [15, 20])]);
    }
}

#[test]
fn a_close_that_comes_after_two_more_connections_of_its_socket_is_of_the_first() {
    let connection = |number| Connection { number, sent: 10, received: 20, pre_existing: false };
    let record = |number: u32, kind, at_ns, share| {
        let mut r = connection(number).record(Side::Initiator, kind, at_ns, share);
        r.cookie = 77;
        r
    };
    let mut t = table();
    for number in [1, 2, 3] {
        let at_ns = 10 * S + u64::from(number);
        t.tcp_record(&record(number, Kind::Scan, at_ns, 50), at_ns);
    }
    for number in [1, 2, 3] {
        t.tcp_record(&record(number, Kind::Close, 11 * S + u64::from(number), 100), 12 * S);
    }
    assert_eq!((t.len(), t.counts().created), (3, 3));
    assert!(t.flows().all(|flow| (flow.state(), flow.totals().bytes) == (State::Closed, [10, 20])));
    reports(&mut t, 13 * S);
    reports(&mut t, 20 * S);
    assert!(t.holds_nothing());
}

#[test]
fn an_older_flow_exports_only_what_comes_after() {
    let c = Connection { number: 6, sent: 1000, received: 2000, pre_existing: true };
    let mut t = table();
    for r in &c.life()[..4] {
        t.tcp_record(r, 10 * S);
    }
    let first = reports(&mut t, 20 * S);
    assert_eq!((first[0].delta.bytes, first[0].total.bytes), ([400, 800], [400, 800]), "from the first record on");
    for r in &c.life()[4..] {
        t.tcp_record(r, 21 * S);
    }
    let last = reports(&mut t, 30 * S);
    assert_eq!((last[0].delta.bytes, last[0].total.bytes), ([600, 1200], [1000, 2000]));
}

#[test]
fn a_socket_that_the_scan_misses_three_times_has_vanished() {
    let c = Connection { number: 7, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 50), 10 * S);
    assert_eq!(reports(&mut t, 13 * S).len(), 1);
    for second in [20, 30, 40] {
        scan(&mut t, second * S);
    }
    let reported = reports(&mut t, 100 * S);
    assert_eq!((reported[0].state, t.counts().vanished), (State::Vanished, 0));
    reports(&mut t, 110 * S);
    assert_eq!((t.len(), t.counts().vanished), (0, 1));
}

#[test]
fn a_connection_that_the_scan_finds_as_it_was_lives_on() {
    let c = Connection { number: 7, sent: 10, received: 10, pre_existing: false };
    let record = c.record(Side::Initiator, Kind::Scan, 10 * S, 50);
    let mut t = table();
    t.tcp_record(&record, 10 * S);
    assert_eq!(reports(&mut t, 13 * S).len(), 1);
    for second in [20, 30, 40, 100] {
        t.scan_begins(second * S);
        assert!(t.tcp_same(record.cookie, second * S));
        t.scan_ends(true, second * S);
    }
    assert!(!t.tcp_same(record.cookie + 1000, 100 * S), "of that one all must be told");
    let reported = reports(&mut t, 110 * S);
    assert!(reported.iter().all(|report| report.state == State::Open), "{reported:#?}");
    assert_eq!((t.len(), t.counts().vanished), (1, 0));
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 120 * S, 70), 120 * S);
    assert!(t.tcp_same(record.cookie, 121 * S), "a scan that raced with the close");
    assert_eq!(reports(&mut t, 130 * S)[0].state, State::Closed);
}

#[test]
fn an_accepted_connection_waits_for_its_reader() {
    let c = Connection { number: 8, sent: 10, received: 10, pre_existing: false };
    let mut open = c.record(Side::Responder, Kind::Scan, 10 * S, 50);
    open.flags &= !flags::OWNER_CONFIRMED;
    let mut t = table();
    t.tcp_record(&open, 10 * S);
    assert!(reports(&mut t, 13 * S).is_empty(), "the listener may be a mere parent");
    let mut owner = c.record(Side::Responder, Kind::Scan, 14 * S, 60);
    owner.pid = 102;
    t.tcp_record(&owner, 14 * S);
    let reported = reports(&mut t, 16 * S);
    assert_eq!(reported[0].identity[1].process.as_ref().unwrap().name, "p102");
}

#[test]
fn a_full_table_counts_what_it_refuses() {
    let mut t = FlowTable::new(2, Timeouts::default());
    for number in 0..5 {
        let c = Connection { number, sent: 1, received: 1, pre_existing: false };
        t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 10), 10 * S);
    }
    assert_eq!((t.len(), t.counts().rejected), (2, 3));
}

#[test]
fn segment_counters_go_on_where_the_kernels_wrap() {
    let c = Connection { number: 1, sent: 1, received: 1, pre_existing: false };
    let mut first = c.record(Side::Initiator, Kind::Scan, 10 * S, 10);
    first.segs_out = u32::MAX - 1;
    let mut later = c.record(Side::Initiator, Kind::Scan, 11 * S, 20);
    later.segs_out = 3;
    let mut t = table();
    t.tcp_record(&first, 10 * S);
    t.tcp_record(&later, 11 * S);
    assert_eq!(t.flows().next().unwrap().totals().packets[0], u64::from(u32::MAX) + 4);
}

/// A scan reads its clock before its counters: what is older by it may have counted more.
#[test]
fn counters_never_go_back() {
    let c = Connection { number: 1, sent: 1 << 30, received: 1 << 30, pre_existing: false };
    let scan = c.record(Side::Initiator, Kind::Scan, 10 * S, 50);
    let mut close = c.record(Side::Initiator, Kind::Close, 9 * S, 50);
    close.segs_out -= 1;
    close.segs_in -= 1;
    let mut t = table();
    t.tcp_record(&scan, 10 * S);
    let before = t.flows().next().unwrap().totals();
    t.tcp_record(&close, 10 * S);
    assert_eq!(t.flows().next().unwrap().totals(), before);
}

/// A scan holds no lock: a FIN that is acknowledged or received while it looks may be among its bytes.
#[test]
fn a_close_knows_the_bytes() {
    let c = Connection { number: 1, sent: 1000, received: 300, pre_existing: false };
    let close = c.record(Side::Initiator, Kind::Close, 11 * S, 100);
    let mut scan = c.record(Side::Initiator, Kind::Scan, 10 * S, 100);
    scan.bytes_sent += 1;
    scan.bytes_received += 1;
    for records in [[scan, close], [close, scan]] {
        let mut t = table();
        records.iter().for_each(|record| t.tcp_record(record, 11 * S));
        assert_eq!(t.flows().next().unwrap().totals().bytes, [1000, 300]);
    }
}

fn connections() -> impl Strategy<Value = Vec<Connection>> {
    prop::collection::vec((0u64..1 << 40, 0u64..1 << 40, any::<bool>()), 1..6).prop_map(|list| {
        list.into_iter()
            .enumerate()
            .map(|(i, (sent, received, pre_existing))| Connection {
                number: i as u32 + 1,
                sent,
                received,
                pre_existing,
            })
            .collect()
    })
}

/// Brings records into another order.
fn shuffle(records: &mut [FlowRecord], order: &[prop::sample::Index]) {
    let len = records.len();
    for (i, swap) in order.iter().enumerate() {
        records.swap(i % len, swap.index(len));
    }
}

proptest! {
    /// Workers run at their own pace: whatever the order of their records, the flows are the same.
    #[test]
    fn the_order_of_records_does_not_matter(
        connections in connections(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let mut records: Vec<FlowRecord> = connections.iter().flat_map(Connection::life).collect();
        shuffle(&mut records, &order);
        let mut t = table();
        records.iter().for_each(|r| t.tcp_record(r, 12 * S));
        let mut found: Vec<_> = t
            .flows()
            .map(|flow| (flow.key, flow.state(), flow.totals(), flow.end(Side::Initiator).map(|e| e.owner.pid)))
            .map(|(key, state, total, pid)| (key, state, total.bytes, total.packets, pid))
            .collect();
        found.sort_by_key(|(key, ..)| key.initiator.port);
        let expected: Vec<_> = connections
            .iter()
            .map(|c| (c.key(), State::Closed, [c.sent, c.received], c.packets(), Some(101)))
            .collect();
        prop_assert_eq!(found, expected);
    }

    /// Whenever reports are made, their deltas add up to the totals, and every byte comes with a packet.
    #[test]
    fn reports_add_up(connections in connections(), ticks in prop::collection::vec(any::<bool>(), 40)) {
        let mut records: Vec<FlowRecord> =
            connections.iter().map(|c| Connection { pre_existing: false, ..*c }).flat_map(|c| c.life()).collect();
        records.sort_by_key(|r| r.at_ns);
        let mut t = table();
        let mut reported = Vec::new();
        let mut now_ns = 10 * S;
        for (r, tick) in records.iter().zip(ticks.iter().cycle()) {
            t.tcp_record(r, now_ns);
            if *tick {
                now_ns += 3 * S;
                reported.extend(reports(&mut t, now_ns));
            }
        }
        for _ in 0..4 {
            now_ns += 70 * S;
            reported.extend(reports(&mut t, now_ns));
        }
        prop_assert!(t.is_empty());
        for c in &connections {
            let mut sum = Counters::default();
            for report in reported.iter().filter(|r| r.key == c.key()) {
                sum.add(&report.delta);
                for i in 0..2 {
                    prop_assert!(report.delta.bytes[i] == 0 || report.delta.packets[i] > 0);
                }
            }
            prop_assert_eq!(sum.bytes, [c.sent, c.received]);
            for (packets, truth) in sum.packets.into_iter().zip(c.packets()) {
                // Bytes that one end brought alone come with a packet more, once a report.
                prop_assert!(packets >= truth && packets <= truth + reported.len() as u64, "{} of {}", packets, truth);
            }
        }
    }
}
