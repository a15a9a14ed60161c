//! Round-trip times: distributions, and the networks that they are grouped by.

use std::net::{IpAddr, Ipv6Addr};

use hdrhistogram::Histogram;

use super::flow::Addr;

/// Round-trip times in microseconds, 1 us to 60 s, two significant digits (1 %): about 20 KB.
pub type RttHistogram = Histogram<u64>;

/// Longest round-trip time that is told apart, microseconds.
pub const RTT_MAX_US: u64 = 60_000_000;
/// An empty histogram with the bounds that all of sockeye uses, so that they can be merged.
#[must_use]
pub fn rtt_histogram() -> RttHistogram {
    Histogram::new_with_bounds(1, RTT_MAX_US, 2).expect("the bounds are constants that hdrhistogram accepts")
}

/// Round-trip times: a histogram of 6 % resolution (1.5 KB), and exact sums for average and variance.
#[derive(Debug, Clone, PartialEq)]
pub struct RttStats {
    histogram: Histogram<u32>,
    sum_us: u64,
    /// Of the squares.
    sum2_us2: u128,
}

impl Default for RttStats {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, RTT_MAX_US, 1);
        Self { histogram: histogram.expect("constants that hdrhistogram accepts"), sum_us: 0, sum2_us2: 0 }
    }
}

impl RttStats {
    /// Adds samples, microseconds.
    #[inline]
    pub fn record(&mut self, samples_us: &[u32]) {
        for &sample in samples_us {
            let us = u64::from(sample).max(1);
            self.histogram.saturating_record(us);
            self.sum_us += us;
            self.sum2_us2 += u128::from(us) * u128::from(us);
        }
    }

    /// Adds another's samples.
    pub fn add(&mut self, other: &Self) {
        // Equal bounds: the sum cannot fail.
        let _ = self.histogram.add(&other.histogram);
        self.sum_us += other.sum_us;
        self.sum2_us2 += other.sum2_us2;
    }

    /// Empties it and keeps the memory.
    pub fn clear(&mut self) {
        self.histogram.reset();
        self.sum_us = 0;
        self.sum2_us2 = 0;
    }

    /// How many samples.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.histogram.len()
    }

    /// Of all samples, the middle of the bucket that this quantile (0 to 1) falls into, microseconds.
    #[must_use]
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        self.histogram.median_equivalent(self.histogram.value_at_quantile(quantile))
    }

    /// Average, microseconds, exact.
    #[must_use]
    pub fn mean_us(&self) -> f64 {
        self.sum_us as f64 / self.samples().max(1) as f64
    }

    /// Standard deviation, microseconds, exact.
    #[must_use]
    pub fn deviation_us(&self) -> f64 {
        let (n, mean) = (self.samples().max(1) as f64, self.mean_us());
        (self.sum2_us2 as f64 / n - mean * mean).max(0.0).sqrt()
    }

    /// Sum of all samples, microseconds, exact.
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// Adds how many samples lie between two neighbours of `bounds_us`, which ascend; in the last bucket those above all. The
    /// middle of a sample's cell decides.
    pub fn add_to_buckets(&self, bounds_us: &[u64], buckets: &mut [u64]) {
        for cell in self.histogram.iter_recorded() {
            let middle_us = self.histogram.median_equivalent(cell.value_iterated_to());
            let bucket = bounds_us.partition_point(|bound| *bound < middle_us);
            buckets[bucket] += cell.count_since_last_iteration();
        }
    }

    /// Samples per bucket between two bounds a tenth of a decade apart: `(up to microseconds, samples)`.
    #[must_use]
    pub fn decades(&self) -> Vec<(u64, u64)> {
        let mut buckets = Vec::new();
        let mut below = 0;
        for step in 0u32.. {
            let bound = 10f64.powf(f64::from(step) / 10.0).round() as u64;
            let counted = self.histogram.count_between(0, bound);
            if counted > below {
                buckets.push((bound, counted - below));
            }
            below = counted;
            if bound > RTT_MAX_US {
                return buckets;
            }
        }
        buckets
    }
}

/// Round-trip samples in short, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RttSummary {
    /// How many samples.
    pub samples: u32,
    /// The least.
    pub min_us: u32,
    /// Their average.
    pub mean_us: u32,
    /// 99 of 100 are not above.
    pub p99_us: u32,
}

/// A peer's network: /24 of IPv4, /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network(Addr);

impl Network {
    /// The network of an address.
    #[must_use]
    #[inline]
    pub fn of(addr: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(addr);
        let mapped_v4 = bits >> 32 == 0xffff;
        let host_bits = if mapped_v4 { 0xff } else { u128::from(u64::MAX) };
        Self(Addr((bits & !host_bits).to_be_bytes()))
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.ip() {
            IpAddr::V4(v4) => write!(f, "{v4}/24"),
            IpAddr::V6(v6) => write!(f, "{}/64", Ipv6Addr::from(v6.octets())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn networks_are_masked() {
        let v4 = |text: &str| Network::of(Addr::from(text.parse::<IpAddr>().unwrap()).0).to_string();
        assert_eq!((v4("10.1.2.3"), v4("2001:db8:1:2:3::4")), ("10.1.2.0/24".into(), "2001:db8:1:2::/64".into()));
        assert_eq!(v4("::1"), "::/64");
    }

    proptest! {
        #[test]
        fn figures_are_those_of_the_samples(samples in proptest::collection::vec(1u32..60_000_000, 1..200)) {
            let (a, b) = samples.split_at(samples.len() / 2);
            let (mut stats, mut other) = (RttStats::default(), RttStats::default());
            stats.record(a);
            other.record(b);
            stats.add(&other);
            let n = samples.len() as f64;
            let mean = samples.iter().map(|s| f64::from(*s)).sum::<f64>() / n;
            let deviation = (samples.iter().map(|s| (f64::from(*s) - mean).powi(2)).sum::<f64>() / n).sqrt();
            prop_assert!((stats.mean_us() - mean).abs() < 0.01);
            prop_assert!((stats.deviation_us() - deviation).abs() < 1.0 + deviation * 1e-3);
            let mut sorted = samples.clone();
            sorted.sort_unstable();
            let median = f64::from(sorted[(samples.len() - 1) / 2]);
            let shown = stats.quantile_us(0.5) as f64;
            prop_assert!((shown - median).abs() <= median * 0.07 + 1.0, "{shown} for {median}");
            prop_assert_eq!(stats.decades().iter().map(|(_, n)| n).sum::<u64>(), samples.len() as u64);
        }
    }
}
