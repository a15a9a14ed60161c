//! The tails of `perf overhead`: a mean hides what the slowest of a hundred or a thousand round trips pay. Quantiles of
//! single round trips with nothing, with bare mechanisms and with the agent, compared within each turn.

use serde_json::{Value, json};

use crate::distance::is_same;
use crate::load::{Measured, Workload};
use crate::stats::verdict;
use crate::stopwatch::{Quantiles, SHARES};
use crate::table::{Table, median_cells};

/// How much longer a round trip may take with the agent than with nothing, percent, at each of the quantiles.
const AIM_PERCENT: f64 = 2.0;
/// What the traffic runs with, in the order of [`Turn::states`].
const STATES: [&str; 3] = ["nothing", "bare mechanisms", "agent"];
const AGENT: usize = 2;

const TIMES_COLUMNS: [&str; 13] = [
    "traffic",
    "with",
    "turns",
    "round trips a turn",
    "p50 us",
    "p50 from",
    "p50 to",
    "p99 us",
    "p99 from",
    "p99 to",
    "p99.9 us",
    "p99.9 from",
    "p99.9 to",
];

const LONGER_COLUMNS: [&str; 12] = [
    "traffic",
    "quantile",
    "turns",
    "than with nothing, %",
    "from",
    "to",
    "aim %",
    "verdict",
    "turns beside bare",
    "than with bare, %",
    "bare from",
    "bare to",
];

/// One kind of traffic in one turn.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) nothing: &'a Measured,
    pub(crate) bare: &'a Measured,
    pub(crate) agent: &'a Measured,
}

impl<'a> Turn<'a> {
    fn states(self) -> [&'a Measured; STATES.len()] {
        [self.nothing, self.bare, self.agent]
    }
}

/// The round trips of one kind of traffic over all turns.
pub(crate) struct Tails {
    workload: Workload,
    /// Of each turn, with each of [`STATES`].
    times_us: [Vec<Quantiles>; STATES.len()],
    round_trips: [Vec<f64>; STATES.len()],
    /// Percent longer with the agent than with each of the others, in the turns that can be compared.
    longer: [Vec<Quantiles>; AGENT],
}

impl Tails {
    /// None for traffic that waits for no answer.
    pub(crate) fn of(workload: Workload) -> Option<Self> {
        workload.has_round_trips().then(|| Self {
            workload,
            times_us: Default::default(),
            round_trips: Default::default(),
            longer: Default::default(),
        })
    }

    pub(crate) fn workload(&self) -> Workload {
        self.workload
    }

    /// `even_if_moved`: compares also what was measured with the CPUs at different distances.
    pub(crate) fn add(&mut self, turn: Turn<'_>, even_if_moved: bool) {
        for (state, measured) in turn.states().into_iter().enumerate() {
            self.times_us[state].extend(measured.run.round_trips_us);
            self.round_trips[state].push(measured.run.operations as f64);
        }
        for (longer, other) in self.longer.iter_mut().zip(turn.states()) {
            let quantiles = turn.agent.run.round_trips_us.zip(other.run.round_trips_us);
            if even_if_moved || is_same(turn.agent.line_ns, other.line_ns) {
                longer.extend(quantiles.map(|(agent, other)| percent_longer(agent, other)));
            }
        }
    }

    fn times_row(&self, state: usize) -> Vec<Value> {
        let (times_us, round_trips) = (&self.times_us[state], &self.round_trips[state]);
        let [usual, ..] = median_cells(round_trips);
        let mut row = vec![json!(self.workload.name()), json!(STATES[state]), json!(times_us.len())];
        row.push(usual.as_f64().map_or(Value::Null, |usual| json!(usual.round() as u64)));
        row.extend((0..SHARES.len()).flat_map(|at| median_cells(&at_quantile(times_us, at))));
        row
    }

    fn longer_row(&self, at: usize) -> Vec<Value> {
        let [nothing, bare] = self.longer.each_ref().map(|longer| at_quantile(longer, at));
        let mut row = vec![json!(self.workload.name()), json!(SHARES[at].0), json!(nothing.len())];
        row.extend(median_cells(&nothing));
        row.push(json!(AIM_PERCENT));
        row.extend([json!(verdict(AIM_PERCENT, &nothing)), json!(bare.len())]);
        row.extend(median_cells(&bare));
        row
    }
}

