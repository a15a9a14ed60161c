//! `perf overhead`: what the agent costs the programs that it watches. The same traffic with nothing, with empty programs
//! at the same hooks, and with the agent, in interleaved turns, until the interval of the median is narrow enough or the
//! machine proves too noisy.

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};
use sockeye_bpf::empty::EmptyHooks;
use sockeye_bpf::preflight;

use crate::agent::{Agent, Agents};
use crate::awake::Awake;
use crate::load::{Server, Workload};
use crate::stats::interval;
use crate::table::{Report, Table, progress, round2};

/// Client and server.
const PINNED_CPUS: usize = 2;
/// Fewest pairs from which an interval of 90 % can be read: the second and the last but one of eight are 93 %.
const PAIRS_MIN: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kinds of traffic; repeatable.
    #[arg(long, value_enum, default_values_t = Workload::ALL)]
    traffic: Vec<Workload>,
    /// Most turns.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(8..=1000))]
    pairs: u64,
    /// Seconds of each run.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
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
    EmptyHooks,
    Agent,
}

const ARMS: [Arm; 3] = [Arm::Off, Arm::EmptyHooks, Arm::Agent];

/// One turn of one kind of traffic: percent slower, and nanoseconds of CPU more per operation, than with nothing.
struct Pair {
    slow_down: f64,
    empty: f64,
    cpu_ns: f64,
    empty_cpu_ns: f64,
}

const COLUMNS: [&str; 12] = [
    "traffic",
    "pairs",
    "slow-down %",
    "from",
    "to",
    "bar %",
    "verdict",
    "empty hooks %",
    "empty from",
    "empty to",
    "CPU ns more per op",
    "empty hooks, CPU ns",
];

pub(crate) fn run(options: &Options, agents: &Agents) -> Result<Report> {
    agents.none_may_run()?;
    let seconds = if options.quick { 0.1 } else { options.seconds };
    let pairs_max = if options.quick { 2 } else { options.pairs as usize };
    let bar = progress("overhead, pairs of runs", pairs_max as u64);
    let _awake = if options.sleepy { None } else { Some(Awake::keep(PINNED_CPUS)?) };
    let server = Server::start()?;
    let cgroup = preflight::find_cgroup2().context("cgroup v2 is not mounted")?;
    let workloads = &options.traffic;
    let mut pairs: Vec<Vec<Pair>> = workloads.iter().map(|_| Vec::new()).collect();
    for turn in 0..pairs_max {
        let mut runs = [Vec::new(), Vec::new(), Vec::new()];
        // Each takes its turn in being first, so that a drift cancels out.
        for arm in (0..3).map(|i| ARMS[(turn + i) % 3]) {
            let _agent = if arm == Arm::Agent { Some(agents.start(&[])?) } else { None };
            let _hooks = if arm == Arm::EmptyHooks { Some(EmptyHooks::attach(&cgroup)?) } else { None };
            for &workload in workloads {
                runs[arm as usize].push(server.run(workload, seconds)?);
            }
        }
        for (i, pairs) in pairs.iter_mut().enumerate() {
            let [off, empty, on] = [Arm::Off, Arm::EmptyHooks, Arm::Agent].map(|arm| runs[arm as usize][i]);
            pairs.push(Pair {
                slow_down: (1.0 - on.rate / off.rate) * 100.0,
                empty: (1.0 - empty.rate / off.rate) * 100.0,
                cpu_ns: on.cpu_ns_per_op - off.cpu_ns_per_op,
                empty_cpu_ns: empty.cpu_ns_per_op - off.cpu_ns_per_op,
            });
        }
        bar.inc(1);
        if turn + 1 >= PAIRS_MIN && workloads.iter().zip(&pairs).all(|(w, pairs)| is_narrow(*w, pairs)) {
            break;
        }
    }
    bar.finish_and_clear();
    let mut table = Table::new(&COLUMNS);
    for (workload, pairs) in workloads.iter().zip(&pairs) {
        table.push(row(*workload, pairs));
    }
    let hooks = per_hook(&agents.start(&[])?, workloads, &server, seconds.max(0.2))?;
    let mut notes = vec![
        "Slow-down: median of the pairs' ratios, with the interval that holds the true median with 93 % or more."
            .into(),
        "Empty hooks: the same hooks with programs that do nothing, measured in the same turns; what any such agent pays."
            .into(),
        "CPU: user and system time of client and server, the kernel programs included; the agent's own threads not."
            .into(),
        "Client and server are pinned to a CPU each, or the scheduler's choice would decide the figures. Without --sleepy \
         a process of idle priority keeps these CPUs awake."
            .into(),
        "Kernel programs, runs per operation and ns per run (counting itself costs some of it):".into(),
    ];
    notes.extend(hooks);
    Ok(Report { title: "overhead", table, more: Vec::new(), notes })
}

fn row(workload: Workload, pairs: &[Pair]) -> Vec<Value> {
    let of = |figure: fn(&Pair) -> f64| interval(&pairs.iter().map(figure).collect::<Vec<_>>());
    let (low, median, high) = of(|pair| pair.slow_down);
    let (empty_low, empty, empty_high) = of(|pair| pair.empty);
    let verdict = match workload.bar_percent() {
        None => "no bar",
        Some(bar) if high <= bar => "met",
        Some(bar) if low > bar => "not met",
        Some(_) => "too noisy to say",
    };
    vec![
        json!(workload.name()),
        json!(pairs.len()),
        round2(median),
        round2(low),
        round2(high),
        workload.bar_percent().map_or(Value::Null, |bar| json!(bar)),
        json!(verdict),
        round2(empty),
        round2(empty_low),
        round2(empty_high),
        json!(of(|pair| pair.cpu_ns).1.round()),
        json!(of(|pair| pair.empty_cpu_ns).1.round()),
    ]
}

fn is_narrow(workload: Workload, pairs: &[Pair]) -> bool {
    let (low, _, high) = interval(&pairs.iter().map(|pair| pair.slow_down).collect::<Vec<_>>());
    workload.bar_percent().is_none_or(|bar| high - low <= bar)
}

/// Runs and nanoseconds of each kernel program under each kind of traffic, as lines.
fn per_hook(agent: &Agent, workloads: &[Workload], server: &Server, seconds: f64) -> Result<Vec<String>> {
    let figures = || -> Result<Vec<(String, u64, f64)>> {
        let answer = agent.stats()?;
        let rows = answer.table("programs").map(|table| table.rows.clone()).unwrap_or_default();
        let read = |row: &serde_json::Map<String, Value>| {
            let runs = row.get("runs")?.as_u64()?;
            let per_run = row.get("ns_per_run").and_then(Value::as_f64).unwrap_or(0.0);
            Some((row.get("program")?.as_str()?.to_owned(), runs, per_run * runs as f64))
        };
        Ok(rows.iter().filter_map(read).collect())
    };
    let mut lines = Vec::new();
    figures()?; // starts the kernel's counting
    for &workload in workloads {
        let before = figures()?;
        let run = server.run(workload, seconds)?;
        let after = figures()?;
        let operations = run.operations as f64;
        let parts: Vec<String> = before
            .iter()
            .zip(&after)
            .filter(|((_, runs, _), (_, later, _))| (later - runs) as f64 > operations * 0.005)
            .map(|((name, runs, ns), (_, later, later_ns))| {
                let more = (later - runs) as f64;
                format!("{name} {:.2} x {:.0} ns", more / operations, (later_ns - ns) / more)
            })
            .collect();
        lines.push(format!("  {}: {}", workload.name(), parts.join(", ")));
    }
    Ok(lines)
}
