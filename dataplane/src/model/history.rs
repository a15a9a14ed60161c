//! What the last five minutes were like, for drawing: sums of parts of five seconds.
//!
//! A ring of 60 parts with three kinds of figures takes 760 bytes. Groups have one from their first traffic on: 4,096
//! processes, as many places and 2,048 conversations at most, together 8 MB at worst.

use super::rate::Window;

/// Parts that are over.
pub const PARTS: usize = 60;
/// Length of a part.
const PART_NS: u64 = 5_000_000_000;

/// Sums of `N` kinds of figures. Exact while they are being added to, rounded to 24 bits when a part is over.
#[derive(Debug, Clone, PartialEq)]
pub struct History<const N: usize> {
    current: [u64; N],
    /// Number of the part that is not over.
    part: u32,
    /// Those that are over; the place of a part is its number modulo their count.
    over: [[f32; N]; PARTS],
}

impl<const N: usize> Default for History<N> {
    fn default() -> Self {
        Self { current: [0; N], part: 0, over: [[0.0; N]; PARTS] }
    }
}

fn place(part: u32) -> usize {
    part as usize % PARTS
}

fn part_of(now_ns: u64) -> u32 {
    (now_ns / PART_NS) as u32
}

impl<const N: usize> History<N> {
    /// Adds what has come now.
    #[inline]
    pub fn add(&mut self, amounts: [u64; N], now_ns: u64) {
        self.go_on(part_of(now_ns));
        self.current.iter_mut().zip(amounts).for_each(|(sum, amount)| *sum += amount);
    }

    /// Adds another's.
    pub fn add_all(&mut self, other: &Self) {
        self.go_on(other.part);
        for back in 0..=PARTS as u32 {
            let Some(part) = other.part.checked_sub(back) else { break };
            let theirs = if back == 0 { other.current.map(|sum| sum as f32) } else { other.over[place(part)] };
            match self.part - part {
                0 if back == 0 => self.current.iter_mut().zip(other.current).for_each(|(sum, n)| *sum += n),
                0 => {}
                age if age <= PARTS as u32 => {
                    self.over[place(part)].iter_mut().zip(theirs).for_each(|(sum, n)| *sum += n);
                }
                _ => break,
            }
        }
    }

    /// Per second, of each of the newest `parts` that are over by now, the oldest first. Each is the average over `window`, in
    /// which every flow that goes on is reported once: the parts alone would tell when that was.
    #[must_use]
    pub fn per_second(&self, parts: usize, window: Window, now_ns: u64) -> Vec<[f64; N]> {
        let now = part_of(now_ns);
        let smooth = (window.length_ns().div_ceil(PART_NS) as u32).clamp(1, PARTS as u32);
        let average = |newest: u32| {
            let mut sum = [0.0; N];
            for part in newest.saturating_sub(smooth - 1)..=newest {
                self.of_part(part).iter().zip(&mut sum).for_each(|(amount, sum)| *sum += f64::from(*amount));
            }
            sum.map(|sum| sum / (f64::from(smooth) * PART_NS as f64 / 1e9))
        };
        let parts = parts.min(PARTS) as u32;
        (now.saturating_sub(parts)..now).map(average).collect()
    }

    fn of_part(&self, part: u32) -> [f32; N] {
        match self.part.checked_sub(part) {
            Some(0) => self.current.map(|sum| sum as f32),
            Some(age) if age <= PARTS as u32 => self.over[place(part)],
            _ => [0.0; N],
        }
    }

    /// Forgets what is too old by then.
    fn go_on(&mut self, part: u32) {
        if part <= self.part {
            return;
        }
        self.over[place(self.part)] = std::mem::replace(&mut self.current, [0; N]).map(|sum| sum as f32);
        for quiet in (self.part + 1..part).take(PARTS) {
            self.over[place(quiet)] = [0.0; N];
        }
        self.part = part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    fn figures(history: &History<1>, now_s: u64) -> Vec<u64> {
        let parts = history.per_second(PARTS, Window::default(), now_s * SECOND);
        parts.iter().map(|part| (part[0] * 10.0).round() as u64).collect()
    }

    #[test]
    fn a_part_is_told_when_it_is_over_and_forgotten_after_five_minutes() {
        let mut history = History::default();
        history.add([50], 1001 * SECOND);
        assert_eq!(figures(&history, 1004).iter().sum::<u64>(), 0, "it is not over");
        // Two parts make a window of ten seconds: each amount is in two averages.
        assert_eq!(figures(&history, 1005)[PARTS - 2..], [0, 50]);
        assert_eq!(figures(&history, 1010)[PARTS - 3..], [0, 50, 50]);
        history.add([70], 1011 * SECOND);
        assert_eq!(figures(&history, 1015)[PARTS - 4..], [0, 50, 50, 70]);
        assert_eq!(figures(&history, 1300)[0], 50);
        assert_eq!(figures(&history, 1400), [0; PARTS]);
    }

    #[test]
    fn a_long_pause_leaves_nothing() {
        let mut history = History::default();
        (0..400).for_each(|second| history.add([1], (5000 + second) * SECOND));
        history.add([9], 50_000 * SECOND);
        assert_eq!(figures(&history, 50_005).iter().sum::<u64>(), 9);
    }

    #[test]
    fn one_report_in_a_window_is_a_level_line() {
        let mut history = History::default();
        (0..40).for_each(|turn| history.add([1000], (1000 + 10 * turn) * SECOND));
        let parts = history.per_second(20, Window::of_reports_every(Duration::from_secs(10)), 1395 * SECOND);
        assert!(parts.iter().all(|part| part[0] == 100.0), "{parts:?}");
    }

    proptest! {
        #[test]
        fn the_history_of_all_is_the_sum(
            mut amounts in proptest::collection::vec((0u64..700, 1u64..1000, any::<bool>()), 0..60), ahead_s in 0u64..400,
        ) {
            amounts.sort_unstable();
            let (mut two, mut all) = ([History::<1>::default(), History::default()], History::<1>::default());
            for (at_s, amount, which) in amounts {
                two[usize::from(which)].add([amount], at_s * SECOND);
                all.add([amount], at_s * SECOND);
            }
            for (a, b) in [(0, 1), (1, 0)] {
                let mut sum = two[a].clone();
                sum.add_all(&two[b]);
                prop_assert_eq!(figures(&sum, 700 + ahead_s), figures(&all, 700 + ahead_s));
            }
        }
    }
}
