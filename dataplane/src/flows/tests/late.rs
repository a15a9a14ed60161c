//! Records that come late, or never: from rings whose workers are short of CPU, from a scan that raced, from a kernel that left
//! our programs out.

use super::*;

#[test]
fn a_late_record_does_not_reopen_a_closed_flow() {
    let c = Connection { number: 3, sent: 10, received: 10, pre_existing: false };
    let mut life = c.life();
    life.rotate_right(2); // both closes first
    let mut t = table();
    life.iter().for_each(|r| t.tcp_record(r, 12 * S));
    assert_eq!((t.len(), t.flows().next().unwrap().state()), (1, State::Closed));
}

#[test]
fn a_scan_that_raced_with_the_close_changes_nothing() {
    let c = Connection { number: 3, sent: 10, received: 20, pre_existing: false };
    let close = c.record(Side::Initiator, Kind::Close, 10 * S, 100);
    // Another CPU looked at its clock later and still saw the old state.
    let scan = c.record(Side::Initiator, Kind::Scan, 10 * S + 1000, 90);
    for order in [[close, scan], [scan, close]] {
        let mut t = table();
        order.iter().for_each(|r| t.tcp_record(r, 12 * S));
        let found: Vec<_> = t.flows().map(|flow| (flow.state(), flow.totals().bytes)).collect();
        assert_eq!(found, [(State::Closed, [10, 20])]);
    }
}

#[test]
fn a_local_connection_waits_for_a_close_that_a_starved_worker_has_yet_to_bring() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let close = |side| on_loopback(c.record(side, Kind::Close, 10 * S, 100));
    for comes in [true, false] {
        let mut t = table();
        t.tcp_record(&close(Side::Initiator), 10 * S);
        t.scan_begins(11 * S);
        t.scan_ends(true, 12 * S);
        // Later scans do not put it off.
        t.scan_begins(13 * S);
        t.scan_ends(true, 14 * S);
        t.drained_through(12 * S - 1);
        assert!(reports(&mut t, 14 * S).is_empty());
        if comes {
            t.tcp_record(&close(Side::Responder), 14 * S);
        }
        t.drained_through(12 * S);
        assert_eq!(owners(&reports(&mut t, 15 * S)), [[101, if comes { 100 } else { 0 }]]);
    }
}

/// A table whose scans find only what a process has open.
fn table_of_open_files() -> FlowTable {
    FlowTable::new(1000, Timeouts::default().without_orphans())
}

#[test]
fn a_local_connection_waits_for_an_end_that_no_scan_finds_if_the_programs_were_left_out() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let close = |side, at_ns| on_loopback(c.record(side, Kind::Close, at_ns, 100));
    // Programs were left out while it lived, before that, or never.
    for (untold_at, waits) in [(Some(10 * S), true), (Some(S), false), (None, false)] {
        let mut t = table_of_open_files();
        t.tcp_record(&close(Side::Initiator, 10 * S), 10 * S);
        scan(&mut t, 11 * S);
        t.drained_through(11 * S);
        t.told_through(9 * S, true);
        assert!(reports(&mut t, 12 * S).is_empty(), "not known yet");
        if let Some(at_ns) = untold_at {
            t.told_through(at_ns, false);
        }
        t.told_through(12 * S, true);
        assert_eq!(reports(&mut t, 13 * S).is_empty(), waits);
        scan(&mut t, 14 * S);
        t.tcp_record(&close(Side::Responder, 30 * S), 30 * S);
        let reported = reports(&mut t, 31 * S);
        assert_eq!(waits, owners(&reported) == [[101, 100]], "{reported:#?}");
    }

    // For a minute, also if the record came late; and where scans find all, one of them is enough.
    for (mut t, minute) in [(table_of_open_files(), 60), (table(), 0)] {
        t.tcp_record(&close(Side::Initiator, 10 * S), 200 * S);
        scan(&mut t, 200 * S);
        t.drained_through(200 * S);
        t.told_through(200 * S, false);
        let mut ticks = (200 * S..300 * S).step_by(TICK_NS as usize);
        let (told, at_ns) = ticks.find_map(|at_ns| Some((reports(&mut t, at_ns).pop()?, at_ns))).unwrap();
        assert_eq!((told.owners.map(|owner| owner.pid), at_ns / S), ([101, 0], 200 + minute));
    }
}

#[test]
fn an_open_end_waits_for_the_other_one_to_be_accepted() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let end = |side, at_ns| on_loopback(c.record(side, Kind::Scan, at_ns, 100));
    for accepted in [true, false] {
        let mut t = table_of_open_files();
        for second in 10..19 {
            t.scan_begins(second * S);
            t.tcp_record(&end(Side::Initiator, second * S), second * S);
            t.scan_ends(true, second * S);
            t.drained_through(second * S);
            assert!(reports(&mut t, second * S).is_empty());
        }
        if accepted {
            t.tcp_record(&end(Side::Responder, 19 * S), 19 * S);
        }
        assert_eq!(owners(&reports(&mut t, 30 * S)).first(), Some(&[101, if accepted { 100 } else { 0 }]));
    }
}

