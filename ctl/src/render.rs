//! Tables for people. Any table can be shown, also one that a newer agent has added.

use serde_json::{Map, Value};

use crate::grid::{self, GAP};
use crate::human;
use crate::protocol::{Answer, Request, Unit};
use crate::tables::{cell, lines, paint};
pub use crate::tables::{stats, text, value};

/// Columns where no screen is in the way: more than any line has, unless somebody makes names to fill memory with.
pub const NO_SCREEN: usize = 1 << 14;

/// How answers are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Width of the terminal, or [`NO_SCREEN`].
    pub columns: usize,
    /// ANSI colours.
    pub color: bool,
    /// Rows that are zero, too.
    pub zeros: bool,
}

impl Style {
    /// No column is cut where no screen is in the way.
    fn at_most(self, width: usize) -> usize {
        if self.columns >= NO_SCREEN { NO_SCREEN } else { width }
    }
}

/// An answer, in the form that goes with the request.
#[must_use]
pub fn answer(answer: &Answer, request: &Request, style: Style) -> String {
    match request {
        Request::Stats | Request::Overview | Request::Subscribe(_) | Request::Config | Request::Reload => {
            stats(answer, style)
        }
        Request::Flows(arguments) if arguments.pairs => owners(answer, &PEERS[..2], style),
        Request::Flows(arguments) if arguments.by.is_some() => owners(answer, &GROUPS, style),
        Request::Flows(_) => flows(answer, style),
        Request::Processes(_) => owners(answer, &PROCESSES, style),
        Request::Containers(_) => owners(answer, &CONTAINERS, style),
        Request::Pods(_) => owners(answer, &PODS, style),
        Request::Workloads(_) => owners(answer, &WORKLOADS, style),
        Request::Peers(_) => owners(answer, &PEERS, style),
        Request::Ports => owners(answer, &PORTS, style),
        Request::Dns(_) => owners(answer, &DNS, style),
        Request::Rtt(_) => rtt(answer, style),
    }
}

/// The flows, one per line, with a line that says how many there are.
#[must_use]
pub fn flows(answer: &Answer, style: Style) -> String {
    let Some(table) = answer.table("flows") else { return stats(answer, style) };
    let titles = [
        ("PROTO", true),
        ("INITIATOR", true),
        ("RESPONDER", true),
        ("PROCESS[PID] USER", true),
        ("SENT", false),
        ("RECEIVED", false),
        ("PER SECOND", false),
        ("RTT", false),
        ("RETRANS", false),
        ("AGE", false),
        ("STATE", true),
    ];
    let shown = |row: &Map<String, Value>, name: &str| {
        table.columns.iter().find(|c| c.name == name).map_or_else(|| "-".into(), |column| cell(column, row))
    };
    let mut rows: Vec<Vec<String>> = table
        .objects()
        .map(|row| {
            let row = &row;
            let mut cells =
                vec![shown(row, "protocol"), endpoint(row, "initiator"), endpoint(row, "responder"), processes(row)];
            let bytes = |name| if row.get("not_counted").is_some() { "not counted".into() } else { shown(row, name) };
            cells.extend(["sent", "received"].map(bytes));
            cells.push(per_second(row));
            let older = row.get("before_agent").is_some_and(|before| before == "yes");
            let age = format!("{}{}", if older { "> " } else { "" }, shown(row, "age"));
            cells.extend([shown(row, "rtt"), shown(row, "retrans"), age, shown(row, "state")]);
            cells
        })
        .collect();
    fit_processes(&mut rows, &titles, style.columns);
    lines(&titles, rows, style) + &summary(answer, " flows", style)
}

/// Payload of both directions.
fn per_second(row: &Map<String, Value>) -> String {
    let rate = |name| row.get(name).and_then(Value::as_u64);
    match (rate("sent_per_second"), rate("received_per_second")) {
        (None, None) => "-".into(),
        (sent, received) => human::bytes(sent.unwrap_or(0) + received.unwrap_or(0)),
    }
}

/// `3 of 7 flows`, where the agent says so.
fn summary(answer: &Answer, what: &str, style: Style) -> String {
    let Some(row) = answer.rows("summary").pop() else { return String::new() };
    let figure = |name: &str| row.get(name).and_then(Value::as_u64).unwrap_or(0);
    paint(style, "2", &format!("{GAP}{} of {}{what}", figure("shown"), figure("matching"))) + "\n"
}

/// A column of a table for people: title, name in the answer, and the widest that it may get.
pub type Shown = (&'static str, &'static str, usize);

