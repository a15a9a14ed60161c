//! Which flows are asked for.

use sockeye_ctl::protocol::{Direction, FlowsArguments, Pair, Protocol};

use super::order;
use super::text::Word;
use super::who::{End, ends_of, names_of_both};
use crate::flows::Flow;
use crate::model::flow::{Proto, Side, State};
use crate::owners::process::ProcessTable;
use crate::owners::workload::Workload;

/// Which flows are wanted, and in which order.
pub(super) struct Wanted {
    arguments: FlowsArguments,
    states: Vec<State>,
    ids: Vec<u64>,
    words: Vec<Word>,
    now_ns: u64,
}

impl Wanted {
    /// Reads what was asked for.
    ///
    /// # Errors
    /// If there is no such state, or no such id.
    pub(super) fn new(arguments: &FlowsArguments, now_ns: u64) -> Result<Self, String> {
        let state = |name: &String| {
            State::ALL.into_iter().find(|state| state.name() == name).ok_or_else(|| {
                let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
                format!("there is no state {name:?}: {} are known", known.join(", "))
            })
        };
        let states = arguments.state.iter().map(state).collect::<Result<_, _>>()?;
        let id = |text: &String| {
            u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no id of a flow: ctl flows --json tells it"))
        };
        let ids = arguments.id.iter().map(id).collect::<Result<_, _>>()?;
        let words = arguments.text.iter().map(|text| Word::new(text)).collect();
        Ok(Self { arguments: arguments.clone(), states, ids, words, now_ns })
    }

    pub(super) fn arguments(&self) -> &FlowsArguments {
        &self.arguments
    }

    /// Those that have ended, and left the table, are asked for, too.
    pub(super) fn has_ended(&self) -> bool {
        let a = &self.arguments;
        a.closed || a.ended || a.after.is_some() || !a.id.is_empty()
    }

    /// Whether a flow matches all that was asked for.
    pub(super) fn is(&self, flow: &Flow, processes: &ProcessTable) -> bool {
        self.is_by_itself(flow)
            && self.is_by_its_ends(flow, processes)
            && self.words.iter().all(|word| word.is_in(flow, processes))
    }

    fn is_by_itself(&self, flow: &Flow) -> bool {
        let a = &self.arguments;
        if flow.is_left_out() || (a.closed && a.id.is_empty() && !flow.state().is_over()) {
            return false;
        }
        if !one_of(&self.ids, |id| flow.id() == *id) {
            return false;
        }
        let views = || [Some(&flow.key), flow.translated()].into_iter().flatten();
        let endpoints = || views().flat_map(|view| [view.initiator, view.responder]);
        one_of(&self.states, |state| flow.state() == *state)
            && one_of(&a.protocol, |protocol| *protocol == protocol_of(flow))
            && one_of(&a.direction, |direction| *direction == direction_of(flow))
            && one_of(&a.port, |port| endpoints().any(|e| e.port == *port))
            && one_of(&a.address, |network| endpoints().any(|e| network.contains(e.addr.ip())))
            && one_of(&a.name, |pattern| {
                flow.peer_name().is_some_and(|peer| peer.names.iter().any(|name| is_like(name, pattern)))
            })
            && a.min_bytes.is_none_or(|least| flow.totals().bytes.iter().sum::<u64>() >= least)
            && a.rtt_over_us.is_none_or(|us| flow.ends().any(|end| u64::from(end.srtt_us) > us))
            && one_of(&a.pid, |pid| flow.ends().any(|end| end.owner.pid == *pid))
    }

