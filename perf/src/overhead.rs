//! `perf overhead`: what the agent costs the programs that it watches. The same traffic with nothing, with empty programs
//! at the same hooks, and with the agent, in interleaved turns, until the interval of the median is narrow enough or the
//! machine proves too noisy.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use sockeye_bpf::harness::empty::{EmptyHooks, Hooks};
use sockeye_bpf::preflight;
use sockeye_bpf::ring::Drain as _;

use crate::agent::{Agent, Agents};
use crate::args::parse_seconds;
use crate::awake::Awake;
use crate::collect::Sink;
use crate::distance::{self, is_same};
use crate::load::{Measured, Server, Workload};
use crate::order::order;
use crate::stats::{FEWEST, interval, verdict};
use crate::table::{Report, Table, progress, round2};
use crate::tails::{self, Tails, Turn};

/// Client and server.
const PINNED_CPUS: usize = 2;
const DRAIN_EVERY: Duration = Duration::from_millis(20);
/// Until the kernel has cleared up behind the hooks that were there before.
const SETTLE: Duration = Duration::from_millis(200);
/// Of each kind of traffic, before it is measured.
const WARM_UP_S: f64 = 0.1;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kinds of traffic; repeatable.
    #[arg(long, value_enum, default_values_t = Workload::ALL)]
    traffic: Vec<Workload>,
    /// Most turns.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(8..=1000))]
    pairs: u64,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5, value_parser = parse_seconds)]
    seconds: f64,
    /// Also with one group of empty hooks at a time, and an agent without UDP: where the cost comes from.
    #[arg(long)]
    by_hook: bool,
    /// Let CPUs sleep when there is nothing to do. Then the time that a virtual CPU takes to wake decides the figures.
    #[arg(long)]
    sleepy: bool,
    /// Two short pairs: shows that it works, and no figure to quote.
    #[arg(long)]
    quick: bool,
}

impl Workload {
    /// The slow-down that is allowed, percent; the specification has none for UDP.
    fn bar_percent(self) -> Option<f64> {
        match self {
            Self::TcpRr => Some(2.0),
            Self::TcpCrr => Some(5.0),
            Self::TcpBulk => Some(1.0),
            Self::UdpRr | Self::UdpStream => None,
        }
    }
}

/// With what the traffic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arm {
    Off,
    /// The agent's hooks with nothing in them: the least that such an agent can cost.
    Empty(Hooks),
    Agent,
    /// With `--no-cgroup`.
    AgentNoUdp,
}

impl Arm {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "nothing",
            Self::Empty(Hooks::All) => "empty hooks",
            Self::Empty(Hooks::Bare) => "bare mechanisms",
            Self::Empty(Hooks::Tracepoints) => "empty tracepoints",
            Self::Empty(Hooks::CgroupSkb) => "empty cgroup_skb",
            Self::Agent => "agent",
            Self::AgentNoUdp => "agent without UDP",
        }
    }
}

/// One turn of one kind of traffic: percent slower, and nanoseconds of CPU more per operation, than with nothing.
struct Pair {
    slow_down: f64,
    cpu_ns: f64,
}

/// The hooks and mechanisms of an agent without its work: what no agent that is built like this can exceed.
const LIMIT: Arm = Arm::Empty(Hooks::Bare);

/// The kept turns of one kind of traffic with one arm.
struct Compared {
    workload: Workload,
    arm: Arm,
    pairs: Vec<Pair>,
    /// Rates as percent of those with [`LIMIT`] in the same turn.
    of_limit: Vec<f64>,
}

const COLUMNS: [&str; 12] = [
    "traffic",
    "with",
    "turns",
    "slow-down %",
    "from",
    "to",
    "bar %",
    "verdict",
    "CPU ns more per op",
    "CPU from",
    "CPU to",
    "rate, % of bare",
];

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    agents.none_may_run()?;
    let seconds = if options.quick { 0.1 } else { options.seconds };
    let turns_max = if options.quick { 2 } else { options.pairs as usize };
    let bar = progress("overhead, turns", turns_max as u64);
    let _awake = if options.sleepy { None } else { Some(Awake::keep(PINNED_CPUS)?) };
    let (server, sink) = (Server::start()?, Sink::start()?);
    let start_agent = |more: &[&str]| agents.start(&[&["--zmq", &sink.endpoint], more].concat());
    let cgroup = preflight::find_cgroup2().context("cgroup v2 is not mounted")?;
    let mut arms = vec![Arm::Empty(Hooks::All), LIMIT, Arm::Agent];
    if options.by_hook {
        arms.splice(0..0, [Hooks::Tracepoints, Hooks::CgroupSkb].map(Arm::Empty));
        arms.push(Arm::AgentNoUdp);
    }
    let mut findings = Findings::new(&options.traffic, &arms, options.quick);
    arms.insert(0, Arm::Off);
    for turn in 0..turns_max {
        // Each is at each place and after each other one as often: a drift cancels out, and so does what one leaves.
        let in_order: Vec<Arm> = order(arms.len(), turn).into_iter().map(|at| arms[at]).collect();
        let runs = turn_of(&in_order, &options.traffic, seconds, &start_agent, &server, &cgroup)?;
        bar.inc(1);
        options.traffic.iter().enumerate().for_each(|(i, &workload)| findings.add(workload, i, &runs));
        if turn + 1 >= FEWEST && findings.compared.iter().all(Compared::is_narrow) {
            break;
        }
    }
    bar.finish_and_clear();
    let mut table = Table::new(&COLUMNS);
    findings.compared.iter().for_each(|compared| table.push(compared.row()));
    let mut notes = findings.notes();
    notes.extend(per_hook(&agents.start(&[])?, &options.traffic, &server, seconds.max(0.2))?);
    Ok(Report { title: "overhead", table, more: tails::tables(&findings.tails), notes })
}

