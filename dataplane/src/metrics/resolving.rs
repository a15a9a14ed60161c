//! What is counted of DNS for Prometheus, by who has asked whom.

use std::net::IpAddr;
use std::sync::Arc;

use super::accounts::RttFigures;
use super::labels::{DnsLabels, EndLabels};
use super::series::{Series, Shown};
use super::waiting::Waiting;
use crate::flows::report::Identity;
use crate::model::flow::{ProcKey, Side};
use crate::names::service::{Figures, RCODES, Service};
use crate::owners::process::ProcessTable;

/// Most that wait for the names of their process. There are no more new ones from one tick to the next.
const WAITING_MAX: usize = 4096;

/// Figures of one label set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DnsFigures {
    /// Questions; one that is asked again is another one.
    pub queries: u64,
    /// Answers by verdict, in the order of [`RCODES`], and others.
    pub answers: [u64; RCODES.len() + 1],
    /// Answers that did not fit.
    pub truncated: u64,
    /// Questions that were asked again before there was an answer.
    pub retried: u64,
    /// Questions without an answer within 5 s.
    pub timeouts: u64,
    /// From question to answer.
    pub latency: RttFigures,
}

impl DnsFigures {
    fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.answers.iter_mut().zip(other.answers).for_each(|(sum, count)| *sum += count);
        self.truncated += other.truncated;
        self.retried += other.retried;
        self.timeouts += other.timeouts;
        self.latency.add(&other.latency);
    }
}

impl From<&Figures> for DnsFigures {
    fn from(figures: &Figures) -> Self {
        let mut latency = RttFigures::default();
        latency.record(&figures.latency);
        let Figures { queries, truncated, retried, timeouts, .. } = *figures;
        Self { queries, answers: figures.rcodes, truncated, retried, timeouts, latency }
    }
}

/// All of it. Owned by the control thread.
pub struct DnsAccounts {
    series: Series<DnsLabels, DnsFigures>,
    waiting: Waiting<IpAddr, DnsFigures>,
}

impl DnsAccounts {
    /// Nothing yet, for so many label sets.
    #[must_use]
    pub fn new(series_max: usize) -> Self {
        Self { series: Series::new(series_max), waiting: Waiting::new(WAITING_MAX) }
    }

    /// Takes what has been counted since the last call. Call it once per tick.
    pub fn take(&mut self, service: &mut Service, processes: &ProcessTable, now_ns: u64) {
        for (key, figures) in service.take_fresh() {
            let figures = DnsFigures::from(&figures);
            match self.waiting.of(key, processes, now_ns) {
                Some(waiting) => waiting.add(&figures),
                None => count(&mut self.series, key, &figures, processes, now_ns),
            }
        }
        for (key, figures) in self.waiting.take_settled(processes, now_ns) {
            count(&mut self.series, key, &figures, processes, now_ns);
        }
    }

    /// A copy of what is shown.
    #[must_use]
    pub fn shown(&self) -> Shown<DnsLabels, DnsFigures> {
        self.series.shown()
    }
}

/// Adds to the figures of who has asked whom, by their names.
fn count(
    series: &mut Series<DnsLabels, DnsFigures>,
    (process, server): (ProcKey, IpAddr),
    figures: &DnsFigures,
    processes: &ProcessTable,
    now_ns: u64,
) {
    let identity = Identity {
        process: processes.peek(process).map(Arc::clone),
        workload: processes.workload(process).map(Arc::clone),
    };
    let labels = DnsLabels { client: EndLabels::of(&identity, Side::Initiator), server: server.to_string() };
    let place = series.place(labels, now_ns);
    series.at(place, now_ns).add(figures);
}

#[cfg(test)]
mod tests {
    use super::super::waiting::NAMES_WAIT_NS;
    use super::*;
    use crate::names::dns::Message;
    use crate::names::service::Client;
    use crate::owners::process::Process;

    fn ask(service: &mut Service, process: ProcKey, server: &str, rcode: u8) {
        let client = Client { cookie: process.pid.into(), process, cgroup_id: 0, server: server.parse().unwrap() };
        let message = Message {
            id: 1,
            is_answer: false,
            rcode,
            truncated: false,
            name: "a.example".into(),
            is_host: true,
            rtype: 1,
            addresses: Vec::new(),
        };
        service.ask(&client, &message, 1_000_000);
        service.answer(&client, &message, 3_000_000);
    }

    #[test]
    fn each_question_is_counted_once_under_the_names_that_come_in_time() {
        let (mut service, mut processes, mut accounts) =
            (Service::default(), ProcessTable::default(), DnsAccounts::new(10));
        service.keep_fresh();
        let [late, never] = [5, 6].map(|pid| ProcKey { pid, start_ticks: 1, exec: 0 });
        ask(&mut service, late, "127.0.0.53", 0);
        ask(&mut service, never, "::1", 3);
        accounts.take(&mut service, &processes, 1);
        assert_eq!(accounts.shown().sets, []);
        processes.workloads.learn(9, "/system.slice/a.service", 0);
        processes.learn(Process { key: late, name: "p".into(), cgroup_id: 9, ..Process::default() }, 0);
        ask(&mut service, late, "127.0.0.53", 0);
        accounts.take(&mut service, &processes, 2);
        accounts.take(&mut service, &processes, NAMES_WAIT_NS + 1);
        let shown = accounts.shown().sets;
        let [(named, found), (unknown, missing)] = shown.as_slice() else { panic!("{shown:?}") };
        assert_eq!((named.client.workload.as_str(), named.server.as_str()), ("Service/a", "127.0.0.53"));
        assert_eq!((found.queries, found.answers, found.latency.sum_us), (2, [2, 0, 0, 0, 0], 4000));
        assert_eq!((unknown.client.process.as_str(), unknown.server.as_str()), ("unknown", "::1"));
        assert_eq!((missing.queries, missing.answers), (1, [0, 1, 0, 0, 0]));
        accounts.take(&mut service, &processes, 2 * NAMES_WAIT_NS);
        assert_eq!(accounts.shown().sets.iter().map(|(_, figures)| figures.queries).sum::<u64>(), 3, "once");
    }
}
