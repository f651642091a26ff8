//! Other processes of the directory: which of them live, how one wakes a waiter in another, and what this process
//! holds.

pub(crate) mod holdings;
pub(crate) mod instances;
pub(crate) mod listener;
pub(crate) mod wake_ups;
