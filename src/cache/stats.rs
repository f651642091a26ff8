//! Statistics of a cache: events, how full it is, and the holders of its locks.

use super::cache::Cache;
use crate::store::{Event, Events, QueueTimes};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};

/// Counts of events in the handles of this process since it opened the cache, and how full the cache is now.
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
    /// Waiters for which there was no room among the waiters that other processes see. They wait all the same; if their
    /// process dies, their reservations stay unused.
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
    /// Requests that got an answer that had ended, since their computation failed or took too long.
    pub bridged: u64,
    /// Answers stored.
    pub stored: u64,
    /// Answers that were not stored: they must not be, or too many bytes were queued to be written already.
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
    /// Locks whose lease ended while they were held.
    pub leases_lost: u64,
    /// Waiters in this process now, for a lock or for an answer that another process computes.
    pub lock_waiters: u64,
    /// How long the longest of these waits has lasted.
    pub longest_wait: Duration,
    /// Writes to throttle cells and locks that had to wait for others.
    pub queued_decisions: QueueStats,
    /// Writes of stored answers and values, which go through a queue always.
    pub queued_answers: QueueStats,
    /// The locks that are held or waited for in any process: at most 100, and none where another process is writing
    /// just now. See [`Cache::lock_stats`](crate::Cache::lock_stats) for all.
    pub locks: Vec<LockStats>,
}

/// How long writes of this process have waited in a queue, and how long they kept others from writing.
///
/// A write waits while another thread or process writes. What has been queued meanwhile is then written in batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// Writes that were queued, up to the last batch.
    pub writes: u64,
    /// The sum of the times that they waited until their batch began.
    pub waited: Duration,
    /// The longest time that one of them waited.
    pub longest_wait: Duration,
    /// Batches of them.
    pub batches: u64,
    /// The sum of the times that the batches took. Nobody else writes meanwhile.
    pub writing: Duration,
    /// The longest time that one batch took.
    pub longest_batch: Duration,
}

/// A lock, with its holders and its waiters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockStats {
    /// The scope of the lock, its first 64 bytes.
    pub scope: String,
    /// The name of the lock, its first 256 bytes. Bytes that are no UTF-8 are shown as replacement characters.
    pub name: String,
    /// The number of its holders.
    pub holding: u64,
    /// Its holders, in any order: the latest, which stand in the lock's row, and at most 16 of the others.
    /// [`holding`](LockStats::holding) counts all.
    pub holders: Vec<HolderStats>,
    /// The number of its waiters.
    pub waiting: u64,
    /// The waiters that have waited longest, in the order in which they will be served: at most 16.
    pub waiters: Vec<WaiterStats>,
    /// For how long it was held on average of late; zero if that is not known.
    pub held_for: Duration,
}

/// A holder of a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HolderStats {
    /// Its fencing token. For a waiter that the lock is [offered](HolderStats::offered) to, the number of its place in
    /// the line.
    pub fence: u64,
    /// The id of its process, as that process knows it: in another container, another process may have the same id. It
    /// is not known of a process that has died, and of a released lock that
    /// [`at_least`](crate::lock::Acquire::at_least) keeps.
    pub process: Option<u32>,
    /// For how long it has held the lock.
    pub held: Duration,
    /// After how long it loses the lock, unless it renews its lease.
    pub lease_left: Duration,
    /// How often it has entered and not yet left.
    pub entered: u32,
    /// How much of the lock's capacity it takes.
    pub weight: u32,
    /// It was woken to take the lock, and has not taken it yet.
    pub offered: bool,
}

/// A waiter for a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaiterStats {
    /// The id of its process, see [`HolderStats::process`].
    pub process: Option<u32>,
    /// For how long it has waited.
    pub waited: Duration,
    /// How much of the lock's capacity it asks for.
    pub weight: u32,
}

impl From<QueueTimes> for QueueStats {
    fn from(times: QueueTimes) -> QueueStats {
        QueueStats {
            writes: times.queued,
            waited: times.queued_for,
            longest_wait: times.longest_queued,
            batches: times.batches,
            writing: times.at_gate,
            longest_batch: times.longest_at_gate,
        }
    }
}

impl Stats {
    fn of(events: &Events) -> Stats {
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

impl Cache {
    /// The statistics of this process without the locks.
    pub(crate) fn counts(&self) -> Stats {
        let shared = &self.handle().shared;
        let mut stats = Stats::of(&shared.events);
        stats.cells_evicted = shared.state.local.room.evicted.load(Relaxed);
        stats.damaged = shared.state.local.damaged.load(Relaxed);
        stats.waiters_left_out = shared.state.local.room.left_out.load(Relaxed);
        let waiting_counts = shared.wake_ups.waiting_counts();
        stats.lock_waiters = waiting_counts.waiting as u64;
        stats.longest_wait = waiting_counts.longest.unwrap_or_default();
        stats.queued_decisions = shared.state.queue.times().into();
        let mut answers = QueueTimes::default();
        for shard in &shared.entries {
            answers.add(&shard.queue.times());
            let (entries, bytes) = shard.size().unwrap_or_default();
            stats.entries += entries;
            stats.entry_bytes += bytes;
            stats.entries_evicted += shard.counts.evicted.load(Relaxed);
            stats.damaged += shard.counts.damaged.load(Relaxed);
        }
        stats.queued_answers = answers.into();
        stats
    }
}
