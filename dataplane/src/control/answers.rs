//! Control's part in answering `ctl`: a portion at a time, between its other work.

use std::time::{Duration, Instant};

use sockeye_bpf::programs::RunTimeStats;
use sockeye_ctl::Request;

use super::{Control, EnrichmentFigures};
use crate::api;
use crate::api::events::Question;
use crate::api::pass::{Gathered, OpenFlows, PORTION, Pass};

/// A question is answered from a scan that is at most this old, if a scan takes no longer than that.
const FRESH: Duration = Duration::from_millis(500);
const FRESH_SCAN_MAX_NS: u64 = 10_000_000;
/// So long a question waits for processes that are being looked up: they are there within milliseconds.
const LOOKUPS_MAX: Duration = Duration::from_millis(100);
/// How often it is looked whether they are.
const LOOKUPS_EVERY: Duration = Duration::from_millis(1);
/// How long the kernel goes on counting run time after the last `ctl stats`.
const RUN_TIME_LEASE: Duration = Duration::from_secs(15);

impl Control {
    /// A question has come.
    pub(super) fn ask(&mut self, question: Question) {
        let is_old = self.due.scanned.is_none_or(|scanned| scanned.elapsed() > FRESH);
        if is_old && self.totals.scan_ns < FRESH_SCAN_MAX_NS {
            self.take_shards();
            self.drain();
            self.scan();
        }
        self.asked.push_back((Instant::now() + LOOKUPS_MAX, question));
    }

    /// Works on one answer for a moment. Returns how long control may wait for other events.
    pub(super) fn go_on_answering(&mut self) -> Duration {
        if !self.asked.is_empty() {
            self.take_replies();
        }
        while let Some((until, question)) = self.asked.pop_front() {
            if self.processes.unanswered() > 0 && Instant::now() < until {
                self.asked.push_front((until, question));
                break;
            }
            self.passes.extend(Pass::begin(question));
        }
        if let Some(mut pass) = self.passes.pop_front() {
            if pass.go_on(&self.table, &self.processes, Instant::now() + PORTION) {
                self.answer(pass);
            } else {
                self.passes.push_back(pass);
            }
        }
        match (self.passes.is_empty(), self.asked.is_empty()) {
            (false, _) => Duration::ZERO,
            (true, false) => LOOKUPS_EVERY,
            (true, true) => Duration::MAX,
        }
    }

    fn answer(&mut self, pass: Pass) {
        let none = OpenFlows::default();
        let Pass { question, gathered, .. } = pass;
        let answer = match (&question.request, gathered) {
            (_, Gathered::Flows(mut selection)) => selection.take_answer(),
            (_, Gathered::States(states)) => {
                self.count_run_time();
                api::stats::stats(&self.sources(&self.enrichment.figures()), &states)
            }
            (Request::Processes(arguments), Gathered::Open(open)) => {
                api::owners::processes(&self.owners(&open), arguments)
            }
            (Request::Containers(arguments), Gathered::Open(open)) => {
                api::owners::containers(&self.owners(&open), arguments)
            }
            (Request::Pods(arguments), Gathered::Open(open)) => api::owners::pods(&self.owners(&open), arguments),
            (Request::Rtt(arguments), _) => api::owners::rtt(&self.owners(&none), arguments),
            // The others are about flows, above.
            (_, _) => api::owners::ports(&self.table, &self.processes),
        };
        let _ = question.reply.send(Ok(answer));
    }

    fn owners<'a>(&'a self, open: &'a OpenFlows) -> api::owners::Owners<'a> {
        api::owners::Owners { processes: &self.processes, aggregates: &self.aggregates, open }
    }

    fn sources<'a>(&'a self, enrichment: &'a EnrichmentFigures) -> api::stats::Sources<'a> {
        api::stats::Sources {
            kernel: &self.kernel,
            workers: &self.workers,
            table: &self.table,
            processes: &self.processes,
            aggregates: &self.aggregates,
            enrichment,
            runtimes: &self.enrichment.runtimes,
            naming: &self.enrichment.naming,
            exporters: &self.exporters,
            rtt: &self.rtt,
            totals: &self.totals,
            limits: &self.options.limits,
            threads: &self.options.threads,
            started: self.started,
        }
    }

    /// Counting costs each program a few nanoseconds, so the kernel does it only while somebody looks.
    fn count_run_time(&mut self) {
        let until = Instant::now() + RUN_TIME_LEASE;
        match &mut self.run_time {
            Some((_, lease)) => *lease = until,
            none => *none = RunTimeStats::enable().ok().map(|stats| (stats, until)),
        }
    }
}
