//! How much two CPUs do together of what one does alone. Virtual CPUs may be two threads of one core, and have neighbours.

use std::hint;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::pin;

const MEASURE: Duration = Duration::from_millis(100);
/// Steps between two looks at the clock.
const STEPS: u64 = 10_000;
/// Memory of each loop: more than a first-level cache, as a shard has.
const WORDS: usize = 1 << 20;

/// Rate of two loops that share nothing, on a CPU each, over that of one alone: 2 at best.
pub(crate) fn of_two_cpus() -> f64 {
    let alone = together(&[0]);
    together(&[0, 1]) / alone
}

/// Steps a second of a loop on each of these CPUs, all at once.
fn together(cpus: &[usize]) -> f64 {
    thread::scope(|scope| {
        let loops: Vec<_> = cpus
            .iter()
            .map(|&cpu| {
                scope.spawn(move || {
                    pin(cpu);
                    steps_per_s()
                })
            })
            .collect();
        loops.into_iter().map(|each| each.join().unwrap_or(f64::NAN)).sum()
    })
}

/// Random places of memory, read and written (Marsaglia's xorshift).
fn steps_per_s() -> f64 {
    let mut memory = vec![1u64; WORDS];
    let (mut x, mut steps, began) = (88_172_645_463_325_252u64, 0, Instant::now());
    while began.elapsed() < MEASURE {
        for _ in 0..STEPS {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            memory[x as usize % WORDS] ^= x;
        }
        steps += STEPS;
    }
    hint::black_box(&memory);
    steps as f64 / began.elapsed().as_secs_f64()
}