/// What all turns have shown so far.
struct Findings {
    compared: Vec<Compared>,
    tails: Vec<Tails>,
    /// Between the CPUs, of each comparison.
    distances_ns: Vec<f64>,
    /// Comparisons dropped because of them.
    moved: u64,
    /// Drop none: there are too few.
    even_if_moved: bool,
}

impl Findings {
    fn new(workloads: &[Workload], arms: &[Arm], even_if_moved: bool) -> Self {
        let mut compared = Vec::new();
        for &workload in workloads {
            compared.extend(arms.iter().map(|&arm| Compared {
                workload,
                arm,
                pairs: Vec::new(),
                of_limit: Vec::new(),
            }));
        }
        let tails = workloads.iter().copied().filter_map(Tails::of).collect();
        Self { compared, tails, distances_ns: Vec::new(), moved: 0, even_if_moved }
    }

    /// One turn of one kind of traffic, the i-th of each arm's.
    fn add(&mut self, workload: Workload, i: usize, runs: &[(Arm, Vec<Measured>)]) {
        let of = |arm| runs.iter().find(|(ran, _)| *ran == arm).map(|(_, runs)| &runs[i]);
        let Some(off) = of(Arm::Off) else { return };
        for compared in self.compared.iter_mut().filter(|compared| compared.workload == workload) {
            let Some(on) = of(compared.arm) else { continue };
            if let Some(limit) = of(LIMIT).filter(|limit| is_same(limit.line_ns, on.line_ns)) {
                compared.of_limit.push(on.run.rate / limit.run.rate * 100.0);
            }
            if !is_same(off.line_ns, on.line_ns) && !self.even_if_moved {
                self.moved += 1;
                continue;
            }
            compared.pairs.push(Pair {
                slow_down: (1.0 - on.run.rate / off.run.rate) * 100.0,
                cpu_ns: on.run.cpu_ns_per_op - off.run.cpu_ns_per_op,
            });
            self.distances_ns.push(on.line_ns);
        }
        let (Some(bare), Some(agent)) = (of(LIMIT), of(Arm::Agent)) else { return };
        for tails in self.tails.iter_mut().filter(|tails| tails.workload() == workload) {
            tails.add(Turn { nothing: off, bare, agent }, self.even_if_moved);
        }
    }

    /// What has to be known to read the tables.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "Slow-down: median of the turns' ratios to the same traffic with nothing, with the interval that holds the \
             true median with 90 % or more."
                .into(),
            "Empty hooks: the same hooks with programs that do nothing. Bare mechanisms: with a state for each TCP \
             socket, and an empty record of the agent's size for each connection that ends. Both in the same turns; it is \
             what any agent pays that is built like this. Last column: operations a second with the agent, as a share of \
             those with bare mechanisms in the same turn, median."
                .into(),
            "The agent exports to a ZMQ collector. CPU: user and system time of client and server, the kernel programs \
             included; the agent's own threads and the collector not."
                .into(),
            "Client and server are pinned to a CPU each, or the scheduler's choice would decide the figures. Without \
             --sleepy a process of idle priority keeps these CPUs awake."
                .into(),
        ];
        if !self.tails.is_empty() {
            notes.extend(tails::notes());
        }
        notes.extend([
            format!(
                "From CPU to CPU a cache line took {}; {} comparisons were dropped because it changed in between.",
                distance::in_words(&self.distances_ns),
                self.moved
            ),
            "Kernel programs, runs per operation and ns per run (counting itself costs some of it):".into(),
        ]);
        notes
    }
}

