//! The package that an executable came with: dpkg's and rpm's databases, on a thread of their own.
//!
//! dpkg's file lists are read directly, the host's into an index of hashes, a container's for one executable at a time,
//! never leaving the container's root. rpm's database has several formats that only rpm reads well, so `rpm` is asked,
//! and only about the host: a container's database is input that nobody should let a C library parse as root.

pub(crate) mod dpkg;
mod rpm;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use self::dpkg::DpkgIndex;
use crate::owners::desk::{Desk, DeskOptions, Question};
use crate::owners::process::{LookupReply, Process};
use crate::threads::Threads;

/// How often the host's database is looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Executables whose answer is remembered, and what their paths may take, bytes.
const CACHE_MAX: usize = 1 << 14;
const CACHE_BYTES_MAX: usize = 4 << 20;

/// The desk of these questions. A database on a slow disk takes seconds the first time.
pub const DESK: DeskOptions = DeskOptions {
    thread: "sockeye-package",
    about: "packages",
    waiting_max: 1 << 12,
    deadline: Duration::from_secs(15),
};

/// A process whose package is wanted.
pub struct PackageRequest {
    /// Everything else is known.
    pub process: Process,
    /// It lives in a container.
    pub in_container: bool,
    /// The executable of its parent, and whether that one lives in a container.
    pub parent: Option<(String, bool)>,
}

impl Question for PackageRequest {
    type Answer = LookupReply;

    /// A container whose database does not answer has one thread at most, and so has the host.
    fn group(&self) -> u64 {
        let parent_in_container = self.parent.as_ref().is_some_and(|(_, in_container)| *in_container);
        if self.in_container || parent_in_container { self.process.cgroup_id } else { 0 }
    }

    fn unknown(&self) -> LookupReply {
        reply(self.process.clone())
    }
}

fn reply(process: Process) -> LookupReply {
    LookupReply { key: process.key, process: Some(process), complete: true, cgroup: None }
}

/// Figures of what was left out.
#[derive(Debug, Default)]
pub struct PackageStats {
    /// Lists, lines and entries beyond the bounds.
    pub left_out: AtomicU64,
    /// `rpm` was ended at its deadline.
    pub rpm_killed: AtomicU64,
}

/// Starts the threads. They end when the desk is dropped.
///
/// # Errors
/// If one cannot be started.
pub fn start(
    threads: &Threads,
    desk: &Desk<PackageRequest>,
    found: SyncSender<Box<LookupReply>>,
    stats: Arc<PackageStats>,
) -> io::Result<()> {
    let worker = move || {
        let mut packages = Packages::new(Arc::clone(&stats));
        move |question: &PackageRequest| reply(packages.complete(question))
    };
    let tell = move || {
        let found = found.clone();
        move |answer| {
            let _ = found.send(Box::new(answer));
        }
    };
    desk.serve(threads, worker, tell)
}

struct Packages {
    host: Option<DpkgIndex>,
    looked: Option<Instant>,
    /// By cgroup (0 for the host) and executable.
    cache: HashMap<(u64, String), Option<String>, ahash::RandomState>,
    cache_bytes: usize,
    stats: Arc<PackageStats>,
}

impl Packages {
    fn new(stats: Arc<PackageStats>) -> Self {
        Self { host: None, looked: None, cache: HashMap::default(), cache_bytes: 0, stats }
    }

    fn complete(&mut self, question: &PackageRequest) -> Process {
        let mut process = question.process.clone();
        let (pid, ppid, cgroup_id) = (process.key.pid, process.ppid, process.cgroup_id);
        process.package = process.exe.as_deref().and_then(|exe| self.of(exe, pid, cgroup_id, question.in_container));
        process.parent_package =
            question.parent.as_ref().and_then(|(exe, in_container)| self.of(exe, ppid, cgroup_id, *in_container));
        process
    }

    /// The package of an executable, as the process `pid` sees it.
    fn of(&mut self, exe: &str, pid: u32, cgroup_id: u64, in_container: bool) -> Option<String> {
        self.follow_changes();
        let key = (if in_container { cgroup_id } else { 0 }, exe.to_owned());
        if let Some(known) = self.cache.get(&key) {
            return known.clone();
        }
        let package = if in_container { self.container_package(pid, exe) } else { self.host_package(exe) };
        if self.cache.len() >= CACHE_MAX || self.cache_bytes >= CACHE_BYTES_MAX {
            self.forget();
        }
        self.cache_bytes += exe.len() + package.as_ref().map_or(0, String::len);
        self.cache.insert(key, package.clone());
        package
    }

    fn forget(&mut self) {
        self.cache.clear();
        self.cache_bytes = 0;
    }

    fn host_package(&self, exe: &str) -> Option<String> {
        if let Some(package) = self.host.as_ref().and_then(|index| index.find(exe)) {
            return Some(package);
        }
        let (package, killed) = rpm::package(exe);
        if killed && self.stats.rpm_killed.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("rpm does not answer and is ended: packages are left out, and counted");
        }
        package
    }

    fn container_package(&self, pid: u32, exe: &str) -> Option<String> {
        let (package, left_out) = dpkg::of_container(pid, exe);
        self.left_out(left_out, "a container");
        package
    }

    fn left_out(&self, count: u64, whose: &str) {
        if count > 0 && self.stats.left_out.fetch_add(count, Ordering::Relaxed) == 0 {
            tracing::warn!("the packages of {whose} are more than is read: the rest is left out, and counted");
        }
    }

    /// Packages are installed while the agent runs.
    fn follow_changes(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let modified = fs::metadata(Path::new("/").join(dpkg::LISTS)).and_then(|meta| meta.modified()).ok();
        if self.host.as_ref().and_then(|index| index.modified) != modified || self.host.is_none() {
            let index = DpkgIndex::read(Path::new("/"), modified);
            self.left_out(index.left_out, "the host");
            self.host = Some(index);
            self.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_bound_also_for_long_paths() {
        let mut packages = Packages::new(Arc::default());
        for i in 0..3000 {
            // Of no process: there is no container to look into.
            packages.of(&format!("/{i}{}", "x".repeat(4000)), 0, 1, true);
            assert!(packages.cache_bytes < CACHE_BYTES_MAX + 5000);
        }
        assert!(packages.cache.len() < 1100);
    }
}
