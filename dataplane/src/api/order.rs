//! In which order flows are shown.

use sockeye_ctl::protocol::{FlowsArguments, SortBy};

use super::flows::shown_rtt;
use super::who::{End, ends_of};
use crate::flows::Flow;
use crate::model::flow::Side;
use crate::owners::process::ProcessTable;

/// The larger, the sooner a flow is shown. Names come from a to z by their first 16 bytes, which is all of a process's name;
/// what has none comes last.
pub(super) fn sort_key(a: &FlowsArguments, flow: &Flow, processes: &ProcessTable, now_ns: u64) -> u128 {
    let total = || flow.totals();
    let rate = |of: fn(crate::flows::Rate) -> f32| u128::from((of(flow.rate(now_ns)) * 1000.0) as u64);
    let address = |side| !u128::from_be_bytes(flow.key.endpoint(side).addr.0);
    let who = |name: &dyn Fn(&End<'_>) -> Option<String>| {
        let ends = ends_of(flow, processes);
        let text = ends.iter().flatten().find_map(name);
        text.map_or(0, |text| !first_bytes(text.as_bytes()))
    };
    let key = match a.sort {
        SortBy::Bytes => total().bytes.iter().sum::<u64>().into(),
        SortBy::Sent => total().bytes[0].into(),
        SortBy::Received => total().bytes[1].into(),
        SortBy::Retrans => total().retrans_of_both().into(),
        SortBy::Open => u128::from(!flow.state().is_over()),
        SortBy::Rtt | SortBy::RttP99 => shown_rtt(flow).map_or(0, |end| end.srtt_us.into()),
        SortBy::Rate => rate(|rate| rate.bytes.iter().sum()),
        SortBy::SentRate => rate(|rate| rate.bytes[0]),
        SortBy::ReceivedRate => rate(|rate| rate.bytes[1]),
        SortBy::PacketRate => rate(|rate| rate.packets),
        SortBy::Active => flow.active_ns.into(),
        SortBy::Age => (u64::MAX - flow.opened_ns).into(),
        SortBy::Process => who(&|end| Some(end.process?.name.clone())),
        SortBy::User => who(&|end| Some(end.process?.user_or_uid())),
        SortBy::Place => who(&|end| end.workload?.title()),
        SortBy::Initiator => address(Side::Initiator),
        SortBy::Responder => address(Side::Responder),
        SortBy::Port => u128::from(!flow.key.responder.port),
        SortBy::State => u128::MAX - flow.state() as u128,
        SortBy::Protocol => u128::MAX - flow.key.proto as u128,
    };
    if a.reverse { !key } else { key }
}

fn first_bytes(text: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
    u128::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_by_sixteen_bytes() {
        let ordered = ["", "a", "aa", "ab", "b", "kworker/u8:2-ev", "kworker/u8:3-ev"];
        assert!(ordered.is_sorted_by_key(|text| first_bytes(text.as_bytes())));
        assert_eq!(first_bytes(b"0123456789abcdefg"), first_bytes(b"0123456789abcdefh"));
    }
}
