//! What the kernel programs cost: the verifier's figures and the kernel's own run-time statistics.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::sys::Stats;
use libbpf_rs::Program;

use crate::sys;

/// A loaded program, without the skeleton's lifetime.
pub struct ProgramHandle {
    name: String,
    fd: OwnedFd,
}

/// Figures of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Name, as `bpftool prog` shows it.
    pub name: String,
    /// The kernel's id of the program.
    pub id: u32,
    /// Instructions that the verifier walked (0 before Linux 5.16).
    pub verified_instructions: u32,
    /// Runs while statistics were enabled.
    pub runs: u64,
    /// Nanoseconds that those runs took.
    pub run_ns: u64,
    /// Events that were not seen because the program was already running on that CPU. Always counted.
    pub misses: u64,
}

impl ProgramHandle {
    pub(crate) fn new(program: &Program<'_>) -> io::Result<Self> {
        Ok(Self { name: program.name().to_string_lossy().into_owned(), fd: program.as_fd().try_clone_to_owned()? })
    }

    /// As in the source.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads the program's figures.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn cost(&self) -> io::Result<ProgramCost> {
        let facts = sys::program_facts(self.fd.as_fd())?;
        Ok(ProgramCost {
            name: self.name.clone(),
            id: facts.id,
            verified_instructions: facts.verified_instructions,
            runs: facts.runs,
            run_ns: facts.run_ns,
            misses: facts.misses,
        })
    }
}

/// While this lives, the kernel counts the runs and the run time of all BPF programs (about 20 ns per run).
pub struct RunTimeStats {
    _fd: OwnedFd,
}

impl RunTimeStats {
    /// Starts counting.
    ///
    /// # Errors
    /// If the kernel refuses (`CAP_SYS_ADMIN` is needed).
    pub fn enable() -> io::Result<Self> {
        let fd = aya::sys::enable_stats(Stats::RunTime).map_err(|err| err.io_error)?;
        Ok(Self { _fd: fd })
    }
}

/// Name and id of every program that is loaded on this host.
///
/// # Errors
/// If the kernel does not tell.
pub fn loaded() -> io::Result<Vec<(String, u32)>> {
    let one = |info: aya::programs::ProgramInfo| (info.name_as_str().unwrap_or_default().to_owned(), info.id());
    // One that is unloaded while we look is not loaded any more.
    Ok(aya::programs::loaded_programs().filter_map(Result::ok).map(one).collect())
}
