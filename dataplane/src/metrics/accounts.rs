//! What control counts for Prometheus, by who did it. Each report costs one look-up for each of its ends on this host, and
//! no allocation once its process is known.

use std::sync::{Arc, Weak};

use hashbrown::HashMap;

use super::labels::{EndLabels, RttLabels};
use super::series::{Place, Series, Shown};
use super::waiting::Waiting;
use crate::flows::report::{FlowReport, Identity};
use crate::model::flow::{ProcKey, Side, State};
use crate::model::rtt::RttStats;
use crate::owners::process::{Process, ProcessTable};
use crate::owners::workload::Workload;

/// Processes whose label sets are kept in mind: one more is looked up by its names.
const OWNERS_MAX: usize = 1 << 14;
/// Most processes whose round-trip times wait for names.
const WAITING_MAX: usize = 1024;
/// Why a connection was never established.
pub const FAILURES: [State; 3] = [State::Refused, State::Unreachable, State::TimedOut];

/// Figures of one label set; pairs are of what was sent and what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EndFigures {
    /// Flows that were reported for the first time.
    pub opened: u64,
    /// Flows that have ended, by [`State`].
    pub ended: [u64; State::ALL.len()],
    /// Payload.
    pub bytes: [u64; 2],
    /// Segments and datagrams.
    pub packets: [u64; 2],
    /// Segments sent again.
    pub retrans: u64,
    /// Resets; the third is of those of which the sender is not known.
    pub resets: [u64; 3],
    /// Connections that were never established, by [`FAILURES`].
    pub failed: [u64; FAILURES.len()],
}

impl EndFigures {
    fn add(&mut self, report: &FlowReport, side: Side) {
        let (own, peer) = (side as usize, side.other() as usize);
        let delta = &report.delta;
        self.opened += u64::from(report.first);
        for (to, from) in [(0, own), (1, peer)] {
            self.bytes[to] += delta.bytes[from];
            self.packets[to] += delta.packets[from];
        }
        self.retrans += u64::from(delta.retrans[own]);
        if !report.ended {
            return;
        }
        self.ended[report.state as usize] += 1;
        if report.state == State::Reset {
            let by = report.reset_by.map_or(2, |by| usize::from(by != side));
            self.resets[by] += 1;
        }
        let failure = FAILURES.iter().position(|failure| *failure == report.state);
        if let Some(failure) = failure.filter(|_| report.connecting) {
            self.failed[failure] += 1;
        }
    }
}

/// Upper bounds of the buckets of round-trip times, microseconds. What is longer is in one more.
pub const RTT_BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Round-trip times of one label set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RttFigures {
    /// Samples between the bound before and that of [`RTT_BOUNDS_US`].
    pub buckets: [u64; RTT_BOUNDS_US.len() + 1],
    /// Sum of all samples, microseconds.
    pub sum_us: u64,
}

impl RttFigures {
    pub(super) fn record(&mut self, rtt: &RttStats) {
        rtt.add_to_buckets(&RTT_BOUNDS_US, &mut self.buckets);
        self.sum_us += rtt.sum_us();
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(bucket, more)| *bucket += more);
        self.sum_us += other.sum_us;
    }
}

/// Where the figures of a process go, as long as it and its place are the same.
struct Owner {
    process: Weak<Process>,
    workload: Weak<Workload>,
    ends: [Option<Place>; 2],
    rtt: [Option<Place>; 2],
}

/// All of it. Owned by the control thread.
pub struct Accounts {
    owners: HashMap<ProcKey, Owner, ahash::RandomState>,
    ends: Series<EndLabels, EndFigures>,
    rtt: Series<RttLabels, RttFigures>,
    waiting: Waiting<Side, RttFigures>,
    moved: u64,
}

impl Accounts {
    /// Nothing yet, for so many label sets of each kind.
    #[must_use]
    pub fn new(series_max: usize) -> Self {
        let (ends, rtt) = (Series::new(series_max), Series::new(series_max));
        Self { owners: HashMap::default(), ends, rtt, waiting: Waiting::new(WAITING_MAX), moved: 0 }
    }

