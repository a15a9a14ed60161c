//! `ctl stats`: everything about the agent.

use crate::export::ExportPort;
use crate::flows::FlowTable;
use crate::flows::aggregates::Aggregates;
use crate::ingest::shard::RingCounts;
use crate::ingest::worker::WorkerPort;
use crate::model::flow::Counters;
use crate::model::rtt::RttHistogram;
use crate::owners::process::ProcessTable;
use crate::owners::runtimes::{NamingStats, RuntimeClient};
use serde_json::{Value, json};
use sockeye_bpf::kernel::Kernel;
use sockeye_bpf::records::{CpuStats, Kind};
use sockeye_ctl::protocol::{Answer, Table, Unit};
use std::sync::Arc;
use std::time::Instant;

use super::round2;
use crate::export::ExportStats;
use crate::model::flow::{Proto, State};

/// What the figures are read from.
pub(crate) struct Sources<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) workers: &'a [WorkerPort],
    pub(crate) table: &'a FlowTable,
    pub(crate) processes: &'a ProcessTable,
    pub(crate) aggregates: &'a Aggregates,
    pub(crate) runtimes: &'a [Arc<RuntimeClient>],
    pub(crate) naming: &'a NamingStats,
    pub(crate) exporters: &'a [ExportPort],
    pub(crate) rtt: &'a RttHistogram,
    pub(crate) totals: &'a Totals,
    pub(crate) started: Instant,
}

/// Totals over the agent's life.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// Per CPU, what arrived from its ring.
    pub rings: Vec<RingCounts>,
    /// Close records that came through the overflow map.
    pub overflow_closes: u64,
    /// Socket scans, and how long the last one took.
    pub scans: u64,
    /// Sockets in the last scan.
    pub scan_sockets: u64,
    /// CPU time of the last scan, nanoseconds.
    pub scan_ns: u64,
    /// UDP table entries drained.
    pub udp_drained: u64,
    /// Errors of scans and drains.
    pub kernel_errors: u64,
    /// Listening ports that a message to the collectors had no room for.
    pub ports_cut: u64,
    /// What was reported.
    pub reported: Counters,
}

/// Everything about the agent.
pub(crate) fn stats(s: &Sources<'_>) -> Answer {
    let cpus = s.kernel.cpu_stats().unwrap_or_default();
    Answer {
        tables: vec![
            agent(s),
            rings(s, &cpus),
            losses(s, &cpus),
            shards(s),
            flow_states(s),
            rtt(s),
            runtimes(s),
            exports(s),
            programs(s),
        ],
    }
}

fn agent(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "agent",
        "The agent itself.",
        &[
            ("version", Unit::Text, "version of sockeye"),
            ("pid", Unit::Id, "process id"),
            ("uptime", Unit::Seconds, "since it was started"),
            ("cpu", Unit::Percent, "user and system time of all its threads, of one CPU, since it was started"),
            ("memory", Unit::Bytes, "resident memory, rings included once they were used"),
            ("kernel_memory", Unit::Bytes, "ring buffers of all CPUs and of the socket scan"),
            ("flows", Unit::Count, "flows in the table, those included that are over and linger"),
            ("flows_seen", Unit::Count, "flows ever entered"),
            ("flows_paired", Unit::Count, "host-local flows whose two ends were joined"),
            ("processes", Unit::Count, "processes that are remembered"),
            ("cgroups", Unit::Count, "cgroups that are remembered"),
            ("containers", Unit::Count, "those of them that are containers"),
            ("listeners", Unit::Count, "sockets that listen"),
            ("scans", Unit::Count, "scans of all sockets"),
            ("scan_sockets", Unit::Count, "sockets that the last scan found"),
            ("scan_time", Unit::Nanoseconds, "CPU time of the last scan"),
        ],
    );
    let uptime = s.started.elapsed().as_secs_f64();
    let own = procfs::process::Process::myself().and_then(|own| own.stat()).ok();
    let cpu_s = own.as_ref().map(|stat| (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64);
    let ring_bytes: usize = s.workers.iter().map(|worker| worker.ring_bytes).sum();
    let counts = s.table.counts();
    table.push([
        json!(env!("CARGO_PKG_VERSION")),
        json!(std::process::id()),
        json!(uptime as u64),
        json!(cpu_s.map(|cpu_s| round2(100.0 * cpu_s / uptime))),
        json!(own.map(|stat| stat.rss * procfs::page_size())),
        json!(ring_bytes + s.kernel.scan_bytes()),
        json!(s.table.len()),
        json!(counts.created),
        json!(counts.paired),
        json!(s.processes.len()),
        json!(s.processes.workloads.len()),
        json!(s.processes.workloads.containers().1),
        json!(s.table.listeners().count()),
        json!(s.totals.scans),
        json!(s.totals.scan_sockets),
        json!(s.totals.scan_ns),
    ]);
    table
}

