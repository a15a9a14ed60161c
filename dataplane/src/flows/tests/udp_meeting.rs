//! UDP across translated addresses, and between namespaces.

use sockeye_bpf::records::{UdpValue, udp_traits};

use super::udp::{datagrams, udp};
use super::*;

/// The same, with the 5-tuple that the peer knows.
fn on_wire(v: UdpValue, local: (u8, u16), remote: (u8, u16)) -> UdpValue {
    UdpValue {
        traits: v.traits | udp_traits::TRANSLATED,
        wire_local: addr(local.0),
        wire_remote: addr(remote.0),
        wire_local_port: local.1,
        wire_remote_port: remote.1,
        ..v
    }
}

fn at(head: u64, v: UdpValue) -> UdpValue {
    UdpValue { first_head: head, ..v }
}

/// What it is called, what the responder calls it, both counts of datagrams.
fn shown(t: &FlowTable) -> Vec<(String, String, [u64; 2])> {
    let text = |key: &FlowKey| format!("{} {}", key.initiator, key.responder);
    t.flows().map(|f| (text(&f.key), f.translated().map(text).unwrap_or_default(), f.totals().packets)).collect()
}

#[test]
fn both_ends_of_a_translated_flow_are_one_in_any_order() {
    // A resolver behind 10.0.0.9:53 that really is 10.0.0.2:3053.
    let client = (udp(1, (1, 5000), (9, 53), 1), on_wire(datagrams(5, 5, true, 10 * S), (1, 5000), (2, 3053)));
    let server = (udp(2, (2, 3053), (1, 5000), 1), on_wire(datagrams(5, 5, false, 10 * S + 1), (9, 53), (1, 5000)));
    // Its first packet was one that came: of the translation nothing is known yet.
    let silent = (server.0, datagrams(0, 1, false, 10 * S + 1));
    for order in
        [[client, server].to_vec(), [server, client].to_vec(), [client, silent].to_vec(), [silent, client].to_vec()]
    {
        let mut t = table();
        for (key, value) in &order {
            t.udp(key, value, 10 * S);
        }
        let expected = ("10.0.0.1:5000 10.0.0.9:53".to_owned(), "10.0.0.1:5000 10.0.0.2:3053".to_owned(), [5, 5]);
        assert_eq!(shown(&t), [expected], "{order:?}");
        reports(&mut t, 13 * S);
        t.udp_closed(1, 13 * S);
        reports(&mut t, 15 * S);
        reports(&mut t, 20 * S);
        assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
    }
}

#[test]
fn a_translated_flow_into_the_world_tells_both_names() {
    let mut t = table();
    let value = on_wire(datagrams(1, 1, true, 10 * S), (8, 61_000), (7, 53));
    t.udp(&udp(1, (1, 5000), (9, 53), 1), &value, 10 * S);
    assert_eq!(shown(&t), [("10.0.0.1:5000 10.0.0.9:53".to_owned(), "10.0.0.8:61000 10.0.0.7:53".to_owned(), [1, 1])]);
}

#[test]
fn two_tenants_with_equal_addresses_are_told_apart_by_the_packets() {
    let mut t = table();
    // One packet after another may lie in the same place.
    for (tenant, head) in [(0, 77), (1, 77)] {
        let at_ns = 10 * S + u64::from(tenant) * 1000;
        let (a, b) = (
            udp(tenant.into(), (1, 500), (2, 500), 10 + tenant),
            udp(10 + u64::from(tenant), (2, 500), (1, 500), 20 + tenant),
        );
        t.udp(&a, &at(head, datagrams(3, 3, true, at_ns)), 10 * S);
        t.udp(&b, &at(head, datagrams(3, 3, false, at_ns + 100)), 10 * S);
    }
    t.udp_drained(10 * S);
    assert_eq!((t.len(), t.counts().paired), (2, 2));
    for flow in t.flows() {
        let [a, b] = Side::BOTH.map(|side| flow.end(side).unwrap().netns);
        assert_eq!((flow.first_side, b - a), (Side::Initiator, 10));
    }
}

#[test]
fn both_ends_of_a_packet_may_fall_into_two_drains() {
    let mut t = table();
    t.udp(&udp(1, (1, 500), (2, 500), 1), &at(7, datagrams(1, 0, true, 10 * S)), 10 * S);
    t.udp_drained(10 * S);
    t.udp(&udp(2, (2, 500), (1, 500), 2), &at(7, datagrams(1, 1, false, 10 * S + 5)), 11 * S);
    t.udp_drained(11 * S);
    assert_eq!((t.len(), t.counts().paired), (1, 1));
}

#[test]
fn without_a_common_packet_ends_meet_only_if_there_are_no_others_of_their_name() {
    for twins in [false, true] {
        let mut t = table();
        for tenant in 0..=u32::from(twins) {
            let (a, b) = (
                udp(tenant.into(), (1, 500), (2, 500), 10 + tenant),
                udp(10 + u64::from(tenant), (2, 500), (1, 500), 20 + tenant),
            );
            t.udp(&a, &datagrams(3, 3, true, 10 * S), 10 * S);
            t.udp(&b, &datagrams(3, 3, false, 10 * S + 100), 10 * S);
        }
        t.udp_drained(10 * S);
        assert!(reports(&mut t, 12 * S).is_empty());
        let reported = reports(&mut t, 13 * S);
        if twins {
            assert_eq!((reported.len(), t.counts().paired), (4, 0), "not joined is better than joined wrongly");
        } else {
            assert_eq!((reported.len(), reported[0].local, t.counts().paired), (1, [true; 2], 1));
        }
    }
}

#[test]
fn what_a_group_receives_counts_once() {
    for (order, namespaces) in [
        ([0, 1, 2], [1, 1, 1]),
        ([1, 2, 0], [1, 1, 1]),
        ([0, 1, 2], [1, 2, 3]),
        ([2, 1, 0], [1, 2, 3]),
        ([0, 1, 2], [1, 2, 2]),
        ([1, 2, 0], [1, 2, 2]),
        ([0, 1, 2], [1, 1, 2]),
    ] {
        let mut t = table();
        for who in order {
            let group = (255, 5353);
            let (key, mut value) = match who {
                0 => (udp(1, (1, 5000), group, namespaces[0]), datagrams(10, 0, true, 10 * S)),
                n => (udp(1 + n, group, (1, 5000), namespaces[n as usize]), datagrams(0, 10, false, 10 * S + n)),
            };
            if who > 0 {
                value.traits = udp_traits::GROUP;
            }
            (value.pid, value.start_ticks) = (100 + who as u32, 1);
            t.udp(&key, &at(7, value), 10 * S);
        }
        t.udp_drained(10 * S);
        assert_eq!(shown(&t), [("10.0.0.1:5000 10.0.0.255:5353".to_owned(), String::new(), [10, 0])]);
        let flow = t.flows().next().unwrap();
        assert_eq!(flow.end(Side::Initiator).unwrap().owner.pid, 100);
        let responders = flow.end(Side::Responder).map(|end| end.owner);
        let mut receivers: Vec<u32> =
            responders.into_iter().chain(flow.other_owners()).map(|owner| owner.pid).collect();
        receivers.sort_unstable();
        assert_eq!(receivers, [101, 102]);
        t.udp_closed(2, 11 * S);
        assert_eq!(t.flows().next().unwrap().state(), State::Open, "another one still receives");
        t.udp_closed(1, 11 * S);
        t.udp_closed(3, 11 * S);
        for second in [13, 20] {
            reports(&mut t, second * S);
        }
        assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
    }
}
