//! What the scrape thread finds out by itself: of the process, and of its threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use procfs::process::{LimitValue, Process, Stat};

use crate::model::clock::{boot_ns, ticks_ns, unix_ns};
use crate::threads::{ThreadState, Threads};

/// Threads of one name.
#[derive(Debug, Clone, Default)]
pub(super) struct ThreadFigures {
    pub(super) cpu_s: f64,
    /// The longest.
    pub(super) quiet_s: f64,
    /// How many have something to do.
    pub(super) working: u64,
    pub(super) restarts: u64,
}

/// Figures of one moment. What cannot be read is not there.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnFigures {
    pub(super) threads: BTreeMap<String, ThreadFigures>,
    pub(super) healthy: bool,
    pub(super) requests: BTreeMap<u16, u64>,
    pub(super) clients_cut: u64,
    pub(super) bpf_stats: Option<u8>,
    pub(super) cpu_s: Option<f64>,
    pub(super) memory_bytes: Option<f64>,
    pub(super) started_unix_s: Option<f64>,
    pub(super) open_fds: Option<f64>,
    pub(super) max_fds: Option<f64>,
}

/// CPU time by name of the thread. A thread that is gone, or was started again, keeps what it has used.
#[derive(Default)]
pub(super) struct CpuClock {
    seen: HashMap<i32, u64>,
    ticks: BTreeMap<String, u64>,
}

impl CpuClock {
    /// Takes what threads have used since they were started, clock ticks.
    fn take(&mut self, threads: &[(String, i32, u64)]) {
        let before = std::mem::take(&mut self.seen);
        for (name, tid, ticks) in threads {
            let last = before.get(tid).copied().unwrap_or(0);
            // Less than before: another thread that was given the same number.
            let more = if *ticks < last { *ticks } else { ticks - last };
            *self.ticks.entry(name.clone()).or_default() += more;
            self.seen.insert(*tid, *ticks);
        }
    }
}

impl OwnFigures {
    /// Reads them.
    pub(super) fn read(threads: &Threads, clock: &mut CpuClock) -> Self {
        let own = Process::myself().ok();
        let mut figures = Self::of_process(own.as_ref());
        let (mut used, now_ns) = (Vec::new(), boot_ns());
        for stats in threads.stats() {
            let tid = stats.tid.load(Ordering::Relaxed);
            let stat = own.as_ref().and_then(|own| own.task_from_tid(tid).ok()?.stat().ok());
            used.extend(stat.map(|stat| (stats.name.clone(), tid, stat.utime + stat.stime)));
            let thread = figures.threads.entry(stats.name.clone()).or_default();
            thread.quiet_s = thread.quiet_s.max(now_ns.saturating_sub(stats.progress_ns()) as f64 / 1e9);
            thread.working += u64::from(stats.state() == ThreadState::Working);
            thread.restarts += stats.restarts.load(Ordering::Relaxed);
        }
        clock.take(&used);
        for (name, ticks) in &clock.ticks {
            figures.threads.entry(name.clone()).or_default().cpu_s = seconds(*ticks);
        }
        figures
    }

    fn of_process(own: Option<&Process>) -> Self {
        let stat: Option<Stat> = own.and_then(|own| own.stat().ok());
        let boot_unix_s = unix_ns().saturating_sub(boot_ns()) as f64 / 1e9;
        let limit = own.and_then(|own| own.limits().ok()).map(|limits| limits.max_open_files.soft_limit);
        let enabled = std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
        Self {
            bpf_stats: enabled.ok().and_then(|text| text.trim().parse().ok()),
            cpu_s: stat.as_ref().map(|stat| seconds(stat.utime + stat.stime)),
            memory_bytes: stat.as_ref().map(|stat| (stat.rss * procfs::page_size()) as f64),
            started_unix_s: stat.as_ref().map(|stat| boot_unix_s + seconds(stat.starttime)),
            open_fds: own.and_then(|own| own.fd_count().ok()).map(|count| count as f64),
            max_fds: limit.map(|limit| match limit {
                LimitValue::Value(max) => max as f64,
                LimitValue::Unlimited => f64::INFINITY,
            }),
            ..Self::default()
        }
    }
}

fn seconds(ticks: u64) -> f64 {
    ticks_ns(ticks) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_a_thread_never_goes_back() {
        let mut clock = CpuClock::default();
        let mut after = |threads: &[(&str, i32, u64)]| {
            let threads: Vec<_> = threads.iter().map(|(name, tid, ticks)| ((*name).to_owned(), *tid, *ticks)).collect();
            clock.take(&threads);
            clock.ticks["a"]
        };
        assert_eq!(after(&[("a", 1, 10), ("a", 2, 5), ("b", 3, 100)]), 15);
        assert_eq!(after(&[("a", 1, 12), ("a", 2, 5)]), 17);
        assert_eq!(after(&[("a", 1, 12)]), 17, "one is gone");
        assert_eq!(after(&[("a", 1, 12), ("a", 4, 3)]), 20, "started again");
        assert_eq!(after(&[("a", 1, 2)]), 22, "another one of the same number");
    }

    #[test]
    fn the_process_is_this_one() {
        let own = OwnFigures::read(&Threads::new(|| {}), &mut CpuClock::default());
        assert!(own.memory_bytes.unwrap() > 1e6 && own.open_fds.unwrap() > 2.0 && own.cpu_s.is_some());
        let now_s = unix_ns() as f64 / 1e9;
        assert!((now_s - 3600.0..now_s + 1.0).contains(&own.started_unix_s.unwrap()), "{own:?}");
    }
}
