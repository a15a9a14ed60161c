//! dpkg's lists of files: one per package, one path a line.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{Dir, ResolveFlags};

use crate::model::text::clean;
use crate::owners::files::{IN_CONTAINER, directory_in, lines, regular_in, root_of};

pub(super) const LISTS: &str = "var/lib/dpkg/info";
/// Documentation, headers and locales are most of a system's files, and nobody executes them.
const NEVER_EXECUTED: [&str; 5] =
    ["/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/include/", "/usr/src/"];

/// What is read of a database. Whose it is could make it as large as he likes.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Entries of the directory.
    entries: usize,
    /// Bytes of one list. The largest of Debian has 5 million.
    list: u64,
    /// Bytes of all lists. Those of 3,000 packages have 30 million.
    total: u64,
}

const CONTAINER: Bounds = Bounds { entries: 1 << 17, list: 16 << 20, total: 64 << 20 };
const HOST: Bounds = Bounds { entries: 1 << 20, list: 64 << 20, total: 1 << 30 };
/// Files of the host that are kept, 8 bytes each.
const FILES_MAX: usize = 1 << 22;

/// Tells of each path in the lists, with its package, until it is told to stop. How much was left out.
fn read_lists(
    root: impl AsFd,
    resolve: ResolveFlags,
    bounds: Bounds,
    mut told: impl FnMut(&str, &[u8]) -> ControlFlow<()>,
) -> u64 {
    let Ok(dir) = directory_in(root, LISTS, resolve) else { return 0 };
    let Ok(entries) = Dir::read_from(&dir) else { return 0 };
    let (mut total, mut left_out) = (bounds.total, 0);
    for (number, entry) in entries.map_while(Result::ok).enumerate() {
        if number >= bounds.entries || total == 0 {
            return left_out + 1;
        }
        let Some((name, package)) = entry.file_name().to_str().ok().and_then(of_list) else { continue };
        let Ok(list) = regular_in(&dir, name, resolve) else { continue };
        let may_read = bounds.list.min(total);
        let (mut left, mut stop) = (may_read, ControlFlow::Continue(()));
        let too_long = lines(list, &mut left, |path| {
            stop = told(package, path);
            stop
        });
        total -= may_read - left;
        // One that fails halfway is read as far as it goes.
        left_out += too_long.unwrap_or(0) + u64::from(left == 0);
        if stop.is_break() {
            break;
        }
    }
    left_out
}

/// Reads a container's lists, without following anything out of its root.
pub(super) fn of_container(pid: u32, exe: &str) -> Found {
    root_of(pid).map_or((None, 0), |root| find_in(root, exe, CONTAINER))
}

/// The package, and how much was left out.
pub(super) type Found = (Option<String>, u64);

