//! Colours: the 16 that every terminal has, in the shades that its user has chosen. With NO_COLOR, none.

use clap::ValueEnum;
use ratatui::style::{Color, Modifier, Style};

/// Sets of colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colours {
    /// For a dark background.
    Dark,
    /// For a light background.
    Light,
    /// None: bold, dim and reversed only.
    Mono,
}

/// How things look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    pub(crate) colours: Colours,
    /// Names of figures in the header, help, what is quiet.
    pub(crate) dim: Style,
    /// Host, headings.
    pub(crate) strong: Style,
    /// Titles of columns.
    pub(crate) titles: Style,
    /// The column that is sorted by.
    pub(crate) sorted: Style,
    /// The row that is selected.
    pub(crate) selected: Style,
    /// The view that is shown.
    pub(crate) tab: Style,
    /// All is well.
    pub(crate) good: Style,
    /// Something was lost once, or a filter is wrong.
    pub(crate) warn: Style,
    /// Something is being lost; the agent is gone.
    pub(crate) bad: Style,
    /// Bars and lines.
    pub(crate) graph: Style,
    /// Flows that are over.
    pub(crate) over: Style,
}

impl Theme {
    pub(crate) fn of(colours: Colours) -> Self {
        let plain = Style::new();
        let (bold, dim) = (plain.add_modifier(Modifier::BOLD), plain.add_modifier(Modifier::DIM));
        let reversed = plain.add_modifier(Modifier::REVERSED);
        let mono = Self {
            colours,
            dim,
            strong: bold,
            titles: plain.add_modifier(Modifier::UNDERLINED),
            sorted: bold.add_modifier(Modifier::UNDERLINED),
            selected: reversed,
            tab: reversed,
            good: plain,
            warn: bold,
            bad: bold.add_modifier(Modifier::REVERSED),
            graph: plain,
            over: dim,
        };
        match colours {
            Colours::Mono => mono,
            Colours::Dark => Self {
                dim: plain.fg(Color::Gray),
                good: plain.fg(Color::Green),
                warn: plain.fg(Color::Yellow),
                bad: bold.fg(Color::White).bg(Color::Red),
                graph: plain.fg(Color::Cyan),
                over: plain.fg(Color::DarkGray),
                ..mono
            },
            Colours::Light => Self {
                dim: plain.fg(Color::DarkGray),
                good: plain.fg(Color::Green),
                warn: plain.fg(Color::Magenta),
                bad: bold.fg(Color::White).bg(Color::Red),
                graph: plain.fg(Color::Blue),
                over: plain.fg(Color::Gray),
                ..mono
            },
        }
    }

    pub(crate) fn next(self) -> Self {
        let all = Colours::value_variants();
        let at = all.iter().position(|colours| *colours == self.colours).unwrap_or(0);
        Self::of(all[(at + 1) % all.len()])
    }
}

/// What stands for a character that a terminal without UTF-8 cannot show.
pub(crate) fn ascii(symbol: &str) -> &'static str {
    match symbol {
        "→" | "⇒" => ">",
        "…" => "~",
        "·" => "|",
        "▼" => "v",
        "▲" => "^",
        "▁" => "_",
        "▂" => ".",
        "▃" => ":",
        "▄" => "-",
        "▅" => "=",
        "▆" => "+",
        "▇" => "*",
        "█" => "#",
        "▏" | "▎" | "▍" => ".",
        "▌" | "▋" | "▊" | "▉" => ":",
        "─" => "-",
        "│" => "|",
        "±" | "≤" => "<",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colours_there_are_none_and_with_them_only_the_sixteen() {
        let styles = |theme: Theme| {
            let Theme { dim, strong, titles, sorted, selected, tab, good, warn, bad, graph, over, .. } = theme;
            [dim, strong, titles, sorted, selected, tab, good, warn, bad, graph, over]
        };
        for style in styles(Theme::of(Colours::Mono)) {
            assert_eq!((style.fg, style.bg), (None, None));
        }
        for style in [Colours::Dark, Colours::Light].into_iter().flat_map(|colours| styles(Theme::of(colours))) {
            for colour in [style.fg, style.bg].into_iter().flatten() {
                assert!(!matches!(colour, Color::Rgb(..) | Color::Indexed(_)), "{colour}");
            }
        }
        let mut theme = Theme::of(Colours::Dark);
        (0..3).for_each(|_| theme = theme.next());
        assert_eq!(theme.colours, Colours::Dark);
    }
}
