//! The picture.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};
use sockeye_ctl::{grid, human, render};

use super::app::{App, Hit, Mode};
use super::cells::{Row, sparkline};
use super::filter::TERMS;
use super::keys::KEYS;
use super::views::{Cell, View, gap, layout};
use super::{flow_page, header, theme};

/// Lines that are not the table's rows: header, views, path, titles, prompt.
pub(crate) const LINES_AROUND: usize = 7;

/// Columns and lines that something can be shown with.
const LEAST: (u16, u16) = (20, 8);

impl App {
    /// Draws all of it.
    pub(crate) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        self.size = (area.width, area.height);
        self.hits.clear();
        if area.width < LEAST.0 || area.height < LEAST.1 {
            frame.render_widget(Paragraph::new("the terminal is too small"), area);
            return;
        }
        let [head, tabs, body, prompt] =
            Layout::vertical([Constraint::Length(3), Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
                .areas(area);
        frame.render_widget(Paragraph::new(header::lines(self)), head);
        self.tabs(frame.buffer_mut(), tabs);
        match self.screen().view {
            View::Agent => self.agent(frame, body),
            View::Flow => {
                let (path, lines) = (self.path_line(), flow_page::lines(self, body.width));
                self.text(frame, body, path, lines);
            }
            _ => self.table(frame.buffer_mut(), body),
        }
        self.prompt(frame, prompt);
        if let Mode::Help(line) = self.mode {
            self.help(frame, area, line);
        }
        if self.options.ascii {
            plain(frame.buffer_mut());
        }
    }

    fn tabs(&mut self, buffer: &mut Buffer, area: Rect) {
        let theme = self.options.theme;
        let first = self.screens.first().map(|screen| screen.view);
        let cells =
            |name: fn(View) -> &'static str| View::ALL.map(|view| name(view).len() + 3).iter().sum::<usize>() + 1;
        let name = if cells(View::name) <= usize::from(area.width) { View::name } else { View::short_name };
        let mut x = area.x + 1;
        for (number, view) in View::ALL.into_iter().enumerate() {
            let text = format!(" {} {}", number + 1, name(view));
            let cells = grid::width(&text) as u16;
            // What has no room can be had by its key all the same.
            if x + cells > area.right() {
                break;
            }
            let style = if first == Some(view) { theme.tab } else { theme.dim };
            buffer.set_string(x, area.y, &text, style);
            self.hits.push((Rect::new(x, area.y, cells, 1), Hit::View(view)));
            x += cells;
        }
    }

    /// Where we are, and how much of it is shown.
    fn path_line(&self) -> Line<'static> {
        let (screen, theme) = (self.screen(), &self.options.theme);
        let mut line = Line::from(Span::styled(format!(" {}", human::printable(&screen.path)), theme.strong));
        if let Some(by) = screen.chosen_group() {
            line.push_span(Span::raw(format!(" by {by}")));
        } else if screen.is_grouped() {
            line.push_span(Span::raw(" of the flows that match"));
        }
        if screen.ended {
            line.push_span(Span::raw(", ended ones too"));
        }
        if screen.view.has_rows() {
            let (shown, matching) = (screen.rows.len() as u64, screen.matching);
            let count = if shown < matching {
                format!("  first {} of {}", human::count(shown), human::count(matching))
            } else {
                format!("  {}", human::count(matching))
            };
            line.push_span(Span::styled(count, theme.dim));
        }
        if !screen.typed.is_empty() {
            line.push_span(Span::styled(format!("  /{}", human::printable(&screen.typed)), theme.warn));
        }
        if let Some(error) = &screen.error {
            line.push_span(Span::styled(format!("  {error}"), theme.bad));
        }
        line
    }

