//! Starts and watches all threads, in the direction of the data, and stops them in it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use sockeye::api::events::Event;
use sockeye::api::server::ControlSocket;
use sockeye::config::Config;
use sockeye::control::{Control, ControlOptions, Enrichment};
use sockeye::export::messages::Probe;
use sockeye::export::zmq::ZmqOptions;
use sockeye::export::{ExportPort, text, zmq};
use sockeye::flows::Timeouts;
use sockeye::ingest::udp::Drainer;
use sockeye::ingest::worker;
use sockeye::owners::desk::Desk;
use sockeye::owners::packages::PackageStats;
use sockeye::owners::runtimes::NamingStats;
use sockeye::owners::{packages, procfs, runtimes};
use sockeye_bpf::kernel::{Kernel, KernelOptions};
use sockeye_bpf::preflight;
use sockeye_ctl::exit;

use crate::cli::{Args, Command};

fn charged(why: &std::io::Error) -> String {
    format!(
        "the state of sockets is charged to the agent's memory cgroup, at 5 us more for each connection ({why}): let the agent \
         write to cgroup.procs at the root of the memory cgroups"
    )
}

pub(crate) fn run(args: &Args, config: &Config) -> Result<()> {
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
        let _ = wake.send(Event::ShardFull);
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
        scan_every: Duration::from_secs(args.scan_interval),
        probe,
        limits: preflight::limits(!args.no_cgroup),
    };
    for limit in &options.limits {
        eprintln!("sockeye: {}: {}.", limit.finding, limit.remedy.as_deref().unwrap_or_default());
    }
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

/// Replies on the way to control. Who has one more waits until there is room.
const LOOKUP_REPLIES_MAX: usize = 1 << 13;

/// The threads that ask /proc, package databases and container runtimes.
fn start_enrichment(config: &Config) -> Result<Enrichment> {
    let (replies, lookup_replies) = mpsc::sync_channel(LOOKUP_REPLIES_MAX);
    let (lookup_requests, package_requests) = (Desk::new(procfs::DESK), Arc::new(Desk::new(packages::DESK)));
    let packages = Arc::new(PackageStats::default());
    packages::start(&package_requests, replies.clone(), Arc::clone(&packages))?;
    procfs::start(&lookup_requests, replies, Arc::clone(&package_requests), preflight::find_cgroup2())?;
    let (name_requests, containers) = tokio::sync::mpsc::channel(runtimes::QUEUE_MAX);
    let (names, name_replies) = mpsc::sync_channel(runtimes::REPLIES_MAX);
    let runtimes: Vec<_> = runtimes::find(&config.runtimes).into_iter().map(Arc::new).collect();
    let naming = Arc::new(NamingStats::default());
    runtimes::start(runtimes.clone(), containers, names, Arc::clone(&naming))?;
    Ok(Enrichment {
        lookup_requests,
        lookup_replies,
        package_requests,
        packages,
        name_requests,
        name_replies,
        runtimes,
        naming,
    })
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

/// Says what the host lacks, one sentence per need.
pub(crate) fn preflight(args: &Args) -> Result<(), ExitCode> {
    let checking = matches!(args.command, Some(Command::Check));
    let mut failed = None;
    for need in preflight::probe() {
        if need.name == preflight::CGROUP && args.no_cgroup {
            continue;
        }
        match &need.remedy {
            None if checking => println!("ok       {:<16} {}", need.name, need.finding),
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
        blind: !preflight::is_in_hosts_pid_namespace(),
        ..KernelOptions::default()
    }
}

pub(crate) fn check(args: &Args) -> Result<()> {
    for need in preflight::features() {
        match &need.remedy {
            None => println!("ok       {:<16} {}", need.name, need.finding),
            Some(remedy) => println!("missing  {:<16} {}: {remedy}", need.name, need.finding),
        }
    }
    for limit in preflight::limits(!args.no_cgroup) {
        println!("degraded {:<16} {}: {}", limit.name, limit.finding, limit.remedy.unwrap_or_default());
    }
    let (kernel, rings) = Kernel::start(&kernel_options(args))?;
    let kib = rings.first().map_or(0, |ring| ring.size_bytes() / 1024);
    println!("ok       {:<16} {} of {kib} KiB", "rings", rings.len());
    match kernel.charged_because() {
        None => println!("ok       {:<16} charged to no memory cgroup", "sockets"),
        Some(why) => println!("costly   {:<16} {}", "sockets", charged(why)),
    }
    for program in kernel.programs() {
        let cost = program.cost().context("cannot read a program's figures")?;
        println!("ok       {:<16} {} instructions verified", cost.name, cost.verified_instructions);
    }
    Ok(())
}
