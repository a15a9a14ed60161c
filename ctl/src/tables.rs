//! Any table for people, also one that a newer agent has added.

use serde_json::{Map, Value};

use crate::grid::{self, GAP};
use crate::human;
use crate::protocol::{Answer, Column, Table, Unit};
use crate::render::Style;

/// Cells of a value that has a line of its own.
const VALUE_MAX: usize = 1000;
/// The table that comes first, and its column.
const VERDICT: &str = "verdict";

/// All tables of an answer, each under its name.
#[must_use]
pub fn stats(answer: &Answer, style: Style) -> String {
    let mut out = String::new();
    for table in &answer.tables {
        if let (VERDICT, Some(verdict)) = (table.name.as_str(), verdict(table)) {
            out += &paint(style, "1", &wrapped(&verdict, 0, style));
            out.push('\n');
            continue;
        }
        let name = human::ellipsis(&human::printable(&table.name).to_uppercase(), style.columns);
        let help = wrapped(&human::printable(&table.help), grid::width(&name) + GAP.len(), style);
        out += &format!("{}{GAP}{}", paint(style, "1", &name), paint(style, "2", help.trim_end_matches('\n')));
        out.push('\n');
        let rows: Vec<_> = table.objects().collect();
        let shown: Vec<_> =
            rows.iter().filter(|row| style.zeros || rows.len() == 1 || !is_zero(table, row)).cloned().collect();
        out += &match (rows.as_slice(), shown.as_slice()) {
            ([], _) => format!("{GAP}-\n"),
            (rows, []) => format!("{GAP}all {} are zero\n", rows.len()),
            (_, [row]) if rows.len() == 1 && table.columns.len() > 4 => record(table, row, style),
            (_, shown) => all_rows(table, shown, style),
        };
        out.push('\n');
    }
    out
}

/// The line that says whether all is well.
fn verdict(table: &Table) -> Option<String> {
    table.objects().next().and_then(|row| row.get(VERDICT).map(text))
}

/// A row of counts that are all zero: nothing has happened.
fn is_zero(table: &Table, row: &Map<String, Value>) -> bool {
    let of = |column: &&Column| !matches!(column.unit, Unit::Text | Unit::Id | Unit::Other);
    let mut figures = table.columns.iter().filter(of).filter_map(|column| row.get(&column.name)).peekable();
    figures.peek().is_some() && figures.all(|figure| figure.as_f64() == Some(0.0))
}

/// Lines that fit the screen, of which the first one begins after so many cells; each ends.
fn wrapped(text: &str, after: usize, style: Style) -> String {
    let (mut out, mut used) = (String::new(), after);
    for (number, word) in text.split(' ').enumerate() {
        let word = human::ellipsis(word, style.columns.saturating_sub(GAP.len()).max(1));
        let cells = grid::width(&word);
        if number > 0 && used + 1 + cells > style.columns {
            out += &format!("\n{GAP}");
            used = GAP.len();
        } else if number > 0 {
            out.push(' ');
            used += 1;
        }
        out += &word;
        used += cells;
    }
    out.push('\n');
    out
}

/// One value per line.
fn record(table: &Table, row: &Map<String, Value>, style: Style) -> String {
    let names: Vec<String> = table.columns.iter().map(|column| title(column, style)).collect();
    let width = names.iter().map(|name| grid::width(name)).max().unwrap_or(0);
    let line = |(name, column): (&String, &Column)| {
        let value = human::ellipsis(&cell(column, row), VALUE_MAX);
        format!("{GAP}{}{GAP}{value}\n", grid::pad(name, width))
    };
    names.iter().zip(&table.columns).map(line).collect()
}

fn all_rows(table: &Table, rows: &[Map<String, Value>], style: Style) -> String {
    // Each takes the gap before it: more are not on the line.
    let columns = &table.columns[..table.columns.len().min(style.columns / GAP.len() + 1)];
    let rows = rows.iter().map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect();
    let names: Vec<String> = columns.iter().map(|column| title(column, style)).collect();
    let texts = columns.iter().map(|column| column.unit == Unit::Text);
    lines(&names.iter().map(String::as_str).zip(texts).collect::<Vec<_>>(), rows, style)
}

/// The name of a column.
fn title(column: &Column, style: Style) -> String {
    human::ellipsis(&human::printable(&column.name), style.columns)
}

