//! Exit codes of all programs, those of sysexits(3) where it has one.

/// The agent refused a request.
pub const REFUSED: u8 = 1;
/// `sockeye check`: everything that is needed is there, and something is less than it could be.
pub const DEGRADED: u8 = 1;
/// A wrong command line.
pub const USAGE: u8 = 64;
/// Something that is needed is not there: an agent, a feature of the kernel, a port.
pub const UNAVAILABLE: u8 = 69;
/// A fault of the program itself.
pub const INTERNAL: u8 = 70;
/// A connection broke.
pub const IO: u8 = 74;
/// Agent and client do not understand each other.
pub const PROTOCOL: u8 = 76;
/// Capabilities or permissions are missing.
pub const NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub const CONFIG: u8 = 78;