fn rings(s: &Sources<'_>, cpus: &[CpuStats]) -> Table {
    let mut table = Table::new(
        "rings",
        "Records on their way out of the kernel, per CPU. offered = delivered + overflow + lost + what is in the ring.",
        &[
            ("cpu", Unit::Id, "CPU that writes to the ring"),
            ("worker", Unit::Id, "thread that drains it"),
            ("offered", Unit::Count, "records that the programs wanted to send"),
            ("delivered", Unit::Count, "records that arrived"),
            ("overflow", Unit::Count, "close records that found the ring full and went through a map instead"),
            ("lost", Unit::Count, "records that found no room"),
            ("size", Unit::Bytes, "capacity of the ring"),
            ("fill_max", Unit::Percent, "most of it that was in use when the worker came"),
        ],
    );
    for worker in s.workers {
        for &cpu in &worker.cpus {
            let Some((kernel, ring)) = cpus.get(cpu).zip(s.totals.rings.get(cpu)) else { continue };
            let size = worker.ring_bytes / worker.cpus.len().max(1);
            let offered: u64 = kernel.offered.iter().sum();
            // Rings exist for CPUs that may be plugged in later, too.
            if offered == 0 {
                continue;
            }
            table.push([
                json!(cpu),
                json!(worker.index),
                json!(offered),
                json!(ring.delivered.iter().sum::<u64>()),
                json!(kernel.close_overflow),
                json!(kernel.lost_records()),
                json!(size),
                json!(round2(100.0 * ring.fill_bytes_max as f64 / size.max(1) as f64)),
            ]);
        }
    }
    table
}

