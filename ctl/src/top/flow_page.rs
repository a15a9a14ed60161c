//! One flow: both processes with all that is known of them, both tuples, how it went while it was looked at.

use std::time::Duration;

use ratatui::text::{Line, Span};
use sockeye_ctl::human;

use super::app::App;
use super::cells::{Row, sparkline};
use super::theme::Theme;

/// Samples that are kept: half an hour of one each second.
const SAMPLES_MAX: usize = 1800;
/// From this width on both sides stand beside each other.
const SIDES_FROM: u16 = 120;
/// Bars of the histogram.
const BARS_MAX: usize = 12;

/// How it went since the page was opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct FlowPage {
    samples: Vec<Sample>,
    last: Option<(u64, u64, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    sent_per_second: f64,
    received_per_second: f64,
    rtt_us: Option<f64>,
}

impl FlowPage {
    pub(crate) fn take(&mut self, row: Row<'_>, now: Duration) {
        let (sent, received) = (row.number("sent").unwrap_or(0), row.number("received").unwrap_or(0));
        if let Some((sent_before, received_before, then)) = self.last {
            let seconds = (now.saturating_sub(then)).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            if self.samples.len() >= SAMPLES_MAX {
                self.samples.remove(0);
            }
            self.samples.push(Sample {
                sent_per_second: sent.saturating_sub(sent_before) as f64 / seconds,
                received_per_second: received.saturating_sub(received_before) as f64 / seconds,
                rtt_us: row.float("rtt"),
            });
        }
        self.last = Some((sent, received, now));
    }

    /// Round-trip times that were seen, in steps of a tenth of a decade: up to so many microseconds, and how many.
    fn histogram(&self) -> Vec<(f64, usize)> {
        let mut bars: Vec<(i32, usize)> = Vec::new();
        let step = |us: f64| (us.max(1.0).log10() * 10.0).ceil() as i32;
        let mut steps: Vec<i32> = self.samples.iter().filter_map(|sample| sample.rtt_us).map(step).collect();
        steps.sort_unstable();
        for step in steps {
            match bars.last_mut() {
                Some((last, count)) if *last == step => *count += 1,
                _ => bars.push((step, 1)),
            }
        }
        bars.into_iter().map(|(step, count)| (10f64.powf(f64::from(step) / 10.0), count)).collect()
    }
}

/// The page, for a width.
pub(crate) fn lines(app: &App, width: u16) -> Vec<Line<'static>> {
    let theme = &app.options.theme;
    let Some(row) = app.screen().rows.get(0) else {
        let text = match app.updated {
            Some(_) if app.screen().rows.table.is_some() => " the agent has forgotten this flow, or never knew it",
            _ => " ...",
        };
        return vec![Line::styled(text, theme.dim)];
    };
    let mut lines = about(row, theme);
    if let Some(page) = &app.screen().page {
        lines.extend(over_time(page, width, theme));
    }
    lines.push(Line::default());
    let sides = ["initiator", "responder"].map(|side| of_side(row, side));
    lines.extend(if width >= SIDES_FROM { beside(sides, width, theme) } else { below(&sides, width, theme) });
    if let Some(page) = &app.screen().page {
        lines.extend(bars(page, width, theme));
    }
    lines
}

fn about(row: Row<'_>, theme: &Theme) -> Vec<Line<'static>> {
    let line = |pairs: &[(&str, String)]| {
        let mut spans = Vec::new();
        for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
            spans.push(Span::styled(format!(" {name} "), theme.dim));
            spans.push(Span::raw(format!("{value} ")));
        }
        Line::from(spans)
    };
    let state = row.text("state");
    let over = !matches!(state.as_str(), "connecting" | "open" | "closing");
    let style = if over { theme.warn } else { theme.good };
    let tuple = |one: &str, other: &str| Some(format!("{} → {}", row.known(one)?, row.known(other)?));
    let asked = tuple("initiator", "responder").unwrap_or_default();
    let mut first = Line::from(vec![
        Span::styled(format!(" {} {asked} ", row.text("protocol")), theme.strong),
        Span::styled(if over { format!("ended: {state}") } else { state }, style),
    ]);
    if row.text("before_agent") == "yes" {
        first.push_span(Span::styled("  older than the agent", theme.dim));
    }
    let mut lines = vec![first];
    if let Some(seen) = tuple("translated_initiator", "translated_responder") {
        lines.push(line(&[("the responder sees", seen)]));
    }
    if let Some(name) = row.known("responder_name") {
        lines.push(line(&[("the responder is called", row.called(&name)), ("by", row.text("name_source"))]));
    }
    let counted = row.known("not_counted").map(|why| format!("payload is not counted: {why}")).unwrap_or_default();
    lines.push(line(&[
        ("sent", row.shown("sent")),
        ("received", row.shown("received")),
        ("packets", format!("{} / {}", row.shown("packets_sent"), row.shown("packets_received"))),
        ("retransmitted", row.shown("retrans")),
        ("", counted),
    ]));
    let rtt = format!("{} ± {}", row.shown("rtt"), row.shown("rtt_var"));
    lines.push(line(&[
        ("RTT", rtt),
        ("age", row.shown("age")),
        ("quiet for", row.shown("quiet")),
        ("forgotten in", row.known("forgotten_in").map(|_| row.shown("forgotten_in")).unwrap_or_default()),
        ("direction", row.text("direction")),
        ("id", row.text("id")),
    ]));
    lines
}

