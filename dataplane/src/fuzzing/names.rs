//! What clients say at the beginning of their connections.

use super::input::{Input, assert_clean};
use crate::names::dns::{Message, in_segment};
use crate::names::quic::{Initials, frames};
use crate::names::tls::{Hello, handshake};
use crate::names::{hosts, http, tls};

/// Longest name of a host, bytes.
const NAME_MAX: usize = 253;

/// A name as the wire has it.
pub fn host_name(data: &[u8]) {
    if let Some(name) = hosts::host_name(data) {
        assert_host(&name, data.len());
    }
}

/// A message of DNS, and the same bytes as a segment of TCP after one that held a length.
pub fn dns_message(data: &[u8]) {
    if let Some(message) = Message::parse(data) {
        assert_clean(&message.name, 2048);
        assert!(message.addresses.len() <= 64 && (message.is_answer || message.addresses.is_empty()));
        if message.is_host {
            assert_host(&message.name, data.len());
        }
    }
    let mut expected = data.first().map(|length| u16::from(*length));
    for message in in_segment(data, data.len(), &mut expected) {
        assert!(message.len() >= 12 && message.len() <= data.len());
        let _ = Message::parse(message);
    }
}

/// A TLS client's first bytes, with records and without them.
pub fn client_hello(data: &[u8]) {
    for read in [tls::client_hello, handshake] {
        if let Some(whole) = read(data) {
            assert_hello(&whole, data.len());
            let half = read(&data[..data.len() / 2]).unwrap_or_default();
            // Behind the half there may be a second name, and then there is none.
            let names = [&half.server_name, &whole.server_name];
            assert!(names.iter().any(|name| name.is_none()) || names[0] == names[1]);
            assert!(half.alpn.len() <= whole.alpn.len() && (whole.ech || !half.ech));
        }
    }
}

/// An HTTP client's first bytes.
pub fn request_host(data: &[u8]) {
    if let Some(host) = http::request_host(data) {
        assert_host(&host.name, data.len());
    }
}

/// A QUIC client's first datagrams, each with its length in two bytes before it, and the same bytes as what is in one.
pub fn quic_initial(data: &[u8]) {
    let (mut input, mut initials, mut told) = (Input(data), Initials::default(), 0);
    while !input.is_empty() {
        let length = input.u16();
        let hello = initials.add(input.take(length.into()));
        told += usize::from(hello.is_some());
        for hello in hello.into_iter().chain(initials.so_far()) {
            assert_hello(&hello, data.len());
        }
    }
    assert!(told <= 1, "told {told} times");
    if let Some(hello) = frames(data) {
        assert_hello(&hello, data.len());
    }
}

fn assert_hello(hello: &Hello, most: usize) {
    if let Some(name) = &hello.server_name {
        assert_host(name, most);
    }
    assert!(hello.alpn.len() <= 4);
    for protocol in &hello.alpn {
        assert_clean(protocol, 32.min(most));
        assert!(!protocol.is_empty());
    }
}

/// A name stays itself, is short, and is no address.
fn assert_host(name: &str, most: usize) {
    assert_clean(name, most.min(NAME_MAX));
    assert_eq!(hosts::host_name(name.as_bytes()).as_deref(), Some(name));
    assert!(name.parse::<std::net::IpAddr>().is_err() && !name.is_empty());
}
