//! What tells who is behind a socket, and the configuration.

use std::path::Path;

use prost::Message as _;

use super::input::{Input, assert_clean};
use crate::config::Config;
use crate::owners::cgroup::{can_be_asked, path_in_proc, read_path};
use crate::owners::conntrack::read_answers;
use crate::owners::files::lines;
use crate::owners::packages::dpkg::{DpkgIndex, is_path_of, may_be_executed, of_list, spellings};
use crate::owners::runtimes::messages::{
    GetContainerResponse, ImageStatusResponse, ListContainersResponse, ListPodSandboxResponse,
};
use crate::owners::runtimes::{containerd, cri as cri_answers, docker as docker_answers};
use crate::owners::workload::{LABELS_MAX, NameReply, Names, Pod, TEXT_MAX, Workload, WorkloadTable};

/// Longer lines are left out.
const LINE_MAX: u64 = 4096;
/// Longest text that is made of three names and what is between them.
const LABEL_MAX: usize = 3 * TEXT_MAX + 16;

/// The path of a cgroup, and the text of `/proc/PID/cgroup`.
pub fn cgroup_path(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = path_in_proc(&text);
    let meaning = read_path(&text);
    assert!(meaning.containers.len() <= text.len());
    for container in &meaning.containers {
        assert!(!container.id.is_empty() && container.id.len() <= text.len());
        // Such an id becomes a part of a URL.
        let digits = container.id.len() == 64 && container.id.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(digits || !can_be_asked(container.runtime), "{container:?}");
    }
    let workload = Workload::new(&text, &meaning);
    assert_clean(&workload.path, 3 * text.len());
    assert_bounded(&workload);
}

/// Lists of dpkg: an executable, and then names of lists and what is in them, with a NUL after each. The host's index
/// and the search of a container agree.
pub fn packages(data: &[u8]) {
    let mut parts = data.split(|b| *b == 0);
    let exe = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let mut index = DpkgIndex::new(None);
    let mut in_container = false;
    while let (Some(name), Some(list)) = (parts.next(), parts.next()) {
        let Some((file, package)) = std::str::from_utf8(name).ok().and_then(of_list) else { continue };
        assert!(file.as_bytes() == name && !package.is_empty());
        let mut left = list.len() as u64;
        let too_long = lines(list, &mut left, |path| {
            in_container |= is_path_of(&exe, path);
            index.take(package, path)
        });
        assert_eq!(left, 0, "whatever is read counts");
        assert!(too_long.is_ok_and(|lines| lines <= list.len() as u64 / LINE_MAX));
    }
    index.finish();
    assert_eq!(index.left_out, 0);
    let found = index.find(&exe);
    let on_host = found.is_some();
    if let Some(package) = found {
        assert_clean(&package, 3 * data.len());
        assert!(!package.is_empty());
    }
    if spellings(&exe).all(|path| may_be_executed(path.as_bytes())) {
        assert_eq!(on_host, in_container);
    } else {
        assert!(!on_host || in_container);
    }
}

/// What Docker says: an answer about a container, and its events, in pieces as long as the first byte tells.
pub fn docker(data: &[u8]) {
    if let Ok(names) = docker_answers::read_inspection(data) {
        assert_named(names);
    }
    let mut input = Input(data);
    let piece = usize::from(input.u8()).max(1);
    let found = events(input.0.chunks(piece));
    assert_eq!(found, events(std::iter::once(input.0)), "it does not matter where pieces end");
    assert!(found.len() <= data.len());
    for told in found.into_iter().flatten() {
        assert!(told.id.len() <= data.len());
        assert_named(told.names);
    }
}

fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Option<docker_answers::Told>> {
    let (mut lines, mut found) = (docker_answers::Lines::default(), Vec::new());
    pieces.for_each(|piece| lines.take_events(piece, |told| found.push(told)));
    found
}

/// What a CRI runtime says of containers and of their pods: one answer as long as the first two bytes tell, and
/// another.
pub fn cri(data: &[u8]) {
    let mut input = Input(data);
    let length = input.u16();
    let containers = ListContainersResponse::decode(input.take(length.into())).unwrap_or_default().containers;
    let pods = ListPodSandboxResponse::decode(input.0).unwrap_or_default().items;
    assert!(containers.len() + pods.len() <= data.len());
    let image = ImageStatusResponse::decode(data).ok().and_then(|status| status.image).unwrap_or_default();
    for (number, container) in containers.into_iter().enumerate() {
        let mut names = cri_answers::of_container(container, pods.get(number).cloned(), None);
        cri_answers::of_image(&image, &mut names);
        assert_named(names);
    }
    for container in GetContainerResponse::decode(data).into_iter().filter_map(|got| got.container) {
        assert_named(containerd::of_plain(container));
    }
    for pod in pods {
        assert_named(cri_answers::of_sandbox(pod, None));
    }
}

/// A configuration: whatever is wrong with it is said in one line.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("x.toml"), &["zmq".to_owned(), "idle_timeout".to_owned()]) {
        Ok(config) => {
            let runtimes = config.runtimes;
            let sockets = [runtimes.docker, runtimes.podman, runtimes.cri].into_iter().flatten().flatten();
            assert!(sockets.into_iter().all(|socket| socket.0.is_absolute()));
        }
        Err(err) => assert_clean(&err.to_string(), 1000),
    }
}

/// What the kernel says of tracked connections.
pub fn conntrack(data: &[u8]) {
    let mut answers = 0;
    read_answers(data, |_, _| answers += 1);
    assert!(16 * answers <= data.len());
}

/// A container gets these names, which are cut first.
fn assert_named(mut names: Names) {
    names.cut();
    let mut once = names.clone();
    // The order was that of the raw keys.
    once.labels.sort_unstable();
    assert_eq!((names.cut(), &names), (0, &once), "what was cut is not cut again");
    let mut workloads = WorkloadTable::default();
    workloads.learn(1, &format!("/docker/{}", "d".repeat(64)), 0);
    workloads.named(NameReply::Cgroup { cgroup_id: 1, names: Some(Box::new(names)) });
    if let Some(workload) = workloads.peek(1) {
        assert_bounded(workload);
    }
}

/// What is kept and shown of a place is clean and short, whoever named it.
fn assert_bounded(workload: &Workload) {
    let controller = workload.controller().map(|controller| controller.to_string());
    for text in [workload.label(), workload.title(), controller].into_iter().flatten() {
        assert_clean(&text, LABEL_MAX);
        assert!(!text.is_empty());
    }
    for text in [&workload.unit, &workload.slice].into_iter().flatten() {
        assert_clean(text, TEXT_MAX);
    }
    if let Some(Pod { uid, name, namespace, config_hash }) = &workload.pod {
        [uid, name, namespace, config_hash].into_iter().for_each(|text| assert_clean(text, TEXT_MAX));
    }
    let Some(container) = &workload.container else { return };
    let names = [container.id.as_str(), container.short_id(), container.name_or_id()];
    for text in names.into_iter().chain([container.image.as_str(), &container.image_digest]) {
        assert_clean(text, TEXT_MAX);
    }
    assert!(container.labels.len() <= LABELS_MAX);
    for (key, value) in &container.labels {
        assert_clean(key, TEXT_MAX);
        assert_clean(value, TEXT_MAX);
    }
}
