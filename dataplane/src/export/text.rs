//! Flows as lines for people: what a newcomer sees first.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sockeye_ctl::grid::{pad, width};
use sockeye_ctl::human;

use super::{ExportPort, ExportStats, Item, Queue};
use crate::flows::report::{FlowReport, Identity};
use crate::model::flow::{Side, State};
use crate::owners::process::Process;
use crate::owners::workload::Workload;
use crate::threads::{Pulse, Threads};

/// From this width on, a flow is one line; below, two.
const ONE_LINE_COLUMNS: usize = 132;
const ENDPOINT_COLUMNS: usize = 22;

/// How lines are drawn.
#[derive(Debug, Clone)]
pub struct Style {
    /// Width of the terminal.
    pub columns: usize,
    /// ANSI colours.
    pub color: bool,
    /// For the time of day.
    pub zone: TimeZone,
}

impl Style {
    /// What fits standard output: colours on a terminal only, and never with `NO_COLOR` (no-color.org).
    #[must_use]
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
        let size = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        Self {
            columns: columns.or(size).unwrap_or(160),
            color: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
            zone: TimeZone::system(),
        }
    }
}

/// Starts the thread that prints flows to standard output. When its reader goes away (`sockeye | head`), `on_closed` is
/// called once, and further reports are counted as dropped.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(threads: &Threads, style: Style, on_closed: impl Fn() + Send + 'static) -> io::Result<ExportPort> {
    let stats = Arc::new(ExportStats::default());
    stats.connected.store(1, std::sync::atomic::Ordering::Relaxed);
    let shared = Arc::clone(&stats);
    ExportPort::start("stdout".into(), (threads, "sockeye-text"), &stats, move |items, pulse| {
        print(items, pulse, &style, &shared, &on_closed);
        Ok(())
    })
}

fn print(items: &Queue, pulse: &Pulse, style: &Style, stats: &ExportStats, on_closed: &impl Fn()) {
    let mut on_closed = Some(on_closed);
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut broken = out.write_all(heading(style).as_bytes()).and_then(|()| out.flush()).is_err();
    loop {
        pulse.waiting();
        let Ok(first) = items.recv() else { return };
        pulse.working();
        // All that is there, then one write.
        for item in std::iter::once(first).chain(items.try_iter()) {
            if let Item::Flows(reports) = &item {
                for report in reports.iter().filter(|report| is_news(report)) {
                    if broken {
                        ExportStats::add(&stats.dropped, 1);
                        continue;
                    }
                    let text = line(report, style);
                    ExportStats::add(&stats.records, 1);
                    ExportStats::add(&stats.bytes, text.len() as u64);
                    broken = out.write_all(text.as_bytes()).is_err();
                }
            }
            stats.done(item.reports());
        }
        broken = broken || out.flush().is_err();
        if broken && let Some(on_closed) = on_closed.take() {
            on_closed();
        }
    }
}

/// An open flow is reported again and again; a line is due only when something has happened.
fn is_news(report: &FlowReport) -> bool {
    report.state.is_over() || report.first || !report.delta.is_zero()
}

/// Column titles.
#[must_use]
pub fn heading(style: &Style) -> String {
    let e = ENDPOINT_COLUMNS;
    let text = if style.columns >= ONE_LINE_COLUMNS {
        let process = process_columns(style);
        format!(
            "{:<12} {:<3} {:<3} {:<e$}   {:<e$} {:<process$} {:>8} {:>8} {:>8}  {}",
            "TIME", "DIR", "PROTO", "INITIATOR", "RESPONDER", "PROCESS[PID] USER", "SENT", "RECEIVED", "RTT", "STATE"
        )
    } else {
        format!(
            "{:<12} {:<3} {:<5} {} → {}  STATE\n{:17}PROCESS[PID] USER  ↑ SENT ↓ RECEIVED  RTT",
            "TIME", "DIR", "PROTO", "INITIATOR", "RESPONDER", ""
        )
    };
    paint(style, "1", text.trim_end()) + "\n"
}

/// What is left for the process when everything else has its place.
fn process_columns(style: &Style) -> usize {
    let others = 12 + 1 + 3 + 1 + 5 + 1 + ENDPOINT_COLUMNS + 3 + ENDPOINT_COLUMNS + 1 + 1 + 8 + 1 + 8 + 1 + 8 + 2 + 11;
    style.columns.saturating_sub(others).max(16)
}

