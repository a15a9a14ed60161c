use proptest::prelude::*;

use super::*;

macro_rules! caught {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/fuzz/corpus/client_hello/", $name)).as_slice()
    };
}

fn hello(server_name: Option<&str>, alpn: &[&str]) -> Hello {
    let alpn = alpn.iter().map(|protocol| (*protocol).into()).collect();
    Hello { server_name: server_name.map(str::to_owned), alpn, ech: false, is_cut: false }
}

/// `tests/programs/hellos.py` caught them. Browsers are those that curl_cffi imitates, with their TLS library, and a real
/// Chromium 153.
#[test]
fn hellos_of_real_clients() {
    let web = ["h2", "http/1.1"];
    for (caught, expected) in [
        (caught!("curl"), hello(Some("curl.example"), &web)),
        (caught!("openssl-alpn"), hello(Some("openssl.example"), &["h2", "http/1.1", "acme-tls/1", "a"])),
        (caught!("openssl-tls12"), hello(Some("old.example"), &[])),
        (caught!("openssl-no-name"), hello(None, &[])),
        (caught!("openssl-resumed-tls1_2"), hello(Some("resumed.example"), &[])),
        (caught!("openssl-resumed-tls1_3"), hello(Some("resumed.example"), &[])),
        (caught!("python"), hello(Some("python.example"), &[])),
        (caught!("python-address"), hello(None, &[])),
        (caught!("node"), hello(Some("node.example"), &["h2"])),
        (caught!("edge"), hello(Some("edge.example"), &web)),
        (caught!("safari"), hello(Some("safari.example"), &web)),
        (caught!("firefox"), Hello { ech: true, ..hello(Some("firefox.example"), &web) }),
        (caught!("chromium"), Hello { ech: true, ..hello(Some("chromium.example"), &web) }),
        (caught!("rustls"), hello(Some("rustls.example"), &web)),
        // To the front, and within to secret.example.
        (caught!("rustls-ech"), Hello { ech: true, ..hello(Some("front.example"), &["h2"]) }),
        (caught!("crafted-records"), hello(Some("records.example"), &[])),
        (caught!("crafted-two-names"), hello(None, &[])),
        (caught!("crafted-ech"), Hello { ech: true, ..hello(Some("front.example"), &[]) }),
        (caught!("chrome"), Hello { ech: true, ..hello(Some("chrome.example"), &web) }),
    ] {
        assert_eq!(client_hello(caught), Some(expected.clone()));
        for end in 0..caught.len() {
            let Some(found) = client_hello(&caught[..end]) else {
                assert!(end < RECORD_HEADER + HANDSHAKE_HEADER, "{end}");
                continue;
            };
            // What would make the name uncertain may be missing.
            let is_twice = caught == caught!("crafted-two-names");
            assert!(found.is_cut && (is_part_of(&found, &expected) || is_twice), "{end}: {found:?}");
        }
    }
    let plain = caught!("crafted-no-records");
    assert_eq!((client_hello(plain), handshake(plain)), (None, Some(hello(Some("plain.example"), &[]))));
    assert!([caught!("chrome"), caught!("firefox"), caught!("safari")].iter().all(|caught| caught.len() > 1500));
}

/// Nothing is told of the beginning that would not be told of the whole.
fn is_part_of(part: &Hello, whole: &Hello) -> bool {
    (part.server_name.is_none() || part.server_name == whole.server_name)
        && whole.alpn.starts_with(&part.alpn)
        && (whole.ech || !part.ech)
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &(content.len() as u16).to_be_bytes(), content].concat()
}

fn name_extension(name: &[u8]) -> Vec<u8> {
    let length = name.len() as u16;
    let list = [&[0], length.to_be_bytes().as_slice(), name].concat();
    extension(EXTENSION_SERVER_NAME, &[&(list.len() as u16).to_be_bytes(), list.as_slice()].concat())
}

fn alpn_extension(names: &[&[u8]]) -> Vec<u8> {
    let list = names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect::<Vec<_>>();
    extension(EXTENSION_ALPN, &[&(list.len() as u16).to_be_bytes(), list.as_slice()].concat())
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32).to_be_bytes();
    [&[CLIENT_HELLO], &length[1..], body].concat()
}

fn composed(extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = extensions.concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[4, 1, 2, 3, 4],
        &[0, 4, 0x0a, 0x0a, 0x13, 0x01],
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ];
    with_header(&body.concat())
}

fn records<'a>(fragments: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let record = |fragment: &[u8]| [&[22, 3, 1], (fragment.len() as u16).to_be_bytes().as_slice(), fragment].concat();
    fragments.into_iter().flat_map(record).collect()
}

fn named(extensions: &[Vec<u8>]) -> Option<String> {
    client_hello(&records([composed(extensions).as_slice()])).expect("a hello").server_name
}

#[test]
fn a_name_that_is_not_certain_is_none() {
    assert_eq!(named(&[name_extension(b"A.example")]).as_deref(), Some("a.example"));
    for name in ["10.0.0.1", "::1", "a b", "", "a.example\0.b.example", "bücher.example", "<script>"] {
        assert_eq!(named(&[name_extension(name.as_bytes())]), None, "{name}");
    }
    let [a, b] = [b"a.example", b"b.example"].map(|name| name_extension(name));
    assert_eq!(named(&[a.clone(), b.clone()]), None, "two extensions");
    assert_eq!(named(&[a.clone(), b, a]), None, "three of them");
    let two_names = [&[0, 8][..], &[0, 0, 1, b'a'], &[0, 0, 1, b'b']].concat();
    assert_eq!(named(&[extension(EXTENSION_SERVER_NAME, &two_names)]), None);
    for odd in [&[0, 4, 1, 0, 1, b'a'][..], &[0, 5, 0, 0, 1, b'a'], &[0, 4, 0, 0, 2, b'a'], &[0, 0], &[]] {
        assert_eq!(named(&[extension(EXTENSION_SERVER_NAME, odd)]), None, "{odd:?}");
    }
}

