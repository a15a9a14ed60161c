//! What the agent may do, thread by thread: capabilities belong to threads. Those that load the kernel programs are given up when
//! they are loaded, and no thread but the one that loads them ever has them.

use caps::{CapSet, Capability, CapsHashSet};

/// What a thread may need as long as the agent runs; each has it if the agent was given it.
const KEPT: [Capability; 5] = [
    // /proc of other users' processes.
    Capability::CAP_SYS_PTRACE,
    // Package databases in containers.
    Capability::CAP_DAC_READ_SEARCH,
    // Sockets of users' container engines, files of --json.
    Capability::CAP_DAC_OVERRIDE,
    // Before other programs where there are not enough CPUs.
    Capability::CAP_SYS_NICE,
    // Endpoints of --zmq at ports below 1024.
    Capability::CAP_NET_BIND_SERVICE,
];
/// The same of control: run times of the kernel programs, while somebody asks.
const KEPT_BY_CONTROL: [Capability; 1] = [Capability::CAP_SYS_ADMIN];

/// Name of the thread that may do a little more than others.
pub const CONTROL: &str = "sockeye-control";

/// The calling thread, and those that it starts, give up what they do not need. What was not there stays away.
pub fn confine(thread: &str) {
    let of_control: &[Capability] = if thread == CONTROL { &KEPT_BY_CONTROL } else { &[] };
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let kept: CapsHashSet = KEPT.iter().chain(of_control).copied().filter(|cap| held.contains(cap)).collect();
    if kept == held {
        return;
    }
    // An ambient capability must be permitted, and an effective one, too: in this order nothing is refused. Who cannot give
    // something up never had it.
    let _ = caps::clear(None, CapSet::Ambient);
    let _ = caps::clear(None, CapSet::Inheritable);
    let _ = caps::set(None, CapSet::Effective, &kept);
    let _ = caps::set(None, CapSet::Permitted, &kept);
}

/// No program that is started from here gains anything: not by its mode, and not by its file's capabilities.
pub fn gain_nothing() {
    // It fails on kernels before 3.5 only.
    let _ = rustix::thread::set_no_new_privs(true);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held() -> CapsHashSet {
        caps::read(None, CapSet::Permitted).unwrap()
    }

    #[test]
    fn a_thread_keeps_what_it_needs_and_only_if_it_had_it() {
        std::thread::spawn(|| {
            let before = held();
            confine("sockeye-w0");
            let allowed: CapsHashSet = KEPT.into_iter().collect();
            let expected: CapsHashSet = before.intersection(&allowed).copied().collect();
            assert_eq!(held(), expected);
            assert_eq!(caps::read(None, CapSet::Effective).unwrap(), expected);
            assert!(caps::read(None, CapSet::Inheritable).unwrap().is_empty());
        })
        .join()
        .unwrap();
    }
}
