//! `ctl pods` and `workloads`: containers that belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sockeye_ctl::protocol::{Answer, OwnersArguments};
use sockeye_ctl::rows;

use super::owners::{Line, Owners, answer, by_workload, known, matches};
use super::who::{pod_name, workload_name};
use crate::flows::aggregates::Aggregate;
use crate::owners::workload::Workload;

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
        pods.entry(uid).or_default().add(workload, &group, open);
    }
    let is_named = |group: &Group| {
        let pod = group.members.iter().find_map(|workload| workload.pod.as_ref()).map(pod_name);
        matches(pod.as_deref(), a)
    };
    answer(lines_of(pods.into_values().filter(is_named), of, a), a, |members| pod_head(&members, of))
}

fn pod_head(members: &[Arc<Workload>], of: &Owners<'_>) -> PodHead {
    let pods = || members.iter().filter_map(|workload| workload.pod.as_ref());
    let named = members.iter().find(|workload| workload.pod.as_ref().is_some_and(|pod| !pod.name.is_empty()));
    let containers = || members.iter().filter_map(|workload| workload.container.as_ref());
    let labels = containers().flat_map(|container| &container.labels).filter(|(key, _)| is_of_pod(key));
    let (workload_kind, workload_name) = named.and_then(|workload| workload_name(workload)).unzip();
    let pod = named.and_then(|workload| workload.pod.as_ref());
    PodHead {
        pod: pod.map(|pod| pod.name.clone()),
        namespace: pod.and_then(|pod| known(&pod.namespace)),
        uid: pods().map(|pod| pod.uid.clone()).next().unwrap_or_default(),
        config_mirror: pods().find_map(|pod| known(&pod.config_hash)),
        // A container that is started again and again has a name, and many ids.
        containers: containers().map(|container| container.name_or_id().to_owned()).collect(),
        workload_kind,
        workload_name,
        labels: labels.map(|(key, value)| format!("{key}={value}")).collect(),
        state: of.state_of(members.iter().map(|workload| &**workload)),
    }
}

/// The kubelet's labels say what is in columns of their own.
fn is_of_pod(key: &str) -> bool {
    !key.starts_with("io.kubernetes.") && !key.starts_with("io.cri-containerd.")
}

/// Places that belong together, and the figures of all.
#[derive(Default)]
struct Group {
    members: Vec<Arc<Workload>>,
    aggregate: Aggregate,
    open: u64,
}

impl Group {
    fn add(&mut self, workload: Arc<Workload>, aggregate: &Aggregate, open: u64) {
        self.members.push(workload);
        self.aggregate.add(aggregate);
        self.open += open;
    }
}

fn lines_of(
    groups: impl Iterator<Item = Group>,
    of: &Owners<'_>,
    a: &OwnersArguments,
) -> Vec<Line<Vec<Arc<Workload>>>> {
    groups
        .filter(|group| a.all || group.open > 0 || group.aggregate.has_figures())
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
            workloads.entry((kind, name)).or_default().add(workload, &group, open);
        }
    }
    answer(lines_of(workloads.into_values(), of, a), a, |members| workload_head(&members, of))
}

fn workload_head(members: &[Arc<Workload>], of: &Owners<'_>) -> WorkloadHead {
    let pods: BTreeMap<_, _> =
        members.iter().filter_map(|workload| workload.pod.as_ref()).map(|pod| (&pod.uid, pod)).collect();
    let containers = || members.iter().filter_map(|workload| workload.container.as_ref());
    let (kind, workload) = members.first().and_then(|workload| workload_name(workload)).unwrap_or_default();
    WorkloadHead {
        workload,
        kind,
        namespace: pods.values().find_map(|pod| known(&pod.namespace)),
        pods: pods.len(),
        containers: containers().count(),
        images: containers().filter_map(|container| known(&container.image)).collect(),
        state: of.state_of(members.iter().map(|workload| &**workload)),
    }
}
