//! The first sequence number of each generation of `state/`.
//!
//! First numbers follow the calendar in microseconds. Nobody draws a million a second for long, so what a generation has
//! drawn is behind the calendar soon, and each generation begins so far above the last that a calendar that goes back, or
//! a damaged row, takes no number with it. They stay below 2^53, so that they survive in JSON and in a double, until the
//! year 2255, or for some 3,000 generations.

use std::time::SystemTime;

/// How far a damaged row is left behind, and half as far as a generation is.
pub(crate) const LEAP: u64 = 1 << 40;

/// Numbers above say that the row, or the layout, is damaged.
pub(crate) const MOST: u64 = 1 << 62;

/// The first number of a generation, `last` being that of the one before and `now` the calendar in microseconds.
pub(crate) fn after(last: Option<u64>, now: u64) -> u64 {
    match last {
        Some(last) => last.max(now).saturating_add(2 * LEAP),
        None => now,
    }
    .clamp(1, MOST)
}

/// Microseconds since 1970.
pub(crate) fn calendar() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(MOST)
}