fn find_in(root: impl AsFd, exe: &str, bounds: Bounds) -> Found {
    let mut found = None;
    let left_out = read_lists(root, IN_CONTAINER, bounds, |package, line| {
        if is_path_of(exe, line) {
            found = Some(clean(package.as_bytes()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    (found, left_out)
}

/// Hash of a path -> package: 8 bytes per file.
pub(crate) struct DpkgIndex {
    pub(super) modified: Option<SystemTime>,
    pub(crate) left_out: u64,
    hasher: ahash::RandomState,
    /// Sorted. The upper 48 bits are the path's hash, the lower 16 the number of its package.
    files: Vec<u64>,
    packages: Vec<String>,
}

const NUMBER: u64 = 0xffff;

impl DpkgIndex {
    pub(super) fn read(root: &Path, modified: Option<SystemTime>) -> Self {
        let mut index = Self::new(modified);
        if let Ok(root) = File::open(root) {
            // The host's own: /var may be a file system of its own.
            index.left_out =
                read_lists(root, ResolveFlags::NO_MAGICLINKS, HOST, |package, path| index.take(package, path));
        }
        index.finish();
        index
    }

    /// With nothing in it.
    pub(crate) fn new(modified: Option<SystemTime>) -> Self {
        Self { modified, left_out: 0, hasher: ahash::RandomState::new(), files: Vec::new(), packages: Vec::new() }
    }

    /// Takes a path in the list of a package, as long as there is room.
    pub(crate) fn take(&mut self, package: &str, path: &[u8]) -> ControlFlow<()> {
        if self.packages.last().is_none_or(|last| last != package) {
            self.packages.push(package.to_owned());
        }
        let Ok(number) = u16::try_from(self.packages.len() - 1) else { return ControlFlow::Break(()) };
        if may_be_executed(path) {
            self.files.push(self.hasher.hash_one(path) & !NUMBER | u64::from(number));
        }
        if self.files.len() < FILES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// Makes what was taken ready to be searched.
    pub(crate) fn finish(&mut self) {
        let full = self.files.len() >= FILES_MAX || self.packages.len() > usize::from(u16::MAX) + 1;
        self.left_out += u64::from(full);
        self.packages.iter_mut().for_each(|package| *package = clean(package.as_bytes()));
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

/// `bash.list`, or `libc6:amd64.list`: the name of the file, and that of the package.
pub(crate) fn of_list(name: &str) -> Option<(&str, &str)> {
    let package = name.strip_suffix(".list")?.split(':').next().filter(|package| !package.is_empty())?;
    Some((name, package))
}

/// dpkg knows a file where the package put it: on hosts with a merged /usr that may be without the /usr of today's path.
pub(crate) fn spellings(exe: &str) -> impl Iterator<Item = &str> {
    std::iter::once(exe).chain(exe.strip_prefix("/usr").filter(|path| path.len() > 1 && path.starts_with('/')))
}

/// Whether a line of a list is the path of an executable.
pub(crate) fn is_path_of(exe: &str, line: &[u8]) -> bool {
    spellings(exe).any(|path| path.as_bytes() == line)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn root() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let lists = root.path().join(LISTS);
        fs::create_dir_all(&lists).unwrap();
        fs::write(lists.join("curl.list"), "/.\n/usr\n/usr/bin\n/usr/bin/curl\n/usr/share/doc/curl/x\n").unwrap();
        fs::write(lists.join("dash:amd64.list"), "/bin/dash\n").unwrap();
        fs::write(lists.join("curl.md5sums"), "/usr/bin/other\n").unwrap();
        (root, lists)
    }

    fn find(root: &Path, exe: &str, bounds: Bounds) -> Found {
        find_in(File::open(root).unwrap(), exe, bounds)
    }

    #[test]
    fn finds_the_package_also_on_merged_usr() {
        let (root, _) = root();
        let paths = ["/usr/bin/curl", "/usr/bin/dash", "/usr/bin/other", "/usr/share/doc/curl/x"];
        let index = DpkgIndex::read(root.path(), None);
        assert_eq!(paths.map(|p| index.find(p)), [Some("curl".into()), Some("dash".into()), None, None]);
        let found = paths.map(|path| find(root.path(), path, CONTAINER));
        let known = |package: &str| (Some(package.to_owned()), 0);
        assert_eq!(found, [known("curl"), known("dash"), (None, 0), known("curl")]);
    }

    #[test]
    fn a_list_without_a_name_and_half_a_folder_are_nothing() {
        let package = |name| of_list(name).map(|(_, package)| package);
        let packages = ["dash:amd64.list", ":amd64.list", ".list", "x"].map(package);
        assert_eq!(packages, [Some("dash"), None, None, None]);
        let spelt = |exe| spellings(exe).collect::<Vec<_>>();
        assert_eq!(spelt("/usr/bin/x"), ["/usr/bin/x", "/bin/x"]);
        assert_eq!([spelt("/usr"), spelt("/usr/"), spelt("/usrx/y")], [["/usr"], ["/usr/"], ["/usrx/y"]]);
    }

    #[test]
    fn a_containers_lists_are_read_in_its_root() {
        // This very process: its root is ours, so the host's own database answers, if the host has one.
        let own = of_container(std::process::id(), "/usr/bin/dpkg").0;
        assert_eq!(own.is_some(), Path::new("/var/lib/dpkg/info/dpkg.list").exists());
        assert_eq!(of_container(std::process::id(), "/no/such/file").0, None);
    }

    #[test]
    fn a_line_of_64_mib_is_left_out_and_counted() {
        let (root, lists) = root();
        // It takes no room on the disk, and is full of NULs.
        File::create(lists.join("evil.list")).unwrap().set_len(64 << 20).unwrap();
        assert_eq!(find(root.path(), "/none", CONTAINER), (None, 2), "the line and the rest of the list");
        let index = DpkgIndex::read(root.path(), None);
        assert_eq!((index.left_out, index.find("/usr/bin/dash").as_deref()), (2, Some("dash")));
    }

    #[test]
    fn endless_files_and_bytes_end_the_reading_and_are_counted() {
        let (root, lists) = root();
        for i in 0..100 {
            fs::write(lists.join(format!("p{i}.list")), "/x\n".repeat(100)).unwrap();
        }
        let few = |entries, list, total| find(root.path(), "/none", Bounds { entries, list, total });
        assert_eq!(few(1000, 1000, 1 << 20), (None, 0));
        assert_eq!(few(50, 1000, 1 << 20), (None, 1));
        assert_eq!(few(1000, 100, 1 << 20), (None, 100));
        assert!(few(1000, 1000, 1000).1 >= 1);
    }

    #[test]
    fn pipes_and_links_in_the_place_of_lists_are_not_opened() {
        let (root, lists) = root();
        nix::unistd::mkfifo(&lists.join("pipe.list"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("curl.list", lists.join("link.list")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", lists.join("zero.list")).unwrap();
        assert_eq!(find(root.path(), "/usr/bin/dash", CONTAINER), (Some("dash".into()), 0));
    }
}
