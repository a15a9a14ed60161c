//! Who is behind an end of a flow, in the words of Prometheus.

use crate::flows::report::Identity;
use crate::model::flow::Side;
use crate::owners::workload::Workload;

/// What is said of whom there is no place for.
pub const OTHER: &str = "other";
/// What is said of a process that is not known.
const UNKNOWN: &str = "unknown";

/// Who is behind one end of a flow. Empty = there is none, or it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndLabels {
    /// Short name of the process.
    pub process: String,
    /// Name of the container, or its id.
    pub container: String,
    /// Name of the pod, or its uid.
    pub pod: String,
    /// Its namespace.
    pub namespace: String,
    /// What it is a part of: `Deployment/cart`, `Service/nginx`; a pod or container that is a part of nothing known: itself.
    pub workload: String,
    /// Whether it began the flow.
    pub role: Side,
}

/// Who has asked which DNS server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DnsLabels {
    /// Who has asked.
    pub client: EndLabels,
    /// The address of the server.
    pub server: String,
}

/// Where round-trip times were measured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RttLabels {
    /// As in [`EndLabels`].
    pub namespace: String,
    /// As in [`EndLabels`].
    pub workload: String,
    /// As in [`EndLabels`].
    pub role: Side,
}

impl EndLabels {
    pub(super) fn of(identity: &Identity, role: Side) -> Self {
        let process = identity.process.as_ref().map_or(UNKNOWN, |process| &process.name);
        let container = identity.workload.as_ref().and_then(|workload| workload.container.as_ref());
        let (pod, namespace) = pod_of(identity.workload.as_deref());
        Self {
            process: process.to_owned(),
            container: container.map(|container| container.name_or_id().to_owned()).unwrap_or_default(),
            pod,
            namespace,
            workload: workload_of(identity.workload.as_deref()),
            role,
        }
    }
}

impl RttLabels {
    pub(super) fn of(identity: &Identity, role: Side) -> Self {
        let workload = identity.workload.as_deref();
        Self { namespace: pod_of(workload).1, workload: workload_of(workload), role }
    }
}

/// Name and namespace.
fn pod_of(workload: Option<&Workload>) -> (String, String) {
    let Some(pod) = workload.and_then(|workload| workload.pod.as_ref()) else { return Default::default() };
    (if pod.name.is_empty() { pod.uid.clone() } else { pod.name.clone() }, pod.namespace.clone())
}

fn workload_of(workload: Option<&Workload>) -> String {
    let Some(workload) = workload else { return String::new() };
    if let Some(controller) = workload.controller() {
        return controller.to_string();
    }
    match (&workload.pod, &workload.container) {
        (Some(_), _) => format!("Pod/{}", pod_of(Some(workload)).0),
        (None, Some(container)) => format!("Container/{}", container.name_or_id()),
        (None, None) => String::new(),
    }
}
