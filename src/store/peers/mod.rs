//! Other processes of the directory: which of them live, how one wakes who waits in another, and what this one holds.

pub(crate) mod holdings;
pub(crate) mod instances;
pub(crate) mod listener;
pub(crate) mod wake_ups;
