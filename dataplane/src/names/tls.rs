//! The first message of a TLS client, which may be cut anywhere. It is walked by hand: parsers of whole messages refuse
//! a cut one, and a post-quantum hello is often longer than what was copied of it.

use std::borrow::Cow;

use super::hosts::host_name;

/// What is looked at of one hello, bytes. None that was seen has half of it.
pub const HELLO_MAX: usize = 8 << 10;
/// Protocols that are kept, and their longest name, bytes. The longest that IANA knows has 12.
const ALPN_MAX: usize = 4;
const PROTOCOL_MAX: usize = 32;

/// RFC 8446, 5.1: content type, legacy version, length.
const RECORD_HEADER: usize = 5;
const RECORD_MAX: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
/// RFC 8446, 4: type, and a length of 3 bytes.
const HANDSHAKE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
const SESSION_ID_MAX: usize = 32;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
/// RFC 9849: encrypted_client_hello.
const EXTENSION_ECH: u16 = 0xfe0d;

/// What a client says when it opens a TLS connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hello {
    /// The host that it wants to talk to, in lower case.
    pub server_name: Option<String>,
    /// The first four protocols that it offers, in its order: printable ASCII of at most 32 bytes each, markup included.
    pub alpn: Vec<Box<str>>,
    /// It offers an encrypted hello. Then `server_name` is that of the front which decrypts it, or the true one: browsers
    /// send a dummy to servers that have no key, and it cannot be told from a real one.
    pub ech: bool,
    /// It goes on behind what was given: what lies there is missing.
    pub is_cut: bool,
}

/// Reads the beginning of what a client sends in a TCP connection, from the first byte on and as much as there is.
/// None if it is no hello.
#[must_use]
pub fn client_hello(first_payload: &[u8]) -> Option<Hello> {
    handshake(&fragments(first_payload)?)
}

/// The handshake message that begins in the first record and may go on in others, as far as it is there.
fn fragments(payload: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut rest = &payload[..payload.len().min(HELLO_MAX)];
    let mut message = Cow::Borrowed(&rest[..0]);
    while let Some((header, behind)) = rest.split_at_checked(RECORD_HEADER) {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != CONTENT_HANDSHAKE || header[1] != 3 || length == 0 || length > RECORD_MAX {
            return None;
        }
        let (fragment, behind) = behind.split_at(length.min(behind.len()));
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        // What follows the hello may be anything: data that is sent early, for instance.
        if fragment.len() < length || message_length(&message).is_some_and(|length| message.len() >= length) {
            break;
        }
        rest = behind;
    }
    Some(message)
}

/// Bytes of a handshake message, its header included, once that is there.
#[must_use]
pub(super) fn message_length(message: &[u8]) -> Option<usize> {
    let &[_, a, b, c] = message.first_chunk::<HANDSHAKE_HEADER>()?;
    Some(HANDSHAKE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize)
}

/// Reads a hello without records around it, as far as it is there: QUIC carries it so. None if it is no hello.
#[must_use]
pub fn handshake(message: &[u8]) -> Option<Hello> {
    let whole = message_length(message)?;
    if message[0] != CLIENT_HELLO {
        return None;
    }
    let body = &message[HANDSHAKE_HEADER..message.len().min(whole)];
    let mut hello = Hello { is_cut: message.len() < whole, ..Hello::default() };
    let mut reader = Reader { bytes: body, left: whole - HANDSHAKE_HEADER };
    match read_body(&mut reader, &mut hello) {
        Ok(()) => Some(hello),
        Err(End::Cut) if hello.is_cut => Some(hello),
        Err(End::Cut | End::Wrong) => None,
    }
}

/// Why nothing more is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The bytes are not there.
    Cut,
    /// No length allows for it.
    Wrong,
}

