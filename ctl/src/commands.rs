//! What can be asked, as it is written on the command line.

use clap::{Args, Subcommand};
use sockeye_ctl::protocol::{
    Direction, DnsArguments, DnsBy, DnsSort, FlowsArguments, GroupBy, Network, OwnerSort, OwnersArguments,
    PeersArguments, Protocol, Request, RttArguments, SortBy,
};

/// Questions that are answered with tables.
#[derive(Debug, Subcommand)]
pub(crate) enum Ask {
    /// Whether all is well, and then everything about the agent: records, losses, flows, exports, what its programs cost.
    Stats(Stats),
    /// The flows of the host, one by one or added up; those that are open, or that ended lately.
    Flows(Box<Flows>),
    /// Who has flows: processes with users, parents, packages.
    Processes(Owners),
    /// Containers, and systemd services of the host.
    Containers(Owners),
    /// Kubernetes' pods.
    Pods(Owners),
    /// What containers are a part of: Deployments, StatefulSets, compose services; systemd services of the host.
    Workloads(Owners),
    /// Who talks to whom.
    Peers(Peers),
    /// What listens.
    Ports,
    /// Distributions of round-trip times, drawn as histograms.
    Rtt(Rtt),
    /// Who asks which DNS server for what, and how long the answers take.
    Dns(Dns),
    /// What is configured, and where each setting comes from.
    Config,
    /// Let the agent read its configuration again, as SIGHUP does: says what has changed, and what needs a restart.
    Reload,
}

impl Ask {
    /// Rows that are zero are wanted, too.
    pub(crate) fn zeros(&self) -> bool {
        !matches!(self, Self::Stats(Stats { all: false }))
    }

    /// Flows are wanted as they end.
    pub(crate) fn follows(&self) -> bool {
        matches!(self, Self::Flows(flows) if flows.follow)
    }

