//! Packets of a datagram, and the protection of the first ones (RFC 9000, 17.2; RFC 9001, 5; RFC 9369).

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aes::Aes128;
use aes_gcm::aes::cipher::BlockCipherEncrypt as _;
use aes_gcm::{Aes128Gcm, KeyInit as _};
use hkdf::Hkdf;
use sha2::Sha256;

/// Longest connection id, bytes.
const ID_MAX: usize = 20;
/// Shortest one that a client may choose for a server; one that a server chooses in its retry may be shorter. Bytes.
const FIRST_ID_MIN: usize = 8;
const TAG: usize = 16;
const SAMPLE: usize = 16;
/// The sample lies behind a packet number of this length, whatever its true one.
const NUMBER_MAX: usize = 4;

const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;

/// Versions whose first packets can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Version {
    fn new(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            0x6b33_43cf => Some(Self::V2),
            _ => None,
        }
    }

    fn salt(self) -> [u8; 20] {
        match self {
            Self::V1 => [
                0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc,
                0xbb, 0x7f, 0x0a,
            ],
            Self::V2 => [
                0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9,
                0xbd, 0x2e, 0xd9,
            ],
        }
    }

    /// Labels of the key, of the beginning of a nonce, and of the header's key.
    fn labels(self) -> [&'static str; 3] {
        match self {
            Self::V1 => ["quic key", "quic iv", "quic hp"],
            Self::V2 => ["quicv2 key", "quicv2 iv", "quicv2 hp"],
        }
    }

    /// The kind of a long packet.
    fn kind(self, first: u8) -> Kind {
        match (self, (first >> 4) & 3) {
            (Self::V1, 0) | (Self::V2, 1) => Kind::Initial,
            (Self::V1, 3) | (Self::V2, 0) => Kind::Retry,
            _ => Kind::Later,
        }
    }
}

#[derive(PartialEq, Eq)]
enum Kind {
    Initial,
    /// 0-RTT or Handshake.
    Later,
    Retry,
}

/// A packet with a long header.
pub(super) enum Packet<'a> {
    Initial(Initial<'a>),
    /// One that is passed over.
    Other,
}

/// A packet as it was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Initial<'a> {
    pub(super) version: Version,
    /// Connection id of the one that it is for.
    pub(super) destination: &'a [u8],
    has_token: bool,
    /// From its first byte on.
    bytes: &'a [u8],
    /// Where the packet number begins.
    number_at: usize,
}

/// The first packet and what is behind it. None at the end, and before what has no length of its own: a short header, a
/// retry, a negotiation, padding.
pub(super) fn split(datagram: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let mut rest = datagram;
    let first = take(&mut rest, 1)?[0];
    if first & (LONG_HEADER | FIXED_BIT) != LONG_HEADER | FIXED_BIT {
        return None;
    }
    let version = Version::new(u32::from_be_bytes(*take(&mut rest, 4)?.first_chunk()?))?;
    let destination = take_id(&mut rest)?;
    take_id(&mut rest)?;
    let (kind, mut has_token) = (version.kind(first), false);
    match kind {
        Kind::Initial => {
            let token = usize::try_from(take_number(&mut rest)?).ok()?;
            take(&mut rest, token)?;
            has_token = token > 0;
        }
        Kind::Later => {}
        Kind::Retry => return None,
    }
    let length = usize::try_from(take_number(&mut rest)?).ok()?;
    let number_at = datagram.len() - rest.len();
    take(&mut rest, length)?;
    if kind != Kind::Initial {
        return Some((Packet::Other, rest));
    }
    let bytes = &datagram[..number_at + length];
    Some((Packet::Initial(Initial { version, destination, has_token, bytes, number_at }), rest))
}

/// The next `length` bytes, if all of them are there.
pub(super) fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

/// A connection id, with its length before it.
fn take_id<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(take(rest, 1)?[0]);
    if length > ID_MAX { None } else { take(rest, length) }
}

/// RFC 9000, 16: a number of 1, 2, 4 or 8 bytes.
pub(super) fn take_number(rest: &mut &[u8]) -> Option<u64> {
    let length = 1 << (rest.first()? >> 6);
    let bytes = take(rest, length)?;
    let number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Some(number & (u64::MAX >> (66 - 8 * length)))
}

/// What a client protects its first packets with.
pub(super) struct Keys {
    pub(super) version: Version,
    payload: [u8; 16],
    nonce: [u8; 12],
    header: [u8; 16],
}

impl Keys {
    /// Of the connection id that the packet is for. None if no client's packet is for such a one.
    pub(super) fn of_client(packet: &Initial<'_>) -> Option<Self> {
        if packet.destination.len() < FIRST_ID_MIN && !packet.has_token {
            return None;
        }
        Self::new(packet.version, packet.destination)
    }

