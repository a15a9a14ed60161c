//! What /proc and the user database add to a process. Runs on a thread of its own: both may be slow, and a name service
//! may block for seconds.
//!
//! /proc is asked about a pid and a start time: an answer for another start time is another process, and is not used.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::model::clock::boot_ns;
use crate::model::flow::ProcKey;
use crate::model::text::clean;
use crate::owners::cgroup::path_in_proc;
use crate::owners::cmdline::CommandLines;
use crate::owners::desk::{Desk, DeskOptions, Question};
use crate::owners::files::identity;
use crate::owners::packages::PackageRequest;
use crate::owners::process::{Ancestors, CMDLINE_MAX, LookupReply, LookupRequest, Memory, Process};
use crate::owners::users::Users;
use crate::threads::Threads;

/// Most ancestors that are told.
const ANCESTORS_MAX: usize = 16;
/// How long the ancestors of a process are believed: pids are not reused within it.
const ANCESTORS_TTL: Duration = Duration::from_secs(1);
/// Most parents that are remembered.
const PARENTS_MAX: usize = 1 << 12;

/// The desk of these questions, with room for as many new processes as may come at once. An answer takes 30 us.
pub const DESK: DeskOptions = DeskOptions {
    thread: "sockeye-enrich",
    about: "processes",
    waiting_max: 1 << 14,
    deadline: Duration::from_secs(2),
};

impl Question for LookupRequest {
    type Answer = Option<(LookupReply, Option<PackageRequest>)>;

    /// /proc does not answer about a process whose memory is locked, as when it waits for a file system. It has one thread
    /// at most, and so have all of a container, who may have made many such processes.
    fn group(&self) -> u64 {
        match self {
            Self::Completion { process, in_container: Some(true) } => process.cgroup_id,
            Self::Completion { process, .. } | Self::Check(process) => u64::from(process.key.pid),
            Self::Lookup(key) => u64::from(key.pid),
        }
    }

    fn unknown(&self) -> Self::Answer {
        let (key, process) = match self {
            Self::Completion { process, .. } => (process.key, Some((**process).clone())),
            Self::Lookup(key) => (*key, None),
            Self::Check(_) => return None,
        };
        Some((LookupReply { key, process, complete: true, cgroup: None }, None))
    }
}

/// Starts the threads, which read as much of command lines as is wanted. They end when the desk is dropped.
///
/// # Errors
/// If one cannot be started.
pub fn start(
    threads: &Threads,
    desk: &Desk<LookupRequest>,
    found: SyncSender<Box<LookupReply>>,
    packages: Arc<Desk<PackageRequest>>,
    (cgroup_mount, command_lines): (Option<PathBuf>, CommandLines),
) -> io::Result<()> {
    let worker = move || {
        let (mut enricher, cgroup_mount) = (None, cgroup_mount.clone());
        move |question: &LookupRequest| {
            // With the first question, whose deadline holds for this as well.
            let enricher = enricher.get_or_insert_with(|| Enricher::new(cgroup_mount.clone(), command_lines));
            let (mut answer, in_container) = enricher.answer(question)?;
            let package = answer.process.as_ref().filter(|process| process.exe.is_some()).zip(in_container);
            // The package may take long to find, the rest should not wait for it.
            let package = package.map(|(process, in_container)| {
                let parent = enricher.parent_executable(process);
                PackageRequest { process: process.clone(), in_container, parent }
            });
            answer.complete = package.is_none();
            Some((answer, package))
        }
    };
    let tell = move || {
        let (found, packages) = (found.clone(), Arc::clone(&packages));
        move |answer: <LookupRequest as Question>::Answer| {
            let Some((answer, package)) = answer else { return };
            let key = answer.key;
            let _ = found.send(Box::new(answer));
            if package.is_some_and(|package| packages.ask(package).is_err()) {
                let _ = found.send(Box::new(LookupReply::asked_later(key)));
            }
        }
    };
    desk.serve(threads, worker, tell)
}

struct Enricher {
    users: Users,
    /// By pid.
    parents: HashMap<u32, (Parent, Instant), ahash::RandomState>,
    /// Where cgroup v2 is.
    cgroup_mount: Option<PathBuf>,
    /// Hierarchies of cgroup v1 may tell more than the kernel's record.
    has_v1: bool,
    command_lines: CommandLines,
}

/// What is asked about the parent of many processes.
#[derive(Clone, Default)]
struct Parent {
    name: String,
    ancestors: Ancestors,
    /// Its executable, and whether it lives in a container.
    executable: Option<(String, bool)>,
}