/// The figures that processes, containers, pods and so on have; shown after the columns of their own.
const FIGURES: [Shown; 13] = [
    ("OPEN", "open", 8),
    ("FLOWS", "flows", 8),
    ("FLOWS OUT", "flows_out", 9),
    ("FLOWS IN", "flows_in", 8),
    ("SENT", "sent", 8),
    ("RECEIVED", "received", 8),
    ("SENT/s", "sent_per_second", 8),
    ("RECEIVED/s", "received_per_second", 10),
    ("RETRANS", "retrans", 8),
    ("OUT P50", "rtt_out_p50", 8),
    ("OUT P99", "rtt_out_p99", 8),
    ("IN P50", "rtt_in_p50", 8),
    ("IN P99", "rtt_in_p99", 8),
];
/// `ctl processes`.
pub const PROCESSES: [Shown; 5] = [
    ("PROCESS", "process", 15),
    ("PID", "pid", 8),
    ("USER", "user", 12),
    ("PACKAGE", "package", 14),
    ("WORKLOAD", "workload", 30),
];
/// `ctl containers`.
pub const CONTAINERS: [Shown; 6] = [
    ("CONTAINER", "container", 28),
    ("RUNTIME", "runtime", 10),
    ("IMAGE", "image", 24),
    ("NAMESPACE", "namespace", 16),
    ("POD", "pod", 28),
    ("STATE", "state", 7),
];
/// `ctl pods`.
pub const PODS: [Shown; 4] =
    [("NAMESPACE", "namespace", 20), ("POD", "pod", 40), ("CONTAINERS", "containers", 30), ("STATE", "state", 7)];
/// `ctl workloads`.
pub const WORKLOADS: [Shown; 4] =
    [("WORKLOAD", "workload", 60), ("PODS", "pods", 5), ("CONTAINERS", "containers", 10), ("STATE", "state", 7)];
/// `ctl peers`.
pub const PEERS: [Shown; 3] =
    [("INITIATOR", "initiator", 48), ("RESPONDER", "responder", 48), ("SERVICE", "service", 24)];
/// `ctl flows --by`.
pub const GROUPS: [Shown; 1] = [("NAME", "name", 60)];
/// `ctl dns`.
pub const DNS: [Shown; 13] = [
    ("NAME", "name", 60),
    ("QUERIES", "queries", 8),
    ("ANSWERS", "answers", 8),
    ("NXDOMAIN", "nxdomain", 8),
    ("SERVFAIL", "servfail", 8),
    ("REFUSED", "refused", 8),
    ("OTHER", "other", 8),
    ("TRUNCATED", "truncated", 9),
    ("RETRIED", "retried", 8),
    ("TIMEOUTS", "timeouts", 8),
    ("P50", "latency_p50", 8),
    ("P90", "latency_p90", 8),
    ("P99", "latency_p99", 8),
];
/// `ctl ports`.
pub const PORTS: [Shown; 8] = [
    ("PROTO", "protocol", 5),
    ("ADDRESS", "address", 39),
    ("PORT", "port", 5),
    ("PROCESS", "process", 15),
    ("PID", "pid", 8),
    ("USER", "user", 16),
    ("PACKAGE", "package", 24),
    ("WORKLOAD", "workload", 40),
];

/// One line per process, container, pod or port, with the figures that the table has.
#[must_use]
pub fn owners(answer: &Answer, own: &[Shown], style: Style) -> String {
    let Some(table) = answer.tables.iter().find(|table| table.name != "summary") else { return String::new() };
    let column = |name: &str| table.columns.iter().find(|column| column.name == name);
    let figures = FIGURES.iter().filter(|(_, name, _)| column(name).is_some());
    let shown: Vec<Shown> = own.iter().chain(figures).copied().collect();
    let titles: Vec<_> =
        shown.iter().map(|(title, name, _)| (*title, column(name).is_none_or(|c| c.unit == Unit::Text))).collect();
    let rows = table
        .objects()
        .map(|row| {
            let text = |(_, name, width): &Shown| {
                let name = if *name == "user" && !row.contains_key("user") { "uid" } else { name };
                human::ellipsis(
                    &column(name).map_or_else(|| "-".into(), |column| cell(column, &row)),
                    style.at_most(*width),
                )
            };
            shown.iter().map(text).collect()
        })
        .collect();
    lines(&titles, rows, style) + &summary(answer, "", style)
}

/// Histograms, one bar per tenth of a decade; the longest one fills the width.
#[must_use]
pub fn rtt(answer: &Answer, style: Style) -> String {
    let Some(table) = answer.table("rtt") else { return stats(answer, style) };
    if table.rows.is_empty() {
        return format!("{GAP}no round-trip times yet\n");
    }
    table.objects().map(|row| histogram(&row, style)).collect()
}

