//! Medians with an honest interval.

/// Fewest values from which an interval of 90 % can be read: the second and the last but one of eight are 93 %.
pub(crate) const FEWEST: usize = 8;

/// Probability that an interval holds the true median.
const CONFIDENCE: f64 = 0.9;

/// Median, and the order statistics around it that hold the true one with at least [`CONFIDENCE`] (sign test, both
/// sides). Of too few values for that, the extremes.
pub(crate) fn interval(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let k = beyond(n);
    let median = if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 };
    (sorted[k], median, sorted[n - 1 - k])
}

/// How many of `n` values may lie outside at either end: each lies below the true median or above it by the toss of a
/// coin. Exact, because the normal distribution promises too much: for 12 values 90 % where it is 85.
fn beyond(n: usize) -> usize {
    // The probabilities that none is below the median, one, two ..., and their sum.
    let mut exactly = 0.5_f64.powi(n as i32);
    let mut at_most = 0.0;
    for k in 0..=n / 2 {
        at_most += exactly;
        if 1.0 - 2.0 * at_most < CONFIDENCE {
            return k.saturating_sub(1);
        }
        exactly *= (n - k) as f64 / (k + 1) as f64;
    }
    n / 2
}

/// What an interval says of a bar.
pub(crate) fn verdict(bar: f64, values: &[f64]) -> &'static str {
    if values.len() < FEWEST {
        return "too few turns to say";
    }
    let (low, _, high) = interval(values);
    if high <= bar {
        "met"
    } else if low > bar {
        "not met"
    } else {
        "too noisy to say"
    }
}

/// The value below which a share of all values lies; 0 if there are none.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (share * values.len() as f64) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_by_the_whole_interval() {
        // The extremes lie outside of it.
        let values = |low, high| [-9.0, low, 2.0, 2.0, 2.0, 2.0, high, 9.0];
        let verdicts = [(-1.0, 2.0), (1.0, 2.1), (2.0, 3.0)].map(|(low, high)| verdict(2.0, &values(low, high)));
        assert_eq!(verdicts, ["met", "too noisy to say", "too noisy to say"]);
        assert_eq!(verdict(1.9, &values(2.0, 2.0)), "not met");
        assert_eq!(verdict(2.0, &values(2.0, 2.0)[1..]), "too few turns to say");
    }

    #[test]
    fn as_many_values_as_the_tables_of_the_sign_test_say_are_outside() {
        // For 90 %, both sides: the critical values of any statistics book.
        let right = [(5, 0), (8, 1), (10, 1), (11, 2), (12, 2), (13, 3), (16, 4), (20, 5), (25, 7), (30, 10), (40, 14)];
        right.iter().for_each(|&(n, k)| assert_eq!(beyond(n), k, "{n}"));
        assert!((460..480).contains(&beyond(1000)), "{}", beyond(1000));
    }

    #[test]
    fn intervals_hold_the_median() {
        let eight: Vec<f64> = (1..=8).map(f64::from).collect();
        assert_eq!(interval(&eight), (2.0, 4.5, 7.0));
        assert_eq!(interval(&[3.0, 1.0]), (1.0, 2.0, 3.0));
        assert_eq!(interval(&[1.0]), (1.0, 1.0, 1.0));
        let many: Vec<f64> = (1..=41).map(f64::from).collect();
        let (low, median, high) = interval(&many);
        assert_eq!(median, 21.0);
        assert!((15.0..17.0).contains(&low) && (25.0..28.0).contains(&high), "{low} {high}");
    }
}
