//! The first request of an HTTP/1.x client, which may be cut anywhere.

use super::hosts::host_name;

/// What is looked at of one head, bytes, and its most headers.
const HEAD_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 100;
/// RFC 9110, RFC 5789, and those of WebDAV and its relatives: a request of other methods is none.
const METHODS: [&str; 22] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "PURGE",
    "BIND",
    "ACL",
];

/// Whom a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// In lower case, without its port.
    pub name: String,
    /// The peer is to reach that host on the client's behalf: this is not the peer's own name.
    pub by_proxy: bool,
}

/// Reads the beginning of what a client sends in a TCP connection, from the first byte on and as much as there is. None
/// if it is no request, if it names no host, an address, or more than one, or if its end is missing before that.
#[must_use]
pub fn request_host(first_payload: &[u8]) -> Option<Host> {
    let payload = &first_payload[..first_payload.len().min(HEAD_MAX)];
    if !begins_with_a_method(payload) {
        return None;
    }
    match read_head(payload) {
        Head::Whole(host) => host,
        Head::Cut => {
            // Up to the last line that is whole, and as if the head ended there.
            let lines = payload.iter().rposition(|b| *b == b'\n')? + 1;
            match read_head(&[&payload[..lines], b"\r\n"].concat()) {
                Head::Whole(host) => host,
                Head::Cut => None,
            }
        }
    }
}

/// Most of what is no request is seen to be none here.
fn begins_with_a_method(payload: &[u8]) -> bool {
    let method = payload.split(|b| *b == b' ').next().unwrap_or_default();
    METHODS.iter().any(|known| known.as_bytes() == method)
}

enum Head {
    Whole(Option<Host>),
    Cut,
}

fn read_head(head: &[u8]) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => Head::Whole(asked_for(&request)),
        Ok(httparse::Status::Partial) => Head::Cut,
        Err(_) => Head::Whole(None),
    }
}

/// RFC 9112, 3.2: a target that names the host goes before the header, and two headers are a fault.
fn asked_for(request: &httparse::Request<'_, '_>) -> Option<Host> {
    let target = request.path?;
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let (header, other) = (hosts.next(), hosts.next());
    if other.is_some() {
        return None;
    }
    let (authority, by_proxy) = if request.method == Some("CONNECT") {
        (target.as_bytes(), true)
    } else if target.starts_with('/') || target == "*" {
        (header?.value, false)
    } else {
        (authority_of(target)?, true)
    };
    Some(Host { name: host_name(without_port(authority)?)?, by_proxy })
}

/// `host:port` of `scheme://user:password@host:port/path`: what is before the sign is nobody's business.
fn authority_of(target: &str) -> Option<&[u8]> {
    let (scheme, rest) = target.split_once("://")?;
    let is_scheme = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    // Of what is before a backslash some programs make the host, and some do not.
    if !is_scheme || scheme.is_empty() || rest.contains('\\') {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    Some(authority.rsplit('@').next()?.as_bytes())
}

/// RFC 3986, 3.2.3: a port has digits, or none. Addresses of IPv6 are left as they are.
fn without_port(authority: &[u8]) -> Option<&[u8]> {
    let Some(colon) = authority.iter().position(|b| *b == b':') else { return Some(authority) };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    (port.len() <= 5 && port.iter().all(u8::is_ascii_digit)).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own(name: &str) -> Option<Host> {
        Some(Host { name: name.to_owned(), by_proxy: false })
    }

    fn proxied(name: &str) -> Option<Host> {
        Some(Host { name: name.to_owned(), by_proxy: true })
    }

    #[test]
    fn requests_name_their_host() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: Example.com\r\nAccept: */*\r\n\r\n", own("example.com")),
            ("GET /a?b HTTP/1.1\r\nAccept: */*\r\nhOST:\t api.example.com:8080 \r\n\r\nbody", own("api.example.com")),
            ("OPTIONS * HTTP/1.1\r\nHost: redis:\r\n\r\n", own("redis")),
            ("POST / HTTP/1.0\nHost: a.example\n\n", own("a.example")),
            ("PROPFIND /dav HTTP/1.1\r\nHost: dav.example\r\n\r\n", own("dav.example")),
            ("GET http://u:p@w@b.example:80/x HTTP/1.1\r\nHost: proxy.example\r\n\r\n", proxied("b.example")),
            ("GET http://b.example HTTP/1.1\r\n\r\n", proxied("b.example")),
            ("CONNECT c.example:443 HTTP/1.1\r\nHost: d.example\r\n\r\n", proxied("c.example")),
            // Addresses.
            ("GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", None),
            ("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
            ("GET http://10.0.0.1/ HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
            // No host, more than one, or nonsense.
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example\r\nhost: a.example\r\n\r\n", None),
            ("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: user@a.example\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example:80:90\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: a.example:http\r\n\r\n", None),
            ("GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost : a.example\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nX: y\r\n Host: a.example\r\n\r\n", None),
            ("GET http://a.example\\@b.example/ HTTP/1.1\r\n\r\n", None),
            ("GET ://a.example/ HTTP/1.1\r\n\r\n", None),
            ("HELO / HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
            ("get / HTTP/1.1\r\nHost: a.example\r\n\r\n", None),
            ("GET / HTTP/3.1\r\nHost: a.example\r\n\r\n", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nHost: a.example\r\n\r\n", None),
        ] {
            assert_eq!(request_host(head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn a_cut_head_is_read_up_to_its_last_whole_line() {
        let head = "GET / HTTP/1.1\r\nAccept: */*\r\nHost: www.example.com\r\nCookie: secret\r\nHost: b\r\n\r\n";
        let (known, twice) = (head.find("Cookie").unwrap(), head.find("\r\n\r\n").unwrap() + 2);
        for end in 0..=head.len() {
            let expected = if (known..twice).contains(&end) { own("www.example.com") } else { None };
            assert_eq!(request_host(&head.as_bytes()[..end]), expected, "{end}: {:?}", &head[..end]);
        }
        let proxied_head = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.exam";
        assert_eq!(request_host(proxied_head.as_bytes()), proxied("a.example"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(method in prop::sample::select(&METHODS[..]), tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = request_host(&tail);
            let _ = request_host(&[method.as_bytes(), b" ", &tail].concat());
            let _ = request_host(&[method.as_bytes(), b" / HTTP/1.1\r\nHost: ", &tail, b"\r\n"].concat());
        }

        #[test]
        fn a_cut_changes_nothing_but_the_coverage(
            lines in prop::collection::vec("(X-[A-Za-z]{1,8}: [ -~]{0,20}|Connection: close)\r\n", 0..6),
            at in any::<prop::sample::Index>(),
            end in any::<prop::sample::Index>(),
            port in prop::option::of(any::<u16>()),
        ) {
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            let at = at.index(lines.len() + 1);
            let (before, after) = (lines[..at].concat(), lines[at..].concat());
            let head = format!("PUT /x HTTP/1.1\r\n{before}Host: name.example{port}\r\n{after}\r\n");
            prop_assert_eq!(request_host(head.as_bytes()), own("name.example"));
            let found = request_host(&head.as_bytes()[..end.index(head.len())]);
            prop_assert!(found.is_none() || found == own("name.example"));
        }
    }
}
