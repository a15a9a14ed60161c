//! The one way to start a thread. A thread that ends unasked is noticed: an essential one ends the agent, any other is
//! started again, after pauses that grow.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::model::clock::boot_ns;
use crate::privileges;

/// Pause before a thread is started again; it doubles up to the longest, and begins anew after a while without a fault.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
const HEALTHY_NS: u64 = 60_000_000_000;
/// Three times the weight of a usual program (sched(7)).
const PREFERRED_NICE: i32 = -5;
/// For tests: the thread of this name panics when it first says that it makes progress.
const PANIC_VARIABLE: &str = "SOCKEYE_TEST_PANIC";

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ThreadState {
    /// It has something to do.
    Working,
    /// It waits for something to do.
    Waiting,
    /// It has died, and is about to be started again.
    Restarting,
    /// It was asked to end.
    Ended,
}

impl ThreadState {
    const ALL: [Self; 4] = [Self::Working, Self::Waiting, Self::Restarting, Self::Ended];

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Waiting => "waiting",
            Self::Restarting => "restarting",
            Self::Ended => "ended",
        }
    }
}

/// What comes of the end of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Without it the agent is blind, and ends.
    Essential,
    /// It is started again.
    Restarted,
    /// Whoever started it sees to that.
    Watched,
}

/// Figures of one thread, written by it and read by whoever asks.
#[derive(Debug)]
pub struct ThreadStats {
    /// As the kernel knows it, too.
    pub name: String,
    /// What comes of its end.
    pub role: Role,
    /// The kernel's number of it; 0 before it runs.
    pub tid: AtomicI32,
    /// How often it was started again.
    pub restarts: AtomicU64,
    /// Landlock keeps it from files.
    pub landlock: AtomicBool,
    state: AtomicU8,
    progress_ns: AtomicU64,
}

impl ThreadStats {
    /// What it does.
    #[must_use]
    pub fn state(&self) -> ThreadState {
        ThreadState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// When it last said that it makes progress, `CLOCK_BOOTTIME` nanoseconds.
    #[must_use]
    pub fn progress_ns(&self) -> u64 {
        self.progress_ns.load(Ordering::Relaxed)
    }

    fn set(&self, state: ThreadState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// Keeps the kernel from putting pages of this process together to huge ones: its thread for that has the lowest priority of
/// all, and all threads that want memory wait for it, on a busy host for half a minute.
pub fn refuse_huge_pages() {
    // It fails on kernels without huge pages only.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// With it a thread says that it is alive.
pub struct Pulse {
    stats: Arc<ThreadStats>,
    threads: Threads,
}

impl Pulse {
    /// It makes progress, and has something to do.
    pub fn working(&self) {
        self.stats.progress_ns.store(boot_ns(), Ordering::Relaxed);
        self.stats.set(ThreadState::Working);
        self.threads.inject(&self.stats.name);
    }

    /// It waits for something to do from now on.
    pub fn waiting(&self) {
        self.stats.progress_ns.store(boot_ns(), Ordering::Relaxed);
        self.stats.set(ThreadState::Waiting);
    }

    /// Lets it run before the programs of the host when there are not enough CPUs: what it does is little, and must not wait.
    /// Without `CAP_SYS_NICE` it stays as it is.
    pub fn prefer(&self) {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), PREFERRED_NICE);
    }

    /// The agent is ending.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.threads.0.stopping.load(Ordering::Relaxed)
    }
}

/// A thread without which the agent is blind, and which makes no progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// Its name.
    pub thread: String,
}

struct Shared {
    all: Mutex<Vec<Arc<ThreadStats>>>,
    stopping: AtomicBool,
    /// Why the agent must end.
    death: OnceLock<String>,
    /// The same of a thread that has ended in order: another one that died may have taken its work away.
    end: OnceLock<String>,
    on_failure: Box<dyn Fn() + Send + Sync>,
    panic_in: Option<String>,
    panicked: AtomicBool,
}

