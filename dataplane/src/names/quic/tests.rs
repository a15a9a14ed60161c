use proptest::prelude::*;

use super::packet::Version;
use super::packet::seal::{initial, number};
use super::*;

macro_rules! caught {
    ($name:literal) => {
        datagrams(include_bytes!(concat!("../../../../tests/fuzz/corpus/quic_initial/", $name)))
    };
}

/// Each has its length before it.
fn datagrams(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (datagram, rest) = rest.split_at(u16::from_le_bytes(*length).into());
        found.push(datagram);
        bytes = rest;
    }
    found
}

fn hello(server_name: Option<&str>, alpn: &[&str]) -> Hello {
    let alpn = alpn.iter().map(|protocol| (*protocol).into()).collect();
    Hello { server_name: server_name.map(str::to_owned), alpn, ech: false, is_cut: false }
}

/// Of a flow with these datagrams: what is told, and with which of them.
fn told(datagrams: &[&[u8]]) -> Option<(usize, Hello)> {
    let mut initials = Initials::default();
    let all: Vec<_> = datagrams.iter().enumerate().filter_map(|(at, d)| Some((at, initials.add(d)?))).collect();
    assert!(all.len() <= 1);
    all.into_iter().next()
}

/// RFC 9001, A.2, and RFC 9369, A.2; the others were made by `tests/programs/datagrams.py`.
#[test]
fn first_flights_of_real_clients() {
    for (caught, expected) in [
        (caught!("rfc9001-a2"), hello(Some("example.com"), &["alpn"])),
        (caught!("rfc9369-a2"), hello(Some("example.com"), &["alpn"])),
        (caught!("aioquic-v1"), hello(Some("aioquic.example"), &["h3"])),
        (caught!("aioquic-v2"), hello(Some("second.example"), &["h3", "hq-interop"])),
        (caught!("aioquic-no-name"), hello(None, &["h3"])),
        (caught!("aioquic-retried"), hello(Some("retried.example"), &["h3"])),
        (caught!("aioquic-early-data"), hello(Some("resumed.example"), &["h3"])),
    ] {
        assert_eq!(told(&caught), Some((0, expected.clone())));
        for end in 0..caught[0].len() {
            // Behind the packet there may be another, or padding.
            let found = told(&[&caught[0][..end]]);
            assert!(found.is_none() || end > 300 && found == Some((0, expected.clone())), "{end}: {found:?}");
        }
    }
    let whole = caught!("rfc9001-a2")[0];
    assert!((0..whole.len()).all(|end| told(&[&whole[..end]]).is_none()), "what is cut cannot be trusted");
}

/// Its hello comes shuffled, in two datagrams; the third one repeats.
#[test]
fn first_flight_of_a_browser() {
    let caught = caught!("chromium");
    let (at, hello) = told(&caught).expect("a hello");
    assert_eq!((at, hello.server_name.as_deref(), hello.is_cut), (1, Some("chromium.example"), false));
    assert_eq!((hello.alpn, hello.ech), (vec!["h3".into()], true));
    assert_eq!(told(&[caught[1], caught[0]]).map(|(at, _)| at), Some(1));
    let mut initials = Initials::default();
    assert_eq!(initials.add(caught[1]), None);
    assert_eq!(initials.so_far(), None, "its beginning is in the first one");
}

#[test]
fn a_hello_of_several_datagrams() {
    let caught = caught!("aioquic-long");
    let expected = hello(Some("long.example"), &["h3"]);
    assert_eq!(told(&caught), Some((2, expected.clone())));
    assert_eq!(told(&[caught[2], caught[0], caught[1]]), Some((2, expected.clone())), "in any order");
    // Two datagrams that the kernel of the client cuts apart later.
    assert_eq!(told(&[&caught[..2].concat(), caught[2]]), Some((1, expected)));
    let mut initials = Initials::default();
    assert_eq!((initials.add(caught[0]), initials.add(caught[1])), (None, None));
    let so_far = initials.so_far().expect("a beginning");
    assert!(so_far.is_cut && !initials.is_done());
    // The last one is lost: what is there is told.
    assert_eq!(initials.add(&[0; 9]), Some(so_far));
    assert!(initials.is_done() && initials.so_far().is_none());
    assert_eq!(
        told(&[caught[0], b"", b"", caught[1], caught[2]]).map(|(at, hello)| (at, hello.is_cut)),
        Some((2, true))
    );
}

