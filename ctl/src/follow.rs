//! `ctl flows --follow`: flows as they end.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use sockeye_ctl::protocol::{Answer, FlowsArguments, Request};
use sockeye_ctl::{Client, ClientError, grid, human, render};

use crate::show::style;

/// How often the agent is asked.
const EVERY: Duration = Duration::from_millis(500);
/// Where those begin that have not ended yet.
const FROM_NOW: u64 = u64::MAX;

/// Prints until the reader has had enough, or the agent cannot be asked. One that is started again is asked on.
pub(crate) fn run(client: &Client, arguments: FlowsArguments, json: bool) -> ExitCode {
    let mut follower = Follower { arguments, next: FROM_NOW, was_gone: false };
    let mut asked_once = false;
    loop {
        let Follower { arguments, next, .. } = &follower;
        let asked = FlowsArguments { after: Some(*next), limit: 0, ..arguments.clone() };
        match client.ask(&Request::Flows(Box::new(asked))) {
            Ok(answer) => {
                asked_once = true;
                if follower.told(&answer, json).is_err() {
                    return ExitCode::SUCCESS;
                }
            }
            Err(ClientError::NoAgent(_) | ClientError::Io(_)) if asked_once => follower.gone(),
            Err(err) => {
                complain!("ctl: {err}.");
                return ExitCode::from(err.exit_code());
            }
        }
        std::thread::sleep(EVERY);
    }
}

struct Follower {
    arguments: FlowsArguments,
    next: u64,
    was_gone: bool,
}

impl Follower {
    /// Another agent counts from the start: all that has ended under it is new.
    fn gone(&mut self) {
        if !std::mem::replace(&mut self.was_gone, true) {
            complain!("ctl: the agent has gone: it is looked for again and again.");
        }
        self.next = 0;
    }

    fn told(&mut self, answer: &Answer, json: bool) -> io::Result<()> {
        self.was_gone = false;
        if let Some(cursor) = answer.rows("cursor").pop() {
            let figure = |name: &str| cursor.get(name).and_then(Value::as_u64).unwrap_or(0);
            self.next = figure("next");
            if figure("missed") > 0 {
                complain!("ctl: {} flows were forgotten before they were told: raise --closed-max.", figure("missed"));
            }
        }
        let mut out = io::stdout().lock();
        for row in answer.rows("flows") {
            if json {
                writeln!(out, "{}", Value::Object(row))?;
            } else {
                writeln!(out, "{}", line(&row, answer))?;
            }
        }
        out.flush()
    }
}

/// When it was noticed, both ends, who they were, how much, how it ended.
fn line(row: &Map<String, Value>, answer: &Answer) -> String {
    let shown = |name: &str| {
        let column = answer.table("flows").and_then(|table| table.columns.iter().find(|column| column.name == name));
        row.get(name).zip(column).map_or_else(|| "-".into(), |(value, column)| render::value(column.unit, value))
    };
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let ends = format!("{} → {}", render::endpoint(row, "initiator"), render::endpoint(row, "responder"));
    let figures = ["sent", "received", "rtt", "age"].map(|name| grid::pad_left(&shown(name), 9)).join(" ");
    let text = format!(
        "{now} {} {} {figures} {} {}",
        shown("protocol"),
        grid::pad(&ends, 45),
        grid::pad(&shown("state"), 8),
        render::processes(row)
    );
    human::ellipsis(&text, style(io::stdout().is_terminal(), true).columns)
}
