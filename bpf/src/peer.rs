//! Who is at the other end of a Unix socket: what the standard library and our other crates do not tell.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most groups that a process may have (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;
/// So many fit at the first attempt.
const GROUPS_FEW: usize = 64;

/// The supplementary groups that the peer had when it connected (SO_PEERGROUPS, Linux 4.13).
///
/// # Errors
/// If it is no connected Unix socket.
pub fn groups_of_peer(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_FEW];
    loop {
        let size = mem::size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
        // SAFETY: `groups` is live memory of `length` bytes, and any bytes are valid numbers.
        let result = unsafe {
            let value = groups.as_mut_ptr().cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, value, &raw mut length)
        };
        if result == 0 {
            groups.truncate(length as usize / size_of::<u32>());
            return Ok(groups);
        }
        let err = io::Error::last_os_error();
        // The kernel has told how many there are.
        if err.raw_os_error() != Some(libc::ERANGE) || groups.len() >= GROUPS_MAX {
            return Err(err);
        }
        groups.resize((length as usize / size_of::<u32>()).clamp(groups.len() + 1, GROUPS_MAX), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_peer_that_is_this_process_has_its_groups() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut groups: Vec<u32> = rustix::process::getgroups().unwrap().iter().map(|gid| gid.as_raw()).collect();
        let mut told = groups_of_peer(one.as_fd()).unwrap();
        groups.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, groups);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(groups_of_peer(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
    }
}