/// A part of the message, as long as it says, of which the end may be missing.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Reader<'a> {
    /// As much as there is of the next `length` bytes.
    fn part(&mut self, length: usize) -> Result<Self, End> {
        self.left = self.left.checked_sub(length).ok_or(End::Wrong)?;
        let (bytes, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        Ok(Self { bytes, left: length })
    }

    /// All of the next `length` bytes.
    fn take(&mut self, length: usize) -> Result<&'a [u8], End> {
        self.part(length)?.whole()
    }

    fn whole(self) -> Result<&'a [u8], End> {
        if self.bytes.len() == self.left { Ok(self.bytes) } else { Err(End::Cut) }
    }

    fn u8(&mut self) -> Result<usize, End> {
        Ok(self.take(1)?[0].into())
    }

    fn u16(&mut self) -> Result<u16, End> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn length(&mut self) -> Result<usize, End> {
        self.u16().map(usize::from)
    }

    fn is_at_end(&self) -> bool {
        self.left == 0
    }
}

/// RFC 8446, 4.1.2.
fn read_body(body: &mut Reader<'_>, hello: &mut Hello) -> Result<(), End> {
    let version = body.take(2)?;
    if version[0] != 3 {
        return Err(End::Wrong);
    }
    body.take(32)?;
    let session = body.u8()?;
    if session > SESSION_ID_MAX {
        return Err(End::Wrong);
    }
    body.take(session)?;
    let ciphers = body.length()?;
    if ciphers == 0 || !ciphers.is_multiple_of(2) {
        return Err(End::Wrong);
    }
    body.take(ciphers)?;
    let compressions = body.u8()?;
    if compressions == 0 {
        return Err(End::Wrong);
    }
    body.take(compressions)?;
    if body.is_at_end() {
        return Ok(()); // before TLS 1.3 there may be no extensions
    }
    let length = body.length()?;
    if length != body.left {
        return Err(End::Wrong);
    }
    read_extensions(body, hello)
}

fn read_extensions(extensions: &mut Reader<'_>, hello: &mut Hello) -> Result<(), End> {
    let mut names = 0;
    while !extensions.is_at_end() {
        let (kind, length) = (extensions.u16()?, extensions.length()?);
        let content = extensions.part(length)?;
        match kind {
            EXTENSION_SERVER_NAME => {
                names += 1;
                // Of two nobody knows which one the server takes.
                hello.server_name = if names == 1 { server_name(content) } else { None };
            }
            EXTENSION_ALPN if hello.alpn.is_empty() => protocols(content, &mut hello.alpn),
            EXTENSION_ECH => hello.ech = true,
            _ => {}
        }
        content.whole()?;
    }
    Ok(())
}

/// RFC 6066, 3: a list of one name, of the only kind that there is.
fn server_name(mut content: Reader<'_>) -> Option<String> {
    let list = content.length().ok()?;
    if list != content.left || content.u8().ok()? != 0 {
        return None;
    }
    let length = content.length().ok()?;
    if length != content.left {
        return None;
    }
    host_name(content.whole().ok()?)
}

/// RFC 7301, 3.1: as many as are there.
fn protocols(mut content: Reader<'_>, found: &mut Vec<Box<str>>) {
    let Ok(list) = content.length() else { return };
    if list != content.left {
        return;
    }
    while found.len() < ALPN_MAX
        && let Ok(length) = content.u8()
        && let Ok(name) = content.take(length)
    {
        if let Some(name) = protocol(name) {
            found.push(name);
        }
    }
}

/// A protocol's name, unless it is none that can be shown, or one that means nothing (GREASE, RFC 8701).
fn protocol(name: &[u8]) -> Option<Box<str>> {
    let is_shown = !name.is_empty() && name.len() <= PROTOCOL_MAX && name.iter().all(u8::is_ascii_graphic);
    let is_grease = matches!(name, [a, b] if a == b && a & 0x0f == 0x0a);
    if !is_shown || is_grease {
        return None;
    }
    std::str::from_utf8(name).ok().map(Into::into)
}

#[cfg(test)]
#[path = "tls/tests.rs"]
mod tests;
