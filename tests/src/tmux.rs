//! A terminal that nobody sits at: tmux, with keys sent to it and its screen read back, as text and as a picture.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::wait_for;

/// How long something may take to be on the screen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal with a shell in it. It ends with this, and what runs in it with it.
pub struct Terminal {
    server: String,
}

impl Terminal {
    /// A shell in a terminal of this size.
    ///
    /// # Panics
    /// If tmux is not there.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let terminal = Self { server: format!("sockeye-{}-{number}", std::process::id()) };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let shell = "env PS1=ready: LANG=C.UTF-8 LC_ALL=C.UTF-8 bash --norc --noprofile";
        terminal.tmux(&["-u", "-f", "/dev/null", "new-session", "-d", "-x", &columns, "-y", &rows, shell]);
        terminal.wait_for("ready:");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.server]).args(args).output().expect("tmux is installed");
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line.
    pub fn line(&self, text: &str) {
        self.text(text);
        self.key("Enter");
    }

    /// Types.
    pub fn text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Presses a key, by tmux's name of it.
    pub fn key(&self, name: &str) {
        self.tmux(&["send-keys", name]);
    }

    /// Another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// What is on the screen.
    #[must_use]
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until a text is on the screen, and returns all of it.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |screen| screen.contains(text))
    }

    /// Waits for a screen.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(what, PATIENCE, || {
                last = self.screen();
                is(&last).then(|| last.clone())
            })
        }));
        found.unwrap_or_else(|_| panic!("no {what:?} on the screen:\n{last}"))
    }

    /// What the program in it has made of the terminal: the other screen, an invisible cursor, the mouse.
    #[must_use]
    pub fn state(&self) -> TerminalState {
        let format = "#{alternate_on} #{cursor_flag} #{mouse_any_flag}";
        let told = self.tmux(&["display-message", "-p", format]);
        let flags: Vec<bool> = told.split_whitespace().map(|flag| flag == "1").collect();
        TerminalState { other_screen: flags[0], cursor: flags[1], mouse: flags[2] }
    }

    /// The screen as a picture (SVG), with its colours.
    #[must_use]
    pub fn picture(&self) -> String {
        picture(&self.tmux(&["capture-pane", "-p", "-e"]))
    }

    /// The terminal is closed under whoever uses it.
    pub fn close(&self) {
        let _ = Command::new("tmux").args(["-L", &self.server, "kill-server"]).output();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.close();
    }
}

/// See [`Terminal::state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalState {
    /// The one without a history.
    pub other_screen: bool,
    /// It can be seen.
    pub cursor: bool,
    /// It is taken.
    pub mouse: bool,
}

impl TerminalState {
    /// As a shell has it.
    pub const CLEAN: Self = Self { other_screen: false, cursor: true, mouse: false };
}

/// The sixteen colours.
const COLOURS: [&str; 16] = [
    "#15191f", "#cc5c57", "#7fb069", "#d9a93f", "#6a92c8", "#a97fb5", "#5fb0b7", "#c9d1d9", "#6e7681", "#ff7b72",
    "#9bd17f", "#f2cc60", "#8fb5e8", "#d2a8ff", "#7fd6dd", "#ffffff",
];
/// Of one character, in the picture.
const CELL: (f64, f64) = (8.0, 17.0);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    front: Option<u8>,
    back: Option<u8>,
    bold: bool,
    dim: bool,
    underlined: bool,
    reversed: bool,
}

impl Look {
    /// The numbers of an SGR sequence.
    fn take_all(&mut self, numbers: &[u8]) {
        match numbers {
            [] => {}
            [38, 5, colour, rest @ ..] => {
                self.front = Some(*colour).filter(|colour| usize::from(*colour) < COLOURS.len());
                self.take_all(rest);
            }
            [48, 5, colour, rest @ ..] => {
                self.back = Some(*colour).filter(|colour| usize::from(*colour) < COLOURS.len());
                self.take_all(rest);
            }
            [number, rest @ ..] => {
                self.take(*number);
                self.take_all(rest);
            }
        }
    }

    /// One that stands for itself.
    fn take(&mut self, number: u8) {
        match number {
            0 => *self = Self::default(),
            1 => self.bold = true,
            2 => self.dim = true,
            4 => self.underlined = true,
            7 => self.reversed = true,
            22 => (self.bold, self.dim) = (false, false),
            24 => self.underlined = false,
            27 => self.reversed = false,
            30..=37 => self.front = Some(number - 30),
            39 => self.front = None,
            40..=47 => self.back = Some(number - 40),
            49 => self.back = None,
            90..=97 => self.front = Some(number - 82),
            100..=107 => self.back = Some(number - 92),
            _ => {}
        }
    }

    /// Of the characters, and behind them.
    fn colours(self) -> (&'static str, Option<&'static str>) {
        let front = self.front.map_or(COLOURS[7], |colour| COLOURS[usize::from(colour)]);
        let back = self.back.map(|colour| COLOURS[usize::from(colour)]);
        if self.reversed { (back.unwrap_or(COLOURS[0]), Some(front)) } else { (front, back) }
    }
}

/// Text with SGR sequences as SVG.
fn picture(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end_matches('\n').split('\n').collect();
    let (mut body, mut look, mut widest) = (String::new(), Look::default(), 1);
    for (row, line) in lines.iter().enumerate() {
        let mut column = 0;
        for (number, part) in line.split("\x1b[").enumerate() {
            let shown = match part.split_once('m').filter(|_| number > 0) {
                Some((numbers, shown)) => {
                    look.take_all(&numbers.split(';').map(|number| number.parse().unwrap_or(0)).collect::<Vec<u8>>());
                    shown
                }
                None => part,
            };
            draw(&mut body, shown, (column, row), look);
            column += shown.chars().count();
        }
        widest = widest.max(column);
    }
    let (width, height) = (widest as f64 * CELL.0 + 16.0, lines.len() as f64 * CELL.1 + 16.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13\" xml:space=\"preserve\">\n{body}</g>\n</svg>\n",
        COLOURS[0]
    )
}

fn draw(body: &mut String, text: &str, (column, row): (usize, usize), look: Look) {
    if text.is_empty() {
        return;
    }
    let (front, back) = look.colours();
    let (x, y) = (8.0 + column as f64 * CELL.0, 8.0 + row as f64 * CELL.1);
    let width = text.chars().count() as f64 * CELL.0;
    if let Some(back) = back {
        let _ = writeln!(body, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{}\" fill=\"{back}\"/>", CELL.1);
    }
    if look.underlined {
        let below = y + CELL.1 - 1.0;
        let _ = writeln!(body, "<path d=\"M{x} {below}h{width}\" stroke=\"{front}\" stroke-opacity=\"0.5\"/>");
    }
    if text.trim().is_empty() {
        return;
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let weight = if look.bold { " font-weight=\"bold\"" } else { "" };
    let opacity = if look.dim { " opacity=\"0.6\"" } else { "" };
    let base = y + 13.0;
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{base}\" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{front}\"{weight}{opacity}>{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_has_the_text_and_its_colours() {
        let svg = picture("plain \x1b[1;38;5;1ma<b\x1b[0m\n\x1b[7mchosen\x1b[39m\n");
        assert!(svg.contains("font-weight=\"bold\">a&lt;b</text>") && svg.contains(COLOURS[1]), "{svg}");
        assert!(svg.contains(&format!("fill=\"{}\"/>", COLOURS[7])) && svg.contains("chosen"), "{svg}");
    }
}
