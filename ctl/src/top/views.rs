//! What can be looked at, and the columns of each view.

use sockeye_ctl::protocol::{DnsSort, OwnerSort, SortBy};

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum View {
    Flows,
    Processes,
    Containers,
    Pods,
    Workloads,
    Peers,
    Ports,
    Agent,
    Dns,
    /// One flow.
    #[value(skip)]
    Flow,
}

impl View {
    /// Those with a key and a place in the line of views.
    pub(crate) const ALL: [Self; 9] = [
        Self::Flows,
        Self::Processes,
        Self::Containers,
        Self::Pods,
        Self::Workloads,
        Self::Peers,
        Self::Ports,
        Self::Agent,
        Self::Dns,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Processes => "processes",
            Self::Containers => "containers",
            Self::Pods => "pods",
            Self::Workloads => "workloads",
            Self::Peers => "peers",
            Self::Ports => "ports",
            Self::Agent => "agent",
            Self::Dns => "dns",
            Self::Flow => "flow",
        }
    }

    /// The same where there is little room for all of them.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Self::Processes => "procs",
            other => other.name(),
        }
    }

    /// It is a table whose rows can be chosen.
    pub(crate) fn has_rows(self) -> bool {
        !matches!(self, Self::Agent | Self::Flow)
    }
}

/// What a cell shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cell {
    /// A column of the answer, in its unit.
    Column(&'static str),
    /// The first of two columns that is known.
    Either(&'static str, &'static str),
    /// Columns of the answer, added up.
    Sum(&'static [&'static str]),
    /// The larger of two times.
    Worse(&'static str, &'static str),
    /// Address and port of a side.
    Endpoint(&'static str),
    /// Processes of both sides.
    Processes,
    /// Where they live.
    Places,
    /// The last minutes.
    Recent,
}

/// The order by a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Flows(SortBy),
    Owners(OwnerSort),
    Dns(DnsSort),
    /// Sorted here: all rows are here.
    Here,
    /// None.
    None,
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Col {
    pub(crate) title: &'static str,
    pub(crate) cell: Cell,
    /// Cells that it takes, or at least takes if it is elastic.
    pub(crate) width: u16,
    /// Share of what is left.
    pub(crate) elastic: u16,
    /// The terminal has at least so many columns.
    pub(crate) from: u16,
    pub(crate) order: Order,
    /// Text goes to the left.
    pub(crate) left: bool,
}

const fn text(title: &'static str, name: &'static str, width: u16, elastic: u16, from: u16, order: Order) -> Col {
    Col { title, cell: Cell::Column(name), width, elastic, from, order, left: true }
}

const fn number(title: &'static str, name: &'static str, width: u16, from: u16, order: Order) -> Col {
    Col { title, cell: Cell::Column(name), width, elastic: 0, from, order, left: false }
}

const fn special(title: &'static str, cell: Cell, width: u16, elastic: u16, from: u16, order: Order) -> Col {
    Col { title, cell, width, elastic, from, order, left: true }
}

use Order::{Dns as ByDns, Flows as ByFlow, Owners as By};

static FLOWS: [Col; 16] = [
    text("PRO", "protocol", 3, 0, 0, ByFlow(SortBy::Protocol)),
    special("INITIATOR", Cell::Endpoint("initiator"), 14, 2, 0, ByFlow(SortBy::Initiator)),
    special("RESPONDER", Cell::Endpoint("responder"), 14, 2, 0, ByFlow(SortBy::Responder)),
    special("PROCESS", Cell::Processes, 12, 5, 0, ByFlow(SortBy::Process)),
    special("PLACE", Cell::Places, 12, 3, 150, ByFlow(SortBy::Place)),
    special("USER", Cell::Either("initiator_user", "responder_user"), 10, 0, 170, ByFlow(SortBy::User)),
    number("SENT/s", "sent_per_second", 7, 0, ByFlow(SortBy::SentRate)),
    number("RECV/s", "received_per_second", 7, 0, ByFlow(SortBy::ReceivedRate)),
    number("SENT", "sent", 7, 120, ByFlow(SortBy::Sent)),
    number("RECV", "received", 7, 120, ByFlow(SortBy::Received)),
    number("PKT/s", "packets_per_second", 7, 180, ByFlow(SortBy::PacketRate)),
    number("RETR", "retrans", 5, 110, ByFlow(SortBy::Retrans)),
    number("RTT", "rtt", 7, 0, ByFlow(SortBy::Rtt)),
    number("AGE", "age", 9, 130, ByFlow(SortBy::Age)),
    text("STATE", "state", 11, 0, 100, ByFlow(SortBy::State)),
    // Of those that have ended.
    number("GONE IN", "forgotten_in", 9, 0, ByFlow(SortBy::Active)),
];

