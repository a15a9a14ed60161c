use super::*;
use sockeye_bpf::records::{FlowRecord, Kind};
use zerocopy::{FromZeros, IntoBytes};

/// Records in memory, in place of a ring.
struct Script(Vec<FlowRecord>);

/// A ring in which a record is being written.
struct HeldUp(bool);

impl Drain for HeldUp {
    fn drain(&mut self, _limit: usize, _each: impl FnMut(&[u8])) -> usize {
        0
    }

    fn has_record_in_flight(&self) -> bool {
        self.0
    }
}

impl Drain for Script {
    fn drain(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        let n = limit.min(self.0.len());
        self.0.drain(..n).for_each(|r| each(r.as_bytes()));
        n
    }
}

fn record(cookie: u64) -> FlowRecord {
    let mut r = FlowRecord::new_zeroed();
    r.kind = Kind::Scan as u8;
    r.cookie = cookie;
    r
}

#[test]
fn workers_serve_neighbours() {
    // As numbers go on many hosts: first all cores, then their second threads.
    let two_caches: Vec<_> = (0..16).map(|cpu| (cpu, cpu % 8 / 4)).collect();
    assert_eq!(parts(two_caches.clone(), 2), [vec![0, 1, 2, 3, 8, 9, 10, 11], vec![4, 5, 6, 7, 12, 13, 14, 15]]);
    assert_eq!(parts(two_caches, 4)[1], [8, 9, 10, 11]);
    let one_cache: Vec<_> = (0..5).map(|cpu| (cpu, 0)).collect();
    assert_eq!(parts(one_cache.clone(), 2), [vec![0, 1, 2], vec![3, 4]]);
    assert_eq!(parts(one_cache, 99).len(), 5);
    assert_eq!(parts(Vec::new(), 3).len(), 1);
}

#[test]
fn records_arrive_in_a_delta_and_the_box_comes_back() {
    let (mut worker, mut port) = Worker::new(0, vec![(Script((1..=3).map(record).collect()), 0)], Box::new(|| {}));
    assert_eq!(worker.visit().records, 3);
    assert!(worker.hand_over());
    let mut shard = port.shards.pop().unwrap();
    assert_eq!(shard.tcp.records().len(), 3);
    shard.clear();
    port.recycle.push(shard).unwrap();
    assert!(!worker.hand_over(), "an empty delta stays");
}

#[test]
fn boxes_keep_the_memory_of_a_storm_for_a_while() {
    let (mut worker, mut port) = Worker::new(0, vec![(Script((1..=8192).map(record).collect()), 0)], Box::new(|| {}));
    while worker.visit().records > 0 {}
    assert!(worker.hand_over());
    let mut shard = port.shards.pop().unwrap();
    shard.clear();
    port.recycle.push(shard).unwrap();
    let kept = |worker: &Worker<Script>| worker.spare.iter().filter(|shard| shard.held_max() > 0).count();
    worker.shrink();
    assert_eq!(kept(&worker), 1, "there may be more");
    worker.shrink();
    assert_eq!((kept(&worker), worker.spare.len()), (0, BUFFERS - 1), "nothing came since");
}

#[test]
fn a_worker_that_is_stopped_while_control_is_busy_leaves_nothing_behind() {
    let many: Vec<_> = (0..crate::ingest::shard::FLOWS_MAX as u64 * 5).map(record).collect();
    let offered = many.len();
    let (worker, mut port) = Worker::new(0, vec![(Script(many), 0)], Box::new(|| {}));
    let ended = thread::spawn(move || worker.run(&AtomicBool::new(true), || {}));
    let mut taken = 0;
    while taken < offered {
        thread::sleep(Duration::from_millis(5));
        while let Ok(mut shard) = port.shards.pop() {
            taken += shard.tcp.records().len();
            shard.clear();
            port.recycle.push(shard).unwrap();
        }
        assert!(taken == offered || !ended.is_finished(), "{taken} of {offered}");
    }
    ended.join().unwrap();
}

#[test]
fn poll_intervals_follow_the_fill_of_the_ring() {
    let poll_interval = |fill, us| {
        Visit { records: 10, fill, ..Visit::default() }
            .next_poll_interval(Duration::from_micros(us), POLL_INTERVAL_MAX)
            .as_micros()
    };
    assert_eq!(
        (poll_interval(0.0, 1_000), poll_interval(0.0, 80_000), poll_interval(0.01, 60_000)),
        (2_000, 100_000, 100_000)
    );
    assert_eq!(
        (poll_interval(0.125, 400), poll_interval(0.2, 400)),
        (400, 250),
        "as full as aimed at, and a bit too full"
    );
    assert_eq!(poll_interval(0.9, 8_000), 0);
    let poll_interval_max = |kib: usize| Pace::new(kib << 10).poll_interval_max.as_micros();
    assert_eq!((poll_interval_max(4), poll_interval_max(1024), poll_interval_max(16384)), (1_000, 62_500, 100_000));
    assert_eq!(
        Visit { stalled: true, ..Visit::default() }.next_poll_interval(POLL_INTERVAL_MAX, POLL_INTERVAL_MAX),
        POLL_INTERVAL_STALLED
    );
}

#[test]
fn when_control_holds_all_boxes_records_stay_in_the_ring() {
    let many: Vec<_> = (0..crate::ingest::shard::FLOWS_MAX as u64 * 5).map(record).collect();
    let offered = many.len();
    let (mut worker, mut port) = Worker::new(0, vec![(Script(many), 0)], Box::new(|| {}));
    while worker.visit().records > 0 {}
    assert!(port.stats.stalls.load(Ordering::Relaxed) > 0);
    let mut taken = 0;
    while taken < offered {
        while let Ok(mut shard) = port.shards.pop() {
            taken += shard.tcp.records().len();
            shard.clear();
            port.recycle.push(shard).unwrap();
        }
        while worker.visit().records > 0 {}
        worker.hand_over();
    }
    assert_eq!(taken, offered);
}

#[test]
fn what_a_ring_held_is_told_of_when_it_was_emptied_and_handed_over() {
    let many: Vec<_> = (0..VISIT_RECORDS_MAX as u64 + 1).map(record).collect();
    let began_ns = boot_ns();
    let (mut worker, port) = Worker::new(0, vec![(Script(many), 0)], Box::new(|| {}));
    let drained_ns = || port.stats.drained_through_ns.load(Ordering::Acquire);
    worker.visit();
    assert!(worker.hand_over());
    assert_eq!(drained_ns(), 0, "one record is in the ring");
    worker.visit();
    assert_eq!(drained_ns(), 0, "and now in the shard");
    worker.hand_over();
    let first_ns = drained_ns();
    assert!(first_ns + CLOCK_SKEW_NS > began_ns && first_ns + CLOCK_SKEW_NS < boot_ns());
    worker.visit();
    assert!(!worker.hand_over(), "nothing came");
    assert!(drained_ns() > first_ns);
}

#[test]
fn what_is_being_written_is_not_told_of() {
    let (mut worker, port) = Worker::new(0, vec![(HeldUp(true), 0), (HeldUp(false), 1)], Box::new(|| {}));
    for (in_flight, reported) in [(true, false), (false, true)] {
        worker.rings[0].0.0 = in_flight;
        worker.visit();
        worker.hand_over();
        assert_eq!(port.stats.drained_through_ns.load(Ordering::Acquire) > 0, reported);
    }
}
