//! The package that an executable came with: dpkg's and rpm's databases, on a thread of their own.
//!
//! dpkg's file lists are read directly, the host's into an index of hashes, a container's for one executable at a time,
//! never leaving the container's root. rpm's database has several formats that only rpm reads well, so `rpm` is asked,
//! and only about the host: a container's database is input that nobody should let a C library parse as root.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

use crate::model::text::clean;
use crate::owners::process::{LookupReply, Process};

const LISTS: &str = "var/lib/dpkg/info";
const RPM_DATABASES: [&str; 2] = ["/var/lib/rpm", "/usr/lib/sysimage/rpm"];
/// How often the host's database is looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Executables whose answer is remembered.
const CACHE_MAX: usize = 1 << 14;
/// Most that is read of a container's lists, bytes.
const CONTAINER_BYTES_MAX: u64 = 64 << 20;
/// What opening a list counts for.
const LIST_BYTES: u64 = 1024;
/// Longest path, with its end (`PATH_MAX`).
const LINE_MAX: u64 = 4096;
/// Documentation, headers and locales are most of a system's files, and nobody executes them.
const NEVER_EXECUTED: [&str; 5] =
    ["/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/include/", "/usr/src/"];

/// A process whose package is wanted.
pub struct PackageRequest {
    /// Everything else is known.
    pub process: Process,
    /// It lives in a container.
    pub in_container: bool,
    /// The executable of its parent, and whether that one lives in a container.
    pub parent: Option<(String, bool)>,
}

/// Starts the thread. It ends when `wanted` is closed.
///
/// # Errors
/// If the thread cannot be started.
pub fn start(wanted: Receiver<PackageRequest>, found: Sender<LookupReply>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("sockeye-package".into()).spawn(move || {
        let mut packages = Packages::default();
        for question in wanted {
            let mut process = question.process;
            let cgroup_id = process.cgroup_id;
            let exe = process.exe.as_deref();
            process.package = exe.and_then(|exe| packages.of(exe, process.key.pid, cgroup_id, question.in_container));
            process.parent_package = question
                .parent
                .and_then(|(exe, in_container)| packages.of(&exe, process.ppid, cgroup_id, in_container));
            if found
                .send(LookupReply { key: process.key, process: Some(process), complete: true, cgroup: None })
                .is_err()
            {
                return;
            }
        }
    })
}

#[derive(Default)]
struct Packages {
    host: Option<DpkgIndex>,
    looked: Option<Instant>,
    /// By cgroup (0 for the host) and executable.
    cache: HashMap<(u64, String), Option<String>, ahash::RandomState>,
}

impl Packages {
    /// The package of an executable, as the process `pid` sees it.
    fn of(&mut self, exe: &str, pid: u32, cgroup_id: u64, in_container: bool) -> Option<String> {
        self.follow_changes();
        let key = (if in_container { cgroup_id } else { 0 }, exe.to_owned());
        if let Some(known) = self.cache.get(&key) {
            return known.clone();
        }
        let package = if in_container { container_package(pid, exe) } else { self.host_package(exe) };
        if self.cache.len() >= CACHE_MAX {
            self.cache.clear();
        }
        self.cache.insert(key, package.clone());
        package
    }

    fn host_package(&self, exe: &str) -> Option<String> {
        let dpkg = self.host.as_ref().and_then(|index| index.find(exe));
        dpkg.or_else(|| RPM_DATABASES.iter().any(|path| Path::new(path).is_dir()).then(|| rpm_package(exe))?)
    }

    /// Packages are installed while the agent runs.
    fn follow_changes(&mut self) {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        let modified = fs::metadata(Path::new("/").join(LISTS)).and_then(|meta| meta.modified()).ok();
        if self.host.as_ref().and_then(|index| index.modified) != modified || self.host.is_none() {
            self.host = Some(DpkgIndex::read(Path::new("/"), modified));
            self.cache.clear();
        }
    }
}

/// Hash of a path -> package: 8 bytes per file.
pub(crate) struct DpkgIndex {
    modified: Option<SystemTime>,
    hasher: ahash::RandomState,
    /// Sorted. The upper 48 bits are the path's hash, the lower 16 the number of its package.
    files: Vec<u64>,
    packages: Vec<String>,
}

