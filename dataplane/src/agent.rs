//! Starts and watches all threads, in the direction of the data, and stops them in it.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use sockeye::api::events::Event;
use sockeye::api::server::ControlSocket;
use sockeye::config::Config;
use sockeye::control::{Control, ControlOptions, Enrichment};
use sockeye::export::messages::{Heartbeat, Probe};
use sockeye::export::zmq::ZmqOptions;
use sockeye::export::{ExportPort, text, zmq};
use sockeye::flows::{Keep, Timeouts};
use sockeye::ingest::udp::Drainer;
use sockeye::ingest::worker;
use sockeye::log::{complain, say};
use sockeye::model::rate::Window;
use sockeye::owners::desk::Desk;
use sockeye::owners::packages::PackageStats;
use sockeye::owners::runtimes::{NamingStats, RuntimeList};
use sockeye::owners::{packages, procfs, runtimes};
use sockeye::threads::Threads;
use sockeye_bpf::cpus;
use sockeye_bpf::kernel::{Kernel, KernelOptions, scan_kind};
use sockeye_bpf::preflight;
use sockeye_ctl::exit;

use crate::cli::{Args, Command};
use crate::systemd;

/// So many CPUs' rings one worker drains, unless the operator wants it otherwise.
const CPUS_PER_WORKER: usize = 8;

fn charged(why: &std::io::Error) -> String {
    format!(
        "the state of sockets is charged to the agent's memory cgroup, at 5 us more for each connection ({why}): let the agent \
         write to cgroup.procs at the root of the memory cgroups"
    )
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// If it cannot start, or a thread without which it is blind has ended.
pub(crate) fn run(args: &Args, config: &Config) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;
    // No signal of its own: that would be the second one for an agent that is ending, and several threads may fail at once.
    let end = signals.handle();
    let threads = Threads::new(move || end.close());
    run_threads(args, config, &threads, &mut signals)?;
    threads.failure().map_or(Ok(()), |why| Err(Failure::Internal(why.into())))
}

/// Why the agent has ended.
pub(crate) enum Failure {
    /// Something that it needs is not there.
    Unavailable(anyhow::Error),
    /// A fault of its own.
    Internal(String),
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        Self::Unavailable(err)
    }
}

fn run_threads(args: &Args, config: &Config, threads: &Threads, signals: &mut Signals) -> Result<()> {
    // Everything that can be refused comes before the kernel is touched.
    let (wake, events) = mpsc::channel();
    let socket = ControlSocket::start(threads, &args.control_socket, wake.clone())?;
    let heartbeat = Heartbeat {
        probe: Probe::of_this_host(),
        agent: Arc::default(),
        exporters: args.zmq.len() as u64,
        lifetime_s: args.active_timeout,
        idle_s: args.idle_timeout,
    };
    let exporters = start_exporters(args, threads, &heartbeat, &signals.handle())?;

    let (mut kernel, rings) = Kernel::start(&kernel_options(args)).context("cannot start the kernel side")?;
    if let Some(why) = kernel.charged_because()
        && args.verbose > 0
    {
        tracing::warn!("{}", charged(why));
    }
    let udp_tables = kernel.take_udp_tables().context("the UDP tables are in use")?;
    let drainer = Drainer::start(threads, udp_tables).context("cannot start the thread that drains UDP counters")?;
    let stop_workers = Arc::new(AtomicBool::new(false));
    // The ring that the other CPUs share is one more, but hardly ever used.
    let count = args.workers.map_or_else(|| cpus::online().len().div_ceil(CPUS_PER_WORKER), |workers| workers as usize);
    let wake_control = move || {
        let _ = wake.send(Event::ShardFull);
    };
    let (ports, workers) =
        worker::start(threads, rings, count, &stop_workers, &wake_control).context("cannot start the workers")?;
    let enrichment = start_enrichment(config, threads).context("cannot start the enrichment threads")?;
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
        figures: Arc::clone(&heartbeat.agent),
        threads: threads.clone(),
        limits: preflight::limits(!args.no_cgroup),
        window: Window::of_reports_every(Duration::from_secs(args.report_interval)),
        keep: Keep { flows_max: args.closed_max as usize, for_ns: args.closed_seconds * 1_000_000_000 },
        cgroup_root: preflight::find_cgroup2().filter(|root| preflight::is_cgroup_root(root)),
    };
    for limit in &options.limits {
        tracing::warn!("{}: {}", limit.finding, limit.remedy.as_deref().unwrap_or_default());
    }
    let control = Control::new(kernel, drainer, ports, exporters, enrichment, options);
    let stop_control = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stop_control);
    let control = threads.essential("sockeye-control", move |pulse| control.run(&events, &stop, pulse));
    let control = control.context("cannot start the control thread")?;
    systemd::start(threads, &args.control_socket, &heartbeat)
        .context("cannot start the thread that talks to systemd")?;

    wait_for_end(signals)?;
    threads.stop();
    systemd::stopping();
    // In the direction of the data: the rings are empty before control takes its last look.
    stop_workers.store(true, Ordering::Relaxed);
    for worker in workers {
        let _ = worker.join();
    }
    stop_control.store(true, Ordering::Relaxed);
    let _ = control.join();
    drop(socket);
    Ok(())
}

