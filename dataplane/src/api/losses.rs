//! The part of `ctl stats` that says what went missing.

use serde::Serialize;
use sockeye_bpf::records::{CpuStats, Kind};
use sockeye_ctl::{Table, rows};

use super::stats::Sources;
use crate::export::ExportStats;
use crate::log;

rows! {
    /// Everything that can be lost, and how often it was.
    struct Loss: "losses" {
        /// what was lost, and where
        reason: Text = String,
        /// how often
        count: Count = u64,
        /// the same per CPU, where the kernel counts
        per_cpu: Text = Option<Vec<u64>>,
        /// lost: something is not told, or is wrong; detail: less is known of something; none: it is worth knowing
        weight: Text = Weight,
        /// what it means
        effect: Text = &'static str,
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Weight {
    /// Something is not told, or is wrong.
    Lost,
    /// Less is known of something.
    Detail,
    /// It is worth knowing.
    None,
}

impl Weight {
    /// Of a reason, behind whose name there may be that of a program.
    fn of(reason: &str) -> Self {
        const DETAIL: [&str; 17] = [
            "args_unreadable",
            "cgroup_table_full",
            "container_gave_up",
            "container_not_asked",
            "container_text_cut",
            "container_unknown",
            "dns_not_followed",
            "log_lines_dropped",
            "package_gave_up",
            "package_list_cut",
            "package_not_asked",
            "process_gave_up",
            "process_not_asked",
            "process_table_full",
            // Another hook catches the event; what none has caught is a loss by another name.
            "program_busy",
            "ring_full_cgroup",
            "ring_full_identity",
        ];
        const NONE: [&str; 8] = [
            "container_unnamed",
            "pair_group_full",
            "peer_group_full",
            "process_group_full",
            "ring_full_shut",
            "rpm_killed",
            "udp_other_peers",
            "worker_stalled",
        ];
        let kind = reason.split(' ').next().unwrap_or_default();
        if DETAIL.contains(&kind) {
            Self::Detail
        } else if NONE.contains(&kind) {
            Self::None
        } else {
            Self::Lost
        }
    }
}

impl Loss {
    fn new(reason: String, count: u64, per_cpu: Option<Vec<u64>>, effect: &'static str) -> Self {
        Self { weight: Weight::of(&reason), reason, count, per_cpu, effect }
    }
}

/// Every place where something can go missing, whether or not it ever did.
pub(super) fn losses(s: &Sources<'_>, cpus: &[CpuStats]) -> Vec<Loss> {
    let mut rows = kernel_losses(cpus);
    let counted = |reason: &str, count, effect| Loss::new(reason.into(), count, None, effect);
    let counts = s.table.counts();
    let stalls: u64 = s.workers.iter().map(|w| ExportStats::get(&w.stats.stalls)).sum();
    let get = ExportStats::get;
    let (rolled_up, other_peers) = s.aggregates.refused();
    let malformed: u64 = s.totals.rings.iter().map(|r| r.malformed).sum();
    rows.extend([
        counted("record_malformed", malformed, "a record was not understood"),
        counted("worker_stalled", stalls, "records waited in the ring because control was busy; nothing is lost by it"),
        counted("flow_table_full", counts.rejected, "the flow is not shown; raise --flows-max"),
        counted("udp_given_up", counts.given_up, "a UDP flow was over early: the table, or UDP's half of it, was full"),
        counted("udp_other_peers", counts.other_peers, "a UDP peer is told of as one of the other peers of its socket"),
        counted("process_table_full", s.processes.refused(), "a process is shown as unknown"),
        counted("cgroup_table_full", s.processes.workloads.refused(), "a container is shown as unknown"),
        counted("container_unnamed", s.processes.workloads.containers().0, "containers that have only an id by now"),
        counted("container_unknown", get(&s.naming.unknown), "no runtime knew the container: it has only an id"),
        counted(
            "container_gave_up",
            get(&s.naming.gave_up),
            "its runtime did not answer for ten minutes: it has only an id",
        ),
        counted(
            "container_not_asked",
            get(&s.naming.refused),
            "too many requests waited: it has only an id until later",
        ),
        counted("process_group_full", rolled_up, "figures of a process went to its container or service at once"),
        counted("peer_group_full", other_peers, "round-trip times of a peer network went to the other networks"),
        counted("pair_group_full", s.conversations.forgotten(), "figures of a quiet pair went to the other pairs"),
        counted("flow_vanished", counts.vanished, "a flow's close record never came"),
        counted(
            "listening_ports_cut",
            s.totals.ports_cut,
            "a collector does not hear of these ports: one address has too many",
        ),
        counted(
            "nat_not_asked",
            s.nat_failed,
            "the connection tracking did not answer: a translated flow has one tuple",
        ),
        counted("dns_not_read", s.names.left_out(), "more DNS than can be read: no flow has a name for a minute"),
        counted(
            "dns_not_followed",
            s.names.service.not_followed,
            "too many questions waited for answers: this one's is not counted",
        ),
        counted("dns_name_full", s.names.table.refused(), "a name was forgotten early, or not kept: flows have none"),
        counted("log_lines_dropped", log::dropped_lines(), "who reads the agent's messages was too slow for them"),
        counted("kernel_read_failed", s.totals.kernel_errors, "a scan or drain failed and was repeated"),
    ]);
    let [(_, processes), (_, packages), _] = s.enrichment.questions;
    let cut: u64 = s.runtimes.all().iter().map(|client| client.snapshot().cut).sum();
    rows.extend([
        counted(
            "process_not_asked",
            processes.not_asked,
            "too many questions waited: more of a process is known later",
        ),
        counted("process_gave_up", processes.given_up, "/proc did not answer: less is known of a process"),
        counted("package_not_asked", packages.not_asked, "too many questions waited: its package is known later"),
        counted("package_gave_up", packages.given_up, "a package database did not answer: no package is shown"),
        counted(
            "package_list_cut",
            s.enrichment.packages_left_out,
            "too long or too many to read: no package is shown",
        ),
        counted("rpm_killed", s.enrichment.rpm_killed, "rpm did not answer: no package is shown"),
        counted("container_text_cut", cut, "names and labels are shortened, labels and events left out"),
    ]);
    for cost in s.kernel.programs().iter().filter_map(|program| program.cost().ok()) {
        let effect = "it was running on that CPU already: another hook catches up, or it is counted as flow_vanished";
        rows.push(counted(&format!("program_busy {}", cost.name), cost.misses, effect));
    }
    for port in s.exporters {
        let effect = "reports of flows that the exporter did not get";
        rows.push(counted(&format!("export_dropped {}", port.name), get(&port.stats.dropped), effect));
    }
    rows
}

rows! {
    /// What a filter leaves out (--ignore, --only): it is no loss.
    struct Ignored: "ignored" {
        /// what, and where
        what: Text = &'static str,
        /// how many
        count: Count = u64,
        /// how it is counted
        meaning: Text = &'static str,
    }
}

/// What nobody wanted to hear of.
pub(super) fn ignored(s: &Sources<'_>, cpus: &[CpuStats]) -> Table {
    let sum = |of: fn(&CpuStats) -> u64| cpus.iter().map(of).sum();
    Table::of([
        Ignored {
            what: "tcp_sockets",
            count: sum(|cpu| cpu.ignored_tcp),
            meaning: "left out in the kernel: a connection within the host has two",
        },
        Ignored { what: "udp_packets", count: sum(|cpu| cpu.ignored_udp), meaning: "likewise, at each socket" },
        Ignored {
            what: "flows",
            count: s.table.counts().left_out,
            meaning: "left out when both ends or their owners were known",
        },
    ])
}

/// What the kernel side counts, per CPU.
fn kernel_losses(cpus: &[CpuStats]) -> Vec<Loss> {
    let per_cpu = |reason: &str, of: &dyn Fn(&CpuStats) -> u64, effect| {
        let counts: Vec<u64> = cpus.iter().map(of).collect();
        Loss::new(reason.into(), counts.iter().sum(), Some(counts), effect)
    };
    let full = |kind: Kind, effect| {
        per_cpu(&format!("ring_full_{}", kind.name()), &|cpu: &CpuStats| cpu.lost[kind as usize], effect)
    };
    vec![
        full(Kind::Close, "last figures of a flow are those of the scan before; shown as vanished"),
        full(Kind::Rtt, "up to 22 samples are missing from the distribution"),
        full(Kind::Datagram, "UDP packets are missing from their flow"),
        full(Kind::UdpClose, "the flow ends by its idle timeout"),
        full(Kind::Identity, "the process is looked up in /proc, and unknown if it is gone"),
        full(Kind::Cgroup, "the container is looked up in /proc, and unknown if it is gone"),
        per_cpu(
            "ring_full_shut",
            &|cpu| cpu.shut_dropped,
            "a connection is told of when it ends, and not when a process closes it",
        ),
        per_cpu("socket_untracked", &|cpu| cpu.storage_failed, "no kernel memory: the socket's flow is not seen"),
        per_cpu("close_untracked", &|cpu| cpu.untracked_close, "a connection ended that was never tracked"),
        per_cpu(
            "hellos_left_out",
            &|cpu| cpu.hellos_left_out,
            "more clients than are looked at: flows have no name by TLS",
        ),
        per_cpu("dns_left_out", &|cpu| cpu.dns_left_out, "more DNS than is looked at: no flow has a name for a minute"),
        per_cpu("udp_unparsed", &|cpu| cpu.udp_unparsed, "a UDP packet with unreadable headers is not counted"),
        per_cpu(
            "args_unreadable",
            &|cpu| cpu.args_unreadable,
            "the command line is read from /proc, if the process still lives",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_told_or_is_wrong_is_lost() {
        for reason in
            ["ring_full_close", "flow_table_full", "close_untracked", "export_dropped tcp://*:5556", "a new one"]
        {
            assert_eq!(Weight::of(reason), Weight::Lost, "{reason}");
        }
        for reason in ["program_busy se_probe", "program_busy se_set_state", "args_unreadable"] {
            assert_eq!(Weight::of(reason), Weight::Detail, "{reason}");
        }
        assert_eq!(Weight::of("worker_stalled"), Weight::None);
    }
}
