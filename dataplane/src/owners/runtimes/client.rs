//! One runtime: where it is, whether it answers, and when it may be asked again.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{cri, docker};
use crate::config::{Runtimes, Socket};
use crate::owners::cgroup::{Runtime, RuntimeApi};
use crate::owners::workload::Names;

/// How long a runtime may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failure; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Containers whose creation is remembered.
const RECENT_MAX: usize = 1024;
/// Digits of an id.
const ID_MAX: usize = 64;

impl RuntimeApi {
    /// Where it usually listens.
    fn usual_places(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["/run/docker.sock", "/var/run/docker.sock"],
            Self::Podman => &["/run/podman/podman.sock"],
            Self::Cri => &[
                "/run/containerd/containerd.sock",
                "/run/crio/crio.sock",
                "/run/k3s/containerd/containerd.sock",
                "/run/k0s/containerd.sock",
                "/run/cri-dockerd.sock",
                "/var/snap/microk8s/common/run/containerd.sock",
            ],
        }
    }

    /// The same for a user's own runtime, below `/run/user/UID`.
    fn usual_place_of_users(self) -> Option<&'static str> {
        match self {
            Self::Docker => Some("docker.sock"),
            Self::Podman => Some("podman/podman.sock"),
            Self::Cri => None,
        }
    }
}

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
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    NotAsked,
    Up,
    /// There is no socket; in a usual place nobody misses it.
    Absent,
    Down(String),
}

#[derive(Debug)]
struct Condition {
    state: State,
    pause: Duration,
    ask_again: Option<Instant>,
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
    configured: bool,
    condition: Mutex<Condition>,
    asked: AtomicU64,
    found: AtomicU64,
    unknown: AtomicU64,
    failed: AtomicU64,
    /// Containers that were created lately.
    recent: Mutex<Recent>,
    cri: cri::Connection,
}

/// Names by id, the oldest first.
#[derive(Debug, Default)]
struct Recent {
    names: HashMap<String, Names>,
    order: VecDeque<String>,
}

impl Recent {
    /// An answer may have megabytes of labels: of so many containers only what will be shown is kept.
    fn add(&mut self, id: String, names: Names) {
        if id.len() > ID_MAX {
            return;
        }
        if self.order.len() >= RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
        self.order.push_back(id.clone());
        self.names.insert(id, names.shortened());
    }
}

impl RuntimeClient {
    /// A runtime behind a socket.
    #[must_use]
    pub fn new(kind: RuntimeApi, path: &Path, owner_uid: Option<u32>, configured: bool) -> Self {
        Self {
            kind,
            path: path.to_owned(),
            owner_uid,
            configured,
            condition: Mutex::new(Condition { state: State::NotAsked, pause: PAUSE, ask_again: None }),
            asked: AtomicU64::new(0),
            found: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            recent: Mutex::default(),
            cri: cri::Connection::new(path),
        }
    }

    /// Whether it is worth asking about a container of this kind in this cgroup.
    #[must_use]
    pub fn may_know(&self, runtime: Runtime, path: &str) -> bool {
        self.kind.makes(runtime) && self.owner_uid.is_none_or(|uid| path.contains(&format!("/user-{uid}.slice/")))
    }

