//! Where a process lives: its container, its pod, its systemd unit. Learnt from the path of its cgroup at once, and
//! named by the runtime's own API a little later.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use hashbrown::HashMap;
use sockeye_bpf::records::CgroupRecord;

use crate::model::text::{clean, components, truncate};
use crate::owners::cgroup::{PathMeaning, Runtime, can_be_asked, is_of_user, read_path};
pub(crate) use crate::owners::names::split_digest;
pub use crate::owners::names::{NameReply, NameRequest, Names, Renamed};

/// Most cgroups that are remembered.
pub const WORKLOADS_MAX: usize = 1 << 14;
/// How long a cgroup is remembered after its last use, nanoseconds: the last flows of a container that has gone still
/// get its name.
const KEEP_NS: u64 = 600_000_000_000;
/// Longest name of a container, pod, image or namespace, and longest key and value of a label, bytes.
pub(crate) const TEXT_MAX: usize = 256;
/// Labels that are kept of a container.
pub(crate) const LABELS_MAX: usize = 64;

/// A pod of Kubernetes or, without a namespace, of Podman.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pod {
    /// From the path of the cgroup, or from the runtime.
    pub uid: String,
    /// Empty = not known.
    pub name: String,
    /// Empty = not known.
    pub namespace: String,
    /// Of a static pod, the hash of its configuration, which the pod that the API server shows has as its annotation
    /// `kubernetes.io/config.mirror`, while its uid is another one. Empty = none.
    pub config_hash: String,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// The runtime.
    pub runtime: Runtime,
    /// Name by the runtime; in a pod that of the container. Empty = not known.
    pub name: String,
    /// Name of its image, or the id where it has none. Empty = not known.
    pub image: String,
    /// Digest of the image in its registry, `sha256:…`. Empty = not known.
    pub image_digest: String,
    /// Labels, sorted by key.
    pub labels: Vec<(String, String)>,
}

impl Container {
    /// One of which nothing else is known.
    #[must_use]
    pub fn new(id: String, runtime: Runtime) -> Self {
        Self { id, runtime, name: String::new(), image: String::new(), image_digest: String::new(), labels: Vec::new() }
    }

    /// The id as runtimes print it: the first 12 of 64 digits. A name, as LXC has, is not shortened, however long it
    /// is.
    #[must_use]
    pub fn short_id(&self) -> &str {
        let digits = self.id.len() == 64 && self.id.bytes().all(|b| b.is_ascii_hexdigit());
        self.id.get(..12).filter(|_| digits).unwrap_or(&self.id)
    }

    /// Value of a label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The name, or the short id.
    #[must_use]
    pub fn name_or_id(&self) -> &str {
        if self.name.is_empty() { self.short_id() } else { &self.name }
    }
}

/// Where processes of one cgroup live. Strings are clean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Path of the cgroup.
    pub path: String,
    /// Innermost container.
    pub container: Option<Container>,
    /// Pod.
    pub pod: Option<Pod>,
    /// systemd service or scope, outside of containers.
    pub unit: Option<String>,
    /// Its slice.
    pub slice: Option<String>,
}

impl Workload {
    /// Whether a container is meant: by its name, the beginning of its id, as it is shown, by its pod, or its unit.
    #[must_use]
    pub fn is_container(&self, text: &str) -> bool {
        let container = self.container.as_ref().is_some_and(|c| c.name == text || c.id.starts_with(text));
        container || self.title().as_deref() == Some(text) || self.is_pod(text)
    }

    /// Whether its pod is meant: by name, uid, or as `NAMESPACE/NAME`.
    #[must_use]
    pub fn is_pod(&self, text: &str) -> bool {
        self.pod.as_ref().is_some_and(|pod| {
            let with_namespace = text.strip_prefix(pod.namespace.as_str()).and_then(|rest| rest.strip_prefix('/'));
            pod.name == text || pod.uid == text || (!pod.name.is_empty() && with_namespace == Some(&pod.name))
        })
    }

    /// What the path of a cgroup tells.
    #[must_use]
    pub fn new(path: &str, meaning: &PathMeaning) -> Self {
        Self {
            path: clean(path.as_bytes()),
            container: meaning.containers.first().map(|c| {
                let container = Container::new(clean_text(&c.id), c.runtime);
                // What has no runtime to ask is called by its id.
                let name = if can_be_asked(c.runtime) { String::new() } else { container.id.clone() };
                Container { name, ..container }
            }),
            pod: meaning.pod_uid.as_deref().map(|uid| Pod { uid: clean_text(uid), ..Pod::default() }),
            unit: meaning.unit.as_deref().map(clean_text),
            slice: meaning.slice.as_deref().map(clean_text),
        }
    }

