//! `perf report`: every measurement, on one page that needs nothing but a browser.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, Parser as _};
use serde_json::{Value, json};

use crate::agent::Agents;
use crate::plots::{Bar, Labels, Series, bars, lines};
use crate::table::Report;
use crate::{Cli, measure};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The page to write; the same with .json holds the figures.
    #[arg(long, value_name = "FILE", default_value = "perf-report.html")]
    out: PathBuf,
    /// Two minutes: shows that it works, and no figure to quote.
    #[arg(long)]
    quick: bool,
    /// Read the figures from the .json of an earlier run, and only draw them.
    #[arg(long)]
    draw: bool,
}

impl Options {
    /// What `perf --quick` means.
    pub(crate) fn quick() -> Self {
        Self { out: "perf-report.html".into(), quick: true, draw: false }
    }
}

/// The measurements and what they are asked for. The order: what must not be disturbed comes first.
const COMMANDS: [&str; 8] = [
    "overhead --pairs 24",
    "saturate",
    "churn --connections 20000 --rate 2000",
    "churn --connections 200000 --rate 10000 --rate 0",
    "hold",
    "peers --rounds 3",
    "accuracy",
    "soak --minutes 2",
];
const COMMANDS_QUICK: [&str; 7] = [
    "overhead --quick",
    "saturate --quick",
    "churn --quick",
    "hold --quick",
    "peers --quick",
    "accuracy --quick",
    "soak --quick",
];

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<()> {
    let figures = options.out.with_extension("json");
    if !options.draw {
        agents.none_may_run()?;
        let commands = if options.quick { &COMMANDS_QUICK[..] } else { &COMMANDS[..] };
        let mut results = Vec::new();
        for command in commands {
            eprintln!("perf {command}");
            results.push(one(command, agents));
        }
        let all = json!({"machine": machine(), "quick": options.quick, "results": results});
        fs::write(&figures, all.to_string()).with_context(|| format!("cannot write {}", figures.display()))?;
    }
    let text = fs::read_to_string(&figures).with_context(|| format!("cannot read {}", figures.display()))?;
    let all: Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", figures.display()))?;
    fs::write(&options.out, page(&all)?).with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("{} and {}", options.out.display(), figures.display());
    Ok(())
}

/// One measurement. A failure is a result, too: the others go on.
fn one(command: &str, agents: &Agents) -> Value {
    let words = std::iter::once("perf").chain(command.split_whitespace());
    let report = Cli::try_parse_from(words).map_err(anyhow::Error::from).and_then(|cli| {
        let command = cli.command.context("no command")?;
        measure(&command, agents)
    });
    match report {
        Ok(report) => {
            if let Some(report) = &report {
                println!("== {command}\n{}", report.text());
            }
            json!({"command": command, "report": report.as_ref().map(Report::json)})
        }
        Err(err) => {
            println!("== {command}\nfailed: {err:#}\n");
            json!({"command": command, "error": format!("{err:#}")})
        }
    }
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpus} CPUs, {}, Linux {}", model.map_or("unknown", |(_, name)| name.trim()), kernel.trim())
}

/// All rows of a measurement, over all of its runs.
struct Rows<'a>(Vec<&'a Value>);

impl<'a> Rows<'a> {
    fn of(all: &'a Value, measurement: &str, further: Option<&str>) -> Self {
        let mut rows = Vec::new();
        for result in all["results"].as_array().into_iter().flatten() {
            let report = &result["report"];
            if report["measurement"] != measurement {
                continue;
            }
            let found = match further {
                None => Some(&report["rows"]),
                Some(start) => report["more"].as_object().and_then(|more| {
                    more.iter().find(|(name, _)| name.starts_with(start)).map(|(_, table)| &table["rows"])
                }),
            };
            rows.extend(found.and_then(Value::as_array).into_iter().flatten());
        }
        Self(rows)
    }

