//! `ctl rtt`.

use std::collections::BTreeMap;

use sockeye_ctl::protocol::{Answer, GroupBy, RttArguments, Table, keep};
use sockeye_ctl::rows;

use super::owners::{Owners, averages, by_workload, quantiles};
use super::who::{group_of_process, group_of_workload};
use crate::flows::aggregates::Aggregate;
use crate::model::rtt::RttStats;

rows! {
    /// Round-trip times of TCP connections, as measured on either side, since the agent was started.
    struct Distribution: "rtt" {
        /// whose
        name: Text = String,
        /// how many
        samples: Count = u64,
        /// average
        mean: Microseconds = Option<f64>,
        /// standard deviation
        dev: Microseconds = Option<f64>,
        /// half are shorter
        p50: Microseconds = Option<u64>,
        /// nine of ten are shorter
        p90: Microseconds = Option<u64>,
        /// 99 of 100 are shorter
        p99: Microseconds = Option<u64>,
        /// pairs: up to so many microseconds, so many samples
        histogram: Other = Vec<(u64, u64)>,
    }
}

/// Distributions of round-trip times, those with the most samples first.
pub(crate) fn rtt(of: &Owners<'_>, a: &RttArguments) -> Answer {
    let mut aggregates = distributions(of, &a.by);
    aggregates.retain(|(name, rtt)| rtt.samples() > 0 && a.name.as_deref().is_none_or(|wanted| name.contains(wanted)));
    aggregates.sort_by_key(|(_, rtt)| std::cmp::Reverse(rtt.samples()));
    keep(&mut aggregates, a.limit);
    let rows = aggregates.into_iter().map(|(name, rtt)| {
        let [mean, dev] = averages(Some(&rtt));
        let [p50, p90, p99] = quantiles(Some(&rtt));
        Distribution { name, samples: rtt.samples(), mean, dev, p50, p90, p99, histogram: rtt.decades() }
    });
    Answer { tables: vec![Table::of(rows)] }
}

fn distributions(of: &Owners<'_>, by: &GroupBy) -> Vec<(String, RttStats)> {
    fn total(group: &Aggregate) -> RttStats {
        let mut total = RttStats::default();
        group.rtt.iter().flatten().for_each(|rtt| total.add(rtt));
        total
    }
    match by {
        GroupBy::Process | GroupBy::User => {
            let mut sums: BTreeMap<String, RttStats> = BTreeMap::new();
            for (key, group) in of.aggregates.processes() {
                sums.entry(group_of_process(by, key, of.processes)).or_default().add(&total(group));
            }
            sums.into_iter().collect()
        }
        GroupBy::Network => {
            let (peers, others) = of.aggregates.peers();
            let named = peers.map(|(network, rtt)| (network.to_string(), rtt.clone()));
            named.chain([("other networks".to_owned(), others.clone())]).collect()
        }
        GroupBy::Host => {
            let mut host = RttStats::default();
            of.aggregates.by_workload(of.processes).values().for_each(|group| host.add(&total(group)));
            vec![("host".into(), host)]
        }
        _ => {
            let groups = by_workload(of, |workload| group_of_workload(by, workload));
            groups.into_iter().map(|(name, (_, group, _))| (name, total(&group))).collect()
        }
    }
}