const NUMBER: u64 = 0xffff;

impl DpkgIndex {
    pub(crate) fn new(modified: Option<SystemTime>) -> Self {
        Self { modified, hasher: ahash::RandomState::new(), files: Vec::new(), packages: Vec::new() }
    }

    fn read(root: &Path, modified: Option<SystemTime>) -> Self {
        let mut index = Self::new(modified);
        for entry in fs::read_dir(root.join(LISTS)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(package) = name.to_str().and_then(package_of_list) else { continue };
            let Ok(list) = File::open(entry.path()) else { continue };
            if !index.add_list(package, BufReader::new(list)) {
                break;
            }
        }
        index.sort();
        index
    }

    /// Takes the list of a package, unless there are too many of them. Line by line: some lists take a megabyte.
    pub(crate) fn add_list(&mut self, package: String, mut list: impl BufRead) -> bool {
        let Ok(number) = u16::try_from(self.packages.len()) else { return false };
        self.packages.push(package);
        let mut path = Vec::new();
        while next_path(&mut list, &mut path).is_some() {
            if may_be_executed(&path) {
                self.files.push(self.hasher.hash_one(&*path) & !NUMBER | u64::from(number));
            }
        }
        true
    }

    /// Makes what was added ready to be searched.
    pub(crate) fn sort(&mut self) {
        self.files.sort_unstable();
        self.files.shrink_to_fit();
    }

    pub(crate) fn find(&self, exe: &str) -> Option<String> {
        spellings(exe).find_map(|path| {
            let hash = self.hasher.hash_one(path.as_bytes()) & !NUMBER;
            let file = *self.files.get(self.files.partition_point(|file| *file < hash))?;
            let number = (file & !NUMBER == hash).then_some(file & NUMBER)?;
            self.packages.get(number as usize).cloned()
        })
    }
}

pub(crate) fn may_be_executed(path: &[u8]) -> bool {
    path.len() > 1 && !NEVER_EXECUTED.iter().any(|prefix| path.starts_with(prefix.as_bytes()))
}

/// `bash.list`, or `libc6:amd64.list`.
pub(crate) fn package_of_list(name: &str) -> Option<String> {
    let name = name.strip_suffix(".list")?.split(':').next().filter(|name| !name.is_empty())?;
    Some(clean(name.as_bytes()))
}

/// dpkg knows a file where the package put it: on hosts with a merged /usr that may be without the /usr of today's path.
pub(crate) fn spellings(exe: &str) -> impl Iterator<Item = &str> {
    std::iter::once(exe).chain(exe.strip_prefix("/usr").filter(|path| path.len() > 1 && path.starts_with('/')))
}

/// Reads a container's lists, without following anything out of its root.
fn container_package(pid: u32, exe: &str) -> Option<String> {
    let root = File::open(format!("/proc/{pid}/root")).ok()?;
    let dir = open_in(&root, LISTS, OFlags::DIRECTORY).ok()?;
    let mut left = CONTAINER_BYTES_MAX;
    for entry in Dir::read_from(&dir).ok()?.flatten() {
        let Some(package) = entry.file_name().to_str().ok().and_then(package_of_list) else { continue };
        // A pipe would block; a device may do anything.
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
            continue;
        }
        let name = format!("{LISTS}/{}", entry.file_name().to_str().ok()?);
        let Ok(list) = open_in(&root, &name, OFlags::NONBLOCK | OFlags::NOFOLLOW) else { continue };
        if list_has(BufReader::new(File::from(list).take(left)), exe, &mut left) {
            return Some(package);
        }
        if left == 0 {
            return None;
        }
    }
    None
}

/// Whether an executable is in a list; takes what it reads of it from what is left to read, and something for the list
/// itself: a container may have any number of empty ones.
pub(crate) fn list_has(mut list: impl BufRead, exe: &str, left: &mut u64) -> bool {
    *left = left.saturating_sub(LIST_BYTES);
    let mut path = Vec::new();
    while let Some(read) = next_path(&mut list, &mut path) {
        *left = left.saturating_sub(read);
        if spellings(exe).any(|spelling| spelling.as_bytes() == path) {
            return true;
        }
    }
    false
}

