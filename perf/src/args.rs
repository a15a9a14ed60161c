//! Arguments that are bounded: what is beyond is refused, with the bounds.

use std::ops::RangeInclusive;

/// Seconds of one measurement.
pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    within(text, 0.1..=60.0)
}

/// Minutes of a long one: six seconds to a week.
pub(crate) fn parse_minutes(text: &str) -> Result<f64, String> {
    within(text, 0.1..=10_080.0)
}

fn within(text: &str, range: RangeInclusive<f64>) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| range.contains(value));
    value.ok_or_else(|| format!("expected {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_is_refused() {
        assert_eq!(parse_seconds("2"), Ok(2.0));
        assert_eq!(parse_minutes("0"), Err("expected 0.1 to 10080".into()));
        assert!(["0", "nan", "-1", "1e9", "x"].iter().all(|text| parse_seconds(text).is_err()));
    }
}
