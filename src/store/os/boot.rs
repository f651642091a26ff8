//! The machine's boot id and its clocks.

use std::{fs, io, time::SystemTime};

/// An id that differs from boot to boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Time since the machine started, in ns, counting through suspend.
pub(crate) fn since_boot() -> u64 {
    u64::try_from(crate::time::boot_time().as_nanos()).unwrap_or(u64::MAX / 2)
}

/// The calendar, in ns since 1970.
pub(crate) fn since_epoch() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// A clock that is read in some nanoseconds and moves every few milliseconds, in ns.
pub(crate) fn coarse_time() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}
