//! `sockeye`: command line in, exit code out. What it does is in `agent.rs`.

mod agent;
mod check;
mod cli;
mod reload;
mod settings;
mod systemd;

use std::process::ExitCode;

use clap::CommandFactory as _;
use sockeye::log::{self, complain, say};
use sockeye::{privileges, threads};
use sockeye_ctl::{exit, pages};

use agent::Failure;
use cli::{Args, Command};

/// Shards, tables and reports are allocated and freed on different threads all the time: mimalloc is good at that.
// Sanitizers have one of their own.
#[cfg(not(sockeye_sanitizer))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Some(done) = pages::generate_if_asked(Args::command(), "sockeye", "8") {
        return done;
    }
    let command_line: Vec<_> = std::env::args_os().collect();
    let settings = match settings::read(&command_line) {
        Ok(settings) => settings,
        Err(refusal) => return refusal.say(),
    };
    let args = &settings.args;
    if args.check_config.is_some() {
        settings
            .all
            .iter()
            .for_each(|setting| say(&format!("{:20} {:40} {}", setting.key, setting.value, setting.from)));
        return ExitCode::SUCCESS;
    }
    if args.verbose < 2 {
        // libbpf's log is for developers; we print errors ourselves.
        sockeye_bpf::kernel::silence_libbpf();
    }
    privileges::gain_nothing();
    threads::refuse_huge_pages();
    if let Some(Command::Check { json }) = args.command {
        return check::run(args, &settings.config, json);
    }
    if let Err(code) = check::before_start(args) {
        return code;
    }
    let log = log::start(args.level());
    let done = agent::run(command_line, settings);
    drop(log);
    let (why, code) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Unavailable(err)) => (format!("{err:#}."), exit::UNAVAILABLE),
        Err(Failure::Internal(why)) => (format!("{why}."), exit::INTERNAL),
    };
    complain(&why);
    ExitCode::from(code)
}
