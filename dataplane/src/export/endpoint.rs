//! `--zmq` and `--zmq-encryption-key`: what users write, checked.

use std::fs;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

/// A ZMQ endpoint as ntop's tools write it: `tcp://HOST:PORT`, with a `c` at the end if the collector binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZmqEndpoint {
    /// For libzmq, without the `c`.
    pub address: String,
    /// We connect, because the collector binds.
    pub connect: bool,
}

/// Why an endpoint is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no ZMQ endpoint: {why}; expected tcp://HOST:PORTc (ntopng binds: ntopng -i tcp://*:PORTc) or tcp://HOST:PORT (sockeye binds)"
)]
pub struct BadEndpoint {
    text: String,
    why: &'static str,
}

impl FromStr for ZmqEndpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |why| BadEndpoint { text: text.to_owned(), why };
        let rest = text
            .strip_prefix("tcp://")
            .or_else(|| text.strip_prefix("zmq://"))
            .ok_or_else(|| bad("it does not start with tcp://"))?;
        let (rest, connect) = rest.strip_suffix('c').map_or((rest, false), |rest| (rest, true));
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
        let port: u16 = port.parse().map_err(|_| bad("its port is not a number from 1 to 65535"))?;
        if port == 0 {
            return Err(bad("its port is not a number from 1 to 65535"));
        }
        if host.is_empty() || host.contains(['/', ' ']) {
            return Err(bad("it has no host"));
        }
        if host == "*" && connect {
            return Err(bad("* is no host to connect to"));
        }
        Ok(Self { address: format!("tcp://{host}:{port}"), connect })
    }
}

/// The public key of a collector, 40 characters of Z85.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerKey(pub String);

/// Why a key is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no encryption key: expected ntopng's public key, as 40 characters (Z85) or as the 80 hex digits that its interface page shows, or a file that holds it"
)]
pub struct BadKey(String);

impl FromStr for ServerKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let held = if Path::new(text).is_file() {
            fs::read_to_string(text).map_err(|_| BadKey(text.to_owned()))?
        } else {
            text.to_owned()
        };
        let key = held.trim();
        let z85 = match key.len() {
            40 => Some(key.to_owned()),
            80 => from_hex(key),
            _ => None,
        };
        z85.filter(|key| key.chars().all(is_z85))
            .filter(|key| ::zmq::z85_decode(key).is_ok_and(|raw| raw.len() == 32))
            .map(Self)
            .ok_or_else(|| BadKey(text.to_owned()))
    }
}

/// The alphabet of ZeroMQ RFC 32. libzmq itself takes any byte.
fn is_z85(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".-:+=^!/*?&<>()[]{}@%$#".contains(c)
}

fn from_hex(text: &str) -> Option<String> {
    let bytes: Option<Vec<u8>> =
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn endpoints() {
        let ok = |text: &str| text.parse::<ZmqEndpoint>().unwrap();
        assert_eq!(ok("tcp://127.0.0.1:1234c"), ZmqEndpoint { address: "tcp://127.0.0.1:1234".into(), connect: true });
        assert_eq!(ok("zmq://*:5556"), ZmqEndpoint { address: "tcp://*:5556".into(), connect: false });
        assert_eq!(ok("tcp://[::1]:9c").address, "tcp://[::1]:9");
        for bad in ["", "udp://h:1", "tcp://h", "tcp://:1", "tcp://h:0", "tcp://h:70000", "tcp://h:1x", "tcp://*:1c"] {
            let err = bad.parse::<ZmqEndpoint>().unwrap_err().to_string();
            assert!(err.contains("tcp://HOST:PORTc"), "{bad}: {err}");
        }
    }

    #[test]
    fn keys() {
        let pair = ::zmq::CurveKeyPair::new().unwrap();
        let z85 = ::zmq::z85_encode(&pair.public_key).unwrap();
        let hex: String = z85.bytes().map(|b| format!("{b:02x}")).collect();
        assert_eq!(z85.parse::<ServerKey>().unwrap().0, z85);
        assert_eq!(hex.parse::<ServerKey>().unwrap().0, z85);
        for bad in ["", "short", &hex[2..], &"é".repeat(20), &"~".repeat(40)] {
            assert!(bad.parse::<ServerKey>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,90}") {
            let _ = text.parse::<ZmqEndpoint>();
            let _ = text.parse::<ServerKey>();
        }
    }
}
