//! `perf`: loads the host or the agent's own stages, and reads the counters. One file per question.

mod accuracy;
mod agent;
mod args;
mod awake;
mod churn;
mod collect;
mod crowd;
mod distance;
mod hold;
mod lab;
mod load;
mod netflow;
mod order;
mod overhead;
mod peers;
mod plots;
mod report;
mod saturate;
mod scaling;
mod soak;
mod stats;
mod stopwatch;
mod table;
mod tails;
mod tether;
mod uncommon;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::agent::Agents;
use crate::table::Report;

/// Load harness of sockeye, installed as sockeye-perf. Traffic stays on loopback; every run is bounded.
#[derive(Debug, Parser)]
#[command(name = "perf", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Without a command: all measurements in two minutes, which shows that they work. No figure to quote.
    #[arg(long)]
    quick: bool,

    /// The agent's control socket: one that answers there is measured by churn, accuracy and soak, and the others
    /// refuse to run beside it.
    #[arg(long, global = true, value_name = "PATH", default_value = sockeye_ctl::DEFAULT_SOCKET)]
    socket: PathBuf,

    /// The agent to start where none runs [default: sockeye beside this program, or in ../sbin].
    #[arg(long, global = true, value_name = "PROGRAM")]
    agent: Option<PathBuf>,

    /// Print JSON instead of tables.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Short TCP connections from many addresses: rate, losses, the agent's CPU time per connection, time to export.
    Churn(churn::Options),
    /// Flows of random size and kind, with known truth: every figure that the agent shows otherwise.
    Accuracy(accuracy::Options),
    /// What the agent costs the programs that it watches: the same traffic with the agent off and on, in pairs.
    Overhead(overhead::Options),
    /// Records per second through ring, worker, shard and merge, from a producer in the kernel: ceilings, loss-free
    /// rates and losses by live flows, placement, wake-up and ring size. Needs no agent.
    Saturate(saturate::Options),
    /// Many open connections: memory per flow in the agent and in the kernel, time of a scan.
    Hold(hold::Options),
    /// Bursts of short connections, requests and datagrams, for --minutes: memory, descriptors and losses over time.
    Soak(soak::Options),
    /// The same connections watched by tcplife, tcptop, bpftrace, ss, conntrack, softflowd and others, and by sockeye.
    Peers(peers::Options),
    /// All of them, as one page of HTML with plots.
    Report(report::Options),
    #[command(hide = true)]
    HoldSome(hold::SomeOptions),
    #[command(hide = true)]
    KeepAwake(awake::Options),
    #[command(hide = true)]
    Sink,
    #[command(hide = true)]
    Daemon(uncommon::DaemonOptions),
    #[command(hide = true)]
    CrowdClient(crowd::ClientOptions),
}

/// Runs one measurement.
fn measure(command: &Command, agents: &Agents) -> Result<Option<Report>> {
    Ok(Some(match command {
        Command::Churn(options) => churn::run(options, agents)?,
        Command::Accuracy(options) => accuracy::run(options, agents)?,
        Command::Overhead(options) => overhead::run(options, agents)?,
        Command::Saturate(options) => saturate::run(options)?,
        Command::Hold(options) => hold::run(options, agents)?,
        Command::Soak(options) => soak::run(options, agents)?,
        Command::Peers(options) => peers::run(options, agents)?,
        Command::Report(options) => {
            report::run(options, agents)?;
            return Ok(None);
        }
        Command::HoldSome(options) => {
            hold::hold_some(options)?;
            return Ok(None);
        }
        Command::Sink => {
            collect::sink()?;
            return Ok(None);
        }
        Command::Daemon(options) => {
            uncommon::be_daemon(options)?;
            return Ok(None);
        }
        Command::CrowdClient(options) => {
            crowd::be_client(options)?;
            return Ok(None);
        }
        Command::KeepAwake(options) => {
            awake::spin(options);
            return Ok(None);
        }
    }))
}

/// In one folder where they are built, in `bin` and `sbin` where they are installed.
fn agent_beside(this: &Path) -> PathBuf {
    let beside = this.with_file_name("sockeye");
    let installed = this.with_file_name("../sbin/sockeye");
    if !beside.exists() && installed.exists() { installed } else { beside }
}

fn run(cli: &Cli) -> Result<()> {
    let program = match &cli.agent {
        Some(program) => program.clone(),
        None => agent_beside(&std::env::current_exe().context("where am I?")?),
    };
    let agents = Agents { socket: cli.socket.clone(), program };
    let quick = Command::Report(report::Options::quick());
    if let Some(report) = measure(cli.command.as_ref().unwrap_or(&quick), &agents)? {
        print!("{}", if cli.json { format!("{}\n", report.json()) } else { report.text() });
    }
    Ok(())
}

fn main() -> ExitCode {
    if let Some(done) = sockeye_ctl::pages::generate_if_asked(Cli::command(), "sockeye-perf", "1") {
        return done;
    }
    let cli = Cli::parse();
    if cli.command.is_none() && !cli.quick {
        let _ = Cli::command().print_help();
        return ExitCode::FAILURE;
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("perf: {err:#}.");
            ExitCode::FAILURE
        }
    }
}
