//! One runtime: where it is, whether it answers, and when it may be asked again.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::cri::Wanted;
use super::recent::Recent;
use super::socket::{Place, Trouble};
use super::{cri, docker, podman, tell};
use crate::owners::cgroup::{Runtime, RuntimeApi, is_id, is_of_user};
use crate::owners::workload::{NameReply, Names, Renamed};

/// How long a runtime may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failure; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How often Podman is asked for new names, and for how long after it has given a name.
const RENAMES_EVERY: Duration = Duration::from_secs(10);
const RENAMES_FOR: Duration = Duration::from_secs(600);

/// So many changes of a user's runtime are said: it may change as often as that user likes.
const SAID_MAX: u32 = 20;

/// What is kept of containers that were created lately, bytes: of root's runtime, and of one of a user, of which there
/// may be many.
const RECENT_BYTES: usize = 4 << 20;
const RECENT_BYTES_OF_USER: usize = 256 << 10;

/// What came of a question.
#[derive(Debug)]
pub(super) enum Reply {
    Found(Names),
    /// It answers, and there is no such container.
    Unknown,
    /// It does not answer.
    Unavailable,
}

/// For `ctl stats`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// `up`, `absent`, `not asked yet`, or why it does not answer.
    pub state: String,
    /// Questions.
    pub asked: u64,
    /// Answers with names.
    pub found: u64,
    /// Answers that there is no such container.
    pub unknown: u64,
    /// No answer, or none that is understood.
    pub failed: u64,
    /// Questions that were not asked: the socket is not what it should be.
    pub refused: u64,
    /// Names, labels and events that were too long or too many, and were cut or left out.
    pub cut: u64,
    /// Something is at the place of its socket.
    pub is_there: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    NotAsked,
    Up,
    /// There is no socket; in a usual place nobody misses it.
    Absent,
    Refused(String),
    Down(String),
}

#[derive(Debug)]
struct Condition {
    state: State,
    /// Changes that were said.
    said: u32,
    pause: Duration,
    ask_again: Option<Instant>,
    /// When it last gave a name.
    found_at: Option<Instant>,
}

/// A runtime.
#[derive(Debug)]
pub struct RuntimeClient {
    /// Its API.
    pub kind: RuntimeApi,
    /// Its socket.
    pub path: PathBuf,
    /// Whose it is, unless root's: believed about that user's containers only.
    owner_uid: Option<u32>,
    pub(super) configured: bool,
    place: Place,
    condition: Mutex<Condition>,
    asked: AtomicU64,
    found: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    is_there: AtomicBool,
    /// Containers that were created lately.
    recent: Mutex<Recent>,
    cri: cri::Connection,
}

impl RuntimeClient {
    /// A runtime behind a socket.
    #[must_use]
    pub fn new(kind: RuntimeApi, path: &Path, owner_uid: Option<u32>, configured: bool) -> Self {
        let place = Place::new(path, owner_uid);
        let recent = Recent::new(if owner_uid.is_some() { RECENT_BYTES_OF_USER } else { RECENT_BYTES });
        Self {
            kind,
            path: path.to_owned(),
            owner_uid,
            configured,
            place: place.clone(),
            condition: Mutex::new(Condition {
                state: State::NotAsked,
                said: 0,
                pause: PAUSE,
                ask_again: None,
                found_at: None,
            }),
            asked: AtomicU64::new(0),
            found: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            is_there: AtomicBool::new(false),
            recent: Mutex::new(recent),
            cri: cri::Connection::new(place),
        }
    }

    /// The configuration names it: it is missed where it is not there.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    /// Whether it is worth asking about a container of this kind in this cgroup.
    #[must_use]
    pub fn may_know(&self, runtime: Runtime, path: &str) -> bool {
        self.kind.makes(runtime) && is_of_user(self.owner_uid, path)
    }