/// Aligned lines under their titles. One that is too long is cut; so are cells before, or a long one would fill up all
/// rows.
pub(crate) fn lines(titles: &[grid::Title<'_>], mut rows: Vec<Vec<String>>, style: Style) -> String {
    for cell in rows.iter_mut().flatten().filter(|cell| cell.len() > style.columns) {
        *cell = human::ellipsis(cell, style.columns);
    }
    let mut lines = grid::lines(titles, &rows).into_iter().map(|line| human::ellipsis(&line, style.columns));
    let mut out = paint(style, "4", &lines.next().unwrap_or_default()) + "\n";
    for line in lines {
        out += &line;
        out.push('\n');
    }
    out
}

pub(crate) fn cell(column: &Column, row: &Map<String, Value>) -> String {
    row.get(&column.name).map_or_else(|| "-".into(), |figure| value(column.unit, figure))
}

/// A value in its unit.
#[must_use]
pub fn value(unit: Unit, value: &Value) -> String {
    match (unit, value) {
        (Unit::Bytes, v) if v.is_u64() => human::bytes(v.as_u64().unwrap_or(0)),
        (Unit::Count, v) if v.is_u64() => human::count(v.as_u64().unwrap_or(0)),
        (Unit::Seconds, v) if v.is_u64() => human::seconds(v.as_u64().unwrap_or(0)),
        (Unit::Nanoseconds, v) => v.as_f64().map_or_else(|| text(v), human::nanoseconds),
        (Unit::Microseconds, v) => v.as_f64().map_or_else(|| text(v), |us| human::nanoseconds(us * 1000.0)),
        (Unit::Milliseconds, v) => v.as_f64().map_or_else(|| text(v), |ms| human::nanoseconds(ms * 1_000_000.0)),
        (Unit::Percent, v) => v.as_f64().map_or_else(|| text(v), |p| format!("{p:.1} %")),
        (_, v) => text(v),
    }
}

/// A value as it is, made harmless.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => human::printable(text),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        other => human::printable(&other.to_string()),
    }
}

pub(crate) fn paint(style: Style, code: &str, text: &str) -> String {
    if style.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const STYLE: Style = Style { columns: 100, color: false, zeros: true };

    fn table() -> Table {
        let mut table = Table::new("things", "Things.", &[("name", Unit::Text, "n"), ("size", Unit::Bytes, "s")]);
        table.push([json!("a"), json!(1500)]);
        table.push([json!("longer"), Value::Null]);
        table
    }

    #[test]
    fn grid_aligns_and_shows_the_unknown_as_unknown() {
        let text = stats(&Answer { tables: vec![table()] }, STYLE);
        assert_eq!(text, "THINGS  Things.\n  name       size\n  a       1.50 kB\n  longer        -\n\n");
    }

    #[test]
    fn nothing_acts_on_the_terminal() {
        let hostile = "a\u{1b}[2J\nb\u{202e}";
        let mut table = table();
        (table.name, table.help) = (hostile.into(), hostile.into());
        table.columns[0].name = hostile.into();
        table.rows[0][0] = json!([hostile, {hostile: hostile}]);
        let text = stats(&Answer { tables: vec![table] }, STYLE);
        assert_eq!(text.lines().count(), 5, "{text:?}");
        assert!(text.lines().all(|line| line == human::printable(line)), "{text:?}");
    }

    #[test]
    fn long_texts_and_many_columns_take_no_more_than_their_lines() {
        let columns =
            |count: usize, name: &str| vec![Column { name: name.into(), unit: Unit::Text, help: String::new() }; count];
        let long = "x".repeat(1 << 17);
        let rows = vec![vec![json!(long)]; 2];
        for (count, rows) in
            [(2, [rows.clone(), vec![vec![]; 10_000]].concat()), (10_000, rows.clone()), (5, rows[..1].to_vec())]
        {
            let table = Table { columns: columns(count, &long), rows, ..table() };
            let text = stats(&Answer { tables: vec![table] }, STYLE);
            assert!(text.len() < 4 << 20, "{} bytes", text.len());
        }
    }

    #[test]
    fn unknown_units_and_shapes_are_shown_as_they_are() {
        let json =
            r#"{"name":"x","help":"","columns":[{"name":"a","unit":"furlongs","help":""}],"rows":[[[1,2],"more"]]}"#;
        let table: Table = serde_json::from_str(json).unwrap();
        assert!(stats(&Answer { tables: vec![table] }, STYLE).contains("1 2"));
    }

    #[test]
    fn the_verdict_comes_first_and_zeros_only_when_they_are_wanted() {
        let mut verdict = Table::new(VERDICT, "", &[("verdict", Unit::Text, ""), ("lost", Unit::Count, "")]);
        verdict.push([json!("nothing lost, 9 threads well"), json!(0)]);
        let columns = [("reason", Unit::Text, ""), ("count", Unit::Count, ""), ("per_cpu", Unit::Text, "")];
        let mut losses = Table::new("losses", "Everything that can be lost, and how often it was.", &columns);
        losses.push([json!("ring_full"), json!(0), json!([0, 0])]);
        losses.push([json!("flow_table_full"), json!(0), Value::Null]);
        let mut answer = Answer { tables: vec![verdict, losses] };
        let text = stats(&answer, Style { columns: 40, zeros: false, ..STYLE });
        let expected = "nothing lost, 9 threads well\n\n\
                        LOSSES  Everything that can be lost, and\n  how often it was.\n  all 2 are zero\n\n";
        assert_eq!(text, expected);
        answer.tables[1].rows[1][1] = json!(7);
        let text = stats(&answer, Style { zeros: false, ..STYLE });
        assert!(text.contains("flow_table_full") && !text.contains("ring_full"), "{text}");
        assert!(stats(&answer, STYLE).contains("ring_full"));
    }
}
