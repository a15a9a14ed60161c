//! `sockeye`: command line in, exit code out. What it does is in `agent.rs`.

mod agent;
mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use sockeye::config::Config;
use sockeye::log::{self, complain};
use sockeye_ctl::exit;

use agent::Failure;
use cli::{Args, Command};

/// Shards, tables and reports are allocated and freed on different threads all the time: mimalloc is good at that.
// AddressSanitizer has one of its own.
#[cfg(not(sockeye_asan))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(err) => {
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(err) => {
            complain(&format!("{:#}.", anyhow::Error::from(err)));
            return ExitCode::from(exit::CONFIG);
        }
    };
    if let Err(code) = agent::preflight(&args) {
        return code;
    }
    if args.verbose < 2 {
        // libbpf's log is for developers; we print errors ourselves.
        sockeye_bpf::kernel::silence_libbpf();
    }
    let log = log::start(args.level());
    let done = match &args.command {
        Some(Command::Check) => agent::check(&args).map_err(Failure::from),
        None => agent::run(&args, &config),
    };
    drop(log);
    let (why, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Unavailable(err)) => (format!("{err:#}."), exit::UNAVAILABLE),
        Err(Failure::Internal(why)) => (format!("{why}."), exit::INTERNAL),
    };
    complain(&why);
    ExitCode::from(code)
}
