//! How a lock is acquired: what its users choose.

use super::owner::Owner;
use std::{ops::RangeInclusive, time::Duration};

/// How long a lock is held at most once its process hangs, unless said otherwise.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// How a lock is acquired, whatever its rule and name.
#[derive(Clone, Debug)]
pub(crate) struct LockOptions {
    pub(crate) owner: Option<Owner>,
    pub(crate) lease: Duration,
    pub(crate) at_least: Duration,
    pub(crate) tag: u64,
    /// [`Duration::MAX`]: for ever.
    pub(crate) patience: Duration,
    pub(crate) queue_at_most: u32,
    /// Does not join a line that is expected to take longer.
    pub(crate) deadline: Duration,
}

impl LockOptions {
    pub(crate) fn new() -> LockOptions {
        LockOptions {
            owner: None,
            lease: LEASE,
            at_least: Duration::ZERO,
            tag: 0,
            patience: Duration::MAX,
            queue_at_most: u32::MAX,
            deadline: Duration::MAX,
        }
    }
}

const LEASES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(366 * 86_400);

/// A lease that comes with a request must not make it panic.
pub(crate) fn clamp_lease(lease: Duration) -> Duration {
    lease.clamp(*LEASES.start(), *LEASES.end())
}

#[track_caller]
pub(crate) fn check_lease(lease: Duration) -> Duration {
    assert!(LEASES.contains(&lease), "a lease is 10 ms to a year, not {lease:?}");
    lease
}
