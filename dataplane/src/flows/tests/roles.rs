//! On which side an end is where the handshake does not tell, or was not seen.

use sockeye_bpf::records::traits;

use super::*;

/// Both ends have connected: their SYNs crossed.
fn crossed(c: &Connection, side: Side, kind: Kind, at_ns: u64) -> FlowRecord {
    let mut r = c.record(side, kind, at_ns, 100);
    if side == Side::Responder {
        r.flags = flags::ROLE_INITIATOR | flags::OWNER_CONFIRMED;
        r.seq_local = r.seq_local.wrapping_sub(1);
        r.bytes_sent += 1; // its SYN
    }
    r
}

#[test]
fn no_syn_is_taken_for_data_when_both_ends_have_connected() {
    let c = Connection { number: 1, sent: 1000, received: 3000, pre_existing: false };
    for order in [[Side::Initiator, Side::Responder], [Side::Responder, Side::Initiator]] {
        let mut t = table();
        for side in order {
            let age = if side == Side::Initiator { 900_000 } else { 800_000 };
            let r = FlowRecord { age, ..crossed(&c, side, Kind::Close, 10 * S) };
            t.tcp_record(&r, 10 * S);
        }
        let reported = reports(&mut t, 13 * S);
        assert_eq!((reported.len(), reported[0].key, reported[0].total.bytes), (1, c.key(), [1000, 3000]));
    }
}

/// The socket that goes on with the initiator's or responder's end, in another process.
fn restored(c: &Connection, side: Side, at_ns: u64, bytes: [u64; 2]) -> FlowRecord {
    let mut r = c.record(side, Kind::Scan, at_ns, 100);
    (r.cookie, r.pid) = (r.cookie + 1000, 102);
    r.flags = flags::ROLE_UNKNOWN | flags::OWNER_CONFIRMED;
    r.traits = traits::RESTORED;
    [r.bytes_sent, r.bytes_received] = bytes;
    (r.seq_local, r.seq_remote) = (r.seq_local.wrapping_add(500), r.seq_remote.wrapping_add(500));
    r
}

#[test]
fn a_restored_socket_goes_on_with_the_flow() {
    let c = Connection { number: 1, sent: 2000, received: 4000, pre_existing: false };
    for side in Side::BOTH {
        let mut t = table();
        for one in Side::BOTH {
            t.tcp_record(&c.record(one, Kind::Scan, 10 * S, 50), 10 * S);
        }
        let mut frozen = c.record(side, Kind::Close, 11 * S, 50);
        frozen.state = tcp_state::ESTABLISHED;
        t.tcp_record(&frozen, 11 * S);
        t.tcp_record(&restored(&c, side, 12 * S, [7, 9]), 12 * S);
        t.tcp_record(&c.record(side.other(), Kind::Scan, 13 * S, 100), 13 * S);
        let flow: Vec<_> = t.flows().collect();
        assert_eq!(
            (flow.len(), flow[0].key, flow[0].totals().bytes, flow[0].state()),
            (1, c.key(), [2000, 4000], State::Open)
        );
        assert_eq!(flow[0].end(side).unwrap().owner.pid, 102);
    }
}

#[test]
fn of_a_restored_socket_without_its_other_end_no_syn_is_subtracted() {
    let c = Connection { number: 1, sent: 2000, received: 4000, pre_existing: false };
    let mut t = table();
    t.tcp_record(&restored(&c, Side::Initiator, 12 * S, [7, 9]), 12 * S);
    assert_eq!(t.flows().next().unwrap().totals().bytes, [7, 9]);
}

#[test]
fn an_older_socket_of_which_the_kernel_knows_the_side_is_on_it() {
    let c = Connection { number: 1, sent: 2000, received: 4000, pre_existing: true };
    let mut accepted = c.record(Side::Responder, Kind::Scan, 10 * S, 100);
    accepted.flags |= flags::ROLE_RESPONDER;
    let mut t = table();
    t.tcp_record(&accepted, 10 * S);
    let flow = t.flows().next().unwrap();
    assert_eq!((flow.key, flow.totals().bytes), (c.key(), [2000, 4000]));
}
