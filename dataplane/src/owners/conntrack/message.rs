//! Messages of netlink to and from the connection tracking (linux/netlink.h, linux/netfilter/nfnetlink_conntrack.h).
//! Numbers are the machine's, but for ports and counts, which are big-endian.

use std::net::IpAddr;

use super::{Translated, Tuple};
use crate::model::flow::{Addr, Endpoint, Proto};

/// `nlmsghdr`, and `nfgenmsg` behind it; `nlattr`. All begin at multiples of 4.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
/// The two high bits of an attribute's kind are flags.
const NLA_TYPE_MASK: u16 = !(3 << 14);

/// `NFNL_SUBSYS_CTNETLINK << 8`, and what is asked of it.
const CTNETLINK: u16 = 1 << 8;
const CT_NEW: u16 = CTNETLINK;
const CT_GET: u16 = CTNETLINK | 1;
const CT_GET_STATS: u16 = CTNETLINK | 5;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;

const ENOENT: i32 = 2;

/// What the kernel says to one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The connection is tracked: its protocol, and both tuples.
    Entry(u8, Translated),
    /// It is not.
    None,
    /// So many are.
    Count(u32),
    /// An error's number.
    Failed(i32),
}

/// Adds the question for one connection. False: its addresses are of two versions, and nobody knows such a one.
pub(super) fn put_question(out: &mut Vec<u8>, sequence: u32, proto: Proto, tuple: Tuple) -> bool {
    let (from, to) = (tuple.from.addr.ip(), tuple.to.addr.ip());
    let family = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
        (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
        _ => return false,
    };
    message(out, CT_GET, sequence, family, |out| {
        nested(out, CTA_TUPLE_ORIG, |out| {
            nested(out, CTA_TUPLE_IP, |out| {
                put_address(out, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], from);
                put_address(out, [CTA_IP_V4_DST, CTA_IP_V6_DST], to);
            });
            nested(out, CTA_TUPLE_PROTO, |out| {
                attribute(out, CTA_PROTO_NUM, &[proto.number()]);
                attribute(out, CTA_PROTO_SRC_PORT, &tuple.from.port.to_be_bytes());
                attribute(out, CTA_PROTO_DST_PORT, &tuple.to.port.to_be_bytes());
            });
        });
    });
    true
}

/// Adds the question how many connections are tracked.
pub(super) fn put_count(out: &mut Vec<u8>, sequence: u32) {
    message(out, CT_GET_STATS, sequence, AF_UNSPEC, |_| ());
}

fn message(out: &mut Vec<u8>, kind: u16, sequence: u32, family: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
    out.extend([family, 0, 0, 0]);
    body(out);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn nested(out: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    attribute(out, kind | NLA_F_NESTED, &[]);
    body(out);
    let length = (out.len() - start) as u16;
    out[start..start + 2].copy_from_slice(&length.to_ne_bytes());
}

fn attribute(out: &mut Vec<u8>, kind: u16, content: &[u8]) {
    out.extend(((ATTRIBUTE + content.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn put_address(out: &mut Vec<u8>, [v4, v6]: [u16; 2], address: IpAddr) {
    match address {
        IpAddr::V4(address) => attribute(out, v4, &address.octets()),
        IpAddr::V6(address) => attribute(out, v6, &address.octets()),
    }
}

/// Reads what the kernel has sent: the number of each question, and what it says to it. What cannot be read is left out.
pub(crate) fn read_answers(mut bytes: &[u8], mut take: impl FnMut(u32, Answer)) {
    while let Some(header) = bytes.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
        let Some(body) = bytes.get(HEADER..length) else { return };
        if let Some(answer) = read_answer(kind, body) {
            take(sequence, answer);
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn read_answer(kind: u16, body: &[u8]) -> Option<Answer> {
    match kind {
        NLMSG_ERROR => match i32::from_ne_bytes(*body.first_chunk()?).checked_neg()? {
            ENOENT => Some(Answer::None),
            0 => None,
            code => Some(Answer::Failed(code)),
        },
        CT_NEW => {
            let (mut original, mut reply) = (None, None);
            for (kind, content) in Attributes(body.get(GENERIC..)?) {
                match kind {
                    CTA_TUPLE_ORIG => original = read_tuple(content),
                    CTA_TUPLE_REPLY => reply = read_tuple(content),
                    _ => {}
                }
            }
            let ((proto, original), (_, reply)) = (original?, reply?);
            Some(Answer::Entry(proto, Translated { original, reply }))
        }
        CT_GET_STATS => {
            let mut all = Attributes(body.get(GENERIC..)?);
            let (_, count) = all.find(|(kind, _)| *kind == CTA_STATS_GLOBAL_ENTRIES)?;
            Some(Answer::Count(u32::from_be_bytes(*count.first_chunk()?)))
        }
        _ => None,
    }
}

/// Protocol, sender and receiver.
fn read_tuple(content: &[u8]) -> Option<(u8, Tuple)> {
    let (mut addresses, mut ports, mut proto) = ([None; 2], [None; 2], None);
    for (kind, content) in Attributes(content) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, content) in Attributes(content) {
                    match kind {
                        CTA_IP_V4_SRC | CTA_IP_V6_SRC => addresses[0] = read_address(content),
                        CTA_IP_V4_DST | CTA_IP_V6_DST => addresses[1] = read_address(content),
                        _ => {}
                    }
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, content) in Attributes(content) {
                    match kind {
                        CTA_PROTO_NUM => proto = content.first().copied(),
                        CTA_PROTO_SRC_PORT => ports[0] = content.first_chunk().copied().map(u16::from_be_bytes),
                        CTA_PROTO_DST_PORT => ports[1] = content.first_chunk().copied().map(u16::from_be_bytes),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let end = |at: usize| Some(Endpoint { addr: addresses[at]?, port: ports[at]? });
    Some((proto?, Tuple { from: end(0)?, to: end(1)? }))
}

fn read_address(content: &[u8]) -> Option<Addr> {
    let v4 = || Some(IpAddr::from(<[u8; 4]>::try_from(content).ok()?).into());
    <[u8; 16]>::try_from(content).ok().map(Addr).or_else(v4)
}

/// Kinds without their flags, and contents. It ends before what does not fit.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &[a, b, c, d] = self.0.first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let content = self.0.get(ATTRIBUTE..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK, content))
    }
}