    /// Adds what a report tells.
    pub fn account(&mut self, report: &FlowReport, now_ns: u64) {
        for side in Side::BOTH.into_iter().filter(|side| report.local[*side as usize]) {
            let place = self.place_of_end(report.owners[side as usize], &report.current()[side as usize], side, now_ns);
            self.ends.at(place, now_ns).add(report, side);
        }
    }

    /// Adds a shard's round-trip times of a process.
    pub fn rtt(&mut self, key: ProcKey, side: Side, rtt: &RttStats, processes: &ProcessTable, now_ns: u64) {
        match self.waiting.of((key, side), processes, now_ns) {
            Some(waiting) => waiting.record(rtt),
            None => self.rtt_of(key, side, processes, now_ns).record(rtt),
        }
    }

    /// Gives round-trip times that wait to their places, if the names have come, or do not come. Call it once per tick.
    pub fn settle(&mut self, processes: &ProcessTable, now_ns: u64) {
        let mut waiting = std::mem::replace(&mut self.waiting, Waiting::new(WAITING_MAX));
        for ((key, side), figures) in waiting.take_settled(processes, now_ns) {
            self.rtt_of(key, side, processes, now_ns).add(&figures);
        }
        self.waiting = waiting;
    }

    fn rtt_of(&mut self, key: ProcKey, side: Side, processes: &ProcessTable, now_ns: u64) -> &mut RttFigures {
        let process = processes.peek(key).map(Arc::clone);
        let identity = Identity { process, workload: processes.workload(key).map(Arc::clone) };
        let place = self.place_of_rtt(key, &identity, side, now_ns);
        self.rtt.at(place, now_ns)
    }

    /// Copies of what is shown.
    #[must_use]
    pub fn shown(&self) -> (Shown<EndLabels, EndFigures>, Shown<RttLabels, RttFigures>) {
        (self.ends.shown(), self.rtt.shown())
    }

    fn place_of_end(&mut self, key: ProcKey, identity: &Identity, side: Side, now_ns: u64) -> Place {
        let (known, series) = (owner(&mut self.owners, key, identity), &mut self.ends);
        let place = match known.ends[side as usize] {
            Some(place) if place != Place::OTHER || !series.may_have_room(now_ns) => return place,
            _ => series.place(EndLabels::of(identity, side), now_ns),
        };
        known.ends[side as usize] = Some(place);
        self.forget_if_moved();
        place
    }

    fn place_of_rtt(&mut self, key: ProcKey, identity: &Identity, side: Side, now_ns: u64) -> Place {
        let (known, series) = (owner(&mut self.owners, key, identity), &mut self.rtt);
        let place = match known.rtt[side as usize] {
            Some(place) if place != Place::OTHER || !series.may_have_room(now_ns) => return place,
            _ => series.place(RttLabels::of(identity, side), now_ns),
        };
        known.rtt[side as usize] = Some(place);
        self.forget_if_moved();
        place
    }

    /// A place was given to other labels than before: whose it was is looked up again.
    fn forget_if_moved(&mut self) {
        let moved = self.ends.moved() + self.rtt.moved();
        if moved != self.moved {
            self.moved = moved;
            self.owners.clear();
        }
    }
}

/// What is known of an owner, or nothing if it has changed. A free function: it borrows the owners alone.
fn owner<'a>(
    owners: &'a mut HashMap<ProcKey, Owner, ahash::RandomState>,
    key: ProcKey,
    identity: &Identity,
) -> &'a mut Owner {
    let (process, workload) = (as_ptr(identity.process.as_ref()), as_ptr(identity.workload.as_ref()));
    if owners.len() >= OWNERS_MAX && !owners.contains_key(&key) {
        owners.retain(|_, owner| owner.process.strong_count() > 0);
        if owners.len() >= OWNERS_MAX / 2 {
            owners.clear();
        }
    }
    let owner = owners.entry(key).or_insert_with(|| Owner::of(identity));
    // What a `Weak` points to is not given to another while it is there.
    if owner.process.as_ptr() != process || owner.workload.as_ptr() != workload {
        *owner = Owner::of(identity);
    }
    owner
}

