//! The first sequence number of each generation of `state/`.
//!
//! First numbers follow the calendar in microseconds. No directory draws a million numbers a second for long, so the
//! numbers of a generation are soon behind the calendar. Each generation begins so far above the last that no number
//! comes twice when the calendar goes back or a row is damaged. Until the year 2255, or for some 3,000 generations, the
//! numbers stay below 2^53, so that they survive in JSON and in a double.

use crate::store::os::boot::since_epoch;

/// How far the sequence leaps after a damaged row. A new generation leaps twice as far.
pub(crate) const LEAP: u64 = 1 << 40;

/// A number above this says that the row, or the layout, is damaged.
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
    since_epoch() / 1_000
}
