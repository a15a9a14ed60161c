//! `ctl pods` and `workloads`: containers that belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sockeye_ctl::protocol::{Answer, OwnerSort, OwnersArguments};
use sockeye_ctl::rows;

use super::owners::{Line, Owners, answer, by_workload, is_shown, matches};
use super::who::{known, label_text, pod_name, workload_name};
use crate::flows::aggregates::Aggregate;
use crate::owners::workload::{Pod, Workload};

rows! {
    /// Pods with flows.
    struct PodHead: "pods" {
        /// name
        pod: Text = Option<String>,
        /// namespace
        namespace: Text = Option<String>,
        /// uid, as the kubelet knows it
        uid: Text = String,
        /// of a static pod, the hash of its configuration: kubectl shows it as annotation kubernetes.io/config.mirror, and another uid
        config_mirror: Text = Option<String>,
        /// its containers with flows
        containers: Text = BTreeSet<String>,
        /// kind of what it is a part of: Deployment, StatefulSet, ...
        workload_kind: Text = Option<String>,
        /// name of that, with namespace and kind before it
        workload_name: Text = Option<String>,
        /// labels, as key=value
        labels: Text = BTreeSet<String>,
        /// running, or gone
        state: Text = Option<&'static str>,
    }
}

/// Kubernetes' pods.
pub(crate) fn pods(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let mut pods: BTreeMap<String, Group> = BTreeMap::new();
    let key = |workload: &Workload| {
        let pod = workload.pod.as_ref()?;
        Some((pod.uid.clone(), workload.container.as_ref().map(|container| container.id.clone())))
    };
    for ((uid, _), (workload, group, open)) in by_workload(of, key) {
        pods.entry(uid).or_default().add(workload, &group, open, a.all);
    }
    let is_named = |group: &Group| {
        let pod = group.members.iter().find_map(|member| member.place.pod.as_ref()).map(pod_name);
        matches(pod.as_deref(), a)
    };
    let text = |members: &Vec<Member>, sort| {
        let pod = members.iter().find_map(|member| member.place.pod.as_ref());
        match sort {
            OwnerSort::State => state(members, of),
            OwnerSort::Place => pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            _ => {
                pod.map(|pod| if pod.name.is_empty() { pod.uid.clone() } else { pod.name.clone() }).unwrap_or_default()
            }
        }
    };
    let lines = lines_of(pods.into_values().filter(is_named), of);
    answer(lines, a, Some(of.recent(a.history)), text, |members| pod_head(&members, of))
}

fn pod_head(members: &[Member], of: &Owners<'_>) -> PodHead {
    let places = || members.iter().map(|member| &*member.place);
    let pods = || places().filter_map(|place| place.pod.as_ref());
    let named = places().find(|place| place.pod.as_ref().is_some_and(|pod| !pod.name.is_empty()));
    let containers = || places().filter_map(|place| place.container.as_ref());
    let shown = members.iter().filter(|member| member.is_shown).filter_map(|member| member.place.container.as_ref());
    let labels = containers().flat_map(|container| &container.labels).filter(|(key, _)| is_of_pod(key));
    let (workload_kind, workload_name) = named.and_then(workload_name).unzip();
    let pod = named.and_then(|place| place.pod.as_ref());
    PodHead {
        pod: pod.map(|pod| pod.name.clone()),
        namespace: pod.and_then(|pod| known(&pod.namespace)),
        uid: pods().map(|pod| pod.uid.clone()).next().unwrap_or_default(),
        config_mirror: pods().find_map(|pod| known(&pod.config_hash)),
        // A container that is started again and again has a name, and many ids.
        containers: shown.map(|container| container.name_or_id().to_owned()).collect(),
        workload_kind,
        workload_name,
        labels: labels.map(label_text).collect(),
        state: of.state_of(places()),
    }
}

/// The kubelet's labels say what is in columns of their own.
fn is_of_pod(key: &str) -> bool {
    !key.starts_with("io.kubernetes.") && !key.starts_with("io.cri-containerd.")
}