#[test]
fn an_open_end_waits_for_the_other_one_that_a_starved_worker_has_yet_to_bring() {
    // A scan over open files does not find the client, which its process has closed.
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let server = |at_ns| on_loopback(c.record(Side::Responder, Kind::Scan, at_ns, 100));
    let mut t = table();
    t.drained_through(9 * S);
    for second in 10..15 {
        t.scan_begins(second * S);
        t.tcp_record(&server(second * S), second * S);
        t.scan_ends(true, second * S);
        assert!(reports(&mut t, second * S).is_empty());
    }
    t.tcp_record(&on_loopback(c.record(Side::Initiator, Kind::Close, 10 * S, 100)), 15 * S);
    t.drained_through(14 * S);
    let reported = reports(&mut t, 16 * S);
    assert_eq!(owners(&reported), [[101, 100]]);

    // One whose other end is nowhere is told of once a scan has looked for it.
    let mut t = table();
    t.drained_through(9 * S);
    t.tcp_record(&server(10 * S), 10 * S);
    scan(&mut t, 11 * S);
    t.drained_through(12 * S);
    assert_eq!(reports(&mut t, 13 * S).len(), 1);
}

#[test]
fn a_local_connection_is_told_of_when_its_handshake_is_over() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let mut t = table();
    let mut connecting = on_loopback(c.record(Side::Initiator, Kind::Scan, 10 * S, 0));
    (connecting.state, connecting.seq_remote) = (tcp_state::SYN_SENT, 0);
    t.tcp_record(&connecting, 10 * S);
    assert!(reports(&mut t, 13 * S).is_empty(), "the other end has a flow of its own until then");
    for side in [Side::Responder, Side::Initiator] {
        t.tcp_record(&on_loopback(c.record(side, Kind::Close, 13 * S, 100)), 13 * S);
    }
    let reported = reports(&mut t, 14 * S);
    assert_eq!(owners(&reported), [[101, 100]]);

    // One that nobody answers is told of all the same.
    let mut t = table();
    t.tcp_record(&connecting, 10 * S);
    scan(&mut t, 11 * S);
    t.drained_through(12 * S);
    assert_eq!(reports(&mut t, 21 * S).len(), 1);
}

#[test]
fn a_flow_taken_for_vanished_comes_back_with_its_next_record() {
    let c = Connection { number: 7, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 50), 10 * S);
    for second in [20, 30, 40] {
        scan(&mut t, second * S);
    }
    assert_eq!(reports(&mut t, 50 * S)[0].state, State::Vanished);
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 15 * S, 100), 50 * S);
    assert_eq!(reports(&mut t, 52 * S)[0].state, State::Closed);
    reports(&mut t, 60 * S);
    assert_eq!((t.len(), t.counts().vanished), (0, 0));
}

/// The client's process has closed.
fn shut(c: &Connection, share: u64) -> FlowRecord {
    FlowRecord { state: tcp_state::FIN_WAIT1, ..c.record(Side::Initiator, Kind::Scan, 10 * S, share) }
}

#[test]
fn who_has_closed_is_told_of_even_if_the_end_is_not() {
    // Whether the other end tells of its close, whether scans see what a process has closed, and what is told.
    for (peer_closes, sees_orphans, state, pids) in [
        (true, true, State::Closed, [101, 100]),
        (false, true, State::Vanished, [101, 0]),
        (true, false, State::Closing, [101, 100]),
    ] {
        let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
        let mut t = FlowTable::new(1000, Timeouts { sees_orphans, ..Timeouts::default() });
        t.tcp_record(&on_loopback(shut(&c, 100)), 10 * S);
        if peer_closes {
            t.tcp_record(&on_loopback(c.record(Side::Responder, Kind::Close, 10 * S + 1, 100)), 10 * S);
        }
        scan(&mut t, 11 * S);
        t.drained_through(13 * S);
        let reported = reports(&mut t, 13 * S);
        assert_eq!(owners(&reported), [pids]);
        assert_eq!((reported[0].state, reported[0].total.bytes), (state, [5000, 70_000]));
        reports(&mut t, 17 * S);
        let (left, vanished) = if sees_orphans { (0, 1) } else { (1, 0) };
        assert_eq!((t.len(), t.counts().vanished), (left, vanished));
    }
}

#[test]
fn a_close_that_comes_after_all_is_the_last_word() {
    let c = Connection { number: 1, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.tcp_record(&shut(&c, 50), 10 * S);
    scan(&mut t, 11 * S);
    t.drained_through(13 * S);
    assert_eq!(reports(&mut t, 13 * S)[0].state, State::Vanished);
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 10 * S + 1, 100), 13 * S);
    assert_eq!(reports(&mut t, 14 * S)[0].state, State::Closed);
    reports(&mut t, 18 * S);
    assert_eq!((t.len(), t.counts().vanished), (0, 0));
}

