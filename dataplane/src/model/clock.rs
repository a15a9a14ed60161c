//! Clocks: records carry `CLOCK_BOOTTIME`, people want wall time, and work is counted in CPU time. Read here, passed as
//! parameters everywhere else.

use rustix::time::{ClockId, clock_gettime};

const NS_PER_S: u64 = 1_000_000_000;

fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * NS_PER_S + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Nanoseconds since boot, suspended time included: the clock of the kernel's records.
#[must_use]
pub fn boot_ns() -> u64 {
    read_ns(ClockId::Boottime)
}

/// Nanoseconds since the epoch.
#[must_use]
pub fn unix_ns() -> u64 {
    read_ns(ClockId::Realtime)
}

/// Nanoseconds of CPU that the calling thread has used.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    read_ns(ClockId::ThreadCPUTime)
}

/// Nanoseconds of a time that /proc tells in ticks of the kernel.
#[must_use]
pub fn ticks_ns(ticks: u64) -> u64 {
    ticks * (NS_PER_S / procfs::ticks_per_second())
}

/// Turns the time of a record into wall time.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    boot_unix_ns: u64,
}

impl WallClock {
    /// Reads both clocks. Read again from time to time: wall time is stepped by administrators and NTP.
    #[must_use]
    pub fn now() -> Self {
        Self { boot_unix_ns: unix_ns().saturating_sub(boot_ns()) }
    }

    /// A clock with a given epoch, for tests.
    #[must_use]
    pub fn with_boot_at(boot_unix_ns: u64) -> Self {
        Self { boot_unix_ns }
    }

    /// Wall time of a moment since boot, both in nanoseconds.
    #[must_use]
    pub fn unix_ns(&self, boot_ns: u64) -> u64 {
        self.boot_unix_ns + boot_ns
    }
}