/// A place, and whether it has flows, or is shown without.
struct Member {
    place: Arc<Workload>,
    is_shown: bool,
}

/// Places that belong together, and the figures of all.
#[derive(Default)]
struct Group {
    members: Vec<Member>,
    aggregate: Aggregate,
    open: u64,
}

impl Group {
    fn add(&mut self, place: Arc<Workload>, aggregate: &Aggregate, open: u64, all: bool) {
        let is_shown = is_shown(aggregate, open, all);
        self.members.push(Member { place, is_shown });
        self.aggregate.add(aggregate);
        self.open += open;
    }
}

fn state(members: &[Member], of: &Owners<'_>) -> String {
    of.state_of(members.iter().map(|member| &*member.place)).unwrap_or_default().to_owned()
}

fn lines_of(groups: impl Iterator<Item = Group>, of: &Owners<'_>) -> Vec<Line<Vec<Member>>> {
    groups
        .filter(|group| group.members.iter().any(|member| member.is_shown))
        .map(|group| Line::new(group.members, (group.aggregate, group.open), of))
        .collect()
}

rows! {
    /// What containers are a part of, and services of the host in their place.
    struct WorkloadHead: "workloads" {
        /// with namespace and kind before it
        workload: Text = String,
        /// Deployment, StatefulSet, DaemonSet, Job, CronJob, a compose service, a pod of its own, a unit of systemd, ...
        kind: Text = String,
        /// namespace
        namespace: Text = Option<String>,
        /// pods with flows
        pods: Count = usize,
        /// containers with flows
        containers: Count = usize,
        /// images
        images: Text = BTreeSet<String>,
        /// running, or gone
        state: Text = Option<&'static str>,
    }
}

/// Workloads: Kubernetes' controllers, compose services, units of systemd.
pub(crate) fn workloads(of: &Owners<'_>, a: &OwnersArguments) -> Answer {
    let mut workloads: BTreeMap<(String, String), Group> = BTreeMap::new();
    let key = |workload: &Workload| {
        let (kind, name) = workload_name(workload)?;
        Some((kind, name, workload.container.as_ref().map(|container| container.id.clone())))
    };
    for ((kind, name, _), (workload, group, open)) in by_workload(of, key) {
        if matches(Some(&name), a) {
            workloads.entry((kind, name)).or_default().add(workload, &group, open, a.all);
        }
    }
    let text = |members: &Vec<Member>, sort| match sort {
        OwnerSort::State => state(members, of),
        _ => members.first().and_then(|member| workload_name(&member.place)).map(|(_, name)| name).unwrap_or_default(),
    };
    let mut lines = lines_of(workloads.into_values(), of);
    lines.iter_mut().for_each(|line| line.pods = pods_of(&line.of).len());
    answer(lines, a, Some(of.recent(a.history)), text, |members| workload_head(&members, of))
}

/// Those with flows, by their uid.
fn pods_of(members: &[Member]) -> BTreeMap<&str, &Pod> {
    let pods = members.iter().filter(|member| member.is_shown).filter_map(|member| member.place.pod.as_ref());
    pods.map(|pod| (pod.uid.as_str(), pod)).collect()
}

fn workload_head(members: &[Member], of: &Owners<'_>) -> WorkloadHead {
    let places = || members.iter().map(|member| &*member.place);
    let shown = || members.iter().filter(|member| member.is_shown).map(|member| &*member.place);
    let pods = pods_of(members);
    let containers = || shown().filter_map(|place| place.container.as_ref());
    let (kind, workload) = places().next().and_then(workload_name).unwrap_or_default();
    WorkloadHead {
        workload,
        kind,
        namespace: pods.values().find_map(|pod| known(&pod.namespace)),
        pods: pods.len(),
        containers: containers().count(),
        images: containers().filter_map(|container| known(&container.image)).collect(),
        state: of.state_of(places()),
    }
}
