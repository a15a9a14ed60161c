//! What one run is made of: drawn from its seed, and made smaller when it fails.

use std::fmt;

/// What may go wrong in a run, one bit each.
pub(super) mod faults {
    /// Clocks of CPUs differ by microseconds.
    pub(crate) const SKEW: u32 = 1;
    /// Workers stand still for seconds.
    pub(crate) const STALLS: u32 = 1 << 1;
    /// Things happen to a socket while the scan looks at it, and records are written slowly.
    pub(crate) const RACES: u32 = 1 << 2;
    /// Rings, the close overflow and the UDP table are small.
    pub(crate) const SMALL_RINGS: u32 = 1 << 3;
    /// The flow table is small.
    pub(crate) const SMALL_TABLE: u32 = 1 << 4;
    /// The agent is started again.
    pub(crate) const RESTART: u32 = 1 << 5;
    /// Sockets connect again.
    pub(crate) const AGAIN: u32 = 1 << 6;
    /// Addresses are translated between both ends.
    pub(crate) const TRANSLATION: u32 = 1 << 7;
    /// Packet counters wrap.
    pub(crate) const WRAP: u32 = 1 << 8;
    /// Collectors join.
    pub(crate) const COLLECTORS: u32 = 1 << 9;
    /// Timeouts are short, so that flows are idle within the run.
    pub(crate) const SHORT_TIMEOUTS: u32 = 1 << 10;
    /// Scans do not find what a process has closed.
    pub(crate) const BLIND_SCANS: u32 = 1 << 11;
    /// Nothing happens for longer than the timeouts.
    pub(crate) const PAUSE: u32 = 1 << 12;
    /// Somebody sends datagrams from ever other addresses.
    pub(crate) const FLOOD: u32 = 1 << 13;
    /// The kernel leaves a program out now and then.
    pub(crate) const MISSES: u32 = 1 << 14;
    pub(crate) const ALL: u32 = (1 << 15) - 1;
}

/// Seeded numbers (SplitMix64): the same on every host.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to `n - 1`.
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(super) fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.index(at + 1));
        }
    }
}

/// One run. Its text is what runs it alone: see [`super::one_run_alone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Ticks of a quarter second in which things happen.
    pub(super) ticks: u64,
    /// Most TCP connections.
    pub(super) tcp: u64,
    /// UDP sockets that ask.
    pub(super) udp: u64,
    pub(super) faults: u32,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut faults = (rng.next() & rng.next() | rng.next() & rng.next()) as u32 & faults::ALL;
        if rng.chance(70) {
            faults &= !faults::SMALL_TABLE;
        }
        Self { seed, ticks: 20 + rng.below(80), tcp: 1 + rng.below(16), udp: rng.below(4), faults }
    }

    pub(super) fn has(&self, fault: u32) -> bool {
        self.faults & fault != 0
    }

    /// Smaller runs, the smallest first.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let counts =
            |n: u64, least: u64| [least, n / 2, n.saturating_sub(1)].into_iter().filter(move |m| *m < n && *m >= least);
        let mut all: Vec<Self> = counts(self.tcp, 0).map(|tcp| Self { tcp, ..*self }).collect();
        all.extend(counts(self.udp, 0).map(|udp| Self { udp, ..*self }));
        all.extend(counts(self.ticks, 1).map(|ticks| Self { ticks, ..*self }));
        let bits = (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| self.has(*bit));
        all.extend(bits.map(|bit| Self { faults: self.faults & !bit, ..*self }));
        all
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(':').map(|part| part.parse::<u64>().ok());
        let mut next = || numbers.next().flatten();
        let (seed, ticks, tcp, udp) = (next()?, next()?, next()?, next()?);
        Some(Self { seed, ticks, tcp, udp, faults: next()? as u32 })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}:{}", self.seed, self.ticks, self.tcp, self.udp, self.faults)
    }
}