impl Owner {
    fn of(identity: &Identity) -> Self {
        Self {
            process: identity.process.as_ref().map_or_else(Weak::new, Arc::downgrade),
            workload: identity.workload.as_ref().map_or_else(Weak::new, Arc::downgrade),
            ends: [None; 2],
            rtt: [None; 2],
        }
    }
}

fn as_ptr<T>(arc: Option<&Arc<T>>) -> *const T {
    arc.map_or_else(|| Weak::new().as_ptr(), Arc::as_ptr)
}

#[cfg(test)]
mod tests {
    use super::super::waiting::NAMES_WAIT_NS;
    use super::*;
    use crate::flows::testing;
    use crate::model::flow::Counters;
    use proptest::prelude::*;

    /// Reports of this process, anew each time as if a name had come.
    fn report_of(number: u32) -> FlowReport {
        let key = ProcKey { pid: number + 1, start_ticks: 1, exec: 0 };
        let process = Process { key, name: format!("p{}", number % 40), ..Process::default() };
        let identity = Identity { process: Some(Arc::new(process)), workload: None };
        FlowReport { identity: [identity.clone(), identity], owners: [key; 2], ..testing::report() }
    }

    fn sum(shown: &Shown<EndLabels, EndFigures>, of: impl Fn(&EndFigures) -> u64) -> u64 {
        shown.sets.iter().map(|(_, figures)| of(figures)).sum::<u64>() + of(&shown.other)
    }

    proptest! {
        /// As long as no set is quiet for ten minutes: all that was reported is shown, whoever did it.
        #[test]
        fn sums_are_those_of_the_reports(
            reports in prop::collection::vec((0u32..200, any::<[bool; 3]>(), 0u64..5000, 0usize..State::ALL.len()), 1..300),
            series_max in 1usize..100,
        ) {
            let mut accounts = Accounts::new(series_max);
            let (mut bytes, mut opened, mut ended, mut ends) = (0, 0, 0, 0);
            for (number, [first, over, both], amount, state) in reports {
                let delta = Counters { bytes: [amount, 2 * amount], ..Counters::default() };
                let (local, state) = ([true, both], State::ALL[state]);
                let report = FlowReport { delta, first, ended: over, state, local, ..report_of(number) };
                accounts.account(&report, 1);
                ends += u64::from(both) + 1;
                bytes += 3 * amount * (u64::from(both) + 1);
                opened += u64::from(first) * (u64::from(both) + 1);
                ended += u64::from(over) * (u64::from(both) + 1);
            }
            let (shown, _) = accounts.shown();
            prop_assert_eq!(sum(&shown, |figures| figures.bytes.iter().sum()), bytes);
            prop_assert_eq!(sum(&shown, |figures| figures.opened), opened);
            prop_assert_eq!(sum(&shown, |figures| figures.ended.iter().sum()), ended);
            prop_assert!(shown.counts.folded <= ends && shown.sets.len() <= series_max);
        }
    }

    #[test]
    fn each_end_is_counted_by_its_names() {
        let mut accounts = Accounts::new(10);
        let over =
            FlowReport { ended: true, state: State::Reset, reset_by: Some(Side::Initiator), ..testing::report() };
        accounts.account(&over, 1);
        let refused = FlowReport { ended: true, state: State::Refused, connecting: true, local: [true, false], ..over };
        accounts.account(&refused, 1);
        // One that was established is no failed connection.
        accounts.account(&FlowReport { state: State::TimedOut, connecting: false, ..refused }, 1);
        let (shown, _) = accounts.shown();
        let [(curl, sent), (nginx, received)] = shown.sets.as_slice() else { panic!("{shown:?}") };
        assert_eq!((curl.process.as_str(), curl.role, nginx.role), ("curl", Side::Initiator, Side::Responder));
        assert!(
            !curl.pod.is_empty() && curl.workload.contains('/') && nginx.workload.starts_with("Service/"),
            "{shown:?}"
        );
        assert_eq!((sent.resets, received.resets), ([1, 0, 0], [0, 1, 0]));
        assert_eq!((sent.failed, received.failed), ([1, 0, 0], [0; 3]));
        assert_eq!((sent.bytes, received.bytes), ([3600, 103_500], [34_500, 1200]));
        assert_eq!((sent.opened, received.opened), (3, 1));
    }

