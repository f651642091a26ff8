//! Counts of events. Failures are logged as well, each kind at most once a second.

use crate::log_limit::LogLimit;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An event that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Event {
    Hit,
    HitInMemory,
    Miss,
    Followed,
    Refreshed,
    Stale,
    Bridged,
    Stored,
    NotStored,
    Admitted,
    NearLimit,
    WaitBegan,
    WaitEnded,
    Waited,
    Throttled,
    Shadowed,
    Denied,
    Locked,
    Busy,
    ThrottleFailed,
    BarrierFailed,
    CacheFailed,
    LeaseLost,
}

/// `LeaseLost` stays the last kind: this is counted by it.
const KINDS: usize = Event::LeaseLost as usize + 1;

#[derive(Debug, Default)]
pub(crate) struct Events {
    counts: [AtomicU64; KINDS],
    logged: [LogLimit; KINDS],
}

impl Events {
    pub(crate) fn note(&self, event: Event, scope: &str) {
        self.counts[event as usize].fetch_add(1, Relaxed);
        let what = match event {
            Event::ThrottleFailed => "the cache could not be used: a throttle went by its failure rule",
            Event::BarrierFailed => "the cache could not be used: a barrier went by its failure rule",
            Event::CacheFailed => "the cache could not be used: a stampede cache called its service",
            Event::LeaseLost => "a lock was lost: its lease ended while it was held",
            _ => return,
        };
        if self.logged[event as usize].allows() {
            tracing::warn!(scope, count = self.count(event), what);
        }
    }

    pub(crate) fn count(&self, event: Event) -> u64 {
        self.counts[event as usize].load(Relaxed)
    }
}
