//! `ctl`: looks into a running sockeye.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use sockeye_ctl::protocol::{
    Answer, Direction, DnsArguments, DnsBy, DnsSort, FlowsArguments, GroupBy, Network, OwnerSort, OwnersArguments,
    PeersArguments, Protocol, Request, RttArguments, SortBy, Table, VERSION,
};
use sockeye_ctl::{Client, ClientError, exit, pages, render};

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
    /// The flows of the host, one by one or added up; those that are open, or that ended lately.
    Flows(Box<Flows>),
    /// Who has flows: processes with users, parents, packages.
    Processes(Owners),
    /// Containers, and systemd services of the host.
    Containers(Owners),
    /// Kubernetes' pods.
    Pods(Owners),
    /// What containers are a part of: Deployments, StatefulSets, compose services; systemd services of the host.
    Workloads(Owners),
    /// Who talks to whom.
    Peers(Peers),
    /// What listens.
    Ports,
    /// Distributions of round-trip times, drawn as histograms.
    Rtt(Rtt),
    /// Who asks which DNS server for what, and how long the answers take.
    Dns(Dns),
    /// What is configured, and where each setting comes from.
    Config,
    /// Let the agent read its configuration again, as SIGHUP does: says what has changed, and what needs a restart.
    Reload,
}

#[derive(Debug, Args)]
struct Owners {
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: OwnerSort,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Also those without flows.
    #[arg(long)]
    all: bool,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Peers {
    /// What both sides are added up by: process, user, container, pod, namespace, workload, service, image, slice, network,
    /// name, host, or label:KEY.
    #[arg(long, default_value_t = GroupBy::Workload)]
    by: GroupBy,
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: OwnerSort,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only rows where the name of either side contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Rtt {
    /// What each histogram is of: process, user, container, pod, namespace, workload, image, slice, network, host, or
    /// label:KEY.
    #[arg(long, default_value_t)]
    by: GroupBy,
    /// At most this many, those with the most samples first; 0 for all.
    #[arg(long, default_value_t = 5)]
    limit: usize,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
struct Dns {
    /// What figures are added up by.
    #[arg(long, value_enum, default_value_t)]
    by: DnsBy,
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: DnsSort,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
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
    /// Add them up by: process, user, container, pod, namespace, workload, service, image, slice, network, name, host, or label:KEY.
    #[arg(long)]
    by: Option<GroupBy>,
    /// Those that ended lately, instead of those that are open.
    #[arg(long)]
    closed: bool,
    /// Part of a process's name or path, or a pid. Like each of the following, it can be given several times: one of them must
    /// match. Of different ones, all must.
    #[arg(long)]
    process: Vec<String>,
    /// Name of a user, or a uid.
    #[arg(long)]
    user: Vec<String>,
    /// Port on either side.
    #[arg(long)]
    port: Vec<u16>,
    /// Address on either side, or a network such as 10.0.0.0/8.
    #[arg(long)]
    address: Vec<Network>,
    /// What the responder is called, by what its peer has asked DNS; * stands for any part: *.example.net.
    #[arg(long)]
    name: Vec<String>,
    /// As in the column of that name: open, closed, refused, ...
    #[arg(long)]
    state: Vec<String>,
    /// Transport protocol.
    #[arg(long, value_enum)]
    protocol: Vec<Protocol>,
    /// Which side is on this host.
    #[arg(long, value_enum)]
    direction: Vec<Direction>,
    /// A container by name, by the beginning of its id, or as namespace/pod/container; a pod; a systemd unit.
    #[arg(long)]
    container: Vec<String>,
    /// A pod by name, uid, or as namespace/name.
    #[arg(long)]
    pod: Vec<String>,
    /// Namespace of a pod.
    #[arg(long)]
    namespace: Vec<String>,
    /// A workload by name, or as Deployment/name.
    #[arg(long)]
    workload: Vec<String>,
    /// Label of a container or pod, as key=value or key.
    #[arg(long)]
    label: Vec<String>,
    /// At least so many bytes of both directions: 1500, 10kB, 5MB.
    #[arg(long, value_name = "BYTES")]
    min_bytes: Option<bytesize::ByteSize>,
    /// A smoothed round-trip time over this: 500us, 20ms, 1s.
    #[arg(long, value_name = "TIME")]
    rtt_over: Option<humantime::Duration>,
}

impl Owners {
    fn into_arguments(self) -> OwnersArguments {
        OwnersArguments { sort: self.sort, limit: self.limit, name: self.name, all: self.all }
    }
}

impl Flows {
    fn into_arguments(self, wide: bool) -> FlowsArguments {
        FlowsArguments {
            sort: self.sort,
            limit: self.limit,
            by: self.by,
            closed: self.closed,
            wide,
            process: self.process,
            user: self.user,
            port: self.port,
            address: self.address,
            name: self.name,
            state: self.state,
            protocol: self.protocol,
            direction: self.direction,
            container: self.container,
            pod: self.pod,
            namespace: self.namespace,
            workload: self.workload,
            label: self.label,
            min_bytes: self.min_bytes.map(|size| size.as_u64()),
            rtt_over_us: self.rtt_over.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        }
    }
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
    let request = match cli.command {
        Command::Stats => Request::Stats,
        Command::Flows(flows) => Request::Flows(Box::new(flows.into_arguments(cli.json))),
        Command::Processes(owners) => Request::Processes(owners.into_arguments()),
        Command::Containers(owners) => Request::Containers(owners.into_arguments()),
        Command::Pods(owners) => Request::Pods(owners.into_arguments()),
        Command::Workloads(owners) => Request::Workloads(owners.into_arguments()),
        Command::Peers(Peers { by, sort, limit, name }) => Request::Peers(PeersArguments { by, sort, limit, name }),
        Command::Ports => Request::Ports,
        Command::Dns(Dns { by, sort, limit, name }) => Request::Dns(DnsArguments { by, sort, limit, name }),
        Command::Config => Request::Config,
        Command::Reload => Request::Reload,
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
            .unwrap_or(render::NO_SCREEN),
        color: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
    };
    if watch && terminal {
        write!(out, "\x1b[H\x1b[2J")?;
    }
    out.write_all(render::answer(answer, request, style).as_bytes())?;
    out.flush()
}
