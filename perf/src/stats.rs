//! Medians with an honest interval.

/// Median, and the order statistics around it that hold the true one with at least 90 % (sign test, both sides).
pub(crate) fn interval(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let half = (n as f64 - 1.645 * (n as f64).sqrt()) / 2.0;
    let k = (half.floor().max(0.0) as usize).min(n.saturating_sub(1) / 2);
    let median = if n % 2 == 1 { sorted[n / 2] } else { (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0 };
    (sorted[k], median, sorted[n - 1 - k])
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
    fn intervals_hold_the_median() {
        let eight: Vec<f64> = (1..=8).map(f64::from).collect();
        assert_eq!(interval(&eight), (2.0, 4.5, 7.0));
        let many: Vec<f64> = (1..=41).map(f64::from).collect();
        let (low, median, high) = interval(&many);
        assert_eq!(median, 21.0);
        assert!((15.0..17.0).contains(&low) && (25.0..28.0).contains(&high), "{low} {high}");
    }
}
