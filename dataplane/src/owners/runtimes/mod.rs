//! Asking container runtimes for the names that belong to an id. The only place with an async runtime: one thread, off
//! the record path. Runtimes may be down, slow, denied, or reply nonsense: flows go out with the id meanwhile, the
//! question is asked again with growing pauses, and everything is counted.

mod client;
pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod docker;
pub mod messages;
mod places;
mod podman;
mod recent;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;

pub use client::{RuntimeClient, Snapshot};
pub use places::RuntimeList;

use crate::owners::cgroup::{ContainerRef, Runtime};
use crate::owners::desk::DeskFigures;
use crate::owners::workload::{NameReply, NameRequest, Names};
use crate::threads::{Pulse, Threads};
use client::Reply;
use cri::Wanted;

/// Questions that are on their way to runtimes at the same time.
const CONCURRENT: usize = 4;
/// Questions that wait for their turn or for a runtime to come back. While there are as many, no other is taken.
const WAITING_MAX: usize = 4096;
/// Questions on the way to this thread.
pub const QUEUE_MAX: usize = 1024;
/// Replies on the way back, and how soon it is tried again when there is no room.
pub const REPLIES_MAX: usize = 1 << 11;
const NO_ROOM_PAUSE: Duration = Duration::from_millis(50);
/// A runtime that answers, and does not know the container, is asked again: a container is listed a little later than
/// its processes are there.
const UNKNOWN_RETRIES: u32 = 3;
/// First pause before asking again; it doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A name is not worth asking for any more when its place has been forgotten.
const GIVE_UP: Duration = Duration::from_secs(600);

/// Figures about all questions.
#[derive(Debug, Default)]
pub struct NamingStats {
    /// Questions.
    asked: AtomicU64,
    /// Containers that no runtime knows.
    pub unknown: AtomicU64,
    /// Containers without a name because runtimes did not answer for too long.
    pub gave_up: AtomicU64,
    /// Questions that were asked later because too many waited.
    pub refused: AtomicU64,
    /// When those were asked that wait, by number.
    waiting: Mutex<BTreeMap<u64, Instant>>,
}

impl NamingStats {
    /// As of the other questions.
    #[must_use]
    pub fn figures(&self) -> DeskFigures {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DeskFigures {
            waiting: waiting.len() as u64,
            oldest_ms: waiting.values().next().map_or(0, |asked| asked.elapsed().as_millis() as u64),
            asked: get(&self.asked),
            not_asked: get(&self.refused),
            given_up: get(&self.gave_up),
            stuck: 0,
            replaced: 0,
        }
    }

    /// A question that waits until what is returned is dropped.
    fn begin(self: &Arc<Self>) -> Waiting {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Instant::now());
        Waiting { stats: Arc::clone(self), number }
    }
}

struct Waiting {
    stats: Arc<NamingStats>,
    number: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stats.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// Starts the thread. It ends when `wanted` is closed.
///
/// # Errors
/// If the thread or its runtime cannot be started.
pub fn start(
    threads: &Threads,
    runtimes: RuntimeList,
    mut wanted: Receiver<NameRequest>,
    named: SyncSender<NameReply>,
    stats: Arc<NamingStats>,
) -> io::Result<()> {
    threads.restarted("sockeye-names", move |pulse| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        pulse.working();
        runtime.block_on(serve(pulse, &runtimes, &mut wanted, &named, &stats));
        Ok(())
    })?;
    Ok(())
}

async fn serve(
    pulse: &Pulse,
    runtimes: &RuntimeList,
    wanted: &mut Receiver<NameRequest>,
    named: &SyncSender<NameReply>,
    stats: &Arc<NamingStats>,
) {
    let (turns, room) = (Arc::new(Semaphore::new(CONCURRENT)), Arc::new(Semaphore::new(WAITING_MAX)));
    for runtime_client in runtimes.all() {
        tokio::spawn(watch(runtime_client, named.clone()));
    }
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        pulse.waiting();
        let Some(question) = wanted.recv().await else { return };
        let open =
            OpenQuestion { named: named.clone(), stats: Arc::clone(stats), cgroup_id: question.cgroup_id, done: false };
        pulse.working();
        for runtime_client in runtimes.add_user_of(&question.path) {
            tokio::spawn(watch(runtime_client, named.clone()));
        }
        let (waiting, stats) = (stats.begin(), Arc::clone(stats));
        let (runtimes, turns, named) = (runtimes.clone(), Arc::clone(&turns), named.clone());
        tokio::spawn(async move {
            let _ends = (place, waiting);
            find_names(&runtimes, &turns, &question, &named, &stats).await;
            open.close();
        });
    }
}

/// Keeps an ear on a runtime, for ever.
async fn watch(runtime_client: Arc<RuntimeClient>, named: SyncSender<NameReply>) {
    // For `ctl stats`: what is there, though nobody asks.
    let _ = runtime_client.look().await;
    loop {
        let (followed, named) = (Arc::clone(&runtime_client), named.clone());
        // It ends by a panic only, which has been logged.
        let _ = tokio::spawn(async move { followed.follow(&named).await }).await;
        tokio::time::sleep(PAUSE_MAX).await;
    }
}

