//! Control's part in answering `ctl`: a portion at a time, between its other work.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sockeye_bpf::programs::RunTimeStats;
use sockeye_ctl::Request;

use super::{Control, EnrichmentFigures};
use crate::api;
use crate::api::events::Question;
use crate::api::pass::{Gathered, OpenFlows, PORTION, Pass};
use crate::model::clock::{boot_ns, thread_cpu_ns};

/// A question is answered from a scan that is at most this old, if a scan takes no longer than that.
const FRESH: Duration = Duration::from_millis(500);
const FRESH_SCAN_MAX_NS: u64 = 10_000_000;
/// So long a question waits for processes that are being looked up: they are there within milliseconds.
const LOOKUPS_MAX: Duration = Duration::from_millis(100);
/// So long one waits for names of containers that nobody has asked about before.
const NAMES_MAX: Duration = Duration::from_secs(2);
/// How often it is looked whether they are.
const LOOKUPS_EVERY: Duration = Duration::from_millis(1);
/// How long the kernel goes on counting run time after the last `ctl stats`.
const RUN_TIME_LEASE: Duration = Duration::from_secs(15);

fn count_cost(question: &Question, began_ns: u64) {
    question.cost_ns.fetch_add(thread_cpu_ns() - began_ns, Ordering::Relaxed);
}

impl Control {
    /// A question has come.
    pub(super) fn ask(&mut self, question: Question) {
        let began_ns = thread_cpu_ns();
        // The overview tells of no flow by itself.
        let is_of_flows = question.request != Request::Overview;
        let is_old = is_of_flows && self.due.scanned.is_none_or(|scanned| scanned.elapsed() > FRESH);
        if is_old && self.totals.scan_ns < FRESH_SCAN_MAX_NS {
            self.take_shards();
            self.drain();
            self.scan();
        }
        let mut wait = LOOKUPS_MAX;
        if !question.places.is_empty() {
            let now_ns = boot_ns();
            for (id, path) in &question.places {
                self.processes.workloads.learn(*id, path, now_ns);
            }
            self.ask_for_processes();
            wait = NAMES_MAX;
        }
        count_cost(&question, began_ns);
        self.asked.push_back((Instant::now() + wait, question));
    }

    /// Works on one answer for a moment. Returns how long control may wait for other events.
    pub(super) fn go_on_answering(&mut self) -> Duration {
        if !self.asked.is_empty() {
            self.take_replies();
        }
        let now = Instant::now();
        for (until, question) in std::mem::take(&mut self.asked) {
            let workloads = &self.processes.workloads;
            let unnamed = question.places.iter().any(|(id, _)| workloads.awaits_names(*id));
            if (self.processes.unanswered() > 0 || unnamed) && now < until {
                self.asked.push_back((until, question));
            } else {
                self.passes.extend(Pass::begin(question));
            }
        }
        if let Some(mut pass) = self.passes.pop_front() {
            let began_ns = thread_cpu_ns();
            if pass.go_on(&self.table, &self.processes, Instant::now() + PORTION) {
                self.answer(pass, began_ns);
            } else {
                count_cost(&pass.question, began_ns);
                self.passes.push_back(pass);
            }
        }
        match (self.passes.is_empty(), self.asked.is_empty()) {
            (false, _) => Duration::ZERO,
            (true, false) => LOOKUPS_EVERY,
            (true, true) => Duration::MAX,
        }
    }

    fn answer(&mut self, pass: Pass, began_ns: u64) {
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
            (Request::Pods(arguments), Gathered::Open(open)) => api::workloads::pods(&self.owners(&open), arguments),
            (Request::Workloads(arguments), Gathered::Open(open)) => {
                api::workloads::workloads(&self.owners(&open), arguments)
            }
            (Request::Peers(arguments), _) => {
                api::peers::peers(&self.conversations, self.aggregates.window(), arguments, boot_ns())
            }
            (Request::Dns(arguments), _) => api::dns::dns(&self.names.service, &self.processes, arguments),
            (Request::Overview, _) => api::overview::overview(&self.sources(&self.enrichment.figures())),
            (Request::Rtt(arguments), _) => api::rtt::rtt(&self.owners(&none), arguments),
            // The others are about flows, above.
            (_, _) => api::ports::ports(&self.table, &self.processes),
        };
        count_cost(&question, began_ns);
        let _ = question.reply.send(Ok(answer));
    }

    fn owners<'a>(&'a self, open: &'a OpenFlows) -> api::owners::Owners<'a> {
        api::owners::Owners {
            processes: &self.processes,
            aggregates: &self.aggregates,
            open,
            now_ns: boot_ns(),
            cgroup_root: self.options.cgroup_root.as_deref(),
        }
    }

    pub(super) fn sources<'a>(&'a self, enrichment: &'a EnrichmentFigures) -> api::stats::Sources<'a> {
        api::stats::Sources {
            kernel: &self.kernel,
            workers: &self.workers,
            table: &self.table,
            processes: &self.processes,
            aggregates: &self.aggregates,
            conversations: &self.conversations,
            names: &self.names,
            nat_failed: self.translation.as_ref().map_or(0, |translation| translation.failed()),
            enrichment,
            runtimes: &self.enrichment.runtimes,
            naming: &self.enrichment.naming,
            exporters: &self.exporters,
            rtt: &self.rtt,
            totals: &self.totals,
            limits: &self.options.limits,
            threads: &self.options.threads,
            user: &self.options.user,
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