/// Until somebody wants the agent to end, or it must. Whoever wants it a second time does not want to wait.
fn wait_for_end(signals: &mut Signals) -> Result<()> {
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        systemd::reloading();
        tracing::warn!("SIGHUP changes nothing: the configuration is read when the agent starts");
        systemd::ready();
    }
    let ending = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ending))
            .context("cannot wait for signals")?;
    }
    Ok(())
}

/// Replies on the way to control. Who has one more waits until there is room.
const LOOKUP_REPLIES_MAX: usize = 1 << 13;

/// The threads that ask /proc, package databases and container runtimes.
fn start_enrichment(config: &Config, threads: &Threads) -> Result<Enrichment> {
    let (replies, lookup_replies) = mpsc::sync_channel(LOOKUP_REPLIES_MAX);
    let (lookup_requests, package_requests) = (Desk::new(procfs::DESK), Arc::new(Desk::new(packages::DESK)));
    let packages = Arc::new(PackageStats::default());
    packages::start(threads, &package_requests, replies.clone(), Arc::clone(&packages))?;
    procfs::start(threads, &lookup_requests, replies, Arc::clone(&package_requests), preflight::find_cgroup2())?;
    let (name_requests, containers) = tokio::sync::mpsc::channel(runtimes::QUEUE_MAX);
    let (names, name_replies) = mpsc::sync_channel(runtimes::REPLIES_MAX);
    let runtimes = RuntimeList::find(&config.runtimes);
    let naming = Arc::new(NamingStats::default());
    runtimes::start(threads, runtimes.clone(), containers, names, Arc::clone(&naming))?;
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

fn start_exporters(args: &Args, threads: &Threads, heartbeat: &Heartbeat, end: &Handle) -> Result<Vec<ExportPort>> {
    let mut exporters = Vec::new();
    for endpoint in &args.zmq {
        let options = ZmqOptions {
            source_id: heartbeat.probe.source_id(&endpoint.address),
            endpoint: endpoint.clone(),
            server_key: args.zmq_encryption_key.clone(),
            format: args.zmq_format,
            heartbeat: heartbeat.clone(),
        };
        exporters.push(zmq::start(threads, options)?);
    }
    // Not into a journal or a container's log, where each line costs, and nobody asked for it.
    let is_watched = exporters.is_empty() && std::io::stdout().is_terminal();
    if exporters.is_empty() && args.verbose == 0 && !is_watched {
        tracing::info!("flows go nowhere: ask with sockeyectl, or give --zmq ENDPOINT, or -v to print them");
    }
    if is_watched || args.verbose > 0 {
        // Without another exporter there is nothing left to do for an agent whose reader has gone.
        let (alone, end) = (exporters.is_empty(), end.clone());
        let on_closed = move || {
            if alone {
                end.close();
            }
        };
        let style = text::Style::of_stdout();
        exporters.push(text::start(threads, style, on_closed).context("cannot start printing")?);
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
            None if checking => say(&format!("ok       {:<16} {}", need.name, need.finding)),
            None => {}
            Some(remedy) => {
                complain(&format!("{}: {remedy}.", need.finding));
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
            None => say(&format!("ok       {:<16} {}", need.name, need.finding)),
            Some(remedy) => say(&format!("missing  {:<16} {}: {remedy}", need.name, need.finding)),
        }
    }
    for limit in preflight::limits(!args.no_cgroup) {
        say(&format!("degraded {:<16} {}: {}", limit.name, limit.finding, limit.remedy.unwrap_or_default()));
    }
    let (kernel, rings) = Kernel::start(&kernel_options(args))?;
    let kib = rings.first().map_or(0, |ring| ring.size_bytes() / 1024);
    say(&format!("ok       {:<16} {} of {kib} KiB", "rings", rings.len()));
    match kernel.charged_because() {
        None => say(&format!("ok       {:<16} charged to no memory cgroup", "sockets")),
        Some(why) => say(&format!("costly   {:<16} {}", "sockets", charged(why))),
    }
    say(&format!("ok       {:<16} {}", "socket scan", scan_kind().why()));
    for program in kernel.programs() {
        let cost = program.cost().context("cannot read a program's figures")?;
        say(&format!("ok       {:<16} {} instructions verified", cost.name, cost.verified_instructions));
    }
    Ok(())
}