    /// The container by name: `namespace/pod/container`, `pod/container` in one of Podman, the runtime's name, or the
    /// short id while no name is known.
    /// `None` outside of containers.
    #[must_use]
    pub fn label(&self) -> Option<String> {
        let container = self.container.as_ref()?;
        Some(match &self.pod {
            Some(pod) if !pod.name.is_empty() => {
                let slash = if pod.namespace.is_empty() { "" } else { "/" };
                format!("{}{slash}{}/{}", pod.namespace, pod.name, container.name_or_id())
            }
            _ => container.name_or_id().to_owned(),
        })
    }

    /// How people should see it: as [`Self::label`], and the unit of a service.
    #[must_use]
    pub fn title(&self) -> Option<String> {
        self.label().or_else(|| self.unit.clone())
    }
}

pub(super) fn clean_text(raw: &str) -> String {
    let mut text = clean(&raw.as_bytes()[..raw.len().min(4 * TEXT_MAX)]);
    truncate(&mut text, TEXT_MAX);
    text
}

struct Entry {
    workload: Arc<Workload>,
    /// All is known that can be known by now.
    complete: bool,
    /// A request is among those that have come up: there is one of each cgroup at most.
    wanted: bool,
    last_used_ns: u64,
}

/// All cgroups with flows. Owned by the control thread.
#[derive(Default)]
pub struct WorkloadTable {
    entries: HashMap<u64, Entry, ahash::RandomState>,
    wanted: Vec<NameRequest>,
    refused: u64,
}

impl WorkloadTable {
    /// Takes the path of a cgroup, and wants names where there is a container.
    pub fn learn(&mut self, cgroup_id: u64, path: &str, now_ns: u64) {
        if let Some(entry) = self.entries.get_mut(&cgroup_id) {
            entry.last_used_ns = now_ns;
            return;
        }
        if self.entries.len() >= WORKLOADS_MAX {
            self.refused += 1;
            return;
        }
        let meaning = read_path(path);
        let workload = Workload::new(path, &meaning);
        let request = NameRequest::new(cgroup_id, path, meaning);
        let wanted = request.is_some();
        self.wanted.extend(request);
        self.entries
            .insert(cgroup_id, Entry { workload: Arc::new(workload), complete: !wanted, wanted, last_used_ns: now_ns });
    }

    /// Takes a record of the kernel.
    pub fn learn_record(&mut self, r: &CgroupRecord, now_ns: u64) {
        let bytes = &r.path[..usize::from(r.len).min(r.path.len())];
        let mut path = components(bytes);
        if path.is_empty() {
            path.push('/');
        }
        if r.complete == 0 {
            // Too deep for the record: what is nearest to the process is there.
            path.insert_str(0, "/…");
        }
        self.learn(r.cgroup_id, &path, now_ns);
    }

    /// Takes what the container runtimes tell.
    pub fn named(&mut self, reply: NameReply) {
        match reply {
            NameReply::Cgroup { cgroup_id, names } => self.answered(cgroup_id, names),
            NameReply::Renamed(renamed) => self.renamed(&renamed),
        }
    }

    fn answered(&mut self, cgroup_id: u64, names: Option<Box<Names>>) {
        let Some(entry) = self.entries.get_mut(&cgroup_id) else { return };
        entry.complete = true;
        let Some(names) = names else { return };
        let mut workload = (*entry.workload).clone();
        if workload.container.is_none() {
            // A candidate, and it is one.
            let candidate = read_path(&workload.path).candidate;
            workload.container = candidate.map(|candidate| Container::new(candidate.id, Runtime::Containerd));
        }
        if let Some(container) = &mut workload.container {
            container.runtime = names.runtime.unwrap_or(container.runtime);
            container.name = clean_text(&names.name);
            container.image = clean_text(&names.image);
            container.image_digest = clean_text(&names.image_digest);
            container.labels = clean_labels(&names.labels);
        }
        if let Some(pod) = names.pod {
            workload.pod = Some(Pod {
                uid: workload.pod.map_or_else(|| clean_text(&pod.uid), |of_path| of_path.uid),
                name: clean_text(&pod.name),
                namespace: clean_text(&pod.namespace),
                config_hash: clean_text(&pod.config_hash),
            });
        }
        entry.workload = Arc::new(workload);
    }