const SENT_RATE: Col = number("SENT/s", "sent_per_second", 7, 0, By(OwnerSort::SentRate));
const RECEIVED_RATE: Col = number("RECV/s", "received_per_second", 7, 0, By(OwnerSort::ReceivedRate));
const RECENT: Col = special("5 MINUTES", Cell::Recent, 12, 0, 100, By(OwnerSort::Rate));
const SENT: Col = number("SENT", "sent", 7, 120, By(OwnerSort::Sent));
const RECEIVED: Col = number("RECV", "received", 7, 120, By(OwnerSort::Received));
const RETRANS: Col = number("RETR", "retrans", 5, 0, By(OwnerSort::Retrans));
const RTT_P99: Col = Col {
    title: "RTT P99",
    cell: Cell::Worse("rtt_out_p99", "rtt_in_p99"),
    width: 7,
    elastic: 0,
    from: 0,
    order: By(OwnerSort::RttP99),
    left: false,
};

/// The figures that processes, containers, pods and so on have.
macro_rules! figures {
    ($($own:expr),* $(,)?) => {
        [
            $($own,)*
            number("OPEN", "open", 5, 0, By(OwnerSort::Open)),
            number("NEW/s", "flows_per_second", 6, 0, By(OwnerSort::FlowRate)),
            SENT_RATE,
            RECEIVED_RATE,
            RECENT,
            SENT,
            RECEIVED,
            RETRANS,
            Col {
                title: "RTT P50", cell: Cell::Worse("rtt_out_p50", "rtt_in_p50"), width: 7, elastic: 0, from: 0,
                order: By(OwnerSort::Rtt), left: false,
            },
            RTT_P99,
        ]
    };
}

static PROCESSES: [Col; 15] = figures![
    text("PROCESS", "process", 10, 2, 0, By(OwnerSort::Name)),
    text("PID", "pid", 7, 0, 0, By(OwnerSort::Pid)),
    special("USER", Cell::Either("user", "uid"), 10, 0, 110, By(OwnerSort::User)),
    text("PLACE", "workload", 12, 3, 130, By(OwnerSort::Place)),
    text("COMMAND", "cmdline", 20, 5, 160, By(OwnerSort::Command)),
];
static CONTAINERS: [Col; 14] = figures![
    text("CONTAINER", "container", 12, 3, 0, By(OwnerSort::Name)),
    special("IN", Cell::Either("pod", "slice"), 10, 2, 110, By(OwnerSort::Place)),
    text("IMAGE", "image", 12, 2, 160, By(OwnerSort::Image)),
    text("STATE", "state", 7, 0, 100, By(OwnerSort::State)),
];
static PODS: [Col; 13] = figures![
    text("NAMESPACE", "namespace", 8, 1, 0, By(OwnerSort::Place)),
    text("POD", "pod", 12, 3, 0, By(OwnerSort::Name)),
    text("STATE", "state", 7, 0, 100, By(OwnerSort::State)),
];
static WORKLOADS: [Col; 13] = figures![
    text("WORKLOAD", "workload", 14, 3, 0, By(OwnerSort::Name)),
    number("PODS", "pods", 5, 110, By(OwnerSort::Pods)),
    text("STATE", "state", 7, 0, 100, By(OwnerSort::State)),
];
/// Nobody counts the new ones of some flows, nor their history.
const GROUP_COLUMNS: [Col; 9] = {
    let [name, open, _, sent_rate, received_rate, _, sent, received, retrans, p50, p99] =
        figures![text("NAME", "name", 14, 3, 0, By(OwnerSort::Name))];
    [name, open, sent_rate, received_rate, sent, received, retrans, p50, p99]
};
static GROUPS: [Col; 9] = GROUP_COLUMNS;
static PEERS: [Col; 12] = PEERS_COLUMNS;
const PEERS_COLUMNS: [Col; 12] = [
    text("INITIATOR", "initiator", 12, 3, 0, By(OwnerSort::Name)),
    text("RESPONDER", "responder", 12, 3, 0, By(OwnerSort::Responder)),
    text("SERVICE", "service", 14, 1, 140, By(OwnerSort::Service)),
    number("FLOWS", "flows", 5, 0, By(OwnerSort::Flows)),
    number("NEW/s", "flows_per_second", 6, 90, By(OwnerSort::FlowRate)),
    SENT_RATE,
    RECEIVED_RATE,
    RECENT,
    SENT,
    RECEIVED,
    RETRANS,
    RTT_P99,
];
/// Likewise, of flows that match.
static PAIRS: [Col; 10] = {
    let [_, open, sent_rate, received_rate, sent, received, retrans, p50, p99] = GROUP_COLUMNS;
    let [initiator, responder, ..] = PEERS_COLUMNS;
    [initiator, responder, open, sent_rate, received_rate, sent, received, retrans, p50, p99]
};
static PORTS: [Col; 8] = [
    text("PRO", "protocol", 3, 0, 0, Order::Here),
    text("ADDRESS", "address", 15, 2, 0, Order::Here),
    number("PORT", "port", 5, 0, Order::Here),
    text("PROCESS", "process", 15, 2, 0, Order::Here),
    number("PID", "pid", 7, 0, Order::Here),
    text("USER", "user", 10, 1, 0, Order::Here),
    text("PACKAGE", "package", 14, 1, 100, Order::Here),
    text("PLACE", "workload", 16, 3, 80, Order::Here),
];
/// What `ctl dns` has. FAILED is all that did not help.
static DNS: [Col; 13] = [
    text("NAME", "name", 14, 1, 0, ByDns(DnsSort::Name)),
    number("QUERIES", "queries", 8, 0, ByDns(DnsSort::Queries)),
    number("ANSWERS", "answers", 8, 100, ByDns(DnsSort::Answers)),
    Col {
        title: "FAILED",
        cell: Cell::Sum(&["timeouts", "nxdomain", "servfail", "refused", "other"]),
        width: 7,
        elastic: 0,
        from: 0,
        order: ByDns(DnsSort::Failures),
        left: false,
    },
    number("NXDOMAIN", "nxdomain", 9, 0, ByDns(DnsSort::Nxdomain)),
    number("SERVFAIL", "servfail", 8, 120, Order::None),
    number("REFUSED", "refused", 7, 120, Order::None),
    number("OTHER", "other", 5, 140, Order::None),
    number("TIMEOUT", "timeouts", 8, 0, ByDns(DnsSort::Timeouts)),
    number("TRUNC", "truncated", 6, 0, ByDns(DnsSort::Truncated)),
    number("RETRIED", "retried", 8, 120, ByDns(DnsSort::Retried)),
    number("P50", "latency_p50", 7, 0, ByDns(DnsSort::Latency)),
    number("P99", "latency_p99", 7, 0, ByDns(DnsSort::LatencyP99)),
];