/// A question of which nobody tells any more if its task dies: then this does.
struct OpenQuestion {
    named: SyncSender<NameReply>,
    stats: Arc<NamingStats>,
    cgroup_id: u64,
    done: bool,
}

impl OpenQuestion {
    fn close(mut self) {
        self.done = true;
    }
}

impl Drop for OpenQuestion {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.stats.gave_up.fetch_add(1, Ordering::Relaxed);
        let _ = self.named.try_send(NameReply::Cgroup { cgroup_id: self.cgroup_id, names: None });
    }
}

/// Tells control, when it has room. False: it has ended.
async fn tell(named: &SyncSender<NameReply>, mut reply: NameReply) -> bool {
    loop {
        match named.try_send(reply) {
            Ok(()) => return true,
            Err(TrySendError::Disconnected(_)) => return false,
            Err(TrySendError::Full(back)) => reply = back,
        }
        tokio::time::sleep(NO_ROOM_PAUSE).await;
    }
}

/// Asks until there is an answer, or none to be hoped for.
async fn find_names(
    runtimes: &RuntimeList,
    turns: &Semaphore,
    question: &NameRequest,
    named: &SyncSender<NameReply>,
    stats: &NamingStats,
) {
    let begun = tokio::time::Instant::now();
    let (mut pause, mut unknown) = (PAUSE, 0);
    let tell = |names: Option<Names>| {
        tell(named, NameReply::Cgroup { cgroup_id: question.cgroup_id, names: names.map(Box::new) })
    };
    loop {
        let answer = {
            let Ok(_turn) = turns.acquire().await else { return };
            ask_about(&runtimes.all(), question).await
        };
        match answer {
            Reply::Found(names) => {
                tell(Some(names)).await;
                return;
            }
            // containerd knows a container before it runs.
            Reply::Unknown if question.candidate.is_some() => {
                tell(None).await;
                return;
            }
            Reply::Unknown if unknown >= UNKNOWN_RETRIES => {
                stats.unknown.fetch_add(1, Ordering::Relaxed);
                tell(None).await;
                return;
            }
            Reply::Unknown => unknown += 1,
            Reply::Unavailable if begun.elapsed() > GIVE_UP => {
                stats.gave_up.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Flows need not wait: they go out with the id.
            Reply::Unavailable => {
                if !tell(None).await {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The innermost container that a runtime of this host knows: runtimes inside of containers cannot be asked.
/// Asks each for a container that nobody has, to see whether it answers.
///
/// # Errors
/// If the system has no room for the sockets.
pub fn ask_each(runtimes: &RuntimeList) -> io::Result<Vec<Arc<RuntimeClient>>> {
    let nobodys = "0".repeat(64);
    let all = runtimes.all();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        for runtime_client in &all {
            let _ = runtime_client.ask(Wanted::Id { id: &nobodys, path: "" }).await;
        }
    });
    Ok(all)
}

async fn ask_about(runtimes: &[Arc<RuntimeClient>], question: &NameRequest) -> Reply {
    if let Some(candidate) = &question.candidate {
        return ask_runtimes(runtimes, Runtime::Containerd, &question.path, Wanted::Candidate(candidate)).await;
    }
    let mut best = Reply::Unknown;
    for (depth, container) in question.containers.iter().enumerate() {
        let wanted = Wanted::Id { id: &container.id, path: &question.path };
        match ask_runtimes(runtimes, container.runtime, &question.path, wanted).await {
            Reply::Found(names) if depth == 0 => return Reply::Found(names),
            Reply::Found(outer) => return Reply::Found(within(outer, &question.containers[0])),
            Reply::Unavailable => best = Reply::Unavailable,
            Reply::Unknown => {}
        }
    }
    best
}

/// Names of a container inside of a known one.
fn within(outer: Names, inner: &ContainerRef) -> Names {
    let short = inner.id.get(..12).unwrap_or(&inner.id);
    Names { runtime: None, name: format!("{}/{short}", outer.name), ..outer }
}

async fn ask_runtimes(runtimes: &[Arc<RuntimeClient>], runtime: Runtime, path: &str, wanted: Wanted<'_>) -> Reply {
    let mut best = Reply::Unknown;
    for runtime_client in runtimes.iter().filter(|runtime_client| runtime_client.may_know(runtime, path)) {
        match runtime_client.ask(wanted).await {
            Reply::Found(mut names) => {
                if runtime == Runtime::Unknown {
                    names.runtime = names.runtime.or(Some(runtime_client.kind.runtime()));
                }
                return Reply::Found(names);
            }
            Reply::Unavailable => best = Reply::Unavailable,
            Reply::Unknown => {}
        }
    }
    best
}
