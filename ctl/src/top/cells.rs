//! Rows of an answer, and what their cells show.

use std::collections::HashMap;

use serde_json::Value;
use sockeye_ctl::protocol::{Table, Unit};
use sockeye_ctl::{human, render};

use super::filter::Filter;
use super::views::{Cell, Col};

/// A table of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rows {
    places: HashMap<String, (usize, Unit)>,
    pub(crate) table: Option<Table>,
}

/// One of its rows.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    rows: &'a Rows,
    values: &'a [Value],
}

impl Rows {
    pub(crate) fn new(table: Table) -> Self {
        let places = table.columns.iter().enumerate();
        let places = places.map(|(place, column)| (column.name.clone(), (place, column.unit))).collect();
        Self { places, table: Some(table) }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.as_ref().map_or(0, |table| table.rows.len())
    }

    pub(crate) fn get(&self, index: usize) -> Option<Row<'_>> {
        let values = self.table.as_ref()?.rows.get(index)?;
        Some(Row { rows: self, values })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Row<'_>> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Keeps and orders rows here.
    pub(crate) fn arrange(&mut self, filter: &Filter, by: &Col, reverse: bool) {
        let mut kept: Vec<usize> = (0..self.len()).collect();
        kept.retain(|index| self.get(*index).is_some_and(|row| filter.is_listener(&row)));
        kept.sort_by_cached_key(|index| self.get(*index).map(|row| row.here_key(by)));
        if reverse {
            kept.reverse();
        }
        if let Some(table) = &mut self.table {
            table.rows = kept.into_iter().map(|index| std::mem::take(&mut table.rows[index])).collect();
        }
    }
}

impl<'a> Row<'a> {
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        let (place, _) = self.rows.places.get(name)?;
        self.values.get(*place).filter(|value| !value.is_null())
    }

    /// Text of a value, harmless; empty where nothing is known.
    pub(crate) fn text(&self, name: &str) -> String {
        self.value(name).map(render::text).unwrap_or_default()
    }

    /// The same, or nothing.
    pub(crate) fn known(&self, name: &str) -> Option<String> {
        self.value(name).map(render::text).filter(|text| !text.is_empty())
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.value(name).and_then(Value::as_u64)
    }

    pub(crate) fn float(&self, name: &str) -> Option<f64> {
        self.value(name).and_then(Value::as_f64)
    }

    pub(crate) fn numbers(&self, name: &str) -> Vec<f64> {
        let list = self.value(name).and_then(Value::as_array);
        list.map(|list| list.iter().filter_map(Value::as_f64).collect()).unwrap_or_default()
    }

    /// A value in its unit.
    pub(crate) fn shown(&self, name: &str) -> String {
        let Some((value, (_, unit))) = self.value(name).zip(self.rows.places.get(name)) else { return "-".into() };
        match unit {
            // Most are nothing, and zeros hide what is something.
            Unit::Bytes | Unit::Count if value.as_f64() == Some(0.0) => "0".into(),
            Unit::Count if value.is_f64() => short(value.as_f64().unwrap_or(0.0)),
            _ => render::value(*unit, value),
        }
    }

    pub(super) fn has_text(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        self.values.iter().any(|value| !value.is_null() && render::text(value).to_lowercase().contains(&word))
    }

    fn here_key(&self, by: &Col) -> (u64, String) {
        let Cell::Column(name) = by.cell else { return Default::default() };
        match self.number(name) {
            Some(number) => (number, String::new()),
            None => (u64::MAX, self.text(name)),
        }
    }

    /// What a cell shows, not cut yet.
    pub(crate) fn cell(&self, cell: Cell, arrow: &str) -> String {
        match cell {
            Cell::Column(name) => self.shown(name),
            Cell::Either(one, other) => self.known(one).or_else(|| self.known(other)).unwrap_or_else(|| "-".into()),
            Cell::Sum(names) => {
                let figures: Vec<u64> = names.iter().filter_map(|name| self.number(name)).collect();
                if figures.is_empty() { "-".into() } else { human::count(figures.iter().sum()) }
            }
            Cell::Worse(one, other) => {
                let worse = self.float(one).into_iter().chain(self.float(other)).reduce(f64::max);
                worse.map_or_else(|| "-".into(), |us| human::nanoseconds(us * 1000.0))
            }
            Cell::Endpoint(side) => match self.known(&format!("{side}_name")) {
                // The page of the flow has both.
                Some(name) => {
                    let port = self.text(side).rsplit_once(':').map(|(_, port)| port.to_owned()).unwrap_or_default();
                    format!("{}:{port}", self.called(&name))
                }
                None => self.text(side),
            },
            Cell::Processes => self.both(arrow, |side| {
                let pid = self.known(&format!("{side}_pid"))?;
                let name = self.known(&format!("{side}_process")).unwrap_or_else(|| "?".into());
                Some(format!("{name}[{pid}]"))
            }),
            Cell::Places => self.both(arrow, |side| self.known(&format!("{side}_workload"))),
            Cell::Recent => String::new(),
        }
    }

    /// A name of the responder, with the doubt that there is about it.
    pub(crate) fn called(&self, name: &str) -> String {
        human::called(name, render::is_sure(self.value("name_source")))
    }

    fn both(&self, arrow: &str, of: impl Fn(&str) -> Option<String>) -> String {
        match (of("initiator"), of("responder")) {
            (Some(one), Some(other)) => format!("{one} {arrow} {other}"),
            (Some(one), None) => one,
            (None, Some(other)) => format!("{arrow} {other}"),
            (None, None) => "-".into(),
        }
    }

    /// Bytes of both directions, per second.
    pub(crate) fn recent(&self) -> Vec<f64> {
        let (sent, received) = (self.numbers("history_sent"), self.numbers("history_received"));
        sent.iter().zip(&received).map(|(a, b)| a + b).collect()
    }

    /// All that is known, one name and value after another.
    pub(crate) fn spelled_out(&self) -> String {
        let columns = self.rows.table.iter().flat_map(|table| &table.columns);
        let pairs = columns.zip(self.values).filter(|(_, value)| !value.is_null() && !value.is_array());
        let text = pairs.map(|(column, value)| format!("{}={}", human::printable(&column.name), render::text(value)));
        text.collect::<Vec<_>>().join("\t")
    }
}

