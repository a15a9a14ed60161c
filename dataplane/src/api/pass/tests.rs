use super::*;
use crate::flows::Timeouts;
use sockeye_bpf::records::{UdpKey, UdpValue};
use sockeye_ctl::protocol::{GroupBy, SortBy};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use zerocopy::FromZeros;

/// Flows of 1 to so many bytes, each of a socket of its own.
fn table(flows: u64) -> FlowTable {
    let mut table = FlowTable::new(flows as usize * 3, Timeouts::default());
    for number in 1..=flows {
        let (mut key, mut value) = (UdpKey::new_zeroed(), UdpValue::new_zeroed());
        (key.cookie, key.local_port, key.netns) = (number, number as u16, number as u32);
        (key.remote_port, value.first_sent) = (53, 1);
        (value.bytes_sent, value.packets_sent) = (number, 1);
        table.udp(&key, &value, 1);
    }
    table
}

fn answered(request: &Request, flows: u64) -> (Answer, u32) {
    let (table, processes) = (table(flows), ProcessTable::default());
    let (reply, _answer) = sync_channel(1);
    let mut pass =
        Pass::begin(Question { request: request.clone(), places: Vec::new(), cost_ns: Arc::default(), reply }).unwrap();
    let mut portions = 1;
    // Its time is always up.
    while !pass.go_on(&table, &processes, Instant::now()) {
        portions += 1;
    }
    let Gathered::Flows(mut selection) = pass.gathered else { panic!("flows") };
    (selection.take_answer(), portions)
}

#[test]
fn the_first_of_many_in_portions() {
    for sort in [SortBy::Bytes, SortBy::Active] {
        let wanted = FlowsArguments { limit: 3, sort, ..FlowsArguments::default() };
        let (answer, portions) = answered(&Request::Flows(wanted.into()), 5000);
        let summary = &answer.rows("summary")[0];
        assert_eq!((&summary["matching"], &summary["shown"]), (&5000.into(), &3.into()));
        let sent: Vec<_> = answer.rows("flows").iter().map(|row| row["sent"].as_u64()).collect();
        if sort == SortBy::Bytes {
            assert_eq!(sent, [Some(5000), Some(4999), Some(4998)]);
        }
        assert!(portions >= 5, "{portions}");
    }
}

/// Flows leave the table between two portions: each is told of once all the same.
#[test]
fn what_leaves_the_table_meanwhile_is_told_of_once() {
    const SECOND_NS: u64 = 1_000_000_000;
    let processes = ProcessTable::default();
    for (portions_before, by) in (0..90).flat_map(|portions| [(portions, None), (portions, Some(GroupBy::Host))]) {
        let mut table = table(2000);
        (1..=2000).for_each(|cookie| table.udp_closed(cookie, SECOND_NS));
        let clock = crate::model::clock::WallClock::now();
        let tick = |table: &mut FlowTable, seconds: std::ops::Range<u64>| {
            for second in seconds {
                while table.tick(second * SECOND_NS, &clock, &mut ProcessTable::default(), |_| ()) {}
            }
        };
        // Reported, and lingering.
        tick(&mut table, 1..3);
        assert_eq!((table.len(), table.closed_numbers().len()), (2000, 0));
        let grouped = by.is_some();
        let wanted = FlowsArguments { closed: true, limit: 0, by, ..FlowsArguments::default() };
        let (mut selection, mut next) = (Gathered::Flows(Box::new(Selection::new(&wanted).unwrap())), Next::default());
        let mut portions = 0;
        while !selection.go_on(&mut next, &table, &processes, Instant::now()) {
            portions += 1;
            if portions == portions_before {
                tick(&mut table, 3..30);
                assert_eq!((table.len(), table.closed_numbers().len()), (0, 2000));
            }
        }
        let Gathered::Flows(mut selection) = selection else { unreachable!() };
        let answer = selection.take_answer();
        if grouped {
            let group = &answer.rows("groups")[0];
            assert_eq!(group["flows_out"].as_u64(), Some(2000), "{portions_before}: {group:?}");
        } else {
            let (summary, rows) = (&answer.rows("summary")[0], answer.rows("flows"));
            assert_eq!((&summary["matching"], rows.len()), (&2000.into(), 2000), "{portions_before}");
        }
    }
}

#[test]
fn no_limit_is_what_one_answer_takes() {
    let all = FlowsArguments { limit: 0, ..FlowsArguments::default() };
    let (answer, portions) = answered(&Request::Flows(all.into()), 12_000);
    let summary = &answer.rows("summary")[0];
    assert_eq!((&summary["matching"], &summary["shown"]), (&12_000.into(), &ROWS_MAX.into()));
    assert!(portions > 100, "{portions}");
}

#[test]
fn any_order_and_its_reverse() {
    let first = |sort, reverse| {
        let wanted = FlowsArguments { limit: 1, sort, reverse, ..FlowsArguments::default() };
        let (answer, _) = answered(&Request::Flows(wanted.into()), 300);
        answer.rows("flows")[0]["sent"].as_u64().unwrap()
    };
    assert_eq!([first(SortBy::Sent, false), first(SortBy::Sent, true)], [300, 1]);
    for sort in <SortBy as clap::ValueEnum>::value_variants() {
        let _ = (first(*sort, false), first(*sort, true));
    }
}

#[test]
fn a_flow_is_found_by_its_id_and_by_what_is_shown_of_it() {
    let found = |wanted: FlowsArguments| answered(&Request::Flows(wanted.into()), 300).0.rows("flows");
    let all = found(FlowsArguments { limit: 0, ..FlowsArguments::default() });
    let ids: std::collections::BTreeSet<_> = all.iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert_eq!((all.len(), ids.len()), (300, 300));
    let one = found(FlowsArguments { id: vec![all[7]["id"].as_str().unwrap().into()], ..FlowsArguments::default() });
    assert_eq!((one.len(), &one[0]["initiator"]), (1, &all[7]["initiator"]));
    let text = |words: &[&str]| {
        let text = words.iter().map(|word| (*word).to_owned()).collect();
        found(FlowsArguments { text, limit: 0, ..FlowsArguments::default() }).len()
    };
    assert_eq!([text(&[":53"]), text(&[":299"]), text(&[":53", ":299"]), text(&["nobody"])], [300, 1, 1, 0]);
}

#[test]
fn what_is_no_id_is_refused() {
    let wanted = FlowsArguments { id: vec!["flow".into()], ..FlowsArguments::default() };
    assert!(Selection::new(&wanted).err().unwrap().contains("\"flow\" is no id"));
}

#[test]
fn a_state_that_does_not_exist_is_refused_at_once() {
    let (reply, answer) = sync_channel(1);
    let wanted = FlowsArguments { state: vec!["half".into()], ..FlowsArguments::default() };
    assert!(
        Pass::begin(Question {
            request: Request::Flows(wanted.into()),
            places: Vec::new(),
            cost_ns: Arc::default(),
            reply
        })
        .is_none()
    );
    assert!(answer.recv().unwrap().unwrap_err().contains("\"half\""));
}
