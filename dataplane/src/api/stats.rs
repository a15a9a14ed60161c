//! `ctl stats`: everything about the agent.

use std::sync::atomic::Ordering;
use std::time::Instant;

use sockeye_bpf::kernel::Kernel;
use sockeye_bpf::preflight::Need;
use sockeye_bpf::records::CpuStats;
use sockeye_ctl::declare::NamedRow as _;
use sockeye_ctl::protocol::{Answer, Table};
use sockeye_ctl::rows;

use super::losses::{ignored, losses};
use super::overview::{Own, verdict};
use super::privileges::privileges;
use super::questions::{EnrichmentFigures, questions};
use super::round2;
use crate::export::{ExportPort, ExportStats};
use crate::flows::aggregates::Aggregates;
use crate::flows::conversations::Conversations;
use crate::flows::{Flow, FlowTable};
use crate::ingest::shard::RingCounts;
use crate::ingest::worker::WorkerPort;
use crate::model::clock::{boot_ns, ticks_ns};
use crate::model::flow::{Counters, Proto, State};
use crate::model::rtt::RttHistogram;
use crate::model::text::clean;
use crate::names::Names;
use crate::owners::process::ProcessTable;
use crate::owners::runtimes::{NamingStats, RuntimeClient, RuntimeList};
use crate::threads::{Role, ThreadStats, Threads};

/// What the figures are read from.
pub(crate) struct Sources<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) workers: &'a [WorkerPort],
    pub(crate) table: &'a FlowTable,
    pub(crate) processes: &'a ProcessTable,
    pub(crate) aggregates: &'a Aggregates,
    pub(crate) conversations: &'a Conversations,
    pub(crate) names: &'a Names,
    pub(crate) nat_failed: u64,
    pub(crate) enrichment: &'a EnrichmentFigures,
    pub(crate) runtimes: &'a RuntimeList,
    pub(crate) naming: &'a NamingStats,
    pub(crate) exporters: &'a [ExportPort],
    pub(crate) rtt: &'a RttHistogram,
    pub(crate) totals: &'a Totals,
    pub(crate) limits: &'a [Need],
    pub(crate) threads: &'a Threads,
    pub(crate) user: &'a str,
    pub(crate) started: Instant,
}

/// Totals over the agent's life.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// Per CPU, what arrived from its ring.
    pub rings: Vec<RingCounts>,
    /// Close records that came through the overflow map.
    pub overflow_closes: u64,
    /// Socket scans.
    pub scans: u64,
    /// Sockets in the last scan.
    pub scan_sockets: u64,
    /// CPU time of the last scan, nanoseconds.
    pub scan_ns: u64,
    /// UDP table entries drained.
    pub udp_drained: u64,
    /// What the kernel's programs did not tell of at once.
    pub untold: u64,
    /// Errors of scans and drains.
    pub kernel_errors: u64,
    /// Listening ports that a message to the collectors had no room for.
    pub ports_cut: u64,
    /// What was reported.
    pub reported: Counters,
}

/// Everything about the agent.
pub(crate) fn stats(s: &Sources<'_>, states: &StateCounts) -> Answer {
    let mut answer = figures(s, states);
    // Between what it loses and what it does.
    let at = answer.tables.iter().position(|table| table.name == Worker::NAME).unwrap_or(answer.tables.len());
    answer.tables.insert(at, privileges(s.threads, s.user));
    answer
}

/// Everything that is counted: it is at hand, without a question to the kernel for each thread.
pub(crate) fn figures(s: &Sources<'_>, states: &StateCounts) -> Answer {
    let cpus = s.kernel.cpu_stats().unwrap_or_default();
    let losses = losses(s, &cpus);
    let own = Own::read();
    Answer {
        tables: vec![
            Table::of([verdict(s, &own, &losses)]),
            Table::of([agent(s, &own, states)]),
            Table::of(s.limits.iter().map(limit)),
            Table::of(rings(s, &cpus)),
            Table::of(losses),
            ignored(s, &cpus),
            Table::of(s.workers.iter().map(worker)),
            Table::of(s.threads.stats().iter().map(|stats| thread(stats))),
            Table::of(states.rows()),
            Table::of([rtt(s.rtt)]),
            questions(s.enrichment),
            Table::of(s.runtimes.all().iter().filter_map(|client| runtime(client))),
            Table::of(s.exporters.iter().map(export)),
            Table::of(programs(s.kernel)),
        ],
    }
}

