//! Reading files of others, who may have put anything in their place.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

/// Longest line that is looked at, bytes: as long as a path may be.
pub(super) const LINE_MAX: usize = 4096;

/// How a path below a container's root is followed: not out of it by any link, and not onto what is mounted in it,
/// which may be a file system that never answers.
pub(super) const IN_CONTAINER: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_XDEV).union(ResolveFlags::NO_MAGICLINKS);

/// The root directory of a process, without asking its file system for anything.
pub(super) fn root_of(pid: u32) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(format!("/proc/{pid}/root"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Device and inode of a file, as the kernel has them in memory: a file system that does not answer is not asked.
pub(super) fn identity(path: &str) -> rustix::io::Result<(u32, u32, u64)> {
    let seen = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    Ok((seen.stx_dev_major, seen.stx_dev_minor, seen.stx_ino))
}

/// A directory below another one.
pub(super) fn directory_in(root: impl AsFd, path: &str, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// A regular file in a directory. Nothing else is ever opened: a pipe would block, and a device may do anything.
pub(super) fn regular_in(dir: impl AsFd, name: &str, resolve: ResolveFlags) -> io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)?;
    let seen = rustix::fs::statx(&place, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE)?;
    if FileType::from_raw_mode(seen.stx_mode.into()) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    // What was looked at, whatever has its name by now. Who holds a lease on it does not make us wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty())?.into())
}

/// Tells of the lines of a file, as far as `left` reaches, until it is told to stop. The number of lines that were left
/// out because they are longer than [`LINE_MAX`].
pub(crate) fn lines(
    file: impl Read,
    left: &mut u64,
    mut told: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<u64> {
    let mut reader = BufReader::new(file.take(*left));
    let (mut line, mut too_long) = (Vec::new(), 0);
    loop {
        line.clear();
        let mut taken = reader.by_ref().take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if taken == 0 {
            return Ok(too_long);
        }
        let ends = line.pop_if(|last| *last == b'\n').is_some();
        if line.len() > LINE_MAX {
            too_long += 1;
            taken += if ends { 0 } else { reader.skip_until(b'\n')? };
            *left = left.saturating_sub(taken as u64);
            continue;
        }
        *left = left.saturating_sub(taken as u64);
        if told(&line).is_break() {
            return Ok(too_long);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_64_mib_takes_no_memory_and_the_next_one_is_read() {
        let long = io::repeat(b'x').take(64 << 20);
        let text = b"/a\n".chain(long).chain(b"\n/b\n/c".as_slice());
        let (mut found, mut held, mut left) = (Vec::new(), 0, u64::MAX);
        let too_long = lines(text, &mut left, |line| {
            held = held.max(line.len());
            found.push(String::from_utf8(line.into()).unwrap());
            ControlFlow::Continue(())
        });
        assert_eq!((too_long.unwrap(), found), (1, ["/a", "/b", "/c"].map(str::to_owned).to_vec()));
        assert_eq!((held, u64::MAX - left), (2, 3 + (64 << 20) + 1 + 5));
    }

    #[test]
    fn no_more_is_read_than_may_be() {
        let (mut seen, mut left) = (0, 10_000);
        lines(io::repeat(b'\n'), &mut left, |_| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((seen, left), (10_000, 0));
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = File::open(dir.path()).unwrap();
        let open = |name: &str| regular_in(&root, name, IN_CONTAINER).is_ok();
        assert_eq!(["file", "link", "fifo", ".", "none"].map(open), [true, false, false, false, false]);
    }

    #[test]
    fn what_is_mounted_in_a_container_is_not_entered() {
        let root = File::open("/").unwrap();
        assert!(directory_in(&root, "proc/self", ResolveFlags::IN_ROOT).is_ok());
        assert_eq!(directory_in(&root, "proc/self", IN_CONTAINER).unwrap_err(), Errno::XDEV);
        assert_eq!(directory_in(&root, "proc", IN_CONTAINER).unwrap_err(), Errno::XDEV);
    }

    #[test]
    fn a_process_has_the_root_that_its_path_leads_to() {
        let own = std::process::id();
        assert_eq!(identity(&format!("/proc/{own}/root/")).unwrap(), identity("/").unwrap());
        assert!(directory_in(root_of(own).unwrap(), "proc", ResolveFlags::IN_ROOT).is_ok());
    }
}
