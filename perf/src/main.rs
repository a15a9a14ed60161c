//! `perf`: loads the host or the agent's own stages, and reads the books.

mod accuracy;
mod churn;
mod overhead;
mod report;
mod saturate;

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
    /// Flows of random size and kind, with known truth: every figure that the running agent shows otherwise.
    Accuracy(accuracy::Options),
    /// What the agent costs the programs that it watches: the same traffic with the agent off and on, in pairs. Starts
    /// and ends agents of its own.
    Overhead(overhead::Options),
    /// Records per second through ring, worker, shard and merge, from a producer in the kernel: ceilings and loss-free
    /// rates by live flows and placement of the worker. Needs no agent.
    Saturate(saturate::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Churn(options) => churn::run(options, &cli.socket),
        Command::Accuracy(options) => accuracy::run(options, &cli.socket),
        Command::Overhead(options) => overhead::run(options),
        Command::Saturate(options) => saturate::run(options),
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
