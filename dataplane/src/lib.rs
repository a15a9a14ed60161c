//! sockeye's user-space side. The data path, in the order in which data flows:
//!
//! 1. [`worker`]: pinned threads drain the kernel's rings,
//! 2. [`shard`]: into per-worker deltas,
//! 3. [`control`]: which the control thread merges,
//! 4. [`table`]: into flows with both ends,
//! 5. [`process`] and [`enrich`]: with the processes behind them,
//! 6. [`export`]: and tells ntopng, the terminal, and `ctl` through [`serve`].

pub mod answers;
pub mod clock;
pub mod control;
pub mod enrich;
pub mod export;
pub mod flow;
pub mod process;
pub mod serve;
pub mod shard;
pub mod table;
pub mod worker;
