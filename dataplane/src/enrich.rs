//! What /proc and the user database add to a process. Runs on a thread of its own: both may be slow, and a name service
//! may block for seconds.
//!
//! /proc is asked about a pid and a start time: an answer for another start time is another process, and is not used.

use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::flow::ProcKey;
use crate::process::{CMDLINE_MAX, Found, Process, Wanted, clean, cmdline};

/// How long a user's name is believed.
const USER_TTL: Duration = Duration::from_secs(60);

/// Starts the thread. It ends when `wanted` is closed.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(wanted: Receiver<Wanted>, found: Sender<Found>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("sockeye-enrich".into()).spawn(move || {
        let mut users = Users::default();
        for question in wanted {
            if found.send(answer(&question, &mut users)).is_err() {
                return;
            }
        }
    })
}

fn answer(question: &Wanted, users: &mut Users) -> Found {
    match question {
        Wanted::Completion(process) => {
            let mut complete = (**process).clone();
            if complete.exe.is_none() || complete.cmdline_partial {
                complete_from_proc(&mut complete);
            }
            name_users(&mut complete, users);
            Found { key: process.key, process: Some(complete) }
        }
        Wanted::Lookup(key) => {
            let process = read_proc(*key).map(|mut process| {
                name_users(&mut process, users);
                process
            });
            Found { key: *key, process }
        }
    }
}

fn name_users(process: &mut Process, users: &mut Users) {
    process.user = users.name(process.uid);
    process.parent_user = users.name(process.parent_uid);
}

/// Fills what the kernel's record had no room for, if the process still is the same.
fn complete_from_proc(process: &mut Process) {
    let pid = process.key.pid;
    let (exe, args) = (read_exe(pid), read_cmdline(pid));
    // Checked after reading: had the pid been reused before, the start time would differ now.
    if read_stat(pid).map(|stat| stat.start_ticks) != Some(process.key.start_ticks) {
        return;
    }
    process.exe = process.exe.take().or(exe);
    // The process may have become another program since: only what continues the known beginning is its command line.
    if let Some((text, partial)) = args
        && process.cmdline_partial
        && text.starts_with(&process.cmdline)
    {
        process.cmdline = text;
        process.cmdline_partial = partial;
    }
}

/// A process of which the kernel's record is missing.
fn read_proc(key: ProcKey) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{}/status", key.pid)).ok()?;
    let ids = |name: &str| status_field(&status, name).and_then(|ids| ids.split_whitespace().next()?.parse().ok());
    let ppid: u32 = status_field(&status, "PPid:").and_then(|p| p.trim().parse().ok()).unwrap_or(0);
    let parent = fs::read_to_string(format!("/proc/{ppid}/status")).unwrap_or_default();
    let (cmdline, cmdline_partial) = read_cmdline(key.pid).unwrap_or_default();
    let stat = read_stat(key.pid)?;
    let process = Process {
        key,
        name: clean(stat.name.as_bytes()),
        exe: read_exe(key.pid),
        cmdline,
        uid: ids("Uid:")?,
        user: None,
        gid: ids("Gid:")?,
        ppid,
        parent_name: read_stat(ppid).map(|stat| clean(stat.name.as_bytes())).unwrap_or_default(),
        parent_uid: status_field(&parent, "Uid:")
            .and_then(|ids| ids.split_whitespace().next()?.parse().ok())
            .unwrap_or(0),
        parent_user: None,
        cgroup_id: 0,
        cmdline_partial,
    };
    (stat.start_ticks == key.start_ticks).then_some(process)
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

struct Stat {
    name: String,
    start_ticks: u32,
}

/// Name and start time. procfs parses proc(5)'s line, whose second field may hold blanks and parentheses.
fn read_stat(pid: u32) -> Option<Stat> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(Stat { name: stat.comm, start_ticks: stat.starttime as u32 })
}

fn read_exe(pid: u32) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let bytes = path.as_os_str().as_bytes();
    Some(clean(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)))
}

/// The command line, and whether it is longer.
fn read_cmdline(pid: u32) -> Option<(String, bool)> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(CMDLINE_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| (cmdline(&bytes), bytes.len() > CMDLINE_MAX))
}

/// The host's user database, with a memory.
#[derive(Default)]
struct Users {
    names: HashMap<u32, (Option<String>, Instant), ahash::RandomState>,
}

impl Users {
    fn name(&mut self, uid: u32) -> Option<String> {
        if let Some((name, read)) = self.names.get(&uid)
            && read.elapsed() < USER_TTL
        {
            return name.clone();
        }
        let name = uzers::get_user_by_uid(uid).map(|user| clean(user.name().as_encoded_bytes()));
        self.names.insert(uid, (name.clone(), Instant::now()));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_key() -> ProcKey {
        let pid = std::process::id();
        ProcKey { pid, start_ticks: read_stat(pid).unwrap().start_ticks }
    }

    #[test]
    fn reads_a_living_process() {
        let process = read_proc(own_key()).unwrap();
        assert_eq!(process.exe.as_deref().map(std::path::Path::new), std::env::current_exe().ok().as_deref());
        assert!(process.cmdline.contains("sockeye") && process.ppid > 0 && !process.parent_name.is_empty());
    }

    #[test]
    fn another_start_time_is_another_process() {
        let key = ProcKey { start_ticks: own_key().start_ticks.wrapping_add(1), ..own_key() };
        assert_eq!(read_proc(key), None);
        let mut reused = Process { key, cmdline_partial: true, ..Process::default() };
        complete_from_proc(&mut reused);
        assert_eq!((reused.exe, reused.cmdline.as_str()), (None, ""));
    }

    #[test]
    fn knows_root() {
        assert_eq!(Users::default().name(0).as_deref(), Some("root"));
        assert_eq!(Users::default().name(3_999_999_999), None);
    }
}