    /// A container may have many cgroups, as one in which systemd runs. Those of containers inside of it have its name in
    /// theirs: they are asked about again.
    fn renamed(&mut self, renamed: &Renamed) {
        let Renamed { container_id, name, owner_uid } = renamed;
        for (cgroup_id, entry) in &mut self.entries {
            let workload = &entry.workload;
            let Some(container) = &workload.container else { continue };
            let of_it = container.id == *container_id;
            if !(of_it || workload.path.contains(container_id)) || !is_of_user(*owner_uid, &workload.path) {
                continue;
            }
            if of_it {
                let workload = Arc::make_mut(&mut entry.workload);
                workload.container.iter_mut().for_each(|container| container.name = clean_text(name));
            } else if !entry.wanted {
                let request = NameRequest::new(*cgroup_id, &workload.path, read_path(&workload.path));
                entry.wanted = request.is_some();
                self.wanted.extend(request);
            }
        }
    }

    /// The workload, and whether all that can be known of it is there.
    pub fn get(&mut self, cgroup_id: u64, now_ns: u64) -> (Option<Arc<Workload>>, bool) {
        match self.entries.get_mut(&cgroup_id) {
            Some(entry) => {
                entry.last_used_ns = now_ns;
                (Some(Arc::clone(&entry.workload)), entry.complete)
            }
            None => (None, true),
        }
    }

    /// The workload, without marking it as used.
    #[must_use]
    pub fn peek(&self, cgroup_id: u64) -> Option<&Arc<Workload>> {
        self.entries.get(&cgroup_id).map(|entry| &entry.workload)
    }

    /// Whether its runtime has been asked, and has not answered yet.
    #[must_use]
    pub fn awaits_names(&self, cgroup_id: u64) -> bool {
        self.entries.get(&cgroup_id).is_some_and(|entry| !entry.complete)
    }

    /// All that are known, by the id of the cgroup.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Arc<Workload>)> {
        self.entries.iter().map(|(id, entry)| (*id, &entry.workload))
    }

    /// Requests that have come up since the last call.
    pub fn take_requests(&mut self) -> Vec<NameRequest> {
        let requests = std::mem::take(&mut self.wanted);
        for request in &requests {
            if let Some(entry) = self.entries.get_mut(&request.cgroup_id) {
                entry.wanted = false;
            }
        }
        requests
    }

    /// Takes back requests for which there was no room: they come up again with the next ones, and flows do not wait
    /// for them. How many it is the first time for.
    pub fn not_asked(&mut self, requests: impl Iterator<Item = NameRequest>) -> u64 {
        let mut first = 0;
        for request in requests {
            if let Some(entry) = self.entries.get_mut(&request.cgroup_id) {
                first += u64::from(!std::mem::replace(&mut entry.complete, true));
                if !std::mem::replace(&mut entry.wanted, true) {
                    self.wanted.push(request);
                }
            }
        }
        first
    }

    /// Forgets cgroups that nothing has asked for in a while, and returns them.
    pub fn expire(&mut self, now_ns: u64) -> Vec<u64> {
        let over = self.entries.extract_if(|_, entry| entry.last_used_ns + KEEP_NS <= now_ns);
        let over: Vec<u64> = over.map(|(id, _)| id).collect();
        if !over.is_empty() {
            self.wanted.retain(|request| self.entries.contains_key(&request.cgroup_id));
        }
        over
    }

    /// Cgroups that were not remembered because the table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Containers whose name is not known, and all containers.
    #[must_use]
    pub fn containers(&self) -> (u64, u64) {
        let containers = || self.entries.values().filter_map(|entry| entry.workload.container.as_ref());
        (containers().filter(|c| c.name.is_empty()).count() as u64, containers().count() as u64)
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn clean_labels(labels: &[(String, String)]) -> Vec<(String, String)> {
    let mut labels: Vec<_> = labels.iter().map(|(key, value)| (clean_text(key), clean_text(value))).collect();
    labels.sort();
    labels.truncate(LABELS_MAX);
    labels
}
