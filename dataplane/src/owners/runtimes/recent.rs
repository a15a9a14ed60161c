//! Containers that were created lately: one that is removed at its end can be gone before it is asked about.

use std::collections::{HashMap, VecDeque};

use crate::owners::workload::Names;

/// Containers that are remembered of a runtime.
const CONTAINERS_MAX: usize = 1024;
/// Longest id of a container, bytes: all runtimes have 64.
const ID_MAX: usize = 128;
/// What an entry takes beside its text, bytes, roughly.
const ENTRY: usize = 512;

/// Names by id, the oldest first.
#[derive(Debug)]
pub(super) struct Recent {
    names: HashMap<String, Names>,
    order: VecDeque<String>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    /// Of a runtime for which so many bytes may be kept.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { names: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Remembers a container in place of the oldest ones. False if it is none.
    pub(super) fn add(&mut self, id: String, names: Names) -> bool {
        let size = size(&id, &names);
        if id.len() > ID_MAX || size > self.bytes_max {
            return false;
        }
        if self.remove(&id) {
            self.order.retain(|known| *known != id);
        }
        while self.order.len() >= CONTAINERS_MAX || self.bytes + size > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.remove(&oldest);
        }
        self.bytes += size;
        self.order.push_back(id.clone());
        self.names.insert(id, names);
        true
    }

    pub(super) fn get(&self, id: &str) -> Option<&Names> {
        self.names.get(id)
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(names) = self.names.remove(id) else { return false };
        self.bytes -= size(id, &names);
        true
    }
}

fn size(id: &str, names: &Names) -> usize {
    let labels = names.labels.iter().map(|(key, value)| key.len() + value.len() + 2 * size_of::<String>());
    let pod = names
        .pod
        .as_ref()
        .map_or(0, |pod| pod.uid.len() + pod.name.len() + pod.namespace.len() + pod.config_hash.len());
    ENTRY + 2 * id.len() + names.name.len() + names.image.len() + names.image_digest.len() + pod + labels.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Names {
        Names { name: name.into(), ..Names::default() }
    }

    #[test]
    fn the_oldest_make_room() {
        let mut recent = Recent::new(1 << 20);
        for i in 0..CONTAINERS_MAX + 2 {
            assert!(recent.add(format!("{i}"), named("n")));
        }
        assert_eq!((recent.order.len(), recent.names.len()), (CONTAINERS_MAX, CONTAINERS_MAX));
        assert!(recent.get("1").is_none() && recent.get("2").is_some());
        // Told of twice, it is there once.
        recent.add("2".into(), named("again"));
        assert_eq!((recent.order.len(), recent.get("2").unwrap().name.as_str()), (CONTAINERS_MAX, "again"));
    }

    #[test]
    fn bytes_have_a_bound_whatever_the_runtime_says() {
        let mut recent = Recent::new(1 << 16);
        for i in 0..1000 {
            let labels = (0..64).map(|n| (format!("{n}"), "v".repeat(256))).collect();
            assert!(recent.add(format!("{i}"), Names { labels, ..named("n") }));
            assert!(recent.bytes <= 1 << 16);
        }
        assert!((1..4).contains(&recent.order.len()) && recent.get("999").is_some());
        assert!(!recent.add("x".repeat(ID_MAX + 1), named("n")));
        assert!(!recent.add("y".into(), named(&"n".repeat(1 << 16))));
        while let Some(oldest) = recent.order.pop_front() {
            recent.remove(&oldest);
        }
        assert_eq!(recent.bytes, 0);
    }
}
