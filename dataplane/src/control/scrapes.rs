//! Control's part in a scrape: flows are counted a portion at a time, between its other work, and then all figures are copied.

use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::Control;
use crate::api;
use crate::api::pass::{Count, PORTION};
use crate::metrics::accounts::Accounts;
use crate::metrics::far_ends::NameAccounts;
use crate::metrics::resolving::DnsAccounts;
use crate::metrics::series::SeriesBounds;
use crate::metrics::snapshot::Snapshot;
use crate::model::clock::thread_cpu_ns;
use crate::owners::process::PROCESSES_MAX;
use crate::owners::workload::WORKLOADS_MAX;

/// What is counted for Prometheus.
pub(super) struct Metrics {
    pub(super) accounts: Accounts,
    pub(super) dns: DnsAccounts,
    pub(super) names: NameAccounts,
    /// Those that wait for an answer.
    scrapes: Vec<SyncSender<Snapshot>>,
    count: Count,
    counted: bool,
    portion_max_ns: u64,
}

impl Metrics {
    /// Within these bounds.
    pub(super) fn new(bounds: SeriesBounds) -> Self {
        Self {
            accounts: Accounts::new(bounds.sets),
            dns: DnsAccounts::new(bounds.sets),
            names: NameAccounts::new(bounds.names),
            scrapes: Vec::new(),
            count: Count::default(),
            counted: false,
            portion_max_ns: 0,
        }
    }
}

impl Control {
    /// Prometheus asks.
    pub(super) fn scrape(&mut self, reply: SyncSender<Snapshot>) {
        if let Some(metrics) = &mut self.metrics {
            metrics.scrapes.push(reply);
        }
    }

    /// Works on a scrape for a moment. Returns whether there is more to do.
    pub(super) fn go_on_scraping(&mut self) -> bool {
        let Some(metrics) = self.metrics.as_mut().filter(|metrics| !metrics.scrapes.is_empty()) else { return false };
        let began_ns = thread_cpu_ns();
        if metrics.counted {
            self.answer_scrapes();
        } else {
            metrics.counted = metrics.count.go_on(&self.table, Instant::now() + PORTION / 2);
        }
        let Some(metrics) = &mut self.metrics else { return false };
        metrics.portion_max_ns = metrics.portion_max_ns.max(thread_cpu_ns() - began_ns);
        !metrics.scrapes.is_empty()
    }

    fn answer_scrapes(&mut self) {
        let Some(mut metrics) = self.metrics.take() else { return };
        let stats = api::stats::figures(&self.sources(&self.enrichment.figures()), metrics.count.counts());
        let (ends, rtt) = metrics.accounts.shown();
        let snapshot = Snapshot {
            stats,
            ends,
            rtt,
            dns: metrics.dns.shown(),
            names: metrics.names.shown(),
            reported: self.totals.reported,
            limits: [
                ("flows", self.options.flows_max as u64),
                ("processes", PROCESSES_MAX as u64),
                ("cgroups", WORKLOADS_MAX as u64),
            ],
            portion_max_ns: metrics.portion_max_ns,
        };
        // One asks at a time: the others wait for what it is told.
        for scrape in metrics.scrapes.drain(..) {
            let _ = scrape.send(snapshot.clone());
        }
        (metrics.count, metrics.counted) = (Count::default(), false);
        self.metrics = Some(metrics);
    }
}
