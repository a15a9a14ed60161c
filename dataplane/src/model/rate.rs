//! How much there was per second, over a window that ends now.

use std::time::Duration;

/// Parts of the window. It ends with the last complete one, so that a rate does not depend on the moment of the question.
const PARTS: usize = 5;

/// The length of the windows: the same for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    part_ns: u64,
}

impl Window {
    /// The shortest one that says something of figures that come every `interval`: at least ten seconds.
    #[must_use]
    pub fn of_reports_every(interval: Duration) -> Self {
        let length = interval.max(Duration::from_secs(10));
        Self { part_ns: length.as_nanos() as u64 / PARTS as u64 }
    }

    /// Nanoseconds.
    #[must_use]
    pub fn length_ns(self) -> u64 {
        self.part_ns * PARTS as u64
    }

    fn part_of(self, now_ns: u64) -> u32 {
        (now_ns / self.part_ns) as u32
    }

    fn seconds(self) -> f64 {
        self.length_ns() as f64 / 1e9
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::of_reports_every(Duration::ZERO)
    }
}

/// What was added within a window, for `N` kinds of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates<const N: usize> {
    /// By part of time; the place of a part is its number modulo their count. One more than the window has: the one that
    /// is not over.
    sums: [[u64; N]; PARTS + 1],
    /// The last part that something was added in.
    newest: u32,
}

impl<const N: usize> Default for Rates<N> {
    fn default() -> Self {
        Self { sums: [[0; N]; PARTS + 1], newest: 0 }
    }
}

impl<const N: usize> Rates<N> {
    /// Adds what has come now.
    pub fn add(&mut self, amounts: [u64; N], window: Window, now_ns: u64) {
        self.go_on(window.part_of(now_ns));
        self.add_to(self.newest, amounts);
    }

    /// Adds another's figures.
    pub fn add_all(&mut self, other: &Self) {
        self.go_on(other.newest);
        for back in 0..=PARTS as u32 {
            let Some(part) = other.newest.checked_sub(back) else { break };
            if self.newest - part <= PARTS as u32 {
                self.add_to(part, other.sums[part as usize % (PARTS + 1)]);
            }
        }
    }

    /// Per second.
    #[must_use]
    pub fn per_second(&self, window: Window, now_ns: u64) -> [f64; N] {
        let now = window.part_of(now_ns);
        let mut sums = [0; N];
        for part in now.saturating_sub(PARTS as u32)..now {
            if part <= self.newest && self.newest - part <= PARTS as u32 {
                let of_part = self.sums[part as usize % (PARTS + 1)];
                sums.iter_mut().zip(of_part).for_each(|(sum, amount)| *sum += amount);
            }
        }
        sums.map(|sum| sum as f64 / window.seconds())
    }

    /// Forgets what is too old by then.
    fn go_on(&mut self, part: u32) {
        if part <= self.newest {
            return;
        }
        for new in (self.newest + 1..=part).take(PARTS + 1) {
            self.sums[new as usize % (PARTS + 1)] = [0; N];
        }
        if part - self.newest > PARTS as u32 {
            self.sums = [[0; N]; PARTS + 1];
        }
        self.newest = part;
    }

    fn add_to(&mut self, part: u32, amounts: [u64; N]) {
        let sums = &mut self.sums[part as usize % (PARTS + 1)];
        sums.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum += amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn what_comes_every_ten_seconds_has_the_same_rate_at_any_moment() {
        let window = Window::default();
        let mut rates = Rates::default();
        for tenth in 0..600 {
            let now_ns = 100 * SECOND + tenth * SECOND / 10;
            if tenth % 100 == 33 {
                rates.add([5000, 10], window, now_ns);
            }
            if tenth > 140 {
                assert_eq!(rates.per_second(window, now_ns), [500.0, 1.0], "{tenth}");
            }
        }
        assert_eq!(rates.per_second(window, 200 * SECOND), [0.0, 0.0]);
        assert_eq!(Window::of_reports_every(Duration::from_secs(60)).seconds(), 60.0);
    }

    proptest! {
        #[test]
        fn the_rate_of_all_is_the_sum_of_the_rates(
            amounts in proptest::collection::vec((0u64..40, 0u64..1000, any::<bool>()), 0..40), now_s in 0u64..60,
        ) {
            let window = Window::default();
            let mut amounts = amounts;
            amounts.sort_unstable();
            let (mut parts, mut all) = ([Rates::<1>::default(); 2], Rates::<1>::default());
            for (at_s, amount, which) in amounts {
                parts[usize::from(which)].add([amount], window, at_s * SECOND);
                all.add([amount], window, at_s * SECOND);
            }
            let mut sum = parts[0];
            sum.add_all(&parts[1]);
            let now_ns = now_s.max(40) * SECOND;
            prop_assert_eq!(sum.per_second(window, now_ns), all.per_second(window, now_ns));
            let mut turned = parts[1];
            turned.add_all(&parts[0]);
            prop_assert_eq!(turned.per_second(window, now_ns), all.per_second(window, now_ns));
        }
    }
}
