//! Where runtimes listen: what is configured, else the usual places.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::client::RuntimeClient;
use crate::config::{Runtimes, Socket};
use crate::owners::cgroup::RuntimeApi;

/// Users whose own runtimes are asked.
const USERS_MAX: usize = 64;

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

/// All runtimes to ask: those that are configured, else those in their usual places, the users' own included. It grows
/// when a user comes of whose containers is asked.
#[derive(Debug, Clone)]
pub struct RuntimeList(Arc<Listed>);

#[derive(Debug)]
struct Listed {
    /// The APIs whose sockets are not configured, and where those of users are looked for.
    of_users: Vec<RuntimeApi>,
    users_dir: PathBuf,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    runtimes: Vec<Arc<RuntimeClient>>,
    users: BTreeSet<u32>,
    /// Too many users are said once.
    said: bool,
}

impl RuntimeList {
    /// What is there at the start.
    #[must_use]
    pub fn find(config: &Runtimes) -> Self {
        Self::find_below(config, Path::new(USERS))
    }

    fn find_below(config: &Runtimes, users_dir: &Path) -> Self {
        let (mut runtimes, mut of_users) = (Vec::new(), Vec::new());
        for (kind, sockets) in RuntimeApi::ALL.into_iter().zip([&config.docker, &config.podman, &config.cri]) {
            if let Some(sockets) = sockets {
                runtimes
                    .extend(sockets.iter().map(|Socket(path)| RuntimeClient::new(kind, path, owner_of(path), true)));
            } else {
                runtimes.extend(of_the_host(kind));
                of_users.extend(kind.usual_place_of_users().map(|_| kind));
            }
        }
        let runtimes = runtimes.into_iter().map(Arc::new).collect();
        let known = RwLock::new(Known { runtimes, ..Known::default() });
        let list = Self(Arc::new(Listed { of_users, users_dir: users_dir.to_owned(), known }));
        for uid in list.0.users_there() {
            list.0.add_user(uid);
        }
        list
    }

    /// As of now.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<RuntimeClient>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).runtimes.clone()
    }

    /// Adds the runtimes of the user whose cgroup this is, and returns them; none if they are known, or if that user has
    /// no folder for them.
    pub(super) fn add_user_of(&self, path: &str) -> Vec<Arc<RuntimeClient>> {
        let uid = path.split('/').find_map(|part| part.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok());
        uid.filter(|uid| !self.0.knows(*uid) && self.0.users_there().contains(uid))
            .map(|uid| self.0.add_user(uid))
            .unwrap_or_default()
    }
}

impl Listed {
    fn knows(&self, uid: u32) -> bool {
        self.of_users.is_empty() || self.known.read().unwrap_or_else(PoisonError::into_inner).users.contains(&uid)
    }

    /// Of whom there is a directory. What is in it is not looked at here: it may be a file system that never answers.
    fn users_there(&self) -> BTreeSet<u32> {
        let entries = fs::read_dir(&self.users_dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn add_user(&self, uid: u32) -> Vec<Arc<RuntimeClient>> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.users.len() >= USERS_MAX {
            if !std::mem::replace(&mut known.said, true) {
                tracing::warn!(
                    "runtimes of more than {USERS_MAX} users are not asked, uid {uid} the first: list them in the configuration"
                );
            }
            return Vec::new();
        }
        if self.of_users.is_empty() || !known.users.insert(uid) {
            return Vec::new();
        }
        let folder = self.users_dir.join(uid.to_string());
        let place = |kind: &RuntimeApi| Some((*kind, folder.join(kind.usual_place_of_users()?)));
        let places = self.of_users.iter().filter_map(place);
        let added: Vec<_> =
            places.map(|(kind, path)| Arc::new(RuntimeClient::new(kind, &path, Some(uid), false))).collect();
        known.runtimes.extend(added.iter().cloned());
        added
    }
}

/// Those of root in their usual places.
fn of_the_host(kind: RuntimeApi) -> Vec<RuntimeClient> {
    let (mut runtimes, mut seen) = (Vec::new(), Vec::new());
    for path in kind.usual_places() {
        // /var/run is /run on most hosts.
        let real = real_path(Path::new(path));
        if !seen.contains(&real) {
            runtimes.push(RuntimeClient::new(kind, Path::new(path), None, false));
            seen.push(real);
        }
    }
    runtimes
}

fn real_path(path: &Path) -> PathBuf {
    let dir = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    dir.zip(path.file_name()).map_or_else(|| path.to_owned(), |(dir, name)| dir.join(name))
}

const USERS: &str = "/run/user";

/// Whose socket it has to be: what is below `/run/user/UID` is that user's, all else root's.
fn owner_of(path: &Path) -> Option<u32> {
    path.strip_prefix(USERS).ok()?.components().next()?.as_os_str().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_below_a_users_directory_has_to_be_that_users() {
        let owner = |path: &str| owner_of(Path::new(path));
        assert_eq!(owner("/run/user/1000/docker.sock"), Some(1000));
        assert_eq!([owner("/run/docker.sock"), owner("/run/user/x/docker.sock"), owner("/run/user")], [None; 3]);
    }

    #[test]
    fn what_is_configured_replaces_the_usual_places() {
        let config = Runtimes { docker: Some(vec![Socket("/a".into())]), podman: Some(vec![]), cri: Some(vec![]) };
        let runtimes = RuntimeList::find(&config).all();
        assert_eq!((runtimes.len(), runtimes[0].path.as_path(), runtimes[0].configured), (1, Path::new("/a"), true));
        assert!(
            RuntimeList::find(&Runtimes::default())
                .all()
                .iter()
                .any(|runtime_client| runtime_client.kind == RuntimeApi::Cri)
        );
    }

    #[test]
    fn runtimes_of_a_user_who_comes_later_are_added() {
        let dir = tempfile::tempdir().unwrap();
        let list = RuntimeList::find_below(&Runtimes::default(), dir.path());
        let path = "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0.scope";
        let before = list.all().len();
        assert!(list.add_user_of(path).is_empty(), "there is no such user yet");
        fs::create_dir(dir.path().join("1000")).unwrap();
        let added: Vec<_> = list.add_user_of(path).iter().map(|client| client.path.clone()).collect();
        assert_eq!(added, [dir.path().join("1000/docker.sock"), dir.path().join("1000/podman/podman.sock")]);
        assert_eq!((list.add_user_of(path).len(), list.all().len()), (0, before + 2), "once");
        assert!(list.add_user_of("/system.slice/docker-0.scope").is_empty());
        for uid in 2000..2000 + USERS_MAX {
            fs::create_dir(dir.path().join(uid.to_string())).unwrap();
            list.add_user_of(&format!("/user.slice/user-{uid}.slice/x"));
        }
        assert_eq!(list.all().len(), before + 2 * USERS_MAX, "bounded");
    }

    #[test]
    fn what_is_configured_has_no_users_but_those() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("1000")).unwrap();
        let config = Runtimes { docker: Some(vec![]), podman: Some(vec![]), cri: Some(vec![]) };
        let list = RuntimeList::find_below(&config, dir.path());
        assert!(list.add_user_of("/user.slice/user-1000.slice/x").is_empty() && list.all().is_empty());
    }
}
