//! Starts and watches all threads, in the direction of the data, and stops them in it.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use sockeye::api::events::{Command as Order, Event, Tuning};
use sockeye::api::scrape;
use sockeye::api::server::{Answerers, ControlSocket};
use sockeye::config::Config;
use sockeye::control::{Control, ControlOptions, Enrichment};
use sockeye::export::endpoint::ZmqEndpoint;
use sockeye::export::lines::{Reopen, Target};
use sockeye::export::messages::{Heartbeat, Probe};
use sockeye::export::zmq::ZmqOptions;
use sockeye::export::{ExportPort, lines, text, zmq};
use sockeye::flows::{Keep, Timeouts};
use sockeye::ingest::udp::Drainer;
use sockeye::ingest::worker;
use sockeye::metrics::series::SeriesBounds;
use sockeye::metrics::server::MetricsServer;
use sockeye::model::rate::Window;
use sockeye::owners::desk::Desk;
use sockeye::owners::packages::PackageStats;
use sockeye::owners::runtimes::{NamingStats, RuntimeList};
use sockeye::owners::users::Users;
use sockeye::owners::{packages, procfs, runtimes};
use sockeye::privileges;
use sockeye::threads::{Pulse, Threads};
use sockeye_bpf::cpus;
use sockeye_bpf::kernel::{Kernel, KernelOptions};
use sockeye_bpf::preflight;

use crate::cli::Args;
use crate::reload::Configuration;
use crate::settings::Settings;
use crate::systemd;

/// So many CPUs' rings one worker drains, unless the operator wants it otherwise.
const CPUS_PER_WORKER: usize = 8;

/// What it costs, and the remedy.
pub(crate) fn charged(why: &std::io::Error) -> String {
    format!(
        "the state of sockets is charged to the agent's memory cgroup, at 5 us more for each connection ({why}): let the agent \
         write to cgroup.procs at the root of the memory cgroups"
    )
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// If it cannot start, or a thread without which it is blind has ended.
pub(crate) fn run(command_line: Vec<OsString>, settings: Settings) -> Result<(), Failure> {
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot wait for signals")?;
    // No signal of its own: that would be the second one for an agent that is ending, and several threads may fail at once.
    let end = signals.handle();
    let threads = Threads::new(move || end.close());
    run_threads(command_line, settings, &threads, signals)?;
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

fn run_threads(command_line: Vec<OsString>, settings: Settings, threads: &Threads, signals: Signals) -> Result<()> {
    let args = settings.args.clone();
    // Everything that can be refused comes before the kernel is touched.
    let (control, events) = mpsc::channel();
    let (main, orders) = mpsc::channel();
    let wake = control.clone();
    let socket = ControlSocket::start(
        threads,
        &args.control_socket,
        args.control_group.clone(),
        Answerers { control: control.clone(), main: main.clone() },
    )?;
    if let Some(address) = args.prometheus {
        MetricsServer::start(threads, address, scrape::through(control.clone()))?;
        tracing::info!("metrics are at http://{address}/metrics");
    }
    let heartbeat = Heartbeat { probe: Probe::of_this_host(), agent: Arc::default() };
    let mut reopen = Reopen::default();
    let exporters = start_exporters(&args, threads, &heartbeat, &mut reopen, &signals.handle())?;
    wait_for_signals(threads, signals, main).context("cannot start the thread that waits for signals")?;
    let configuration = Configuration::new(command_line, settings, threads.clone(), heartbeat.clone(), reopen, control);
    let (args, config) = (&args, configuration.config());

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
    let enrichment = start_enrichment(args, config, threads).context("cannot start the enrichment threads")?;
    let options = ControlOptions {
        tuning: tuning(args),
        flows_max: usize::try_from(args.flows_max).unwrap_or(usize::MAX),
        figures: Arc::clone(&heartbeat.agent),
        threads: threads.clone(),
        user: own_user(),
        limits: preflight::limits(!args.no_cgroup),
        window: Window::of_reports_every(Duration::from_secs(args.report_interval)),
        prometheus_series: args.prometheus.map(|_| SeriesBounds {
            sets: args.prometheus_series_max as usize,
            names: args.prometheus_names_max as usize,
        }),
        cgroup_root: preflight::find_cgroup2().filter(|root| preflight::is_cgroup_root(root)),
        command_lines: args.command_line,
        nat: !args.no_nat,
    };
    for limit in &options.limits {
        tracing::warn!("{}: {}", limit.finding, limit.remedy.as_deref().unwrap_or_default());
    }
    let control = Control::new(kernel, drainer, ports, exporters, enrichment, options);
    let stop_control = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stop_control);
    let control = threads.essential(privileges::CONTROL, move |pulse| control.run(&events, &stop, pulse));
    let control = control.context("cannot start the control thread")?;
    // All that needs more is done.
    privileges::confine("sockeye");
    systemd::start(threads, &args.control_socket, &heartbeat)
        .context("cannot start the thread that talks to systemd")?;

    serve_until_end(&orders, configuration)?;
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

/// What may change while the agent runs, as it is configured.
pub(crate) fn tuning(args: &Args) -> Tuning {
    Tuning {
        timeouts: Timeouts {
            idle_ns: args.idle_timeout * 1_000_000_000,
            active_ns: args.active_timeout * 1_000_000_000,
            report_ns: args.report_interval * 1_000_000_000,
            ..Timeouts::default()
        },
        scan_every: Duration::from_secs(args.scan_interval),
        keep: Keep { flows_max: args.closed_max as usize, for_ns: args.closed_seconds * 1_000_000_000 },
        filter: args.filter(),
        tells_ports: !args.no_listening_ports,
    }
}

fn own_user() -> String {
    let uid = rustix::process::geteuid().as_raw();
    Users::default().user(uid).unwrap_or_else(|| uid.to_string())
}

/// Signals, and the end that the agent's own threads may want, as orders.
fn wait_for_signals(threads: &Threads, mut signals: Signals, main: mpsc::Sender<Order>) -> std::io::Result<()> {
    let wait = move |pulse: &Pulse| {
        pulse.working();
        pulse.waiting();
        for signal in signals.forever() {
            let _ = main.send(Order::Signal(signal));
            pulse.waiting();
        }
        let _ = main.send(Order::End);
        Ok(())
    };
    threads.restarted("sockeye-signals", wait).map(drop)
}

/// Until somebody wants the agent to end, or it must. Whoever wants it a second time does not want to wait.
fn serve_until_end(orders: &mpsc::Receiver<Order>, mut configuration: Configuration) -> Result<()> {
    for order in orders {
        match order {
            Order::Signal(SIGHUP) => {
                systemd::reloading();
                configuration.reload_and_log();
                systemd::ready();
            }
            Order::Question(question) => configuration.answer(&question),
            Order::Signal(_) | Order::End => break,
        }
    }
    let ending = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ending))
            .context("cannot wait for signals")?;
    }
    Ok(())
}

