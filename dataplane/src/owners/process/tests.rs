use super::*;
use proptest::prelude::*;
use sockeye_ctl::human::is_unsafe;
use zerocopy::FromZeros;

fn record() -> IdentityRecord {
    let mut r = IdentityRecord::new_zeroed();
    r.pid = 7;
    r.comm[..4].copy_from_slice(b"curl");
    r.exe[..13].copy_from_slice(b"curl\0bin\0usr\0");
    r.exe_len = 13;
    r.exe_complete = 1;
    r.args[..16].copy_from_slice(b"curl\0-s\0http://x");
    r.args_len = 17;
    r.args_total = 17;
    r
}

#[test]
fn reads_a_record() {
    let p = Process::from_record(&record(), CommandLines::Full);
    assert_eq!((p.name.as_str(), p.exe.as_deref()), ("curl", Some("/usr/bin/curl")));
    assert_eq!(p.cmdline, "curl -s http://x");
    assert!(!p.cmdline_partial);
}

#[test]
fn incomplete_path_is_unknown() {
    let mut r = record();
    r.exe_complete = 0;
    let p = Process::from_record(&r, CommandLines::Masked);
    assert_eq!((p.exe.as_deref(), p.path_or_name()), (None, "curl"));
}

#[test]
fn unknown_process_is_asked_for_once() {
    let mut table = ProcessTable::default();
    let key = ProcKey { pid: 9, start_ticks: 1, exec: 0 };
    assert_eq!(table.get(key, 0), (None, false));
    assert_eq!(table.get(key, 0), (None, false));
    assert_eq!(table.take_requests(), vec![LookupRequest::Lookup(key)]);
    table.found(LookupReply { key, process: None, complete: true, cgroup: None }, 0);
    assert_eq!(table.get(key, 0), (None, true));
}

#[test]
fn the_newest_state_holds_in_whatever_order_news_come() {
    let key = ProcKey { pid: 9, start_ticks: 1, exec: 0 };
    let state = |at_ns, uid| Process { key, at_ns, name: "daemon".into(), uid, ..Process::default() };
    let uid = |table: &mut ProcessTable| table.get(key, 0).0.map(|process| process.uid);
    let reply = |process, complete| LookupReply { key, process: Some(process), complete, cgroup: None };
    let mut table = ProcessTable::default();
    table.learn(state(20, 33), 0);
    table.learn(state(10, 0), 0);
    assert_eq!(uid(&mut table), Some(33), "two CPUs");
    // What /proc adds to the older state, and then its package.
    table.found(reply(state(10, 0), true), 0);
    assert_eq!((uid(&mut table), table.get(key, 0).1), (Some(33), false));
    table.found(LookupReply { key, process: None, complete: true, cgroup: None }, 0);
    assert!(!table.get(key, 0).1, "not the answer to the question about what it is now");
    table.found(reply(state(20, 33), true), 0);
    assert_eq!((uid(&mut table), table.get(key, 0).1), (Some(33), true));
    table.found(reply(state(30, 34), true), 0);
    assert_eq!(uid(&mut table), Some(34), "/proc later");
}

#[test]
fn what_it_runs_stays_known_of_a_process_that_ends() {
    let key = ProcKey { pid: 9, start_ticks: 1, exec: 0 };
    let ending = Process { key, name: "brief".into(), ..Process::default() };
    let whole = Process { at_ns: 10, exe: Some("/brief".into()), cmdline: "brief 5".into(), ..ending.clone() };
    let reply = |process| LookupReply { key, process: Some(process), complete: true, cgroup: None };
    let mut table = ProcessTable::default();
    // Its flow comes by another CPU, and before what is told of it; /proc is asked, and answers when its memory is gone.
    table.get(key, 0);
    table.learn(whole.clone(), 0);
    table.found(reply(ending.clone()), 0);
    table.found(reply(whole.clone()), 0);
    assert_eq!(table.get(key, 0), (Some(Arc::new(whole.clone())), true));
    // The kernel tells of it again, when it closes its sockets.
    table.learn(Process { at_ns: 20, ..ending }, 0);
    assert_eq!(table.get(key, 0).0, Some(Arc::new(Process { at_ns: 20, ..whole })));
}

#[test]
fn what_had_no_room_is_asked_again() {
    let mut table = ProcessTable::default();
    let key = ProcKey { pid: 9, start_ticks: 1, exec: 0 };
    table.get(key, 0);
    let questions = table.take_requests();
    table.not_asked(&questions[0]);
    assert_eq!((table.len(), table.unanswered()), (0, 0));
    table.get(key, 0);
    assert_eq!((table.take_requests(), table.unanswered()), (questions, 1));

    let process = Process { key, name: "p".into(), exe: Some("/p".into()), ..Process::default() };
    table.learn(process, 0);
    let questions = table.take_requests();
    assert!(!table.get(key, 0).1);
    table.not_asked(&questions[0]);
    assert!(table.get(key, 0).1, "flows do not wait for it");
    table.check(0);
    assert_eq!(table.take_requests(), questions);
    table.check(0);
    assert_eq!(table.take_requests(), [], "once");
    // The same for a package.
    table.found(LookupReply::asked_later(key), 0);
    table.check(0);
    assert_eq!((table.take_requests(), table.unanswered()), (questions, 0));
}

#[test]
fn a_full_table_counts_what_it_refuses_and_recovers() {
    let mut table = ProcessTable::default();
    let process =
        |pid| Process { key: ProcKey { pid, start_ticks: 1, exec: 0 }, name: "p".into(), ..Process::default() };
    for pid in 1..=PROCESSES_MAX as u32 + 3 {
        table.learn(process(pid), 0);
    }
    assert_eq!((table.len(), table.refused()), (PROCESSES_MAX, 3));
    table.expire(KEEP_CROWDED_NS);
    assert!(table.is_empty());
}

proptest! {
    #[test]
    fn any_record_is_readable(bytes in proptest::collection::vec(any::<u8>(), size_of::<IdentityRecord>())) {
        use zerocopy::FromBytes;
        let r = IdentityRecord::read_from_bytes(&bytes).unwrap();
        let p = Process::from_record(&r, CommandLines::Masked);
        prop_assert!(p.cmdline.len() <= CMDLINE_MAX);
        for text in [&p.name, &p.cmdline, &p.parent_name] {
            prop_assert!(!text.chars().any(is_unsafe));
        }
    }
}
