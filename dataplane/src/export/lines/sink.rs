//! Where lines are written to: a descriptor that is never waited for, and what keeps a file made of whole lines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::Target;

/// How long a write may wait for its reader.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
/// What a pipe that has any room takes without waiting (pipe(7), `PIPE_BUF`).
const PIPE_BUF: usize = 4096;
/// Command lines are in it: for its owner and group.
const MODE: u32 = 0o640;
/// How far the end of a file is searched for its last whole line, bytes.
const TAIL_MAX: u64 = 1 << 20;
/// How a line begins.
const LINE_BEGIN: &[u8] = b"{\"@timestamp\":";

/// Why not all was written.
pub(super) enum Trouble {
    /// The reader takes nothing now.
    Busy,
    /// It does not work any more.
    Broken {
        /// So many bytes of the lines have arrived, and stay.
        written: usize,
        why: io::Error,
    },
}

enum Kind {
    /// Or a terminal. Others may share its flags, so writes must be small enough not to wait.
    Pipe,
    /// A socket.
    Stream,
    Regular {
        device: u64,
        inode: u64,
    },
}

/// An open target.
pub(super) struct Sink {
    file: File,
    kind: Kind,
}

impl Sink {
    pub(super) fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => Self::of(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
            Target::File(path) => {
                let mut sink = Self::of(open_file(path)?)?;
                sink.end_last_line()?;
                Ok(sink)
            }
            Target::Unix(path) => Ok(Self { file: File::from(connect(path)?), kind: Kind::Stream }),
        }
    }

    fn of(file: File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let kind = match meta.file_type() {
            kind if kind.is_file() => Kind::Regular { device: meta.dev(), inode: meta.ino() },
            kind if kind.is_socket() => Kind::Stream,
            _ => Kind::Pipe,
        };
        Ok(Self { file, kind })
    }

    /// Whether it still is what the target names: a file may have been renamed, or removed.
    pub(super) fn is_at(&self, target: &Target) -> bool {
        let (Kind::Regular { device, inode }, Target::File(path)) = (&self.kind, target) else { return true };
        fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*device, *inode))
    }

    /// Writes some of the lines from `begin` on, and says how many bytes.
    pub(super) fn write(&mut self, lines: &[u8], begin: usize) -> Result<usize, Trouble> {
        let broken = |why| Trouble::Broken { written: begin, why };
        if !matches!(self.kind, Kind::Regular { .. }) {
            let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
            match poll(&mut fds, Some(&WAIT)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => return Err(Trouble::Busy),
                Ok(_) => {}
                Err(err) => return Err(broken(err.into())),
            }
        }
        let rest = &lines[begin..];
        let written = match self.kind {
            Kind::Pipe => self.file.write(&rest[..rest.len().min(PIPE_BUF)]),
            Kind::Stream => {
                rustix::net::send(&self.file, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map_err(io::Error::from)
            }
            Kind::Regular { .. } => self.file.write(rest),
        };
        match written {
            Ok(0) => Err(broken(io::ErrorKind::WriteZero.into())),
            Ok(bytes) => Ok(bytes),
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Err(Trouble::Busy)
            }
            Err(why) => {
                self.take_back(lines, begin);
                Err(broken(why))
            }
        }
    }

    /// Removes the beginning of a line that has no room for its end, as on a full disk.
    fn take_back(&mut self, lines: &[u8], written: usize) {
        let partial = lines[..written].iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
        if partial == 0 || !matches!(self.kind, Kind::Regular { .. }) {
            return;
        }
        // Where we have written last: whoever has shortened the file since then has taken it away.
        let (Ok(at), Ok(meta)) = (self.file.stream_position(), self.file.metadata()) else { return };
        if meta.len() == at && at >= partial {
            let _ = self.file.set_len(at - partial);
        }
    }

    /// An agent that was killed may have left the beginning of a line.
    fn end_last_line(&mut self) -> io::Result<()> {
        let Kind::Regular { .. } = self.kind else { return Ok(()) };
        let length = self.file.metadata()?.len();
        let mut tail = Vec::new();
        self.file.seek(SeekFrom::Start(length.saturating_sub(TAIL_MAX)))?;
        (&self.file).take(TAIL_MAX).read_to_end(&mut tail)?;
        let begin = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let partial = &tail[begin..];
        if partial.is_empty() {
            return Ok(());
        }
        let is_ours = partial.starts_with(&LINE_BEGIN[..partial.len().min(LINE_BEGIN.len())]);
        if is_ours { self.file.set_len(length - partial.len() as u64) } else { self.file.write_all(b"\n") }
    }
}

/// Not to be waited for: nobody may read from it if it is a pipe.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).custom_flags(flags.bits().cast_signed());
    // Reading is for the end of the last line only, and opens no pipe that has no reader.
    let is_file = fs::metadata(path).map_or(true, |meta| meta.is_file());
    options.read(is_file).open(path)
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket).into())
}
