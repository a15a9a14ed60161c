//! What clients themselves say at the beginning: whom they mean by TLS, HTTP or QUIC.

use std::sync::Arc;

use hashbrown::HashMap;

use super::quic::Initials;
use super::table::Source;
use super::{http, tls};
use crate::model::flow::Addr;

/// Connections whose beginning is known.
const KNOWN_MAX: usize = 16_384;
/// Connections of QUIC whose beginning is not complete.
const INITIALS_MAX: usize = 1024;
/// A beginning is of interest for so long.
const KEPT_NS: u64 = 60_000_000_000;

/// How a connection began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Which protocol.
    pub source: Source,
    /// Whom the client means, if it said so.
    pub name: Option<Arc<str>>,
    /// That is whoever answers: not so where a proxy is asked to pass it on.
    pub is_peer: bool,
    /// Protocols that the client offers (ALPN), the first one preferred.
    pub alpn: Vec<Box<str>>,
}

/// The socket; of UDP, which has many peers, the peer as well.
pub type Key = (u64, Addr);

/// Beginnings of connections. Owned by the control thread.
#[derive(Default)]
pub struct Hellos {
    known: HashMap<Key, (u64, Arc<Hello>), ahash::RandomState>,
    initials: HashMap<Key, (u64, Box<Initials>), ahash::RandomState>,
}

impl Hellos {
    /// None is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty() && self.initials.is_empty()
    }

    /// Takes the first data of a TCP connection.
    pub fn segment(&mut self, key: Key, data: &[u8], at_ns: u64) {
        let of_tls = || tls::client_hello(data).map(|hello| from_tls(hello, false));
        let of_http = || {
            let host = http::request_host(data)?;
            let name = Some(host.name.into());
            Some(Hello { source: Source::Http, name, is_peer: !host.by_proxy, alpn: Vec::new() })
        };
        if let Some(hello) = of_tls().or_else(of_http) {
            self.learn(key, hello, at_ns);
        }
    }

    /// Takes a datagram that may begin a connection of QUIC.
    pub fn datagram(&mut self, key: Key, data: &[u8], at_ns: u64) {
        if self.initials.len() >= INITIALS_MAX && !self.initials.contains_key(&key) {
            self.initials.clear();
        }
        let (_, initials) = self.initials.entry(key).or_insert_with(|| (at_ns, Box::default()));
        let found = initials.add(data);
        if initials.is_done() {
            self.initials.remove(&key);
        }
        if let Some(hello) = found {
            self.learn(key, from_tls(hello, true), at_ns);
        }
    }

    fn learn(&mut self, key: Key, hello: Hello, at_ns: u64) {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(key, (at_ns, hello.into()));
    }

    /// How the connection of a socket began that was opened then.
    #[must_use]
    pub fn of(&self, key: Key, opened_ns: u64) -> Option<&Arc<Hello>> {
        self.known.get(&key).filter(|(at_ns, _)| *at_ns >= opened_ns).map(|(_, hello)| hello)
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now_ns: u64) {
        self.known.retain(|_, (at_ns, _)| *at_ns + KEPT_NS > now_ns);
        self.initials.retain(|_, (at_ns, _)| *at_ns + KEPT_NS > now_ns);
    }
}

fn from_tls(hello: tls::Hello, is_quic: bool) -> Hello {
    let source = match (is_quic, hello.ech) {
        // Whom the client means is encrypted: the name is that of whoever decrypts it.
        (false, true) => Source::TlsOuter,
        (true, true) => Source::QuicOuter,
        (false, false) => Source::Tls,
        (true, false) => Source::Quic,
    };
    Hello { source, name: hello.server_name.map(Into::into), is_peer: true, alpn: hello.alpn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_of_the_connection_that_was_opened_before() {
        let mut hellos = Hellos::default();
        let key = (7, Addr([0; 16]));
        hellos.segment(key, b"GET / HTTP/1.1\r\nHost: www.example.net:8000\r\n\r\n", 50);
        hellos.segment((8, Addr([0; 16])), b"not a request", 50);
        let hello = hellos.of(key, 40).expect("a hello");
        assert_eq!((hello.name.as_deref(), hello.source, hello.is_peer), (Some("www.example.net"), Source::Http, true));
        assert_eq!(hellos.of(key, 60), None, "the socket has connected again");
        assert_eq!(hellos.of((8, Addr([0; 16])), 40), None);
        hellos.segment(key, b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n\r\n", 70);
        assert!(!hellos.of(key, 60).expect("a hello").is_peer);
        hellos.expire(70 + KEPT_NS);
        assert!(hellos.is_empty());
    }
}
