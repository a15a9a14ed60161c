//! `ctl dns`: who asks which server for what, and how long the answers take.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use sockeye_ctl::protocol::{Answer, DnsArguments, DnsBy, DnsSort, GroupBy, Table};
use sockeye_ctl::rows;

use super::owners::quantiles;
use super::pass::rows_at_most;
use super::summary;
use super::who::group_of_process;
use crate::names::service::{Figures, Group, GroupKind, Service};
use crate::owners::process::ProcessTable;

rows! {
    /// Questions to DNS servers and their answers, since the agent was started.
    struct Row: "dns" {
        /// who has asked, who was asked, or for what; missing where that is not known
        name: Text = Option<String>,
        /// questions; one that is asked again is another one
        queries: Count = u64,
        /// answers
        answers: Count = u64,
        /// of them, those that found the name
        noerror: Count = u64,
        /// those that say that there is no such name
        nxdomain: Count = u64,
        /// those of a server that could not find out
        servfail: Count = u64,
        /// those of a server that does not want to
        refused: Count = u64,
        /// those with any other verdict
        other: Count = u64,
        /// answers that did not fit, and were asked for again over TCP
        truncated: Count = u64,
        /// questions that were asked again before there was an answer
        retried: Count = u64,
        /// questions without an answer within 5 s
        timeouts: Count = u64,
        /// from question to answer: half are shorter
        latency_p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        latency_p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        latency_p99: Microseconds = Option<u64>,
    }
}

/// Figures by what was asked for.
pub(crate) fn dns(service: &Service, processes: &ProcessTable, a: &DnsArguments) -> Answer {
    let mut groups: BTreeMap<Option<String>, Figures> = BTreeMap::new();
    match kind_of(a.by) {
        None => drop(groups.insert(Some("host".into()), service.total().clone())),
        Some(kind) => {
            for (group, figures) in service.groups().filter(|(group, _)| group.kind() == kind) {
                groups.entry(name_of(group, processes)).or_default().add(figures);
            }
            let others = service.others(kind);
            groups.entry(Some("others, quiet for long".into())).or_default().add(others);
        }
    }
    groups.retain(|name, figures| {
        let is_wanted = |wanted| name.as_deref().is_some_and(|name| name.contains(wanted));
        figures.queries > 0 && a.name.as_deref().is_none_or(is_wanted)
    });
    let mut groups: Vec<_> = groups.into_iter().collect();
    let matching = groups.len();
    groups.sort_by_key(|(_, figures)| Reverse(sort_key(figures, a.sort)));
    groups.truncate(rows_at_most(a.limit));
    let summary = summary(matching, groups.len());
    Answer { tables: vec![summary, Table::of(groups.into_iter().map(|(name, figures)| row(name, &figures)))] }
}

/// What is added up; none: everything.
fn kind_of(by: DnsBy) -> Option<GroupKind> {
    match by {
        DnsBy::Process => Some(GroupKind::Process),
        DnsBy::Container => Some(GroupKind::Place),
        DnsBy::Server => Some(GroupKind::Server),
        DnsBy::Name => Some(GroupKind::Name),
        DnsBy::Host => None,
    }
}

/// What a group is called, where that is known.
fn name_of(group: &Group, processes: &ProcessTable) -> Option<String> {
    match group {
        Group::Process(key) => Some(group_of_process(&GroupBy::Process, *key, processes)),
        Group::Place(cgroup_id) => processes.workloads.peek(*cgroup_id).and_then(|workload| workload.title()),
        Group::Server(server) => Some(server.to_string()),
        Group::Name(name) => Some(name.to_string()),
    }
}

fn sort_key(figures: &Figures, sort: DnsSort) -> u64 {
    match sort {
        DnsSort::Queries => figures.queries,
        DnsSort::Failures => figures.timeouts + figures.rcodes[1..].iter().sum::<u64>(),
        DnsSort::Latency => {
            if figures.latency.samples() > 0 {
                figures.latency.quantile_us(0.5)
            } else {
                0
            }
        }
    }
}

fn row(name: Option<String>, figures: &Figures) -> Row {
    let [latency_p50, latency_p90, latency_p99] = quantiles(Some(&figures.latency));
    let [noerror, nxdomain, servfail, refused, other] = figures.rcodes;
    Row {
        name,
        queries: figures.queries,
        answers: figures.answers,
        noerror,
        nxdomain,
        servfail,
        refused,
        other,
        truncated: figures.truncated,
        retried: figures.retried,
        timeouts: figures.timeouts,
        latency_p50,
        latency_p90,
        latency_p99,
    }
}