fn histogram(row: &Map<String, Value>, style: Style) -> String {
    let figure = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let time = |name: &str| human::nanoseconds(figure(name) * 1000.0);
    let name = row.get("name").map(text).unwrap_or_default();
    let figures = format!(
        "{} samples, mean {} ± {}, p50 {}, p90 {}, p99 {}",
        human::count(figure("samples") as u64),
        time("mean"),
        time("dev"),
        time("p50"),
        time("p90"),
        time("p99"),
    );
    // Beside each other, if there is room.
    let fits = grid::width(&name) + GAP.len() + grid::width(&figures) <= style.columns;
    let between = if fits { "" } else { "\n" };
    let mut out = format!("{}{between}{GAP}{figures}\n", paint(style, "1", &human::ellipsis(&name, style.columns)));
    let bars: Vec<(u64, u64)> =
        row.get("histogram").and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default();
    let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let room = style.columns.saturating_sub(24).clamp(8, 80);
    for (bound_us, count) in bars {
        // In eighths of a character, and never nothing for something.
        let eighths = ((count as f64 / most as f64 * room as f64 * 8.0) as usize).max(1);
        let mut bar = "█".repeat(eighths / 8);
        bar.extend(['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)));
        let bar = paint(style, "36", &bar);
        out += &format!("{GAP}≤ {:>8} {:>8}  {bar}\n", human::microseconds(bound_us), human::count(count));
    }
    out.push('\n');
    out
}

/// Long process columns give way, so that the figures stay on the screen.
fn fit_processes(rows: &mut [Vec<String>], titles: &[(&str, bool)], columns: usize) {
    const PROCESS: usize = 3;
    let width = |i: usize| rows.iter().map(|row| grid::width(&row[i])).chain([titles[i].0.len()]).max().unwrap_or(0);
    let others: usize = (0..titles.len()).filter(|i| *i != PROCESS).map(|i| width(i) + GAP.len()).sum();
    let room = columns.saturating_sub(others + GAP.len()).max(titles[PROCESS].0.len());
    for row in rows {
        row[PROCESS] = human::ellipsis(&row[PROCESS], room);
    }
}

/// Whether whoever knew a name is the process that has connected, or one before it: the column `name_source`.
#[must_use]
pub fn is_sure(source: Option<&Value>) -> bool {
    !matches!(source.and_then(Value::as_str), Some("container" | "network namespace" | "host"))
}

/// An end of a flow, as both sides know it.
#[must_use]
pub fn endpoint(row: &Map<String, Value>, side: &str) -> String {
    let known = row.get(side).map_or_else(|| "-".into(), text);
    let known = match row.get(&format!("{side}_name")) {
        Some(name) => human::named(&text(name), is_sure(row.get("name_source")), &known),
        None => known,
    };
    human::endpoint(known, row.get(&format!("translated_{side}")).map(text))
}

/// `curl[123] alice → nginx[22] www-data`; only the sides that are on this host.
#[must_use]
pub fn processes(row: &Map<String, Value>) -> String {
    let side = |side: &str| {
        let get = |what: &str| row.get(&format!("{side}_{what}")).map(text);
        let name = get("process").unwrap_or_else(|| "?".into());
        // Services say mostly what their process says; containers do not.
        let workload =
            get("workload").filter(|workload| !workload.ends_with(".service") && !workload.ends_with(".scope"));
        let workload = workload.map(|workload| format!(" @{workload}")).unwrap_or_default();
        let user = get("user").or_else(|| get("uid")).unwrap_or_default();
        get("pid").map(|pid| format!("{name}[{pid}] {user}{workload}").trim_end().to_owned())
    };
    let direction = row.get("direction").and_then(Value::as_str);
    let known = |name| side(name).unwrap_or_else(|| "?".into());
    let more =
        row.get("other_responders").and_then(Value::as_array).map(|others| format!(" and {} more", others.len()));
    let more = more.unwrap_or_default();
    match direction {
        Some("local") => format!("{} → {}{more}", known("initiator"), known("responder")),
        Some("out") => known("initiator"),
        _ => known("responder") + &more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Table;
    use serde_json::json;

    #[test]
    fn histograms_have_a_bar_for_everything() {
        let columns = ["name", "samples", "mean", "dev", "p50", "p90", "p99", "histogram"];
        let mut table = Table::new("rtt", "", &columns.map(|name| (name, Unit::Other, "")));
        let values = json!(["pod", 1001, 20000.0, 1.0, 20000, 20000, 20000, [[20, 1], [19953, 1000]]]);
        table.push(values.as_array().unwrap().clone());
        let text = rtt(&Answer { tables: vec![table] }, Style { columns: 40, color: false, zeros: true });
        assert!(text.starts_with("pod\n  1001 samples, mean 20.0 ms ± 1.00 us, p50 20.0 ms"), "{text}");
        assert!(text.contains("≤  20.0 us        1  ▏\n"), "{text}");
        assert!(text.contains(&format!("≤  20.0 ms     1000  {}\n", "█".repeat(16))), "{text}");
    }
}
