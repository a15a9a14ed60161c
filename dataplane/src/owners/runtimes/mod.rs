//! Asking container runtimes for the names that belong to an id. The only place with an async runtime: one thread, off
//! the record path. Runtimes may be down, slow, denied, or reply nonsense: flows go out with the id meanwhile, the
//! question is asked again with growing pauses, and everything is counted.

mod client;
pub(crate) mod cri;
pub(crate) mod docker;
pub mod messages;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;

pub use client::{RuntimeClient, Snapshot, find};

use crate::owners::cgroup::ContainerRef;
use crate::owners::workload::{NameReply, NameRequest, Names};
use client::Reply;

/// Questions that are on their way to runtimes at the same time.
const CONCURRENT: usize = 4;
/// Questions that wait for their turn or for a runtime to come back.
const WAITING_MAX: u64 = 4096;
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
    /// Containers that no runtime knows.
    pub unknown: AtomicU64,
    /// Containers without a name because runtimes did not answer for too long.
    pub gave_up: AtomicU64,
    /// Questions that were not asked because too many waited.
    pub refused: AtomicU64,
    /// Questions that wait.
    pub waiting: AtomicU64,
}

/// Starts the thread. It ends when `wanted` is closed.
///
/// # Errors
/// If the thread or its runtime cannot be started.
pub fn start(
    runtimes: Vec<Arc<RuntimeClient>>,
    wanted: UnboundedReceiver<NameRequest>,
    named: mpsc::Sender<NameReply>,
    stats: Arc<NamingStats>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("sockeye-names".into())
        .spawn(move || runtime.block_on(serve(runtimes, wanted, named, stats)))
}

async fn serve(
    runtimes: Vec<Arc<RuntimeClient>>,
    mut wanted: UnboundedReceiver<NameRequest>,
    named: mpsc::Sender<NameReply>,
    stats: Arc<NamingStats>,
) {
    let runtimes: Arc<[Arc<RuntimeClient>]> = runtimes.into();
    let turns = Arc::new(Semaphore::new(CONCURRENT));
    for runtime_client in runtimes.iter().map(Arc::clone) {
        tokio::spawn(async move { runtime_client.follow().await });
    }
    while let Some(question) = wanted.recv().await {
        if stats.waiting.load(Ordering::Relaxed) >= WAITING_MAX {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            let _ = named.send(NameReply { cgroup_id: question.cgroup_id, names: None });
            continue;
        }
        stats.waiting.fetch_add(1, Ordering::Relaxed);
        let (runtimes, turns, named, stats) =
            (Arc::clone(&runtimes), Arc::clone(&turns), named.clone(), Arc::clone(&stats));
        tokio::spawn(async move {
            find_names(&runtimes, &turns, &question, &named, &stats).await;
            stats.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Asks until there is an answer, or none to be hoped for.
async fn find_names(
    runtimes: &[Arc<RuntimeClient>],
    turns: &Semaphore,
    question: &NameRequest,
    named: &mpsc::Sender<NameReply>,
    stats: &NamingStats,
) {
    let begun = tokio::time::Instant::now();
    let (mut pause, mut unknown) = (PAUSE, 0);
    let tell = |names: Option<Names>| {
        named.send(NameReply { cgroup_id: question.cgroup_id, names: names.map(Box::new) }).is_ok()
    };
    loop {
        let answer = {
            let Ok(_turn) = turns.acquire().await else { return };
            ask_about(runtimes, question).await
        };
        match answer {
            Reply::Found(names) => {
                tell(Some(names));
                return;
            }
            Reply::Unknown if unknown >= UNKNOWN_RETRIES => {
                stats.unknown.fetch_add(1, Ordering::Relaxed);
                tell(None);
                return;
            }
            Reply::Unknown => unknown += 1,
            Reply::Unavailable if begun.elapsed() > GIVE_UP => {
                stats.gave_up.fetch_add(1, Ordering::Relaxed);
                return;
            }
            // Flows need not wait: they go out with the id.
            Reply::Unavailable => {
                if !tell(None) {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The innermost container that a runtime of this host knows: runtimes inside of containers cannot be asked.
async fn ask_about(runtimes: &[Arc<RuntimeClient>], question: &NameRequest) -> Reply {
    let mut best = Reply::Unknown;
    for (depth, container) in question.containers.iter().enumerate() {
        match ask_runtimes(runtimes, container, &question.path).await {
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

async fn ask_runtimes(runtimes: &[Arc<RuntimeClient>], container: &ContainerRef, path: &str) -> Reply {
    let mut best = Reply::Unknown;
    for runtime_client in runtimes.iter().filter(|runtime_client| runtime_client.may_know(container.runtime, path)) {
        match runtime_client.ask(&container.id).await {
            Reply::Found(names) => return Reply::Found(names),
            Reply::Unavailable => best = Reply::Unavailable,
            Reply::Unknown => {}
        }
    }
    best
}