/// All kinds of traffic with each arm.
fn turn_of(
    arms: &[Arm],
    workloads: &[Workload],
    seconds: f64,
    start_agent: &dyn Fn(&[&str]) -> Result<Agent>,
    server: &Server,
    cgroup: &Path,
) -> Result<Vec<(Arm, Vec<Measured>)>> {
    let mut all = Vec::new();
    for &arm in arms {
        let _agent = match arm {
            Arm::Agent => Some(start_agent(&[])?),
            Arm::AgentNoUdp => Some(start_agent(&["--no-cgroup"])?),
            Arm::Off | Arm::Empty(_) => None,
        };
        let _hooks = if let Arm::Empty(hooks) = arm { Some(Attached::start(cgroup, hooks)?) } else { None };
        let mut runs = Vec::new();
        thread::sleep(SETTLE);
        for &workload in workloads {
            server.run_afresh(workload, WARM_UP_S)?;
            let line_ns = distance::line_ns();
            runs.push(Measured { run: server.run_afresh(workload, seconds)?, line_ns });
        }
        all.push((arm, runs));
    }
    Ok(all)
}

/// Hooks without an agent, and a thread that empties their rings.
struct Attached {
    _hooks: EmptyHooks,
    stop: Arc<AtomicBool>,
    drainer: Option<JoinHandle<()>>,
}

impl Attached {
    fn start(cgroup: &Path, hooks: Hooks) -> Result<Self> {
        let mut hooks = EmptyHooks::attach(cgroup, hooks)?;
        let (mut rings, stop) = (hooks.take_rings(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let drainer = thread::Builder::new().name("perf-drain".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                rings.iter_mut().for_each(|ring| {
                    ring.drain(usize::MAX, |_| {});
                });
                thread::sleep(DRAIN_EVERY);
            }
        })?;
        Ok(Self { _hooks: hooks, stop, drainer: Some(drainer) })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(drainer) = self.drainer.take() {
            let _ = drainer.join();
        }
    }
}

impl Compared {
    fn each(&self, figure: fn(&Pair) -> f64) -> Vec<f64> {
        self.pairs.iter().map(figure).collect()
    }

    fn interval_of(&self, figure: fn(&Pair) -> f64) -> (f64, f64, f64) {
        interval(&self.each(figure))
    }

    fn bar_percent(&self) -> Option<f64> {
        if matches!(self.arm, Arm::Agent | Arm::AgentNoUdp) { self.workload.bar_percent() } else { None }
    }

    fn is_narrow(&self) -> bool {
        let width = |(low, _, high)| high - low;
        self.pairs.len() >= FEWEST
            && self.bar_percent().is_none_or(|bar| width(self.interval_of(|pair| pair.slow_down)) <= bar)
    }

    fn row(&self) -> Vec<Value> {
        if self.pairs.is_empty() {
            let mut row = vec![Value::Null; COLUMNS.len()];
            (row[0], row[1], row[2]) = (json!(self.workload.name()), json!(self.arm.name()), json!(0));
            return row;
        }
        let (low, median, high) = self.interval_of(|pair| pair.slow_down);
        let (cpu_low, cpu, cpu_high) = self.interval_of(|pair| pair.cpu_ns);
        let verdict = match self.bar_percent() {
            None => "no bar",
            Some(bar) => verdict(bar, &self.each(|pair| pair.slow_down)),
        };
        vec![
            json!(self.workload.name()),
            json!(self.arm.name()),
            json!(self.pairs.len()),
            round2(median),
            round2(low),
            round2(high),
            self.bar_percent().map_or(Value::Null, |bar| json!(bar)),
            json!(verdict),
            json!(cpu.round()),
            json!(cpu_low.round()),
            json!(cpu_high.round()),
            match self.arm {
                Arm::Agent | Arm::AgentNoUdp if !self.of_limit.is_empty() => round2(interval(&self.of_limit).1),
                _ => Value::Null,
            },
        ]
    }
}

/// Runs and nanoseconds of each kernel program under each kind of traffic, as lines.
fn per_hook(agent: &Agent, workloads: &[Workload], server: &Server, seconds: f64) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    agent.programs()?; // starts the kernel's counting
    for &workload in workloads {
        let before = agent.programs()?;
        let run = server.run_afresh(workload, seconds)?;
        let after = agent.programs()?;
        let operations = run.operations as f64;
        let parts: Vec<String> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| (&after.name, (after.runs - before.runs) as f64, after.run_ns - before.run_ns))
            .filter(|(_, runs, _)| *runs > operations * 0.005)
            .map(|(name, runs, ns)| format!("{name} {:.2} x {:.0} ns", runs / operations, ns / runs))
            .collect();
        lines.push(format!("  {}: {}", workload.name(), parts.join(", ")));
    }
    Ok(lines)
}
