//! Records of the kernel into per-core shards: pinned workers drain the rings, one more thread the UDP table.

pub mod latest;
pub mod messages;
pub mod shard;
pub mod udp;
pub mod worker;