impl Enricher {
    fn new(cgroup_mount: Option<PathBuf>, command_lines: CommandLines) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let has_v1 = own.lines().any(|line| !line.starts_with("0::"));
        Self { users: Users::default(), parents: HashMap::default(), cgroup_mount, has_v1, command_lines }
    }

    /// What /proc says, and whether the process lives in a container, if that is known. `None`: nothing has changed.
    fn answer(&mut self, question: &LookupRequest) -> Option<(LookupReply, Option<bool>)> {
        let (key, process, hint) = match question {
            LookupRequest::Completion { process, in_container } => {
                let mut complete = (**process).clone();
                if complete.exe.is_none() || complete.cmdline_partial {
                    complete_from_proc(&mut complete, self.command_lines);
                }
                (process.key, Some(complete), *in_container)
            }
            LookupRequest::Lookup(key) => (*key, read_proc(*key, self.command_lines, 0), None),
            LookupRequest::Check(known) => (known.key, Some(changed(known, self.command_lines)?), None),
        };
        let Some(mut process) = process else {
            return Some((LookupReply { key, process: None, complete: true, cgroup: None }, None));
        };
        process.user = self.users.user(process.uid);
        process.group = self.users.group(process.gid);
        process.parent_user = self.users.user(process.parent_uid);
        process.ancestors = Arc::clone(&self.parent(process.ppid).ancestors);
        let cgroup = self.cgroup(&process);
        if let Some((id, _)) = cgroup {
            process.cgroup_id = id;
        }
        let in_container = has_another_root(key.pid).or(hint);
        Some((LookupReply { key, process: Some(process), complete: true, cgroup }, in_container))
    }

    /// The cgroup by /proc: of a process that the kernel did not tell of, and on hosts where cgroup v1 knows more.
    /// An id of our own, with the highest bit set, stands for a path that only v1 has.
    fn cgroup(&self, process: &Process) -> Option<(u64, String)> {
        if process.cgroup_id != 0 && !self.has_v1 {
            return None; // the kernel told
        }
        let text = fs::read_to_string(format!("/proc/{}/cgroup", process.key.pid)).ok()?;
        let path = path_in_proc(&text)?;
        // Of another cgroup namespace than ours /proc shows a part of the path only, and the kernel told all of it.
        if path.starts_with("/..") {
            return None;
        }
        let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
        if read_stat(process.key.pid)?.start_ticks != process.key.start_ticks {
            return None;
        }
        if unified == Some(path) {
            let dir = self.cgroup_mount.as_ref()?.join(path.trim_start_matches('/'));
            let id = if process.cgroup_id != 0 { process.cgroup_id } else { fs::metadata(dir).ok()?.ino() };
            return Some((id, path.to_owned()));
        }
        let hash = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(path);
        Some((hash | 1 << 63, path.to_owned()))
    }

    /// The executable of a process's parent. That one may be gone, and its pid another's: who is called otherwise is not
    /// believed.
    fn parent_executable(&mut self, process: &Process) -> Option<(String, bool)> {
        let parent = self.parent(process.ppid);
        (parent.name == process.parent_name).then(|| parent.executable.clone()).flatten()
    }

    /// A process, and its own parents without itself.
    fn parent(&mut self, pid: u32) -> &Parent {
        self.parents.retain(|_, (_, read)| read.elapsed() < ANCESTORS_TTL);
        if self.parents.len() >= PARENTS_MAX {
            self.parents.clear();
        }
        &self.parents.entry(pid).or_insert_with(|| (read_parent(pid), Instant::now())).0
    }
}

fn read_parent(pid: u32) -> Parent {
    let executable = read_exe(pid).zip(has_another_root(pid));
    let Some(stat) = read_stat(pid) else { return Parent::default() };
    let mut ancestors = Vec::new();
    let name = clean(stat.name.as_bytes());
    let mut child = Some(stat);
    while let Some(stat) = child.filter(|stat| stat.ppid > 0 && ancestors.len() < ANCESTORS_MAX) {
        let pid = stat.ppid;
        child = read_stat(pid);
        ancestors.extend(child.as_ref().map(|stat| (clean(stat.name.as_bytes()), pid)));
    }
    Parent { name, ancestors: ancestors.into(), executable }
}

/// Whether the process sees another root directory than we do. `None` if it is gone.
fn has_another_root(pid: u32) -> Option<bool> {
    Some(identity(&format!("/proc/{pid}/root/")).ok()? != identity("/").ok()?)
}

/// Fills what the kernel's record had no room for, if the process still is the same, and still runs the same program.
fn complete_from_proc(process: &mut Process, command_lines: CommandLines) {
    let pid = process.key.pid;
    let (exe, args) = (read_exe(pid), read_cmdline(pid, command_lines));
    // Checked after reading: had the pid been reused before, the start time would differ now.
    if read_stat(pid).map(|stat| stat.start_ticks) != Some(process.key.start_ticks) {
        return;
    }
    let Some((text, partial)) = args.filter(|(text, _)| command_lines.is_beginning(&process.cmdline, text)) else {
        return;
    };
    process.exe = process.exe.take().or(exe);
    process.memory = read_status(pid).and_then(|status| memory(&status));
    if process.cmdline_partial {
        process.cmdline = text;
        process.cmdline_partial = partial;
    }
}

/// The process as it is now, if its name or user are others than were known. `None` also if it is gone: what was known stays.
fn changed(known: &Process, command_lines: CommandLines) -> Option<Process> {
    let at_ns = boot_ns();
    let status = read_status(known.key.pid)?;
    let same = clean(status.name.as_bytes()) == known.name && (status.ruid, status.rgid) == (known.uid, known.gid);
    if same { None } else { Some(read_proc(known.key, command_lines, at_ns)?.with_image_of(known)) }
}

