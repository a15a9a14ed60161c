//! What is most important to know of the agent and its host: costs no look at the flows.

use sockeye_ctl::human;
use sockeye_ctl::protocol::{Answer, Table};
use sockeye_ctl::rows;

use super::losses::{Loss, Weight, losses};
use super::stats::Sources;
use super::{round2, who};
use crate::export::ExportStats;
use crate::model::clock::{boot_ns, ticks_ns};
use crate::model::history::PARTS;
use crate::threads::ThreadState;

/// Losses that are named in the verdict.
const NAMED_MAX: usize = 3;

rows! {
    /// Whether all is well, in one line.
    struct Verdict: "verdict" {
        /// nothing is lost, or what; what the agent takes; exports, threads
        verdict: Text = String,
        /// how often something was lost since the agent was started
        lost: Count = u64,
    }
}

rows! {
    /// The host and the agent. Rates are those of the last ten seconds.
    struct Overview: "overview" {
        /// this host
        host: Text = String,
        /// version of sockeye
        version: Text = &'static str,
        /// process id
        pid: Id = u32,
        /// since it was started
        uptime: Seconds = u64,
        /// user and system time of all its threads, since it was started
        cpu_time: Nanoseconds = Option<u64>,
        /// the same, of one CPU
        cpu: Percent = Option<f64>,
        /// resident memory
        memory: Bytes = Option<u64>,
        /// flows in the table, those included that are over and linger
        flows: Count = usize,
        /// flows ever entered
        flows_seen: Count = u64,
        /// new flows per second
        flows_per_second: Count = f64,
        /// payload that left the host per second
        out_per_second: Bytes = u64,
        /// payload that came to it per second
        in_per_second: Bytes = u64,
        /// payload between its own processes per second
        local_per_second: Bytes = u64,
        /// segments and datagrams per second
        packets_per_second: Count = f64,
        /// round-trip samples since the agent was started
        rtt_samples: Count = u64,
        /// half of them are shorter
        rtt_p50: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        rtt_p99: Microseconds = Option<u64>,
        /// exporters
        exports: Count = usize,
        /// those whose collector is there
        exports_connected: Count = usize,
        /// out_per_second in each 5 s of the last minutes, the oldest first
        history_out: Bytes = Vec<u64>,
        /// in_per_second, likewise
        history_in: Bytes = Vec<u64>,
        /// local_per_second, likewise
        history_local: Bytes = Vec<u64>,
        /// flows_per_second, likewise
        history_flows: Count = Vec<f64>,
    }
}

/// Header of a screen: the host, the verdict, and what is lost.
pub(crate) fn overview(s: &Sources<'_>) -> Answer {
    let cpus = s.kernel.cpu_stats().unwrap_or_default();
    let mut losses = losses(s, &cpus);
    let own = Own::read();
    let verdict = verdict(s, &own, &losses);
    losses.retain(|loss| loss.count > 0);
    Answer { tables: vec![Table::of([row(s, &own)]), Table::of([verdict]), Table::of(losses)] }
}

fn row(s: &Sources<'_>, own: &Own) -> Overview {
    let (now_ns, window) = (boot_ns(), s.aggregates.window());
    let host = s.aggregates.host();
    let [out, into, local, packets, flows] = host.rates.per_second(window, now_ns);
    let history = host.history.per_second(PARTS, window, now_ns);
    let of = |i: usize| history.iter().map(|part| part[i].round() as u64).collect();
    let rtt = |quantile| (!s.rtt.is_empty()).then(|| s.rtt.value_at_quantile(quantile));
    Overview {
        host: who::node(),
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime: s.started.elapsed().as_secs(),
        cpu_time: own.cpu_ns,
        cpu: own.cpu_percent,
        memory: own.memory,
        flows: s.table.len(),
        flows_seen: s.table.counts().created,
        flows_per_second: round2(flows),
        out_per_second: out as u64,
        in_per_second: into as u64,
        local_per_second: local as u64,
        packets_per_second: round2(packets),
        rtt_samples: s.rtt.len(),
        rtt_p50: rtt(0.5),
        rtt_p99: rtt(0.99),
        exports: s.exporters.len(),
        exports_connected: connected(s),
        history_out: of(0),
        history_in: of(1),
        history_local: of(2),
        history_flows: history.iter().map(|part| round2(part[3])).collect(),
    }
}

