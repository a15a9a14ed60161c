//! Programs that only the load harness loads.
//!
//! * [`empty`] attaches hooks that do nothing.
//! * [`saturate`] fills the rings without sockets, and [`readers`] has other readers for them.

pub mod empty;
pub mod readers;
pub mod saturate;

use crate::skeleton;

skeleton!(saturate_skel, "saturate.skel.rs");
skeleton!(empty_skel, "empty.skel.rs");
