//! What stands above every view: the host, its traffic, what is lost, what the agent takes.

use std::time::Duration;

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use sockeye_ctl::human;
use sockeye_ctl::protocol::{Answer, Table};

use super::app::{App, seconds};
use super::cells::{Row, Rows, short, sparkline};
use super::theme::Theme;

/// A loss that has moved stays red for so long.
const RED_FOR: Duration = Duration::from_secs(60);
/// From this width on there is a line of the last minutes.
const GRAPH_FROM: u16 = 110;

/// The newest overview, and what the one before said.
#[derive(Debug, Default)]
pub(crate) struct Head {
    pub(crate) tables: Vec<Table>,
    host: Rows,
    losses: Rows,
    lost: u64,
    /// When the losses moved last.
    moved: Option<Duration>,
    is_first: bool,
    /// CPU time and when it was told; what was used between the last two.
    cpu: Option<(u64, Duration)>,
    cpu_percent: Option<f64>,
    /// As the last update said.
    pub(crate) every_ms: u64,
    pub(crate) skipped: u64,
}

impl Head {
    /// Another agent may answer from now on.
    pub(crate) fn forget_times(&mut self) {
        (self.cpu, self.cpu_percent, self.is_first) = (None, None, true);
    }

    pub(crate) fn take(&mut self, answer: &Answer, now: Duration) {
        self.tables.clone_from(&answer.tables);
        let table = |name: &str| answer.table(name).cloned().map(Rows::new).unwrap_or_default();
        (self.host, self.losses) = (table("overview"), table("losses"));
        let lost = table("verdict").get(0).and_then(|row| row.number("lost")).unwrap_or(0);
        let is_first = std::mem::replace(&mut self.is_first, false) || self.tables.is_empty();
        if lost > self.lost && !is_first && self.cpu.is_some() {
            self.moved = Some(now);
        }
        self.lost = lost;
        self.measure_cpu(now);
    }

    fn measure_cpu(&mut self, now: Duration) {
        let Some(row) = self.host.get(0) else { return };
        let Some(cpu_ns) = row.number("cpu_time") else { return };
        match self.cpu {
            // The kernel counts in hundredths of a second: less than some seconds says little.
            Some((before_ns, then)) if now.saturating_sub(then) >= Duration::from_secs(5) => {
                let used_ns = cpu_ns.saturating_sub(before_ns) as f64;
                self.cpu_percent = Some(100.0 * used_ns / (now - then).as_nanos() as f64);
                self.cpu = Some((cpu_ns, now));
            }
            Some(_) => {}
            None => {
                self.cpu_percent = row.float("cpu");
                self.cpu = Some((cpu_ns, now));
            }
        }
    }

    /// What is lost, in one line, and how bad that is.
    fn lost(&self, theme: &Theme, now: Duration) -> (String, Style) {
        if self.host.len() == 0 {
            return ("waiting for the agent".into(), theme.dim);
        }
        if self.lost == 0 {
            return ("nothing lost".into(), theme.good);
        }
        let mut rows: Vec<Row<'_>> = self.losses.iter().filter(|row| row.text("weight") == "lost").collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.number("count")));
        let named = rows.iter().map(|row| format!("{} {}", row.shown("count"), row.text("reason")));
        let text = named.collect::<Vec<_>>().join(", ");
        let moves = self.moved.is_some_and(|moved| now.saturating_sub(moved) < RED_FOR);
        if moves {
            (format!("LOSING {text}"), theme.bad)
        } else {
            (format!("lost since the start, not now: {text}"), theme.warn)
        }
    }
}

/// Three lines.
pub(crate) fn lines(app: &App) -> Vec<Line<'static>> {
    let (head, theme) = (&app.head, &app.options.theme);
    let width = app.size.0;
    let Some(row) = head.host.get(0) else {
        let text = app.broken.clone().unwrap_or_else(|| "waiting for the agent".into());
        let style = if app.broken.is_some() { theme.bad } else { theme.dim };
        return vec![
            Line::from(" sockeye top".to_owned()).style(theme.strong),
            Line::default(),
            Line::styled(text, style),
        ];
    };
    let mut figures = Figures { theme, spans: Vec::new() };
    figures.strong(format!(" {}", row.text("host")));
    figures.pair("up", row.shown("uptime"));
    let cpu = head.cpu_percent.map_or_else(|| "-".into(), |percent| format!("{percent:.1} %"));
    figures.pair("agent", format!("{cpu} CPU {}", row.shown("memory")));
    let new = row.float("flows_per_second").unwrap_or(0.0);
    figures.pair("flows", format!("{} +{}/s", row.shown("flows"), short(new)));
    if width >= GRAPH_FROM {
        figures.pair("every", seconds(head.every_ms.max(app.options.every_ms)));
    }
    if head.skipped > 0 {
        figures.pair("skipped", head.skipped.to_string());
    }
    let mut first = figures.line();
    if app.paused {
        first.push_span(Span::styled("  PAUSED ", theme.warn));
    }
    let mut figures = Figures { theme, spans: Vec::new() };
    figures.pair("out", per_second(row, "out_per_second"));
    figures.pair("in", per_second(row, "in_per_second"));
    figures.pair("local", per_second(row, "local_per_second"));
    figures.pair("RTT", format!("{} p99 {}", row.shown("rtt_p50"), row.shown("rtt_p99")));
    let mut second = figures.line();
    if width >= GRAPH_FROM {
        let room = usize::from(width).saturating_sub(second.width() + 4).min(60);
        let [out, into, local] = ["history_out", "history_in", "history_local"].map(|name| row.numbers(name));
        let all: Vec<f64> = out.iter().zip(&into).zip(&local).map(|((a, b), c)| a + b + c).collect();
        second.push_span(Span::styled(format!("  {}", sparkline(&all, room)), theme.graph));
    }
    vec![first, second, third(app)]
}

/// Whether all is well.
fn third(app: &App) -> Line<'static> {
    let theme = &app.options.theme;
    if let Some(why) = &app.broken {
        return Line::styled(format!(" {why}"), theme.bad);
    }
    let late = app.updated.map(|then| app.now.saturating_sub(then)).unwrap_or_default();
    let due = Duration::from_millis(app.head.every_ms.max(app.every_ms));
    if late > 3 * due + Duration::from_secs(2) {
        return Line::styled(format!(" no update for {} s: the agent is busy, or stopped", late.as_secs()), theme.bad);
    }
    let (text, style) = app.head.lost(theme, app.now);
    Line::styled(format!(" {text}"), style)
}

fn per_second(row: Row<'_>, name: &str) -> String {
    format!("{}/s", human::bytes(row.number(name).unwrap_or(0)))
}

/// Names and figures beside each other.
struct Figures<'a> {
    theme: &'a Theme,
    spans: Vec<Span<'static>>,
}

impl Figures<'_> {
    fn strong(&mut self, text: String) {
        self.spans.push(Span::styled(text, self.theme.strong));
    }

    fn pair(&mut self, name: &str, value: String) {
        let gap = if self.spans.is_empty() { " " } else { "  " };
        self.spans.push(Span::styled(format!("{gap}{name} "), self.theme.dim));
        self.spans.push(Span::raw(value));
    }

    fn line(self) -> Line<'static> {
        Line::from(self.spans)
    }
}
