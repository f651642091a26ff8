//! The machine's boot id and its clocks.

use std::{fs, io, time::SystemTime};

const NS: i64 = 1_000_000_000;

/// An id that differs from boot to boot.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// How far the clocks of this process are ahead of the machine's, in ns: a container may have a time name space, in which
/// the machine seems to have started earlier or later.
pub(crate) fn boot_time_lead() -> io::Result<i64> {
    let name_space = |name: &str| match fs::read_link(format!("/proc/self/ns/{name}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        link => link.map(Some),
    };
    let Some(own) = name_space("time")? else { return Ok(0) };
    // The offsets that the kernel tells are those of the children.
    if Some(own) != name_space("time_for_children")? {
        return Err(io::Error::other("its children live in another time name space, so its own cannot be told"));
    }
    let offsets = fs::read_to_string("/proc/self/timens_offsets")?;
    lead_in(&offsets).ok_or_else(|| io::Error::other(format!("/proc/self/timens_offsets says {offsets:?}")))
}

fn lead_in(offsets: &str) -> Option<i64> {
    let mut words = offsets.lines().find_map(|line| line.trim_start().strip_prefix("boottime"))?.split_whitespace();
    let (seconds, nanos): (i64, i64) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    seconds.checked_mul(NS)?.checked_add(nanos)
}

/// Time since the machine started, in ns, counting through suspend: the same in every container. `lead` is how far this
/// process is [ahead](boot_time_lead).
pub(crate) fn since_boot(lead: i64) -> u64 {
    u64::try_from(crate::time::boot_time().as_nanos())
        .unwrap_or(u64::MAX / 2)
        .saturating_add_signed(lead.saturating_neg())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offsets_of_a_time_name_space_are_read() {
        let offsets = |text: &str| lead_in(&format!("monotonic           0         0\n{text}"));
        assert_eq!(offsets("boottime            0         0\n"), Some(0));
        assert_eq!(offsets("boottime       100000         5\n"), Some(100_000 * NS + 5));
        assert_eq!(offsets("boottime         -300 999999999\n"), Some(-300 * NS + 999_999_999));
        for nonsense in ["", "boottime", "boottime 1", "boottime x 1", "boottime 99999999999999 0"] {
            assert_eq!(offsets(nonsense), None, "{nonsense}");
        }
    }
}
