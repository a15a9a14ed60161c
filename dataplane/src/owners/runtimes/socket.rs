//! The way to a runtime's socket. Whoever answers there is believed, so it is checked at each connection who that is:
//! the path may be changed at any time, a user's own by that user.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no socket.
    Absent,
    /// It is not what it should be, and is not asked.
    Refused(String),
    /// It does not answer, or not so that it is understood.
    Silent(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no socket"),
            Self::Refused(why) | Self::Silent(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Trouble {}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Silent(why)
    }
}

/// A socket, and whose it must be.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: PathBuf,
    /// Unless root's.
    owner_uid: Option<u32>,
    /// One looks at the path at a time.
    turn: Arc<Semaphore>,
}

impl Place {
    pub(super) fn new(path: &Path, owner_uid: Option<u32>) -> Self {
        Self { path: path.to_owned(), owner_uid, turn: Arc::new(Semaphore::new(1)) }
    }

    /// A connection to whom it should lead.
    pub(super) async fn connect(&self) -> Result<UnixStream, Trouble> {
        let socket = self.look().await?;
        // By its descriptor: that is the socket that was looked at, whatever the path leads to by now.
        let stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await;
        let stream = stream.map_err(|err| Trouble::Silent(err.to_string()))?;
        let peer = stream.peer_cred().map_err(|err| Trouble::Silent(err.to_string()))?;
        self.must_be_owner(peer.uid(), "who answers at its socket is")?;
        Ok(stream)
    }

    /// The socket. On a thread of its own: a user may have mounted a file system there that never answers. One at a time,
    /// so that no more than one thread of a runtime is stuck there; who waits for it gives up by a deadline.
    pub(super) async fn look(&self) -> Result<OwnedFd, Trouble> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|err| Trouble::Silent(err.to_string()))?;
        let place = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            place.open()
        });
        looked.await.map_err(|err| Trouble::Silent(err.to_string()))?
    }

    fn open(&self) -> Result<OwnedFd, Trouble> {
        // A user's directories may hold links to anything; those on the way to root's sockets are root's.
        let resolve = if self.owner_uid.is_some() { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::NO_MAGICLINKS };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let socket =
            rustix::fs::openat2(CWD, &self.path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => Trouble::Absent,
                Errno::LOOP => Trouble::Refused("a link leads to its socket".into()),
                errno => Trouble::Silent(errno.to_string()),
            })?;
        let seen = rustix::fs::statx(
            &socket,
            c"",
            AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC,
            StatxFlags::TYPE | StatxFlags::UID,
        )
        .map_err(|errno| Trouble::Silent(errno.to_string()))?;
        match FileType::from_raw_mode(seen.stx_mode.into()) {
            FileType::Socket => {}
            FileType::Symlink => return Err(Trouble::Refused("a link is in the place of its socket".into())),
            _ => return Err(Trouble::Refused("it is no socket".into())),
        }
        self.must_be_owner(seen.stx_uid, "its socket belongs to")?;
        Ok(socket)
    }

    fn must_be_owner(&self, uid: u32, what: &str) -> Result<(), Trouble> {
        let owner = self.owner_uid.unwrap_or(0);
        if uid == owner { Ok(()) } else { Err(Trouble::Refused(format!("{what} uid {uid} and not uid {owner}"))) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn connect(path: &Path, uid: u32) -> Result<(), Trouble> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Place::new(path, Some(uid)).connect()).map(|_| ())
    }

    #[test]
    fn whose_socket_it_is_must_be_right_and_so_must_be_who_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let own = std::fs::metadata(&path).unwrap().uid();
        assert_eq!(connect(&path, own), Ok(()));
        let why = format!("its socket belongs to uid {own} and not uid 7");
        assert_eq!(connect(&path, 7), Err(Trouble::Refused(why)));
        // Only root can give a file away: who listens is another then than whose file it is.
        if std::os::unix::fs::chown(&path, Some(7), None).is_ok() {
            let why = format!("who answers at its socket is uid {own} and not uid 7");
            assert_eq!(connect(&path, 7), Err(Trouble::Refused(why)));
        }
    }

    #[test]
    fn links_and_what_is_no_socket_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        std::fs::create_dir(&real).unwrap();
        let _listener = UnixListener::bind(real.join("socket")).unwrap();
        let own = std::fs::metadata(&real).unwrap().uid();
        symlink(real.join("socket"), dir.path().join("link")).unwrap();
        symlink(&real, dir.path().join("links")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let refused = |why: &str| Err(Trouble::Refused(why.into()));
        assert_eq!(connect(&real.join("socket"), own), Ok(()));
        assert_eq!(connect(&dir.path().join("link"), own), refused("a link is in the place of its socket"));
        assert_eq!(connect(&dir.path().join("links/socket"), own), refused("a link leads to its socket"));
        assert_eq!(connect(&dir.path().join("file"), own), refused("it is no socket"));
        assert_eq!(connect(&dir.path().join("none"), own), Err(Trouble::Absent));
    }

    #[test]
    fn a_file_system_that_does_not_answer_holds_one_thread() {
        let place = Place::new(Path::new("/none"), None);
        let stuck = Arc::clone(&place.turn).try_acquire_owned().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let look = || async { tokio::time::timeout(std::time::Duration::from_millis(20), place.look()).await };
        assert!(runtime.block_on(async { look().await }).is_err());
        drop(stuck);
        assert!(matches!(runtime.block_on(async { look().await }), Ok(Err(Trouble::Absent))));
    }
}
