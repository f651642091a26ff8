//! A lock's row and its transitions: pure functions, tested with no cache, no clock, no runtime.
//!
//! The row has a *place* for each who holds the lock, and who waits has a row of its own in the line behind it. Whoever
//! makes room offers it to the first in the line, in the same transaction: the offer takes the place until it is accepted or
//! over. So nobody overtakes, and a lock is never renewed for one who did not take it.

pub(super) mod attempt;
mod draft;
pub(super) mod encoding;
#[cfg(test)]
mod tests;
pub(super) mod transition;