/// Replies on the way to control, boxed: such a queue takes its memory at once. Who has one more waits until there is room.
const LOOKUP_REPLIES_MAX: usize = 1 << 13;

/// The threads that ask /proc, package databases and container runtimes.
fn start_enrichment(args: &Args, config: &Config, threads: &Threads) -> Result<Enrichment> {
    let (replies, lookup_replies) = mpsc::sync_channel(LOOKUP_REPLIES_MAX);
    let (lookup_requests, package_requests) = (Desk::new(procfs::DESK), Arc::new(Desk::new(packages::DESK)));
    let packages = Arc::new(PackageStats::default());
    packages::start(threads, &package_requests, replies.clone(), Arc::clone(&packages))?;
    let how = (preflight::find_cgroup2(), args.command_line);
    procfs::start(threads, &lookup_requests, replies, Arc::clone(&package_requests), how)?;
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

/// The exporters to ntopng, as they are configured.
pub(crate) fn zmq_options(args: &Args, heartbeat: &Heartbeat) -> Vec<ZmqOptions> {
    let options = |endpoint: &ZmqEndpoint| ZmqOptions {
        source_id: heartbeat.probe.source_id(&endpoint.address),
        endpoint: endpoint.clone(),
        server_key: args.zmq_encryption_key.clone(),
        format: args.zmq_format,
        heartbeat: heartbeat.clone(),
    };
    args.zmq.iter().map(options).collect()
}

fn start_exporters(
    args: &Args,
    threads: &Threads,
    heartbeat: &Heartbeat,
    reopen: &mut Reopen,
    end: &Handle,
) -> Result<Vec<ExportPort>> {
    let mut exporters = Vec::new();
    for options in zmq_options(args, heartbeat) {
        exporters.push(zmq::start(threads, options)?);
    }
    start_lines(args, threads, reopen, end, &mut exporters)?;
    // Not into a journal or a container's log, where each line costs, and nobody asked for it.
    let is_watched = exporters.is_empty() && std::io::stdout().is_terminal();
    if exporters.is_empty() && args.verbose == 0 && !is_watched && args.prometheus.is_none() {
        tracing::info!(
            "flows go nowhere: ask with sockeyectl, or give --zmq ENDPOINT, --json FILE, or -v to print them"
        );
    }
    if is_watched || args.verbose > 0 && !args.json.contains(&Target::Stdout) {
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

fn start_lines(
    args: &Args,
    threads: &Threads,
    reopen: &mut Reopen,
    end: &Handle,
    exporters: &mut Vec<ExportPort>,
) -> Result<()> {
    for (index, target) in args.json.iter().enumerate() {
        if args.json[..index].contains(target) {
            anyhow::bail!("--json {target} is there twice: give each once");
        }
        let (alone, end) = (args.zmq.is_empty() && args.json.len() == 1, end.clone());
        let on_closed = move || {
            if alone {
                end.close();
            }
        };
        exporters.push(lines::start(threads, target.clone(), reopen, on_closed)?);
    }
    Ok(())
}

pub(crate) fn kernel_options(args: &Args) -> KernelOptions {
    KernelOptions {
        cgroup: if args.no_cgroup { None } else { preflight::find_cgroup2() },
        ring_bytes: args.ring_kib.map(|kib| kib * 1024),
        blind: !preflight::is_in_hosts_pid_namespace(),
        dns: !args.no_dns,
        hello: args.sni,
        filter: args.filter().of_sockets(),
        ..KernelOptions::default()
    }
}