    fn is_by_its_ends(&self, flow: &Flow, processes: &ProcessTable) -> bool {
        let a = &self.arguments;
        let of_workloads = [&a.container, &a.pod, &a.namespace, &a.workload, &a.label];
        let of_processes = [&a.process, &a.user];
        if a.pair.is_none() && of_processes.iter().chain(&of_workloads).all(|list| list.is_empty()) {
            return true;
        }
        let ends = ends_of(flow, processes);
        let any_end = |is: &dyn Fn(&End<'_>) -> bool| ends.iter().flatten().any(is);
        let any_workload = |is: &dyn Fn(&Workload) -> bool| any_end(&|end| end.workload.is_some_and(|w| is(w)));
        one_of(&a.process, |text| {
            let pid = text.parse::<u32>().ok();
            flow.ends().any(|end| pid.is_some_and(|pid| end.owner.pid == pid)) || any_end(&|end| is_process(end, text))
        }) && one_of(&a.user, |text| any_end(&|end| end.process.is_some_and(|p| p.is_of_user(text))))
            && a.pair.as_ref().is_none_or(|pair| is_between(pair, flow, &ends))
            && one_of(&a.container, |text| any_workload(&|w| w.is_container(text)))
            && one_of(&a.pod, |text| any_workload(&|w| w.is_pod(text)))
            && one_of(&a.namespace, |text| any_workload(&|w| w.pod.as_ref().is_some_and(|pod| pod.namespace == *text)))
            && one_of(&a.workload, |text| any_workload(&|w| is_workload(w, text)))
            && one_of(&a.label, |text| any_workload(&|w| has_label(w, text)))
    }

    /// The larger, the sooner it is shown.
    pub(super) fn sort_key(&self, flow: &Flow, processes: &ProcessTable) -> u128 {
        order::sort_key(&self.arguments, flow, processes, self.now_ns)
    }
}

/// Whether both ends are those of a row of `peers`.
fn is_between(pair: &Pair, flow: &Flow, ends: &[Option<End<'_>>; 2]) -> bool {
    let [initiator, responder] = names_of_both(&pair.by, flow, ends);
    initiator == pair.initiator && responder == pair.responder
}

/// Nothing was asked for, or one of several.
fn one_of<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(is)
}

/// Whether a name is one of a pattern, in which `*` stands for any part, also none. Upper case is the same.
fn is_like(name: &str, pattern: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn protocol_of(flow: &Flow) -> Protocol {
    match flow.key.proto {
        Proto::Tcp => Protocol::Tcp,
        Proto::Udp => Protocol::Udp,
    }
}

pub(super) fn direction_of(flow: &Flow) -> Direction {
    match Side::BOTH.map(|side| flow.end(side).is_some()) {
        [true, true] => Direction::Local,
        [true, false] => Direction::Out,
        _ => Direction::In,
    }
}

fn is_process(end: &End<'_>, text: &str) -> bool {
    end.process.is_some_and(|p| p.name.contains(text) || p.exe.as_deref().is_some_and(|exe| exe.contains(text)))
}

/// By kind and name, by name, or with the namespace before it.
fn is_workload(workload: &Workload, text: &str) -> bool {
    if workload.title().as_deref() == Some(text) {
        return true;
    }
    let Some(controller) = workload.controller() else { return false };
    let namespace = workload.pod.as_ref().map_or("", |pod| pod.namespace.as_str());
    let text = text.strip_prefix(namespace).and_then(|rest| rest.strip_prefix('/')).unwrap_or(text);
    controller.name == text || controller.to_string() == text
}

fn has_label(workload: &Workload, text: &str) -> bool {
    let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
    let label = workload.container.as_ref().and_then(|container| container.label(key));
    label.is_some_and(|label| value.is_none_or(|value| value == label))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::cgroup::Runtime;
    use crate::owners::workload::{Container, Pod};

    fn cart() -> Workload {
        let labels = [("app", "cart"), ("pod-template-hash", "5d4f8c7b9d")];
        Workload {
            container: Some(Container {
                id: "0123456789ab".repeat(5),
                runtime: Runtime::Containerd,
                name: "app".into(),
                image: String::new(),
                image_digest: String::new(),
                labels: labels.map(|(key, value)| (key.into(), value.into())).into(),
            }),
            pod: Some(Pod {
                uid: "u-1".into(),
                name: "cart-5d4f8c7b9d-x2x4z".into(),
                namespace: "shop".into(),
                config_hash: String::new(),
            }),
            ..Workload::default()
        }
    }

    #[test]
    fn what_is_shown_can_be_asked_for() {
        let cart = cart();
        for text in ["app", "012345", "shop/cart-5d4f8c7b9d-x2x4z/app", "cart-5d4f8c7b9d-x2x4z", "u-1"] {
            assert!(cart.is_container(text), "{text}");
        }
        for text in ["shop/cart-5d4f8c7b9d-x2x4z", "cart-5d4f8c7b9d-x2x4z", "u-1"] {
            assert!(cart.is_pod(text), "{text}");
        }
        for text in ["Deployment/cart", "cart", "shop/cart", "shop/Deployment/cart"] {
            assert!(is_workload(&cart, text), "{text}");
        }
        for text in ["app", "app=cart", "pod-template-hash=5d4f8c7b9d"] {
            assert!(has_label(&cart, text), "{text}");
        }
        let other = ["ap", "shop", "shop/app", "Deployment", "app=", "app=cart2"];
        assert!(!other.iter().any(|text| cart.is_container(text) || is_workload(&cart, text)));
        assert!(!["ap", "app=", "app=car", "tier"].iter().any(|text| has_label(&cart, text)));
        let unit = Workload { unit: Some("db.service".into()), ..Workload::default() };
        for text in ["db.service", "Service/db", "db"] {
            assert!(is_workload(&unit, text), "{text}");
        }
        assert!(unit.is_container("db.service") && !unit.is_pod(""));
    }

    #[test]
    fn patterns_of_names() {
        let is = |pattern| is_like("downloads.example.net", pattern);
        for pattern in
            ["downloads.example.net", "*.Example.net", "*", "down*", "*example*", "d*.*.net", "downloads.example.net*"]
        {
            assert!(is(pattern), "{pattern}");
        }
        for pattern in ["", "example.net", "*.example.org", "downloads", "*.net.", "d*x*z*", "*downloads.example.net.*"]
        {
            assert!(!is(pattern), "{pattern}");
        }
        assert!(!is_like("ab", "ab*ab"), "no letter counts twice");
    }

    #[test]
    fn nothing_asked_for_is_everything() {
        assert!(one_of(&[] as &[u8], |_| false) && one_of(&[1, 2], |n| *n == 2) && !one_of(&[1], |n| *n == 2));
    }
}
