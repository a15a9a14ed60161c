//! Figures for people.

/// Bytes with three significant digits: `999 B`, `1.23 kB`, `45.6 MB`. Powers of 1000, as network people count.
#[must_use]
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], 1000.0)
}

/// A count: `999`, `12.3 k`, `4.56 M`.
#[must_use]
pub fn count(n: u64) -> String {
    if n < 100_000 { n.to_string() } else { scaled(n as f64, &["", "k", "M", "G", "T", "P", "E"], 1000.0) }
}

/// A time given in nanoseconds: `85 ns`, `12.3 us`, `20.1 ms`, `1.50 s`.
#[must_use]
pub fn nanoseconds(ns: f64) -> String {
    scaled(ns, &["ns", "us", "ms", "s"], 1000.0)
}

/// A time given in microseconds.
#[must_use]
pub fn microseconds(us: u64) -> String {
    nanoseconds(us as f64 * 1000.0)
}

/// A long time given in seconds: `42 s`, `3 m 05 s`, `2 h 07 m`, `5 d 03 h`.
#[must_use]
pub fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} m {:02} s", s / 60, s % 60),
        3600..86400 => format!("{} h {:02} m", s / 3600, s / 60 % 60),
        _ => format!("{} d {:02} h", s / 86400, s / 3600 % 24),
    }
}

fn scaled(value: f64, units: &[&str], step: f64) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would be rounded to 1000 of the same unit.
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit]).trim_end().to_owned()
}

pub use crate::grid::ellipsis;

/// Text that does nothing to a terminal: control characters, and those that change the direction of text, become
/// U+FFFD. The agent cleans what it sends; but whoever looks as root need not trust what stands behind a socket.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unsafe(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// A control character, or one that changes the direction of text.
#[must_use]
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What somebody is called. With a question mark where whoever connected has not asked for that name: somebody else has, who may
/// have meant another one.
#[must_use]
pub fn called(name: &str, is_sure: bool) -> String {
    format!("{name}{}", if is_sure { "" } else { "?" })
}

/// `downloads.example.net (203.0.113.7:80)`: an endpoint with what it is called.
#[must_use]
pub fn named(name: &str, is_sure: bool, known: &str) -> String {
    format!("{} ({known})", called(name, is_sure))
}

/// `10.96.0.80:80 ⇒ 10.88.0.6:8000`: an endpoint as the initiator knows it, and as the responder does if that is another one.
#[must_use]
pub fn endpoint(known: String, translated: Option<String>) -> String {
    match translated {
        Some(translated) if translated != known => format!("{known} ⇒ {translated}"),
        _ => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_significant_digits() {
        let shown: Vec<_> = [0, 1, 999, 1000, 1234, 45_678, 999_499, 999_999, 1_000_000, u64::MAX].map(bytes).into();
        assert_eq!(
            shown,
            ["0 B", "1 B", "999 B", "1.00 kB", "1.23 kB", "45.7 kB", "999 kB", "1.00 MB", "1.00 MB", "18.4 EB"]
        );
        assert_eq!([microseconds(85), microseconds(20_130)], ["85.0 us", "20.1 ms"]);
        assert_eq!([seconds(5), seconds(185), seconds(7625)], ["5 s", "3 m 05 s", "2 h 07 m"]);
        assert_eq!([count(99_999), count(120_000)], ["99999", "120 k"]);
    }

    #[test]
    fn ellipsis_counts_characters() {
        assert_eq!(ellipsis("äöü", 3), "äöü");
        assert_eq!(ellipsis("äöüß", 3), "äö…");
    }
}