/// A process by /proc alone.
fn read_proc(key: ProcKey, command_lines: CommandLines, at_ns: u64) -> Option<Process> {
    let status = read_status(key.pid)?;
    let ppid = u32::try_from(status.ppid).unwrap_or(0);
    let (cmdline, cmdline_partial) = read_cmdline(key.pid, command_lines).unwrap_or_default();
    let stat = read_stat(key.pid)?;
    let process = Process {
        key,
        at_ns,
        name: clean(stat.name.as_bytes()),
        exe: read_exe(key.pid),
        cmdline,
        uid: status.ruid,
        user: None,
        gid: status.rgid,
        group: None,
        ppid,
        parent_name: read_stat(ppid).map(|stat| clean(stat.name.as_bytes())).unwrap_or_default(),
        parent_uid: read_status(ppid).map_or(0, |status| status.ruid),
        parent_user: None,
        ancestors: Arc::default(),
        package: None,
        parent_package: None,
        memory: memory(&status),
        cgroup_id: 0,
        cmdline_partial,
    };
    (stat.start_ticks == key.start_ticks).then_some(process)
}

/// A kernel thread has none. The kernel's kB are KiB.
fn memory(status: &procfs::process::Status) -> Option<Memory> {
    status.vmrss.zip(status.vmhwm).map(|(resident_kib, peak_kib)| Memory { resident_kib, peak_kib })
}

fn read_status(pid: u32) -> Option<procfs::process::Status> {
    procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()
}

struct Stat {
    name: String,
    ppid: u32,
    start_ticks: u32,
}

/// Name and start time. procfs parses proc(5)'s line, whose second field may hold blanks and parentheses.
fn read_stat(pid: u32) -> Option<Stat> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(Stat { name: stat.comm, ppid: stat.ppid.try_into().unwrap_or(0), start_ticks: stat.starttime as u32 })
}

fn read_exe(pid: u32) -> Option<String> {
    use std::os::unix::ffi::OsStrExt;
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let bytes = path.as_os_str().as_bytes();
    Some(clean(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)))
}

/// As much of the command line as is wanted, and whether there is more of that.
fn read_cmdline(pid: u32, command_lines: CommandLines) -> Option<(String, bool)> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(CMDLINE_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    let cut = bytes.len() > CMDLINE_MAX;
    (!bytes.is_empty()).then(|| (command_lines.read(&bytes, cut), command_lines.lacks(cut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOW: CommandLines = CommandLines::Masked;

    fn own_key() -> ProcKey {
        let pid = std::process::id();
        ProcKey { pid, start_ticks: read_stat(pid).unwrap().start_ticks, exec: 0 }
    }

    #[test]
    fn reads_a_living_process() {
        let process = read_proc(own_key(), HOW, 0).unwrap();
        assert_eq!(process.exe.as_deref().map(std::path::Path::new), std::env::current_exe().ok().as_deref());
        assert!(process.cmdline.contains("sockeye") && process.ppid > 0 && !process.parent_name.is_empty());
        let memory = process.memory.unwrap();
        assert!(memory.resident_kib > 100 && memory.peak_kib >= memory.resident_kib, "{memory:?}");
    }

    #[test]
    fn only_a_process_that_has_changed_is_told_of_again() {
        let known = read_proc(own_key(), HOW, 0).unwrap();
        assert_eq!(changed(&known, HOW), None);
        let as_root = Process { uid: known.uid + 1, ..known.clone() };
        assert_eq!(changed(&as_root, HOW).unwrap().uid, known.uid);
        let before_its_name = Process { name: "before".into(), ..known.clone() };
        assert_eq!(changed(&before_its_name, HOW).unwrap().name, known.name);
        let gone = Process { key: ProcKey { start_ticks: 1, ..known.key }, name: "gone".into(), ..known };
        assert_eq!(changed(&gone, HOW), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let key = ProcKey { start_ticks: own_key().start_ticks.wrapping_add(1), ..own_key() };
        assert_eq!(read_proc(key, HOW, 0), None);
        let mut reused = Process { key, cmdline_partial: true, ..Process::default() };
        complete_from_proc(&mut reused, HOW);
        assert_eq!((reused.exe, reused.cmdline.as_str()), (None, ""));
    }

    #[test]
    fn tells_where_a_process_comes_from_and_lives() {
        let mut enricher = Enricher::new(sockeye_bpf::preflight::find_cgroup2(), HOW);
        let (found, in_container) = enricher.answer(&LookupRequest::Lookup(own_key())).unwrap();
        let process = found.process.unwrap();
        assert_eq!(in_container, Some(false));
        let own: u32 = process.ancestors.first().map_or(0, |(_, pid)| *pid);
        assert_eq!(own, read_stat(process.ppid).unwrap().ppid);
        if enricher.cgroup_mount.is_some() {
            assert!(found.cgroup.is_some_and(|(id, path)| id != 0 && path.starts_with('/')));
        }
    }
}
