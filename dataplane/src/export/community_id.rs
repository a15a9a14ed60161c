//! The Community ID of a flow, version 1 (github.com/corelight/community-id-spec): the same in every tool that saw it.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use sha1::{Digest as _, Sha1};

use crate::model::flow::{Endpoint, FlowKey};

/// The version, and SHA-1 in base64.
const LENGTH: usize = 2 + 28;
/// All tools must have the same one.
const SEED: [u8; 2] = [0, 0];

/// 30 characters, as `1:LQU9qZlK+B5F3KDmev6m5PMibrg=`.
pub(super) struct CommunityId([u8; LENGTH]);

impl CommunityId {
    /// The same whichever side is the initiator.
    pub(super) fn new(key: &FlowKey) -> Self {
        let order = |endpoint: &Endpoint| (endpoint.addr.ip(), endpoint.port);
        let mut ends = [&key.initiator, &key.responder];
        ends.sort_unstable_by_key(|endpoint| order(endpoint));
        let mut hash = Sha1::new_with_prefix(SEED);
        for endpoint in ends {
            match endpoint.addr.ip() {
                IpAddr::V4(ip) => hash.update(ip.octets()),
                IpAddr::V6(ip) => hash.update(ip.octets()),
            }
        }
        hash.update([key.proto.number(), 0]);
        ends.into_iter().for_each(|endpoint| hash.update(endpoint.port.to_be_bytes()));
        let mut text = [0; LENGTH];
        text[..2].copy_from_slice(b"1:");
        // 20 bytes are always 28 characters.
        let _ = STANDARD.encode_slice(hash.finalize(), &mut text[2..]);
        Self(text)
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for CommunityId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flow::Proto;

    fn key(proto: Proto, source: &str, destination: &str) -> FlowKey {
        let endpoint = |text: &str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            Endpoint { addr: address.ip().into(), port: address.port() }
        };
        FlowKey { proto, initiator: endpoint(source), responder: endpoint(destination) }
    }

    /// Of the specification's `baseline/baseline_deflt.json`.
    #[test]
    fn it_is_that_of_the_specification() {
        let [a, b] = ["[2001:470:e5bf:dead:4957:2174:e82c:4887]:63943", "[2607:f8b0:400c:c03::1a]:25"];
        for (proto, source, destination, expected) in [
            (Proto::Tcp, "128.232.110.120:34855", "66.35.250.204:80", "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (Proto::Udp, "192.168.1.52:54585", "8.8.8.8:53", "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
            (Proto::Tcp, a, b, "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="),
        ] {
            let key = key(proto, source, destination);
            assert_eq!(CommunityId::new(&key).text(), expected);
            assert_eq!(CommunityId::new(&key.reversed()).text(), expected, "of both sides alike");
        }
    }

    /// Of one address the port decides; computed apart with Python's hashlib.
    #[test]
    fn both_ends_may_have_one_address() {
        let key = key(Proto::Tcp, "127.0.0.1:40000", "127.0.0.1:80");
        assert_eq!(CommunityId::new(&key).text(), CommunityId::new(&key.reversed()).text());
        assert_eq!(CommunityId::new(&key).text(), "1:5rFr+y3i0wpQbEhThSaj08U8BaE=");
    }
}
