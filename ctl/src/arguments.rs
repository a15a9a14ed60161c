//! What a request may ask for: which rows, added up by what, in which order.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use crate::order::{DnsSort, OwnerSort, SortBy};

/// Keeps as many as a request's `limit` asks for.
pub fn keep<T>(rows: &mut Vec<T>, limit: usize) {
    if limit > 0 {
        rows.truncate(limit);
    }
}

/// What figures are added up by.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GroupBy {
    /// All of the host.
    #[default]
    Host,
    /// A process.
    Process,
    /// A user.
    User,
    /// A container, or a service of the host.
    Container,
    /// A pod.
    Pod,
    /// A namespace of Kubernetes.
    Namespace,
    /// What containers are a part of: a Deployment, a compose service; a unit of systemd.
    Workload,
    /// The address that a connection asked for, where something else has answered; a compose service; a unit of systemd.
    Service,
    /// An image.
    Image,
    /// A slice of systemd.
    Slice,
    /// The peer's network, /24 or /64.
    Network,
    /// What the responder is called, by what the initiator has asked DNS.
    Name,
    /// The value of a label.
    Label(String),
}

impl GroupBy {
    /// Those without an argument.
    pub const NAMED: [Self; 12] = [
        Self::Host,
        Self::Process,
        Self::User,
        Self::Container,
        Self::Pod,
        Self::Namespace,
        Self::Workload,
        Self::Service,
        Self::Image,
        Self::Slice,
        Self::Network,
        Self::Name,
    ];

    fn name(&self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Process => "process",
            Self::User => "user",
            Self::Container => "container",
            Self::Pod => "pod",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
            Self::Service => "service",
            Self::Image => "image",
            Self::Slice => "slice",
            Self::Network => "network",
            Self::Name => "name",
            Self::Label(_) => "label",
        }
    }
}

/// Nothing that figures can be added up by.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("nothing can be added up by {0:?}: {known} and label:KEY are known", known = GroupBy::NAMED.each_ref().map(GroupBy::name).join(", "))]
pub struct UnknownGroup(String);

impl FromStr for GroupBy {
    type Err = UnknownGroup;

    fn from_str(text: &str) -> Result<Self, UnknownGroup> {
        if let Some(key) = text.strip_prefix("label:").filter(|key| !key.is_empty()) {
            return Ok(Self::Label(key.into()));
        }
        let text = match text {
            "peer" => "network",
            // There is one.
            "node" => "host",
            other => other,
        };
        Self::NAMED.into_iter().find(|by| by.name() == text).ok_or_else(|| UnknownGroup(text.into()))
    }
}

impl TryFrom<String> for GroupBy {
    type Error = UnknownGroup;

    fn try_from(text: String) -> Result<Self, UnknownGroup> {
        text.parse()
    }
}

impl From<GroupBy> for String {
    fn from(by: GroupBy) -> Self {
        by.to_string()
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(f, "label:{key}"),
            named => f.write_str(named.name()),
        }
    }
}

/// Which processes, containers, pods or workloads, in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnersArguments {
    /// Figure to sort by, largest first.
    pub sort: OwnerSort,
    /// The other way round.
    pub reverse: bool,
    /// At most this many, 0 for all.
    pub limit: usize,
    /// Part of the name.
    pub name: Option<String>,
    /// Those without flows, too.
    pub all: bool,
    /// With so many of the newest parts of their history, at most 60 of 5 s each.
    pub history: usize,
}

impl Default for OwnersArguments {
    fn default() -> Self {
        Self { sort: OwnerSort::Bytes, reverse: false, limit: 50, name: None, all: false, history: 0 }
    }
}

/// Who talks to whom: added up by what, in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersArguments {
    /// What both sides are added up by.
    pub by: GroupBy,
    /// Figure to sort by, largest first.
    pub sort: OwnerSort,
    /// The other way round.
    pub reverse: bool,
    /// At most this many, 0 for all.
    pub limit: usize,
    /// Part of the name of either side.
    pub name: Option<String>,
    /// With so many of the newest parts of their history, at most 60 of 5 s each.
    pub history: usize,
}

impl Default for PeersArguments {
    fn default() -> Self {
        Self { by: GroupBy::Workload, sort: OwnerSort::Bytes, reverse: false, limit: 50, name: None, history: 0 }
    }
}

/// Whose round-trip times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RttArguments {
    /// What a distribution is of.
    pub by: GroupBy,
    /// At most this many, those with the most samples first, 0 for all.
    pub limit: usize,
    /// Part of the name.
    pub name: Option<String>,
}

impl Default for RttArguments {
    fn default() -> Self {
        Self { by: GroupBy::Host, limit: 5, name: None }
    }
}

/// Questions to DNS servers: added up by what, in which order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsArguments {
    /// What figures are added up by.
    pub by: DnsBy,
    /// Figure to sort by, largest first.
    pub sort: DnsSort,
    /// The other way round.
    pub reverse: bool,
    /// At most this many, 0 for all.
    pub limit: usize,
    /// Part of the name of the row.
    pub name: Option<String>,
}

impl Default for DnsArguments {
    fn default() -> Self {
        Self { by: DnsBy::Process, sort: DnsSort::Queries, reverse: false, limit: 50, name: None }
    }
}

/// What figures of DNS are added up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DnsBy {
    /// Who asks.
    #[default]
    Process,
    /// The container or service that asks.
    Container,
    /// Who is asked.
    Server,
    /// What is asked for.
    Name,
    /// All of the host.
    Host,
}

