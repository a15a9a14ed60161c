//! Everything of sockeye that knows about BPF. The rest of the code sees the types of [`records`] only.
//!
//! * [`kernel`] loads and attaches the programs of `src/bpf/`, seeds older sockets, and owns the maps.
//! * [`ring`] drains one CPU's ring buffer, without callbacks or copies.
//! * [`sweep`] reads all tracked sockets and drains the UDP table.
//! * [`preflight`] says what the host lacks before anything is loaded.
//! * [`programs`] says what the programs cost.
//! * [`empty`] attaches hooks that do nothing, for the load harness.
//! * [`saturate`] fills the rings without sockets, for the load harness.

mod charge;
pub mod empty;
pub mod kernel;
pub mod preflight;
pub mod programs;
pub mod records;
pub mod ring;
pub mod saturate;
pub mod sweep;
mod sys;
pub mod xpub;

/// What libbpf-cargo has generated of an object.
macro_rules! skeleton {
    ($module:ident, $file:literal) => {
        mod $module {
            #![allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)]
            include!(concat!(env!("OUT_DIR"), "/", $file));
        }
    };
}
skeleton!(skel, "main.skel.rs");
skeleton!(saturate_skel, "saturate.skel.rs");
skeleton!(empty_skel, "empty.skel.rs");

/// The compiled object, for tests of its layout and for inspection.
#[must_use]
pub fn object_bytes() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/main.o"))
}
