//! A limit for log lines, which a flood of requests must not repeat.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Allows one log line a second.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(AtomicU64);

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether to write the line now: true for one caller a second at most.
    pub(crate) fn allows(&self) -> bool {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.allows_at(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn allows_at(&self, millis: u64) -> bool {
        let next = self.0.load(Ordering::Relaxed);
        millis >= next
            && self.0.compare_exchange(next, millis.saturating_add(1000), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
