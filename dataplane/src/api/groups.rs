//! `ctl flows --by`: flows that match, added up by what is at their ends.

use hashbrown::HashMap;
use sockeye_ctl::protocol::{Answer, FlowsArguments, GroupBy, OwnerSort, OwnersArguments};
use sockeye_ctl::rows;

use super::owners::{Line, answer};
use super::who::{End, ends_of, group_of, names_of_both, workload_name};
use crate::flows::Flow;
use crate::flows::aggregates::{Activity, Aggregate, RATES};
use crate::model::flow::Side;
use crate::model::rtt::Network;
use crate::owners::process::ProcessTable;

/// Groups with figures of their own; flows of others are added to those of which nothing is known.
const GROUPS_MAX: usize = 4096;

rows! {
    /// Flows that match, added up. Round-trip times are the smoothed ones of the flows.
    struct GroupHead: "groups" {
        /// what they have in common; missing where that is not known, or of too many others
        name: Text = Option<String>,
    }
}

rows! {
    /// Flows that match, added up by what both ends are. Round-trip times are the smoothed ones of the flows.
    struct PairHead: "pairs" {
        /// who connected, or sent first; missing: it is on this host, and belongs to none
        initiator: Text = Option<String>,
        /// who answered, likewise
        responder: Text = Option<String>,
    }
}

/// A name, or with pairs those of initiator and responder.
type Named = [Option<String>; 2];

#[derive(Default)]
struct Group {
    aggregate: Aggregate,
    open: u64,
    rates: [f64; RATES],
}

/// Flows by what they have in common.
pub(crate) struct Groups {
    by: GroupBy,
    pairs: bool,
    groups: HashMap<Named, Group, ahash::RandomState>,
    now_ns: u64,
}

impl Groups {
    /// By both ends, or by each.
    pub(super) fn new(by: GroupBy, pairs: bool, now_ns: u64) -> Self {
        Self { by, pairs, groups: HashMap::default(), now_ns }
    }

    /// Adds a flow to the groups of its ends, to each once.
    pub(super) fn take(&mut self, flow: &Flow, processes: &ProcessTable) {
        let ends = ends_of(flow, processes);
        if self.pairs {
            let now_ns = self.now_ns;
            let group = self.group(names_of_both(&self.by, flow, &ends));
            group.add(flow, Side::Initiator, now_ns);
            group.add_rtt(flow, Side::Initiator);
            group.add_rtt(flow, Side::Responder);
            group.open += u64::from(!flow.state().is_over());
            return;
        }
        match self.by {
            // A flow as a whole has one.
            GroupBy::Service | GroupBy::Host => {
                let name = if self.by == GroupBy::Host { "host".into() } else { service_of(flow, ends) };
                let side = if ends[1].is_some() { Side::Responder } else { Side::Initiator };
                self.add(Some(name), flow, side, true);
            }
            GroupBy::Name => {
                let side = if ends[0].is_some() { Side::Initiator } else { Side::Responder };
                self.add(flow.peer_name().map(ToString::to_string), flow, side, true);
            }
            GroupBy::Network => {
                for side in local_sides(ends) {
                    let network = Network::of(flow.key.endpoint(side.other()).addr.0);
                    self.add(Some(network.to_string()), flow, side, true);
                }
            }
            _ => {
                let names = ends.map(|end| end.map(|end| group_of(&self.by, end)));
                for side in local_sides(ends) {
                    let counts = !(side == Side::Responder && names[0] == names[1]);
                    self.add(names[side as usize].clone().flatten(), flow, side, counts);
                }
            }
        }
    }

    /// That of a name, as long as there is room for one more.
    fn group(&mut self, name: Named) -> &mut Group {
        let has_room = self.groups.len() < GROUPS_MAX || self.groups.contains_key(&name);
        self.groups.entry(if has_room { name } else { Named::default() }).or_default()
    }

    /// `is_new`: the flow has not been counted in the group yet, by its other end.
    fn add(&mut self, name: Option<String>, flow: &Flow, side: Side, is_new: bool) {
        let now_ns = self.now_ns;
        let group = self.group([name, None]);
        group.add(flow, side, now_ns);
        group.add_rtt(flow, side);
        group.open += u64::from(is_new && !flow.state().is_over());
    }

    pub(super) fn into_answer(self, arguments: &FlowsArguments) -> Answer {
        let line = |(name, group): (Named, Group)| Line {
            of: name,
            aggregate: group.aggregate,
            open: group.open,
            rates: group.rates,
            pods: 0,
        };
        let FlowsArguments { sort, reverse, limit, .. } = *arguments;
        let arguments = OwnersArguments { sort: sort.of_groups(), reverse, limit, ..OwnersArguments::default() };
        let lines = self.groups.into_iter().map(line).collect();
        let text = |[first, second]: &Named, sort| {
            let name = if sort == OwnerSort::Responder && self.pairs { second } else { first };
            name.clone().unwrap_or_default()
        };
        if self.pairs {
            answer(lines, &arguments, None, text, |[initiator, responder]| PairHead { initiator, responder })
        } else {
            answer(lines, &arguments, None, text, |[name, _]| GroupHead { name })
        }
    }
}

impl Group {
    /// What a flow has carried, as this side sees it.
    fn add(&mut self, flow: &Flow, side: Side, now_ns: u64) {
        let (own, peer) = (side as usize, side.other() as usize);
        self.aggregate.activity[own].add(&Activity::of(side, &flow.totals(), 1));
        if !flow.state().is_over() {
            let rate = flow.rate(now_ns);
            let rates = [rate.bytes[own], rate.bytes[peer], rate.packets, 0.0];
            self.rates.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += f64::from(rate));
        }
    }

    fn add_rtt(&mut self, flow: &Flow, side: Side) {
        if let Some(end) = flow.end(side).filter(|end| end.srtt_us > 0) {
            self.aggregate.rtt[side as usize].get_or_insert_default().record(&[end.srtt_us]);
        }
    }
}

fn local_sides(ends: [Option<End<'_>>; 2]) -> impl Iterator<Item = Side> {
    Side::BOTH.into_iter().filter(move |side| ends[*side as usize].is_some())
}

/// What was asked for: the address of a service where something else has answered, else who answered.
fn service_of(flow: &Flow, ends: [Option<End<'_>>; 2]) -> String {
    let asked = || flow.key.responder.to_string();
    if flow.translated().is_some_and(|view| view.responder != flow.key.responder) {
        return asked();
    }
    let place = ends[1].and_then(|end| end.workload).and_then(|workload| workload_name(workload));
    place.map_or_else(asked, |(_, name)| name)
}
