//! CPUs: which are online, and which share a cache.

use std::fs;
use std::path::Path;

const CPUS: &str = "/sys/devices/system/cpu";

/// CPUs that run now, in order. Empty if the host does not say.
#[must_use]
pub fn online() -> Vec<usize> {
    fs::read_to_string(Path::new(CPUS).join("online")).map(|list| parse_list(&list)).unwrap_or_default()
}

/// A number for each last-level cache: the same for CPUs that share one. 0 where the host does not say, as in many virtual
/// machines.
#[must_use]
pub fn last_level_cache(cpu: usize) -> usize {
    last_level_cache_in(&Path::new(CPUS).join(format!("cpu{cpu}/cache"))).unwrap_or(0)
}

/// The first CPU of those that share the highest level.
fn last_level_cache_in(dir: &Path) -> Option<usize> {
    let read = |index: &Path, name: &str| fs::read_to_string(index.join(name)).ok();
    let caches = fs::read_dir(dir).ok()?.flatten().filter_map(|entry| {
        let level: u32 = read(&entry.path(), "level")?.trim().parse().ok()?;
        Some((level, parse_list(&read(&entry.path(), "shared_cpu_list")?).first().copied()?))
    });
    caches.max_by_key(|(level, _)| *level).map(|(_, first)| first)
}

/// A list as the kernel writes it (`0-3,8`, cpuset(7)). What is no number is left out.
#[must_use]
pub fn parse_list(text: &str) -> Vec<usize> {
    let mut cpus: Vec<usize> = text
        .trim()
        .split(',')
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
        })
        .flatten()
        .collect();
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!(parse_list("3\n"), [3]);
        assert!(parse_list("\n").is_empty() && parse_list("x-y").is_empty());
    }

    #[test]
    fn the_highest_level_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (index, level, shared) in [("index0", "1", "4"), ("index3", "3", "4-7"), ("index2", "2", "4-5")] {
            fs::create_dir(dir.path().join(index)).unwrap();
            fs::write(dir.path().join(index).join("level"), format!("{level}\n")).unwrap();
            fs::write(dir.path().join(index).join("shared_cpu_list"), format!("{shared}\n")).unwrap();
        }
        assert_eq!(last_level_cache_in(dir.path()), Some(4));
        assert_eq!(last_level_cache_in(&dir.path().join("index0")), None);
    }
}
