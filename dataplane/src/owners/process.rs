//! Processes: what the kernel said of them at first sight, completed from /proc while they live.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use hashbrown::HashMap;
use sockeye_bpf::records::IdentityRecord;

use crate::model::flow::ProcKey;
use crate::model::text::{clean, components};
use crate::owners::cmdline::CommandLines;
use crate::owners::workload::{Workload, WorkloadTable};

/// Longest command line that is kept, bytes.
pub const CMDLINE_MAX: usize = 4096;
/// Most processes that are remembered.
pub const PROCESSES_MAX: usize = 1 << 16;
/// How long a process is remembered after its last report, nanoseconds: longer than from one report of a flow to the next.
const KEEP_NS: u64 = 120_000_000_000;
/// The same when there are many: a flow that goes on asks again.
const KEEP_CROWDED_NS: u64 = 10_000_000_000;

/// How often a process that is in use is looked at again.
const CHECK_EVERY_NS: u64 = 10_000_000_000;
/// It is in use if it was asked for so recently: a listener's is at each scan, that of a flow at each report.
const CHECK_USED_NS: u64 = 5_000_000_000;
/// Most that are looked at in a second: each takes 30 us.
const CHECKS_AT_ONCE: usize = 200;

/// Most that are asked again in a second, of those for which there was no room.
const ASKED_AGAIN_AT_ONCE: usize = 1000;

/// Name and pid of a process's parents.
pub type Ancestors = Arc<[(String, u32)]>;

/// Memory of a process when it was first looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident.
    pub resident_kib: u64,
    /// The most that was ever resident.
    pub peak_kib: u64,
}

/// A process as it is shown. Strings are clean: valid UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Process {
    /// Pid and start time.
    pub key: ProcKey,
    /// When it was so, nanoseconds of [`boot_ns`](crate::model::clock::boot_ns). 0 = /proc was asked for want of anything
    /// else, perhaps when it was ending: whatever the kernel tells is better.
    pub at_ns: u64,
    /// Short name (`comm`).
    pub name: String,
    /// Path of the executable.
    pub exe: Option<String>,
    /// Command line, arguments separated by blanks, at most [`CMDLINE_MAX`] bytes: as much of it as [`CommandLines`] says.
    pub cmdline: String,
    /// Real user id, as the host sees it.
    pub uid: u32,
    /// Its name on the host.
    pub user: Option<String>,
    /// Real group id.
    pub gid: u32,
    /// Its name on the host.
    pub group: Option<String>,
    /// Pid of the parent, 0 = none.
    pub ppid: u32,
    /// Name of the parent.
    pub parent_name: String,
    /// Real user id of the parent.
    pub parent_uid: u32,
    /// Its name on the host.
    pub parent_user: Option<String>,
    /// Parents of the parent up to the first process, the nearest first: name and pid.
    pub ancestors: Ancestors,
    /// The package that the executable came with.
    pub package: Option<String>,
    /// The package that the parent's executable came with.
    pub parent_package: Option<String>,
    /// Where /proc had to be asked anyway.
    pub memory: Option<Memory>,
    /// Inode of the cgroup v2 directory, 0 = unknown.
    pub cgroup_id: u64,
    /// The command line is longer than what is known of it, or was not readable.
    pub cmdline_partial: bool,
}

impl Process {
    /// The same with what it runs, if nobody could tell because it was ending: its memory is gone before its sockets.
    #[must_use]
    pub fn with_image_of(self, known: &Self) -> Self {
        if self.exe.is_some() || !self.cmdline.is_empty() || self.key != known.key {
            return self;
        }
        Self { exe: known.exe.clone(), cmdline: known.cmdline.clone(), cmdline_partial: known.cmdline_partial, ..self }
    }

    /// Whether it runs for a user, by name or number.
    #[must_use]
    pub fn is_of_user(&self, text: &str) -> bool {
        self.user.as_deref() == Some(text) || text.parse() == Ok(self.uid)
    }

    /// The path of the executable, or the short name where the path is unknown.
    #[must_use]
    pub fn path_or_name(&self) -> &str {
        self.exe.as_deref().unwrap_or(&self.name)
    }

    /// Name of the user, or the uid.
    #[must_use]
    pub fn user_or_uid(&self) -> String {
        self.user.clone().unwrap_or_else(|| self.uid.to_string())
    }

    /// Name of the group, or the gid.
    #[must_use]
    pub fn group_or_gid(&self) -> String {
        self.group.clone().unwrap_or_else(|| self.gid.to_string())
    }

    /// `sshd[9] < systemd[1]`: parent, its parent, and so on.
    #[must_use]
    pub fn chain(&self) -> String {
        if self.ppid == 0 {
            return String::new();
        }
        let mut text = format!("{}[{}]", self.parent_name, self.ppid);
        for (name, pid) in self.ancestors.iter() {
            text += &format!(" < {name}[{pid}]");
        }
        text
    }