#[test]
fn what_is_no_first_packet_of_a_client_is_none() {
    for (what, caught) in [
        ("a server's first packet", caught!("rfc9001-a3")),
        ("a server's first packet", caught!("rfc9369-a3")),
        ("a server", caught!("aioquic-server")),
        ("a client that goes on", caught!("aioquic-second-flight")),
        ("a retry", caught!("aioquic-retry")),
        ("a negotiation", caught!("aioquic-negotiation")),
    ] {
        assert_eq!(told(&caught), None, "{what}");
    }
    let good = caught!("rfc9001-a2")[0];
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        assert_eq!(told(&[&bytes, &bytes, &bytes]), None, "byte {at} was changed");
    }
}

/// A frame of the stream.
fn crypto(offset: usize, piece: &[u8]) -> Vec<u8> {
    [&[6], number(offset).as_slice(), &number(piece.len()), piece].concat()
}

/// The hello of a browser, without its record.
fn browser() -> (&'static [u8], Hello) {
    let bytes = include_bytes!("../../../../tests/fuzz/corpus/client_hello/chrome");
    (&bytes[5..], Hello { ech: true, ..hello(Some("chrome.example"), &["h2", "http/1.1"]) })
}

#[test]
fn a_later_packet_is_for_the_id_that_the_server_has_chosen() {
    let (message, expected) = browser();
    let origin: &[u8] = b"original";
    let first = initial(Version::V1, origin, [origin, b"me"], b"", 0, &crypto(0, &message[..1000]));
    let ack = [2, 0, 0, 0, 0];
    let second =
        initial(Version::V1, origin, [b"srv", b"me"], b"", 1, &[&ack[..], &crypto(1000, &message[1000..])].concat());
    assert_eq!(told(&[&first, &second]), Some((1, expected.clone())));
    assert_eq!(told(&[&second, &first]), None, "its keys are not known before");
    // After a retry: keys of the id that the server has chosen, however short, and a token.
    let again = initial(Version::V1, b"r", [b"r", b"me"], b"token", 1, &crypto(1000, &message[1000..]));
    assert_eq!(told(&[&first, &again]), Some((1, expected)));
    let without_token = initial(Version::V1, b"r", [b"r", b"me"], b"", 1, &crypto(0, message));
    assert_eq!(told(&[&without_token]), None);
}

#[test]
fn a_datagram_is_of_one_connection() {
    let (message, expected) = browser();
    let packet = |id: &[u8], offset: usize, piece: &[u8]| {
        initial(Version::V2, id, [id, b""], b"", offset as u32, &crypto(offset, piece))
    };
    let (a, b) = (packet(b"aaaaaaaa", 0, &message[..900]), packet(b"aaaaaaaa", 900, &message[900..]));
    assert_eq!(told(&[&[&a[..], &b, &[0; 30]].concat()]), Some((0, expected)), "two packets");
    let other = packet(b"bbbbbbbb", 900, &message[900..]);
    assert_eq!(told(&[&[&a[..], &other].concat()]), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(head in prop::sample::select(vec![0xc0u8, 0xd3, 0xe0, 0xf0]),
        tail in prop::collection::vec(any::<u8>(), 0..200), id in 0u8..24) {
        let mut initials = Initials::default();
        for version in [[0, 0, 0, 1], [0x6b, 0x33, 0x43, 0xcf]] {
            prop_assert_eq!(initials.add(&[&[head], &version[..], &[id], &tail].concat()), None);
        }
        let _ = (initials.add(&tail), frames(&tail));
    }

    /// As browsers send it: shuffled pieces, padding in between, over one to three datagrams.
    #[test]
    fn a_shuffled_hello_is_put_together(
        breaks in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        order in Just(()).prop_perturb(|(), mut rng| rng.random::<u64>()),
        (count, second, numbers) in (1usize..4, any::<bool>(), 0u32..100_000),
        id in prop::collection::vec(any::<u8>(), 8..21),
        token in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (message, expected) = browser();
        let version = if second { Version::V2 } else { Version::V1 };
        let mut ends: Vec<_> = breaks.iter().map(|at| at.index(message.len())).collect();
        ends.extend([0, message.len()]);
        ends.sort_unstable();
        ends.dedup();
        let mut pieces: Vec<_> = ends.windows(2).map(|pair| crypto(pair[0], &message[pair[0]..pair[1]])).collect();
        let length = pieces.len();
        for at in 0..length {
            pieces.swap(at, (order.rotate_left(at as u32 * 7) % length as u64) as usize);
        }
        let per_datagram = length.div_ceil(count);
        let sent: Vec<_> = pieces.chunks(per_datagram).enumerate().map(|(at, pieces)| {
            let frames = pieces.join(&[0, 0, 1, 0][..]);
            initial(version, &id, [&id, b"me"], &token, numbers + at as u32, &frames)
        }).collect();
        let sent: Vec<_> = sent.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(told(&sent), Some((sent.len() - 1, expected)));
    }
}
