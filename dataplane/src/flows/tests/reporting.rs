//! When flows are reported, and what a collector is told of who is behind them.

use super::*;

/// A connection to another host, seen by a scan each second with a growing share of what it carries.
fn scanned(t: &mut FlowTable, c: &Connection, second: u64, share: u64) {
    t.scan_begins(second * S);
    let r = c.record(Side::Initiator, Kind::Scan, second * S, share);
    t.tcp_record(&r, second * S);
    t.scan_ends(true, second * S);
    t.drained_through(second * S);
}

fn connection(number: u32) -> Connection {
    Connection { number, sent: 100_000, received: 100_000, pre_existing: false }
}

fn pids(report: &FlowReport) -> [u32; 2] {
    report.identity.each_ref().map(|side| side.process.as_ref().map_or(0, |process| process.key.pid))
}

#[test]
fn every_report_says_whose_a_flow_is_also_one_without_news() {
    let c = connection(9);
    let mut t = table();
    let mut reported = Vec::new();
    for second in 10..150 {
        let r = c.record(Side::Initiator, Kind::Scan, second * S, 10);
        t.tcp_record(&r, second * S);
        reported.extend(reports(&mut t, second * S).into_iter().map(|report| (second, report)));
    }
    let seconds: Vec<u64> = reported.iter().map(|(second, _)| *second).collect();
    assert!((3..=5).contains(&seconds.len()), "{seconds:?}");
    assert!(seconds.windows(2).all(|pair| (39..=50).contains(&(pair[1] - pair[0]))), "quiet: {seconds:?}");
    assert!(reported.iter().all(|(_, report)| pids(report) == [101, 0]));
    assert!(reported[1..].iter().all(|(_, report)| report.delta.is_zero() && !report.first));
}

#[test]
fn a_busy_flow_is_reported_each_interval_and_its_records_join_seamlessly() {
    let c = connection(9);
    let mut t = table();
    let mut reported = Vec::new();
    for second in 10..110 {
        scanned(&mut t, &c, second, second - 10);
        reported.extend(reports(&mut t, second * S));
    }
    assert!((10..=12).contains(&reported.len()), "{}", reported.len());
    assert_eq!(reported[0].since_unix_ns, reported[0].first_unix_ns);
    for pair in reported.windows(2) {
        assert_eq!(pair[1].since_unix_ns, pair[0].last_unix_ns);
        let seconds = (pair[1].last_unix_ns - pair[1].since_unix_ns) / S;
        assert!((5..=10).contains(&seconds), "{seconds}");
        // A hundredth of it each second.
        assert_eq!(pair[1].delta.bytes[0], seconds * c.sent / 100);
    }
    let steady: Vec<u64> =
        reported[3..].windows(2).map(|pair| (pair[1].last_unix_ns - pair[0].last_unix_ns) / S).collect();
    assert!(steady.iter().all(|seconds| *seconds == 10), "{steady:?}");
}

#[test]
fn flows_that_were_opened_together_are_soon_reported_evenly() {
    const FLOWS: u32 = 800;
    let mut t = FlowTable::new(1000, Timeouts::default());
    let mut per_tick = Vec::new();
    for tick in 40..240u64 {
        let now_ns = tick * TICK_NS;
        for number in 0..FLOWS {
            let r = connection(number).record(Side::Initiator, Kind::Scan, now_ns, tick);
            t.tcp_record(&r, now_ns);
        }
        per_tick.push(reports(&mut t, now_ns).len());
    }
    // 800 flows in each ten seconds of 40 ticks: 20 at a time.
    assert!(per_tick[8..10].contains(&(FLOWS as usize)), "the first reports come together: {per_tick:?}");
    let steady = &per_tick[120..];
    assert!(steady.iter().all(|reports| (10..=30).contains(reports)), "{steady:?}");
    assert_eq!(steady[..40].iter().sum::<usize>(), FLOWS as usize);
}

#[test]
fn a_collector_that_joins_gets_all_open_flows_within_seconds() {
    const FLOWS: u32 = 200;
    let mut t = table();
    for second in [10, 13] {
        for number in 0..FLOWS {
            t.tcp_record(&connection(number).record(Side::Initiator, Kind::Scan, second * S, 10), second * S);
        }
    }
    assert_eq!(reports(&mut t, 13 * S).len(), FLOWS as usize);
    t.collector_joined(14 * S);
    let mut ports = std::collections::BTreeSet::new();
    let mut most = 0;
    for tick in 1..=17 {
        let reported = reports(&mut t, 14 * S + tick * TICK_NS);
        most = most.max(reported.len());
        assert!(reported.iter().all(|report| pids(report) == [101, 0] && report.delta.is_zero()));
        ports.extend(reported.iter().map(|report| report.key.initiator.port));
    }
    assert_eq!(ports.len(), FLOWS as usize);
    assert!(most <= FLOWS as usize / 10, "spread: {most}");
}

