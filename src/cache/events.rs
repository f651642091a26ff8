//! What happened, counted; what went wrong, logged as well, once a second at most a kind.

use crate::log_limit::LogLimit;
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Something worth counting.
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

/// What has happened through the handles of this process since it opened the cache, and how full the cache is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Stored answers, of all processes.
    pub entries: u64,
    /// Bytes that they take.
    pub entry_bytes: u64,
    /// Answers that were dropped before their time, for room.
    pub entries_evicted: u64,
    /// Throttle cells that were dropped before they were full again, for room.
    pub cells_evicted: u64,
    /// Waiters for whom there was no room among those whom other processes see. They wait all the same; should their
    /// process die, what was reserved for them stays unused.
    pub waiters_left_out: u64,
    /// Records that did not decode and were treated as absent.
    pub damaged: u64,
    /// Requests answered from the stampede cache.
    pub hits: u64,
    /// Of those, the ones that needed no look into the files.
    pub hits_in_memory: u64,
    /// Requests that led a computation.
    pub misses: u64,
    /// Requests that waited for another's computation and were answered by it.
    pub followed: u64,
    /// Refreshes begun: of answers that were about to end, or had ended.
    pub refreshed: u64,
    /// Of the hits, those whose answer had ended and was being refreshed, or could not be.
    pub stale: u64,
    /// Requests that were answered by an answer that had ended, since their computation failed or took too long.
    pub bridged: u64,
    /// Answers stored.
    pub stored: u64,
    /// Answers that were not to be stored.
    pub not_stored: u64,
    /// Requests that a throttle let pass, at once or after waiting; also without a layer.
    pub admitted: u64,
    /// Of those, the ones that left at most a fifth of their scarcest limit.
    pub near_limit: u64,
    /// Of the admitted ones, those that waited for their turn.
    pub waited: u64,
    /// Requests that wait for a throttle's turn now.
    pub waiting: u64,
    /// Requests that were over a throttle's limit, the [shadowed](Stats::shadowed) ones included.
    pub throttled: u64,
    /// Requests that a throttle in [shadow](crate::ThrottleLayer::shadow) would have refused, and let pass.
    pub shadowed: u64,
    /// Requests that were on a throttle's list of the [denied](crate::ThrottleLayer::deny).
    pub denied: u64,
    /// Locks acquired.
    pub locked: u64,
    /// Requests that a barrier refused since the lock was not free in time, or too many waited for it.
    pub busy: u64,
    /// Times a layer could not use the cache and went by its failure rule.
    pub failures: u64,
    /// Locks that ended their lease while they were held.
    pub leases_lost: u64,
    /// Who waits in this process now for a lock, or for what another process computes.
    pub lock_waiters: u64,
    /// How long the one of them has waited who has waited longest.
    pub longest_wait: Duration,
    /// The locks that are held or waited for in any process: at most 100, and none where another process is writing just
    /// now. See [`Cache::lock_stats`](crate::Cache::lock_stats) for all.
    pub locks: Vec<LockStats>,
}

/// Who holds a lock since when, and who waits for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockStats {
    /// The scope of the lock, its first 64 bytes.
    pub scope: String,
    /// The name of the lock, its first 256 bytes. What is no UTF-8 is shown with replacement characters.
    pub name: String,
    /// Who holds it, in any order.
    pub holders: Vec<HolderStats>,
    /// How many wait for it.
    pub waiting: u64,
    /// Those who have waited longest, in the order in which they will be served: at most 16.
    pub waiters: Vec<WaiterStats>,
    /// For how long it was held on average of late; zero if that is not known.
    pub held_for: Duration,
}

/// One who holds a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HolderStats {
    /// Its fencing token; the number of its place in the line for one that the lock is [offered](HolderStats::offered) to.
    pub fence: u64,
    /// The process that it is in, as that knows itself: in another container it may be another's number. Not known of a
    /// process that has died, and of [`at_least`](crate::lock::Acquire::at_least) when the lock was released.
    pub process: Option<u32>,
    /// For how long it has held the lock.
    pub held: Duration,
    /// When it loses the lock unless it renews its lease.
    pub lease_left: Duration,
    /// How often it has entered and not yet left.
    pub entered: u32,
    /// How much of the lock's capacity it takes.
    pub weight: u32,
    /// It was called to take the lock, and has not yet.
    pub offered: bool,
}

/// One who waits for a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaiterStats {
    /// The process that it is in, see [`HolderStats::process`].
    pub process: Option<u32>,
    /// For how long it has waited.
    pub waited: Duration,
    /// How much of the lock's capacity it asks for.
    pub weight: u32,
}

impl Stats {
    pub(crate) fn of(events: &Events) -> Stats {
        let count = |event| events.count(event);
        Stats {
            hits: count(Event::Hit),
            hits_in_memory: count(Event::HitInMemory),
            misses: count(Event::Miss),
            followed: count(Event::Followed),
            refreshed: count(Event::Refreshed),
            stale: count(Event::Stale),
            bridged: count(Event::Bridged),
            stored: count(Event::Stored),
            not_stored: count(Event::NotStored),
            admitted: count(Event::Admitted),
            near_limit: count(Event::NearLimit),
            waited: count(Event::Waited),
            waiting: count(Event::WaitBegan).saturating_sub(count(Event::WaitEnded)),
            throttled: count(Event::Throttled),
            shadowed: count(Event::Shadowed),
            denied: count(Event::Denied),
            locked: count(Event::Locked),
            busy: count(Event::Busy),
            failures: count(Event::ThrottleFailed) + count(Event::BarrierFailed) + count(Event::CacheFailed),
            leases_lost: count(Event::LeaseLost),
            ..Stats::default()
        }
    }
}
