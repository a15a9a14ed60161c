//! Everything of sockeye that knows about BPF. The rest of the code sees the types of [`records`] only.
//!
//! * [`kernel`] loads and attaches the programs of `src/bpf/`, seeds older sockets, and owns the maps.
//! * [`ring`] drains one CPU's ring buffer, without callbacks or copies.
//! * [`scan`] reads all tracked sockets and drains the UDP table.
//! * [`preflight`] says what the host lacks before anything is loaded.
//! * [`programs`] says what the programs cost.
//! * [`peer`] has no BPF, but is unsafe as well: who is at the other end of a Unix socket.
//! * `harness`, behind the feature of that name, has programs that only the load harness loads.

mod charge;
pub mod cpus;
pub mod error;
pub mod filter;
#[cfg(feature = "harness")]
pub mod harness;
pub mod kernel;
pub mod peer;
pub mod preflight;
pub mod programs;
pub mod records;
pub mod ring;
pub mod scan;
mod sys;

/// What libbpf-cargo has generated of an object.
macro_rules! skeleton {
    ($module:ident, $file:literal) => {
        mod $module {
            #![allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)]
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}
#[cfg(feature = "harness")]
pub(crate) use skeleton;

skeleton!(skel, "main.skel.rs");

/// The compiled object, for tests of its layout and for inspection.
#[must_use]
pub fn object_bytes() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/main.o"))
}
