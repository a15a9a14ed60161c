//! Aligned columns for terminals, by the width that characters have there: CJK and many symbols take two cells, combining
//! marks none.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Between two columns.
pub const GAP: &str = "  ";

/// A column's title, and whether its cells are text, which goes to the left; numbers go to the right.
pub type Title<'a> = (&'a str, bool);

/// Cells that a text takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.width()
}

/// Fills up with blanks on the right.
#[must_use]
pub fn pad(text: &str, cells: usize) -> String {
    format!("{text}{}", " ".repeat(cells.saturating_sub(width(text))))
}

/// Fills up with blanks on the left.
#[must_use]
pub fn pad_left(text: &str, cells: usize) -> String {
    format!("{}{text}", " ".repeat(cells.saturating_sub(width(text))))
}

/// Cuts text to so many cells, with an ellipsis where something is missing.
#[must_use]
pub fn ellipsis(text: &str, cells: usize) -> String {
    if width(text) <= cells {
        return text.to_owned();
    }
    let (mut cut, mut used) = (String::new(), 1);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > cells {
            break;
        }
        cut.push(c);
    }
    cut.push('…');
    cut
}

/// The title line and a line for each row, without their ends; each line begins with a gap.
#[must_use]
pub fn lines(titles: &[Title<'_>], rows: &[Vec<String>]) -> Vec<String> {
    let widest = |i: usize| rows.iter().map(|row| width(&row[i])).chain([width(titles[i].0)]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(widest).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for ((cell, width), (_, left)) in cells.zip(&widths).zip(titles) {
            text += GAP;
            text += &if *left { pad(cell, *width) } else { pad_left(cell, *width) };
        }
        text.trim_end().to_owned()
    };
    let head = line(&mut titles.iter().map(|(title, _)| *title));
    std::iter::once(head).chain(rows.iter().map(|row| line(&mut row.iter().map(String::as_str)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_do_not_shift_what_follows() {
        let rows = [["名前", "1"], ["e\u{301}", "22"], ["plain", "3"]].map(|row| row.map(str::to_owned).to_vec());
        let shown = lines(&[("NAME", true), ("N", false)], &rows);
        assert_eq!(shown, ["  NAME    N", "  名前    1", "  e\u{301}      22", "  plain   3"]);
        for line in &shown {
            assert_eq!(width(line), 11, "{line:?}");
        }
    }

    #[test]
    fn ellipsis_counts_cells() {
        assert_eq!((ellipsis("äöü", 3).as_str(), ellipsis("äöüß", 3).as_str()), ("äöü", "äö…"));
        assert_eq!((ellipsis("名前です", 8).as_str(), ellipsis("名前です", 6).as_str()), ("名前です", "名前…"));
        for cells in 1..9 {
            assert!(width(&ellipsis("a名b前c", cells)) <= cells);
        }
    }
}
