//! A lock's row and its transitions: pure functions, tested with no cache, no clock, no runtime.
//!
//! Each holder of the lock has a *place*. The latest few stand in the row; where there are more, each of the others has a
//! row of its own and the lock's row their sum, so that a permit costs the same beside thousands. Each waiter has a row
//! of its own in the line behind it. A transition that makes room offers it to the first waiter, in the same transaction.
//! The offer takes the place until it is accepted or over. So no waiter overtakes another, and no lease is renewed for a
//! waiter that did not take the lock.

pub(super) mod attempt;
mod draft;
pub(super) mod encoding;
mod places;
#[cfg(test)]
mod tests;
pub(super) mod transition;
