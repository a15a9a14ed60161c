//! Connections whose two ends know different addresses.

use super::*;

/// What the responder sees of a connection whose destination, and perhaps source, is translated on the way.
fn translate(mut r: FlowRecord, source_too: bool) -> FlowRecord {
    if r.local_port != 30_000 {
        return r; // the initiator's end
    }
    (r.local_addr, r.local_port, r.netns) = (addr(88), 8000, 7);
    if source_too {
        (r.remote_addr, r.remote_port) = (addr(77), r.remote_port ^ 0x4000);
    }
    r
}

fn responders_view(c: &Connection, source_too: bool) -> FlowKey {
    FlowKey {
        responder: Endpoint { addr: Addr(addr(88)), port: 8000 },
        ..match source_too {
            false => c.key(),
            true => {
                let port = c.key().initiator.port ^ 0x4000;
                FlowKey { initiator: Endpoint { addr: Addr(addr(77)), port }, ..c.key() }
            }
        }
    }
}

#[test]
fn both_ends_are_one_flow_under_the_name_that_the_initiator_knows() {
    for source_too in [false, true] {
        let c = Connection { number: 1, sent: 5000, received: 70_000, pre_existing: false };
        for reversed in [false, true] {
            let mut life: Vec<_> = c.life().into_iter().map(|r| translate(r, source_too)).collect();
            if reversed {
                life.reverse();
            }
            let mut t = table();
            life.iter().for_each(|r| t.tcp_record(r, 12 * S));
            let reported = reports(&mut t, 13 * S);
            assert_eq!((reported.len(), reported[0].key, reported[0].total.bytes), (1, c.key(), [5000, 70_000]));
            assert_eq!(reported[0].translated.as_deref(), Some(&responders_view(&c, source_too)));
            assert_eq!(owners(&reported), [[101, 100]]);
        }
    }
}

#[test]
fn a_flow_without_translation_has_one_name() {
    let c = Connection { number: 1, sent: 1, received: 1, pre_existing: false };
    let mut t = table();
    c.life().iter().for_each(|r| t.tcp_record(r, 12 * S));
    assert_eq!(reports(&mut t, 13 * S)[0].translated, None);
}

#[test]
fn a_proxy_that_makes_up_numbers_of_its_own_leaves_two_flows() {
    let c = Connection { number: 1, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    for mut r in c.life() {
        if r.local_port == 30_000 {
            r.seq_local = r.seq_local.wrapping_add(5); // SYNPROXY
        }
        t.tcp_record(&r, 12 * S);
    }
    assert_eq!((t.len(), t.counts().paired), (2, 0));
}

#[test]
fn one_end_that_is_over_waits_for_what_is_on_its_way_of_the_other() {
    let c = Connection { number: 1, sent: 10, received: 10, pre_existing: false };
    let mut t = table();
    t.drained_through(10 * S);
    t.tcp_record(&translate(c.record(Side::Responder, Kind::Close, 10 * S, 100), true), 10 * S);
    assert!(reports(&mut t, 12 * S).is_empty());
    t.tcp_record(&c.record(Side::Initiator, Kind::Close, 10 * S, 100), 12 * S);
    t.drained_through(12 * S);
    let reported = reports(&mut t, 13 * S);
    assert_eq!((reported.len(), reported[0].key, reported[0].state), (1, c.key(), State::Closed));
}

proptest! {
    /// Whatever is translated, and in whatever order it is heard of: each connection is one flow, and none is joined with another,
    /// although all have the same addresses and ports.
    #[test]
    fn any_translation_and_any_order_give_the_same_flows(
        connections in connections(),
        translated in prop::collection::vec((any::<bool>(), any::<bool>()), 6),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let mut records = Vec::new();
        for (c, (is_translated, source_too)) in connections.iter().zip(&translated) {
            for r in c.life() {
                let mut r = if *is_translated { translate(r, *source_too) } else { r };
                for port in [&mut r.local_port, &mut r.remote_port] {
                    if (20_000..20_010).contains(port) {
                        *port = 20_000;
                    }
                }
                records.push(r);
            }
        }
        shuffle(&mut records, &order);
        let mut t = table();
        records.iter().for_each(|r| t.tcp_record(r, 12 * S));
        let mut found: Vec<_> = t
            .flows()
            .map(|flow| (flow.totals().bytes, flow.key.initiator.port, flow.state(), flow.end(Side::Initiator).map(|e| e.cookie)))
            .collect();
        found.sort_by_key(|(.., cookie)| *cookie);
        let expected: Vec<_> = connections
            .iter()
            .map(|c| ([c.sent, c.received], 20_000, State::Closed, Some(u64::from(c.number) * 2 + 1)))
            .collect();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(t.counts().paired, connections.len() as u64);
    }
}
