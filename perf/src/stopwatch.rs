//! How long single round trips take: one look at the clock for each, and a histogram that is as large as it will be
//! before the first of them. No round trip allocates or enters the kernel for it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

/// The quantiles that are told, and their names.
pub(crate) const SHARES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// Longer round trips count as this long. A datagram that is lost ends the run sooner.
const LONGEST: Duration = Duration::from_secs(10);
/// A thousandth apart are two times told apart: what is looked for is two in a hundred.
const DIGITS: u8 = 3;

/// Of the round trips of one run, microseconds, in the order of [`SHARES`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quantiles(pub(crate) [f64; SHARES.len()]);

/// Laps, each from the end of the one before. A request leaves as soon as the answer to the last one is there, so the
/// look at the clock that ends one begins the next. What it costs, 20 to 50 ns, is in every lap, whatever is loaded.
pub(crate) struct Stopwatch {
    last: Instant,
    laps_ns: Histogram<u32>,
}

impl Stopwatch {
    /// Runs from here on.
    pub(crate) fn start() -> Result<Self> {
        let mut laps_ns = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS)?;
        // Writes to all of its memory, 100 KB, which else came from the kernel page by page, in the laps that need it.
        // The compiler may not know that all of it is zero already.
        black_box(&mut laps_ns).reset();
        Ok(Self { last: Instant::now(), laps_ns })
    }

    /// One lap is over.
    #[inline]
    pub(crate) fn lap(&mut self) {
        let now = Instant::now();
        self.laps_ns.saturating_record((now - self.last).as_nanos() as u64);
        self.last = now;
    }

    /// How many laps there were.
    pub(crate) fn laps(&self) -> u64 {
        self.laps_ns.len()
    }

    /// None without a lap.
    pub(crate) fn quantiles(&self) -> Option<Quantiles> {
        let of = |(_, share)| self.laps_ns.value_at_quantile(share) as f64 / 1e3;
        (!self.laps_ns.is_empty()).then(|| Quantiles(SHARES.map(of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopwatch_after(laps_ns: impl Iterator<Item = u64>) -> Stopwatch {
        let mut stopwatch = Stopwatch::start().unwrap();
        laps_ns.for_each(|ns| stopwatch.laps_ns.saturating_record(ns));
        stopwatch
    }

    #[test]
    fn quantiles_are_right_to_a_thousandth() {
        let Quantiles(found_us) = stopwatch_after((1..=10_000).map(|us| us * 1000)).quantiles().unwrap();
        for (found, right) in found_us.into_iter().zip([5_000.0, 9_900.0, 9_990.0]) {
            assert!((found / right - 1.0).abs() <= 0.001, "{found} is not {right}");
        }
    }

    #[test]
    fn without_a_lap_there_are_no_quantiles() {
        assert_eq!(stopwatch_after(std::iter::empty()).quantiles(), None);
    }

    #[test]
    fn what_is_longer_than_the_longest_counts() {
        let stopwatch = stopwatch_after([u64::MAX].into_iter());
        assert_eq!(stopwatch.laps(), 1);
        let Quantiles(found_us) = stopwatch.quantiles().unwrap();
        assert!(found_us.iter().all(|&us| us >= LONGEST.as_micros() as f64 && us < 1.01 * LONGEST.as_micros() as f64));
    }

    #[test]
    fn laps_follow_each_other_without_a_gap() {
        let began = Instant::now();
        let mut stopwatch = Stopwatch::start().unwrap();
        let started = stopwatch.last;
        (0..100).for_each(|_| stopwatch.lap());
        assert!(started >= began && stopwatch.last <= Instant::now());
        assert_eq!(stopwatch.laps(), 100);
        let in_laps_us = stopwatch.laps_ns.mean() * 100.0 / 1e3;
        let whole_us = (stopwatch.last - started).as_nanos() as f64 / 1e3;
        assert!((in_laps_us / whole_us - 1.0).abs() < 0.01, "{in_laps_us} of {whole_us}");
    }
}