/// A flow, with the end of line. Sent and received are the initiator's.
#[must_use]
pub fn line(report: &FlowReport, style: &Style) -> String {
    let time = clock(report.last_unix_ns, &style.zone);
    let direction = match report.local {
        [true, true] => "loc",
        [true, false] => "out",
        _ => "in",
    };
    let [from, to] = Side::BOTH.map(|side| endpoint(report, side));
    let rtt = report.rtt_us[0].or(report.rtt_us[1]).map_or("-".into(), |(us, _)| human::microseconds(us.into()));
    let bytes = |bytes| if report.bypassed { "?".into() } else { human::bytes(bytes) };
    let [sent, received] = report.total.bytes.map(bytes);
    let state = paint(style, state_color(report.state), report.state.name());
    let process = processes(report);
    let proto = report.key.proto.name();
    let mut out = String::with_capacity(200);
    let endpoints_fit = width(&from) + width(&to) <= 2 * ENDPOINT_COLUMNS;
    let prefix = format!("{} {direction:<3} {}", paint(style, "2", &time), paint(style, "36", &pad(proto, 5)));
    let _ = if style.columns >= ONE_LINE_COLUMNS && endpoints_fit {
        // A long address may use the room that the other one leaves.
        let left = ENDPOINT_COLUMNS.max(width(&from)).min(2 * ENDPOINT_COLUMNS - width(&to).min(ENDPOINT_COLUMNS));
        let right = 2 * ENDPOINT_COLUMNS - left;
        let width = process_columns(style);
        let shown = paint(style, "1", &pad(&human::ellipsis(&process, width), width));
        writeln!(out, "{prefix} {from:<left$} → {to:<right$} {shown} {sent:>8} {received:>8} {rtt:>8}  {state}")
    } else {
        let figures = format!("  ↑ {sent} ↓ {received}  rtt {rtt}");
        let room = style.columns.saturating_sub(17 + width(&figures)).max(16);
        let shown = human::ellipsis(&process, room);
        writeln!(out, "{prefix} {from} → {to}  {state}\n{:17}{}{figures}", "", paint(style, "1", &shown))
    };
    out
}

fn endpoint(report: &FlowReport, side: Side) -> String {
    let translated = report.translated.as_deref().map(|view| view.endpoint(side).to_string());
    let known = report.key.text(side);
    let name = report.peer_name.as_deref().filter(|_| side == Side::Responder);
    let known = match name {
        Some(name) => human::named(&name.to_string(), name.source.is_sure(), &known),
        None => known,
    };
    human::endpoint(known, translated)
}

/// `curl[123] alice`, and for a host-local flow both sides.
fn processes(report: &FlowReport) -> String {
    let side = |side: Side| match &report.current()[side as usize] {
        Identity { process: Some(process), workload } => process_text(process, workload.as_deref()),
        _ => "?".into(),
    };
    match report.local {
        [true, true] => format!("{} → {}", side(Side::Initiator), side(Side::Responder)),
        [true, false] => side(Side::Initiator),
        _ => side(Side::Responder),
    }
}

/// The container goes with it, the service does not: it mostly says what the process says.
fn process_text(process: &Process, workload: Option<&Workload>) -> String {
    let user = process.user_or_uid();
    let container = workload.filter(|workload| workload.container.is_some()).and_then(Workload::title);
    let container = container.map(|title| format!(" @{title}")).unwrap_or_default();
    format!("{}[{}] {user}{container}", process.name, process.key.pid)
}

fn state_color(state: State) -> &'static str {
    match state {
        State::Closed | State::Idle => "32",
        State::Connecting | State::Open | State::Closing => "33",
        _ => "31",
    }
}

fn paint(style: &Style, code: &str, text: &str) -> String {
    if style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

fn clock(unix_ns: u64, zone: &TimeZone) -> String {
    let time = Timestamp::from_millisecond(i64::try_from(unix_ns / 1_000_000).unwrap_or(0)).unwrap_or_default();
    zone.to_datetime(time).strftime("%H:%M:%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing;

    fn style(columns: usize) -> Style {
        Style { columns, color: false, zone: TimeZone::UTC }
    }

    #[test]
    fn one_line_at_160_columns_under_the_headings() {
        let style = style(160);
        let (heading, line) = (heading(&style), line(&testing::report(), &style));
        assert_eq!(line.lines().count(), 1);
        assert!(line.trim_end().chars().count() <= 160, "{line}");
        let column = |text: &str, part: &str| text.chars().count() - text[text.find(part).unwrap()..].chars().count();
        assert_eq!(column(&heading, "STATE"), column(&line, "closed"));
        assert_eq!(column(&heading, "PROCESS"), column(&line, "curl[42]"));
        assert!(line.starts_with("00:00:02.000 loc tcp   10.0.0.1:40000"), "{line}");
    }

    #[test]
    fn two_lines_at_80_columns() {
        for line in line(&testing::report(), &style(80)).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn long_ipv6_addresses_stay_readable() {
        let mut report = testing::report();
        report.key.initiator.addr = crate::model::flow::Addr([0x20; 16]);
        report.key.responder.addr = crate::model::flow::Addr([0x21; 16]);
        let text = line(&report, &style(160));
        assert!(text.contains(&report.key.responder.to_string()));
    }

    #[test]
    fn colour_only_where_asked_for() {
        let plain = style(160);
        assert!(!line(&testing::report(), &plain).contains('\x1b'));
        assert!(line(&testing::report(), &Style { color: true, ..plain }).contains("\x1b[32mclosed\x1b[0m"));
    }
}