#[test]
fn protocols_are_few_short_and_printable() {
    let long = [b'x'; PROTOCOL_MAX + 1];
    let names: [&[u8]; 9] =
        [&[0x0a, 0x0a], &[0xfa, 0xfa], b"h\x1b", &long, b"kk", &long[1..], b"h3", b"http/1.1", b"fifth"];
    let found = client_hello(&records([composed(&[alpn_extension(&names)]).as_slice()])).expect("a hello");
    let expected: Vec<Box<str>> = vec!["kk".into(), "x".repeat(PROTOCOL_MAX).into(), "h3".into(), "http/1.1".into()];
    assert_eq!(found.alpn, expected);
    let odd = extension(EXTENSION_ALPN, &[0, 9, 2, b'h', b'2']);
    assert!(client_hello(&records([composed(&[odd]).as_slice()])).expect("a hello").alpn.is_empty());
}

#[test]
fn what_is_no_hello_is_none() {
    let message = composed(&[name_extension(b"a.example")]);
    let good = records([message.as_slice()]);
    assert!(client_hello(&good).is_some());
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        client_hello(&bytes)
    };
    for (at, to, what) in [
        (0, 23, "data"),
        (1, 2, "SSL 2"),
        (5, 2, "a server's hello"),
        (9, 2, "version"),
        (43, 33, "session id"),
        (49, 3, "odd ciphers"),
        (54, 0, "compression"),
        (57, 0, "extensions that end before the message does"),
        (60, 0xff, "an extension that is longer than all"),
    ] {
        assert_eq!(changed(at, to), None, "{what}");
    }
    assert_eq!(client_hello(&[22, 3, 1, 0, 0, 22, 3, 1, 0, 1]), None, "an empty record");
    assert_eq!(client_hello(&[22, 3, 1, 0xff, 0xff, 1, 0, 0, 200]), None, "a record that is too long");
    assert_eq!(client_hello(&[&records([&message[..20]])[..], &[23, 3, 3, 0, 9]].concat()), None, "data in between");
    assert_eq!(client_hello(b"GET / HTTP/1.1\r\n\r\n"), None);
    // No extensions at all, as before TLS 1.0 was extended.
    let plain = with_header(&[&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 5, 1, 0]].concat());
    assert_eq!(handshake(&plain), Some(Hello::default()));
}

#[test]
fn what_follows_the_hello_does_not_matter() {
    let message = composed(&[name_extension(b"a.example")]);
    let early = [&records([message.as_slice()])[..], &[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 9, 9]].concat();
    assert_eq!(client_hello(&early), Some(hello(Some("a.example"), &[])));
    assert_eq!(handshake(&[&message[..], b"more"].concat()), Some(hello(Some("a.example"), &[])));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = client_hello(&bytes);
        let _ = handshake(&bytes);
        let _ = client_hello(&records([bytes.as_slice()]));
        let _ = handshake(&with_header(&bytes));
        let _ = handshake(&composed(&[bytes]));
    }

    #[test]
    fn one_changed_byte_never_panics(at in any::<prop::sample::Index>(), to in any::<u8>(), end in any::<prop::sample::Index>()) {
        let mut bytes = caught!("chrome").to_vec();
        let length = bytes.len();
        bytes[at.index(length)] = to;
        let _ = client_hello(&bytes);
        let _ = client_hello(&bytes[..end.index(length)]);
    }

    /// Over several records, with extensions that nobody knows, in any order, and cut anywhere.
    #[test]
    fn what_was_put_in_is_found(
        unknown in prop::collection::vec((prop::sample::select(vec![10u16, 21, 41, 43, 51, 0x0a0a, 0xfafa]),
            prop::collection::vec(any::<u8>(), 0..700)), 0..6),
        (order, breaks) in (any::<u64>(), prop::collection::vec(any::<prop::sample::Index>(), 0..4)),
        (ech, end) in (any::<bool>(), any::<prop::sample::Index>()),
    ) {
        let mut extensions: Vec<_> = unknown.iter().map(|(kind, content)| extension(*kind, content)).collect();
        let mut known = vec![name_extension(b"name.example"), alpn_extension(&[b"h2", b"h3"])];
        if ech {
            known.push(extension(EXTENSION_ECH, &[0; 40]));
        }
        for (number, known) in known.into_iter().enumerate() {
            let at = (order >> (8 * number)) as usize % (extensions.len() + 1);
            extensions.insert(at, known);
        }
        let message = composed(&extensions);
        let mut breaks: Vec<_> = breaks.iter().map(|at| 1 + at.index(message.len() - 1)).collect();
        breaks.extend([0, message.len()]);
        breaks.sort_unstable();
        breaks.dedup();
        let stream = records(breaks.windows(2).map(|pair| &message[pair[0]..pair[1]]));
        let expected = Hello { ech, ..hello(Some("name.example"), &["h2", "h3"]) };
        prop_assert_eq!(client_hello(&stream), Some(expected.clone()));
        if let Some(found) = client_hello(&stream[..end.index(stream.len())]) {
            prop_assert!(found.is_cut && is_part_of(&found, &expected), "{:?}", found);
        }
    }
}
