//! Where runtimes listen: what is configured, else the usual places.

use std::fs;
use std::path::{Path, PathBuf};

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

/// All runtimes to ask: those that are configured, else those in their usual places, the users' own included.
#[must_use]
pub fn find(config: &Runtimes) -> Vec<RuntimeClient> {
    let mut runtimes = Vec::new();
    for (kind, sockets) in RuntimeApi::ALL.into_iter().zip([&config.docker, &config.podman, &config.cri]) {
        if let Some(sockets) = sockets {
            runtimes.extend(sockets.iter().map(|Socket(path)| RuntimeClient::new(kind, path, owner_of(path), true)));
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

const USERS: &str = "/run/user";

/// Whose socket it has to be: what is below `/run/user/UID` is that user's, all else root's.
fn owner_of(path: &Path) -> Option<u32> {
    path.strip_prefix(USERS).ok()?.components().next()?.as_os_str().to_str()?.parse().ok()
}

/// Of whom there is a directory. What is in it is not looked at here: it may be a file system that never answers.
fn runtimes_of_users(kind: RuntimeApi) -> Vec<RuntimeClient> {
    let Some(socket) = kind.usual_place_of_users() else { return Vec::new() };
    let entries = fs::read_dir(USERS).into_iter().flatten().flatten();
    let mut users: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    users.sort_unstable();
    if users.len() > USERS_MAX {
        let (name, left) = (kind.name(), users.len() - USERS_MAX);
        tracing::warn!(
            "{name} of {left} users is not asked, as {USERS_MAX} are the most: list it in the configuration"
        );
        users.truncate(USERS_MAX);
    }
    let client =
        |uid: &u32| RuntimeClient::new(kind, &Path::new(USERS).join(uid.to_string()).join(socket), Some(*uid), false);
    users.iter().map(client).collect()
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
        let runtimes = find(&config);
        assert_eq!((runtimes.len(), runtimes[0].path.as_path(), runtimes[0].configured), (1, Path::new("/a"), true));
        assert!(find(&Runtimes::default()).iter().any(|runtime_client| runtime_client.kind == RuntimeApi::Cri));
    }
}