    /// The kernel's record in readable form, with as much of the command line as is wanted.
    #[must_use]
    pub fn from_record(r: &IdentityRecord, command_lines: CommandLines) -> Self {
        let args = &r.args[..(r.args_len as usize).min(r.args.len())];
        Self {
            key: ProcKey::new(r.pid, r.start_ticks, r.flags),
            at_ns: r.at_ns,
            name: clean(until_nul(&r.comm)),
            exe: exe_path(r),
            cmdline: command_lines.read(args, r.args_len < r.args_total),
            uid: r.uid,
            user: None,
            gid: r.gid,
            group: None,
            ppid: r.ppid,
            parent_name: clean(until_nul(&r.parent_comm)),
            parent_uid: r.parent_uid,
            parent_user: None,
            ancestors: Arc::default(),
            package: None,
            parent_package: None,
            memory: None,
            cgroup_id: r.cgroup_id,
            cmdline_partial: command_lines.lacks(r.args_len < r.args_total || r.args_total == 0),
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// The kernel walks from the leaf to the root; the path reads the other way. `None` if it did not arrive there.
fn exe_path(r: &IdentityRecord) -> Option<String> {
    let bytes = &r.exe[..usize::from(r.exe_len).min(r.exe.len())];
    (r.exe_complete != 0 && !bytes.is_empty()).then(|| components(bytes))
}

/// What is known of a process, and whether more can be learnt.
struct Entry {
    process: Arc<Process>,
    complete: bool,
    last_used_ns: u64,
    /// When it was last known to be as it is here.
    checked_ns: u64,
    /// There was no room for the question for more.
    ask_later: bool,
}

fn completion(workloads: &WorkloadTable, process: &Arc<Process>) -> LookupRequest {
    let in_container = workloads.peek(process.cgroup_id).map(|workload| workload.container.is_some());
    LookupRequest::Completion { process: Arc::clone(process), in_container }
}

/// All processes with flows. Owned by the control thread; the completion is asked of the enrichment thread.
#[derive(Default)]
pub struct ProcessTable {
    entries: HashMap<ProcKey, Option<Entry>, ahash::RandomState>,
    wanted: Vec<LookupRequest>,
    unanswered: usize,
    refused: u64,
    /// Where they live.
    pub workloads: WorkloadTable,
}

/// A request to the enrichment thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupRequest {
    /// The kernel told of it; names of users are missing, perhaps more.
    Completion {
        /// What the kernel told.
        process: Arc<Process>,
        /// Whether it lives in a container, where its cgroup is known.
        in_container: Option<bool>,
    },
    /// A socket's owner of which no record came: older than the agent, or the record was lost.
    Lookup(ProcKey),
    /// Is it still as it is known? Answered only if not.
    Check(Arc<Process>),
}

/// The reply to a [`LookupRequest`].
#[derive(Debug, Clone)]
pub struct LookupReply {
    /// Which process.
    pub key: ProcKey,
    /// `None`: it is gone, and nothing is known of it, or it could not be asked ([`LookupReply::asked_later`]).
    pub process: Option<Process>,
    /// Nothing more will come.
    pub complete: bool,
    /// Id and path of its cgroup, where /proc told.
    pub cgroup: Option<(u64, String)>,
}

impl LookupReply {
    /// There was no room for a part of the question: it has to be asked again.
    #[must_use]
    pub fn asked_later(key: ProcKey) -> Self {
        Self { key, process: None, complete: false, cgroup: None }
    }
}

impl ProcessTable {
    /// Takes a record of the kernel: a new process, or a new image of a known one. Records of several CPUs come in any order.
    pub fn learn(&mut self, process: Process, now_ns: u64) {
        let key = process.key;
        if self.is_outdated(&process) {
            return;
        }
        let process = match self.peek(key) {
            Some(known) => process.with_image_of(known),
            None => process,
        };
        if self.entries.len() >= PROCESSES_MAX && !self.entries.contains_key(&key) {
            self.refused += 1;
            return;
        }
        let process = Arc::new(process);
        self.wanted.push(completion(&self.workloads, &process));
        self.enter(key, process, false, now_ns);
    }

    /// Whether the process is known as it was later.
    fn is_outdated(&self, process: &Process) -> bool {
        matches!(self.entries.get(&process.key), Some(Some(known)) if known.process.at_ns > process.at_ns)
    }

    /// Takes back a question for which there was no room. A process is as it is known meanwhile, flows do not wait for
    /// more, and [`Self::check`] asks again; of one that is not known, whoever wants it next does.
    pub fn not_asked(&mut self, question: &LookupRequest) {
        match question {
            LookupRequest::Completion { process, .. } => self.ask_later(process.key),
            LookupRequest::Lookup(key) => {
                if self.entries.get(key).is_some_and(Option::is_none) {
                    self.entries.remove(key);
                    self.unanswered -= 1;
                }
            }
            // It is due again soon.
            LookupRequest::Check(_) => {}
        }
    }

    fn ask_later(&mut self, key: ProcKey) {
        if let Some(Some(entry)) = self.entries.get_mut(&key) {
            (entry.complete, entry.ask_later) = (true, true);
        }
    }

    /// Takes a reply of the enrichment thread.
    pub fn found(&mut self, found: LookupReply, now_ns: u64) {
        if let Some((id, path)) = &found.cgroup {
            self.workloads.learn(*id, path, now_ns);
        }
        let complete = found.complete;
        match found.process {
            // It has changed since the question, and there is a question about what it is now.
            Some(process) if self.is_outdated(&process) => {}
            Some(process) => self.enter(found.key, Arc::new(process), complete, now_ns),
            None if !complete => self.ask_later(found.key),
            // The kernel told of it meanwhile.
            None if matches!(self.entries.get(&found.key), Some(Some(_))) => {}
            // A lookup that failed is remembered as unknown.
            None => {
                let unknown = Process { key: found.key, ..Process::default() };
                self.enter(found.key, Arc::new(unknown), true, now_ns);
            }
        }
    }

    fn enter(&mut self, key: ProcKey, process: Arc<Process>, complete: bool, now_ns: u64) {
        let entry = Entry { process, complete, last_used_ns: now_ns, checked_ns: now_ns, ask_later: false };
        if matches!(self.entries.insert(key, Some(entry)), Some(None)) {
            self.unanswered -= 1;
        }
    }

    /// Asks whether processes that are in use are still as they are known here: a daemon gives up root after it has made
    /// its sockets, and a program may rename itself. And asks for what had no room before. Call it about once per second;
    /// so many at most are asked for.
    pub fn check(&mut self, now_ns: u64) {
        let due = |entry: &&mut Entry| {
            entry.complete
                && entry.process.name_known()
                && entry.checked_ns + CHECK_EVERY_NS <= now_ns
                && entry.last_used_ns + CHECK_USED_NS > now_ns
        };
        for entry in self.entries.values_mut().flatten().filter(due).take(CHECKS_AT_ONCE) {
            entry.checked_ns = now_ns;
            self.wanted.push(LookupRequest::Check(Arc::clone(&entry.process)));
        }
        let waits = |entry: &&mut Entry| entry.ask_later;
        for entry in self.entries.values_mut().flatten().filter(waits).take(ASKED_AGAIN_AT_ONCE) {
            entry.ask_later = false;
            self.wanted.push(completion(&self.workloads, &entry.process));
        }
    }

    /// Processes that were asked for at first sight and are not known yet.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// The process, and whether all that can be known of it is there. Asks for it when it is not known at all.
    pub fn get(&mut self, key: ProcKey, now_ns: u64) -> (Option<Arc<Process>>, bool) {
        if !key.is_known() {
            return (None, true);
        }
        let full = self.entries.len() >= PROCESSES_MAX;
        match self.entries.get_mut(&key) {
            Some(Some(entry)) => {
                entry.last_used_ns = now_ns;
                let named = self.workloads.get(entry.process.cgroup_id, now_ns).1;
                (entry.process.name_known().then(|| Arc::clone(&entry.process)), entry.complete && named)
            }
            Some(None) => (None, false),
            None if full => {
                self.refused += 1;
                (None, true)
            }
            None => {
                self.entries.insert(key, None);
                self.unanswered += 1;
                self.wanted.push(LookupRequest::Lookup(key));
                (None, false)
            }
        }
    }

    /// The process without asking for it.
    #[must_use]
    pub fn peek(&self, key: ProcKey) -> Option<&Arc<Process>> {
        self.entries.get(&key)?.as_ref().map(|entry| &entry.process).filter(|p| p.name_known())
    }

    /// Where a process lives, without asking.
    #[must_use]
    pub fn workload(&self, key: ProcKey) -> Option<&Arc<Workload>> {
        self.workloads.peek(self.peek(key)?.cgroup_id)
    }

    /// All that are known, with the key under which sockets have them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.entries.values().flatten().map(|entry| &entry.process).filter(|process| process.name_known())
    }

    /// Requests that have come up since the last call.
    pub fn take_requests(&mut self) -> Vec<LookupRequest> {
        std::mem::take(&mut self.wanted)
    }

    /// Forgets processes and cgroups that no flow has asked for in a while, and returns them: the kernel must tell of them again.
    pub fn expire(&mut self, now_ns: u64) -> (Vec<ProcKey>, Vec<u64>) {
        let keep_ns = if self.entries.len() > PROCESSES_MAX / 2 { KEEP_CROWDED_NS } else { KEEP_NS };
        let is_over =
            |entry: &mut Option<Entry>| entry.as_ref().is_some_and(|entry| entry.last_used_ns + keep_ns <= now_ns);
        let processes = self.entries.extract_if(|_, entry| is_over(entry)).map(|(key, _)| key).collect();
        (processes, self.workloads.expire(now_ns))
    }

    /// Processes that were not remembered because the table was full.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// How many are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Process {
    /// A process that could not be looked up any more has a pid and nothing else.
    fn name_known(&self) -> bool {
        !self.name.is_empty()
    }
}