/// All threads of the agent.
#[derive(Clone)]
pub struct Threads(Arc<Shared>);

impl Threads {
    /// None yet. `on_failure` is called when an essential thread has ended unasked.
    #[must_use]
    pub fn new(on_failure: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared {
            all: Mutex::default(),
            stopping: AtomicBool::new(false),
            death: OnceLock::new(),
            end: OnceLock::new(),
            on_failure: Box::new(on_failure),
            panic_in: std::env::var(PANIC_VARIABLE).ok(),
            panicked: AtomicBool::new(false),
        }))
    }

    /// Starts a thread without which the agent is blind. If it ends before [`Self::stop`], the agent ends.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn essential(&self, name: &str, body: impl FnOnce(&Pulse) + Send + 'static) -> io::Result<JoinHandle<()>> {
        let pulse = self.add(name, Role::Essential);
        thread::Builder::new().name(name.into()).spawn(move || {
            pulse.begin();
            let died = catch_unwind(AssertUnwindSafe(|| body(&pulse))).is_err();
            pulse.stats.set(ThreadState::Ended);
            let (shared, name) = (&pulse.threads.0, &pulse.stats.name);
            if died {
                let what = "has died, which is a bug: please report what it said above";
                let _ = shared.death.set(format!("the thread {name} {what}"));
            } else if pulse.is_stopping() {
                return;
            } else {
                let _ = shared.end.set(format!("the thread {name} has ended"));
            }
            (shared.on_failure)();
        })
    }

    /// Starts a thread that is started again if it panics, or fails. `body` succeeds when there is nothing left to do for it.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn restarted(
        &self,
        name: &str,
        mut body: impl FnMut(&Pulse) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let pulse = self.add(name, Role::Restarted);
        thread::Builder::new().name(name.into()).spawn(move || {
            let mut pause = PAUSE;
            loop {
                pulse.begin();
                let begun_ns = boot_ns();
                // A panic has been logged.
                let fault = match catch_unwind(AssertUnwindSafe(|| body(&pulse))) {
                    Ok(Ok(())) => break,
                    Ok(Err(err)) => format!("{err:#}"),
                    Err(_) => "it has died".into(),
                };
                if pulse.is_stopping() {
                    break;
                }
                if boot_ns() - begun_ns >= HEALTHY_NS {
                    pause = PAUSE;
                }
                pulse.stats.restarts.fetch_add(1, Ordering::Relaxed);
                pulse.stats.set(ThreadState::Restarting);
                let (name, pause_ms) = (&pulse.stats.name, pause.as_millis());
                tracing::error!("the thread {name} is started again in {pause_ms} ms: {fault}");
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            }
            pulse.stats.set(ThreadState::Ended);
        })
    }

    /// Starts a thread whose end the caller notices, and makes up for.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn watched(&self, name: &str, body: impl FnOnce(&Pulse) + Send + 'static) -> io::Result<JoinHandle<()>> {
        let pulse = self.add(name, Role::Watched);
        thread::Builder::new().name(name.into()).spawn(move || {
            pulse.begin();
            // A panic has been logged.
            let _ = catch_unwind(AssertUnwindSafe(|| body(&pulse)));
            pulse.stats.set(ThreadState::Ended);
        })
    }

    /// From now on threads may end.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Why the agent must end, if an essential thread has ended unasked.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.0.death.get().or(self.0.end.get()).map(String::as_str)
    }

    /// Figures of each, in the order in which they were started.
    #[must_use]
    pub fn stats(&self) -> Vec<Arc<ThreadStats>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An essential thread that has not said for so long that it makes progress. Each of them works or wakes every other second at least.
    #[must_use]
    pub fn stuck(&self, patience: Duration) -> Option<Stuck> {
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let since_ns = boot_ns().saturating_sub(patience_ns);
        let all = self.stats();
        let stuck = all.iter().find(|stats| stats.role == Role::Essential && stats.progress_ns() < since_ns);
        stuck.map(|stats| Stuck { thread: stats.name.clone() })
    }

    fn add(&self, name: &str, role: Role) -> Pulse {
        let stats = Arc::new(ThreadStats {
            name: name.into(),
            role,
            tid: AtomicI32::new(0),
            restarts: AtomicU64::new(0),
            landlock: AtomicBool::new(false),
            state: AtomicU8::new(ThreadState::Working as u8),
            progress_ns: AtomicU64::new(boot_ns()),
        });
        let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|stats| stats.role != Role::Watched || stats.state() != ThreadState::Ended);
        all.push(Arc::clone(&stats));
        drop(all);
        Pulse { stats, threads: self.clone() }
    }

    /// A fault on demand, once.
    fn inject(&self, name: &str) {
        if self.0.panic_in.as_deref() == Some(name) && !self.0.panicked.swap(true, Ordering::Relaxed) {
            panic!("as {PANIC_VARIABLE} asks for");
        }
    }
}

