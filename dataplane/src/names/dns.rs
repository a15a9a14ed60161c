//! Messages of DNS: what was asked, and which addresses the answer gives to exactly that. A message may be cut anywhere, and
//! whoever has sent it may be anybody.

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::{Message as Wire, ParsedName, Ttl};
use domain::rdata::{A, Aaaa, Cname};

use super::hosts::host_name;
use crate::model::text::clean;

/// Records of an answer that are looked at.
const RECORDS_MAX: usize = 64;
/// Aliases that are followed; resolvers follow 11 or so.
const ALIASES_MAX: usize = 16;
/// Shortest message: its header.
const HEADER_LEN: usize = 12;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Tells the answer to which question it is.
    pub id: u16,
    /// An answer, and not a question.
    pub is_answer: bool,
    /// The server's verdict: 0 = no error, 3 = no such name.
    pub rcode: u8,
    /// The answer did not fit (TC): it is asked again over TCP.
    pub truncated: bool,
    /// What is asked about, in lower case; made safe for whoever shows it.
    pub name: String,
    /// Whether that is the name of a host.
    pub is_host: bool,
    /// Type that is asked for: 1 = A, 28 = AAAA, ...
    pub rtype: u16,
    /// Addresses of the name, by way of its aliases, with the seconds that they may be kept.
    pub addresses: Vec<(IpAddr, u32)>,
}

impl Message {
    /// Reads a message, or the beginning of one. `None` if it is none about one name of the Internet.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let wire = Wire::from_octets(bytes).ok()?;
        let header = wire.header();
        let question = wire.sole_question().ok()?;
        if header.opcode() != Opcode::QUERY || question.qclass() != Class::IN {
            return None;
        }
        let text = question.qname().to_string();
        let host = host_name(text.as_bytes());
        let is_host = host.is_some();
        let no_error = header.qr() && header.rcode().to_int() == 0;
        Some(Self {
            id: header.id(),
            is_answer: header.qr(),
            rcode: header.rcode().to_int(),
            truncated: header.tc(),
            name: host.unwrap_or_else(|| clean(text.to_ascii_lowercase().as_bytes())),
            is_host,
            rtype: question.qtype().to_int(),
            addresses: if no_error { addresses(&wire, *question.qname()) } else { Vec::new() },
        })
    }
}

type Name<'a> = ParsedName<&'a [u8]>;

/// Addresses of a name: an answer that names something else does not count.
fn addresses<'a>(wire: &'a Wire<&'a [u8]>, mut name: Name<'a>) -> Vec<(IpAddr, u32)> {
    let Ok(answer) = wire.answer() else { return Vec::new() };
    let mut aliases = Vec::new();
    let mut found: Vec<(_, IpAddr, u32)> = Vec::new();
    // It ends where the message was cut.
    for record in answer.take(RECORDS_MAX).map_while(Result::ok).filter(|record| record.class() == Class::IN) {
        let (owner, ttl_s) = (record.owner(), seconds(record.ttl()));
        match record.rtype() {
            Rtype::CNAME => {
                let Ok(Some(alias)) = record.into_record::<Cname<_>>() else { break };
                aliases.push((owner, alias.into_data().into_cname(), ttl_s));
            }
            Rtype::A => {
                let Ok(Some(address)) = record.into_record::<A>() else { break };
                found.push((owner, address.data().addr().into(), ttl_s));
            }
            Rtype::AAAA => {
                let Ok(Some(address)) = record.into_record::<Aaaa>() else { break };
                found.push((owner, IpAddr::from(address.data().addr()).to_canonical(), ttl_s));
            }
            _ => {}
        }
    }
    let mut ttl_max_s = u32::MAX;
    for _ in 0..ALIASES_MAX {
        let Some((_, target, ttl_s)) = aliases.iter().find(|(owner, ..)| *owner == name) else { break };
        (name, ttl_max_s) = (*target, ttl_max_s.min(*ttl_s));
    }
    found.retain(|(owner, ..)| *owner == name);
    found.into_iter().map(|(_, address, ttl_s)| (address, ttl_s.min(ttl_max_s))).collect()
}

/// At most a week: more is nonsense (RFC 8767, section 4).
fn seconds(ttl: Ttl) -> u32 {
    ttl.as_secs().min(7 * 86_400)
}

/// The messages in a segment of TCP, of which `bytes` began with what is here: each has its length before it. `expected`: the
/// length that came in a segment before, of its own; the one that does so now is left there.
pub fn in_segment<'a>(mut rest: &'a [u8], bytes: usize, expected: &mut Option<u16>) -> Vec<&'a [u8]> {
    let mut messages = Vec::new();
    let mut left = bytes;
    if let Some(length) = expected.take().map(usize::from) {
        let (message, behind) = rest.split_at(length.min(rest.len()));
        messages.push(message);
        (rest, left) = (behind, left.saturating_sub(length));
    }
    while let Some((prefix, behind)) = rest.split_first_chunk() {
        let length = u16::from_be_bytes(*prefix);
        left -= prefix.len();
        if left == 0 {
            *expected = Some(length);
            break;
        }
        let (message, next) = behind.split_at(usize::from(length).min(behind.len()));
        messages.push(message);
        (rest, left) = (next, left.saturating_sub(usize::from(length)));
        if left == 0 {
            break;
        }
    }
    messages.retain(|message| message.len() >= HEADER_LEN);
    messages
}

/// What is asked for, as everybody calls it.
#[must_use]
pub fn type_name(rtype: u16) -> String {
    Rtype::from_int(rtype).to_string()
}