    /// Points of those rows in which a column has a value.
    fn points(&self, only: Option<(&str, &Value)>, x: &str, y: &str) -> Vec<(f64, f64)> {
        let wanted = self.0.iter().filter(|row| only.is_none_or(|(column, value)| row[column] == *value));
        wanted.filter_map(|row| Some((row[x].as_f64()?, row[y].as_f64()?))).collect()
    }
}

fn plots(all: &Value) -> Vec<(&'static str, Result<String>)> {
    let saturate = Rows::of(all, "saturate", None);
    let on_other: Vec<&Value> = saturate.0.iter().copied().filter(|row| row["worker on"] == "another CPU").collect();
    let on_other = Rows(on_other);
    let throughput: Vec<Series> =
        [("drain", "ring alone"), ("shard", "ring and shard"), ("merge", "ring, shard and merge")]
            .map(|(stage, name)| Series {
                name: name.into(),
                points: on_other.points(Some(("stage", &json!(stage))), "flows", "delivered/s"),
            })
            .into();
    let loss = Rows::of(all, "saturate", Some("loss"));
    let churn = Rows::of(all, "churn", None);
    let hold = Rows::of(all, "hold", None);
    let soak = Rows::of(all, "soak", None);
    let single = |name: &str, points| vec![Series { name: name.into(), points }];
    let overhead = slow_downs(&Rows::of(all, "overhead", None), "traffic", Some("with"));
    let peers = slow_downs(&Rows::of(all, "peers", None), "tool", None);
    let labels = |title, x, y| Labels { title, x, y };
    vec![
        ("overhead", bars(labels("Slow-down of the watched programs (red: the bar)", "percent", ""), &overhead)),
        (
            "saturate",
            lines(labels("Throughput of one worker, on another CPU", "live flows", "records/s"), &throughput, true),
        ),
        (
            "saturate",
            lines(
                labels("Loss under load", "offered records/s", "percent lost"),
                &single("loss", loss.points(None, "offered/s", "lost %")),
                false,
            ),
        ),
        (
            "churn",
            lines(
                labels("Agent CPU per short connection", "connections/s", "microseconds"),
                &single("cpu", churn.points(None, "per second", "agent CPU, us per connection")),
                false,
            ),
        ),
        (
            "hold",
            lines(
                labels("Memory of the agent", "open connections, both ends here", "MB"),
                &single("memory", hold.points(None, "connections", "agent MB")),
                false,
            ),
        ),
        ("peers", bars(labels("Slow-down of short connections, by tool", "percent", ""), &peers)),
        ("peers", bars(labels("CPU of the tool, microseconds per connection", "microseconds", ""), &peers_cpu(all))),
        (
            "soak",
            lines(
                labels("Memory over time", "seconds", "MB"),
                &single("memory", soak.points(None, "s", "agent MB")),
                false,
            ),
        ),
    ]
}

/// `with`: the column that tells the agent from what it is compared with.
fn slow_downs(rows: &Rows<'_>, name: &str, with: Option<&str>) -> Vec<Bar> {
    let bar = |row: &&Value| {
        let with = with.and_then(|column| row[column].as_str());
        let of = short_name(row[name].as_str()?);
        Some(Bar {
            name: with.map_or_else(|| of.clone(), |with| format!("{of}, {with}")),
            pale: with.is_some_and(|with| !with.starts_with("agent")),
            low: row["from"].as_f64()?,
            middle: row["slow-down %"].as_f64()?,
            high: row["to"].as_f64()?,
            limit: row["bar %"].as_f64(),
        })
    };
    rows.0.iter().filter_map(bar).collect()
}

fn peers_cpu(all: &Value) -> Vec<Bar> {
    let bar = |row: &&Value| {
        let cpu = row["its CPU, us per connection"].as_f64()?;
        Some(Bar {
            name: short_name(row["tool"].as_str()?),
            low: cpu,
            middle: cpu,
            high: cpu,
            limit: None,
            pale: false,
        })
    };
    Rows::of(all, "peers", None).0.iter().filter_map(bar).collect()
}

/// What fits beside a bar.
fn short_name(name: &str) -> String {
    name.split_once(',').map_or(name, |(first, _)| first).to_owned()
}

