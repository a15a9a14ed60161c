//! sockeye's user-space side. The data path, in the order in which data flows:
//!
//! 1. [`worker`]: pinned threads drain the kernel's rings,
//! 2. [`shard`]: into per-worker deltas,
//! 3. [`control`]: which the control thread merges,
//! 4. [`table`]: into flows with both ends,
//! 5. [`process`], [`place`], [`enrich`]: with the processes behind them, and the containers around those,
//! 6. [`export`]: and tells ntopng, the terminal, and `ctl` through [`serve`].

pub mod answers;
pub mod clock;
pub mod config;
pub mod control;
pub mod drain;
pub mod engines;
pub mod enrich;
pub mod export;
pub mod flow;
pub mod groups;
pub mod newest;
pub mod package;
pub mod place;
pub mod process;
pub mod serve;
pub mod shard;
pub mod table;
pub mod users;
pub mod worker;