/// A server's verdict, likewise.
#[must_use]
pub fn rcode_name(rcode: u8) -> String {
    Rcode::masked_from_int(rcode).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::{MessageBuilder, Name as Owned};
    use proptest::prelude::*;
    use std::str::FromStr;

    fn name(text: &str) -> Owned<Vec<u8>> {
        Owned::from_str(text).unwrap()
    }

    /// An answer to A of a name.
    fn answer(asked: &str, records: &[(&str, &str, u32)]) -> Vec<u8> {
        let mut message = MessageBuilder::new_vec().question();
        message.header_mut().set_qr(true);
        message.header_mut().set_id(0x1234);
        message.push((name(asked), Rtype::A)).unwrap();
        let mut message = message.answer();
        for (owner, data, ttl) in records {
            let (owner, ttl) = (name(owner), Ttl::from_secs(*ttl));
            match data.parse::<IpAddr>() {
                Ok(IpAddr::V4(addr)) => message.push((owner, ttl, A::new(addr))).unwrap(),
                Ok(IpAddr::V6(addr)) => message.push((owner, ttl, Aaaa::new(addr))).unwrap(),
                Err(_) => message.push((owner, ttl, Cname::new(name(data)))).unwrap(),
            }
        }
        message.finish()
    }

    fn found(bytes: &[u8]) -> Vec<(String, u32)> {
        Message::parse(bytes).unwrap().addresses.iter().map(|(addr, ttl)| (addr.to_string(), *ttl)).collect()
    }

    #[test]
    fn addresses_of_what_was_asked() {
        let plain =
            answer("WWW.Example.net", &[("www.example.NET", "203.0.113.1", 300), ("www.example.net", "::1", 9)]);
        let message = Message::parse(&plain).unwrap();
        assert_eq!((message.id, message.is_answer, message.rcode, message.rtype), (0x1234, true, 0, 1));
        assert_eq!((message.name.as_str(), message.is_host), ("www.example.net", true));
        assert_eq!(found(&plain), [("203.0.113.1".into(), 300), ("::1".into(), 9)]);
        let chain = [
            ("cdn.example.org", "203.0.113.9", 60),
            ("www.example.net", "x.example.org", 30),
            ("x.example.org", "cdn.example.org", 400),
        ];
        assert_eq!(found(&answer("www.example.net", &chain)), [("203.0.113.9".into(), 30)], "in any order");
        let other = [("bank.example", "198.51.100.6", 60), ("www.example.net", "203.0.113.1", 60)];
        assert_eq!(found(&answer("www.example.net", &other)), [("203.0.113.1".into(), 60)], "and nothing else");
        let circle = [("a.example", "b.example", 1), ("b.example", "a.example", 1), ("c.example", "1.1.1.1", 1)];
        assert_eq!(found(&answer("a.example", &circle)), []);
    }

    #[test]
    fn a_cut_answer_says_what_it_still_can() {
        let many: Vec<_> = (1..30).map(|i| ("many.example", format!("203.0.113.{i}"), 60)).collect();
        let records: Vec<_> = many.iter().map(|(owner, data, ttl)| (*owner, data.as_str(), *ttl)).collect();
        let whole = answer("many.example", &records);
        let mut before = 0;
        for length in 0..whole.len() {
            let now = Message::parse(&whole[..length]).map_or(0, |message| message.addresses.len());
            assert!(now >= before && now <= 29, "{length}");
            before = now;
        }
        assert_eq!(found(&whole).len(), 29);
    }

    #[test]
    fn what_is_no_question_about_one_name() {
        for bytes in [&b""[..], &[0; 11], &[0; 12], &[0xff; 40]] {
            assert_eq!(Message::parse(bytes), None);
        }
        // A name that points at itself.
        let mut circle = answer("a.example", &[])[..12].to_vec();
        circle.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(Message::parse(&circle), None);
        let odd = Message::parse(&answer("_sip._tcp.\\000evil\\027[31m.example", &[])).unwrap();
        assert!(!odd.is_host && !odd.name.contains('\u{1b}'), "{odd:?}");
    }

    #[test]
    fn lengths_before_messages() {
        let message = |byte| vec![byte; 20];
        let prefixed = |byte| [vec![0, 20], message(byte)].concat();
        let mut expected = None;
        let two = [prefixed(1), prefixed(2)].concat();
        assert_eq!(in_segment(&two, two.len(), &mut expected), [message(1), message(2)]);
        assert_eq!((in_segment(&[0, 20], 2, &mut expected).len(), expected), (0, Some(20)));
        assert_eq!(in_segment(&message(3), 20, &mut expected), [message(3)]);
        assert_eq!(expected, None);
        let long = [vec![8, 0], message(4)].concat();
        assert_eq!(in_segment(&long, 1400, &mut expected), [message(4)], "the rest was not copied");
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..300), extra in 0usize..2000, length in any::<Option<u16>>()) {
            if let Some(message) = Message::parse(&bytes) {
                prop_assert!(message.addresses.len() <= RECORDS_MAX && message.name.len() <= 2048);
            }
            let mut expected = length;
            for message in in_segment(&bytes, bytes.len() + extra, &mut expected) {
                prop_assert!(message.len() >= HEADER_LEN);
            }
        }

        #[test]
        fn changed_answers_are_harmless(at in 0usize..200, byte in any::<u8>()) {
            let mut bytes = answer("www.example.net", &[("www.example.net", "b.example.org", 30), ("b.example.org", "203.0.113.9", 60)]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = Message::parse(&bytes);
        }
    }
}
