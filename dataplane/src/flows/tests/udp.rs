use sockeye_bpf::records::UdpValue;

use super::*;

pub(super) fn udp(cookie: u64, local: (u8, u16), remote: (u8, u16), netns: u32) -> UdpKey {
    UdpKey {
        cookie,
        local_addr: addr(local.0),
        remote_addr: addr(remote.0),
        local_port: local.1,
        remote_port: remote.1,
        netns,
    }
}

pub(super) fn datagrams(sent: u32, received: u32, first_sent: bool, at_ns: u64) -> UdpValue {
    let mut v = UdpValue::new_zeroed();
    (v.packets_sent, v.packets_received) = (sent, received);
    (v.bytes_sent, v.bytes_received) = (u64::from(sent) * 100, u64::from(received) * 100);
    (v.first_ns, v.last_ns, v.first_sent) = (at_ns, at_ns, u8::from(first_sent));
    v
}

#[test]
fn udp_ends_by_silence_and_keeps_its_direction() {
    let (client, server) = (udp(1, (1, 5000), (2, 53), 1), udp(2, (2, 53), (1, 5000), 1));
    let mut t = table();
    t.udp(&server, &datagrams(1, 2, false, 10 * S), 10 * S);
    t.udp(&client, &datagrams(2, 1, true, 10 * S), 10 * S);
    let reported = reports(&mut t, 13 * S);
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].key.initiator.port, reported[0].delta.packets), (5000, [2, 1]));
    let reported = reports(&mut t, 41 * S);
    assert_eq!((reported[0].state, reported[0].ended), (State::Idle, true));
    // The server speaks first this time: to a collector it must stay the responder.
    t.udp(&server, &datagrams(1, 0, true, 50 * S), 50 * S);
    let reported = reports(&mut t, 53 * S);
    assert_eq!(
        (reported[0].key.initiator.port, reported[0].state, reported[0].delta.packets),
        (5000, State::Open, [0, 1])
    );
    // It ends once, for whoever counts.
    let last: Vec<FlowReport> = [90, 200].into_iter().flat_map(|second| reports(&mut t, second * S)).collect();
    assert!(last.iter().any(|report| report.state == State::Idle) && last.iter().all(|report| !report.ended));
    assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
}

/// Clients that use one port in turn, towards one server. Drains come after some of the datagrams only, each with its
/// rows in any order; the server answers every datagram.
#[derive(Debug, Clone)]
struct PortInTurns {
    /// Of each client: how many datagrams, and whether a drain comes after each.
    clients: Vec<Vec<bool>>,
    seed: u64,
}

impl PortInTurns {
    fn play(&mut self, t: &mut FlowTable) {
        let (server, mut at_ns) = (udp(1000, (2, 53), (1, 5000), 1), 10 * S);
        let mut rows: Vec<(UdpKey, UdpValue)> = Vec::new();
        let mut closed = Vec::new();
        for (client, datagrams_sent) in std::mem::take(&mut self.clients).iter().enumerate() {
            let client_key = udp(client as u64 + 1, (1, 5000), (2, 53), 1);
            for &drained in datagrams_sent {
                at_ns += 1000;
                for (key, sent) in [(client_key, true), (server, false), (server, true), (client_key, false)] {
                    let value = datagrams(u32::from(sent), u32::from(!sent), sent, at_ns);
                    match rows.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, sum)) => {
                            sum.bytes_sent += value.bytes_sent;
                            sum.bytes_received += value.bytes_received;
                            sum.packets_sent += value.packets_sent;
                            sum.packets_received += value.packets_received;
                            // The kernel's clock for this ticks each 4 ms.
                            sum.last_ns = (at_ns - at_ns % 4_000_000).max(sum.first_ns);
                        }
                        None => rows.push((key, value)),
                    }
                }
                if drained {
                    self.drain(t, &mut rows, &mut closed, at_ns);
                }
            }
            closed.push(client_key.cookie);
        }
        self.drain(t, &mut rows, &mut closed, at_ns);
    }

    fn drain(&mut self, t: &mut FlowTable, rows: &mut Vec<(UdpKey, UdpValue)>, closed: &mut Vec<u64>, now_ns: u64) {
        while !rows.is_empty() {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (key, value) = rows.swap_remove((self.seed >> 33) as usize % rows.len());
            t.udp(&key, &value, now_ns);
        }
        closed.drain(..).for_each(|cookie| t.udp_closed(cookie, now_ns));
    }
}