/// Every place where something can go missing, whether or not it ever did.
fn losses(s: &Sources<'_>, cpus: &[CpuStats]) -> Table {
    let mut table = Table::new(
        "losses",
        "Everything that can be lost, and how often it was.",
        &[
            ("reason", Unit::Text, "what was lost, and where"),
            ("count", Unit::Count, "how often"),
            ("per_cpu", Unit::Text, "the same per CPU, where the kernel counts"),
            ("effect", Unit::Text, "what it means"),
        ],
    );
    let mut per_cpu = |reason: &str, of: &dyn Fn(&CpuStats) -> u64, effect: &str| {
        let counts: Vec<u64> = cpus.iter().map(of).collect();
        table.push([json!(reason), json!(counts.iter().sum::<u64>()), json!(counts), json!(effect)]);
    };
    for (kind, effect) in [
        (Kind::Close, "last figures of a flow are those of the socket scan before; shown as vanished"),
        (Kind::Rtt, "up to 22 samples are missing from the distribution"),
        (Kind::Datagram, "UDP packets are missing from their flow"),
        (Kind::UdpClose, "the flow ends by its idle timeout"),
        (Kind::Identity, "the process is looked up in /proc, and unknown if it is gone"),
        (Kind::Cgroup, "the container is looked up in /proc, and unknown if it is gone"),
    ] {
        per_cpu(&format!("ring_full_{}", kind.name()), &|cpu| cpu.lost[kind as usize], effect);
    }
    per_cpu("socket_untracked", &|cpu| cpu.storage_failed, "no kernel memory: the socket's flow is not seen");
    per_cpu("close_untracked", &|cpu| cpu.untracked_close, "a connection ended that was never tracked");
    per_cpu("udp_unparsed", &|cpu| cpu.udp_unparsed, "a UDP packet with unreadable headers is not counted");
    per_cpu(
        "args_unreadable",
        &|cpu| cpu.args_unreadable,
        "the command line is read from /proc, if the process still lives",
    );
    let counts = s.table.counts();
    let stalls: u64 = s.workers.iter().map(|w| ExportStats::get(&w.stats.stalls)).sum();
    let get = ExportStats::get;
    let naming = s.naming;
    let (rolled_up, other_peers) = s.aggregates.refused();
    let malformed: u64 = s.totals.rings.iter().map(|r| r.malformed).sum();
    for (reason, count, effect) in [
        ("record_malformed", malformed, "a record was not understood"),
        ("worker_stalled", stalls, "records waited in the ring because control was busy; nothing is lost by it"),
        ("flow_table_full", counts.rejected, "the flow is not shown; raise --flows-max"),
        ("process_table_full", s.processes.refused(), "a process is shown as unknown"),
        ("cgroup_table_full", s.processes.workloads.refused(), "a container is shown as unknown"),
        ("container_unnamed", s.processes.workloads.containers().0, "containers that have only an id by now"),
        ("container_unknown", get(&naming.unknown), "no runtime knew the container: it has only an id"),
        ("container_gave_up", get(&naming.gave_up), "its runtime did not answer for ten minutes: it has only an id"),
        ("container_not_asked", get(&naming.refused), "too many questions waited: it has only an id"),
        ("process_group_full", rolled_up, "figures of a process went to its container or service at once"),
        ("peer_group_full", other_peers, "round-trip times of a peer network went to the other networks"),
        ("flow_vanished", counts.vanished, "a flow's close record never came"),
        (
            "listening_ports_cut",
            s.totals.ports_cut,
            "a collector does not hear of these ports: one address has too many",
        ),
        ("kernel_read_failed", s.totals.kernel_errors, "a socket scan or drain failed and was repeated"),
    ] {
        table.push([json!(reason), json!(count), Value::Null, json!(effect)]);
    }
    for cost in s.kernel.programs().iter().filter_map(|program| program.cost().ok()) {
        let effect = "events that came while the program was already running on that CPU";
        table.push([json!(format!("program_busy {}", cost.name)), json!(cost.misses), Value::Null, json!(effect)]);
    }
    for port in s.exporters {
        let dropped = ExportStats::get(&port.stats.dropped);
        let effect = "reports of flows that the exporter did not get";
        table.push([json!(format!("export_dropped {}", port.name)), json!(dropped), Value::Null, json!(effect)]);
    }
    table
}

fn shards(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "workers",
        "Threads that drain the rings.",
        &[
            ("worker", Unit::Id, "number"),
            ("pinned", Unit::Id, "CPU that it runs on"),
            ("cpus", Unit::Text, "CPUs whose rings it drains"),
            ("visits", Unit::Count, "times that it looked into its rings"),
            ("shards", Unit::Count, "shards handed over to the control thread"),
            ("shard_flows", Unit::Count, "TCP sockets and UDP flows in the last shard"),
            ("shard_flows_max", Unit::Count, "the most there ever were"),
        ],
    );
    for worker in s.workers {
        table.push([
            json!(worker.index),
            json!(worker.pinned_cpu),
            json!(worker.cpus),
            json!(ExportStats::get(&worker.stats.visits)),
            json!(ExportStats::get(&worker.stats.shards)),
            json!(ExportStats::get(&worker.stats.shard_flows)),
            json!(ExportStats::get(&worker.stats.shard_flows_max)),
        ]);
    }
    table
}

fn flow_states(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "flows",
        "Flows by protocol and state.",
        &[
            ("protocol", Unit::Text, "transport protocol"),
            ("state", Unit::Text, "how they stand"),
            ("flows", Unit::Count, "how many"),
        ],
    );
    let mut counts = [[0u64; State::ALL.len()]; 2];
    for flow in s.table.flows() {
        counts[flow.key.proto as usize][flow.state() as usize] += 1;
    }
    for proto in [Proto::Tcp, Proto::Udp] {
        for state in State::ALL {
            let count = counts[proto as usize][state as usize];
            if count > 0 {
                table.push([json!(proto.name()), json!(state.name()), json!(count)]);
            }
        }
    }
    table
}

