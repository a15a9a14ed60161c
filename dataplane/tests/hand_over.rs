//! A model of the hand-over from a worker to control, run through every order of its steps that the memory model allows (loom).
//!
//! It has the steps and the orderings of `ingest/worker.rs` and of `Control::take_shards`, for one ring and shards that are lists of
//! moments: two queues of the kind of rtrb's, and the low watermark beside them. What must hold: each record arrives once, and when
//! control sees a watermark and then takes what is in the queue, no record from before that moment comes later.

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Records that are made.
const RECORDS: usize = 2;
/// Shards in circulation.
const BUFFERS: usize = 2;

/// The kernel's side of a ring: a record has its place before it has its time, so that one that is being written is seen.
#[derive(Default)]
struct Ring {
    reserved: AtomicUsize,
    made: AtomicUsize,
    clock: AtomicUsize,
}

type Shard = Vec<usize>;

/// A queue of one producer and one consumer. Its own memory ordering is rtrb's, which has a model of its own: here a lock.
type Lane = Arc<Mutex<VecDeque<Shard>>>;

struct Worker {
    ring: Arc<Ring>,
    to_control: Lane,
    from_control: Lane,
    watermark: Arc<AtomicUsize>,
    current: Shard,
    spare: Vec<Shard>,
    taken: usize,
    emptied: usize,
}

impl Worker {
    /// `Worker::visit`: the clock is read before the ring is.
    fn visit(&mut self) {
        let began = self.ring.clock.load(Ordering::Acquire);
        let made = self.ring.made.load(Ordering::Acquire);
        let in_flight = self.ring.reserved.load(Ordering::Acquire) > made;
        self.current.extend(self.taken + 1..=made);
        self.taken = made;
        if !in_flight {
            self.emptied = began;
        }
    }

    /// `Worker::hand_over`: the watermark comes after the shard.
    fn hand_over(&mut self) {
        self.spare.extend(self.from_control.lock().expect("nobody has panicked").drain(..));
        if !self.current.is_empty()
            && let Some(empty) = self.spare.pop()
        {
            let full = std::mem::replace(&mut self.current, empty);
            self.to_control.lock().expect("nobody has panicked").push_back(full);
        }
        if self.current.is_empty() {
            self.watermark.store(self.emptied, Ordering::Release);
        }
    }
}

/// `Control::take_shards`: the watermark is read before the queue is emptied.
fn take(seen: &mut Vec<usize>, to_control: &Lane, from_control: &Lane, watermark: &AtomicUsize) {
    let drained = watermark.load(Ordering::Acquire);
    loop {
        let Some(mut shard) = to_control.lock().expect("nobody has panicked").pop_front() else { break };
        seen.append(&mut shard);
        from_control.lock().expect("nobody has panicked").push_back(shard);
    }
    for moment in 1..drained {
        assert!(
            moment > RECORDS || seen.contains(&moment),
            "all before {drained} are told of, and {moment} is not in {seen:?}"
        );
    }
}

#[test]
fn nothing_is_lost_or_seen_twice_and_no_watermark_is_early() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let (ring, watermark) = (Arc::new(Ring::default()), Arc::new(AtomicUsize::new(0)));
        let (to_control, from_control) = (Lane::default(), Lane::default());

        let kernel = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for moment in 1..=RECORDS {
                    ring.reserved.store(moment, Ordering::Release);
                    ring.clock.store(moment, Ordering::Release);
                    ring.made.store(moment, Ordering::Release);
                }
            })
        };
        let worker = {
            let (to_control, from_control) = (Arc::clone(&to_control), Arc::clone(&from_control));
            let (ring, watermark) = (Arc::clone(&ring), Arc::clone(&watermark));
            let spare = (1..BUFFERS).map(|_| Shard::new()).collect();
            let current = Shard::new();
            thread::spawn(move || {
                let mut worker =
                    Worker { ring, to_control, from_control, watermark, current, spare, taken: 0, emptied: 0 };
                for _ in 0..2 {
                    worker.visit();
                    worker.hand_over();
                }
                worker
            })
        };
        let mut seen = Vec::new();
        take(&mut seen, &to_control, &from_control, &watermark);
        kernel.join().unwrap();
        let mut worker = worker.join().unwrap();
        // The agent ends: the worker empties the ring, and then control takes its last look.
        while worker.taken < RECORDS || !worker.current.is_empty() {
            worker.visit();
            worker.hand_over();
            take(&mut seen, &to_control, &from_control, &watermark);
        }
        take(&mut seen, &to_control, &from_control, &watermark);
        assert_eq!(seen, (1..=RECORDS).collect::<Vec<_>>());
    });
}
