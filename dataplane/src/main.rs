//! `sockeye`: reads the command line, checks the host, starts the threads of the data path, waits for a signal.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sockeye::config::Config;
use sockeye::control::{Control, ControlOptions, Enrichment, Event};
use sockeye::drain::Drainer;
use sockeye::engines::NamingStats;
use sockeye::export::endpoint::{ServerKey, ZmqEndpoint};
use sockeye::export::messages::Probe;
use sockeye::export::zmq::{Format, ZmqOptions};
use sockeye::export::{ExportPort, text, zmq};
use sockeye::serve::ControlSocket;
use sockeye::table::Timeouts;
use sockeye::{engines, enrich, package, worker};
use sockeye_bpf::kernel::{Kernel, KernelOptions};
use sockeye_bpf::preflight;

/// Deltas, tables and reports are allocated and freed on different threads all the time: mimalloc is good at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes of sysexits(3).
mod exit {
    pub(crate) const USAGE: u8 = 64;
    pub(crate) const UNAVAILABLE: u8 = 69;
    pub(crate) const NO_PERMISSION: u8 = 77;
    pub(crate) const CONFIG: u8 = 78;
}

/// Watches every TCP and UDP flow of this host from inside the kernel, and says which process is behind it.
#[derive(Debug, Parser)]
#[command(name = "sockeye", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Export to ntopng: tcp://HOST:PORTc if ntopng binds (ntopng -i tcp://*:PORTc), tcp://HOST:PORT if sockeye binds.
    /// Repeatable.
    #[arg(long, value_name = "ENDPOINT")]
    zmq: Vec<ZmqEndpoint>,

    /// Encrypt with ntopng's public key: 40 characters, or the 80 hex digits of its interface page, or a file.
    #[arg(long, value_name = "KEY|FILE", requires = "zmq")]
    zmq_encryption_key: Option<ServerKey>,

    /// Shape of flow records. json fills the container and pod pages of a licensed ntopng, or of 5.6 and older.
    #[arg(long, value_enum, default_value_t = Format::Tlv, value_name = "FORMAT")]
    zmq_format: Format,

    /// Print flows and exports, even when there is an exporter. Without one, flows are always printed.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,

    /// Configuration [default: /etc/sockeye/sockeye.toml, if there is one].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where ctl finds the agent.
    #[arg(long, value_name = "PATH", default_value = sockeye_ctl::DEFAULT_SOCKET)]
    control_socket: PathBuf,

    /// UDP flows without traffic for this long are over.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    idle_timeout: u64,

    /// Flows whose counters have changed are reported this often, or as often as --active-timeout says if that is less.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    report_interval: u64,

    /// Flows that go on are reported at least this often.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..=600))]
    active_timeout: u64,

    /// From one walk over all sockets to the next; up to 10 if there are so many that it takes over 1 % of a CPU.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    sweep_interval: u64,

    /// Most flows in memory. What does not fit is counted.
    #[arg(long, value_name = "FLOWS", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(100..))]
    flows_max: u64,

    /// Threads that drain the kernel's rings [default: one per eight CPUs].
    #[arg(long, value_name = "THREADS", value_parser = clap::value_parser!(u64).range(1..=256))]
    workers: Option<u64>,

    /// KiB of each CPU's ring, a power of two [default: 8192, less from 5 CPUs on, at least 1024].
    #[arg(long, value_name = "KIB", value_parser = parse_ring_kib)]
    ring_kib: Option<u32>,

    /// Run without cgroup hooks: no UDP, and no cost for each packet of TCP.
    #[arg(long)]
    no_cgroup: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check each need of the host, load the kernel programs, print what the verifier says of them, and end.
    Check,
}

fn parse_ring_kib(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (4..=1 << 20).contains(&kib) => Ok(kib),
        _ => Err("expected a power of two from 4 to 1048576".into()),
    }
}

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
            eprintln!("sockeye: {:#}.", anyhow::Error::from(err));
            return ExitCode::from(exit::CONFIG);
        }
    };
    if let Err(code) = preflight(&args) {
        return code;
    }
    if args.verbose < 2 {
        // libbpf's log is for developers; errors are told by us.
        sockeye_bpf::kernel::silence_libbpf();
    }
    let done = match &args.command {
        Some(Command::Check) => check(&args),
        None => run(&args, &config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("sockeye: {err:#}.");
            ExitCode::from(exit::UNAVAILABLE)
        }
    }
}

