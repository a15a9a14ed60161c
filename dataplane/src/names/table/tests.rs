use super::*;
use proptest::prelude::*;

const S: u64 = SECOND_NS;
const MS: u64 = 1_000_000;

fn process(pid: u32) -> ProcKey {
    ProcKey { pid, start_ticks: pid, exec: 0 }
}

fn asker(pid: u32) -> Asker {
    Asker { process: process(pid), container: 0, netns: 1 }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const CDN: &str = "203.0.113.7";

fn tell(table: &mut NameTable, pid: u32, name: &str, at_ns: u64) {
    table.learn(asker(pid), name, &[(ip(CDN), 30)], at_ns);
}

fn connect(table: &mut NameTable, pid: u32, ancestors: &[u32], at_ns: u64) -> Option<String> {
    let connection = Connection { asker: asker(pid), ancestors, address: ip(CDN), opened_ns: at_ns };
    table.name_of(&connection).map(|name| format!("{name}, {}", name.source.name()))
}

#[test]
fn a_process_that_asks_and_connects_in_turns() {
    let mut table = NameTable::default();
    for (number, at_ns) in (0..200).zip((S..).step_by(10 * MS as usize)) {
        tell(&mut table, 10, &format!("n{number}.example"), at_ns);
        let found = connect(&mut table, 10, &[], at_ns + MS);
        assert_eq!(found, Some(format!("n{number}.example, process")));
    }
    assert!(table.len() <= NAMES_MAX);
}

#[test]
fn what_fits_two_names_is_one_of_them_and_more_is_unknown() {
    let mut table = NameTable::default();
    tell(&mut table, 10, "a.example", S);
    assert_eq!(connect(&mut table, 10, &[], 2 * S).unwrap(), "a.example, process");
    assert_eq!(connect(&mut table, 10, &[], 3 * S).unwrap(), "a.example, process", "again");
    tell(&mut table, 10, "b.example", 4 * S);
    assert_eq!(connect(&mut table, 10, &[], 5 * S).unwrap(), "b.example, process");
    assert_eq!(connect(&mut table, 10, &[], 6 * S).unwrap(), "b.example or a.example, process", "either");
    tell(&mut table, 10, "c.example", 7 * S);
    tell(&mut table, 10, "d.example", 8 * S);
    assert_eq!(connect(&mut table, 10, &[], 9 * S), None, "c was not used yet");
    assert_eq!(connect(&mut table, 10, &[], 120 * S), None, "all too old");
}

#[test]
fn what_was_asked_later_is_not_meant() {
    let mut table = NameTable::default();
    tell(&mut table, 10, "a.example", S);
    tell(&mut table, 10, "b.example", 3 * S);
    assert_eq!(connect(&mut table, 10, &[], 2 * S).unwrap(), "a.example, process");
    tell(&mut table, 11, "a.example", 20 * S);
    assert_eq!(connect(&mut table, 11, &[], 19 * S).unwrap(), "b.example or a.example, network namespace");
}

/// A connection may be told of long after it was made.
#[test]
fn what_was_asked_for_again_and_again_since_was_known_before() {
    let mut table = NameTable::default();
    for at_ns in (S..3 * S).step_by(100 * MS as usize) {
        tell(&mut table, 10, "a.example", at_ns);
    }
    assert_eq!(connect(&mut table, 10, &[], 2 * S).unwrap(), "a.example, process");
    assert_eq!(connect(&mut table, 10, &[], S - 1), None, "before the first time");
    tell(&mut table, 10, "b.example", 5 * S / 2);
    assert_eq!(connect(&mut table, 10, &[], 5 * S / 2 + MS).unwrap(), "b.example or a.example, process", "either");
    tell(&mut table, 10, "a.example", 100 * S);
    assert_eq!(connect(&mut table, 10, &[], 60 * S).unwrap(), "a.example, process", "the newest, then");
    assert_eq!(connect(&mut table, 10, &[], 90 * S), None, "too old then");
}

#[test]
fn children_mean_what_their_parent_asked_for() {
    let mut table = NameTable::default();
    tell(&mut table, 10, "a.example", S);
    tell(&mut table, 12, "z.example", S + 1);
    assert_eq!(connect(&mut table, 11, &[10, 1], 2 * S).unwrap(), "a.example, parent");
    assert_eq!(connect(&mut table, 5, &[10, 1], 2 * S).unwrap(), "z.example or a.example, network namespace");
    tell(&mut table, 10, "b.example", 2 * S);
    assert_eq!(connect(&mut table, 11, &[10, 1], 3 * S).unwrap(), "b.example or a.example, parent");
    tell(&mut table, 10, "c.example", 2 * S);
    assert_eq!(connect(&mut table, 11, &[10, 1], 3 * S), None);
}

#[test]
fn a_child_uses_what_its_parent_asked_for() {
    let mut table = NameTable::default();
    tell(&mut table, 10, "a.example", S);
    assert_eq!(connect(&mut table, 11, &[10], 2 * S).unwrap(), "a.example, parent");
    tell(&mut table, 10, "b.example", 3 * S);
    assert_eq!(connect(&mut table, 10, &[], 4 * S).unwrap(), "b.example, process");
    tell(&mut table, 10, "c.example", 5 * S);
    assert_eq!(connect(&mut table, 12, &[10], 6 * S), None);
    assert_eq!(connect(&mut table, 10, &[], 7 * S), None, "it or its child may have meant c");
}

#[test]
fn private_addresses_have_names_in_their_own_namespace_only() {
    let mut table = NameTable::default();
    let of = |netns, container| Asker { netns, container, ..asker(10) };
    table.learn(of(1, 7), "db.internal", &[(ip("10.0.0.5"), 30), (ip("203.0.113.5"), 30)], S);
    let mut name = |address, netns, container| {
        let asker = Asker { netns, container, ..asker(20) };
        let connection = Connection { asker, ancestors: &[], address: ip(address), opened_ns: 2 * S };
        table.name_of(&connection).map(|name| name.source.name())
    };
    assert_eq!(name("10.0.0.5", 1, 0), Some("network namespace"));
    assert_eq!((name("10.0.0.5", 2, 7), name("10.0.0.5", 2, 0)), (Some("container"), None));
    assert_eq!((name("203.0.113.5", 2, 0), name("203.0.113.6", 1, 7)), (Some("host"), None));
}

#[test]
fn loopback_has_a_name_for_who_has_asked_only() {
    let mut table = NameTable::default();
    let of = |pid| Asker { container: 7, ..asker(pid) };
    table.learn(of(10), "ads.example", &[(ip("127.0.0.1"), 30), (ip("0.0.0.0"), 30), (ip("::1"), 30)], S);
    for address in ["127.0.0.1", "0.0.0.0", "::1"] {
        let mut name = |pid, ancestors| {
            let connection = Connection { asker: of(pid), ancestors, address: ip(address), opened_ns: 2 * S };
            table.name_of(&connection).map(|name| name.source.name())
        };
        assert_eq!(
            [name(10, &[]), name(11, &[10]), name(12, &[])],
            [Some("process"), Some("parent"), None],
            "{address}"
        );
    }
}

proptest! {
    #[test]
    fn it_stays_bounded_and_forgets_all(
        told in prop::collection::vec((1u32..6, 0u32..300, 0u8..5, 0u64..400), 1..600),
    ) {
        let mut table = NameTable::default();
        let mut last_ns = 0;
        for (pid, name, addr, at_s) in told {
            let address = IpAddr::from([198, 51, 100, addr]);
            table.learn(asker(pid), &format!("n{name}.example"), &[(address, 5)], at_s * S);
            let connection = Connection { asker: asker(pid), ancestors: &[], address, opened_ns: at_s * S + 1 };
            prop_assert!(table.name_of(&connection).is_none_or(|name| (1..=2).contains(&name.names.len())));
            last_ns = last_ns.max(at_s * S);
            prop_assert_eq!(table.len(), table.answers.values().map(Vec::len).sum::<usize>());
            prop_assert_eq!(table.len(), table.asked.values().flatten().map(|(_, all)| all.len()).sum::<usize>());
        }
        prop_assert!(table.asked.values().all(|asked| asked.len() <= NAMES_MAX));
        table.expire(last_ns + 200 * S);
        prop_assert!(table.is_empty() && table.answers.is_empty() && table.asked.is_empty() && table.tasks.is_empty());
        prop_assert!(table.connected.is_empty());
    }
}
