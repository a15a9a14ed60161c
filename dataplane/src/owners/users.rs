//! Names of users and groups, from the host's own files.
//!
//! Not from the name service: it may ask a directory over the network and block for seconds. Where the agent runs in a
//! container that shares the host's pid namespace, the files are those of the host's first process, never those of a
//! container: the ids that the kernel tells are the host's.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;

use crate::model::text::clean;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Longest file that is read, bytes.
const FILE_MAX: u64 = 16 << 20;

/// Both databases, with a memory.
pub struct Users {
    passwd: IdFile,
    group: IdFile,
}

impl Default for Users {
    fn default() -> Self {
        let root = Path::new("/proc/1/root");
        // Unreadable without CAP_SYS_PTRACE; then what we see ourselves is the best there is.
        let root = if fs::metadata(root.join("etc/passwd")).is_ok() { root } else { Path::new("/") };
        Self::of(root)
    }
}

impl Users {
    /// The databases below a root directory.
    #[must_use]
    pub fn of(root: &Path) -> Self {
        Self { passwd: IdFile::new(root.join("etc/passwd")), group: IdFile::new(root.join("etc/group")) }
    }

    /// Name of a user.
    pub fn user(&mut self, uid: u32) -> Option<String> {
        self.passwd.name(uid)
    }

    /// Name of a group.
    pub fn group(&mut self, gid: u32) -> Option<String> {
        self.group.name(gid)
    }
}

/// passwd(5) or group(5): in both the first field is the name and the third the id.
struct IdFile {
    path: PathBuf,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    names: HashMap<u32, String, ahash::RandomState>,
}

impl IdFile {
    fn new(path: PathBuf) -> Self {
        Self { path, looked: None, modified: None, names: HashMap::default() }
    }

    fn name(&mut self, id: u32) -> Option<String> {
        if self.looked.is_none_or(|at| at.elapsed() > LOOK_EVERY) {
            self.looked = Some(Instant::now());
            self.reread();
        }
        self.names.get(&id).cloned()
    }

    fn reread(&mut self) {
        let Ok(meta) = fs::metadata(&self.path) else { return };
        let modified = meta.modified().ok();
        // A pipe would block, and a device has no end.
        if !meta.is_file() || meta.len() > FILE_MAX || (modified.is_some() && modified == self.modified) {
            return;
        }
        let mut text = Vec::new();
        if File::open(&self.path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut text)).is_ok() {
            self.names = parse(&text);
            self.modified = modified;
        }
    }
}

/// The first entry of an id counts, as for getpwuid(3).
fn parse(text: &[u8]) -> HashMap<u32, String, ahash::RandomState> {
    let mut names = HashMap::default();
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        if let Some(id) = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok())
            && !name.is_empty()
        {
            names.entry(id).or_insert_with(|| clean(name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_root_and_not_the_unknown() {
        let mut users = Users::default();
        assert_eq!((users.user(0).as_deref(), users.group(0).as_deref()), (Some("root"), Some("root")));
        assert_eq!(users.user(3_999_999_999), None);
    }

    #[test]
    fn odd_lines_are_skipped_and_the_first_name_counts() {
        let names = parse(b"a:x:7:7::/:/bin/sh\nb:x:7:\n\n#\nbroken\nc:x:seven:\n:x:8:\n\xff\x1b:x:9:\n");
        assert_eq!(names.get(&7).map(String::as_str), Some("a"));
        assert_eq!(names.get(&9).map(String::as_str), Some("\u{fffd}\u{fffd}"));
        assert_eq!(names.len(), 2);
    }
}
