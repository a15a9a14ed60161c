//! Not to ask again and again where nothing is translated.

use std::time::{Duration, Instant};

/// How long nothing is asked.
const PAUSE: Duration = Duration::from_secs(10);
/// Questions in a row without a translated answer after which that is so: about a millisecond's worth.
const QUESTIONS: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Quiet {
    until: Option<Instant>,
    in_vain: usize,
}

impl Quiet {
    pub(super) fn is_now(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// So many were asked. `is_idle`: nothing at all is tracked here.
    pub(super) fn take(&mut self, now: Instant, asked: usize, is_translated: bool, is_idle: bool) {
        self.in_vain = if is_translated { 0 } else { self.in_vain + asked };
        if is_idle || self.in_vain >= QUESTIONS {
            *self = Self { until: Some(now + PAUSE), in_vain: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_where_nothing_is_translated() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        quiet.take(start, 1, false, false);
        assert!(!quiet.is_now(start), "one is not enough");
        quiet.take(start, 1, false, true);
        assert!(quiet.is_now(start) && quiet.is_now(start + PAUSE - Duration::from_millis(1)));
        let later = start + PAUSE;
        assert!(!quiet.is_now(later));
        quiet.take(later, QUESTIONS - 1, false, false);
        quiet.take(later, 64, true, false);
        quiet.take(later, QUESTIONS - 1, false, false);
        assert!(!quiet.is_now(later), "one was translated in between");
        quiet.take(later, 1, false, false);
        assert!(quiet.is_now(later));
    }
}