    fn table(&mut self, buffer: &mut Buffer, area: Rect) {
        let [path, titles, rows] =
            Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0)]).areas(area);
        let line = self.path_line();
        buffer.set_line(path.x, path.y, &line, path.width);
        let shown = layout(self.screen().columns(), area.width);
        self.titles(buffer, titles, &shown);
        let height = usize::from(rows.height).max(1);
        let screen = self.screen_mut();
        screen.offset = screen.offset.min(screen.rows.len().saturating_sub(height));
        screen.offset = screen.offset.clamp((screen.selected + 1).saturating_sub(height), screen.selected);
        let first = screen.offset;
        for (y, index) in (rows.y..rows.bottom()).zip(first..self.screen().rows.len()) {
            let place = Rect { y, height: 1, ..rows };
            self.row(buffer, place, index, &shown);
            self.hits.push((place, Hit::Row(index)));
        }
    }

    fn titles(&mut self, buffer: &mut Buffer, area: Rect, shown: &[(usize, u16)]) {
        let (screen, theme) = (self.screen(), self.options.theme);
        let (order, reverse, columns) = (screen.order, screen.reverse, screen.columns());
        buffer.set_style(area, theme.titles);
        let mut x = area.x;
        for &(index, cells) in shown {
            if x >= area.right() {
                break;
            }
            let col = &columns[index];
            let (mut title, mut style) = (col.title.to_owned(), theme.titles);
            if index == order {
                title.push(if reverse { '▲' } else { '▼' });
                style = theme.sorted;
            }
            let text = fit(&title, cells, col.left);
            buffer.set_string(x, area.y, &text, style);
            self.hits.push((Rect::new(x, area.y, cells, 1), Hit::Column(index)));
            x += cells + gap(area.width);
        }
    }

    fn row(&self, buffer: &mut Buffer, area: Rect, index: usize, shown: &[(usize, u16)]) {
        let (screen, theme) = (self.screen(), &self.options.theme);
        let Some(row) = screen.rows.get(index) else { return };
        let is_selected = index == screen.selected;
        let style = if is_selected { theme.selected } else { self.row_style(row) };
        buffer.set_style(area, style);
        let mut x = area.x;
        for &(column, cells) in shown {
            if x >= area.right() {
                break;
            }
            let col = &screen.columns()[column];
            if col.cell == Cell::Recent {
                let graph = if is_selected { style } else { theme.graph };
                buffer.set_string(x, area.y, sparkline(&row.recent(), usize::from(cells)), graph);
            } else {
                let text = row.cell(col.cell, "→");
                let text = if let Cell::Endpoint(_) = col.cell { fit_endpoint(&text, cells) } else { text };
                buffer.set_string(x, area.y, fit(&text, cells, col.left), style);
            }
            x += cells + gap(area.width);
        }
    }

    /// What is over is paler, what went wrong is not.
    fn row_style(&self, row: Row<'_>) -> Style {
        let theme = &self.options.theme;
        if self.broken.is_some() {
            return theme.over;
        }
        match row.text("state").as_str() {
            "refused" | "unreachable" | "timed out" | "reset" | "aborted" => theme.warn,
            "closed" | "idle" | "vanished" | "gone" => theme.over,
            _ => Style::new(),
        }
    }

    fn agent(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let screen = self.screen();
        let style = render::Style { columns: usize::from(area.width), color: false, zeros: screen.all };
        let text = screen.stats.as_ref().map(|answer| render::stats(answer, style)).unwrap_or_default();
        let theme = &self.options.theme;
        let is_heading = |line: &str| !line.starts_with(' ') && !line.is_empty();
        let lines = text
            .lines()
            .map(|line| Line::styled(line.to_owned(), if is_heading(line) { theme.strong } else { Style::new() }));
        let (path, lines) = (self.path_line(), lines.collect());
        self.text(frame, area, path, lines);
    }

    /// Lines that may be more than there is room for.
    fn text(&mut self, frame: &mut Frame<'_>, area: Rect, path: Line<'static>, lines: Vec<Line<'static>>) {
        let [first, rest] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
        frame.render_widget(Paragraph::new(path), first);
        let screen = self.screen_mut();
        screen.offset = screen.offset.min(lines.len().saturating_sub(usize::from(rest.height)));
        let offset = u16::try_from(screen.offset).unwrap_or(u16::MAX);
        frame.render_widget(Paragraph::new(lines).scroll((offset, 0)), rest);
    }

    fn prompt(&self, frame: &mut Frame<'_>, area: Rect) {
        let theme = &self.options.theme;
        let line = match (&self.mode, &self.message) {
            (Mode::Filter { text, error, .. }, _) => {
                let shown = format!(" /{text}");
                let cursor = area.x + (grid::width(&shown) as u16).min(area.width.saturating_sub(1));
                frame.set_cursor_position((cursor, area.y));
                let mut line = Line::from(shown);
                line.push_span(match error {
                    Some(why) => Span::styled(format!("  {why}"), theme.bad),
                    None => {
                        Span::styled("  words, or key=value: process port address state pod ... (? has all)", theme.dim)
                    }
                });
                line
            }
            (_, Some(message)) => Line::styled(format!(" {message}"), theme.warn),
            _ => Line::styled(self.hints(), theme.dim),
        };
        frame.render_widget(Paragraph::new(line), area);
    }

    fn hints(&self) -> String {
        let screen = self.screen();
        let mut hints = vec!["? help", "q end"];
        hints.push(if self.paused { "Space go on" } else { "Space pause" });
        if screen.view.has_rows() {
            hints.extend(["/ filter", "< > sort", "r reverse", "Enter into"]);
        }
        match screen.view {
            View::Flows => hints.extend(["e ended", "g group"]),
            View::Peers | View::Dns => hints.push("g group"),
            View::Agent => hints.push("a zeros too"),
            _ => {}
        }
        if self.screens.len() > 1 {
            hints.push("Esc back");
        }
        hints.extend(["y copy", "w save"]);
        format!(" {}", hints.join("  "))
    }

    fn help(&self, frame: &mut Frame<'_>, area: Rect, line: u16) {
        let theme = &self.options.theme;
        let pair = |(key, meaning): &(&str, &str)| {
            Line::from(vec![Span::styled(format!(" {key:<20}"), theme.strong), Span::raw((*meaning).to_owned())])
        };
        let mut lines = vec![Line::styled(" KEYS", theme.titles)];
        lines.extend(KEYS.iter().map(pair));
        lines.extend([Line::default(), Line::styled(" FILTER: key=value or key:value, and words", theme.titles)]);
        lines.extend(TERMS.iter().map(pair));
        lines.push(Line::default());
        lines.push(Line::styled(" COLUMNS OF THIS VIEW", theme.titles));
        let table = self.screen().rows.table.iter();
        lines.extend(table.flat_map(|table| &table.columns).map(|column| {
            let (name, help) = (human::printable(&column.name), human::printable(&column.help));
            Line::from(vec![Span::styled(format!(" {name:<20} "), theme.dim), Span::raw(help)])
        }));
        let most = lines.len().saturating_sub(usize::from(area.height).saturating_sub(2));
        let line = line.min(u16::try_from(most).unwrap_or(u16::MAX));
        let place = Rect { y: area.y + 1, height: area.height.saturating_sub(2), ..area };
        frame.render_widget(Clear, place);
        frame.render_widget(Paragraph::new(lines).scroll((line, 0)), place);
    }
}

/// Cut or filled up to so many cells.
fn fit(text: &str, cells: u16, left: bool) -> String {
    let cells = usize::from(cells);
    let text = human::ellipsis(text, cells);
    if left { grid::pad(&text, cells) } else { grid::pad_left(&text, cells) }
}

/// An address or a name gives way to its port, and to the doubt that there is about it.
fn fit_endpoint(text: &str, cells: u16) -> String {
    match text.rsplit_once(':') {
        Some((address, port)) if grid::width(text) > usize::from(cells) => {
            let (address, doubt) = address.strip_suffix('?').map_or((address, ""), |name| (name, "?"));
            let room = usize::from(cells).saturating_sub(doubt.len() + port.len() + 1);
            format!("{}{doubt}:{port}", human::ellipsis(address, room))
        }
        _ => text.to_owned(),
    }
}

/// Nothing but ASCII.
fn plain(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if !cell.symbol().is_ascii() {
            let symbol = theme::ascii(cell.symbol());
            cell.set_symbol(symbol);
        }
        cell.modifier.remove(Modifier::HIDDEN);
    }
}