    fn new(version: Version, destination: &[u8]) -> Option<Self> {
        let secret: [u8; 32] = expand(&Hkdf::new(Some(&version.salt()), destination), "client in")?;
        let secret = Hkdf::from_prk(&secret).ok()?;
        let [key, iv, header] = version.labels();
        let (payload, nonce, header) = (expand(&secret, key)?, expand(&secret, iv)?, expand(&secret, header)?);
        Some(Self { version, payload, nonce, header })
    }

    /// What covers the first byte and the packet number.
    fn mask(&self, sample: [u8; SAMPLE]) -> [u8; SAMPLE] {
        let mut block = sample.into();
        Aes128::new(&self.header.into()).encrypt_block(&mut block);
        block.into()
    }

    fn nonce(&self, number: u32) -> [u8; 12] {
        let mut nonce = self.nonce;
        nonce[8..].iter_mut().zip(number.to_be_bytes()).for_each(|(byte, number)| *byte ^= number);
        nonce
    }

    /// The frames in a packet, if it was made with these keys.
    pub(super) fn open(&self, packet: &Initial<'_>) -> Option<Vec<u8>> {
        let sample = packet.bytes.get(packet.number_at + NUMBER_MAX..)?.first_chunk::<SAMPLE>()?;
        let mask = self.mask(*sample);
        let first = packet.bytes[0] ^ mask[0] & 0x0f;
        let payload_at = packet.number_at + 1 + usize::from(first & 3);
        let mut header = packet.bytes[..payload_at].to_vec();
        header[0] = first;
        // All of the number: of the first packets there are not so many that its beginning would be left out.
        let mut number = 0;
        for (byte, mask) in header[packet.number_at..].iter_mut().zip(&mask[1..]) {
            *byte ^= mask;
            number = number << 8 | u32::from(*byte);
        }
        let (sealed, tag) = packet.bytes[payload_at..].split_last_chunk::<TAG>()?;
        let mut payload = sealed.to_vec();
        let cipher = Aes128Gcm::new(&self.payload.into());
        let (nonce, buffer) = (self.nonce(number).into(), payload.as_mut_slice().into());
        cipher.decrypt_inout_detached(&nonce, &header, buffer, &(*tag).into()).ok()?;
        Some(payload)
    }
}

/// RFC 8446, 7.1: HKDF-Expand-Label without a context.
fn expand<const N: usize>(secret: &Hkdf<Sha256>, label: &str) -> Option<[u8; N]> {
    let (mut out, length) = ([0; N], [0, N as u8]);
    let full = [b"tls13 ".len() as u8 + label.len() as u8];
    secret.expand_multi_info(&[&length, &full, b"tls13 ", label.as_bytes(), &[0]], &mut out).ok()?;
    Some(out)
}

#[cfg(test)]
pub(super) mod seal {
    //! The other way round, for tests.

    use super::*;

    /// A number in four bytes.
    pub(in crate::names) fn number(number: usize) -> [u8; 4] {
        (number as u32 | 0x8000_0000).to_be_bytes()
    }

    /// A client's packet with these frames, padded so that there is a sample. The keys are those of `origin`.
    pub(in crate::names) fn initial(
        version: Version,
        origin: &[u8],
        ids: [&[u8]; 2],
        token: &[u8],
        count: u32,
        frames: &[u8],
    ) -> Vec<u8> {
        let keys = Keys::new(version, origin).expect("keys");
        let (kind, version_number) = match version {
            Version::V1 => (0xc0, 1_u32),
            Version::V2 => (0xd0, 0x6b33_43cf),
        };
        // All of it, and sometimes more.
        let number_bytes = (4 - count.leading_zeros() as usize / 8).max(1 + count as usize % 4);
        let mut payload = frames.to_vec();
        payload.resize(frames.len().max(4), 0);
        let mut header = [&[kind | (number_bytes as u8 - 1)], version_number.to_be_bytes().as_slice()].concat();
        for id in ids {
            header.push(id.len() as u8);
            header.extend(id);
        }
        header.extend(number(token.len()));
        header.extend(token);
        header.extend(number(number_bytes + payload.len() + TAG));
        let number_at = header.len();
        header.extend(&count.to_be_bytes()[4 - number_bytes..]);
        let cipher = Aes128Gcm::new(&keys.payload.into());
        let tag = cipher.encrypt_inout_detached(&keys.nonce(count).into(), &header, payload.as_mut_slice().into());
        let mut packet = [&header[..], &payload, &tag.expect("it is short")].concat();
        let mask = keys.mask(*packet[number_at + NUMBER_MAX..].first_chunk().expect("a sample"));
        packet[0] ^= mask[0] & 0x0f;
        packet[number_at..number_at + number_bytes].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        packet
    }
}