    #[test]
    fn a_report_of_a_known_process_allocates_nothing() {
        let mut accounts = Accounts::new(10);
        let reports: Vec<FlowReport> = (0..40).map(report_of).collect();
        let counted = |accounts: &mut Accounts| {
            allocation_counter::measure(|| reports.iter().for_each(|report| accounts.account(report, 1))).count_total
        };
        assert!(counted(&mut accounts) > 0);
        assert_eq!(counted(&mut accounts), 0);
    }

    #[test]
    fn a_process_that_is_renamed_is_another_one() {
        let mut accounts = Accounts::new(10);
        let mut report = report_of(1);
        for name in ["before", "after", "before"] {
            let process = Process { name: name.into(), ..Process::default() };
            report.identity[0].process = Some(Arc::new(process));
            accounts.account(&FlowReport { local: [true, false], ..report.clone() }, 1);
        }
        let (shown, _) = accounts.shown();
        let opened: Vec<_> = shown.sets.iter().map(|(labels, figures)| (&*labels.process, figures.opened)).collect();
        assert_eq!(opened, [("before", 2), ("after", 1)]);
    }

    #[test]
    fn round_trip_times_are_in_the_buckets_of_their_place() {
        let (mut accounts, mut processes) = (Accounts::new(10), ProcessTable::default());
        let key = ProcKey { pid: 5, start_ticks: 1, exec: 0 };
        processes.workloads.learn(9, "/system.slice/a.service", 0);
        processes.learn(Process { key, name: "p".into(), cgroup_id: 9, ..Process::default() }, 0);
        let mut rtt = RttStats::default();
        rtt.record(&[50, 900, 900, 30_000_000]);
        accounts.rtt(key, Side::Initiator, &rtt, &processes, 1);
        accounts.rtt(key, Side::Initiator, &rtt, &processes, 2);
        let (_, shown) = accounts.shown();
        let [(labels, figures)] = shown.sets.as_slice() else { panic!("{shown:?}") };
        assert_eq!((labels.workload.as_str(), figures.sum_us), ("Service/a", 2 * 30_001_850));
        assert_eq!((figures.buckets[0], figures.buckets[3], figures.buckets[16]), (2, 4, 2), "{figures:?}");
    }

    #[test]
    fn round_trip_times_wait_for_names_but_not_for_ever() {
        let (mut accounts, mut processes) = (Accounts::new(10), ProcessTable::default());
        let [late, never] = [5, 6].map(|pid| ProcKey { pid, start_ticks: 1, exec: 0 });
        let mut rtt = RttStats::default();
        rtt.record(&[50]);
        for key in [late, never] {
            accounts.rtt(key, Side::Responder, &rtt, &processes, 1);
            accounts.settle(&processes, 2);
        }
        let shown = |accounts: &Accounts| {
            let sets = accounts.shown().1.sets;
            sets.iter().map(|(labels, figures)| (labels.workload.clone(), figures.buckets[0])).collect::<Vec<_>>()
        };
        assert_eq!(shown(&accounts), []);
        processes.workloads.learn(9, "/system.slice/a.service", 0);
        processes.learn(Process { key: late, name: "p".into(), cgroup_id: 9, ..Process::default() }, 0);
        accounts.rtt(late, Side::Responder, &rtt, &processes, 3);
        accounts.settle(&processes, 4);
        assert_eq!(shown(&accounts), [("Service/a".to_owned(), 2)]);
        accounts.settle(&processes, NAMES_WAIT_NS + 1);
        assert_eq!(shown(&accounts), [("Service/a".to_owned(), 2), (String::new(), 1)]);
    }
}