#[test]
fn a_server_that_is_started_again_takes_the_place_of_the_first() {
    let (client, mut server) = (udp(1, (1, 5000), (2, 53), 1), udp(2, (2, 53), (1, 5000), 1));
    let mut t = table();
    t.udp(&server, &datagrams(1, 1, false, 10 * S), 10 * S);
    t.udp(&client, &datagrams(1, 1, true, 10 * S), 10 * S);
    t.udp_closed(server.cookie, 10 * S);
    server.cookie = 3;
    t.udp(&client, &datagrams(5, 5, true, 11 * S), 11 * S);
    t.udp(&server, &datagrams(5, 5, true, 11 * S), 11 * S);
    let reported: Vec<_> =
        reports(&mut t, 14 * S).iter().map(|r| (r.key.initiator.port, r.local, r.total.packets)).collect();
    assert_eq!(reported, [(5000, [true; 2], [1, 1]), (5000, [true; 2], [5, 5])]);
}

#[test]
fn a_socket_that_sends_to_itself_by_another_address_is_no_pair() {
    let mut t = table();
    t.udp(&udp(1, (1, 5000), (2, 5000), 1), &datagrams(3, 0, true, 10 * S), 10 * S);
    t.udp(&udp(1, (2, 5000), (1, 5000), 1), &datagrams(0, 3, false, 10 * S), 10 * S);
    t.udp_closed(1, 10 * S);
    let reported = reports(&mut t, 13 * S);
    assert_eq!(reported.iter().map(|r| r.total.packets).collect::<Vec<_>>(), [[3, 0]; 2]);
    reports(&mut t, 20 * S);
    assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
}

#[test]
fn a_socket_that_takes_the_place_of_its_own_peer_is_harmless() {
    let mut t = table();
    t.udp(&udp(1, (1, 5000), (2, 5000), 1), &datagrams(1, 0, true, 10 * S), 10 * S);
    t.udp(&udp(2, (2, 5000), (1, 5000), 1), &datagrams(0, 1, false, 10 * S), 10 * S);
    t.udp_closed(1, 10 * S);
    t.udp(&udp(2, (1, 5000), (2, 5000), 1), &datagrams(3, 0, true, 11 * S), 11 * S);
    t.udp_closed(2, 11 * S);
    for second in [14, 20, 60] {
        reports(&mut t, second * S);
    }
    assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
}

#[test]
fn the_same_udp_addresses_in_another_namespace_take_nothing() {
    let mut t = table();
    for netns in [1, 2] {
        let cookie = u64::from(netns) * 10;
        t.udp(&udp(cookie, (1, 5000), (2, 53), netns), &datagrams(1, 1, true, 10 * S), 10 * S);
        t.udp(&udp(cookie + 1, (2, 53), (1, 5000), netns), &datagrams(1, 1, false, 10 * S), 10 * S);
    }
    assert_eq!((t.len(), t.counts().paired), (2, 2));
    assert!(t.flows().all(|flow| flow.ends().all(|end| end.netns == flow.first_end.netns)));
}

#[test]
fn a_closed_udp_socket_ends_its_flows_and_only_its() {
    let mut t = table();
    t.udp(&udp(1, (1, 5000), (2, 53), 1), &datagrams(1, 1, true, 10 * S), 10 * S);
    t.udp(&udp(1, (1, 5000), (3, 53), 1), &datagrams(1, 1, true, 10 * S), 10 * S);
    t.udp(&udp(2, (1, 5001), (2, 53), 1), &datagrams(1, 1, true, 10 * S), 10 * S);
    t.udp_closed(1, 10 * S);
    let reported = reports(&mut t, 11 * S);
    assert_eq!(reported.len(), 2);
    assert!(reported.iter().all(|r| r.state == State::Closed && r.key.initiator.port == 5000));
}

#[test]
fn loopback_udp_of_two_namespaces_never_pairs() {
    let lo = |cookie, local: u16, remote: u16, netns| {
        let mut key = udp(cookie, (1, local), (1, remote), netns);
        let ip = Addr::from(IpAddr::V4(Ipv4Addr::LOCALHOST)).0;
        (key.local_addr, key.remote_addr) = (ip, ip);
        key
    };
    let mut t = table();
    t.udp(&lo(1, 5000, 53, 1), &datagrams(1, 0, true, S), S);
    t.udp(&lo(2, 53, 5000, 2), &datagrams(0, 1, false, S), S);
    assert_eq!((t.len(), t.counts().paired), (2, 0));
}