/// A number with a fraction: `0.3`, `12.5`, `340`.
pub(crate) fn short(number: f64) -> String {
    match number {
        n if n < 99.95 => format!("{n:.1}"),
        n => human::count(n.round() as u64),
    }
}

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A line of the newest values, the highest of which fills the height; blanks where there is nothing.
pub(crate) fn sparkline(values: &[f64], cells: usize) -> String {
    // A cell shows the largest of the values that it stands for.
    let per_cell = values.len().div_ceil(cells.max(1)).max(1);
    let newest = values.rchunks(per_cell).map(|part| part.iter().copied().fold(0.0, f64::max));
    let mut newest: Vec<f64> = newest.take(cells).collect();
    newest.reverse();
    let most = newest.iter().copied().fold(0.0, f64::max);
    let level = |value: f64| {
        if value <= 0.0 {
            return ' ';
        }
        LEVELS[((value / most * 8.0).ceil() as usize).clamp(1, 8) - 1]
    };
    let line: String = newest.into_iter().map(level).collect();
    format!("{line:>cells$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sparklines_show_every_peak() {
        assert_eq!(sparkline(&[0.0, 1.0, 4.0, 8.0], 4), " ▁▄█");
        assert_eq!(sparkline(&[0.0, 8.0, 0.0, 1.0], 2), "█▁");
        assert_eq!(sparkline(&[1.0], 3), "  █");
        assert_eq!((sparkline(&[], 2).as_str(), sparkline(&[0.0; 9], 3).as_str()), ("  ", "   "));
    }

    #[test]
    fn rows_that_are_here_are_sorted_and_chosen_here() {
        let columns = [("port", Unit::Id, ""), ("process", Unit::Text, ""), ("protocol", Unit::Text, "")];
        let mut table = Table::new("ports", "", &columns);
        for (port, name, protocol) in
            [(443, "nginx", "tcp"), (22, "sshd", "tcp"), (8080, "Nginx", "tcp"), (53, "dnsmasq", "udp")]
        {
            table.push([json!(port), json!(name), json!(protocol)]);
        }
        let col = super::super::views::columns(super::super::views::View::Ports, false, false)[2];
        let chosen = |text: &str| {
            let (mut rows, filter) = (Rows::new(table.clone()), super::super::filter::parse(text).unwrap());
            assert!(filter.is_of_listeners());
            rows.arrange(&filter, &col, true);
            rows.iter().filter_map(|row| row.number("port")).collect::<Vec<_>>()
        };
        assert_eq!(chosen("nginx"), [8080, 443]);
        assert_eq!([chosen("protocol=udp"), chosen("port=22 port=443")], [vec![53], vec![443, 22]]);
        assert_eq!([chosen("process=nginx port=443"), chosen("user=root")], [vec![443], vec![]]);
        assert!(!super::super::filter::parse("state=open").unwrap().is_of_listeners());
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([short(0.0), short(0.25), short(99.9), short(1234.0)], ["0.0", "0.2", "99.9", "1234"]);
    }
}
