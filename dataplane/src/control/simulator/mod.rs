//! Simulated hosts against an exact model: seeded, on one thread, with a clock of its own, so that whatever goes wrong goes
//! wrong again. The workers, their queues, the shards and the flow table are the real ones. The kernel is a model that knows
//! the truth (`kernel.rs`, `tcp.rs`, `datagrams.rs`), and the part of control that needs a kernel is imitated (`agent.rs`).
//!
//! `SOCKEYE_SEEDS=1000000` runs more, `SOCKEYE_RUN=...` one run alone, as a failure prints it.

mod agent;
mod datagrams;
mod judge;
mod kernel;
mod plan;
mod ring;
mod tcp;

use std::collections::BTreeMap;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::flows::TICK_NS;
use agent::Agent;
use judge::Judge;
use kernel::Kernel;
use plan::{Plan, Rng, faults};

const SEEDS: u64 = 10_000;
/// After this nothing is left of anything: UDP is idle and lingers, sockets that scans do not see have vanished.
const QUIET_TICKS: u64 = 4 * 1000;
/// Records of a shrunk run are looked for so often.
const SHRINK_RUNS: u32 = 400;

/// A host from its first connection until nothing is left of it.
fn simulate(plan: Plan) -> Result<(), String> {
    let clock = agent::clock();
    let mut kernel = Kernel::new(plan, &clock);
    let mut rng = Rng::new(plan.seed ^ 0xa9e7);
    let parts = if plan.has(faults::RESTART) { 2 + rng.below(2) } else { 1 };
    let mut agent = Agent::new(&kernel, &mut rng);
    for part in 1..=parts {
        let mut judge = Judge::new(&agent);
        agent.first_scan(&mut kernel);
        for _ in 0..plan.ticks / parts {
            busy_tick(&mut kernel, &mut agent, &mut judge)?;
        }
        if plan.has(faults::PAUSE) {
            let pause = rng.below(4 * 80);
            quiet_ticks(&mut kernel, &mut agent, &mut judge, pause)?;
        }
        if part < parts {
            let at_ns = clock.get();
            let mut reports = Vec::new();
            kernel.calm = true;
            agent.end(&mut kernel, &mut |report| reports.push(report))?;
            kernel.calm = false;
            reports.iter().for_each(|report| judge.take(&kernel, report, at_ns));
            judge.conclude(&kernel, &agent, false)?;
            kernel.forget();
            agent = Agent::new(&kernel, &mut rng);
            continue;
        }
        kernel.end_all();
        kernel.close_udp();
        quiet_ticks(&mut kernel, &mut agent, &mut judge, QUIET_TICKS)?;
        judge.conclude(&kernel, &agent, true)?;
        if !agent.table.holds_nothing() {
            return Err(format!("{} flows are left: {:?}", agent.table.len(), agent.table.flows().next()));
        }
    }
    Ok(())
}

/// A quarter of a second in which things happen.
fn busy_tick(kernel: &mut Kernel, agent: &mut Agent, judge: &mut Judge) -> Result<(), String> {
    let ends_ns = kernel.clock.get() + TICK_NS;
    let visits = 1 + kernel.rng.below(2);
    for _ in 0..visits {
        // Now and then a whole connection between two scans.
        let most = if kernel.rng.chance(10) { 100 } else { 6 };
        for _ in 0..kernel.rng.below(most) {
            kernel.act();
        }
        for _ in 0..kernel.rng.below(1 + kernel.asks_per_tick()) {
            kernel.ask();
        }
        kernel.flood();
        kernel.pass(TICK_NS / visits / 2);
        agent.work(kernel.clock.get());
        agent.exchange(kernel);
    }
    kernel.clock.set(kernel.clock.get().max(ends_ns));
    tick(kernel, agent, judge)
}

/// Ticks in which nothing happens, until nothing is left.
fn quiet_ticks(kernel: &mut Kernel, agent: &mut Agent, judge: &mut Judge, ticks: u64) -> Result<(), String> {
    for _ in 0..ticks {
        kernel.clock.set(kernel.clock.get() + TICK_NS);
        agent.work(kernel.clock.get());
        agent.exchange(kernel);
        tick(kernel, agent, judge)?;
        if agent.table.is_empty() && kernel.has_written_all() && kernel.udp.is_idle() && agent.is_idle() {
            break;
        }
    }
    Ok(())
}

fn tick(kernel: &mut Kernel, agent: &mut Agent, judge: &mut Judge) -> Result<(), String> {
    let mut reports = Vec::new();
    agent.tick(kernel, &mut |report| reports.push(report))?;
    let at_ns = kernel.clock.get();
    reports.iter().for_each(|report| judge.take(kernel, report, at_ns));
    judge.error.clone().map_or(Ok(()), Err)
}

/// What goes wrong in a run, a panic included.
fn fault_of(plan: Plan) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| simulate(plan))) {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned())).unwrap_or_default())
        }
    }
}

/// The smallest run found that fails, too.
fn shrunk(mut plan: Plan, kind: &str) -> Plan {
    let mut left = SHRINK_RUNS;
    loop {
        let smaller = plan.smaller().into_iter().take_while(|_| {
            left = left.saturating_sub(1);
            left > 0
        });
        let Some(next) =
            smaller.into_iter().find(|smaller| fault_of(*smaller).is_some_and(|fault| fault.starts_with(kind)))
        else {
            return plan;
        };
        plan = next;
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// How often each fault came, and its first seed.
type Found = BTreeMap<String, (u64, u64)>;

fn look_for_faults(seeds: std::ops::Range<u64>) -> Found {
    let (next, found) = (AtomicU64::new(seeds.start), Mutex::new(Found::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let Some(fault) = fault_of(Plan::of(seed)) else { continue };
                    let kind = fault.split(':').next().unwrap_or_default().to_owned();
                    let mut found = found.lock().unwrap();
                    let (count, first) = found.entry(kind).or_insert((0, seed));
                    (*count, *first) = (*count + 1, seed.min(*first));
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn what_is_reported_is_what_was_true() {
    let first = number("SOCKEYE_FIRST_SEED").unwrap_or(0);
    let found = look_for_faults(first..first + number("SOCKEYE_SEEDS").unwrap_or(SEEDS));
    if found.is_empty() {
        return;
    }
    let mut text = String::new();
    for (kind, (count, seed)) in found {
        let plan = shrunk(Plan::of(seed), &kind);
        let fault = fault_of(plan).unwrap_or_default();
        text += &format!("\n{count} seeds, seed {seed} first: {kind}\n");
        text += &format!("SOCKEYE_RUN={plan} cargo test -p sockeye --lib one_run_alone\n{fault}\n");
    }
    panic!("{text}");
}

#[test]
fn one_run_alone() {
    let Some(plan) = env::var("SOCKEYE_RUN").ok().and_then(|text| Plan::parse(&text)) else { return };
    if let Some(fault) = fault_of(plan) {
        panic!("{plan}: {fault}");
    }
}

#[test]
fn a_run_is_the_same_each_time() {
    let plan = Plan { faults: faults::ALL, ..Plan::of(1) };
    assert_eq!(fault_of(plan), fault_of(plan));
    assert_eq!(Plan::parse(&plan.to_string()), Some(plan));
}
