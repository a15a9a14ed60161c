//! sockeye's user-space side. The rooms, in the order in which a record goes through them:
//!
//! 1. [`ingest`]: pinned threads drain the kernel's rings into per-core shards,
//! 2. [`control`]: which the control thread merges
//! 3. [`flows`]: into flows with both ends,
//! 4. [`owners`]: with the processes behind them, and the containers, pods and services around those,
//! 5. [`export`]: for ntopng and the terminal,
//! 6. [`api`]: and for `ctl`,
//! 7. [`metrics`]: and for Prometheus.
//!
//! [`threads`] starts each thread and notices when it ends, [`log`] has the agent's own messages.
//! [`names`] reads what clients call the far end of their connections.
//! [`model`] has the words that all of them use, [`config`] what the operator has written.

pub mod api;
pub mod config;
pub mod control;
pub mod export;
pub mod flows;
#[doc(hidden)]
pub mod fuzzing;
pub mod ingest;
pub mod log;
pub mod metrics;
pub mod model;
pub mod names;
pub mod owners;
pub mod privileges;
pub mod threads;