#[test]
fn a_flow_that_is_over_is_kept_while_a_starved_worker_may_have_records_of_it() {
    let c = Connection { number: 1, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.drained_through(10 * S - 1);
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 10 * S, 100), 10 * S);
    assert!(reports(&mut t, 30 * S).is_empty(), "its other end may be known by another address");
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S - 1, 90), 30 * S);
    assert_eq!((t.len(), t.counts().created), (1, 1));
    t.drained_through(10 * S + TICK_NS);
    assert!(reports(&mut t, 30 * S + TICK_NS).is_empty(), "which closes a little later");
    t.drained_through(10 * S + TICK_NS + 1);
    assert_eq!(reports(&mut t, 31 * S).len(), 1);
    // Or much later.
    for (through_ns, at_ns, left) in [(9 * S, 40 * S, 1), (12 * S, 41 * S, 1), (12 * S + 1, 42 * S, 0)] {
        t.drained_through(through_ns);
        assert!(reports(&mut t, at_ns).is_empty());
        assert_eq!(t.len(), left);
    }
}

#[test]
fn a_socket_whose_close_a_starved_worker_may_have_is_not_taken_for_vanished() {
    let c = Connection { number: 1, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 10 * S, 100), 10 * S);
    // Also if something was told after it was last seen: it was closed at some moment before the first scan that missed it.
    t.drained_through(12 * S);
    for second in [20, 30, 40] {
        scan(&mut t, second * S);
    }
    assert_eq!(reports(&mut t, 50 * S)[0].state, State::Open);
    t.drained_through(50 * S);
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 15 * S, 100), 50 * S);
    assert_eq!(reports(&mut t, 52 * S)[0].state, State::Closed);
}

/// The client's socket before its handshake was over.
fn connecting(c: &Connection, at_ns: u64) -> FlowRecord {
    let mut r = c.record(Side::Initiator, Kind::Scan, at_ns, 0);
    (r.state, r.seq_remote, r.bytes_sent) = (tcp_state::SYN_SENT, 0, 0);
    r
}

#[test]
fn the_late_end_of_a_connection_takes_nothing_from_the_next_one_of_its_socket() {
    // The scan found both while they were connecting, and their closes come from a starved worker.
    let [first, second] = [1, 2].map(|number| Connection { number, sent: 10, received: 20, pre_existing: false });
    let mut t = table();
    let of_one_socket = |r: FlowRecord| FlowRecord { cookie: 77, ..r };
    t.tcp_record(&of_one_socket(connecting(&first, 10 * S)), 10 * S);
    t.tcp_record(&of_one_socket(connecting(&second, 12 * S)), 12 * S);
    for (c, at_ns) in [(first, 11 * S), (second, 13 * S)] {
        t.tcp_record(&c.record(Side::Responder, Kind::Close, at_ns, 100), 14 * S);
        t.tcp_record(&of_one_socket(c.record(Side::Initiator, Kind::Close, at_ns, 100)), 14 * S);
    }
    assert_eq!((t.len(), t.counts().paired), (2, 2));
    assert!(t.flows().all(|flow| (flow.state(), flow.totals().bytes) == (State::Closed, [10, 20])));
}

#[test]
fn what_a_connection_carries_is_told_even_if_it_was_connecting_when_the_agent_came() {
    let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
    let mut t = table();
    let older = |r: FlowRecord| FlowRecord { flags: r.flags | flags::PRE_EXISTING, ..r };
    t.tcp_record(&older(connecting(&c, 10 * S)), 10 * S);
    t.tcp_record(&c.record(Side::Responder, Kind::Scan, 11 * S, 50), 11 * S);
    t.tcp_record(&older(c.record(Side::Initiator, Kind::Scan, 11 * S, 50)), 11 * S);
    assert_eq!(t.counts().paired, 1);
    let reported = reports(&mut t, 14 * S);
    assert_eq!((reported[0].delta.bytes, reported[0].total.bytes), ([2500, 35_000], [2500, 35_000]));
}

#[test]
fn a_scan_that_saw_the_handshake_and_looked_at_its_clock_later_hides_nothing() {
    // Its process closed the connection while the scan looked, and scans over open files do not find it again.
    let c = Connection { number: 1, sent: 10, received: 20, pre_existing: false };
    let mut t = table();
    t.tcp_record(&connecting(&c, 10 * S + 1000), 10 * S);
    t.tcp_record(&shut(&c, 100), 11 * S);
    t.tcp_record(&c.record(Side::Responder, Kind::Scan, 11 * S, 100), 11 * S);
    let found: Vec<_> = t.flows().map(|flow| (flow.state(), flow.totals().bytes)).collect();
    assert_eq!((found, t.counts().paired), (vec![(State::Closing, [10, 20])], 1));
}
