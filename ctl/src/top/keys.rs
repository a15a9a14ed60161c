//! Keys, and the mouse.

use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};

use super::app::{App, Effect, Hit, Mode};
use super::views::View;

/// Longest filter that can be typed.
const FILTER_MAX: usize = 500;
/// Lines that the wheel goes.
const WHEEL: isize = 3;

/// Keys, and what they do: for the help.
pub(crate) const KEYS: [(&str, &str); 20] = [
    ("1 to 9, Tab", "the views; what they show is in the line above the table"),
    ("Up Down PgUp PgDn", "choose a row; also j k, Home End"),
    ("Enter", "into the row: its flows, then one flow's page"),
    ("Esc, Backspace", "back; at the beginning, take the filter away"),
    ("/", "filter as you type; Enter keeps it, Esc takes back what was there"),
    ("< >, Left Right", "sort by another column; or click on its title"),
    ("r", "sort the other way round"),
    ("g", "flows, peers, dns: add up by another thing"),
    ("e", "flows: also those that ended in the last five minutes"),
    ("a", "all: places without flows; agent: rows that are zero"),
    ("Space, p", "pause; whatever asks for something else goes on"),
    ("+ -", "longer, shorter time between updates"),
    ("y", "copy the row into the terminal's clipboard (OSC 52)"),
    ("w", "write what is shown into a file, as JSON"),
    ("t", "other colours"),
    ("m", "leave the mouse to the terminal, or take it"),
    ("mouse", "click on views, titles and rows; a second click is Enter"),
    ("?, h", "this help"),
    ("Ctrl-Z", "stop for now; fg goes on"),
    ("q, Ctrl-C", "end"),
];

