//! What is counted by the names of far ends for Prometheus: there may be any number of them, so few are shown.

use std::sync::Arc;

use super::series::{Series, Shown};
use crate::flows::report::FlowReport;

/// Figures of one name. Pairs are of what was sent to it and what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameFigures {
    /// Flows that were reported for the first time.
    pub opened: u64,
    /// Payload.
    pub bytes: [u64; 2],
}

/// All of them. Owned by the control thread.
pub struct NameAccounts {
    series: Series<Arc<str>, NameFigures>,
    names_max: usize,
}

impl NameAccounts {
    /// Nothing yet, for so many names; 0: nothing is counted.
    #[must_use]
    pub fn new(names_max: usize) -> Self {
        Self { series: Series::new(names_max), names_max }
    }

    /// Adds what a report tells, if it is known what its responder is called.
    pub fn account(&mut self, report: &FlowReport, now_ns: u64) {
        if self.names_max == 0 {
            return;
        }
        let sure = report.peer_name.as_ref().filter(|name| name.source.is_sure());
        let Some(name) = sure.and_then(|name| name.sole()) else { return };
        let place = self.series.place(Arc::clone(name), now_ns);
        let figures = self.series.at(place, now_ns);
        figures.opened += u64::from(report.first);
        figures.bytes.iter_mut().zip(report.delta.bytes).for_each(|(sum, bytes)| *sum += bytes);
    }

    /// A copy of what is shown.
    #[must_use]
    pub fn shown(&self) -> Shown<Arc<str>, NameFigures> {
        self.series.shown()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::testing;
    use crate::model::flow::Counters;
    use crate::names::table::{PeerName, Source};

    fn report(names: &[&str], source: Source) -> FlowReport {
        let names = names.iter().map(|name| Arc::from(*name)).collect();
        let delta = Counters { bytes: [10, 200], ..Counters::default() };
        FlowReport { first: true, delta, peer_name: Some(Arc::new(PeerName { names, source })), ..testing::report() }
    }

    #[test]
    fn only_what_is_sure_is_counted_and_a_known_name_costs_no_allocation() {
        let mut accounts = NameAccounts::new(1);
        let sure = report(&["a.example"], Source::Process);
        let reports =
            [&sure, &sure, &report(&["a.example", "b.example"], Source::Process), &report(&["c"], Source::Host)];
        accounts.account(&sure, 1);
        let cost = allocation_counter::measure(|| reports.iter().for_each(|report| accounts.account(report, 1)));
        accounts.account(&report(&["d.example"], Source::Process), 1);
        let mut none = NameAccounts::new(0);
        none.account(&sure, 1);
        assert_eq!(none.shown().other, NameFigures::default());
        let shown = accounts.shown();
        let [(name, figures)] = shown.sets.as_slice() else { panic!("{shown:?}") };
        assert_eq!((&***name, *figures), ("a.example", NameFigures { opened: 3, bytes: [30, 600] }));
        assert_eq!((shown.other, cost.count_total), (NameFigures { opened: 1, bytes: [10, 200] }, 0));
    }
}