/// What the agent takes; nothing where /proc cannot be read.
#[derive(Default)]
pub(super) struct Own {
    cpu_ns: Option<u64>,
    pub(super) cpu_percent: Option<f64>,
    pub(super) memory: Option<u64>,
}

impl Own {
    /// The share of a CPU is of the whole life of the process: the CPU time has what it took to load the programs, before the
    /// agent counts itself as started.
    pub(super) fn read() -> Self {
        let stat = procfs::process::Process::myself().and_then(|own| own.stat());
        stat.map(|stat| {
            let cpu_ns = ticks_ns(stat.utime + stat.stime);
            let age_ns = boot_ns().saturating_sub(ticks_ns(stat.starttime));
            let cpu_percent = round2(100.0 * cpu_ns as f64 / age_ns.max(ticks_ns(1)) as f64);
            let memory = stat.rss * procfs::page_size();
            Self { cpu_ns: Some(cpu_ns), cpu_percent: Some(cpu_percent), memory: Some(memory) }
        })
        .unwrap_or_default()
    }
}

fn connected(s: &Sources<'_>) -> usize {
    s.exporters.iter().filter(|port| ExportStats::get(&port.stats.connected) > 0).count()
}

/// All that matters in one line.
pub(super) fn verdict(s: &Sources<'_>, own: &Own, losses: &[Loss]) -> Verdict {
    let mut parts = vec![lost_text(losses)];
    parts.extend(own.cpu_percent.map(|percent| format!("CPU {percent:.1} %")));
    parts.extend(own.memory.map(human::bytes));
    parts.push(format!("{} flows", human::count(s.table.len() as u64)));
    parts.push(match s.exporters.len() {
        0 => "no exports".into(),
        all => format!("{} of {all} exports connected", connected(s)),
    });
    let threads = s.threads.stats();
    let is_down = |state| matches!(state, ThreadState::Restarting | ThreadState::Ended);
    let down: Vec<_> = threads.iter().filter(|t| is_down(t.state())).map(|t| t.name.as_str()).collect();
    parts.push(match down.as_slice() {
        [] => format!("{} threads well", threads.len()),
        names => format!("not running: {}", names.join(", ")),
    });
    let lost = losses.iter().filter(|loss| loss.weight == Weight::Lost).map(|loss| loss.count).sum();
    Verdict { verdict: parts.join(", "), lost }
}

/// The largest losses by name.
fn lost_text(losses: &[Loss]) -> String {
    let mut lost: Vec<_> = losses.iter().filter(|loss| loss.weight == Weight::Lost && loss.count > 0).collect();
    lost.sort_by_key(|loss| std::cmp::Reverse(loss.count));
    if lost.is_empty() {
        return "nothing lost".into();
    }
    let named: Vec<_> =
        lost.iter().take(NAMED_MAX).map(|loss| format!("{} {}", human::count(loss.count), loss.reason)).collect();
    let more = lost.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("LOST: {}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(reason: &str, count: u64, weight: Weight) -> Loss {
        Loss { reason: reason.into(), count, per_cpu: None, weight, effect: "" }
    }

    #[test]
    fn what_is_lost_comes_first_and_what_is_not_is_no_loss() {
        let mut losses = vec![loss("worker_stalled", 9, Weight::None), loss("a", 0, Weight::Lost)];
        losses.push(loss("args_unreadable", 3, Weight::Detail));
        assert_eq!(lost_text(&losses), "nothing lost");
        for (reason, count) in [("b", 2), ("c", 120_000), ("d", 1), ("e", 1)] {
            losses.push(loss(reason, count, Weight::Lost));
        }
        assert_eq!(lost_text(&losses), "LOST: 120 k c, 2 b, 1 d and 1 more");
    }
}
