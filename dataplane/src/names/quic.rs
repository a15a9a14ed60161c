//! The hello in the first datagrams of a QUIC client, versions 1 and 2. Their keys follow from what they carry (RFC 9001,
//! 5.2): whoever sees them may read them. What was not changed on its way is a client's own, and what was is none.
//!
//! AES and its kin are those of RustCrypto, of which SHA-2 and HMAC are here already: small crates without C, under
//! licences that the others have, too.

mod packet;
mod stream;

use std::fmt;

use super::tls::{Hello, handshake, message_length};
use packet::{Initial, Keys, Packet};
use stream::CryptoStream;

/// Datagrams that are looked at. The longest hello of a browser takes two.
const DATAGRAMS_MAX: u8 = 3;
/// Packets that are looked at in one datagram, or in several that the client's kernel cuts apart later.
const PACKETS_MAX: usize = 8;

/// What has come of one flow's hello: at most 8 kB, and nothing once it was told.
#[derive(Default)]
pub struct Initials {
    datagrams: u8,
    stream: CryptoStream,
    /// Keys that worked: those of the first packet, which others have though they may be for another connection id, and
    /// those of the latest packet that had not. A server may ask for another beginning.
    keys: [Option<Keys>; 2],
}

impl fmt::Debug for Initials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initials").field("datagrams", &self.datagrams).finish_non_exhaustive()
    }
}

impl Initials {
    /// Takes the next datagram that the client has sent, and tells of its hello once. It is told when it is whole; with
    /// the last datagram that is looked at, as far as it is there.
    pub fn add(&mut self, datagram: &[u8]) -> Option<Hello> {
        if self.is_done() {
            return None;
        }
        self.datagrams += 1;
        self.read(datagram);
        let is_whole =
            message_length(self.stream.beginning()).is_some_and(|length| self.stream.beginning().len() >= length);
        if !is_whole && self.datagrams < DATAGRAMS_MAX {
            return None;
        }
        let hello = self.so_far();
        *self = Self { datagrams: DATAGRAMS_MAX, ..Self::default() };
        hello
    }

    /// The hello as far as it is there: for a flow that ends before it is whole. None once it was told.
    #[must_use]
    pub fn so_far(&self) -> Option<Hello> {
        handshake(self.stream.beginning())
    }

    /// No other datagram is looked at.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.datagrams >= DATAGRAMS_MAX
    }

    fn read(&mut self, datagram: &[u8]) {
        let (mut rest, mut destination) = (datagram, None);
        for _ in 0..PACKETS_MAX {
            let Some((packet, behind)) = packet::split(rest) else { return };
            rest = behind;
            let Packet::Initial(initial) = packet else { continue };
            // RFC 9000, 12.2: all packets of a datagram are for one connection.
            if *destination.get_or_insert(initial.destination) != initial.destination {
                return;
            }
            if let Some(payload) = self.open(&initial) {
                self.stream.add_frames(&payload);
            }
        }
    }

    /// What is in a packet, if its keys are a client's.
    fn open(&mut self, initial: &Initial<'_>) -> Option<Vec<u8>> {
        for keys in self.keys.iter().flatten().filter(|keys| keys.version == initial.version) {
            if let Some(payload) = keys.open(initial) {
                return Some(payload);
            }
        }
        let keys = Keys::of_client(initial)?;
        let payload = keys.open(initial)?;
        self.keys[usize::from(self.keys[0].is_some())] = Some(keys);
        Some(payload)
    }
}

/// What the frames of a packet say, for a fuzzer that cannot make one.
pub(crate) fn frames(payload: &[u8]) -> Option<Hello> {
    let mut stream = CryptoStream::default();
    stream.add_frames(payload);
    handshake(stream.beginning())
}

#[cfg(test)]
mod tests;