/// Names and values of one side.
fn of_side(row: Row<'_>, side: &str) -> Vec<(String, String)> {
    let get = |what: &str| row.known(&format!("{side}_{what}"));
    let mut all = vec![(side.to_uppercase(), row.text(side))];
    let process = get("process").zip(get("pid")).map(|(name, pid)| format!("{name}[{pid}]"));
    let Some(process) = process.or_else(|| get("pid")) else {
        all.push(("process".into(), "not on this host, or not known".into()));
        return all;
    };
    let user = match (get("user"), get("uid")) {
        (Some(user), Some(uid)) => Some(format!("{user} ({uid})")),
        (user, uid) => user.or(uid),
    };
    let pod = get("pod").map(|pod| format!("{}/{pod}", get("namespace").unwrap_or_default()));
    let pairs = [
        ("process", Some(process)),
        ("user", user),
        ("command", get("cmdline")),
        ("executable", get("exe")),
        ("package", get("package")),
        ("parents", get("parents").or_else(|| get("parent"))),
        ("container", get("container")),
        ("id", get("container_id")),
        ("image", get("image")),
        ("pod", pod),
        ("workload", get("workload_name")),
        ("unit", get("unit")),
        ("labels", get("labels")),
    ];
    all.extend(pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    if side == "responder"
        && let Some(others) = row.known("other_responders")
    {
        all.push(("and".into(), others));
    }
    all
}

fn side_line((name, value): &(String, String), is_first: bool, cells: usize, theme: &Theme) -> Vec<Span<'static>> {
    let value = human::ellipsis(value, cells.saturating_sub(13));
    let style = if is_first { theme.titles } else { theme.dim };
    let filled = sockeye_ctl::grid::pad(&value, cells.saturating_sub(13));
    vec![Span::styled(format!(" {name:<11} "), style), Span::raw(filled)]
}

fn beside([left, right]: [Vec<(String, String)>; 2], width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let half = usize::from(width / 2);
    let empty = (String::new(), String::new());
    (0..left.len().max(right.len()))
        .map(|line| {
            let [one, other] = [&left, &right].map(|side| side.get(line).unwrap_or(&empty));
            let mut spans = side_line(one, line == 0, half, theme);
            spans.extend(side_line(other, line == 0, half, theme));
            Line::from(spans)
        })
        .collect()
}

/// One below the other: there is room for long values, in several lines.
fn below(sides: &[Vec<(String, String)>; 2], width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let (cells, mut lines) = (usize::from(width), Vec::new());
    for (number, (name, value)) in sides.iter().flat_map(|side| side.iter().enumerate()) {
        let mut name = name.clone();
        for part in pieces(value, cells.saturating_sub(13).max(1)) {
            lines.push(Line::from(side_line(&(std::mem::take(&mut name), part), number == 0, cells, theme)));
        }
    }
    lines
}

/// Text in pieces of so many cells.
fn pieces(text: &str, cells: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for c in text.chars() {
        let last = pieces.len() - 1;
        if sockeye_ctl::grid::width(&pieces[last]) + sockeye_ctl::grid::width(c.encode_utf8(&mut [0; 4])) > cells {
            pieces.push(c.into());
        } else {
            pieces[last].push(c);
        }
    }
    pieces
}

/// Bytes and round-trip times since the page was opened.
fn over_time(page: &FlowPage, width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let cells = usize::from(width).saturating_sub(34).min(120);
    let graph = |name: &str, values: &[f64], newest: String, most: String| {
        Line::from(vec![
            Span::styled(format!(" {name:<11} "), theme.dim),
            Span::styled(sparkline(values, cells), theme.graph),
            Span::raw(format!(" {newest}")),
            Span::styled(format!(" most {most}"), theme.dim),
        ])
    };
    let bytes = |values: &[f64]| {
        let most = values.iter().copied().fold(0.0, f64::max);
        let shown = |value: f64| human::bytes(value.round() as u64);
        (values.last().map_or_else(|| "-".into(), |value| shown(*value)), shown(most))
    };
    let sent: Vec<f64> = page.samples.iter().map(|sample| sample.sent_per_second).collect();
    let received: Vec<f64> = page.samples.iter().map(|sample| sample.received_per_second).collect();
    let rtt: Vec<f64> = page.samples.iter().map(|sample| sample.rtt_us.unwrap_or(0.0)).collect();
    let (sent_now, sent_most) = bytes(&sent);
    let (received_now, received_most) = bytes(&received);
    let time = |us: f64| human::nanoseconds(us * 1000.0);
    let mut lines =
        vec![graph("sent/s", &sent, sent_now, sent_most), graph("received/s", &received, received_now, received_most)];
    let most = rtt.iter().copied().fold(0.0, f64::max);
    if most > 0.0 {
        lines.push(graph("RTT", &rtt, time(rtt.last().copied().unwrap_or(0.0)), time(most)));
    }
    lines
}

/// How often which round-trip time was seen.
fn bars(page: &FlowPage, width: u16, theme: &Theme) -> Vec<Line<'static>> {
    let cells = usize::from(width).saturating_sub(34).min(120);
    let bars = page.histogram();
    if bars.is_empty() {
        return Vec::new();
    }
    let time = |us: f64| human::nanoseconds(us * 1000.0);
    let mut lines = vec![Line::default(), Line::styled(" ROUND-TRIP TIMES SINCE THE PAGE WAS OPENED", theme.titles)];
    let longest = bars.iter().map(|(_, count)| *count).max().unwrap_or(1);
    for (bound_us, count) in bars.iter().rev().take(BARS_MAX).rev() {
        let bar = "█".repeat((count * cells / longest).max(1));
        lines.push(Line::from(vec![
            Span::styled(format!(" ≤ {:>8}  ", time(*bound_us)), theme.dim),
            Span::styled(bar, theme.graph),
            Span::raw(format!(" {count}")),
        ]));
    }
    lines
}