rows! {
    /// What cannot be seen from where the agent runs. Empty on a host.
    struct Limit: "limits" {
        /// what it is about
        name: Text = &'static str,
        /// what cannot be seen, and why
        finding: Text = String,
        /// what to do about it
        remedy: Text = String,
    }
}

fn limit(need: &Need) -> Limit {
    Limit { name: need.name, finding: need.finding.clone(), remedy: need.remedy.clone().unwrap_or_default() }
}

rows! {
    /// The agent itself.
    struct Agent: "agent" {
        /// version of sockeye
        version: Text = &'static str,
        /// process id
        pid: Id = u32,
        /// since it was started
        uptime: Seconds = u64,
        /// user and system time of all its threads, of one CPU, since it was started
        cpu: Percent = Option<f64>,
        /// resident memory, rings included once they were used
        memory: Bytes = Option<u64>,
        /// ring buffers of all CPUs and of the socket scan
        kernel_memory: Bytes = usize,
        /// flows in the table, those included that are over and linger
        flows: Count = usize,
        /// flows that were not reported yet, and those whose end was not
        flows_unreported: Count = u64,
        /// flows ever entered
        flows_seen: Count = u64,
        /// what happened on the host before this long ago is in the table
        behind: Nanoseconds = u64,
        /// host-local flows whose two ends were joined
        flows_paired: Count = u64,
        /// processes that are remembered
        processes: Count = usize,
        /// cgroups that are remembered
        cgroups: Count = usize,
        /// those of them that are containers
        containers: Count = u64,
        /// sockets that listen
        listeners: Count = usize,
        /// scans of all sockets
        scans: Count = u64,
        /// sockets that the last scan found
        scan_sockets: Count = u64,
        /// CPU time of the last scan
        scan_time: Nanoseconds = u64,
    }
}

fn agent(s: &Sources<'_>, own: &Own, states: &StateCounts) -> Agent {
    let ring_bytes: usize = s.workers.iter().flat_map(|worker| &worker.ring_sizes).sum();
    let counts = s.table.counts();
    Agent {
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime: s.started.elapsed().as_secs(),
        cpu: own.cpu_percent,
        memory: own.memory,
        kernel_memory: ring_bytes + s.kernel.scan_bytes(),
        flows: s.table.len(),
        flows_unreported: states.unreported,
        flows_seen: counts.created,
        behind: boot_ns().saturating_sub(s.table.through_ns()),
        flows_paired: counts.paired,
        processes: s.processes.len(),
        cgroups: s.processes.workloads.len(),
        containers: s.processes.workloads.containers().1,
        listeners: s.table.listeners().count(),
        scans: s.totals.scans,
        scan_sockets: s.totals.scan_sockets,
        scan_time: s.totals.scan_ns,
    }
}

rows! {
    /// Records on their way out of the kernel, per CPU. offered = delivered + overflow + lost + what is in the ring.
    struct Ring: "rings" {
        /// CPU that writes to the ring; missing: all that have come online since the agent was started
        cpu: Id = Option<usize>,
        /// thread that drains it
        worker: Id = usize,
        /// records that the programs wanted to send
        offered: Count = u64,
        /// records that arrived
        delivered: Count = u64,
        /// close records that found the ring full and went through a map instead
        overflow: Count = u64,
        /// records that found no room
        lost: Count = u64,
        /// capacity of the ring
        size: Bytes = usize,
        /// most of it that was in use when the worker came
        fill_max: Percent = f64,
    }
}

