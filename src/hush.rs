//! Log lines that a flood of requests must not repeat.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Lets one log line through a second.
#[derive(Debug, Default)]
pub(crate) struct Hush(AtomicU64);

impl Hush {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether the line is due, which at most one caller a second is told.
    pub(crate) fn due(&self) -> bool {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.due_at(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn due_at(&self, millis: u64) -> bool {
        let next = self.0.load(Ordering::Relaxed);
        millis >= next
            && self.0.compare_exchange(next, millis.saturating_add(1000), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
