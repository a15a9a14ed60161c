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
    // By name they are in order already.
    if a.sort != DnsSort::Name {
        groups.sort_by_key(|(_, figures)| Reverse(sort_key(figures, a.sort)));
    }
    if a.reverse {
        groups.reverse();
    }
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
    let latency = |quantile| if figures.latency.samples() > 0 { figures.latency.quantile_us(quantile) } else { 0 };
    let [_, nxdomain, ..] = figures.rcodes;
    match sort {
        DnsSort::Queries | DnsSort::Name => figures.queries,
        DnsSort::Failures => figures.timeouts + figures.rcodes[1..].iter().sum::<u64>(),
        DnsSort::Latency => latency(0.5),
        DnsSort::LatencyP99 => latency(0.99),
        DnsSort::Answers => figures.answers,
        DnsSort::Nxdomain => nxdomain,
        DnsSort::Timeouts => figures.timeouts,
        DnsSort::Truncated => figures.truncated,
        DnsSort::Retried => figures.retried,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::flow::ProcKey;
    use crate::names::dns::Message;
    use crate::names::service::Client;
    use clap::ValueEnum;

    const MS: u64 = 1_000_000;

    /// Asks for a name so often: of the answers so many say so, and each takes so many milliseconds.
    fn ask(service: &mut Service, name: &str, asked: u16, rcodes: &[u8], truncated: bool, ms: u64) {
        let process = ProcKey { pid: 1, start_ticks: 1, exec: 0 };
        let client = Client { cookie: 1, process, cgroup_id: 0, server: "127.0.0.53".parse().unwrap() };
        let message = |id: u16, rcode: u8| {
            let (name, addresses) = (name.into(), Vec::new());
            Message { id, is_answer: true, rcode, truncated, name, is_host: true, rtype: 1, addresses }
        };
        for id in 0..asked {
            service.ask(&client, &message(id, 0), 0);
            if let Some(rcode) = rcodes.get(usize::from(id)) {
                assert!(service.answer(&client, &message(id, *rcode), ms * MS));
            }
        }
        service.expire_waiting(5_000 * MS);
    }

    fn first(service: &Service, sort: DnsSort, reverse: bool) -> String {
        let a = DnsArguments { by: DnsBy::Name, sort, reverse, limit: 1, name: None };
        let answer = dns(service, &ProcessTable::default(), &a);
        assert_eq!(answer.rows("summary")[0]["matching"], 4);
        answer.rows("dns")[0]["name"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_worst_first_by_each_figure() {
        let mut service = Service::default();
        ask(&mut service, "busy", 20, &[0; 20], false, 2);
        ask(&mut service, "missing", 6, &[3, 3, 0, 0, 0, 0], false, 1);
        ask(&mut service, "silent", 7, &[0, 0, 0], false, 3);
        ask(&mut service, "large", 5, &[0; 5], true, 90);
        let expected = [
            (DnsSort::Queries, "busy", "large"),
            (DnsSort::Failures, "silent", "large"),
            (DnsSort::Latency, "large", "missing"),
            (DnsSort::LatencyP99, "large", "missing"),
            (DnsSort::Answers, "busy", "silent"),
            (DnsSort::Nxdomain, "missing", "silent"),
            (DnsSort::Timeouts, "silent", "missing"),
            (DnsSort::Truncated, "large", "silent"),
            (DnsSort::Retried, "busy", "silent"),
            (DnsSort::Name, "busy", "silent"),
        ];
        assert_eq!(expected.len(), DnsSort::value_variants().len());
        for (sort, worst, best) in expected {
            assert_eq!((&*first(&service, sort, false), &*first(&service, sort, true)), (worst, best), "{sort:?}");
        }
    }
}
