//! What counts as the name of a host: one rule for whoever reads such names from the wire.

/// Longest name, without the dot of the root (RFC 1035).
const NAME_MAX: usize = 253;
/// Longest part of a name between two dots.
const LABEL_MAX: usize = 63;

/// The name in lower case and without the dot of the root, or none if it is not a host's: only letters, digits, `-`, `_`
/// and dots, no empty part, and no address. Punycode stays as it is.
#[must_use]
pub fn host_name(name: &[u8]) -> Option<String> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.len() > NAME_MAX {
        return None;
    }
    let is_label = |label: &[u8]| {
        (1..=LABEL_MAX).contains(&label.len())
            && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let mut last: &[u8] = &[];
    for label in name.split(|b| *b == b'.') {
        if !is_label(label) {
            return None;
        }
        last = label;
    }
    if is_number(last) {
        return None;
    }
    String::from_utf8(name.to_ascii_lowercase()).ok()
}

/// Whatever ends in a number is read as an IPv4 address: `127.1`, `0x7f000001` and `2130706433` are 127.0.0.1. No domain
/// at the top is one.
fn is_number(label: &[u8]) -> bool {
    match label {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_hosts() {
        for (name, expected) in [
            ("example.com", "example.com"),
            ("WWW.Example.COM.", "www.example.com"),
            ("redis", "redis"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_dmarc.r3---sn-4g5e6nsz.x-", "_dmarc.r3---sn-4g5e6nsz.x-"),
            ("1.0.0.127.in-addr.arpa", "1.0.0.127.in-addr.arpa"),
            ("0xyz", "0xyz"),
        ] {
            assert_eq!(host_name(name.as_bytes()).as_deref(), Some(expected));
        }
        let long = ["a".repeat(63).as_str(); 4].join(".");
        assert_eq!(long.len(), 255);
        assert_eq!(host_name(&long.as_bytes()[2..]).map(|name| name.len()), Some(253));
        let none = [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a b",
            "a:80",
            "[::1]",
            "::1",
            "fe80::1%eth0",
            "1.2.3.4",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0x7F000001",
            "a.0x",
            "bücher.example",
            "a/b",
            "<b>",
            "a\0b",
            "*.example.com",
            "a.b..",
            &long,
            &"a".repeat(64),
        ];
        for name in none {
            assert_eq!(host_name(name.as_bytes()), None, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_stays_itself(name in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(found) = host_name(&name) {
                prop_assert!(found.len() <= NAME_MAX && found.len() + 1 >= name.len());
                prop_assert_eq!(host_name(found.as_bytes()), Some(found.clone()));
                prop_assert!(found.parse::<std::net::IpAddr>().is_err());
            }
        }

        #[test]
        fn what_is_put_together_from_labels_is_a_name(name in "[a-z0-9_-]{1,63}(\\.[a-z0-9_-]{1,60}){0,2}\\.[a-z]{2,9}") {
            prop_assert_eq!(host_name(name.as_bytes()), Some(name.clone()));
            prop_assert_eq!(host_name(name.to_uppercase().as_bytes()), Some(name));
        }

        #[test]
        fn no_address_is_a_name(address in any::<std::net::IpAddr>()) {
            prop_assert_eq!(host_name(address.to_string().as_bytes()), None);
        }
    }
}
