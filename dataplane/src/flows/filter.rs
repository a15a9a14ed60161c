//! Which flows are left out: `--ignore` and `--only`.
//!
//! What can be decided by addresses, ports and protocol the kernel leaves out before any state is made (`bpf/src/filter.rs`). All
//! of it is looked at once more when a flow is reported, when both ends and their owners are known.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use sockeye_bpf::filter::{SocketFilter, SocketRules};
use sockeye_ctl::protocol::Network;
use thiserror::Error;

use super::report::FlowReport;
use crate::model::flow::{Addr, FlowKey, Proto, Side};
use crate::owners::process::Process;
use crate::owners::workload::Workload;

/// What a flow is left out, or kept, for. It is enough if one of its ends matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// An end has a loopback address.
    Loopback,
    /// Transport protocol.
    Protocol(Proto),
    /// An end's address is in it.
    Network(Network),
    /// An end's port is one of these.
    Port(RangeInclusive<u16>),
    /// Name or number of a process's user.
    User(String),
    /// Name of a process, or the path of its program.
    Process(String),
    /// Path of a cgroup, or of one above it.
    Cgroup(String),
    /// Container: name, beginning of its id, or as `ctl` shows it.
    Container(String),
    /// Pod: name, `NAMESPACE/NAME`, or uid.
    Pod(String),
    /// Namespace of a pod.
    Namespace(String),
}

/// Why a rule is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{text:?} is no filter: {why}; expected loopback, protocol=tcp|udp, network=10.0.0.0/8, port=53 or port=8000-8099, \
     user=, process=, cgroup=, container=, pod= or namespace="
)]
pub struct BadRule {
    text: String,
    why: String,
}

const KINDS: [&str; 9] = ["protocol", "network", "port", "user", "process", "cgroup", "container", "pod", "namespace"];

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = |why: &str| BadRule { text: text.to_owned(), why: why.to_owned() };
        if text == "loopback" {
            return Ok(Self::Loopback);
        }
        let (kind, value) = text.split_once('=').ok_or_else(|| bad("it has no ="))?;
        if !KINDS.contains(&kind) {
            return Err(bad(&format!("there is no kind {kind:?}")));
        }
        if value.is_empty() {
            return Err(bad("there is nothing after the ="));
        }
        let value_text = value.to_owned();
        Ok(match kind {
            "protocol" => Self::Protocol(match value {
                "tcp" => Proto::Tcp,
                "udp" => Proto::Udp,
                _ => return Err(bad("protocols are tcp and udp")),
            }),
            "network" => Self::Network(value.parse().map_err(|why| bad(&format!("{why}")))?),
            "port" => {
                Self::Port(ports(value).ok_or_else(|| bad("ports are numbers from 1 to 65535, the lower one first"))?)
            }
            "user" => Self::User(value_text),
            "process" => Self::Process(value_text),
            "cgroup" if value.starts_with('/') => Self::Cgroup(value.trim_end_matches('/').to_owned()),
            "cgroup" => return Err(bad("the path of a cgroup begins with /")),
            "container" => Self::Container(value_text),
            "pod" => Self::Pod(value_text),
            _ => Self::Namespace(value_text),
        })
    }
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Protocol(proto) => write!(f, "protocol={}", proto.name()),
            Self::Network(network) => write!(f, "network={}", String::from(*network)),
            Self::Port(ports) if ports.start() == ports.end() => write!(f, "port={}", ports.start()),
            Self::Port(ports) => write!(f, "port={}-{}", ports.start(), ports.end()),
            Self::User(user) => write!(f, "user={user}"),
            Self::Process(process) => write!(f, "process={process}"),
            Self::Cgroup(path) => write!(f, "cgroup={path}"),
            Self::Container(container) => write!(f, "container={container}"),
            Self::Pod(pod) => write!(f, "pod={pod}"),
            Self::Namespace(namespace) => write!(f, "namespace={namespace}"),
        }
    }
}

impl Rule {
    fn kind(&self) -> std::mem::Discriminant<Self> {
        std::mem::discriminant(self)
    }