fn rtt(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "rtt",
        "Round-trip times of the host's TCP connections, every sample that the kernel took since the agent was started.",
        &[
            ("samples", Unit::Count, "how many"),
            ("p50", Unit::Microseconds, "half are shorter"),
            ("p90", Unit::Microseconds, "nine of ten are shorter"),
            ("p99", Unit::Microseconds, "99 of 100 are shorter"),
            ("max", Unit::Microseconds, "the longest"),
        ],
    );
    let h = s.rtt;
    let at = |quantile| if h.is_empty() { Value::Null } else { json!(h.value_at_quantile(quantile)) };
    let max = if h.is_empty() { Value::Null } else { json!(h.max()) };
    table.push([json!(h.len()), at(0.5), at(0.9), at(0.99), max]);
    table
}

fn runtimes(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "runtimes",
        "Container runtimes that are asked for names. Those without a socket in their usual place are left out.",
        &[
            ("api", Unit::Text, "the API that it speaks"),
            ("socket", Unit::Text, "where"),
            ("state", Unit::Text, "up, or why it does not answer"),
            ("asked", Unit::Count, "questions"),
            ("found", Unit::Count, "answers with a name"),
            ("unknown", Unit::Count, "answers that there is no such container"),
            ("failed", Unit::Count, "questions without an answer that is understood"),
        ],
    );
    for runtime_client in s.runtimes {
        let s = runtime_client.snapshot();
        if s.asked == 0 && !runtime_client.path.exists() {
            continue;
        }
        let socket = runtime_client.path.display().to_string();
        table.push([
            json!(runtime_client.kind.name()),
            json!(crate::model::text::clean(socket.as_bytes())),
            json!(s.state),
            json!(s.asked),
            json!(s.found),
            json!(s.unknown),
            json!(s.failed),
        ]);
    }
    table
}

fn exports(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "exports",
        "Where flows go.",
        &[
            ("to", Unit::Text, "endpoint"),
            ("connected", Unit::Text, "whether a consumer is there"),
            ("joined", Unit::Count, "how often one came"),
            ("queued", Unit::Count, "reports that wait"),
            ("records", Unit::Count, "flow records sent"),
            ("messages", Unit::Count, "messages sent, of all topics"),
            ("bytes", Unit::Bytes, "payload sent"),
            ("retried", Unit::Count, "sends repeated because the consumer was slow"),
            ("dropped", Unit::Count, "reports dropped because the queue was full"),
        ],
    );
    for port in s.exporters {
        let s = &port.stats;
        let connected = if ExportStats::get(&s.connected) > 0 { "yes" } else { "no" };
        let figures = [&s.joined, &s.queued, &s.records, &s.messages, &s.bytes, &s.retried, &s.dropped];
        table.push([json!(port.name), json!(connected)].into_iter().chain(figures.map(|f| json!(ExportStats::get(f)))));
    }
    table
}

fn programs(s: &Sources<'_>) -> Table {
    let mut table = Table::new(
        "programs",
        "The kernel programs. Runs are counted only while somebody asks for these figures: ask again for a time per run.",
        &[
            ("program", Unit::Text, "name"),
            ("id", Unit::Id, "as in bpftool prog"),
            ("verified", Unit::Count, "instructions that the kernel's verifier walked"),
            ("runs", Unit::Count, "runs while counting was on"),
            ("ns_per_run", Unit::Nanoseconds, "mean time of a run"),
        ],
    );
    for program in s.kernel.programs() {
        let Ok(cost) = program.cost() else { continue };
        let per_run = (cost.runs > 0).then(|| round2(cost.run_ns as f64 / cost.runs as f64));
        table.push([
            json!(cost.name),
            json!(cost.id),
            json!(cost.verified_instructions),
            json!(cost.runs),
            json!(per_run),
        ]);
    }
    table
}
