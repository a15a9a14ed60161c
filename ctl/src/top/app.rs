//! What `ctl top` knows and does, without any terminal or socket: events go in, effects and a picture come out.

use std::time::Duration;

use ratatui::layout::Rect;
use sockeye_ctl::protocol::{Request, Subscription, Update};
use sockeye_ctl::subscription::EVERY_MS;

use super::filter;
use super::header::Head;
use super::screen::Screen;
use super::theme::Theme;
use super::views::View;

/// Times between two updates that the keys go through, milliseconds.
const INTERVALS_MS: [u64; 8] = [250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000];
/// While nothing is to change on the screen, the header alone is asked for.
const PAUSED_MS: u64 = 2000;

/// What happens.
#[derive(Debug)]
pub(crate) enum Input {
    Key(ratatui::crossterm::event::KeyEvent),
    Mouse(ratatui::crossterm::event::MouseEvent),
    Resize(u16, u16),
    /// An update, and when it came, since the start.
    Update(Box<Update>, Duration),
    /// There is a connection.
    Connected,
    /// There is none, and why.
    Broken(String),
    /// Time goes by.
    Tick(Duration),
}

/// What is to be done outside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Subscribe(Subscription),
    /// Into the clipboard of the terminal.
    Copy(String),
    /// Into a file of this name.
    Save(String, String),
    /// The mouse is wanted, or not.
    Mouse(bool),
    /// Ctrl-Z.
    Suspend,
    Quit,
}

/// What keys mean just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Normal,
    /// A filter is being typed: the text, what was there before, and what is wrong with it.
    Filter {
        text: String,
        before: String,
        error: Option<String>,
    },
    /// Help, from this line on.
    Help(u16),
}

/// What a click means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hit {
    View(View),
    Column(usize),
    Row(usize),
}

/// How it looks and behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) theme: Theme,
    /// Nothing but ASCII.
    pub(crate) ascii: bool,
    pub(crate) mouse: bool,
    pub(crate) every_ms: u64,
}

/// All of it.
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) size: (u16, u16),
    /// The way to what is shown, which is the last.
    pub(crate) screens: Vec<Screen>,
    /// As each view was left.
    left: Vec<Screen>,
    pub(crate) mode: Mode,
    pub(crate) head: Head,
    pub(crate) paused: bool,
    /// Why there is no connection.
    pub(crate) broken: Option<String>,
    /// For the last line, until the next key.
    pub(crate) message: Option<String>,
    pub(crate) now: Duration,
    /// When the last update came, and when the next was said to come.
    pub(crate) updated: Option<Duration>,
    pub(crate) every_ms: u64,
    /// Places on the screen that a click means something at.
    pub(crate) hits: Vec<(Rect, Hit)>,
    subscription: u64,
    asked: Vec<Request>,
    pub(super) effects: Vec<Effect>,
}

impl App {
    /// Starts with a view.
    pub(crate) fn new(options: Options, view: View) -> Self {
        Self {
            options,
            size: (80, 24),
            screens: vec![Screen::new(view)],
            left: View::ALL.map(Screen::new).into(),
            mode: Mode::Normal,
            head: Head::default(),
            paused: false,
            broken: None,
            message: None,
            now: Duration::ZERO,
            updated: None,
            every_ms: options.every_ms,
            hits: Vec::new(),
            subscription: 0,
            asked: Vec::new(),
            effects: Vec::new(),
        }
    }

    pub(crate) fn screen(&self) -> &Screen {
        self.screens.last().expect("there is always one")
    }

    pub(crate) fn screen_mut(&mut self) -> &mut Screen {
        self.screens.last_mut().expect("there is always one")
    }

    /// Takes what has happened, and says what is to be done.
    pub(crate) fn handle(&mut self, input: Input) -> Vec<Effect> {
        match input {
            Input::Key(key) => self.key(key),
            Input::Mouse(mouse) => self.mouse(mouse),
            Input::Resize(columns, rows) => self.size = (columns, rows),
            Input::Update(update, now) => self.update(*update, now),
            Input::Connected => {
                self.broken = None;
                self.head.forget_times();
            }
            Input::Broken(why) => self.broken = Some(why),
            Input::Tick(now) => self.now = now,
        }
        self.subscribe();
        std::mem::take(&mut self.effects)
    }

    /// Asks for what is shown, if that is something else than before.
    fn subscribe(&mut self) {
        let mut wanted = vec![Request::Overview];
        if !self.paused {
            wanted.push(self.screen().request(usize::from(self.size.1)));
        }
        let every_ms = if self.paused { PAUSED_MS } else { self.options.every_ms };
        if wanted == self.asked && every_ms == self.every_ms {
            return;
        }
        self.subscription += 1;
        (self.asked, self.every_ms) = (wanted.clone(), every_ms);
        self.effects.push(Effect::Subscribe(Subscription { id: self.subscription, every_ms, requests: wanted }));
    }

    fn update(&mut self, update: Update, now: Duration) {
        // One that was asked for before.
        if update.id != self.subscription {
            return;
        }
        (self.now, self.updated, self.broken) = (now, Some(now), None);
        self.head.every_ms = update.every_ms;
        self.head.skipped = update.skipped;
        let mut answers = update.answers.into_iter();
        if let Some(answer) = answers.next().and_then(|outcome| outcome.answer) {
            self.head.take(&answer, now);
        }
        let Some(outcome) = answers.next().filter(|_| !self.paused) else { return };
        let screen = self.screen_mut();
        match (outcome.error, outcome.answer) {
            (Some(error), _) => screen.error = Some(sockeye_ctl::human::printable(&error)),
            (None, Some(answer)) => {
                screen.take(answer);
                if let (Some(page), Some(row)) = (&mut screen.page, screen.rows.get(0)) {
                    page.take(row, now);
                }
            }
            (None, None) => {}
        }
    }

