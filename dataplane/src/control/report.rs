//! What leaves control: reports of flows, and the messages beside them, to all exporters.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Control, lost_records};
use crate::clock::boot_ns;
use crate::export::messages::{EventFigures, event, listening_ports};
use crate::export::{CHUNK_REPORTS, ExportPort, ExportStats, Item};
use crate::flow::{Counters, FlowReport};

/// How often ntopng hears that the agent lives.
const EVENT_EVERY: Duration = Duration::from_secs(5);
/// How often it hears what listens, and how soon after it came.
const PORTS_EVERY: Duration = Duration::from_secs(60);
pub(super) const PORTS_FIRST: Duration = Duration::from_secs(3);

impl Control {
    /// What is due.
    pub(super) fn report(&mut self) {
        let now_ns = boot_ns();
        let mut reports = std::mem::take(&mut self.reports);
        loop {
            let more = self.table.tick(now_ns, &self.clock, &mut self.processes, |report| reports.push(report));
            for report in &reports {
                self.groups.account(report, &self.processes, now_ns);
            }
            hand_out(&self.exporters, &mut self.totals.reported, &mut reports);
            if !more {
                break;
            }
        }
        self.reports = reports;
        self.ask_for_processes();
    }

    /// All flows, at the end.
    pub(super) fn report_all(&mut self) {
        let mut reports = std::mem::take(&mut self.reports);
        self.table.report_all(boot_ns(), &self.clock, &mut self.processes, |report| {
            reports.push(report);
            if reports.len() == CHUNK_REPORTS {
                hand_out(&self.exporters, &mut self.totals.reported, &mut reports);
            }
        });
        hand_out(&self.exporters, &mut self.totals.reported, &mut reports);
    }

    /// Events and listening ports; and identities again for a collector that has just come.
    pub(super) fn tell_exporters(&mut self, now: Instant) {
        let mut someone_joined = false;
        for (port, seen) in self.exporters.iter().zip(&mut self.joined) {
            let joined = ExportStats::get(&port.stats.joined);
            someone_joined |= joined != *seen;
            *seen = joined;
        }
        if someone_joined {
            self.table.collector_joined();
            self.due.ports = now + PORTS_FIRST;
        }
        if someone_joined || now >= self.due.event {
            self.due.event = now + EVENT_EVERY;
            self.send_events();
        }
        if now >= self.due.ports {
            self.due.ports = now + PORTS_EVERY;
            let body: Arc<str> = listening_ports(&self.options.probe, self.table.listeners(), &self.processes).into();
            for port in &self.exporters {
                port.offer(Item::Message { topic: "listening-ports", body: Arc::clone(&body) });
            }
        }
    }

    fn send_events(&self) {
        let lost = self.kernel.cpu_stats().map_or(0, |cpus| cpus.iter().map(lost_records).sum());
        let reported = &self.totals.reported;
        for port in &self.exporters {
            let figures = EventFigures {
                unix_s: self.clock.unix_ns(boot_ns()) / 1_000_000_000,
                bytes: reported.bytes.iter().sum(),
                packets: reported.packets.iter().sum(),
                lost,
                queue_full: ExportStats::get(&port.stats.dropped),
                too_many_flows: self.table.counts().rejected,
                exported: ExportStats::get(&port.stats.records),
                exporters: self.exporters.len() as u64,
                lifetime_s: self.options.timeouts.active_ns / 1_000_000_000,
                idle_s: self.options.timeouts.idle_ns / 1_000_000_000,
            };
            port.offer(Item::Message { topic: "event", body: event(&self.options.probe, &figures).into() });
        }
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