impl App {
    pub(super) fn key(&mut self, key: KeyEvent) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => self.effects.push(Effect::Quit),
            KeyCode::Char('z') if control => self.effects.push(Effect::Suspend),
            _ => {
                self.message = None;
                match &self.mode {
                    Mode::Normal => self.normal_key(key.code, control),
                    Mode::Filter { .. } => self.filter_key(key.code, control),
                    Mode::Help(line) => {
                        let line = *line;
                        self.help_key(key.code, line);
                    }
                }
            }
        }
    }

    fn help_key(&mut self, code: KeyCode, line: u16) {
        self.mode = match code {
            KeyCode::Down | KeyCode::Char('j') => Mode::Help(line.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => Mode::Help(line.saturating_sub(1)),
            KeyCode::PageDown | KeyCode::Char(' ') => Mode::Help(line.saturating_add(10)),
            KeyCode::PageUp => Mode::Help(line.saturating_sub(10)),
            _ => Mode::Normal,
        };
    }

    fn normal_key(&mut self, code: KeyCode, control: bool) {
        let page = self.height() as isize;
        match code {
            KeyCode::Char('q') => self.effects.push(Effect::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help(0),
            KeyCode::Char(digit @ '1'..='9') => self.show(View::ALL[digit as usize - '1' as usize]),
            KeyCode::Tab => self.show_beside(1),
            KeyCode::BackTab => self.show_beside(View::ALL.len() - 1),
            KeyCode::Down | KeyCode::Char('j') => self.go(1),
            KeyCode::Up | KeyCode::Char('k') => self.go(-1),
            KeyCode::PageDown => self.go(page),
            KeyCode::PageUp => self.go(-page),
            KeyCode::Char('f') if control => self.go(page),
            KeyCode::Char('b') if control => self.go(-page),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.go(isize::MAX),
            KeyCode::Enter => self.enter(),
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Char('/') => self.begin_filter(),
            KeyCode::Char('<') | KeyCode::Left => self.sort_beside(-1),
            KeyCode::Char('>') | KeyCode::Right => self.sort_beside(1),
            KeyCode::Char('r') => self.sort(self.screen().order),
            KeyCode::Char('+' | '=') => self.interval(1),
            KeyCode::Char('-') => self.interval(-1),
            KeyCode::Char(' ' | 'p') => self.paused = !self.paused,
            KeyCode::Char('y') => self.copy(),
            KeyCode::Char('w') => self.save(),
            KeyCode::Char(other) => self.switch(other),
            _ => {}
        }
    }

    /// What is on or off, or has few values.
    fn switch(&mut self, key: char) {
        match key {
            'g' => {
                self.paused = false;
                self.screen_mut().next_group();
            }
            'e' if self.screen().view == View::Flows => {
                self.paused = false;
                let screen = self.screen_mut();
                screen.show_ended(!screen.ended);
            }
            'a' => {
                self.paused = false;
                let screen = self.screen_mut();
                screen.all = !screen.all;
            }
            't' => self.options.theme = self.options.theme.next(),
            'm' => {
                self.options.mouse = !self.options.mouse;
                self.effects.push(Effect::Mouse(self.options.mouse));
                let whose = if self.options.mouse { "is taken" } else { "is left to the terminal" };
                self.message = Some(format!("the mouse {whose}"));
            }
            _ => {}
        }
    }

    fn show_beside(&mut self, step: usize) {
        let first = self.screens.first().map_or(View::Flows, |screen| screen.view);
        let at = View::ALL.iter().position(|view| *view == first).unwrap_or(0);
        self.show(View::ALL[(at + step) % View::ALL.len()]);
    }

    fn begin_filter(&mut self) {
        let screen = self.screen();
        if screen.view.has_rows() {
            let text = screen.typed.clone();
            self.mode = Mode::Filter { before: text.clone(), text, error: None };
        }
    }

    fn filter_key(&mut self, code: KeyCode, control: bool) {
        let Mode::Filter { text, before, .. } = &mut self.mode else { return };
        match code {
            KeyCode::Esc => {
                let before = std::mem::take(before);
                self.filter(&before);
                self.mode = Mode::Normal;
                return;
            }
            KeyCode::Enter => {
                // What is wrong is not in force; what is, is shown again.
                self.mode = Mode::Normal;
                return;
            }
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char('u') if control => text.clear(),
            KeyCode::Char('w') if control => {
                let end = text.trim_end().rfind(' ').map_or(0, |blank| blank + 1);
                text.truncate(end);
            }
            KeyCode::Char(c) if !control && text.len() < FILTER_MAX => text.push(c),
            _ => return,
        }
        let typed = text.clone();
        let wrong = self.filter(&typed);
        if let Mode::Filter { error, .. } = &mut self.mode {
            *error = wrong;
        }
    }

    pub(super) fn mouse(&mut self, event: MouseEvent) {
        match event.kind {
            MouseEventKind::ScrollDown => self.wheel(WHEEL),
            MouseEventKind::ScrollUp => self.wheel(-WHEEL),
            MouseEventKind::Down(MouseButton::Left) => self.click(event.column, event.row),
            _ => {}
        }
    }

    fn wheel(&mut self, step: isize) {
        match self.mode {
            Mode::Help(line) => {
                let line = (isize::try_from(line).unwrap_or(0) + step).max(0);
                self.mode = Mode::Help(u16::try_from(line).unwrap_or(0));
            }
            _ => self.go(step),
        }
    }

    fn click(&mut self, column: u16, row: u16) {
        if matches!(self.mode, Mode::Help(_)) {
            self.mode = Mode::Normal;
            return;
        }
        let hit = self.hits.iter().find(|(place, _)| place.contains((column, row).into())).map(|(_, hit)| *hit);
        match hit {
            Some(Hit::View(view)) => self.show(view),
            Some(Hit::Column(column)) => self.sort(column),
            Some(Hit::Row(index)) if index == self.screen().selected => self.enter(),
            Some(Hit::Row(index)) => self.screen_mut().select(index),
            None => {}
        }
    }
}