#[test]
fn a_collector_is_told_the_same_owner_until_another_one_joins() {
    let c = connection(9);
    let mut t = table();
    let mut open = c.record(Side::Responder, Kind::Scan, 10 * S, 10);
    t.tcp_record(&open, 10 * S);
    assert_eq!(pids(&reports(&mut t, 13 * S)[0]), [0, 100]);
    (open.pid, open.at_ns, open.bytes_sent) = (102, 20 * S, 20_000);
    t.tcp_record(&open, 20 * S);
    let later = reports(&mut t, 30 * S);
    assert_eq!((pids(&later[0]), owners(&later)), ([0, 100], vec![[0, 102]]), "the terminal shows who it is now");
    t.collector_joined(31 * S);
    assert_eq!(pids(&reports(&mut t, 36 * S)[0]), [0, 102]);
}

#[test]
fn an_owner_that_becomes_known_late_is_told_then() {
    let c = connection(9);
    let mut t = table();
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 10), 10 * S);
    let mut nobody = ProcessTable::default();
    let mut reported = Vec::new();
    for second in 12..18 {
        t.tick(second * S, &WallClock::with_boot_at(0), &mut nobody, |report| reported.push(report));
    }
    assert_eq!((reported.len(), pids(&reported[0])), (1, [0, 0]));
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 20 * S, 20), 20 * S);
    assert_eq!(pids(&reports(&mut t, 40 * S)[0]), [101, 0]);
}

#[test]
fn round_trip_samples_are_those_of_the_connection_up_to_its_first_report() {
    let c = connection(9);
    let mut t = table();
    let open = c.record(Side::Initiator, Kind::Scan, 10 * S, 10);
    t.tcp_record(&open, 10 * S);
    t.tcp_samples(open.cookie, open.seq_local, &[300, 100]);
    t.tcp_samples(open.cookie, open.seq_local.wrapping_add(1), &[9_999]);
    t.tcp_samples(open.cookie + 100, open.seq_local, &[9_999]);
    let first = reports(&mut t, 13 * S).remove(0).rtt_samples.unwrap();
    assert_eq!((first.samples, first.min_us, first.mean_us, first.p99_us), (2, 100, 200, 300));
    t.tcp_samples(open.cookie, open.seq_local, &[9_999]);
    t.collector_joined(14 * S);
    assert_eq!(reports(&mut t, 20 * S)[0].rtt_samples, Some(first));
}

#[test]
fn windows_are_those_that_each_side_has_offered() {
    let c = connection(9);
    let mut t = table();
    let [first_end, second_end] =
        [(Side::Initiator, [1000, 400]), (Side::Responder, [300, 2000])].map(|(side, windows)| {
            let mut r = c.record(side, Kind::Scan, 10 * S, 10);
            [r.window_local, r.window_remote] = windows;
            r.congestion = if side == Side::Initiator { *b"cub" } else { *b"bbr" };
            r
        });
    t.tcp_record(&first_end, 10 * S);
    t.tcp_record(&second_end, 10 * S);
    let reported = reports(&mut t, 13 * S);
    assert_eq!((reported[0].window_max, reported[0].congestion), ([2000, 400], [Some("cubic"), Some("bbr")]));
}

#[test]
fn addresses_are_known_by_namespace() {
    let mut t = table();
    for (number, netns) in [(1, 7), (2, 8)] {
        let mut r = connection(number).record(Side::Initiator, Kind::Scan, 10 * S, 10);
        r.netns = netns;
        r.local_addr[15] = number as u8;
        t.tcp_record(&r, 10 * S);
    }
    let of = |t: &FlowTable, netns| t.addresses_of(netns).map(|addr| addr.0[15]).collect::<Vec<_>>();
    assert_eq!([of(&t, 7), of(&t, 8), of(&t, 9)], [vec![1], vec![2], vec![]]);
    t.expire_addresses(9 * S + LOCAL_ADDR_KEEP_NS);
    assert_eq!(of(&t, 7), [1]);
    t.expire_addresses(10 * S + LOCAL_ADDR_KEEP_NS);
    assert!(of(&t, 7).is_empty());
}

#[test]
fn one_report_says_that_a_flow_has_ended_and_whether_it_was_established() {
    let mut t = table();
    let c = connection(9);
    scanned(&mut t, &c, 10, 10);
    let mut refused = connection(10).record(Side::Initiator, Kind::Close, 11 * S, 0);
    (refused.state, refused.error) = (tcp_state::SYN_SENT, 111);
    t.tcp_record(&refused, 11 * S);
    let mut reported = reports(&mut t, 13 * S);
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 14 * S, 90), 14 * S);
    t.drained_through(20 * S);
    reported.extend(reports(&mut t, 16 * S));
    // What comes late is told of, too.
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 15 * S, 100), 17 * S);
    reported.extend(reports(&mut t, 40 * S));
    assert!(t.is_empty());
    let of = |c: &Connection| {
        let port = c.key().initiator.port;
        let all = reported.iter().filter(move |report| report.key.initiator.port == port);
        all.map(|report| (report.state, report.ended, report.connecting)).collect::<Vec<_>>()
    };
    assert_eq!(of(&connection(10)), [(State::Refused, true, true)]);
    let told = of(&c);
    assert_eq!(told[..2], [(State::Open, false, false), (State::Closed, true, false)]);
    assert!(told[2..].iter().all(|(_, ended, _)| !ended), "{told:?}");
}
