//! `ctl`: looks into a running sockeye.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use sockeye_ctl::protocol::{
    Answer, FlowsArguments, OwnerSort, OwnersArguments, Request, RttArguments, RttBy, SortBy, Table, VERSION,
};
use sockeye_ctl::{Client, ClientError, exit, render};

/// Programs are measured between two questions.
const MEASURE: Duration = Duration::from_millis(500);

/// Looks into a running sockeye. Installed as sockeyectl.
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

    /// Repeat the query every SECONDS, 2 if none are given; write it last.
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
    /// Who has flows: processes with users, parents, packages.
    Processes(Owners),
    /// Containers, and systemd services of the host.
    Containers(Owners),
    /// Kubernetes' pods.
    Pods(Owners),
    /// What listens.
    Ports,
    /// Distributions of round-trip times, drawn as histograms.
    Rtt(Rtt),
}

#[derive(Debug, Args)]
struct Owners {
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: OwnerSort,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Rtt {
    /// What each histogram is of.
    #[arg(long, value_enum, default_value_t)]
    by: RttBy,
    /// At most this many, those with the most samples first; 0 for all.
    #[arg(long, default_value_t = 5)]
    limit: usize,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Flows {
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
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
    /// Name or beginning of the id of a container, name of a pod, or systemd unit.
    #[arg(long)]
    container: Option<String>,
}

impl Owners {
    fn into_arguments(self) -> OwnersArguments {
        OwnersArguments { sort: self.sort, limit: self.limit, name: self.name }
    }
}

impl Flows {
    fn into_arguments(self) -> FlowsArguments {
        FlowsArguments {
            sort: self.sort,
            limit: self.limit,
            process: self.process,
            user: self.user,
            port: self.port,
            address: self.address,
            state: self.state,
            container: self.container,
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let request = match cli.command {
        Command::Stats => Request::Stats,
        Command::Flows(flows) => Request::Flows(flows.into_arguments()),
        Command::Processes(owners) => Request::Processes(owners.into_arguments()),
        Command::Containers(owners) => Request::Containers(owners.into_arguments()),
        Command::Pods(owners) => Request::Pods(owners.into_arguments()),
        Command::Ports => Request::Ports,
        Command::Rtt(rtt) => Request::Rtt(RttArguments { by: rtt.by, limit: rtt.limit, name: rtt.name }),
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
        let tables: Vec<_> = answer.tables.iter().map(Table::to_json).collect();
        let object = serde_json::json!({"version": VERSION, "tables": tables});
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
    out.write_all(render::answer(answer, request, style).as_bytes())?;
    out.flush()
}