    /// The question. `wide`: with columns that are for programs.
    pub(crate) fn into_request(self, wide: bool) -> Request {
        match self {
            Self::Stats(_) => Request::Stats,
            Self::Flows(flows) => Request::Flows(Box::new(flows.into_arguments(wide))),
            Self::Processes(owners) => Request::Processes(owners.into_arguments()),
            Self::Containers(owners) => Request::Containers(owners.into_arguments()),
            Self::Pods(owners) => Request::Pods(owners.into_arguments()),
            Self::Workloads(owners) => Request::Workloads(owners.into_arguments()),
            Self::Peers(Peers { by, sort, reverse, limit, name }) => {
                Request::Peers(PeersArguments { by, sort, reverse, limit, name, history: 0 })
            }
            Self::Ports => Request::Ports,
            Self::Config => Request::Config,
            Self::Reload => Request::Reload,
            Self::Dns(Dns { by, sort, reverse, limit, name }) => {
                Request::Dns(DnsArguments { by, sort, reverse, limit, name })
            }
            Self::Rtt(Rtt { by, limit, name }) => Request::Rtt(RttArguments { by, limit, name }),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// Also rows that are zero.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Owners {
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: OwnerSort,
    /// The other way round.
    #[arg(long)]
    reverse: bool,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Also those without flows.
    #[arg(long)]
    all: bool,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Peers {
    /// What both sides are added up by: process, user, container, pod, namespace, workload, service, image, slice, network,
    /// name, host, or label:KEY.
    #[arg(long, default_value_t = GroupBy::Workload)]
    by: GroupBy,
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: OwnerSort,
    /// The other way round.
    #[arg(long)]
    reverse: bool,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only rows where the name of either side contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Rtt {
    /// What each histogram is of: process, user, container, pod, namespace, workload, image, slice, network, host, or
    /// label:KEY.
    #[arg(long, default_value_t)]
    by: GroupBy,
    /// At most this many, those with the most samples first; 0 for all.
    #[arg(long, default_value_t = 5)]
    limit: usize,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Dns {
    /// What figures are added up by.
    #[arg(long, value_enum, default_value_t)]
    by: DnsBy,
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: DnsSort,
    /// The other way round.
    #[arg(long)]
    reverse: bool,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Only rows whose name contains this.
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Sort by this figure, largest first.
    #[arg(long, value_enum, default_value_t)]
    sort: SortBy,
    /// The other way round.
    #[arg(long)]
    reverse: bool,
    /// At most this many; 0 for all.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Add them up by: process, user, container, pod, namespace, workload, service, image, slice, network, name, host, or
    /// label:KEY.
    #[arg(long)]
    by: Option<GroupBy>,
    /// Add them up by what both ends are, as peers does: who talks to whom, of the flows that match. By workload, unless --by
    /// says otherwise.
    #[arg(long)]
    pairs: bool,
    /// Those that ended lately, instead of those that are open.
    #[arg(long)]
    closed: bool,
    /// Those that are open, and those that ended lately as well.
    #[arg(long, conflicts_with = "closed")]
    ended: bool,
    /// Print flows as they end, one line each, until Ctrl-C.
    #[arg(long, conflicts_with_all = ["closed", "ended", "by", "pairs", "sort", "reverse", "limit", "watch"])]
    follow: bool,
    /// This very flow, by its id as --json has it: whether it is open or has ended.
    #[arg(long)]
    id: Vec<String>,
    /// Only flows that have this somewhere: in process, user, address, port, container or pod. Of several words each must be
    /// there.
    #[arg(value_name = "WORD")]
    words: Vec<String>,
    /// The same, as an option.
    #[arg(long, value_name = "WORD")]
    text: Vec<String>,
    /// Part of a process's name or path, or a pid. Like each of the following, it can be given several times: one of them must
    /// match. Of different ones, all must.
    #[arg(long)]
    process: Vec<String>,
    /// Process id.
    #[arg(long)]
    pid: Vec<u32>,
    /// Name of a user, or a uid.
    #[arg(long)]
    user: Vec<String>,
    /// Port on either side.
    #[arg(long)]
    port: Vec<u16>,
    /// Address on either side, or a network such as 10.0.0.0/8.
    #[arg(long)]
    address: Vec<Network>,
    /// What the responder is called, by what its peer has asked DNS; * stands for any part: *.example.net.
    #[arg(long)]
    name: Vec<String>,
    /// As in the column of that name: open, closed, refused, ...
    #[arg(long)]
    state: Vec<String>,
    /// Transport protocol.
    #[arg(long, value_enum)]
    protocol: Vec<Protocol>,
    /// Which side is on this host.
    #[arg(long, value_enum)]
    direction: Vec<Direction>,
    /// A container by name, by the beginning of its id, or as namespace/pod/container; a pod; a systemd unit.
    #[arg(long)]
    container: Vec<String>,
    /// A pod by name, uid, or as namespace/name.
    #[arg(long)]
    pod: Vec<String>,
    /// Namespace of a pod.
    #[arg(long)]
    namespace: Vec<String>,
    /// A workload by name, or as Deployment/name.
    #[arg(long)]
    workload: Vec<String>,
    /// Label of a container or pod, as key=value or key.
    #[arg(long)]
    label: Vec<String>,
    /// At least so many bytes of both directions: 1500, 10kB, 5MB.
    #[arg(long, value_name = "BYTES")]
    min_bytes: Option<bytesize::ByteSize>,
    /// A smoothed round-trip time over this: 500us, 20ms, 1s.
    #[arg(long, value_name = "TIME")]
    rtt_over: Option<humantime::Duration>,
}

impl Owners {
    fn into_arguments(self) -> OwnersArguments {
        let Self { sort, reverse, limit, all, name } = self;
        OwnersArguments { sort, reverse, limit, name, all, history: 0 }
    }
}

impl Flows {
    fn into_arguments(self, wide: bool) -> FlowsArguments {
        FlowsArguments {
            sort: self.sort,
            reverse: self.reverse,
            limit: self.limit,
            by: self.by,
            pairs: self.pairs,
            closed: self.closed,
            ended: self.ended,
            after: None,
            wide,
            id: self.id,
            text: [self.words, self.text].concat(),
            process: self.process,
            pid: self.pid,
            user: self.user,
            port: self.port,
            address: self.address,
            name: self.name,
            state: self.state,
            protocol: self.protocol,
            direction: self.direction,
            container: self.container,
            pod: self.pod,
            namespace: self.namespace,
            workload: self.workload,
            label: self.label,
            min_bytes: self.min_bytes.map(|size| size.as_u64()),
            rtt_over_us: self.rtt_over.map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            pair: None,
        }
    }
}