/// Which flows, in which order. A flow must match each of them that is given; of a list, one value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowsArguments {
    /// Column to sort by, largest first.
    pub sort: SortBy,
    /// The other way round.
    pub reverse: bool,
    /// At most this many, 0 for as many as an answer takes.
    pub limit: usize,
    /// Added up by this, instead of one by one.
    pub by: Option<GroupBy>,
    /// By what both ends are, as `peers` does; without `by`, by workload.
    pub pairs: bool,
    /// Those that ended lately, instead of those that are open.
    pub closed: bool,
    /// Those that are open, and those that ended lately as well.
    pub ended: bool,
    /// Of those that ended lately, those that left the table from this number on, in that order: the answer tells the next
    /// number. The largest one there is stands for those to come.
    pub after: Option<u64>,
    /// With the columns about containers, pods and labels, which make a row long.
    pub wide: bool,
    /// As in the column of that name: this very flow, whether it is open or has ended.
    pub id: Vec<String>,
    /// Parts of what is shown of a flow: process, user, address, port, container, pod. Each of them must be there somewhere.
    pub text: Vec<String>,
    /// Part of a process's name or path, or a pid.
    pub process: Vec<String>,
    /// Process id.
    pub pid: Vec<u32>,
    /// Name of a user, or a uid.
    pub user: Vec<String>,
    /// Port on either side.
    pub port: Vec<u16>,
    /// Address on either side, or a network that it is in.
    pub address: Vec<Network>,
    /// What the responder is called; `*` stands for any part of it.
    pub name: Vec<String>,
    /// State, as in the column of that name.
    pub state: Vec<String>,
    /// Transport protocol.
    pub protocol: Vec<Protocol>,
    /// Which side is on this host.
    pub direction: Vec<Direction>,
    /// Name or beginning of the id of a container, `namespace/pod/container`, name of a pod, or systemd unit.
    pub container: Vec<String>,
    /// Name or uid of a pod, or `namespace/pod`.
    pub pod: Vec<String>,
    /// Namespace of a pod.
    pub namespace: Vec<String>,
    /// `Kind/name` of a workload, or its name.
    pub workload: Vec<String>,
    /// Label of a container, as `key=value` or `key`.
    pub label: Vec<String>,
    /// At least so many bytes of both directions.
    pub min_bytes: Option<u64>,
    /// A smoothed round-trip time over so many microseconds.
    pub rtt_over_us: Option<u64>,
    /// The flows of one row of `peers`.
    pub pair: Option<Pair>,
}

/// Who is at both ends of a flow, as a row of `peers` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// What both sides were added up by.
    pub by: GroupBy,
    /// Who connected, or sent first; none: on this host, and of nobody known.
    pub initiator: Option<String>,
    /// Who answered, likewise.
    pub responder: Option<String>,
}

impl Default for FlowsArguments {
    fn default() -> Self {
        Self {
            sort: SortBy::Bytes,
            reverse: false,
            limit: 50,
            by: None,
            pairs: false,
            closed: false,
            ended: false,
            after: None,
            wide: false,
            id: Vec::new(),
            text: Vec::new(),
            process: Vec::new(),
            pid: Vec::new(),
            user: Vec::new(),
            port: Vec::new(),
            address: Vec::new(),
            name: Vec::new(),
            state: Vec::new(),
            protocol: Vec::new(),
            direction: Vec::new(),
            container: Vec::new(),
            pod: Vec::new(),
            namespace: Vec::new(),
            workload: Vec::new(),
            label: Vec::new(),
            min_bytes: None,
            rtt_over_us: None,
            pair: None,
        }
    }
}

/// Transport protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Which side of a flow is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The initiator.
    Out,
    /// The responder.
    In,
    /// Both.
    Local,
}

/// An address, or a network of them (`10.0.0.0/8`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

/// Neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no address and no network such as 10.0.0.0/8")]
pub struct NoNetwork(String);

impl Network {
    /// Whether an address is in it. One that is mapped into IPv6 counts as the IPv4 address that it is.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.0.contains(&addr.to_canonical())
    }

    /// Its address, and how many of its bits count.
    #[must_use]
    pub fn parts(&self) -> (IpAddr, u8) {
        (self.0.network(), self.0.prefix_len())
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let address = || text.parse::<IpAddr>().map(|addr| IpNet::from(addr.to_canonical())).ok();
        text.parse::<IpNet>().ok().or_else(address).map(Self).ok_or_else(|| NoNetwork(text.into()))
    }
}

impl TryFrom<String> for Network {
    type Error = NoNetwork;

    fn try_from(text: String) -> Result<Self, NoNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

impl From<IpAddr> for Network {
    fn from(addr: IpAddr) -> Self {
        Self(IpNet::from(addr.to_canonical()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_zero_is_none() {
        let kept = |limit| {
            let mut rows = vec![1, 2, 3];
            keep(&mut rows, limit);
            rows.len()
        };
        assert_eq!((kept(0), kept(2), kept(9)), (3, 2, 3));
    }

    #[test]
    fn groups_are_called_as_people_call_them() {
        for by in GroupBy::NAMED.into_iter().chain([GroupBy::Label("app".into())]) {
            assert_eq!(by.to_string().parse(), Ok(by));
        }
        assert_eq!("peer".parse(), Ok(GroupBy::Network));
        let why = "colour".parse::<GroupBy>().unwrap_err().to_string();
        assert!(why.contains("\"colour\"") && why.contains("workload") && why.contains("label:KEY"), "{why}");
        assert!("label:".parse::<GroupBy>().is_err());
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        let contains = |network: &str, addr: &str| network.parse::<Network>().unwrap().contains(addr.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.1.2.3") && contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.4"));
        assert!(contains("fe80::/10", "fe80::1") && !contains("fe80::/10", "10.0.0.1"));
        assert!("10.0.0.0/33".parse::<Network>().unwrap_err().to_string().contains("10.0.0.0/33"));
    }
}