fn rings(s: &Sources<'_>, cpus: &[CpuStats]) -> Vec<Ring> {
    let mut rows = Vec::new();
    let has_own = |cpu: &usize| s.workers.iter().any(|worker| worker.cpus.contains(cpu));
    let others: Vec<_> = cpus.iter().enumerate().filter(|(cpu, _)| !has_own(cpu)).map(|(_, kernel)| kernel).collect();
    for worker in s.workers {
        for (&cpu, &size) in worker.cpus.iter().zip(&worker.ring_sizes) {
            let Some(ring) = s.totals.rings.get(cpu) else { continue };
            let own = cpus.get(cpu).map(std::slice::from_ref);
            let kernel = || own.unwrap_or_default().iter().chain(others.iter().copied().filter(|_| own.is_none()));
            let row = Ring {
                cpu: own.map(|_| cpu),
                worker: worker.index,
                offered: kernel().flat_map(|kernel| kernel.offered).sum(),
                delivered: ring.delivered.iter().sum(),
                overflow: kernel().map(|kernel| kernel.close_overflow).sum(),
                lost: kernel().map(CpuStats::lost_records).sum(),
                size,
                fill_max: round2(100.0 * ring.fill_bytes_max as f64 / size.max(1) as f64),
            };
            // Those of CPUs on which nothing has happened are left out.
            rows.extend(Some(row).filter(|row| row.offered > 0));
        }
    }
    rows
}

rows! {
    /// Threads that drain the rings.
    struct Worker: "workers" {
        /// number
        worker: Id = usize,
        /// CPU that it runs on
        pinned: Id = Option<usize>,
        /// CPUs whose rings it drains
        cpus: Text = Vec<usize>,
        /// times that it looked into its rings
        visits: Count = u64,
        /// shards handed over to the control thread
        shards: Count = u64,
        /// TCP sockets and UDP flows in the last shard
        shard_flows: Count = u64,
        /// the most there ever were
        shard_flows_max: Count = u64,
    }
}

fn worker(port: &WorkerPort) -> Worker {
    let stats = &port.stats;
    Worker {
        worker: port.index,
        pinned: port.pinned_cpu,
        cpus: port.cpus.clone(),
        visits: ExportStats::get(&stats.visits),
        shards: ExportStats::get(&stats.shards),
        shard_flows: ExportStats::get(&stats.shard_flows),
        shard_flows_max: ExportStats::get(&stats.shard_flows_max),
    }
}

rows! {
    /// The agent's threads. One that dies is started again, or ends the agent if it is essential.
    struct Thread: "threads" {
        /// as the kernel knows it, too
        name: Text = String,
        /// working, waiting (for something to do), restarting, or ended
        state: Text = &'static str,
        /// yes: the agent ends with it
        essential: Text = &'static str,
        /// user and system time, since it was last started
        cpu: Nanoseconds = Option<u64>,
        /// since it last began or finished something
        progress: Nanoseconds = u64,
        /// how often it was started again
        restarts: Count = u64,
    }
}

fn thread(stats: &ThreadStats) -> Thread {
    let tid = stats.tid.load(Ordering::Relaxed);
    let own = procfs::process::Process::myself().and_then(|own| own.task_from_tid(tid)).and_then(|task| task.stat());
    Thread {
        name: stats.name.clone(),
        state: stats.state().name(),
        essential: if stats.role == Role::Essential { "yes" } else { "no" },
        cpu: own.ok().map(|stat| ticks_ns(stat.utime + stat.stime)),
        progress: boot_ns().saturating_sub(stats.progress_ns()),
        restarts: stats.restarts.load(Ordering::Relaxed),
    }
}

rows! {
    /// Flows by protocol and state.
    struct FlowState: "flows" {
        /// transport protocol
        protocol: Text = &'static str,
        /// how they stand
        state: Text = &'static str,
        /// how many
        flows: Count = u64,
    }
}

/// Flows by protocol and state.
#[derive(Default)]
pub(crate) struct StateCounts {
    flows: [[u64; State::ALL.len()]; 2],
    unreported: u64,
}

impl StateCounts {
    pub(crate) fn add(&mut self, flow: &Flow) {
        self.flows[flow.key.proto as usize][flow.state() as usize] += 1;
        self.unreported += u64::from(flow.awaits_report());
    }