    /// Figures.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = match &self.lock().state {
            State::NotAsked => "not asked yet".into(),
            State::Up => "up".into(),
            State::Absent => "absent".into(),
            State::Refused(why) => format!("refused: {why}"),
            State::Down(why) => why.clone(),
        };
        Snapshot {
            state,
            asked: get(&self.asked),
            found: get(&self.found),
            unknown: get(&self.unknown),
            failed: get(&self.failed),
            refused: get(&self.refused),
            cut: get(&self.cut),
            is_there: self.is_there.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn ask(&self, wanted: Wanted<'_>) -> Reply {
        if !self.take_turn() {
            return Reply::Unavailable;
        }
        let asking = async {
            // Also where a connection is kept: the socket may have gone since.
            let looked = self.look().await;
            if !matches!(looked, Err(Trouble::Absent | Trouble::Refused(_))) {
                self.asked.fetch_add(1, Ordering::Relaxed);
            }
            looked?;
            match (self.kind, wanted) {
                (RuntimeApi::Docker, Wanted::Id { id, .. }) => docker::inspect(&self.place, id).await,
                (RuntimeApi::Podman, Wanted::Id { id, .. }) => podman::find(&self.place, id, unix_seconds()).await,
                (RuntimeApi::Cri, wanted) => self.cri.find(wanted).await,
                (_, Wanted::Candidate(_)) => Ok(None),
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, asking).await;
        let late = |_| Err(Trouble::Silent(format!("no answer within {} s", TIMEOUT.as_secs())));
        match answer.unwrap_or_else(late) {
            Ok(names) => {
                self.becomes(State::Up);
                let recent = || if let Wanted::Id { id, .. } = wanted { self.recent().get(id).cloned() } else { None };
                let names = names.map(|names| self.cut(names)).or_else(recent);
                let counter = if names.is_some() { &self.found } else { &self.unknown };
                counter.fetch_add(1, Ordering::Relaxed);
                if names.is_some() {
                    self.lock().found_at = Some(Instant::now());
                }
                names.map_or(Reply::Unknown, Reply::Found)
            }
            Err(Trouble::Absent) => {
                self.becomes(State::Absent);
                // A usual place without a runtime is no reason to wait for one.
                if self.configured { Reply::Unavailable } else { Reply::Unknown }
            }
            Err(Trouble::Refused(why)) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                self.becomes(State::Refused(why));
                Reply::Unavailable
            }
            Err(Trouble::Silent(why)) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let why = crate::model::text::clean(why.as_bytes());
                self.becomes(State::Down(why.chars().take(200).collect()));
                Reply::Unavailable
            }
        }
    }

    /// Whether something is at the place of its socket, and what.
    pub(super) async fn look(&self) -> Result<(), Trouble> {
        let looked = self.place.look().await.map(drop);
        self.is_there.store(looked != Err(Trouble::Absent), Ordering::Relaxed);
        looked
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As much of it as is shown, before anything is kept.
    fn cut(&self, mut names: Names) -> Names {
        let cut = names.cut();
        if cut > 0 && self.cut.fetch_add(cut, Ordering::Relaxed) == 0 {
            let (name, path) = (self.kind.name(), self.path.display());
            tracing::warn!(
                "{name} at {path} tells longer names or more labels than are kept: they are cut, and counted"
            );
        }
        names
    }

    /// Remembers it, and returns what control does not know yet.
    fn heard(&self, told: Option<docker::Told>) -> Option<Renamed> {
        let told = told.map(|told| docker::Told { names: self.cut(told.names), ..told });
        // Less than a whole id would be found in many paths.
        let renamed = told.as_ref().filter(|told| told.renamed && is_id(&told.id)).map(|told| Renamed {
            container_id: told.id.clone(),
            name: told.names.name.clone(),
            owner_uid: self.owner_uid,
        });
        let kept = told.is_some_and(|told| self.recent().add(told.id, told.names));
        if !kept {
            self.cut.fetch_add(1, Ordering::Relaxed);
        }
        renamed
    }

    /// Listens for new containers and new names, for ever.
    pub(super) async fn follow(&self, named: &SyncSender<NameReply>) {
        match self.kind {
            RuntimeApi::Docker => self.follow_docker(named).await,
            RuntimeApi::Podman => self.follow_podman(named).await,
            // What it calls a container stays.
            RuntimeApi::Cri => std::future::pending().await,
        }
    }

    /// Its service ends when nobody asks, so that it is only asked for new names while its containers come up in flows.
    async fn follow_podman(&self, named: &SyncSender<NameReply>) {
        let mut since = unix_seconds();
        loop {
            tokio::time::sleep(RENAMES_EVERY).await;
            if self.lock().found_at.is_none_or(|at| at.elapsed() > RENAMES_FOR) {
                continue;
            }
            let now = unix_seconds();
            let told = tokio::time::timeout(TIMEOUT, podman::renamed(&self.place, since)).await;
            if let Ok(Ok(told)) = told {
                since = now;
                self.tell_renamed(told, named).await;
            }
        }
    }

    async fn tell_renamed(&self, told: Vec<Option<docker::Told>>, named: &SyncSender<NameReply>) {
        for renamed in told.into_iter().filter_map(|told| self.heard(told)) {
            tell(named, NameReply::Renamed(renamed)).await;
        }
    }

    async fn follow_docker(&self, named: &SyncSender<NameReply>) {
        let (mut pause, mut since) = (PAUSE, unix_seconds());
        loop {
            let begun = Instant::now();
            let _ = self.look().await;
            // What goes wrong is told and counted where something is asked.
            let _ = self.listen(&mut since, named).await;
            pause = if begun.elapsed() > PAUSE_MAX { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Until the stream ends. The next one goes on from where it was.
    async fn listen(&self, since: &mut u64, named: &SyncSender<NameReply>) -> Result<(), Trouble> {
        let mut events = docker::Events::follow(&self.place, *since).await?;
        while let Some(told) = events.next().await? {
            *since = unix_seconds();
            self.tell_renamed(told, named).await;
        }
        Ok(())
    }

    /// While it is down, one question at a time finds out whether it is back.
    fn take_turn(&self) -> bool {
        let mut condition = self.lock();
        let now = Instant::now();
        if condition.ask_again.is_some_and(|at| now < at) {
            return false;
        }
        if matches!(condition.state, State::Down(_) | State::Refused(_)) {
            condition.ask_again = Some(now + TIMEOUT);
        }
        true
    }

    /// Notes how it stands, and says so once.
    fn becomes(&self, state: State) {
        let mut condition = self.lock();
        let now = Instant::now();
        match &state {
            State::Down(_) | State::Refused(_) => {
                condition.ask_again = Some(now + condition.pause);
                condition.pause = (condition.pause * 2).min(PAUSE_MAX);
            }
            _ => {
                condition.ask_again = None;
                condition.pause = PAUSE;
            }
        }
        let same = std::mem::discriminant(&condition.state) == std::mem::discriminant(&state);
        if let Some(change) = self.change(&condition.state, &state).filter(|_| !same) {
            condition.said += 1;
            if self.owner_uid.is_none() || condition.said <= SAID_MAX {
                tracing::warn!("{} at {} {change}", self.kind.name(), self.path.display());
            }
        }
        condition.state = state;
    }

    /// What is said of a change.
    fn change(&self, before: &State, now: &State) -> Option<String> {
        const EFFECT: &str = "its containers have ids and no names";
        match now {
            State::Up => (*before != State::NotAsked).then(|| "answers again".into()),
            State::Absent if !self.configured && *before == State::NotAsked => None,
            State::Absent => Some(format!("is not there: {EFFECT}")),
            State::Refused(why) => Some(format!("is not asked, because {why}: {EFFECT}")),
            State::Down(why) => Some(format!("does not answer ({why}): {EFFECT}")),
            State::NotAsked => None,
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_engine_is_believed_about_that_users_containers_only() {
        let runtime_client = RuntimeClient::new(RuntimeApi::Podman, Path::new("/x"), Some(1000), false);
        let path = "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0.scope";
        assert!(runtime_client.may_know(Runtime::Podman, path));
        assert!(!runtime_client.may_know(Runtime::Docker, path));
        assert!(!runtime_client.may_know(Runtime::Podman, "/machine.slice/libpod-0.scope"));
    }

    #[test]
    fn a_link_in_the_place_of_a_socket_is_refused_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        std::os::unix::fs::symlink("/run/docker.sock", &path).unwrap();
        let client = RuntimeClient::new(RuntimeApi::Docker, &path, None, true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(matches!(runtime.block_on(client.ask(Wanted::Id { id: "id", path: "/id" })), Reply::Unavailable));
        let snapshot = client.snapshot();
        assert_eq!((snapshot.asked, snapshot.failed, snapshot.refused, snapshot.is_there), (0, 0, 1, true));
        assert_eq!(snapshot.state, "refused: a link is in the place of its socket");
    }

    #[test]
    fn of_endless_events_only_so_much_is_kept() {
        let client = RuntimeClient::new(RuntimeApi::Docker, Path::new("/x"), Some(1000), false);
        for i in 0..100 {
            let labels = (0..1000).map(|n| (format!("{n}"), "v".repeat(1000))).collect();
            let names = Names { name: "n".repeat(1 << 20), labels, ..Names::default() };
            let renamed = client.heard(Some(docker::Told { id: format!("{i:064}"), names, renamed: i % 2 == 1 }));
            assert_eq!(
                renamed.map(|renamed| (renamed.name.len() <= 256, renamed.owner_uid)),
                (i % 2 == 1).then_some((true, Some(1000)))
            );
        }
        assert_eq!(client.heard(None), None);
        let short = docker::Told { id: "0".into(), names: Names::default(), renamed: true };
        assert_eq!(client.heard(Some(short)), None, "it would be found in many paths");
        let kept = client.recent().get(&format!("{:064}", 99)).cloned().unwrap();
        assert!(kept.name.len() <= 256 && kept.labels.len() <= 64 && kept.labels[0].1.len() <= 256);
        // A name, 936 labels that are left out and 64 values that are cut, and one event that was too long.
        assert_eq!(client.snapshot().cut, 100 * (1 + 936 + 64) + 1);
    }
}
