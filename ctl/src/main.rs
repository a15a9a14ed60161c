//! `ctl`: looks into a running sockeye.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use sockeye_ctl::protocol::{Answer, FlowsArguments, Request, SortBy, VERSION};
use sockeye_ctl::{Client, ClientError, render};

/// Exit code for a wrong command line, from sysexits(3).
const EXIT_USAGE: u8 = 64;
/// Programs are measured between two questions.
const MEASURE: Duration = Duration::from_millis(500);

/// Looks into a running sockeye.
#[derive(Debug, Parser)]
#[command(name = "ctl", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = sockeye_ctl::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Print the answer as JSON, one line each.
    #[arg(long, global = true)]
    json: bool,

    /// Ask again and again.
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything about the agent: records, losses, flows, round-trip times, exports, what its programs cost.
    Stats,
    /// The flows of the host.
    Flows(Flows),
}

#[derive(Debug, Args)]
struct Flows {
    /// Largest first: bytes, rtt, retrans, active (the most recent first), age (the oldest first).
    #[arg(long, default_value = "bytes", value_parser = parse_sort)]
    sort: SortBy,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Part of a process's name or path, or a pid.
    #[arg(long)]
    process: Option<String>,
    /// Name of a user, or a uid.
    #[arg(long)]
    user: Option<String>,
    /// Port on either side.
    #[arg(long)]
    port: Option<u16>,
    /// Address on either side.
    #[arg(long)]
    address: Option<std::net::IpAddr>,
    /// As in the column of that name: open, closed, refused, ...
    #[arg(long)]
    state: Option<String>,
}

fn parse_sort(text: &str) -> Result<SortBy, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "expected bytes, rtt, retrans, active or age".into())
}

impl Flows {
    fn into_arguments(self) -> FlowsArguments {
        FlowsArguments {
            sort: self.sort,
            limit: if self.limit == 0 { usize::MAX } else { self.limit },
            process: self.process,
            user: self.user,
            port: self.port,
            address: self.address,
            state: self.state,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let request = match cli.command {
        Command::Stats => Request::Stats,
        Command::Flows(flows) => Request::Flows(flows.into_arguments()),
    };
    let client = Client::new(&cli.socket);
    let mut first = true;
    loop {
        match ask(&client, &request, first) {
            Ok(answer) => {
                if show(&answer, &request, cli.json, cli.watch.is_some()).is_err() {
                    return ExitCode::SUCCESS; // the reader has had enough
                }
            }
            Err(err) => {
                eprintln!("ctl: {err}.");
                return ExitCode::from(err.exit_code());
            }
        }
        let Some(seconds) = cli.watch else { return ExitCode::SUCCESS };
        first = false;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

/// Run times of programs are counted only while somebody asks, so the first question asks twice.
fn ask(client: &Client, request: &Request, first: bool) -> Result<Answer, ClientError> {
    let answer = client.ask(request)?;
    if first && matches!(request, Request::Stats) {
        std::thread::sleep(MEASURE);
        return client.ask(request);
    }
    Ok(answer)
}

fn show(answer: &Answer, request: &Request, json: bool, watch: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let object = serde_json::json!({"version": VERSION, "tables": answer.tables});
        writeln!(out, "{object}")?;
        return out.flush();
    }
    let terminal = io::stdout().is_terminal();
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let style = render::Style {
        columns: columns
            .or_else(|| terminal_size::terminal_size().map(|(width, _)| usize::from(width.0)))
            .unwrap_or(160),
        color: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    };
    if watch && terminal {
        write!(out, "\x1b[H\x1b[2J")?;
    }
    let text = match request {
        Request::Stats => render::stats(answer, style),
        Request::Flows(_) => render::flows(answer, style),
    };
    out.write_all(text.as_bytes())?;
    out.flush()
}