fn page(all: &Value) -> Result<String> {
    let mut plots = plots(all);
    let mut out = String::from(HEAD);
    writeln!(
        out,
        "<h1>What sockeye costs and what it bears</h1><p>{}</p>",
        escape(all["machine"].as_str().unwrap_or(""))
    )?;
    if all["quick"] == true {
        out += "<p class=warn>A quick run: it shows that the measurements work. These are no figures to quote.</p>\n";
    }
    let mut last = "";
    for result in all["results"].as_array().into_iter().flatten() {
        let report = &result["report"];
        let title = report["measurement"].as_str().unwrap_or_default();
        if title != last {
            writeln!(out, "<h2>{}</h2>", escape(title))?;
            for (_, plot) in plots.extract_if(.., |(of, _)| *of == title) {
                match plot {
                    Ok(svg) => writeln!(out, "<figure>{svg}</figure>")?,
                    Err(why) => writeln!(out, "<p class=warn>no plot: {}</p>", escape(&why.to_string()))?,
                }
            }
            last = title;
        }
        writeln!(out, "<p><code>perf {}</code></p>", escape(result["command"].as_str().unwrap_or_default()))?;
        if let Some(error) = result["error"].as_str() {
            writeln!(out, "<p class=warn>failed: {}</p>", escape(error))?;
            continue;
        }
        table(&mut out, &report["rows"], &report["columns"])?;
        for (what, further) in report["more"].as_object().into_iter().flatten() {
            writeln!(out, "<h3>{}</h3>", escape(what))?;
            table(&mut out, &further["rows"], &further["columns"])?;
        }
        for note in report["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            writeln!(out, "<p class=note>{}</p>", escape(note))?;
        }
    }
    Ok(out + "</body></html>\n")
}

fn table(out: &mut String, rows: &Value, columns: &Value) -> Result<()> {
    let columns: Vec<&str> = columns.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    *out += "<div class=scroll><table><tr>";
    for column in &columns {
        write!(out, "<th>{}</th>", escape(column))?;
    }
    *out += "</tr>\n";
    for row in rows.as_array().into_iter().flatten() {
        *out += "<tr>";
        for column in &columns {
            let class = if row[column].is_number() { " class=n" } else { "" };
            write!(out, "<td{class}>{}</td>", escape(&crate::table::cell(&row[column])))?;
        }
        *out += "</tr>\n";
    }
    *out += "</table></div>\n";
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><title>sockeye: measurements</title>
<meta name=viewport content=\"width=device-width\"><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.6em}h2{margin-top:2em;border-bottom:1px solid #ddd;text-transform:capitalize}h3{font-size:1em}
figure{display:inline-block;margin:.5em 1em .5em 0;width:520px;max-width:100%}svg{width:100%;height:auto;border:1px solid #eee}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;border-bottom:1px solid #eee;text-align:left;white-space:nowrap}th{background:#f6f6f6}
td.n{text-align:right}.note{color:#555;font-size:13px;margin:.2em 0}.warn{color:#a33}code{background:#f4f4f4;padding:.1em .3em}
</style></head><body>
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_what_was_measured_and_what_failed() {
        let all = json!({"machine": "a <machine>", "quick": true, "results": [
            {"command": "hold", "report": {"measurement": "hold", "columns": ["connections", "agent MB"],
                "rows": [{"connections": 10, "agent MB": 1.5}, {"connections": 20, "agent MB": 2.5}], "more": {}, "notes": ["n & m"]}},
            {"command": "peers", "error": "no root"}]});
        let page = page(&all).expect("a page");
        for part in
            ["a &lt;machine&gt;", "Memory of the agent", "<svg", "n &amp; m", "failed: no root", "no figures to quote"]
        {
            assert!(page.contains(part), "{part} is missing");
        }
        assert!(
            !page.contains("http://") || page.matches("http://").all(|_| page.contains("www.w3.org")),
            "self-contained"
        );
    }
}
