//! What a measurement has to say: one table, and notes.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use sockeye_ctl::{grid, human};

use crate::stats::interval;

/// Rows of values under names.
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn push(&mut self, row: Vec<Value>) {
        self.rows.push(row);
    }

    /// One object per row.
    pub(crate) fn json(&self) -> Value {
        let object = |row: &Vec<Value>| -> Map<String, Value> {
            self.columns.iter().map(ToString::to_string).zip(row.iter().cloned()).collect()
        };
        self.rows.iter().map(object).map(Value::Object).collect()
    }

    fn text(&self) -> String {
        let cells: Vec<Vec<String>> = self.rows.iter().map(|row| row.iter().map(cell).collect()).collect();
        let titles: Vec<grid::Title<'_>> = self.columns.iter().map(|title| (*title, false)).collect();
        grid::lines(&titles, &cells).iter().map(|line| format!("{line}\n")).collect()
    }
}

pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        Value::Number(n) => n.as_u64().map_or_else(|| n.to_string(), human::count),
        other => other.to_string(),
    }
}

/// A table with what has to be known to read it.
pub(crate) struct Report {
    pub(crate) title: &'static str,
    pub(crate) table: Table,
    /// Further tables, with what they show.
    pub(crate) more: Vec<(&'static str, Table)>,
    pub(crate) notes: Vec<String>,
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let table = |table: &Table| json!({"columns": table.columns, "rows": table.json()});
        let more: Map<String, Value> = self.more.iter().map(|(what, more)| ((*what).into(), table(more))).collect();
        json!({"measurement": self.title, "columns": self.table.columns, "rows": self.table.json(), "more": more,
            "notes": self.notes})
    }

    pub(crate) fn text(&self) -> String {
        let more: String = self.more.iter().map(|(what, table)| format!("\n{what}:\n{}", table.text())).collect();
        let notes: String = self.notes.iter().map(|note| format!("{note}\n")).collect();
        format!("{}{more}\n{notes}", self.table.text())
    }
}

/// A bar on standard error, if that is a terminal.
pub(crate) fn progress(what: &str, steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed_precise}") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// Median, and from where to where its interval goes; nothing of nothing.
pub(crate) fn median_cells(values: &[f64]) -> [Value; 3] {
    if values.is_empty() {
        return [Value::Null, Value::Null, Value::Null];
    }
    let (low, median, high) = interval(values);
    [median, low, high].map(round2)
}

/// A figure with two digits after the point.
pub(crate) fn round2(x: f64) -> Value {
    json!((x * 100.0).round() / 100.0)
}