    fn is(&self, report: &FlowReport) -> bool {
        let views = || [Some(&report.key), report.translated.as_deref()].into_iter().flatten();
        let any_endpoint = |is: &dyn Fn(Addr, u16) -> bool| {
            let of =
                |view: &FlowKey| Side::BOTH.into_iter().map(|side| view.endpoint(side)).any(|e| is(e.addr, e.port));
            views().any(of)
        };
        let any_process = |is: &dyn Fn(&Process) -> bool| {
            report.identity.iter().any(|identity| identity.process.as_ref().is_some_and(|process| is(process)))
        };
        let any_workload = |is: &dyn Fn(&Workload) -> bool| {
            report.identity.iter().any(|identity| identity.workload.as_ref().is_some_and(|workload| is(workload)))
        };
        match self {
            Self::Loopback => any_endpoint(&|addr, _| addr.is_loopback()),
            Self::Protocol(proto) => report.key.proto == *proto,
            Self::Network(network) => any_endpoint(&|addr, _| network.contains(addr.ip())),
            Self::Port(ports) => any_endpoint(&|_, port| ports.contains(&port)),
            Self::User(user) => any_process(&|p| p.is_of_user(user)),
            Self::Process(name) => any_process(&|p| p.name == *name || p.exe.as_deref() == Some(name)),
            Self::Cgroup(path) => {
                let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
                any_workload(&|w| w.path.strip_prefix(path.as_str()).is_some_and(below))
            }
            Self::Container(text) => any_workload(&|w| w.is_container(text)),
            Self::Pod(text) => any_workload(&|w| w.is_pod(text)),
            Self::Namespace(text) => any_workload(&|w| w.pod.as_ref().is_some_and(|pod| pod.namespace == *text)),
        }
    }
}

/// All rules. None: every flow is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// A flow that matches one of them is left out.
    pub ignore: Vec<Rule>,
    /// Of each kind that is here, a flow must match one.
    pub only: Vec<Rule>,
}

impl Filter {
    /// Whether the flow of this report is left out.
    #[must_use]
    pub fn ignores(&self, report: &FlowReport) -> bool {
        let is_missing = |rule: &Rule| !self.only.iter().any(|other| other.kind() == rule.kind() && other.is(report));
        self.ignore.iter().any(|rule| rule.is(report)) || self.only.iter().any(is_missing)
    }

    /// What the kernel can decide.
    #[must_use]
    pub fn of_sockets(&self) -> SocketFilter {
        SocketFilter { ignore: socket_rules(&self.ignore), only: socket_rules(&self.only) }
    }
}

fn socket_rules(rules: &[Rule]) -> SocketRules {
    let mut of_sockets = SocketRules::default();
    for rule in rules {
        match rule {
            Rule::Loopback => of_sockets.loopback = true,
            Rule::Protocol(proto) => of_sockets.protocols.push(proto.number()),
            Rule::Network(network) => {
                // As IPv6, in which an IPv4 address has 96 bits before it.
                let (addr, bits) = network.parts();
                let before = if matches!(addr, IpAddr::V4(_)) { 96 } else { 0 };
                of_sockets.networks.push((Addr::from(addr).0, bits + before));
            }
            Rule::Port(ports) => of_sockets.ports.push(ports.clone()),
            _ => {}
        }
    }
    of_sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in [
            "loopback",
            "protocol=udp",
            "network=10.0.0.0/8",
            "network=fd00::/8",
            "port=53",
            "port=8000-8099",
            "user=www-data",
            "process=/usr/sbin/nginx",
            "cgroup=/system.slice",
            "container=web",
            "pod=shop/cart-0",
            "namespace=kube-system",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        for (text, why) in [
            ("10.0.0.0/8", "no ="),
            ("colour=red", "\"colour\""),
            ("user=", "nothing after"),
            ("port=0", "1 to 65535"),
            ("port=9-3", "lower one first"),
            ("port=70000", "1 to 65535"),
            ("network=10.0.0.0/33", "10.0.0.0/33"),
            ("protocol=icmp", "tcp and udp"),
            ("cgroup=system.slice", "begins with /"),
        ] {
            let refused = text.parse::<Rule>().unwrap_err().to_string();
            assert!(refused.contains(why) && refused.contains("network=10.0.0.0/8"), "{text}: {refused}");
        }
    }

    #[test]
    fn one_of_each_kind_must_match_and_none_of_what_is_ignored() {
        let report = testing::report();
        let user = report.identity[0].process.as_ref().unwrap().uid.to_string();
        let port = report.key.responder.port;
        let addr = report.key.initiator.addr;
        let ignores =
            |ignore: &[&str], only: &[&str]| Filter { ignore: rules(ignore), only: rules(only) }.ignores(&report);
        let (of_port, of_user, of_network) =
            (format!("port={port}"), format!("user={user}"), format!("network={addr}"));
        assert!(!ignores(&[], &[]));
        for rule in [&*of_port, &*of_user, &*of_network, "protocol=tcp"] {
            assert!(ignores(&[rule], &[]), "{rule}");
            assert!(!ignores(&[], &[rule]), "{rule}");
            assert!(ignores(&[rule], &[rule]), "{rule}: to ignore goes before");
        }
        assert!(ignores(&[], &["port=1"]) && !ignores(&["port=1", "protocol=udp", "loopback"], &[]));
        assert!(!ignores(&[], &["port=1", &of_port]), "one of a kind is enough");
        assert!(ignores(&[], &["port=1", &of_user]), "each kind must match");
        assert!(ignores(&[], &["user=nobody-of-that-name"]));
    }
}
