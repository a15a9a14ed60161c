//! What leaves control: reports of flows, and listening ports, to all exporters.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sockeye_bpf::records::{CpuStats, Kind};

use super::{Control, naming};
use crate::export::listening::LocalAddresses;
use crate::export::{CHUNK_REPORTS, ExportPort, ExportStats, Item, listening};
use crate::flows::report::FlowReport;
use crate::model::clock::boot_ns;
use crate::model::flow::{Addr, Counters};

/// How often a collector hears what listens, and how soon after it came.
const PORTS_EVERY: Duration = Duration::from_secs(60);
pub(super) const PORTS_FIRST: Duration = Duration::from_secs(3);

impl Control {
    /// What is due.
    pub(super) fn report(&mut self) {
        let now_ns = boot_ns();
        let mut reports = std::mem::take(&mut self.reports);
        loop {
            let more = self.table.tick(now_ns, &self.clock, &mut self.processes, |report| reports.push(report));
            self.translate(&mut reports);
            self.name_peers(&mut reports);
            for report in &reports {
                self.aggregates.account(report, &self.processes, now_ns);
                self.conversations.account(report, now_ns);
            }
            if let Some(metrics) = &mut self.metrics {
                for report in &reports {
                    metrics.accounts.account(report, now_ns);
                    metrics.names.account(report, now_ns);
                }
            }
            hand_out(&self.exporters, &mut self.totals.reported, &mut reports);
            if !more {
                break;
            }
        }
        self.reports = reports;
        self.names.learn_rest();
        if let Some(metrics) = &mut self.metrics {
            metrics.accounts.settle(&self.processes, now_ns);
            metrics.dns.take(&mut self.names.service, &self.processes, now_ns);
        }
        self.ask_for_processes();
    }

    /// All flows, at the end.
    pub(super) fn report_all(&mut self) {
        let now_ns = boot_ns();
        self.names.read(u64::MAX, now_ns, &|process| naming::place_of(process, &self.processes));
        let mut reports = std::mem::take(&mut self.reports);
        for untold in self.table.untold().chunks(CHUNK_REPORTS) {
            let report = |report| reports.push(report);
            self.table.report_those(untold, now_ns, &self.clock, &mut self.processes, report);
            self.translate(&mut reports);
            self.name_peers(&mut reports);
            hand_out(&self.exporters, &mut self.totals.reported, &mut reports);
        }
    }

    /// Events and listening ports; and all open flows again for a collector that has just come.
    pub(super) fn update_exporters(&mut self, now: Instant) {
        let mut someone_joined = false;
        for (port, seen) in self.exporters.iter().zip(&mut self.joined) {
            let joined = ExportStats::get(&port.stats.joined);
            someone_joined |= joined != *seen;
            *seen = joined;
        }
        if someone_joined {
            self.table.collector_joined(boot_ns());
            self.due.ports = now + PORTS_FIRST;
            self.ports_again = true;
        }
        if now >= self.due.ports {
            // A collector takes ports of hosts that it knows, and after five seconds it knows those of all open flows.
            let again = std::mem::take(&mut self.ports_again);
            self.due.ports = now + if again { PORTS_FIRST } else { PORTS_EVERY };
            self.send_listening_ports();
        }
    }

    fn send_listening_ports(&mut self) {
        if !self.options.tuning.tells_ports {
            return;
        }
        let addresses = match self.local_addresses() {
            Ok(addresses) => addresses,
            Err(err) => {
                self.totals.kernel_errors += 1;
                tracing::warn!("cannot read the addresses of this host: {err}; it is tried again, and counted");
                return;
            }
        };
        let (listeners, reported) = (self.table.listeners(), &mut self.ports_reported_at);
        let (messages, cut) = listening::messages(listeners, &addresses, &self.processes, reported);
        self.totals.ports_cut += cut;
        for body in messages {
            let body: Arc<str> = body.into();
            for port in &self.exporters {
                port.offer(Item::Message { topic: "listening-ports", body: Arc::clone(&body) });
            }
        }
    }

    /// Those of the host as its interfaces have them, those of other namespaces as their flows and sockets show them.
    fn local_addresses(&mut self) -> std::io::Result<LocalAddresses> {
        self.table.expire_addresses(boot_ns());
        let (host_netns, host) = listening::of_this_host()?;
        let mut others: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for listener in self.table.listeners().filter(|listener| listener.netns != host_netns) {
            let of_flows = || self.table.addresses_of(listener.netns).map(Addr::ip).collect();
            let known = others.entry(listener.netns).or_insert_with(of_flows);
            let ip = listener.local.addr.ip();
            if !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() {
                known.insert(ip);
            }
        }
        Ok(LocalAddresses { host_netns, host, others })
    }

    /// What the kernel counts: for the table, for the names, and for the events that the exporters send.
    pub(super) fn update_agent_figures(&mut self) {
        let now_ns = boot_ns();
        let cpus = self.kernel.cpu_stats().unwrap_or_default();
        let shut_dropped: u64 = cpus.iter().map(|cpu| cpu.shut_dropped).sum();
        let untold = self.kernel.states_missed() + shut_dropped;
        self.table.told_through(now_ns, std::mem::replace(&mut self.totals.untold, untold) == untold);
        let lost = cpus.iter().map(CpuStats::lost_records).sum();
        let unread = cpus.iter().map(|cpu| cpu.dns_left_out + cpu.lost[Kind::Dns as usize]).sum();
        self.names.kernel_left_out(unread, now_ns);
        let (figures, reported) = (&self.options.figures, &self.totals.reported);
        figures.bytes.store(reported.bytes.iter().sum(), Ordering::Relaxed);
        figures.packets.store(reported.packets.iter().sum(), Ordering::Relaxed);
        figures.lost.store(lost, Ordering::Relaxed);
        figures.too_many_flows.store(self.table.counts().rejected, Ordering::Relaxed);
    }
}

/// Takes all reports. Exporters share them.
fn hand_out(exporters: &[ExportPort], reported: &mut Counters, reports: &mut Vec<FlowReport>) {
    let mut reports = reports.drain(..);
    while reports.len() > 0 {
        let chunk: Arc<[FlowReport]> = reports.by_ref().take(CHUNK_REPORTS).collect();
        chunk.iter().for_each(|report| reported.add(&report.delta));
        for port in exporters {
            port.offer(Item::Flows(Arc::clone(&chunk)));
        }
    }
}