/// Says what the host lacks, one sentence per need.
fn preflight(args: &Args) -> Result<(), ExitCode> {
    let checking = matches!(args.command, Some(Command::Check));
    let mut failed = None;
    for need in preflight::probe() {
        if need.name == preflight::CGROUP && args.no_cgroup {
            continue;
        }
        match &need.remedy {
            None if checking => println!("ok       {:<14} {}", need.name, need.finding),
            None => {}
            Some(remedy) => {
                eprintln!("sockeye: {}: {remedy}.", need.finding);
                let code = if need.name == preflight::CAPABILITIES { exit::NO_PERMISSION } else { exit::UNAVAILABLE };
                failed.get_or_insert(ExitCode::from(code));
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn kernel_options(args: &Args) -> KernelOptions {
    KernelOptions {
        cgroup: if args.no_cgroup { None } else { preflight::find_cgroup2() },
        ring_bytes: args.ring_kib.map(|kib| kib * 1024),
        ..KernelOptions::default()
    }
}

fn check(args: &Args) -> Result<()> {
    let (kernel, rings) = Kernel::start(&kernel_options(args))?;
    let kib = rings.first().map_or(0, |ring| ring.size_bytes() / 1024);
    println!("ok       {:<14} {} of {kib} KiB", "rings", rings.len());
    match kernel.charged_because() {
        None => println!("ok       {:<14} charged to no memory cgroup", "sockets"),
        Some(why) => println!("costly   {:<14} {}", "sockets", charged(why)),
    }
    for program in kernel.programs() {
        let cost = program.cost().context("cannot read a program's figures")?;
        println!("ok       {:<14} {} instructions verified", cost.name, cost.verified_instructions);
    }
    Ok(())
}

fn charged(why: &std::io::Error) -> String {
    format!(
        "the state of sockets is charged to the agent's memory cgroup, at 5 us more for each connection ({why}): let the agent \
         write to cgroup.procs at the root of the memory cgroups"
    )
}

fn run(args: &Args, config: &Config) -> Result<()> {
    // Everything that can be refused comes before the kernel is touched.
    let (wake, events) = mpsc::channel();
    let socket = ControlSocket::start(&args.control_socket, wake.clone())?;
    let probe = Probe::of_this_host();
    let exporters = start_exporters(args, &probe)?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;

    let (mut kernel, rings) = Kernel::start(&kernel_options(args)).context("cannot start the kernel side")?;
    if let Some(why) = kernel.charged_because()
        && args.verbose > 0
    {
        eprintln!("sockeye: {}.", charged(why));
    }
    let udp_tables = kernel.take_udp_tables().context("the UDP tables are in use")?;
    let drainer = Drainer::start(udp_tables).context("cannot start the thread that drains UDP counters")?;
    let stop_workers = Arc::new(AtomicBool::new(false));
    let count = args.workers.map_or_else(|| rings.len().div_ceil(8), |workers| workers as usize);
    let wake_control = move || {
        let _ = wake.send(Event::DeltaFull);
    };
    let (ports, workers) =
        worker::start(rings, count, &stop_workers, &wake_control).context("cannot start the workers")?;
    let enrichment = start_enrichment(config).context("cannot start the enrichment threads")?;
    let timeouts = Timeouts {
        idle_ns: args.idle_timeout * 1_000_000_000,
        active_ns: args.active_timeout * 1_000_000_000,
        report_ns: args.report_interval * 1_000_000_000,
        ..Timeouts::default()
    };
    let options = ControlOptions {
        timeouts: if kernel.misses_orphans() { timeouts.without_orphans() } else { timeouts },
        flows_max: usize::try_from(args.flows_max).unwrap_or(usize::MAX),
        sweep_every: Duration::from_secs(args.sweep_interval),
        probe,
    };
    let control = Control::new(kernel, drainer, ports, exporters, enrichment, options);
    let stop_control = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stop_control);
    let control = thread::Builder::new().name("sockeye-control".into()).spawn(move || {
        let _end = EndAgent;
        control.run(&events, &stop);
    })?;

    let _ = signals.forever().next();
    // In the direction of the data: the rings are empty before control takes its last look.
    stop_workers.store(true, Ordering::Relaxed);
    for worker in workers {
        let _ = worker.join();
    }
    stop_control.store(true, Ordering::Relaxed);
    let ended = control.join();
    drop(socket);
    ended.map_err(|_| anyhow::anyhow!("the control thread has died, which is a bug: please report what it said above"))
}

/// The threads that ask /proc, package databases and container engines.
fn start_enrichment(config: &Config) -> Result<Enrichment> {
    let (wanted, questions) = mpsc::channel();
    let (answers, found) = mpsc::channel();
    let (packages, packages_wanted) = mpsc::channel();
    package::start(packages_wanted, answers.clone())?;
    enrich::start(questions, answers, packages, preflight::find_cgroup2())?;
    let (names_wanted, containers) = tokio::sync::mpsc::unbounded_channel();
    let (names, named) = mpsc::channel();
    let engines: Vec<_> = engines::find(&config.runtimes).into_iter().map(Arc::new).collect();
    let naming = Arc::new(NamingStats::default());
    engines::start(engines.clone(), containers, names, Arc::clone(&naming))?;
    Ok(Enrichment { wanted, found, names_wanted, named, engines, naming })
}

/// Ends the agent when the thread that holds it ends, also by a panic: an agent without its control thread is blind.
struct EndAgent;

impl Drop for EndAgent {
    fn drop(&mut self) {
        let _ = signal_hook::low_level::raise(SIGTERM);
    }
}

fn start_exporters(args: &Args, probe: &Probe) -> Result<Vec<ExportPort>> {
    let mut exporters = Vec::new();
    for endpoint in &args.zmq {
        exporters.push(zmq::start(ZmqOptions {
            source_id: probe.source_id(&endpoint.address),
            endpoint: endpoint.clone(),
            server_key: args.zmq_encryption_key.clone(),
            format: args.zmq_format,
            probe: probe.ip,
            verbose: args.verbose > 0,
        })?);
    }
    if exporters.is_empty() || args.verbose > 0 {
        // Without another exporter there is nothing left to do for an agent whose reader has gone.
        let alone = exporters.is_empty();
        let on_closed = move || {
            if alone {
                let _ = signal_hook::low_level::raise(SIGTERM);
            }
        };
        exporters.push(text::start(text::Style::of_stdout(), on_closed).context("cannot start printing")?);
    }
    Ok(exporters)
}
