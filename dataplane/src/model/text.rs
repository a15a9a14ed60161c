//! Text from outside, made safe for whoever shows it.

use std::borrow::Cow;

use sockeye_ctl::human::printable;

/// A path from its components, the last one first, each with a NUL, as the kernel side sends it. Empty if there is none.
#[must_use]
pub fn components(bytes: &[u8]) -> String {
    let mut path = String::with_capacity(bytes.len());
    for component in bytes.strip_suffix(b"\0").unwrap_or(bytes).rsplit(|b| *b == 0).filter(|c| !c.is_empty()) {
        path.push('/');
        path.push_str(&clean(component));
    }
    path
}

/// Shortens to at most `max` bytes without splitting a character.
pub fn truncate(text: &mut String, max: usize) {
    text.truncate(truncated(text, max).len());
}

/// The beginning, at most `max` bytes, without half a character.
#[must_use]
pub fn truncated(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Text that is safe for terminals, JSON and ntopng: invalid UTF-8 and control characters (C0, DEL, C1) and the
/// characters that change the direction of text become U+FFFD.
#[must_use]
pub fn clean(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// Text for collectors whose pages show it as HTML: `< > " ' &` and the backtick become their full-width forms (U+FF00 to
/// U+FF60), which look alike and mean nothing. One for one, so that nothing is lost.
#[must_use]
pub fn neutral(text: &str) -> Cow<'_, str> {
    const MARKUP: [char; 6] = ['<', '>', '"', '\'', '&', '`'];
    const TO_FULL_WIDTH: u32 = 0xfee0;
    // Byte by byte: all of them are ASCII, and nearly no text has one.
    if !text.bytes().any(|b| matches!(b, b'<' | b'>' | b'"' | b'\'' | b'&' | b'`')) {
        return Cow::Borrowed(text);
    }
    let wide = |c: char| char::from_u32(c as u32 + TO_FULL_WIDTH).filter(|_| MARKUP.contains(&c)).unwrap_or(c);
    Cow::Owned(text.chars().map(wide).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_made_safe() {
        assert_eq!(clean(b"a\x1b[31mb\xffc\n"), "a\u{fffd}[31mb\u{fffd}c\u{fffd}");
        assert_eq!(clean("x\u{202e}y".as_bytes()), "x\u{fffd}y");
    }
}
