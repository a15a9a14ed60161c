//! `ctl`: looks into a running sockeye.

/// Tells the user; who does not listen any more is told nothing.
macro_rules! complain {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod commands;
mod follow;
mod remote;
mod show;
mod top;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use sockeye_ctl::protocol::{Answer, Request};
use sockeye_ctl::{Client, ClientError, exit, pages};

use commands::Ask;
use remote::Tunnel;
use show::Shown;

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

    /// Ask the agent of another host, by ssh: it forwards the control socket, and no port is opened there.
    #[arg(long, global = true, value_name = "[USER@]HOST")]
    host: Option<String>,

    /// Print the answer as JSON, one line each.
    #[arg(long, global = true)]
    json: bool,

    /// As `ctl watch`: repeat the query every SECONDS, 2 if none are given; write it last.
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What this host is doing on the network, and who suffers: live, with keys and mouse. Press ? for help.
    Top(top::Top),
    /// Repeats a question, and draws its answer in the same place.
    Watch(Watch),
    #[command(flatten)]
    Ask(Ask),
}

#[derive(Debug, Args)]
struct Watch {
    /// Seconds between two answers.
    #[arg(long, short = 'n', default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    #[command(subcommand)]
    ask: Ask,
}

fn main() -> ExitCode {
    if let Some(done) = pages::generate_if_asked(Cli::command(), "sockeyectl", "1") {
        return done;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(err) => {
            let _ = err.print();
            return if err.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // It is there for as long as it is needed.
    let tunnel = match cli.host.as_ref().map(|host| Tunnel::open(host, &cli.socket)).transpose() {
        Ok(tunnel) => tunnel,
        Err(why) => {
            complain!("ctl: {why}.");
            return ExitCode::from(exit::UNAVAILABLE);
        }
    };
    let socket = tunnel.as_ref().map_or(cli.socket.as_path(), Tunnel::socket);
    let (ask, every) = match cli.command {
        Command::Top(top) => return top::run(&top, socket),
        Command::Watch(Watch { every, ask }) => (ask, Some(every)),
        Command::Ask(ask) => (ask, cli.watch),
    };
    if ask.follows() {
        let Request::Flows(arguments) = ask.into_request(cli.json) else { return ExitCode::SUCCESS };
        return follow::run(&Client::new(socket), *arguments, cli.json);
    }
    let mut shown = Shown::new(cli.json, ask.zeros(), every.is_some());
    answer(&Client::new(socket), &ask.into_request(cli.json), &mut shown, every.map(Duration::from_secs))
}

/// Asks once, or again and again.
fn answer(client: &Client, request: &Request, shown: &mut Shown, every: Option<Duration>) -> ExitCode {
    let mut first = true;
    loop {
        match question(client, request, first) {
            Ok(answer) => {
                if shown.show(&answer, request).is_err() {
                    return ExitCode::SUCCESS; // the reader has had enough
                }
            }
            Err(err) => {
                complain!("ctl: {err}.");
                return ExitCode::from(err.exit_code());
            }
        }
        let Some(every) = every else { return ExitCode::SUCCESS };
        first = false;
        std::thread::sleep(every);
    }
}

/// Run times of programs are counted only while somebody asks, so the first question asks twice.
fn question(client: &Client, request: &Request, first: bool) -> Result<Answer, ClientError> {
    let answer = client.ask(request)?;
    if first && matches!(request, Request::Stats) {
        std::thread::sleep(MEASURE);
        return client.ask(request);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(matches!(
            parse("ctl watch -n 5 flows --user x").unwrap().command,
            Command::Watch(Watch { every: 5, .. })
        ));
        assert_eq!(parse("ctl flows --watch").unwrap().watch, Some(2));
        assert!(matches!(parse("ctl --host me@there top").unwrap().command, Command::Top(_)));
        assert!(parse("ctl flows --follow --by process").is_err() && parse("ctl top --every 10ms").is_err());
        let Command::Ask(ask) = parse("ctl flows nginx --text 443 --sort sent-rate --reverse").unwrap().command else {
            panic!("a question")
        };
        let Request::Flows(flows) = ask.into_request(false) else { panic!("flows") };
        assert_eq!((flows.text, flows.reverse), (vec!["nginx".into(), "443".into()], true));
    }
}
