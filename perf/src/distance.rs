//! How far apart two CPUs are: the time that a cache line takes from one to the other. A hypervisor may move virtual CPUs
//! to cores that share a cache, or to others, at any time; then everything that passes from CPU to CPU becomes several
//! times faster or slower, and two measurements on either side of it must not be compared.

use std::hint;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use crate::load::pin;

const ROUND_TRIPS: u32 = 2_000;
/// Batches of round trips: the fastest one was not interrupted.
const BATCHES: u32 = 5;
/// Two distances are the same unless they differ by more than this.
const SAME_FACTOR: f64 = 1.6;

/// Nanoseconds for a cache line from the first to the second CPU, a few milliseconds of measuring.
pub(crate) fn line_ns() -> f64 {
    /// Alone on its cache line, and on the one that is fetched along with it.
    #[repr(align(128))]
    struct Line(AtomicU32);
    let line = Line(AtomicU32::new(0));
    let pass_on = |from: u32, to: u32| {
        while line.0.load(Ordering::Acquire) != from {
            hint::spin_loop();
        }
        line.0.store(to, Ordering::Release);
    };
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            pin(0);
            let mut fastest = f64::MAX;
            for batch in 0..BATCHES {
                let began = Instant::now();
                for i in batch * ROUND_TRIPS..(batch + 1) * ROUND_TRIPS {
                    pass_on(2 * i, 2 * i + 1);
                }
                fastest = fastest.min(began.elapsed().as_nanos() as f64 / f64::from(2 * ROUND_TRIPS));
            }
            fastest
        });
        scope.spawn(|| {
            pin(1);
            (0..BATCHES * ROUND_TRIPS).for_each(|i| pass_on(2 * i + 1, 2 * i + 2));
        });
        there.join().unwrap_or(f64::NAN)
    })
}

/// Whether these were measured at one distance.
pub(crate) fn is_same(a_ns: f64, b_ns: f64) -> bool {
    a_ns.max(b_ns) <= a_ns.min(b_ns) * SAME_FACTOR
}

/// What the distances were, in words.
pub(crate) fn in_words(all_ns: &[f64]) -> String {
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for &ns in all_ns {
        match groups.iter_mut().find(|(of, _)| is_same(*of, ns)) {
            Some((_, times)) => *times += 1,
            None => groups.push((ns, 1)),
        }
    }
    groups.sort_by(|a, b| a.0.total_cmp(&b.0));
    let parts: Vec<_> = groups.iter().map(|(ns, times)| format!("{ns:.0} ns ({times} times)")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_fall_into_groups() {
        assert_eq!(in_words(&[160.0, 25.0, 28.0, 170.0, 26.0]), "25 ns (3 times), 160 ns (2 times)");
        assert!(is_same(25.0, 35.0) && !is_same(165.0, 26.0));
    }
}