    /// Figures.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = match &self.lock().state {
            State::NotAsked => "not asked yet".into(),
            State::Up => "up".into(),
            State::Absent => "absent".into(),
            State::Down(why) => why.clone(),
        };
        Snapshot {
            state,
            asked: get(&self.asked),
            found: get(&self.found),
            unknown: get(&self.unknown),
            failed: get(&self.failed),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn ask(&self, id: &str) -> Reply {
        if !self.path.exists() {
            self.becomes(State::Absent);
            // A usual place without a runtime is no reason to wait for one.
            return if self.configured { Reply::Unavailable } else { Reply::Unknown };
        }
        if !self.take_turn() {
            return Reply::Unavailable;
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        let asking = async {
            match self.kind {
                RuntimeApi::Docker | RuntimeApi::Podman => docker::inspect(&self.path, id).await,
                RuntimeApi::Cri => self.cri.find(id).await,
            }
        };
        let answer = tokio::time::timeout(TIMEOUT, asking).await;
        match answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs()))) {
            Ok(names) => {
                self.becomes(State::Up);
                let names = names.or_else(|| self.recent().names.get(id).cloned());
                let counter = if names.is_some() { &self.found } else { &self.unknown };
                counter.fetch_add(1, Ordering::Relaxed);
                names.map_or(Reply::Unknown, Reply::Found)
            }
            Err(why) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let why = crate::model::text::clean(why.as_bytes());
                self.becomes(State::Down(why.chars().take(200).collect()));
                Reply::Unavailable
            }
        }
    }

    fn recent(&self) -> std::sync::MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for new containers, for ever. Podman is not listened to: its service ends when nobody asks.
    pub(super) async fn follow(&self) {
        if self.kind != RuntimeApi::Docker {
            return;
        }
        let mut pause = PAUSE;
        loop {
            let begun = Instant::now();
            // What goes wrong is told and counted where something is asked.
            let _ = docker::follow(&self.path, |id, names| self.recent().add(id, names)).await;
            pause = if begun.elapsed() > PAUSE_MAX { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
            tokio::time::sleep(pause).await;
        }
    }

    /// While it is down, one question at a time finds out whether it is back.
    fn take_turn(&self) -> bool {
        let mut condition = self.lock();
        let now = Instant::now();
        if condition.ask_again.is_some_and(|at| now < at) {
            return false;
        }
        if matches!(condition.state, State::Down(_)) {
            condition.ask_again = Some(now + TIMEOUT);
        }
        true
    }

    /// Notes how it stands, and says so once.
    fn becomes(&self, state: State) {
        let mut condition = self.lock();
        let now = Instant::now();
        match &state {
            State::Down(_) => {
                condition.ask_again = Some(now + condition.pause);
                condition.pause = (condition.pause * 2).min(PAUSE_MAX);
            }
            _ => {
                condition.ask_again = None;
                condition.pause = PAUSE;
            }
        }
        let (name, path) = (self.kind.name(), self.path.display());
        let same = std::mem::discriminant(&condition.state) == std::mem::discriminant(&state);
        match &state {
            _ if same => {}
            State::Up if condition.state == State::NotAsked => {}
            State::Up => eprintln!("sockeye: {name} at {path} answers again."),
            State::Absent if !self.configured && condition.state == State::NotAsked => {}
            State::Absent => eprintln!("sockeye: there is no {name} at {path}: its containers have ids and no names."),
            State::Down(why) => {
                eprintln!("sockeye: {name} at {path} does not answer ({why}): its containers have ids and no names.");
            }
            State::NotAsked => {}
        }
        condition.state = state;
    }
}

/// All runtimes to ask: those that are configured, else those in their usual places, the users' own included.
#[must_use]
pub fn find(config: &Runtimes) -> Vec<RuntimeClient> {
    let mut runtimes = Vec::new();
    for (kind, sockets) in RuntimeApi::ALL.into_iter().zip([&config.docker, &config.podman, &config.cri]) {
        if let Some(sockets) = sockets {
            runtimes.extend(sockets.iter().map(|Socket(path)| RuntimeClient::new(kind, path, None, true)));
            continue;
        }
        let mut seen = Vec::new();
        for path in kind.usual_places() {
            // /var/run is /run on most hosts.
            let real = real_path(Path::new(path));
            if !seen.contains(&real) {
                runtimes.push(RuntimeClient::new(kind, Path::new(path), None, false));
                seen.push(real);
            }
        }
        runtimes.extend(runtimes_of_users(kind));
    }
    runtimes
}

fn real_path(path: &Path) -> PathBuf {
    let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    dir.zip(path.file_name()).map_or_else(|| path.to_owned(), |(dir, name)| dir.join(name))
}

fn runtimes_of_users(kind: RuntimeApi) -> Vec<RuntimeClient> {
    let Some(workload) = kind.usual_place_of_users() else { return Vec::new() };
    let entries = fs::read_dir("/run/user").into_iter().flatten().flatten();
    let of_user = entries.filter_map(|entry| {
        let uid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let path = entry.path().join(workload);
        // Whoever owns the socket answers for it.
        (fs::metadata(&path).ok()?.uid() == uid).then(|| RuntimeClient::new(kind, &path, Some(uid), false))
    });
    of_user.collect()
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
    fn little_is_kept_of_many_containers() {
        let mut recent = Recent::default();
        let long = || "x".repeat(1 << 20);
        for number in 0..RECENT_MAX + 5 {
            let name = if number < 3 { long() } else { "web".into() };
            let labels = vec![("k".to_owned(), name.clone()); 100];
            recent.add(number.to_string(), Names { name, labels, ..Names::default() });
        }
        recent.add(long(), Names::default());
        assert_eq!((recent.names.len(), recent.order.len()), (RECENT_MAX, RECENT_MAX));
        recent.add("1".into(), Names { name: long(), labels: vec![(long(), long())], ..Names::default() });
        let kept = &recent.names["1"];
        assert!(kept.name.len() + kept.labels[0].0.len() + kept.labels[0].1.len() < 1000);
    }

    #[test]
    fn what_is_configured_replaces_the_usual_places() {
        let config = Runtimes { docker: Some(vec![Socket("/a".into())]), podman: Some(vec![]), cri: Some(vec![]) };
        let runtimes = find(&config);
        assert_eq!((runtimes.len(), runtimes[0].path.as_path(), runtimes[0].configured), (1, Path::new("/a"), true));
        assert!(find(&Runtimes::default()).iter().any(|runtime_client| runtime_client.kind == RuntimeApi::Cri));
    }
}