impl Pulse {
    fn begin(&self) {
        self.stats.tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        self.stats.set(ThreadState::Waiting);
        let is_confined = privileges::confine(&self.stats.name);
        self.stats.landlock.store(is_confined, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    #[test]
    fn an_essential_thread_that_ends_unasked_ends_the_agent() {
        let (failed, failures) = mpsc::channel();
        let threads = Threads::new(move || failed.send(()).unwrap());
        threads.essential("sockeye-dies", |_| panic!("for the test")).unwrap().join().unwrap();
        failures.recv().unwrap();
        assert!(threads.failure().unwrap().starts_with("the thread sockeye-dies has died"));

        let threads = Threads::new(|| {});
        threads.essential("sockeye-ends", |_| {}).unwrap().join().unwrap();
        assert_eq!(threads.failure(), Some("the thread sockeye-ends has ended"));
        threads.essential("sockeye-dies", |_| panic!("for the test")).unwrap().join().unwrap();
        assert!(threads.failure().unwrap().contains("sockeye-dies"), "that is why the other one has ended");

        let threads = Threads::new(|| panic!("nothing has failed"));
        threads.stop();
        threads.essential("sockeye-asked", |_| {}).unwrap().join().unwrap();
        assert_eq!((threads.failure(), threads.stats()[0].state()), (None, ThreadState::Ended));
    }

    #[test]
    fn an_essential_thread_that_makes_no_progress_is_stuck() {
        let threads = Threads::new(|| {});
        let (go_on, told) = mpsc::channel::<()>();
        let (worked, works) = mpsc::channel();
        let patience = Duration::from_millis(50);
        threads.watched("sockeye-idle", |_| {}).unwrap().join().unwrap();
        let thread = threads.essential("sockeye-hangs", move |pulse| {
            for () in told {
                pulse.working();
                worked.send(()).unwrap();
            }
        });
        thread::sleep(2 * patience);
        assert_eq!(threads.stuck(patience), Some(Stuck { thread: "sockeye-hangs".into() }), "and not the idle one");
        assert_eq!(threads.stuck(Duration::MAX), None);
        go_on.send(()).unwrap();
        works.recv().unwrap();
        assert_eq!(threads.stuck(Duration::from_secs(60)), None);
        threads.stop();
        drop(go_on);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn any_other_is_started_again() {
        let threads = Threads::new(|| panic!("nothing essential has failed"));
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let thread = threads.restarted("sockeye-frail", move |pulse| {
            pulse.working();
            match counted.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("for the test"),
                1 => anyhow::bail!("for the test"),
                _ => Ok(()),
            }
        });
        thread.unwrap().join().unwrap();
        let stats = threads.stats();
        assert_eq!((runs.load(Ordering::Relaxed), stats[0].restarts.load(Ordering::Relaxed)), (3, 2));
        assert!(stats[0].state() == ThreadState::Ended && stats[0].tid.load(Ordering::Relaxed) > 0);
    }
}
