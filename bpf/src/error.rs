//! What the kernel may refuse.

use std::io;

use thiserror::Error;

/// Why the kernel side cannot start.
#[derive(Debug, Error)]
pub enum KernelError {
    /// libbpf or the verifier refused.
    #[error("{what}")]
    Bpf {
        /// What was being done.
        what: &'static str,
        /// What libbpf says.
        source: libbpf_rs::Error,
    },
    /// A ring could not be mapped.
    #[error("cannot map the ring buffer of CPU {cpu}")]
    Ring {
        /// Its CPU.
        cpu: usize,
        /// The system's error.
        source: io::Error,
    },
    /// The cgroup directory could not be opened, or an iterator not be read.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

pub(crate) fn bpf(what: &'static str) -> impl FnOnce(libbpf_rs::Error) -> KernelError {
    move |source| KernelError::Bpf { what, source }
}
