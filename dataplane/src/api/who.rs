//! Who is at the ends of a flow, and what that belongs to.

use std::sync::Arc;

use sockeye_ctl::protocol::GroupBy;

use crate::flows::Flow;
use crate::flows::conversations::Talker;
use crate::model::flow::{Addr, ProcKey, Side};
use crate::model::rtt::Network;
use crate::owners::process::{Process, ProcessTable};
use crate::owners::workload::Workload;

/// This host, as it calls itself.
pub(super) fn node() -> String {
    crate::model::text::clean(rustix::system::uname().nodename().to_bytes())
}

/// An end that is on this host.
#[derive(Clone, Copy)]
pub(super) struct End<'a> {
    pub(super) process: Option<&'a Arc<Process>>,
    pub(super) workload: Option<&'a Arc<Workload>>,
}

/// The local ends of a flow, initiator and responder. Of one that is over, as collectors were told: its processes may have
/// been forgotten.
pub(super) fn ends_of<'a>(flow: &'a Flow, processes: &'a ProcessTable) -> [Option<End<'a>>; 2] {
    Side::BOTH.map(|side| {
        let owner = flow.end(side)?.owner;
        let told = flow.told(side);
        let process = processes.peek(owner).or_else(|| told.and_then(|told| told.process.as_ref()));
        let workload = processes.workload(owner).or_else(|| told.and_then(|told| told.workload.as_ref()));
        Some(End { process, workload })
    })
}

/// A text, unless it is empty: not known.
pub(super) fn known(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A label, as it is shown and asked for.
pub(super) fn label_text((key, value): &(String, String)) -> String {
    format!("{key}={value}")
}

/// What an end belongs to, by what is asked for. Not by `Service` and `Network`, which a flow as a whole tells.
pub(super) fn group_of(by: &GroupBy, end: End<'_>) -> Option<String> {
    match by {
        GroupBy::Host => Some("host".into()),
        GroupBy::Process => end.process.map(|process| format!("{}[{}]", process.name, process.key.pid)),
        GroupBy::User => end.process.map(|process| process.user_or_uid()),
        _ => group_of_workload(by, end.workload?),
    }
}

/// The same of a process, which may have been forgotten: then its pid is left.
pub(super) fn group_of_process(by: &GroupBy, key: ProcKey, processes: &ProcessTable) -> String {
    let end = End { process: processes.peek(key), workload: None };
    group_of(by, end).unwrap_or_else(|| format!("?[{}]", key.pid))
}

/// The same for what only a place tells.
pub(super) fn group_of_workload(by: &GroupBy, workload: &Workload) -> Option<String> {
    let (pod, container) = (workload.pod.as_ref(), workload.container.as_ref());
    match by {
        GroupBy::Host => Some("host".into()),
        GroupBy::Container => workload.title(),
        GroupBy::Pod => pod.map(pod_name),
        GroupBy::Namespace => pod.and_then(|pod| known(&pod.namespace)),
        GroupBy::Workload | GroupBy::Service => Some(workload_name(workload)?.1),
        GroupBy::Image => container.and_then(|container| known(&container.image)),
        GroupBy::Slice => workload.slice.clone(),
        GroupBy::Label(key) => container.and_then(|container| container.label(key)).map(str::to_owned),
        GroupBy::Process | GroupBy::User | GroupBy::Network | GroupBy::Name => None,
    }
}

/// `namespace/name` of a pod, or its uid.
pub(super) fn pod_name(pod: &crate::owners::workload::Pod) -> String {
    match (pod.name.as_str(), pod.namespace.as_str()) {
        ("", _) => pod.uid.clone(),
        (name, "") => name.to_owned(),
        (name, namespace) => format!("{namespace}/{name}"),
    }
}

/// Kind and full name of what a place is a part of: the controller of a pod, the pod itself, a compose service, a container,
/// a unit of systemd.
pub(super) fn workload_name(workload: &Workload) -> Option<(String, String)> {
    let namespace = workload.pod.as_ref().map_or("", |pod| pod.namespace.as_str());
    if let Some(controller) = workload.controller() {
        let name = if namespace.is_empty() { controller.to_string() } else { format!("{namespace}/{controller}") };
        return Some((controller.kind.into(), name));
    }
    if let Some(pod) = &workload.pod {
        return Some(("Pod".into(), pod_name(pod)));
    }
    let kind = if workload.container.is_some() { "Container" } else { "Unit" };
    Some((kind.into(), workload.title()?))
}

/// What one side of a conversation belongs to; a network that is not on this host by its address.
pub(super) fn group_of_talker(by: &GroupBy, talker: &Talker) -> Option<String> {
    let end = End { process: talker.process.as_ref(), workload: talker.workload.as_ref() };
    group_of_side(by, Some(end).filter(|_| talker.is_local), talker.network)
}

/// The same of both ends of a flow.
pub(super) fn names_of_both(by: &GroupBy, flow: &Flow, ends: &[Option<End<'_>>; 2]) -> [Option<String>; 2] {
    let addrs = Side::BOTH.map(|side| flow.key.endpoint(side).addr);
    let name = flow.peer_name().and_then(|name| name.sole());
    groups_of_ends(by, ends, addrs, name.map(|name| &**name))
}

/// Of ends at these addresses; by name, what the responder is called without a doubt.
fn groups_of_ends(
    by: &GroupBy,
    ends: &[Option<End<'_>>; 2],
    addrs: [Addr; 2],
    name: Option<&str>,
) -> [Option<String>; 2] {
    let of_side = |side: Side| group_of_side(by, ends[side as usize], Network::of(addrs[side as usize].0));
    let [initiator, responder] = Side::BOTH.map(of_side);
    [initiator, named_responder(by, name).or(responder)]
}

/// By name, the responder is what it is called, if it is.
pub(super) fn named_responder(by: &GroupBy, name: Option<&str>) -> Option<String> {
    name.filter(|_| *by == GroupBy::Name).map(str::to_owned)
}

fn group_of_side(by: &GroupBy, end: Option<End<'_>>, network: Network) -> Option<String> {
    // Who connects has no name of that kind.
    let by = if *by == GroupBy::Name { &GroupBy::Workload } else { by };
    let Some(end) = end.filter(|_| *by != GroupBy::Network) else { return Some(network.to_string()) };
    if *by == GroupBy::Process {
        // The conversations of all processes of a name in one place are one.
        let name = end.process.map(|process| process.name.clone())?;
        let place = end.workload.and_then(|workload| workload.title());
        return Some(place.map_or(name.clone(), |place| format!("{name} @{place}")));
    }
    group_of(by, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_the_responder_is_what_it_is_called_and_the_initiator_where_it_lives() {
        let unit = Arc::new(Workload { unit: Some("cart.service".into()), ..Workload::default() });
        let ends = [Some(End { process: None, workload: Some(&unit) }), None];
        let addr = |text: &str| Addr::from(text.parse::<std::net::IpAddr>().unwrap());
        let addrs = [addr("10.1.2.3"), addr("203.0.113.7")];
        let groups = |by: &GroupBy, name| groups_of_ends(by, &ends, addrs, name).map(Option::unwrap_or_default);
        let (by, name) = (&GroupBy::Name, Some("downloads.example.net"));
        assert_eq!(groups(by, name), ["Service/cart", "downloads.example.net"]);
        assert_eq!(groups(by, None), ["Service/cart", "203.0.113.0/24"]);
        assert_eq!(groups(&GroupBy::Workload, name), ["Service/cart", "203.0.113.0/24"]);
    }
}
