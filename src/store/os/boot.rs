//! Which boot of the machine this is, and what time it is by its clocks.

use std::{fs, io, time::SystemTime};

/// Differs from boot to boot.
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
    crate::time::nanos(std::time::Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}
