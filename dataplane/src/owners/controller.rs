//! What made a container or a process: the controller of its pod, its service of docker-compose, its systemd unit.
//! Kubernetes tells nobody on the host of a pod's owner: it follows from labels and from the pod's name.

use std::fmt;
use std::ops::RangeInclusive;

use super::workload::{Container, Workload};

/// A thing that people configure, of which containers or processes are made. Displayed as `Kind/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// `Deployment`, `ReplicaSet`, `StatefulSet`, `DaemonSet`, `CronJob` or `Job` of Kubernetes, `Compose`, or the kind
    /// of a systemd unit: `Service`, `Scope`, `Socket`, `Mount` or `Swap`.
    pub kind: &'static str,
    /// Its name; `project/service` of docker-compose, and a unit's without its suffix.
    pub name: String,
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Workload {
    /// What it is a part of. `None` where neither labels nor names tell for certain.
    #[must_use]
    pub fn controller(&self) -> Option<Controller> {
        let found = match (&self.container, &self.pod) {
            (Some(container), pod) => {
                of_compose(container).or_else(|| of_pod(container, pod.as_ref().map(|pod| pod.name.as_str())?))
            }
            (None, Some(_)) => None,
            (None, None) => self.unit.as_deref().and_then(of_unit),
        };
        found.map(|(kind, name)| Controller { kind, name })
    }
}

type Found = Option<(&'static str, String)>;

/// docker-compose's labels (docs.docker.com, "Compose: labels"), which podman-compose gives as well.
fn of_compose(container: &Container) -> Found {
    let (project, service) =
        (container.label("com.docker.compose.project")?, container.label("com.docker.compose.service")?);
    Some(("Compose", format!("{project}/{service}")))
}

/// By the well-known labels (kubernetes.io/docs/reference/labels-annotations-taints) and by the pod's name, which is that
/// of its owner: NAME-HASH-RANDOM, NAME-RANDOM, NAME-NUMBER.
fn of_pod(container: &Container, pod: &str) -> Found {
    let label = |key: &str| container.label(key);
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return Some(cron_job_of(job).map_or(("Job", job.to_owned()), |name| ("CronJob", name.to_owned())));
    }
    let (owner, last) = pod.rsplit_once('-').filter(|(owner, _)| !owner.is_empty())?;
    if label("statefulset.kubernetes.io/pod-name") == Some(pod) {
        return Some(("StatefulSet", owner.to_owned()));
    }
    if !is_random(last) {
        return None;
    }
    if let Some(hash) = label("pod-template-hash") {
        // The Deployment gives its ReplicaSets this label and calls them NAME-HASH. One that has the label and is called
        // otherwise was made by somebody else.
        let deployment = owner.strip_suffix(hash).and_then(|name| name.strip_suffix('-')).filter(|n| !n.is_empty());
        return Some(deployment.map_or(("ReplicaSet", owner.to_owned()), |name| ("Deployment", name.to_owned())));
    }
    // StatefulSets give it as well, and the label above with it.
    label("controller-revision-hash").map(|_| ("DaemonSet", owner.to_owned()))
}

/// What the API server appends to a name: five of these (k8s.io/apimachinery, pkg/util/rand, `alphanums`).
fn is_random(suffix: &str) -> bool {
    suffix.len() == 5 && suffix.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b))
}

/// Times that stand for a CronJob: minutes since 1970 (kubernetes pkg/controller/cronjob, `getJobName` and
/// `getTimeHashInMinutes`), from the end of 2020 when that came, and before that seconds (`getTimeHash`), from 2016 to
/// 2030. A date that somebody put behind the name of a Job, 20240131, is neither.
const MINUTES: RangeInclusive<u64> = 26_700_000..=99_999_999;
const SECONDS: RangeInclusive<u64> = 1_450_000_000..=1_900_000_000;

/// The CronJob that made a Job of this name.
fn cron_job_of(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-').filter(|(name, _)| !name.is_empty())?;
    let digits = time.len() >= 8 && time.bytes().all(|b| b.is_ascii_digit());
    let time = time.parse().ok().filter(|_| digits)?;
    (MINUTES.contains(&time) || SECONDS.contains(&time)).then_some(name)
}

/// The kinds of units that have a cgroup for their processes (systemd.resource-control(5)); a slice has none.
const UNITS: [(&str, &str); 5] =
    [("service", "Service"), ("scope", "Scope"), ("socket", "Socket"), ("mount", "Mount"), ("swap", "Swap")];

fn of_unit(unit: &str) -> Found {
    let (name, suffix) = unit.rsplit_once('.').filter(|(name, _)| !name.is_empty())?;
    let (_, kind) = UNITS.iter().find(|(known, _)| *known == suffix)?;
    Some((kind, name.to_owned()))
}

