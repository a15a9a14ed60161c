//! What the agent may do, thread by thread: capabilities belong to threads. Those that load the kernel programs are given up when
//! they are loaded, and no thread but the one that loads them ever has them. Threads that read what others send have no business
//! with files either.

use std::cell::Cell;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{ABI, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _, RulesetStatus};

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
/// The same of control: run times of the kernel programs, while somebody asks, and the connection tracking.
const KEPT_BY_CONTROL: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// Name of the thread that may do a little more than others.
pub const CONTROL: &str = "sockeye-control";

/// Threads that answer strangers, read what engines say, or only pass on what the kernel tells, and those that they start. Landlock
/// also hides other processes' files below /proc from whoever it confines: so the threads that look at processes are not here.
const WITHOUT_FILES: [&str; 6] =
    ["sockeye-ctl", "sockeye-http", "sockeye-names", "sockeye-text", "sockeye-udp", "sockeye-zmq"];
/// The newest version of Landlock whose rights are known here; of an older kernel's, those that it has.
const LANDLOCK: ABI = ABI::V5;

/// The calling thread, and those that it starts, give up what they do not need. What was not there stays away. Whether Landlock
/// keeps them from files: a kernel without it does not.
pub fn confine(thread: &str) -> bool {
    thread_local! {
        // A thread that is started again does not need a second layer, of which there are 16 at most.
        static IS_CONFINED: Cell<bool> = const { Cell::new(false) };
    }
    give_up_capabilities(thread);
    let is_worker = thread.strip_prefix("sockeye-w").is_some_and(|number| number.parse::<usize>().is_ok());
    if !IS_CONFINED.get() && (is_worker || WITHOUT_FILES.contains(&thread)) {
        IS_CONFINED.set(give_up_files().unwrap_or(false));
    }
    IS_CONFINED.get()
}

/// From now on no file can be written, made, removed or executed by its name; what is open stays open. Whether that is so.
fn give_up_files() -> Result<bool, landlock::RulesetError> {
    let rights = AccessFs::from_write(LANDLOCK) | AccessFs::Execute;
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(rights)?;
    let status = rules.create()?.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn give_up_capabilities(thread: &str) {
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

    /// What a thread may do with a file of the test, and with another process.
    fn attempts(thread: &'static str) -> [bool; 4] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "before").unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let exe = format!("/proc/{}/exe", other.id());
        gain_nothing();
        let attempt = move || {
            confine(thread);
            // It is started again.
            confine(thread);
            let reads = std::fs::read(&path).is_ok();
            let writes = std::fs::write(&path, "after").is_ok();
            let executes = std::process::Command::new("true").status().is_ok();
            [reads, writes, executes, std::fs::read_link(exe).is_ok()]
        };
        let attempts = std::thread::spawn(attempt).join().unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        attempts
    }

    #[test]
    fn who_answers_strangers_can_only_read() {
        let is_confined = attempts("sockeye-http")[1..] == [false; 3];
        // Who insists is told by a kernel that lacks it.
        let has_landlock = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_write(ABI::V1))
            .is_ok();
        assert_eq!(is_confined, has_landlock);
        assert_eq!(attempts("sockeye-w12")[..3], [true, !has_landlock, !has_landlock]);
        assert_eq!(attempts("sockeye-enrich"), [true; 4], "it looks at processes");
        assert_eq!(attempts("sockeye-watch"), [true; 4], "no worker");
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
