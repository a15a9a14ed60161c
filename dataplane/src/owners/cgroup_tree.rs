//! All containers of a host, those without flows included: cgroups whose path is one of a container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::cgroup::read_path;

/// Most that are listed, and most cgroups that are looked at for it.
const CONTAINERS_MAX: usize = 4096;
const CGROUPS_MAX: usize = 1 << 16;

/// Whether a process lives in a cgroup or below it. A folder may be left when nobody cleans up.
#[must_use]
pub fn is_alive(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Id and path of the cgroup of each container with processes below the root of cgroup v2. What goes away meanwhile is left out.
#[must_use]
pub fn containers_below(root: &Path) -> Vec<(u64, String)> {
    let (mut found, mut left) = (Vec::new(), CGROUPS_MAX);
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, containers_above)) = folders.pop() {
        let path = format!("/{}", folder.strip_prefix(root).unwrap_or(Path::new("")).display());
        let containers = read_path(&path).containers.len();
        if containers > containers_above
            && is_alive(&folder)
            && let Ok(metadata) = fs::metadata(&folder)
        {
            found.push((metadata.ino(), path));
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        for entry in below {
            left = left.saturating_sub(1);
            if left == 0 || found.len() >= CONTAINERS_MAX {
                return found;
            }
            folders.push((entry.path(), containers));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_is_found_once() {
        let root = tempfile::tempdir().unwrap();
        let id = "0123456789abcdef".repeat(4);
        for path in [format!("docker/{id}/init.scope"), "system.slice/a.service".into(), "kubepods/burstable".into()] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let container = root.path().join("docker").join(&id);
        fs::write(container.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let left = root.path().join("docker").join(id.replace('0', "1"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        let found = containers_below(root.path());
        let ino = fs::metadata(container).unwrap().ino();
        assert_eq!(found, [(ino, format!("/docker/{id}"))]);
    }
}
