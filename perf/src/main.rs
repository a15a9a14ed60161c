//! `perf`: loads the host with real connections and reads the running agent's books.

mod churn;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Load harness of sockeye. Traffic stays on loopback; every run is bounded.
#[derive(Debug, Parser)]
#[command(name = "perf", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// The agent's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = sockeye_ctl::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Short TCP connections as fast as they go: rate, losses, the agent's CPU time per connection.
    Churn(churn::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Churn(options) => churn::run(options, &cli.socket),
    };
    match done {
        Ok(report) => {
            print!("{}", if cli.json { format!("{}\n", report.json()) } else { report.text() });
            ExitCode::SUCCESS
        }
        Err(err) => {
            eprintln!("perf: {err:#}.");
            ExitCode::FAILURE
        }
    }
}
