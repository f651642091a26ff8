//! What tests on tokio's paused time share.
#![allow(dead_code)] // each file uses a part of it

use std::time::Duration;
use tower_floodgate::{Cache, time::Steady};

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A cache of its own for each test, on the test's virtual time.
pub(crate) fn cache() -> Cache {
    Cache::builder_temporary().state_size(1 << 20).clock(Steady::new()).open().unwrap()
}