    /// Another view, as it was left.
    pub(crate) fn show(&mut self, view: View) {
        self.paused = false;
        let first = self.screens.swap_remove(0);
        self.screens.clear();
        if let Some(place) = self.left.iter_mut().find(|screen| screen.view == first.view) {
            *place = first;
        }
        let shown = self.left.iter().find(|screen| screen.view == view).cloned();
        self.screens.push(shown.unwrap_or_else(|| Screen::new(view)));
    }

    /// Into what the chosen row stands for.
    pub(crate) fn enter(&mut self) {
        if let Some(next) = self.screen().drill() {
            self.paused = false;
            self.screens.push(next);
        }
    }

    /// Back; at the beginning of the way, the filter is taken away.
    pub(crate) fn back(&mut self) {
        self.paused = false;
        if self.screens.len() > 1 {
            self.screens.pop();
        } else {
            self.filter("");
        }
    }

    /// Sorts by a column; by the same one, the other way round.
    pub(crate) fn sort(&mut self, column: usize) {
        use super::views::Order;
        let screen = self.screen_mut();
        if screen.columns().get(column).is_none_or(|col| col.order == Order::None) {
            return;
        }
        if screen.order == column {
            screen.reverse = !screen.reverse;
        } else {
            (screen.order, screen.reverse) = (column, false);
        }
        screen.top();
        self.rearrange();
    }

    /// The next column to the left (-1) or right (1) that can be sorted by, of those that are shown.
    pub(crate) fn sort_beside(&mut self, step: isize) {
        use super::views::{Order, layout};
        let screen = self.screen();
        let columns = screen.columns();
        let shown = layout(columns, self.size.0).into_iter().map(|(index, _)| index);
        let sortable: Vec<usize> = shown.filter(|index| columns[*index].order != Order::None).collect();
        let at = sortable.iter().position(|index| *index == screen.order).unwrap_or(0);
        let next = at.saturating_add_signed(step).min(sortable.len().saturating_sub(1));
        if let Some(&column) = sortable.get(next).filter(|column| **column != screen.order) {
            self.sort(column);
        }
    }

    /// What is sorted here need not wait for the next update.
    pub(crate) fn rearrange(&mut self) {
        self.paused = false;
        let screen = self.screen_mut();
        if let (View::Ports, Some(col)) = (screen.view, screen.col()) {
            let (filter, reverse) = (screen.filter.clone(), screen.reverse);
            screen.rows.arrange(&filter, col, reverse);
        }
    }

    /// A filter is in force as soon as it is understood. Says what is wrong with it.
    pub(crate) fn filter(&mut self, text: &str) -> Option<String> {
        match filter::parse(text) {
            Ok(filter) => {
                self.paused = false;
                let screen = self.screen_mut();
                match screen.view {
                    View::Dns if filter.has_terms => return Some("dns is filtered by words, without =".into()),
                    View::Ports if !filter.is_of_listeners() => {
                        return Some("ports know process pid user port protocol container pod workload".into());
                    }
                    _ => {}
                }
                screen.typed = text.to_owned();
                if screen.filter != filter {
                    screen.set_filter(filter);
                    screen.error = None;
                }
                None
            }
            Err(why) => Some(why),
        }
    }

    /// The next longer (1) or shorter (-1) interval.
    pub(crate) fn interval(&mut self, step: isize) {
        let at = INTERVALS_MS.iter().position(|ms| *ms >= self.options.every_ms).unwrap_or(INTERVALS_MS.len() - 1);
        let next = at.saturating_add_signed(step).min(INTERVALS_MS.len() - 1);
        self.options.every_ms = INTERVALS_MS[next].clamp(*EVERY_MS.start(), *EVERY_MS.end());
        self.message = Some(format!("every {}", seconds(self.options.every_ms)));
    }

    /// Lines of the table that there is room for.
    pub(crate) fn height(&self) -> usize {
        usize::from(self.size.1).saturating_sub(super::draw::LINES_AROUND).max(1)
    }

    /// Moves the choice, or what is not a table.
    pub(crate) fn go(&mut self, step: isize) {
        let height = self.height();
        let screen = self.screen_mut();
        if !screen.view.has_rows() {
            screen.offset = screen.offset.saturating_add_signed(step);
            return;
        }
        screen.select(screen.selected.saturating_add_signed(step));
        screen.offset = screen.offset.clamp((screen.selected + 1).saturating_sub(height), screen.selected);
    }

    /// All that is shown, as `ctl --json` prints it.
    pub(crate) fn save(&mut self) {
        let screen = self.screen();
        let of_view = screen.stats.iter().flat_map(|answer| &answer.tables).chain(&screen.rows.table);
        let tables: Vec<_> = self.head.tables.iter().chain(of_view).map(sockeye_ctl::Table::to_json).collect();
        let document = serde_json::json!({
            "version": sockeye_ctl::VERSION, "view": screen.path, "filter": screen.typed, "tables": tables,
        });
        let name = format!("sockeye-top-{}", screen.view.name());
        self.effects.push(Effect::Save(name, format!("{document:#}\n")));
    }

    /// The chosen row, with all that is known of it.
    pub(crate) fn copy(&mut self) {
        let screen = self.screen();
        if let Some(row) = screen.rows.get(screen.selected) {
            let text = row.spelled_out();
            self.effects.push(Effect::Copy(text));
            self.message = Some("the row was sent to the terminal's clipboard".into());
        }
    }
}

/// `250 ms`, `1 s`.
pub(crate) fn seconds(ms: u64) -> String {
    if ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{ms} ms") }
}
