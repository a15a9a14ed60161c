//! Which sockets and datagrams the kernel programs leave out: the user-space side of `bpf/filter.h`.

use std::ops::RangeInclusive;

use libbpf_rs::{MapCore as _, MapFlags, MapHandle};

use crate::error::{KernelError, bpf};

/// Most networks that are looked for.
pub const NETWORKS_MAX: usize = 4096;

/// Ports of 16 bits, one bit each.
const PORT_WORDS: usize = 65536 / 32;

/// What the kernel can decide about a connection or a datagram.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketFilter {
    /// One match is enough to leave it out.
    pub ignore: SocketRules,
    /// Of each kind that is given, one must match.
    pub only: SocketRules,
}

/// Rules; it is enough if either end matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SocketRules {
    /// Loopback addresses.
    pub loopback: bool,
    /// Protocols by their numbers.
    pub protocols: Vec<u8>,
    /// Networks: address in 16 bytes, IPv4 as `::ffff:a.b.c.d`, and the number of its bits that count, up to 128.
    pub networks: Vec<([u8; 16], u8)>,
    /// Ports.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// `enum se_filter_flags`.
mod flags {
    pub(super) const IGNORE_TCP: u32 = 1;
    pub(super) const IGNORE_UDP: u32 = 2;
    pub(super) const IGNORE_LOOPBACK: u32 = 4;
    pub(super) const ONLY_LOOPBACK: u32 = 8;
    pub(super) const PORTS: u32 = 16;
    pub(super) const ONLY_PORTS: u32 = 32;
    pub(super) const NETWORKS: u32 = 64;
    pub(super) const ONLY_NETWORKS: u32 = 128;
    pub(super) const EVER: u32 = 256;
}

/// `enum se_network`.
const IGNORE: u8 = 1;
const ONLY: u8 = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The maps of the filter.
pub(crate) struct FilterMaps {
    filter: MapHandle,
    networks: MapHandle,
    /// Keys that are in `networks`.
    held: Vec<[u8; 20]>,
    /// Some filter was there.
    ever: bool,
    /// How many there were.
    number: u32,
}

impl SocketFilter {
    fn flags(&self) -> u32 {
        let (ignore, only) = (&self.ignore, &self.only);
        // To want only one protocol is to ignore the other one.
        let ignores = |protocol: u8| {
            ignore.protocols.contains(&protocol) || !(only.protocols.is_empty() || only.protocols.contains(&protocol))
        };
        [
            (ignores(TCP), flags::IGNORE_TCP),
            (ignores(UDP), flags::IGNORE_UDP),
            (ignore.loopback, flags::IGNORE_LOOPBACK),
            (only.loopback, flags::ONLY_LOOPBACK),
            (!(ignore.ports.is_empty() && only.ports.is_empty()), flags::PORTS),
            (!only.ports.is_empty(), flags::ONLY_PORTS),
            (!(ignore.networks.is_empty() && only.networks.is_empty()), flags::NETWORKS),
            (!only.networks.is_empty(), flags::ONLY_NETWORKS),
        ]
        .into_iter()
        .map(|(is, flag)| if is { flag } else { 0 })
        .sum()
    }

    /// Key and value of each network. The kernel finds the longest one that contains an address; what those around it say
    /// holds there, too.
    fn networks(&self) -> Vec<([u8; 20], u8)> {
        let of = |rules: &'_ SocketRules, bit: u8| {
            rules.networks.iter().map(move |(addr, bits)| (masked(*addr, *bits), *bits, bit)).collect::<Vec<_>>()
        };
        let all = [of(&self.ignore, IGNORE), of(&self.only, ONLY)].concat();
        let mut networks: Vec<([u8; 20], u8)> = all
            .iter()
            .map(|(addr, bits, _)| {
                let around = |other: &([u8; 16], u8, u8)| other.1 <= *bits && masked(*addr, other.1) == other.0;
                let value = all.iter().filter(|other| around(other)).fold(0, |value, other| value | other.2);
                (key(*addr, *bits), value)
            })
            .collect();
        networks.sort_unstable();
        networks.dedup();
        networks
    }
}

fn masked(addr: [u8; 16], bits: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
    (u128::from_be_bytes(addr) & mask).to_be_bytes()
}

