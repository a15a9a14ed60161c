//! Who pays for the state of sockets.
//!
//! The kernel charges what a map allocates to the memory cgroup of the process that created it, on every allocation
//! (kernel/bpf/syscall.c, `bpf_map_save_memcg`, `bpf_map_kmalloc_node`), while the socket itself is charged to its
//! application's. Each CPU keeps a small stock of paid memory for one cgroup only, so the two take it from each other
//! at every connection. Where the creator is in the root cgroup, nothing is charged.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{ptr, slice};

use libbpf_rs::{AsRawLibbpf as _, OpenMapMut, OpenObject, libbpf_sys};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::preflight::mounts;
use crate::sys::own;

/// Creates a map of an object that is not loaded yet, as it is declared there, in the root of the memory cgroups, for
/// `reuse_fd()`. A child does it: whoever manages this process's own cgroup sees nothing of it.
///
/// # Errors
/// If there is no hierarchy with the memory controller, or its root takes no process of ours.
pub(crate) fn create_uncharged(object: &OpenObject, map: &OpenMapMut<'_>) -> io::Result<OwnedFd> {
    let memory = memory_cgroups_in(&fs::read_to_string("/proc/self/mounts")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no hierarchy of memory cgroups is mounted"))?;
    if !is_root_of_host(&memory) {
        return Err(io::Error::other(format!("{} is not the root of the host's", memory.display())));
    }
    let path = memory.join("cgroup.procs");
    let named = |err: io::Error| io::Error::new(err.kind(), format!("{}: {err}", path.display()));
    let members = File::options().write(true).open(&path).map_err(named)?;
    let types = load_types(object)?;
    let map = Declared::of(map);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut child = Command::new("/");
    // SAFETY: the child of a process with threads may only make system calls until it is gone: it makes four, by
    // functions that allocate nothing and take no lock.
    unsafe {
        child.pre_exec(move || {
            rustix::io::write(&members, b"0")?;
            send(&theirs, map.create(types.as_fd())?.as_fd())?;
            // Nothing is to be executed.
            Err(Errno::CANCELED.into())
        });
    }
    match child.spawn() {
        Err(ended) if ended.raw_os_error() == Some(Errno::CANCELED.raw_os_error()) => receive(&ours),
        Err(failed) => Err(named(failed)),
        Ok(_) => Err(io::Error::other("a directory was executed")),
    }
}

/// The root of the hierarchy with the memory controller, in `/proc/self/mounts` format: its own of cgroup v1, or v2.
fn memory_cgroups_in(text: &str) -> Option<PathBuf> {
    let v1 = mounts(text).find(|m| m.kind == "cgroup" && m.options.split(',').any(|option| option == "memory"));
    v1.or_else(|| mounts(text).find(|m| m.kind == "cgroup2")).map(|mount| mount.path())
}

/// In a cgroup namespace the root of a mount may be any cgroup. That of the host has a file of its own in v1, and lacks one
/// in v2 (kernel/cgroup/cgroup-v1.c and cgroup.c, `CFTYPE_ONLY_ON_ROOT` and `CFTYPE_NOT_ON_ROOT`).
fn is_root_of_host(dir: &Path) -> bool {
    let is_v2 = dir.join("cgroup.controllers").exists();
    if is_v2 { !dir.join("cgroup.type").exists() } else { dir.join("release_agent").exists() }
}

/// Gives an object's types to the kernel, as libbpf does for itself when it loads the object.
fn load_types(object: &OpenObject) -> io::Result<OwnedFd> {
    let mut bytes = 0;
    // SAFETY: the object is open and stays so during the call, and libbpf owns its types, which are not changed.
    let types = unsafe {
        let data =
            libbpf_sys::btf__raw_data(libbpf_sys::bpf_object__btf(object.as_libbpf_object().as_ptr()), &mut bytes);
        if data.is_null() {
            return Err(io::Error::last_os_error());
        }
        slice::from_raw_parts(data.cast::<u8>(), bytes as usize)
    };
    // SAFETY: the pointer and the length are of the slice; there are no options.
    let fd = unsafe { libbpf_sys::bpf_btf_load(types.as_ptr().cast(), types.len() as _, ptr::null_mut()) };
    own(fd)
}

/// What a map is created with.
#[derive(Clone, Copy)]
struct Declared {
    kind: u32,
    /// Of the kernel's length, the ending zero included (`BPF_OBJ_NAME_LEN`).
    name: [u8; 16],
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    key_type: u32,
    value_type: u32,
}

impl Declared {
    fn of(map: &OpenMapMut<'_>) -> Self {
        let raw = map.as_libbpf_object().as_ptr();
        let mut name = [0; 16];
        // SAFETY: the map's object is open; libbpf only reads it, and its names end with a zero.
        unsafe {
            let given = CStr::from_ptr(libbpf_sys::bpf_map__name(raw)).to_bytes();
            let len = given.len().min(name.len() - 1);
            name[..len].copy_from_slice(&given[..len]);
            Self {
                kind: libbpf_sys::bpf_map__type(raw),
                name,
                key_bytes: libbpf_sys::bpf_map__key_size(raw),
                value_bytes: libbpf_sys::bpf_map__value_size(raw),
                entries: libbpf_sys::bpf_map__max_entries(raw),
                flags: libbpf_sys::bpf_map__map_flags(raw),
                key_type: libbpf_sys::bpf_map__btf_key_type_id(raw),
                value_type: libbpf_sys::bpf_map__btf_value_type_id(raw),
            }
        }
    }

    fn create(&self, types: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: mem::size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            btf_fd: types.as_raw_fd() as u32,
            btf_key_type_id: self.key_type,
            btf_value_type_id: self.value_type,
            map_flags: self.flags,
            ..Default::default()
        };
        let name = self.name.as_ptr().cast();
        // SAFETY: the name ends with a zero, and the options live until the call returns.
        own(unsafe {
            libbpf_sys::bpf_map_create(self.kind, name, self.key_bytes, self.value_bytes, self.entries, &options)
        })
    }
}

fn send(to: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let (mut ancillary, fds) = (SendAncillaryBuffer::new(&mut space), [fd]);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(to, &[IoSlice::new(b"m")], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let (mut ancillary, mut byte) = (RecvAncillaryBuffer::new(&mut space), [0]);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.next().ok_or_else(|| io::Error::other("a message without a descriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_memory_controller_on_unified_and_hybrid_hosts() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(memory_cgroups_in(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        let hybrid = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n";
        assert_eq!(memory_cgroups_in(hybrid), Some(PathBuf::from("/sys/fs/cgroup/memory")));
        assert_eq!(memory_cgroups_in("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }
}