/// Reads a line, and returns how much it took. Of one that is longer than any path nothing is kept.
fn next_path(list: &mut impl BufRead, path: &mut Vec<u8>) -> Option<u64> {
    path.clear();
    let mut read = list.by_ref().take(LINE_MAX).read_until(b'\n', path).ok().filter(|read| *read > 0)?;
    if path.last() == Some(&b'\n') {
        path.pop();
    } else if read as u64 == LINE_MAX {
        path.clear();
        read += list.skip_until(b'\n').ok()?;
    }
    Some(read as u64)
}

fn open_in(root: &File, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(root, path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

fn rpm_package(exe: &str) -> Option<String> {
    let output = Command::new("rpm")
        .args(["-qf", "--queryformat", "%{NAME}\\n", "--", exe])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let name =
        output.stdout.split(|b| *b == b'\n').next().filter(|name| output.status.success() && !name.is_empty())?;
    Some(clean(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let lists = root.path().join(LISTS);
        fs::create_dir_all(&lists).unwrap();
        fs::write(lists.join("curl.list"), "/.\n/usr\n/usr/bin\n/usr/bin/curl\n/usr/share/doc/curl/x\n").unwrap();
        fs::write(lists.join("dash:amd64.list"), "/bin/dash\n").unwrap();
        fs::write(lists.join("curl.md5sums"), "/usr/bin/other\n").unwrap();
        root
    }

    #[test]
    fn finds_the_package_also_on_merged_usr() {
        let root = root();
        let index = DpkgIndex::read(root.path(), None);
        let found =
            ["/usr/bin/curl", "/usr/bin/dash", "/usr/bin/other", "/usr/share/doc/curl/x"].map(|p| index.find(p));
        assert_eq!(found, [Some("curl".into()), Some("dash".into()), None, None]);
    }

    #[test]
    fn a_list_without_a_name_and_half_a_folder_are_nothing() {
        assert_eq!(
            ["dash:amd64.list", ":amd64.list", ".list", "x"].map(package_of_list),
            [Some("dash".into()), None, None, None]
        );
        let spelt = |exe| spellings(exe).collect::<Vec<_>>();
        assert_eq!(spelt("/usr/bin/x"), ["/usr/bin/x", "/bin/x"]);
        assert_eq!([spelt("/usr"), spelt("/usr/"), spelt("/usrx/y")], [["/usr"], ["/usr/"], ["/usrx/y"]]);
    }

    #[test]
    fn long_lines_and_many_lists_are_bounded() {
        let long = [b"/usr/bin/".as_slice(), &vec![b'a'; 1 << 20], b"\n/usr/bin/curl\n"].concat();
        let (mut left, mut path) = (CONTAINER_BYTES_MAX, Vec::new());
        assert!(next_path(&mut long.as_slice(), &mut path).is_some() && path.capacity() <= 2 * LINE_MAX as usize);
        assert!(list_has(long.as_slice(), "/usr/bin/curl", &mut left));
        assert_eq!(CONTAINER_BYTES_MAX - left, long.len() as u64 + LIST_BYTES);
        let longest = format!("/{}", "a".repeat(LINE_MAX as usize - 2));
        for list in [format!("{longest}\n"), longest.clone()] {
            assert!(list_has(list.as_bytes(), &longest, &mut left));
        }
        left = CONTAINER_BYTES_MAX;
        let lists = (0..1 << 20).take_while(|_| !list_has(&b""[..], "/x", &mut left) && left > 0).count();
        assert!(lists < 1 << 17, "{lists} empty lists");
    }

    #[test]
    fn a_containers_lists_are_read_in_its_root() {
        // This very process: its root is ours, so the host's own database answers, if the host has one.
        let own = container_package(std::process::id(), "/usr/bin/dpkg");
        assert_eq!(own.is_some(), Path::new("/var/lib/dpkg/info/dpkg.list").exists());
        assert_eq!(container_package(std::process::id(), "/no/such/file"), None);
    }
}