/// What all kinds of traffic have to say, with what each table shows.
pub(crate) fn tables(tails: &[Tails]) -> Vec<(&'static str, Table)> {
    let (mut times, mut longer) = (Table::new(&TIMES_COLUMNS), Table::new(&LONGER_COLUMNS));
    for tails in tails {
        (0..STATES.len()).for_each(|state| times.push(tails.times_row(state)));
        (0..SHARES.len()).for_each(|at| longer.push(tails.longer_row(at)));
    }
    if tails.is_empty() {
        Vec::new()
    } else {
        vec![("Time of a round trip", times), ("Round trips, longer with the agent", longer)]
    }
}

/// What has to be known to read them.
pub(crate) fn notes() -> Vec<String> {
    vec![
        "Round trips: quantiles of each run, then the median of the turns with the interval of the slow-down. Longer: the \
         median of the turns' ratios at that quantile, with the CPUs as far apart in both."
            .into(),
        "Each round trip lasts from the end of the one before. The next request waits for the answer, so a stall of any \
         length is one long round trip, and no more than one."
            .into(),
    ]
}

fn percent_longer(Quantiles(agent): Quantiles, Quantiles(other): Quantiles) -> Quantiles {
    Quantiles(std::array::from_fn(|at| (agent[at] / other[at] - 1.0) * 100.0))
}

/// One quantile of every turn.
fn at_quantile(turns: &[Quantiles], at: usize) -> Vec<f64> {
    turns.iter().map(|Quantiles(quantiles)| quantiles[at]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Run;

    fn measured(us: f64, line_ns: f64) -> Measured {
        let round_trips_us = Some(Quantiles([us, 2.0 * us, 10.0 * us]));
        Measured { run: Run { operations: 1000, rate: 2000.0, cpu_ns_per_op: 5.0, round_trips_us }, line_ns }
    }

    fn tails_after(turns: &[[Measured; 3]], even_if_moved: bool) -> Tails {
        let mut tails = Tails::of(Workload::TcpRr).unwrap();
        for [nothing, bare, agent] in turns {
            tails.add(Turn { nothing, bare, agent }, even_if_moved);
        }
        tails
    }

    #[test]
    fn a_stream_has_no_round_trips() {
        assert!(Tails::of(Workload::TcpBulk).is_none() && Tails::of(Workload::UdpStream).is_none());
    }

    #[test]
    fn the_agent_is_compared_with_both_in_each_turn() {
        let turns = [100.0; 8].map(|us| [measured(us, 30.0), measured(1.1 * us, 30.0), measured(1.21 * us, 31.0)]);
        let tails = tails_after(&turns, false);
        let row = tails.longer_row(1);
        assert_eq!(row.len(), LONGER_COLUMNS.len());
        assert_eq!(
            row[1..8],
            [json!("p99"), json!(8), json!(21.0), json!(21.0), json!(21.0), json!(2.0), "not met".into()]
        );
        assert_eq!(row[8..], [json!(8), json!(10.0), json!(10.0), json!(10.0)]);
    }

    #[test]
    fn times_are_told_of_each_state() {
        let tails = tails_after(&[[measured(1.5, 30.0), measured(2.0, 30.0), measured(3.0, 30.0)]], false);
        let row = tails.times_row(AGENT);
        assert_eq!(row.len(), TIMES_COLUMNS.len());
        assert_eq!(row[1..4], [json!("agent"), json!(1), json!(1000)]);
        assert_eq!([&row[4], &row[7], &row[10]], [&json!(3.0), &json!(6.0), &json!(30.0)]);
    }

    #[test]
    fn what_was_measured_at_different_distances_is_not_compared() {
        let turn = || [measured(1.0, 30.0), measured(2.0, 160.0), measured(3.0, 160.0)];
        let row = tails_after(&[turn()], false).longer_row(0);
        assert_eq!(row[2..6], [json!(0), Value::Null, Value::Null, Value::Null]);
        assert_eq!(row[7], "too few turns to say");
        assert_eq!(row[8..], [json!(1), json!(50.0), json!(50.0), json!(50.0)]);
        assert_eq!(tails_after(&[turn()], true).longer_row(0)[2..4], [json!(1), json!(200.0)]);
    }
}
