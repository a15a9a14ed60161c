//! Where questions wait for the threads that look for answers. Each desk has a bound: who finds it full is told so, and
//! asks again later. A look at /proc or at a file system may never come back, so each question has a deadline. What takes
//! longer is given up, and another thread takes the place of the one that is stuck, a few times.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::threads::{Pulse, Threads};

/// Threads of a desk. When all are stuck, none takes the next question until one comes back.
pub const THREADS_MAX: usize = 8;
/// How often it is looked after them, or more often if a deadline is short.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// What a desk is for.
#[derive(Debug, Clone, Copy)]
pub struct DeskOptions {
    /// Of its threads, at most 15 bytes.
    pub thread: &'static str,
    /// What is asked about, in the plural.
    pub about: &'static str,
    /// Questions that wait.
    pub waiting_max: usize,
    /// How long the answer to one may take.
    pub deadline: Duration,
}

/// For `ctl stats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeskFigures {
    /// Questions that wait.
    pub waiting: u64,
    /// How long ago the oldest was asked that has no answer yet, milliseconds.
    pub oldest_ms: u64,
    /// Questions.
    pub asked: u64,
    /// Those that found too many waiting.
    pub not_asked: u64,
    /// Those without an answer by their deadline, or about what a thread is stuck at.
    pub given_up: u64,
    /// Threads that are stuck.
    pub stuck: u64,
    /// Threads that took the place of one that was stuck or has died.
    pub replaced: u64,
}

/// A question to a desk.
pub trait Question: Send + Sync + 'static {
    /// The answer.
    type Answer: Send + 'static;

    /// What else is stuck where a thread is stuck with this question: the rest of it is given up at once.
    fn group(&self) -> u64;

    /// The answer when there is none.
    fn unknown(&self) -> Self::Answer;
}

/// A desk. Its threads end when it is dropped.
pub struct Desk<Q: Question> {
    shared: Arc<Shared<Q>>,
}

struct Shared<Q> {
    options: DeskOptions,
    state: Mutex<State<Q>>,
    came: Condvar,
    closed: Condvar,
    asked: AtomicU64,
    not_asked: AtomicU64,
    given_up: AtomicU64,
    replaced: AtomicU64,
    /// It was said.
    all_stuck: AtomicBool,
}

struct State<Q> {
    waiting: VecDeque<(Instant, Arc<Q>)>,
    closed: bool,
    at_work: Vec<Work<Q>>,
}

/// A question that a thread has taken.
struct Work<Q> {
    thread: u64,
    question: Arc<Q>,
    asked: Instant,
    begun: Instant,
    given_up: bool,
}

impl<Q: Question> Desk<Q> {
    /// A desk that nobody serves yet.
    #[must_use]
    pub fn new(options: DeskOptions) -> Self {
        let state = State { waiting: VecDeque::new(), closed: false, at_work: Vec::new() };
        let counter = || AtomicU64::new(0);
        Self {
            shared: Arc::new(Shared {
                options,
                state: Mutex::new(state),
                came: Condvar::new(),
                closed: Condvar::new(),
                asked: counter(),
                not_asked: counter(),
                given_up: counter(),
                replaced: counter(),
                all_stuck: AtomicBool::new(false),
            }),
        }
    }

    /// Asks, and does not wait.
    ///
    /// # Errors
    /// Too many wait: the question is given back.
    pub fn ask(&self, question: Q) -> Result<(), Q> {
        let mut state = self.shared.lock();
        if state.waiting.len() >= self.shared.options.waiting_max {
            drop(state);
            if self.shared.not_asked.fetch_add(1, Ordering::Relaxed) == 0 {
                let about = self.shared.options.about;
                tracing::warn!("too many questions about {about} wait: some are asked later, and counted");
            }
            return Err(question);
        }
        state.waiting.push_back((Instant::now(), Arc::new(question)));
        drop(state);
        self.shared.asked.fetch_add(1, Ordering::Relaxed);
        self.shared.came.notify_one();
        Ok(())
    }

    /// Figures.
    #[must_use]
    pub fn figures(&self) -> DeskFigures {
        let state = self.shared.lock();
        let at_work = state.at_work.iter().filter(|work| !work.given_up).map(|work| work.asked);
        let oldest = at_work.chain(state.waiting.front().map(|(asked, _)| *asked)).min();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeskFigures {
            waiting: state.waiting.len() as u64,
            oldest_ms: oldest.map_or(0, |asked| asked.elapsed().as_millis() as u64),
            asked: get(&self.shared.asked),
            not_asked: get(&self.shared.not_asked),
            given_up: get(&self.shared.given_up),
            stuck: state.stuck() as u64,
            replaced: get(&self.shared.replaced),
        }
    }