/// The columns of a view; `grouped`: of flows that are added up; `ended`: of those that have ended, too.
pub(crate) fn columns(view: View, grouped: bool, ended: bool) -> &'static [Col] {
    match view {
        View::Peers if grouped => &PAIRS,
        View::Peers => &PEERS,
        View::Ports => &PORTS,
        View::Dns => &DNS,
        View::Agent | View::Flow => &[],
        _ if grouped => &GROUPS,
        View::Flows if ended => &FLOWS,
        View::Flows => &FLOWS[..FLOWS.len() - 1],
        View::Processes => &PROCESSES,
        View::Containers => &CONTAINERS,
        View::Pods => &PODS,
        View::Workloads => &WORKLOADS,
    }
}

/// The column that a view is sorted by at first: what is busiest now.
pub(crate) fn first_order(view: View, grouped: bool) -> usize {
    let wanted = match view {
        View::Ports => "PORT",
        View::Dns => "QUERIES",
        _ => "RECV/s",
    };
    columns(view, grouped, false).iter().position(|col| col.title == wanted).unwrap_or(0)
}

/// Those that there is room for, with the cells that each takes.
pub(crate) fn layout(columns: &'static [Col], width: u16) -> Vec<(usize, u16)> {
    let gap = gap(width);
    let shown = || columns.iter().enumerate().filter(|(_, col)| col.from <= width);
    let taken: u16 = shown().map(|(_, col)| col.width + gap).sum();
    let mut left = width.saturating_sub(taken.saturating_sub(gap));
    let mut shares: u16 = shown().map(|(_, col)| col.elastic).sum();
    shown()
        .map(|(index, col)| {
            let more = (left * col.elastic).checked_div(shares).unwrap_or(0);
            left -= more;
            shares -= col.elastic;
            (index, col.width + more)
        })
        .collect()
}

/// Blanks between two columns.
pub(crate) fn gap(width: u16) -> u16 {
    if width < 140 { 1 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_view_fits_eighty_columns_and_fills_wider_ones() {
        for width in [80, 99, 100, 120, 159, 160, 200, 300] {
            let kinds = |view| [(view, false, false), (view, true, false), (view, false, true)];
            for (view, grouped, ended) in View::ALL.into_iter().flat_map(kinds) {
                let columns = columns(view, grouped, ended);
                let layout = layout(columns, width);
                let taken: u16 = layout.iter().map(|(_, cells)| cells + gap(width)).sum();
                if view.has_rows() {
                    assert_eq!(taken - gap(width), width, "{view:?} {grouped} at {width}");
                    assert!(layout.iter().any(|(index, _)| *index == first_order(view, grouped)));
                }
            }
        }
    }
}
