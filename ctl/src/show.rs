//! Answers on standard output: once, or drawn again and again in the same place.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use sockeye_ctl::protocol::{Answer, Request, Table, VERSION};
use sockeye_ctl::render;

/// How answers are shown.
pub(crate) struct Shown {
    json: bool,
    zeros: bool,
    /// The screen is ours: nothing was drawn on it yet, or something was.
    watch: bool,
    first: bool,
}

impl Shown {
    pub(crate) fn new(json: bool, zeros: bool, watch: bool) -> Self {
        Self { json, zeros, watch, first: true }
    }

    /// Shows one.
    ///
    /// # Errors
    /// If nobody reads any more.
    pub(crate) fn show(&mut self, answer: &Answer, request: &Request) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            let tables: Vec<_> = answer.tables.iter().map(Table::to_json).collect();
            let object = serde_json::json!({"version": VERSION, "tables": tables});
            writeln!(out, "{object}")?;
            return out.flush();
        }
        let terminal = io::stdout().is_terminal();
        let text = render::answer(answer, request, style(terminal, self.zeros));
        if self.watch && terminal {
            let rows = terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0));
            out.write_all(redrawn(&text, rows, std::mem::take(&mut self.first)).as_bytes())?;
        } else {
            out.write_all(text.as_bytes())?;
        }
        out.flush()
    }
}

/// Width and colours of standard output.
pub(crate) fn style(terminal: bool, zeros: bool) -> render::Style {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    render::Style {
        columns: columns
            .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
            .unwrap_or(render::NO_SCREEN),
        color: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        zeros,
    }
}

/// Line over line, so that nothing is dark in between; what the screen has no room for is left out. Terminals that know
/// synchronized output show all of it at once.
fn redrawn(text: &str, rows: usize, first: bool) -> String {
    let mut out = String::from("\x1b[?2026h");
    if first {
        out += "\x1b[2J";
    }
    out += "\x1b[H";
    let most = rows.saturating_sub(1).max(1);
    for line in text.lines().take(most) {
        let _ = write!(out, "{line}\x1b[K\r\n");
    }
    let left_out = text.lines().count().saturating_sub(most);
    if left_out > 0 {
        let _ = write!(out, "... {left_out} more lines\x1b[K");
    }
    out + "\x1b[J\x1b[?2026l"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_drawn_over_lines_and_never_more_than_there_are() {
        let text = redrawn("a\nb\nc\n", 4, true);
        assert_eq!(text, "\x1b[?2026h\x1b[2J\x1b[Ha\x1b[K\r\nb\x1b[K\r\nc\x1b[K\r\n\x1b[J\x1b[?2026l");
        let text = redrawn("a\nb\nc\n", 3, false);
        assert!(!text.contains("\x1b[2J") && text.contains("... 1 more lines") && !text.contains('c'), "{text:?}");
    }
}