/// Whether a component of a cgroup's path is such a unit.
pub(super) fn is_unit(component: &str) -> bool {
    of_unit(component).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::cgroup::{Runtime, read_path};
    use crate::owners::workload::Pod;

    type Labels = &'static [(&'static str, &'static str)];
    const STATEFUL: &str = "statefulset.kubernetes.io/pod-name";

    /// Pod, labels of its container, what follows.
    const PODS: &[(&str, Labels, Option<&str>)] = &[
        // kubernetes.io/docs/concepts/workloads/controllers/deployment, "Pod-template-hash label".
        ("cart-5d4f8c7b9d-x2x4z", &[("pod-template-hash", "5d4f8c7b9d")], Some("Deployment/cart")),
        ("cart-api-5d4f8c7b9d-x2x4z", &[("pod-template-hash", "5d4f8c7b9d")], Some("Deployment/cart-api")),
        ("cart-5d4f8c7b9d-x2x4z", &[], None),
        ("bare", &[("pod-template-hash", "x")], None),
        ("cart-5d4f8c7b9d-aeiou", &[("pod-template-hash", "5d4f8c7b9d")], None), // no vowels are drawn
        // .../controllers/replicaset: a pod is called NAME-RANDOM, and a ReplicaSet gives no label of its own.
        ("frontend-gbgfx", &[("pod-template-hash", "75675f5897")], Some("ReplicaSet/frontend")),
        ("frontend-gbgfx", &[("tier", "frontend")], None),
        // .../controllers/statefulset, "Pod name label"; .../daemonset; its pods have the hash of their revision.
        ("db-0", &[(STATEFUL, "db-0"), ("controller-revision-hash", "db-1")], Some("StatefulSet/db")),
        ("my-db-12", &[(STATEFUL, "my-db-12")], Some("StatefulSet/my-db")),
        ("db-0", &[("controller-revision-hash", "db-1")], None),
        ("node-agent-9xk2p", &[("controller-revision-hash", "6c9")], Some("DaemonSet/node-agent")),
        ("node-agent-9xk2p", &[], None),
        // .../controllers/job: both labels; the older one has no prefix.
        ("backup-abcde", &[("batch.kubernetes.io/job-name", "backup"), ("job-name", "backup")], Some("Job/backup")),
        ("backup-28411-abcde", &[("job-name", "backup-28411")], Some("Job/backup-28411")),
        ("backup-20240131-bcdfg", &[("job-name", "backup-20240131")], Some("Job/backup-20240131")), // a date
        // .../controllers/cron-jobs, and kubernetes pkg/controller/cronjob: NAME-MINUTES, NAME-SECONDS until 1.20.
        ("hello-27950123-x6zks", &[("batch.kubernetes.io/job-name", "hello-27950123")], Some("CronJob/hello")),
        ("hello-1600000080-o9qcm", &[("job-name", "hello-1600000080")], Some("CronJob/hello")),
        ("a-1-27950123-x6zks", &[("job-name", "a-1-27950123")], Some("CronJob/a-1")),
        ("deploy-4111706356-bcdfg", &[("job-name", "deploy-4111706356")], Some("Job/deploy-4111706356")), // a number
        ("x-27950123", &[("job-name", "-27950123")], Some("Job/-27950123")),
        // kubernetes.io/docs/tasks/configure-pod-container/static-pod: NAME-NODE.
        ("kube-proxy-node1", &[], None),
        // docs.docker.com/reference/compose-file/services, "labels".
        (
            "",
            &[("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web")],
            Some("Compose/shop/web"),
        ),
        ("", &[("com.docker.compose.project", "shop")], None),
    ];

    #[test]
    fn a_controller_is_derived_where_labels_prove_it() {
        for (pod, labels, controller) in PODS {
            let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let id = "a".repeat(64);
            let container = Container { labels, ..Container::new(id, Runtime::Containerd) };
            let pod_of_it = (!pod.is_empty()).then(|| Pod { name: (*pod).into(), ..Pod::default() });
            let workload = Workload { container: Some(container), pod: pod_of_it, ..Workload::default() };
            assert_eq!(
                workload.controller().map(|found| found.to_string()).as_deref(),
                *controller,
                "{pod} {workload:?}"
            );
        }
    }

    #[test]
    fn a_unit_is_one_outside_of_containers_only() {
        let of = |path: &str| Workload::new(path, &read_path(path)).controller().map(|found| found.to_string());
        // systemd.unit(5), systemd.resource-control(5).
        assert_eq!(of("/system.slice/nginx.service").as_deref(), Some("Service/nginx"));
        assert_eq!(of("/system.slice/system-getty.slice/getty@tty1.service").as_deref(), Some("Service/getty@tty1"));
        assert_eq!(of("/user.slice/user-1000.slice/session-2.scope").as_deref(), Some("Scope/session-2"));
        assert_eq!(of("/system.slice/srv-data.mount").as_deref(), Some("Mount/srv-data"));
        assert_eq!(of("/system.slice/docker.socket").as_deref(), Some("Socket/docker"));
        assert_eq!(of("/system.slice"), None);
        assert_eq!(of(&format!("/system.slice/docker-{}.scope", "a".repeat(64))), None);
        assert_eq!(of("/system.slice/web.service/kubepods/pod1d8c0f5c-58a4-4d3c-8a7e-6a3d2f1b9c10"), None);
    }
}