    fn rows(&self) -> impl Iterator<Item = FlowState> {
        let all = [Proto::Tcp, Proto::Udp].into_iter().flat_map(|proto| State::ALL.map(|state| (proto, state)));
        let row = |(proto, state): (Proto, State)| FlowState {
            protocol: proto.name(),
            state: state.name(),
            flows: self.flows[proto as usize][state as usize],
        };
        all.map(row).filter(|row| row.flows > 0)
    }
}

rows! {
    /// Round-trip times of the host's TCP connections, every sample that the kernel took since the agent was started.
    struct Rtt: "rtt" {
        /// how many
        samples: Count = u64,
        /// half are shorter
        p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        p99: Microseconds = Option<u64>,
        /// the longest
        max: Microseconds = Option<u64>,
    }
}

fn rtt(histogram: &RttHistogram) -> Rtt {
    let at = |quantile| (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile));
    let max = (!histogram.is_empty()).then(|| histogram.max());
    Rtt { samples: histogram.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
}

rows! {
    /// Container runtimes that are asked for names. Those without a socket in their usual place are left out.
    struct Runtime: "runtimes" {
        /// the API that it speaks
        api: Text = &'static str,
        /// where
        socket: Text = String,
        /// up, or why it does not answer
        state: Text = String,
        /// requests
        asked: Count = u64,
        /// replies with a name
        found: Count = u64,
        /// replies that there is no such container
        unknown: Count = u64,
        /// requests without a reply that is understood
        failed: Count = u64,
        /// requests that were not made, because the socket is a link or another user's
        refused: Count = u64,
        /// names, labels and events that were longer or more than what is kept
        cut: Count = u64,
    }
}

fn runtime(client: &RuntimeClient) -> Option<Runtime> {
    let s = client.snapshot();
    if s.asked == 0 && !s.is_there {
        return None;
    }
    Some(Runtime {
        api: client.kind.name(),
        socket: clean(client.path.display().to_string().as_bytes()),
        state: s.state,
        asked: s.asked,
        found: s.found,
        unknown: s.unknown,
        failed: s.failed,
        refused: s.refused,
        cut: s.cut,
    })
}

rows! {
    /// Where flows go.
    struct Export: "exports" {
        /// endpoint
        to: Text = String,
        /// whether a collector is there
        connected: Text = &'static str,
        /// how often one came
        joined: Count = u64,
        /// reports that wait
        queued: Count = u64,
        /// flow records sent
        records: Count = u64,
        /// messages sent, of all topics
        messages: Count = u64,
        /// payload sent
        bytes: Bytes = u64,
        /// sends repeated because the collector was slow
        retried: Count = u64,
        /// reports dropped because the queue was full
        dropped: Count = u64,
    }
}

fn export(port: &ExportPort) -> Export {
    let s = &port.stats;
    Export {
        to: port.name.clone(),
        connected: if ExportStats::get(&s.connected) > 0 { "yes" } else { "no" },
        joined: ExportStats::get(&s.joined),
        queued: s.queued(),
        records: ExportStats::get(&s.records),
        messages: ExportStats::get(&s.messages),
        bytes: ExportStats::get(&s.bytes),
        retried: ExportStats::get(&s.retried),
        dropped: ExportStats::get(&s.dropped),
    }
}

rows! {
    /// The kernel programs. Runs are counted only while somebody asks for these figures: ask again for a time per run.
    struct Program: "programs" {
        /// name
        program: Text = String,
        /// as in bpftool prog
        id: Id = u32,
        /// instructions that the kernel's verifier walked
        verified: Count = u32,
        /// runs while counting was on
        runs: Count = u64,
        /// time of those runs
        run_time: Nanoseconds = u64,
        /// mean time of a run
        ns_per_run: Nanoseconds = Option<f64>,
    }
}

fn programs(kernel: &Kernel) -> impl Iterator<Item = Program> {
    kernel.programs().iter().filter_map(|program| program.cost().ok()).map(|cost| Program {
        ns_per_run: (cost.runs > 0).then(|| round2(cost.run_ns as f64 / cost.runs as f64)),
        run_time: cost.run_ns,
        program: cost.name,
        id: cost.id,
        verified: cost.verified_instructions,
        runs: cost.runs,
    })
}
