//! Questions to the container runtimes, and what they say: raw strings, which [`super::workload`] makes clean.

use super::cgroup::{Candidate, ContainerRef, PathMeaning, Runtime, can_be_asked};
use super::workload::{LABELS_MAX, Pod, TEXT_MAX, clean_text};

/// A request to the container runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRequest {
    /// Which cgroup.
    pub cgroup_id: u64,
    /// Its path: tells whose runtime it is.
    pub path: String,
    /// The containers around it, the innermost one first.
    pub containers: Vec<ContainerRef>,
    /// Where there is none, what may be one.
    pub candidate: Option<Candidate>,
}

impl NameRequest {
    /// `None` if there is nothing to ask about.
    pub(super) fn new(cgroup_id: u64, path: &str, meaning: PathMeaning) -> Option<Self> {
        let PathMeaning { containers, candidate, .. } = meaning;
        let of_container = containers.first().is_some_and(|container| can_be_asked(container.runtime));
        let path = path.to_owned();
        (of_container || candidate.is_some()).then_some(Self { cgroup_id, path, containers, candidate })
    }
}

/// What a runtime says of a container. Raw strings, as they came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Which of the runtimes, where the path does not tell.
    pub runtime: Option<Runtime>,
    /// Name of the container.
    pub name: String,
    /// Image, without its digest.
    pub image: String,
    /// Digest of the image in its registry.
    pub image_digest: String,
    /// All labels.
    pub labels: Vec<(String, String)>,
    /// Pod, where it is in one.
    pub pod: Option<Pod>,
}

impl Names {
    /// Makes it clean and no longer than what is shown, and tells how many texts were cut or left out.
    pub fn cut(&mut self) -> u64 {
        let mut cut = 0;
        let mut shorten = |text: &mut String| {
            cut += u64::from(text.len() > TEXT_MAX);
            *text = clean_text(text);
        };
        let pod = self.pod.iter_mut().flat_map(|pod| {
            let Pod { uid, name, namespace, config_hash } = pod;
            [uid, name, namespace, config_hash]
        });
        [&mut self.name, &mut self.image, &mut self.image_digest].into_iter().chain(pod).for_each(&mut shorten);
        self.labels.sort_unstable();
        let left_out = self.labels.len().saturating_sub(LABELS_MAX);
        self.labels.truncate(LABELS_MAX);
        self.labels.iter_mut().flat_map(|(key, value)| [key, value]).for_each(shorten);
        // What was cut leaves no large buffer behind.
        self.labels.shrink_to_fit();
        cut + left_out as u64
    }
}

/// The name of an image and its digest, which may be empty: `nginx:1` and `sha256:…` of `nginx:1@sha256:…`.
pub(crate) fn split_digest(image: String) -> (String, String) {
    match image.split_once('@') {
        Some((name, digest)) if !name.is_empty() => (name.to_owned(), digest.to_owned()),
        _ => (image, String::new()),
    }
}

/// What the container runtimes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameReply {
    /// The reply to a [`NameRequest`].
    Cgroup {
        /// Which cgroup.
        cgroup_id: u64,
        /// `None`: no runtime knows it, or none answers; another answer may follow.
        names: Option<Box<Names>>,
    },
    /// A container has a new name, whether it was asked about or not.
    Renamed(Renamed),
}

/// A container that has a new name. Raw strings, as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// The runtime's id.
    pub container_id: String,
    /// What it is called now.
    pub name: String,
    /// Whose runtime tells it, unless root's: believed about that user's containers only.
    pub owner_uid: Option<u32>,
}
