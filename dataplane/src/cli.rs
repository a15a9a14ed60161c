//! The command line of `sockeye`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use sockeye::api::server::ControlGroup;
use sockeye::export::endpoint::{ServerKey, ZmqEndpoint};
use sockeye::export::lines::Target;
use sockeye::export::zmq::Format;
use sockeye::flows::filter::{Filter, Rule};
use sockeye::owners::cmdline::CommandLines;
use tracing_subscriber::filter::LevelFilter;

/// Watches every TCP and UDP flow of this host from inside the kernel, and says which process is behind it.
#[derive(Debug, Clone, Parser)]
#[command(name = "sockeye", version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Export to ntopng: tcp://HOST:PORTc if ntopng binds (ntopng -i tcp://*:PORTc), tcp://HOST:PORT if sockeye binds.
    /// Repeatable.
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) zmq: Vec<ZmqEndpoint>,

    /// Encrypt with ntopng's public key: 40 characters, or the 80 hex digits of its interface page, or a file.
    #[arg(long, value_name = "KEY|FILE", requires = "zmq")]
    pub(crate) zmq_encryption_key: Option<ServerKey>,

    /// Shape of flow records. json fills the container and pod pages of a licensed ntopng, or of 5.6 and older.
    #[arg(long, value_enum, default_value_t = Format::Tlv, value_name = "FORMAT")]
    pub(crate) zmq_format: Format,

    /// Write flows as lines of JSON with the names of ECS (docs/json.md): to a file, to standard output, or to whoever
    /// listens at a Unix socket. Repeatable.
    #[arg(long, value_name = "FILE|-|unix:PATH")]
    pub(crate) json: Vec<Target>,

    /// How much of processes' command lines is kept, and told to anybody: masked has *** for what looks like a secret.
    #[arg(long, value_enum, default_value_t = CommandLines::Masked, value_name = "HOW")]
    pub(crate) command_line: CommandLines,
    /// Serve metrics to Prometheus at http://ADDRESS:PORT/metrics, and /healthz to probes. Who can connect can read names.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_listen)]
    pub(crate) prometheus: Option<SocketAddr>,

    /// Prometheus is shown at most so many label sets of flows, and so many of round-trip times; the rest is "other".
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) prometheus_series_max: u64,

    /// Prometheus is shown at most so many names of far ends, one metric set each; the rest is "other". 0: none.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=10_000))]
    pub(crate) prometheus_names_max: u64,

    /// Print flows and exports. Without an exporter, flows are printed to a terminal anyway. Twice: libbpf's log, too.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Which of the agent's own messages go to standard error [default: info, with -v debug].
    #[arg(long, value_enum, value_name = "LEVEL", env = "SOCKEYE_LOG")]
    pub(crate) log_level: Option<LogLevel>,

    /// Configuration [default: /etc/sockeye/sockeye.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Leave out flows: loopback, protocol=udp, network=10.0.0.0/8, port=53, port=8000-8099, user=NAME, process=NAME|PATH,
    /// cgroup=PATH, container=NAME, pod=NAME, namespace=NAME; one end that matches is enough. Repeatable.
    #[arg(long, value_name = "KIND=VALUE")]
    pub(crate) ignore: Vec<Rule>,

    /// Leave out all others, likewise: of each kind that is given, one must match. --ignore goes before. Repeatable.
    #[arg(long, value_name = "KIND=VALUE")]
    pub(crate) only: Vec<Rule>,

    /// The same as --ignore loopback.
    #[arg(short = 'l', long)]
    pub(crate) no_loopback: bool,

    /// Tell collectors nothing of listening ports.
    #[arg(short = 'L', long)]
    pub(crate) no_listening_ports: bool,

    /// Read the command line and the configuration, print what would be in force and where it comes from, and end.
    #[arg(long, value_name = "FILE", num_args = 0..=1, conflicts_with = "config",
          default_missing_value = sockeye::config::DEFAULT_PATH)]
    pub(crate) check_config: Option<PathBuf>,

    /// Where ctl finds the agent.
    #[arg(long, value_name = "PATH", default_value = sockeye_ctl::DEFAULT_SOCKET)]
    pub(crate) control_socket: PathBuf,

    /// Members of this group may ask, besides root and the agent's own user [default: the agent's own group].
    #[arg(long, value_name = "GROUP")]
    pub(crate) control_group: Option<ControlGroup>,

    /// UDP flows without traffic for this long are over.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) idle_timeout: u64,

    /// Flows whose counters have changed are reported this often, or as often as --active-timeout says if that is less.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) report_interval: u64,

    /// `ctl flows --closed` shows at most so many flows that have ended.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub(crate) closed_max: u64,

    /// It shows them for so long after their end.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) closed_seconds: u64,

    /// Flows that go on are reported at least this often.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    pub(crate) active_timeout: u64,

    /// From one scan of all sockets to the next; up to 10 if there are so many that it takes over 1 % of a CPU.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub(crate) scan_interval: u64,

    /// Most flows in memory. What does not fit is counted.
    #[arg(long, value_name = "FLOWS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    pub(crate) flows_max: u64,

    /// Threads that drain the kernel's rings [default: one per eight CPUs].
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) workers: Option<u64>,

    /// KiB of each CPU's ring, a power of two [default: 8192, less from 3 CPUs on, at least 1024].
    #[arg(long, value_name = "KIB", value_parser = parse_ring_kib)]
    pub(crate) ring_kib: Option<u32>,

    /// Do not read messages of DNS: no names of far ends by what was asked, and no `ctl dns`.
    #[arg(long)]
    pub(crate) no_dns: bool,

    /// Read the first data that each client sends: whom it means by TLS (server name), HTTP (Host) and QUIC.
    #[arg(long)]
    pub(crate) sni: bool,

    /// Do not ask the kernel's connection tracking for flows of which one end is here: those that are translated have one tuple.
    #[arg(long)]
    pub(crate) no_nat: bool,

    /// Run without cgroup hooks: no UDP, and no cost for each packet of TCP.
    #[arg(long)]
    pub(crate) no_cgroup: bool,
}

/// Each has those above it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogLevel {
    /// What ends the agent, or a part of it.
    Error,
    /// What is lost, or cannot be seen.
    Warn,
    /// What changes: a collector comes, a container runtime answers again.
    Info,
    /// Each export.
    Debug,
}

impl Args {
    /// Which flows are left out.
    pub(crate) fn filter(&self) -> Filter {
        let mut ignore = self.ignore.clone();
        ignore.extend(self.no_loopback.then_some(Rule::Loopback));
        Filter { ignore, only: self.only.clone() }
    }

    /// Which messages are wanted.
    pub(crate) fn level(&self) -> LevelFilter {
        let default = if self.verbose > 0 { LogLevel::Debug } else { LogLevel::Info };
        match self.log_level.unwrap_or(default) {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
        }
    }
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Command {
    /// Check each need of the host, load the kernel programs, ask each container runtime, and end: with 0 if all is well, 1 if
    /// something is less than it could be, 69 or 77 if something is missing.
    Check {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
    address.ok_or_else(|| "expected an address and a port, such as 127.0.0.1:9980 or [::1]:9980".into())
}

fn parse_ring_kib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (4..=1 << 20).contains(&kib) => Ok(kib),
        _ => Err("expected a power of two from 4 to 1048576".into()),
    }
}
