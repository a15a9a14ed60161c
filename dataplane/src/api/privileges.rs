//! The table of what the agent may do: what its threads hold now, by the kernel's own word.

use std::sync::atomic::Ordering;

use procfs::process::Process;
use sockeye_ctl::{Table, rows};

use crate::threads::{ThreadState, Threads};

/// Mode of seccomp(2) in which a filter decides.
const SECCOMP_FILTER: u32 = 2;

rows! {
    /// What the agent's threads may do. Each has given up what it does not need.
    struct Privilege: "privileges" {
        /// user; no_new_privs: nothing can be gained; seccomp: calls are filtered; landlock: no files; a capability that is held
        privilege: Text = String,
        /// threads that this is so of
        threads: Count = usize,
        /// threads of the agent
        of: Count = usize,
        /// their names
        names: Text = Vec<String>,
    }
}

/// What the kernel says of a thread.
#[derive(Default)]
struct Facts {
    name: String,
    uid: u32,
    capabilities: u64,
    no_new_privs: bool,
    has_filter: bool,
    landlock: bool,
}

/// What its threads may do, as this user.
pub(super) fn privileges(threads: &Threads, user: &str) -> Table {
    Table::of(rows(&facts(threads), user))
}

/// Of those that run: the first one, which has started the others, and these.
fn facts(threads: &Threads) -> Vec<Facts> {
    let Ok(process) = Process::myself() else { return Vec::new() };
    let fact = |tid: i32, name: &str, landlock: bool| {
        let status = process.task_from_tid(tid).and_then(|task| task.status()).ok()?;
        Some(Facts {
            name: name.to_owned(),
            uid: status.euid,
            capabilities: status.capprm,
            no_new_privs: status.nonewprivs == Some(1),
            has_filter: status.seccomp == Some(SECCOMP_FILTER),
            landlock,
        })
    };
    let all = threads.stats();
    let running = all.iter().filter(|stats| stats.state() != ThreadState::Ended);
    let others = running.filter_map(|stats| {
        fact(stats.tid.load(Ordering::Relaxed), &stats.name, stats.landlock.load(Ordering::Relaxed))
    });
    fact(process.pid(), "sockeye", false).into_iter().chain(others).collect()
}

fn rows(facts: &[Facts], user: &str) -> Vec<Privilege> {
    let row = |privilege: String, is: &dyn Fn(&Facts) -> bool| {
        let names: Vec<String> = facts.iter().filter(|fact| is(fact)).map(|fact| fact.name.clone()).collect();
        let (threads, of) = (names.len(), facts.len());
        Privilege { privilege, threads, of, names: if threads == of { vec!["all".into()] } else { names } }
    };
    let Some(first) = facts.first() else { return Vec::new() };
    let mut rows = vec![
        row(format!("user {user}"), &|fact| fact.uid == first.uid),
        row("no_new_privs".into(), &|fact| fact.no_new_privs),
        row("seccomp".into(), &|fact| fact.has_filter),
        row("landlock".into(), &|fact| fact.landlock),
    ];
    let mut known: Vec<_> = caps::all().into_iter().collect();
    known.sort_by_key(caps::Capability::index);
    let held = known.into_iter().map(|cap| row(cap.to_string(), &|fact| fact.capabilities & cap.bitmask() != 0));
    rows.extend(held.filter(|row| row.threads > 0));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use caps::Capability;
    use std::sync::mpsc;

    fn text(row: &Privilege) -> String {
        format!("{} {}/{} {}", row.privilege, row.threads, row.of, row.names.join(" "))
    }

    #[test]
    fn what_some_have_names_them_and_what_nobody_holds_is_left_out() {
        let [admin, ptrace] = [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE].map(|cap| cap.bitmask());
        let fact = |name: &str, capabilities, landlock| Facts {
            name: name.into(),
            uid: 998,
            capabilities,
            no_new_privs: true,
            landlock,
            ..Facts::default()
        };
        let facts = [fact("sockeye", ptrace, false), fact("control", admin | ptrace, false), fact("w0", ptrace, true)];
        let rows: Vec<_> = rows(&facts, "agent").iter().map(text).collect();
        let expected = [
            "user agent 3/3 all",
            "no_new_privs 3/3 all",
            "seccomp 0/3 ",
            "landlock 1/3 w0",
            "CAP_SYS_PTRACE 3/3 all",
            "CAP_SYS_ADMIN 1/3 control",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_thread_that_runs_is_told_of_as_the_kernel_knows_it() {
        let threads = Threads::new(|| {});
        let ((begun, began), (end, ended)) = (mpsc::channel(), mpsc::channel::<()>());
        let body = move |_: &crate::threads::Pulse| {
            begun.send(std::fs::write("/dev/null", "").is_ok()).unwrap();
            let _ = ended.recv();
        };
        let joined = threads.watched("sockeye-http", body).unwrap();
        let writes = began.recv().unwrap();
        let facts = facts(&threads);
        let names: Vec<_> = facts.iter().map(|fact| fact.name.as_str()).collect();
        assert_eq!(names, ["sockeye", "sockeye-http"]);
        assert_eq!(facts[1].landlock, !writes, "it says so if it cannot write");
        assert_eq!(facts[1].uid, rustix::process::geteuid().as_raw());
        let held = caps::read(None, caps::CapSet::Permitted).unwrap();
        assert!(held.iter().all(|cap| facts[0].capabilities & cap.bitmask() != 0), "as this process was given it");
        assert_eq!(facts[1].capabilities & Capability::CAP_SYS_ADMIN.bitmask(), 0, "given up");
        drop(end);
        joined.join().unwrap();
        assert_eq!(super::facts(&threads).len(), 1);
    }
}
