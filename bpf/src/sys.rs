//! System calls that libbpf-rs does not wrap, or wraps with losses.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Entries asked for in one batch call.
const BATCH: usize = 4096;
/// Bytes of the position token of a batch: the kernel's hash map writes a `u32`, other maps up to a key.
const TOKEN_LEN: usize = 64;

/// Removes every entry of a hash map and hands it to `each`, without a copy per entry of the map's size. Returns how
/// many there were.
///
/// libbpf-rs 0.27 ends early on hash maps and hides errors, hence the direct call.
///
/// # Errors
/// What the kernel says, but for the end of the map.
pub(crate) fn drain_map<K, V>(
    map: BorrowedFd<'_>,
    scratch: &mut Scratch<K, V>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<usize>
where
    K: FromBytes + IntoBytes,
    V: FromBytes + IntoBytes,
{
    let mut token = [0u8; TOKEN_LEN];
    let mut first = true;
    let mut total = 0;
    loop {
        let mut count = u32::try_from(scratch.keys.len()).unwrap_or(u32::MAX);
        let position: *mut [u8; TOKEN_LEN] = &mut token;
        // Keys and values have room for `count` entries of the map's key and value size: K and V are the types that the
        // map was created with. The kernel allows the in and out token to be the same memory.
        // SAFETY: all pointers are to live memory of the sizes that the kernel writes, as said above.
        let result = unsafe {
            libbpf_sys::bpf_map_lookup_and_delete_batch(
                map.as_raw_fd(),
                if first { std::ptr::null_mut() } else { position.cast() },
                position.cast(),
                scratch.keys.as_mut_ptr().cast(),
                scratch.values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        let ended = match error.as_ref().and_then(io::Error::raw_os_error) {
            None => false,
            Some(ENOENT) => true,
            // One bucket holds more than the batch: nothing was removed, ask for more.
            Some(ENOSPC) => {
                scratch.grow();
                continue;
            }
            Some(_) => return Err(error.unwrap_or_else(|| io::Error::other("batch"))),
        };
        let got = (count as usize).min(scratch.keys.len());
        for (key, value) in scratch.keys.iter().zip(&scratch.values).take(got) {
            each(key, value);
        }
        total += got;
        first = false;
        if ended {
            return Ok(total);
        }
    }
}

const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;

/// Reused memory for [`drain_map`].
pub(crate) struct Scratch<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: FromZeros, V: FromZeros> Scratch<K, V> {
    pub(crate) fn new() -> Self {
        let mut scratch = Self { keys: Vec::new(), values: Vec::new() };
        scratch.resize(BATCH);
        scratch
    }

    fn resize(&mut self, len: usize) {
        self.keys.resize_with(len, K::new_zeroed);
        self.values.resize_with(len, V::new_zeroed);
    }
}

impl<K: FromBytes, V: FromBytes> Scratch<K, V> {
    fn grow(&mut self) {
        self.resize(self.keys.len() * 2);
    }
}

/// Facts about a loaded program.
pub(crate) struct ProgramFacts {
    pub(crate) id: u32,
    pub(crate) verified_instructions: u32,
    pub(crate) runs: u64,
    pub(crate) run_ns: u64,
    pub(crate) misses: u64,
}

pub(crate) fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = mem::size_of_val(&info) as u32;
    // SAFETY: `info` is a plain struct of `len` bytes that the kernel fills; its pointers are null with zero lengths,
    // so nothing else is written.
    let result = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut len) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(ProgramFacts {
        id: info.id,
        verified_instructions: info.verified_insns,
        runs: info.run_cnt,
        run_ns: info.run_time_ns,
        misses: info.recursion_misses,
    })
}

/// A descriptor that libbpf has just returned, or its error.
pub(crate) fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just returned this descriptor to us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a raw tracepoint program once, on this CPU, with these arguments.
#[cfg(feature = "harness")]
pub(crate) fn run_program(program: BorrowedFd<'_>, arguments: &mut [u8]) -> io::Result<()> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: mem::size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        ctx_in: arguments.as_mut_ptr().cast(),
        ctx_size_in: arguments.len() as u32,
        ..Default::default()
    };
    // SAFETY: `options` and `arguments` live until the call returns; the kernel copies `ctx_size_in` bytes from
    // `ctx_in` and writes to the plain fields of `options` only, since it has no output buffers.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
