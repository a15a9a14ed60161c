//! Control's part in finding out who owns sockets: questions to the threads that ask /proc and the container runtimes, and the
//! kernel's walk over open files.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;

use super::{Control, Enrichment};
use crate::api::questions::EnrichmentFigures;
use crate::model::clock::{boot_ns, thread_cpu_ns};
use crate::owners::{packages, procfs};

/// It is looked at who holds sockets so often, sooner if that is wanted, and less often if it takes more than one part in so
/// many of a CPU.
pub(super) const WALK_EVERY: Duration = Duration::from_secs(10);
const WALK_WANTED_EVERY: Duration = Duration::from_secs(1);
const WALK_SHARE: u32 = 200;

impl Enrichment {
    pub(super) fn figures(&self) -> EnrichmentFigures {
        EnrichmentFigures {
            questions: [
                (procfs::DESK.about, self.lookup_requests.figures()),
                (packages::DESK.about, self.package_requests.figures()),
                ("containers", self.naming.figures()),
            ],
            packages_left_out: self.packages.left_out.load(Ordering::Relaxed),
            rpm_killed: self.packages.rpm_killed.load(Ordering::Relaxed),
        }
    }
}

impl Control {
    pub(super) fn ask_for_processes(&mut self) {
        let now_ns = boot_ns();
        for owner in self.table.take_new_owners() {
            self.processes.get(owner, now_ns);
        }
        for question in self.processes.take_requests() {
            if let Err(question) = self.enrichment.lookup_requests.ask(question) {
                self.processes.not_asked(&question);
            }
        }
        let mut questions = self.processes.workloads.take_requests().into_iter();
        while let Some(question) = questions.next() {
            if let Err(TrySendError::Full(question)) = self.enrichment.name_requests.try_send(question) {
                let first = self.processes.workloads.not_asked(std::iter::once(question).chain(questions));
                self.enrichment.naming.refused.fetch_add(first, Ordering::Relaxed);
                return;
            }
        }
    }

    pub(super) fn take_replies(&mut self) {
        let now_ns = boot_ns();
        while let Ok(found) = self.enrichment.lookup_replies.try_recv() {
            self.processes.found(*found, now_ns);
        }
        while let Ok(named) = self.enrichment.name_replies.try_recv() {
            self.processes.workloads.named(named);
        }
    }

    /// The owner of a socket is who uses it, but a server that only writes, and a listener, tell of nobody. Before a scan: it
    /// tells what was found.
    pub(super) fn walk_if_due(&mut self, now: Instant) {
        let alive = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
        let owners: BTreeSet<u32> = self.table.listeners().map(|listener| listener.owner.pid).collect();
        let gone: BTreeSet<u32> = owners.into_iter().filter(|pid| *pid != 0 && !alive(pid)).collect();
        let wanted = self.table.take_awaits_owner() | !gone.is_subset(&self.gone);
        if now < self.due.walk[usize::from(!wanted)] {
            return;
        }
        self.gone = gone;
        let cpu_ns = thread_cpu_ns();
        let walked = self.kernel.holders().walk().map(|()| 0);
        self.count_error(walked, "walk over open files");
        let affordable = Duration::from_nanos(thread_cpu_ns() - cpu_ns) * WALK_SHARE;
        self.due.walk = [WALK_WANTED_EVERY, WALK_EVERY].map(|wait| now + wait.max(affordable));
    }
}
