//! Whether the data path makes progress.

use crate::model::clock::boot_ns;
use crate::threads::{Role, ThreadState, Threads};

/// A thread of the data path does something several times a second. One that says nothing for so long is stuck.
const STUCK_NS: u64 = 10_000_000_000;

/// The first thread of the data path that makes no progress, and what is wrong with it.
pub(super) fn fault(threads: &Threads) -> Option<String> {
    let now_ns = boot_ns();
    let essential = threads.stats().into_iter().filter(|stats| stats.role == Role::Essential);
    essential.into_iter().find_map(|stats| {
        let quiet_ns = now_ns.saturating_sub(stats.progress_ns());
        if stats.state() == ThreadState::Ended {
            return Some(format!("the thread {} has ended", stats.name));
        }
        let seconds = quiet_ns / 1_000_000_000;
        (quiet_ns >= STUCK_NS).then(|| format!("the thread {} has made no progress for {seconds} s", stats.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_thread_of_the_data_path_that_has_ended_is_a_fault() {
        let threads = Threads::new(|| {});
        let (end, wait) = mpsc::channel::<()>();
        let thread = threads.essential("sockeye-w0", move |pulse| {
            pulse.working();
            let _ = wait.recv();
        });
        assert_eq!(fault(&threads), None);
        drop(end);
        thread.unwrap().join().unwrap();
        assert_eq!(fault(&threads).unwrap(), "the thread sockeye-w0 has ended");
    }
}