/// `struct bpf_lpm_trie_key` with an address.
fn key(addr: [u8; 16], bits: u8) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(bits).to_ne_bytes());
    key[4..].copy_from_slice(&addr);
    key
}

/// `struct se_filter`.
fn value(flags: u32, number: u32, filter: &SocketFilter) -> Vec<u8> {
    let mut words = vec![0u32; 2 + 2 * PORT_WORDS];
    (words[0], words[1]) = (flags, number);
    for (rules, at) in [(&filter.ignore, 2), (&filter.only, 2 + PORT_WORDS)] {
        for port in rules.ports.iter().cloned().flatten() {
            words[at + usize::from(port) / 32] |= 1 << (port % 32);
        }
    }
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl FilterMaps {
    pub(crate) fn new(filter: MapHandle, networks: MapHandle) -> Self {
        Self { filter, networks, held: Vec::new(), ever: false, number: 0 }
    }

    /// What opens from now on is judged by this one. Networks that are new come first and those that are gone leave last.
    pub(crate) fn set(&mut self, filter: &SocketFilter) -> Result<(), KernelError> {
        let flags = filter.flags();
        self.ever |= flags != 0;
        self.number = self.number.wrapping_add(1);
        let networks = filter.networks();
        if networks.len() > NETWORKS_MAX {
            let what = format!("{} networks are more than the {NETWORKS_MAX} that a filter takes", networks.len());
            return Err(KernelError::Io { what, source: std::io::ErrorKind::InvalidInput.into() });
        }
        let cannot = || bpf("cannot fill the table of networks");
        for (key, value) in &networks {
            self.networks.update(key, &[*value], MapFlags::ANY).map_err(cannot())?;
        }
        let flags = flags | if self.ever { flags::EVER } else { 0 };
        self.filter
            .update(&0u32.to_ne_bytes(), &value(flags, self.number, filter), MapFlags::ANY)
            .map_err(bpf("cannot set the filter"))?;
        for key in self.held.iter().filter(|held| !networks.iter().any(|(key, _)| key == *held)) {
            self.networks.delete(key).map_err(cannot())?;
        }
        self.held = networks.into_iter().map(|(key, _)| key).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[test]
    fn a_network_within_another_says_what_both_say() {
        let ignore = SocketRules { networks: vec![(v4(10, 9, 9, 9), 96 + 8)], ..SocketRules::default() };
        let only = SocketRules { networks: vec![(v4(10, 1, 0, 0), 96 + 16), ([0; 16], 0)], ..SocketRules::default() };
        let networks = SocketFilter { ignore, only }.networks();
        let value = |addr, bits| networks.iter().find(|(held, _)| *held == key(addr, bits)).map(|(_, value)| *value);
        assert_eq!(value(v4(10, 0, 0, 0), 96 + 8), Some(IGNORE | ONLY), "::/0 is around it");
        assert_eq!(value(v4(10, 1, 0, 0), 96 + 16), Some(IGNORE | ONLY));
        assert_eq!((value([0; 16], 0), networks.len()), (Some(ONLY), 3));
    }

    #[test]
    fn only_one_protocol_is_to_ignore_the_other() {
        let rules = |protocols: &[u8]| SocketRules { protocols: protocols.to_vec(), ..SocketRules::default() };
        let flags = |ignore, only| SocketFilter { ignore, only }.flags();
        assert_eq!(flags(rules(&[]), rules(&[TCP])), flags::IGNORE_UDP);
        assert_eq!(flags(rules(&[UDP]), rules(&[])), flags::IGNORE_UDP);
        assert_eq!(flags(rules(&[]), rules(&[TCP, UDP])), 0);
    }

    #[test]
    fn a_port_is_a_bit() {
        let only = SocketRules { ports: vec![31..=32, 65535..=65535], ..SocketRules::default() };
        let bytes = value(7, 9, &SocketFilter { only, ..SocketFilter::default() });
        let word = |at: usize| u32::from_ne_bytes(bytes[at * 4..][..4].try_into().unwrap());
        assert_eq!((word(0), word(1), bytes.len()), (7, 9, 8 + 2 * 8192));
        let at = 2 + PORT_WORDS;
        assert_eq!([word(at), word(at + 1), word(at + PORT_WORDS - 1)], [1 << 31, 1, 1 << 31]);
    }
}
