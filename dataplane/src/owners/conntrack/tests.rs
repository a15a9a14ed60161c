use std::net::IpAddr;

use proptest::prelude::*;

use super::message::{put_count, put_question};
use super::*;

fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint { addr: address.parse::<IpAddr>().unwrap().into(), port }
}

fn tuple(from: (&str, u16), to: (&str, u16)) -> Tuple {
    Tuple { from: endpoint(from.0, from.1), to: endpoint(to.0, to.1) }
}

fn read(bytes: &[u8]) -> Vec<(u32, Answer)> {
    let mut found = Vec::new();
    read_answers(bytes, |sequence, answer| found.push((sequence, answer)));
    found
}

/// As a kernel (6.18) has answered.
const MASQUERADED: &[u8] = include_bytes!("../../../../tests/fuzz/corpus/conntrack/masqueraded");
const TRANSLATED_V6: &[u8] = include_bytes!("../../../../tests/fuzz/corpus/conntrack/translated-v6");
const NONE: &[u8] = include_bytes!("../../../../tests/fuzz/corpus/conntrack/none");
const COUNT: &[u8] = include_bytes!("../../../../tests/fuzz/corpus/conntrack/count");

#[test]
fn answers_of_a_kernel() {
    let [(_, Answer::Entry(6, found))] = read(MASQUERADED)[..] else { panic!("{:?}", read(MASQUERADED)) };
    assert!(found.is_translated());
    assert_eq!((found.original.to, found.reply.from), (endpoint("10.96.0.80", 80), endpoint("10.72.0.2", 8000)));
    assert_eq!(found.reply.to.addr, endpoint("10.72.0.1", 0).addr);
    let [(_, Answer::Entry(17, found))] = read(TRANSLATED_V6)[..] else { panic!("{:?}", read(TRANSLATED_V6)) };
    assert_eq!((found.original.to, found.reply.from), (endpoint("fd00:96::53", 53), endpoint("fd00:72::2", 5300)));
    assert!(matches!(read(NONE)[..], [(_, Answer::None)]), "{:?}", read(NONE));
    assert!(matches!(read(COUNT)[..], [(_, Answer::Count(1..))]), "{:?}", read(COUNT));
    for answer in [MASQUERADED, TRANSLATED_V6, NONE, COUNT] {
        assert!((0..answer.len()).all(|end| read(&answer[..end]).is_empty()), "what is cut is no answer");
        assert_eq!(read(&[answer, answer].concat()).len(), 2);
    }
}

#[test]
fn errors_name_their_remedy() {
    for (errno, remedy) in
        [(Errno::PERM, "CAP_NET_ADMIN"), (Errno::INVAL, "modprobe"), (Errno::PROTONOSUPPORT, "modprobe")]
    {
        let said = Error::from(errno).to_string();
        assert!(said.contains(remedy) && said.lines().count() == 1, "{said}");
    }
    assert!(matches!(Error::from(Errno::NOMEM), Error::Io(_)));
}

#[test]
fn tracked_is_not_translated() {
    let original = tuple(("10.0.0.1", 1000), ("10.96.0.80", 80));
    let with = |reply: Tuple| Translated { original, reply }.is_translated();
    assert!(!with(original.reversed()));
    assert!(with(tuple(("10.0.0.2", 80), ("10.0.0.1", 1000))));
    assert!(with(tuple(("10.96.0.80", 80), ("10.0.0.1", 1001))), "a port alone");
}

#[test]
fn addresses_of_two_versions_are_not_asked_for() {
    let mut out = Vec::new();
    assert!(!put_question(&mut out, 1, Proto::Tcp, tuple(("10.0.0.1", 1), ("::1", 2))));
    assert!(out.is_empty());
    put_count(&mut out, 7);
    assert_eq!(out.len(), 20);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<prop::sample::Index>()) {
        prop_assert!(read(&bytes).len() <= bytes.len() / 16);
        let mut changed = MASQUERADED.to_vec();
        let at = cut.index(changed.len());
        changed[at] = bytes.first().copied().unwrap_or(0xff);
        prop_assert!(read(&changed).len() <= 1);
    }

    /// What is asked has the form of an answer, but for its kind and the reply.
    #[test]
    fn a_question_names_the_tuple(from in any::<(IpAddr, u16)>(), port in any::<u16>(), sequence in any::<u32>()) {
        let to = match from.0 { IpAddr::V4(_) => "192.0.2.1", IpAddr::V6(_) => "2001:db8::1" };
        let asked = Tuple { from: Endpoint { addr: from.0.into(), port: from.1 }, to: endpoint(to, port) };
        // An IPv4 address in IPv6 is one of IPv4.
        prop_assume!(matches!(asked.from.addr.ip(), IpAddr::V4(_)) == from.0.is_ipv4());
        let mut out = Vec::new();
        prop_assert!(put_question(&mut out, sequence, Proto::Udp, asked));
        let (header, tuple) = out.split_at(20);
        prop_assert_eq!(u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize, out.len());
        // The same tuple again, as the reply.
        let mut reply = tuple.to_vec();
        reply[2] = 2;
        let mut entry = [header, tuple, &reply].concat();
        let length = (entry.len() as u32).to_ne_bytes();
        entry[..4].copy_from_slice(&length);
        entry[4..6].copy_from_slice(&256_u16.to_ne_bytes());
        prop_assert_eq!(read(&entry), vec![(sequence, Answer::Entry(17, Translated { original: asked, reply: asked }))]);
    }
}