    /// Starts a thread that answers, and the one that watches over it. `worker` makes what answers, anew for each thread; `tell`
    /// is told the answers.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn serve<W, T>(
        &self,
        threads: &Threads,
        worker: impl Fn() -> W + Send + Sync + 'static,
        tell: impl Fn() -> T + Send + Sync + 'static,
    ) -> io::Result<()>
    where
        W: FnMut(&Q) -> Q::Answer,
        T: FnMut(Q::Answer),
    {
        let shared = Arc::clone(&self.shared);
        let makers = Arc::new((worker, tell));
        let makers_of_next = Arc::clone(&makers);
        let all = threads.clone();
        let start = move |number: u64| {
            let (shared, makers) = (Arc::clone(&shared), Arc::clone(&makers_of_next));
            let name = shared.options.thread;
            all.watched(name, move |pulse| shared.work(pulse, number, makers.0(), makers.1()))
        };
        let mut at_work = vec![(0, start(0)?)];
        let shared = Arc::clone(&self.shared);
        threads.restarted("sockeye-watch", move |pulse| {
            shared.watch(pulse, &mut at_work, &start, makers.1());
            Ok(())
        })?;
        Ok(())
    }
}

impl<Q: Question> Drop for Desk<Q> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.came.notify_all();
        self.shared.closed.notify_all();
    }
}

impl<Q: Question> Shared<Q> {
    fn lock(&self) -> MutexGuard<'_, State<Q>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers until the desk is closed, or another thread has taken its place.
    fn work(
        &self,
        pulse: &Pulse,
        thread: u64,
        mut answer: impl FnMut(&Q) -> Q::Answer,
        mut tell: impl FnMut(Q::Answer),
    ) {
        loop {
            pulse.waiting();
            let Some((question, is_stuck)) = self.take(thread) else { return };
            pulse.working();
            if is_stuck {
                self.given_up.fetch_add(1, Ordering::Relaxed);
                tell(question.unknown());
                continue;
            }
            let found = answer(&question);
            let mut state = self.lock();
            let given_up = state.at_work.iter().position(|work| work.thread == thread);
            let given_up = given_up.is_none_or(|index| state.at_work.swap_remove(index).given_up);
            drop(state);
            if given_up {
                // The question has its answer, and another thread its place.
                return;
            }
            tell(found);
        }
    }

    /// The next question, and whether it is about what a thread is stuck at. `None`: there will be none.
    fn take(&self, thread: u64) -> Option<(Arc<Q>, bool)> {
        let mut state = self.lock();
        loop {
            if let Some((asked, question)) = state.waiting.pop_front() {
                let group = question.group();
                let is_stuck = state.at_work.iter().any(|work| work.given_up && work.question.group() == group);
                if !is_stuck {
                    let (question, begun) = (Arc::clone(&question), Instant::now());
                    state.at_work.push(Work { thread, question, asked, begun, given_up: false });
                }
                return Some((question, is_stuck));
            }
            if state.closed {
                return None;
            }
            state = self.came.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives up what takes too long, and replaces the threads that are stuck or have died, until the desk is closed.
    fn watch(
        &self,
        pulse: &Pulse,
        threads: &mut Vec<(u64, JoinHandle<()>)>,
        start: &dyn Fn(u64) -> io::Result<JoinHandle<()>>,
        mut tell: impl FnMut(Q::Answer),
    ) {
        let every = WATCH_EVERY.min(self.options.deadline / 4);
        loop {
            pulse.waiting();
            let mut state = self.lock();
            if !state.closed {
                state = self.closed.wait_timeout(state, every).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.closed {
                // Those that are stuck end when they come back.
                return;
            }
            pulse.working();
            let mut given_up = state.late(self.options.deadline);
            given_up
                .extend(threads.extract_if(.., |(_, thread)| thread.is_finished()).filter_map(|(n, _)| state.died(n)));
            let stuck = state.stuck();
            drop(state);
            self.given_up(given_up, stuck, &mut tell);
            if stuck >= threads.len()
                && threads.len() < THREADS_MAX
                && let number = self.replaced.load(Ordering::Relaxed) + 1
                && let Ok(thread) = start(number)
            {
                threads.push((number, thread));
                self.replaced.store(number, Ordering::Relaxed);
            }
        }
    }

    fn given_up(&self, questions: Vec<Arc<Q>>, stuck: usize, tell: &mut impl FnMut(Q::Answer)) {
        let about = self.options.about;
        for question in questions {
            if self.given_up.fetch_add(1, Ordering::Relaxed) == 0 {
                let seconds = self.options.deadline.as_secs_f32();
                tracing::warn!(
                    "no answer about {about} within {seconds} s: what is not known is left out, and counted"
                );
            }
            if stuck == THREADS_MAX && !self.all_stuck.swap(true, Ordering::Relaxed) {
                tracing::warn!("all {stuck} threads that ask about {about} hang: no other asks until one comes back");
            }
            tell(question.unknown());
        }
    }
}

impl<Q> State<Q> {
    fn stuck(&self) -> usize {
        self.at_work.iter().filter(|work| work.given_up).count()
    }

    /// Questions that take too long just now.
    fn late(&mut self, deadline: Duration) -> Vec<Arc<Q>> {
        let late = self.at_work.iter_mut().filter(|work| !work.given_up && work.begun.elapsed() > deadline);
        late.map(|work| {
            work.given_up = true;
            Arc::clone(&work.question)
        })
        .collect()
    }

    /// What a thread was working on that has ended, if that has no answer yet.
    fn died(&mut self, thread: u64) -> Option<Arc<Q>> {
        let index = self.at_work.iter().position(|work| work.thread == thread)?;
        let work = self.at_work.swap_remove(index);
        (!work.given_up).then_some(work.question)
    }
}
