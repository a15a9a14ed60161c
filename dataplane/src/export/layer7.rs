//! Which protocol a flow speaks, in nDPI's numbers, which ntopng has. It guesses by the port, and is told where that is wrong.

use crate::flows::report::FlowReport;
use crate::names::table::Source;

/// nDPI's number, and the port by which ntopng knows it.
const HTTP: (u16, u16) = (7, 80);
const TLS: (u16, u16) = (91, 443);
const QUIC: (u16, u16) = (188, 443);

/// By how the client began: nDPI's number of the protocol above TCP or UDP, and behind a point of the one that is spoken within
/// it by ALPN. `None`: not known, or ntopng gets it right by the port.
pub(super) fn of(report: &FlowReport) -> Option<String> {
    let hello = report.hello.as_deref()?;
    let (below, port) = match hello.source {
        Source::Http => HTTP,
        Source::Tls | Source::TlsOuter => TLS,
        Source::Quic | Source::QuicOuter => QUIC,
        // They tell of the name alone.
        Source::Process | Source::Parent | Source::Container | Source::Namespace | Source::Host => return None,
    };
    match hello.alpn.first().and_then(|protocol| within(protocol)) {
        Some(within) => Some(format!("{below}.{within}")),
        None => (report.key.responder.port != port).then(|| below.to_string()),
    }
}

/// nDPI's number of a protocol by its name in IANA's registry of ALPN.
fn within(alpn: &str) -> Option<u16> {
    Some(match alpn {
        "dot" | "doq" => 196,
        "imap" => 51,
        "irc" => 65,
        "mqtt" => 222,
        "pop3" => 23,
        "xmpp-client" | "xmpp-server" => 67,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::*;
    use crate::export::decoder::{Item, decode};
    use crate::export::tlv::Encoder;
    use crate::flows::testing;
    use crate::model::flow::{Endpoint, FlowKey};
    use crate::names::hello::Hello;

    fn report(source: Source, alpn: &[&str], port: u16) -> FlowReport {
        let alpn = alpn.iter().map(|protocol| (*protocol).into()).collect();
        let hello = Hello { source, name: Some("a.example".into()), is_peer: true, alpn };
        let report = testing::report();
        let responder = Endpoint { port, ..report.key.responder };
        FlowReport { hello: Some(Arc::new(hello)), key: FlowKey { responder, ..report.key }, ..report }
    }

    #[test]
    fn a_protocol_is_told_where_the_port_does_not_tell_it() {
        let told = |source, alpn: &[&str], port| of(&report(source, alpn, port));
        assert_eq!(told(Source::Tls, &["h2", "http/1.1"], 443), None);
        assert_eq!(told(Source::Tls, &["h2", "http/1.1"], 8443).as_deref(), Some("91"));
        assert_eq!(told(Source::Tls, &["dot"], 443).as_deref(), Some("91.196"));
        assert_eq!(told(Source::QuicOuter, &[], 8443).as_deref(), Some("188"));
        assert_eq!(told(Source::Http, &[], 80), None);
        assert_eq!(told(Source::Http, &[], 8080).as_deref(), Some("7"));
        assert_eq!(told(Source::Process, &[], 8080), None);
        assert_eq!(of(&testing::report()), None);
    }

    #[test]
    fn ntopng_is_told_in_a_record_of_its_own_without_processes() {
        let mut encoder = Encoder::new(IpAddr::from([10, 0, 0, 1]));
        let mut bytes = Vec::new();
        assert_eq!(encoder.encode_protocol(&report(Source::Tls, &[], 8443), &mut bytes), 1);
        let records = decode(&bytes).unwrap();
        let item = |id: u64| records[0].iter().find(|(key, _)| *key == id).map(|(_, item)| item.clone());
        assert_eq!((records.len(), item(57590), item(57640)), (1, Some(Item::Text("91".into())), None));
        assert_eq!((item(1), item(57550)), (Some(Item::Number(0)), Some(Item::Number(2))));
        assert_eq!(item(57660), Some(Item::Text("a.example".into())));
        let is_row = |(_, item): &&(u64, Item)| matches!(item, Item::Named(label, _) if label == "Client Command Line");
        assert!(records[0].iter().find(is_row).is_some(), "ntopng takes rows from the first record: {records:#?}");
        assert_eq!(encoder.encode_protocol(&report(Source::Tls, &[], 443), &mut bytes), 0);
    }
}
