//! Who is the initiator of a UDP flow, and whose a socket is.

use sockeye_bpf::records::{UdpValue, udp_traits};

use super::udp::{datagrams, udp};
use super::*;

fn older(traits: u8, v: UdpValue) -> UdpValue {
    UdpValue { flags: flags::PRE_EXISTING, traits, ..v }
}

fn initiators(t: &FlowTable) -> Vec<u16> {
    t.flows().map(|flow| flow.key.initiator.port).collect()
}

#[test]
fn a_server_opens_a_socket_for_its_client() {
    let client = (udp(1, (1, 5000), (2, 443), 1), datagrams(50, 50, true, 10 * S));
    let wildcard = (udp(2, (2, 443), (1, 5000), 1), datagrams(0, 1, false, 10 * S + 1));
    let connected = (udp(3, (2, 443), (1, 5000), 1), datagrams(50, 49, true, 10 * S + 2));
    for here in [[client, wildcard, connected].to_vec(), [wildcard, connected].to_vec()] {
        let mut t = table();
        for (key, value) in &here {
            let value = UdpValue { pid: 100 + key.cookie as u32, start_ticks: 1, ..*value };
            t.udp(key, &value, 10 * S);
        }
        assert_eq!(initiators(&t), [5000]);
        let flow = t.flows().next().unwrap();
        assert_eq!(flow.totals().packets, [50, 50]);
        assert_eq!(flow.end(Side::Responder).unwrap().owner.pid, 103, "who talks to the client now");
        t.udp_closed(3, 11 * S);
        assert_eq!(t.flows().next().unwrap().state(), State::Open);
        t.udp(&wildcard.0, &datagrams(1, 1, false, 12 * S), 12 * S);
        assert_eq!(t.flows().next().unwrap().totals().packets, [51, 51]);
        t.udp_closed(2, 12 * S);
        for second in [13, 14, 20] {
            reports(&mut t, second * S);
        }
        assert!(t.is_empty() && t.udp.is_empty() && t.udp_sockets.is_empty() && t.pairs.is_empty());
    }
}

#[test]
fn under_way_before_the_agent_came_ports_tell_the_server() {
    let client = (udp(1, (1, 5000), (2, 443), 1), older(udp_traits::ASKS, datagrams(1, 50, false, 10 * S + 1)));
    let server = (udp(2, (2, 443), (1, 5000), 1), older(udp_traits::SERVES, datagrams(50, 1, true, 10 * S)));
    let bound = (client.0, older(0, client.1));
    for order in [
        [client, server].to_vec(),
        [server, client].to_vec(),
        [bound, server].to_vec(),
        [server, bound].to_vec(),
        [client].to_vec(),
        [server].to_vec(),
    ] {
        let mut t = table();
        for (key, value) in &order {
            t.udp(key, value, 10 * S);
        }
        assert_eq!(initiators(&t), [5000], "{order:?}");
    }
}

#[test]
fn the_owner_is_who_uses_the_socket_now() {
    let key = udp(1, (1, 5000), (9, 53), 1);
    let mut t = table();
    for (at_ns, pid) in [(10 * S, 100), (11 * S, 101), (12 * S, 0)] {
        t.udp(&key, &UdpValue { pid, start_ticks: 1, ..datagrams(1, 0, true, at_ns) }, at_ns);
    }
    assert_eq!(t.flows().next().unwrap().end(Side::Initiator).unwrap().owner.pid, 101);
}