proptest! {
    #[test]
    fn sockets_that_use_a_port_in_turn_are_flows_of_their_own(
        clients in prop::collection::vec(prop::collection::vec(any::<bool>(), 1..6), 1..5),
        seed in any::<u64>(),
    ) {
        let mut t = table();
        PortInTurns { clients: clients.clone(), seed }.play(&mut t);
        let mut reported = reports(&mut t, 13 * S);
        reported.sort_by_key(|report| report.first_unix_ns);
        prop_assert_eq!(reported.len(), clients.len());
        for (report, datagrams_sent) in reported.iter().zip(&clients) {
            let count = datagrams_sent.len() as u64;
            prop_assert_eq!((report.total.packets, report.total.bytes), ([count; 2], [count * 100; 2]));
            prop_assert_eq!((report.local, report.state), ([true; 2], State::Closed));
        }
        for second in [20, 60, 200] {
            reports(&mut t, second * S);
        }
        prop_assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
    }
}

/// One datagram from each of so many ports to one server.
fn flood(t: &mut FlowTable, from: u32, count: u32, at_ns: u64) {
    for number in from..from + count {
        let port = number as u16;
        let mut key = udp(1000, (2, 53), (1, port), 1);
        key.remote_addr[13] = (number >> 16) as u8;
        t.udp(&key, &datagrams(0, 1, false, at_ns), at_ns);
    }
}

fn totals(reports: &[FlowReport]) -> (u64, u64) {
    let of = |which: fn(&Counters) -> [u64; 2]| reports.iter().map(|r| which(&r.delta).iter().sum::<u64>()).sum();
    (of(|delta| delta.packets), of(|delta| delta.bytes))
}

/// Spoofed sources fill UDP's half of the table, and then only flows of one datagram make room for each other.
#[test]
fn a_flood_of_datagrams_never_keeps_tcp_out_and_loses_nothing() {
    let mut t = table();
    // A conversation, which is none of the flood.
    let asked = udp(7, (1, 4000), (9, 53), 1);
    t.udp(&asked, &datagrams(3, 3, true, 10 * S), 10 * S);
    let mut all = Vec::new();
    for round in 0..20 {
        let at_ns = 10 * S + u64::from(round) * S / 4;
        flood(&mut t, round * 500, 500, at_ns);
        all.extend(reports(&mut t, at_ns + 1));
        assert!(t.occupied() <= 1000 && t.len() <= 1500, "{} flows", t.len());
    }
    for number in 0..500 {
        let c = Connection { number, sent: 1, received: 1, pre_existing: false };
        t.tcp_record(&c.record(Side::Initiator, Kind::Scan, 16 * S, 50), 16 * S);
    }
    assert_eq!((t.counts().rejected, t.flows().filter(|flow| flow.key.proto == Proto::Tcp).count()), (0, 500));
    for second in 17..120 {
        all.extend(reports(&mut t, second * S));
    }
    let udp: Vec<_> = all.into_iter().filter(|report| report.key.proto == Proto::Udp).collect();
    assert_eq!(totals(&udp), (10_006, 1_000_600), "exact in total");
    let conversation: Vec<_> = udp.iter().filter(|report| report.key.responder.addr == Addr(addr(9))).collect();
    assert_eq!(conversation.iter().map(|report| report.state).collect::<Vec<_>>(), [State::Open, State::Idle]);
    assert!(t.counts().given_up > 0 || t.counts().other_peers > 0);
}

/// The bound of one socket, with room in the table.
#[test]
fn peers_beyond_the_bound_of_a_socket_share_a_flow() {
    let mut t = FlowTable::new(1_000_000, Timeouts::default());
    let beyond = 1000;
    flood(&mut t, 0, crowding::PEERS_MAX as u32 + beyond, 10 * S);
    assert_eq!(t.len(), crowding::PEERS_MAX + 1);
    let all = reports(&mut t, 13 * S);
    let others: Vec<_> = all.iter().filter(|report| report.key.is_of_other_peers()).collect();
    assert_eq!(others.len(), 1);
    assert_eq!(
        (others[0].key.text(Side::Initiator).as_str(), others[0].delta.packets),
        ("other peers", [u64::from(beyond), 0])
    );
    t.udp_closed(1000, 14 * S);
    for second in [15, 20, 80] {
        reports(&mut t, second * S);
    }
    assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.crowding.other_peers.is_empty());
}

/// When three quarters are taken, flows of one datagram leave after two seconds, and do not linger.
#[test]
fn single_datagrams_leave_early_where_there_is_little_room() {
    for (count, left) in [(300, 300), (450, 0)] {
        let mut t = table();
        flood(&mut t, 0, count, 10 * S);
        for quarter in 40..60 {
            reports(&mut t, quarter * S / 4);
        }
        assert!(
            (t.len() as u32) <= left + 375 && (left == 0 || t.len() as u32 == left),
            "{} of {count} are left",
            t.len()
        );
    }
}
