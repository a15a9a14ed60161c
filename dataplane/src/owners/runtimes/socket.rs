//! The way to a runtime's socket. Whoever answers there is believed, so it is checked at each connection who that is:
//! the path may be changed at any time, a user's own by that user.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
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

/// What is said of a socket that was mounted into a container by itself.
const OF_ANOTHER_TIME: &str =
    "; its socket is mounted as a file, and the runtime has made a new one since: mount the folder that it is in";

/// A socket that was found.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    /// Its file is itself the root of a mount.
    is_mounted: bool,
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
        let Socket { descriptor, is_mounted } = self.look().await?;
        // By its descriptor: that is the socket that was looked at, whatever the path leads to by now.
        let stream = UnixStream::connect(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).await;
        let stream = stream.map_err(|err| {
            // The file of a socket that was bound anew is another one, and the mount still is the old one.
            let refused = err.kind() == std::io::ErrorKind::ConnectionRefused && is_mounted;
            Trouble::Silent(format!("{err}{}", if refused { OF_ANOTHER_TIME } else { "" }))
        })?;
        let peer = stream.peer_cred().map_err(|err| Trouble::Silent(err.to_string()))?;
        self.must_be_owner(peer.uid(), "who answers at its socket is")?;
        Ok(stream)
    }

    /// The socket. On a thread of its own: a user may have mounted a file system there that never answers. One at a time,
    /// so that no more than one thread of a runtime is stuck there; who waits for it gives up by a deadline.
    pub(super) async fn look(&self) -> Result<Socket, Trouble> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|err| Trouble::Silent(err.to_string()))?;
        let place = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            place.open()
        });
        looked.await.map_err(|err| Trouble::Silent(err.to_string()))?
    }

    fn open(&self) -> Result<Socket, Trouble> {
        // A user's directories may hold links to anything; those on the way to root's sockets are root's.
        let resolve = if self.owner_uid.is_some() { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::NO_MAGICLINKS };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor =
            rustix::fs::openat2(CWD, &self.path, flags, Mode::empty(), resolve).map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR => Trouble::Absent,
                Errno::LOOP => Trouble::Refused("a link leads to its socket".into()),
                errno => Trouble::Silent(errno.to_string()),
            })?;
        let seen = rustix::fs::statx(
            &descriptor,
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
        Ok(Socket { descriptor, is_mounted: seen.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) })
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
    fn a_socket_that_was_made_again_is_found_unless_its_file_is_mounted() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let [real, mounted] = ["real", "mounted"].map(|name| dir.path().join(name));
        let listener = UnixListener::bind(&real).unwrap();
        let own = std::fs::metadata(&real).unwrap().uid();
        std::fs::write(&mounted, "").unwrap();
        // The mount is in a namespace of this thread, and of those that it starts. Only root can.
        let is_root = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).is_ok();
        let none = None::<&Path>;
        if is_root {
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some(&real), &mounted, none, MsFlags::MS_BIND, none).unwrap();
            assert_eq!(connect(&mounted, own), Ok(()));
        }
        drop(listener);
        let refused = "Connection refused (os error 111)";
        assert_eq!(connect(&real, own), Err(Trouble::Silent(refused.into())));
        std::fs::remove_file(&real).unwrap();
        let _again = UnixListener::bind(&real).unwrap();
        assert_eq!(connect(&real, own), Ok(()));
        if is_root {
            assert_eq!(connect(&mounted, own), Err(Trouble::Silent(format!("{refused}{OF_ANOTHER_TIME}"))));
        }
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
