//! The holders and waiters of locks.

use super::row::encoding::{self, LockRow, Place, Standing, Ticket};
use crate::{
    cache::{Cache, HolderStats, LockStats, Scope, Stats, WaiterStats},
    error::Error,
    store::{Found, Listed, Pending, block_on},
};
use std::{collections::HashMap, time::Duration};

/// How many waiters of each lock are listed, and how many of the holders that do not stand in its row.
const LISTED: usize = 16;

/// The answer and whether there is more behind it.
type Page = (Vec<Shown>, Option<[u8; 16]>);

/// A lock, and the instances of its holders and waiters.
struct Shown {
    stats: LockStats,
    holders: Vec<u64>,
    waiters: Vec<u64>,
}

impl Scope {
    /// The holders and waiters of each lock of this scope, in all processes, and since when. Locks that are free do not
    /// appear. Where the cache has more than 100 locks, the list is not of one moment.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn lock_stats(&self) -> Result<Vec<LockStats>, Error> {
        self.all_locks(true).await
    }

    async fn all_locks(&self, only_own: bool) -> Result<Vec<LockStats>, Error> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (locks, last) = self.page_of_locks(after, only_own).await?;
            all.extend(self.with_processes(locks));
            after = last;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    fn page_of_locks(&self, after: Option<[u8; 16]>, only_own: bool) -> Pending<Result<Page, Error>> {
        let (now, scope) = (self.handle().now(), self.clone());
        self.list_locks(after, LISTED, move |listed| {
            if only_own && !scope.has_key(listed.key) {
                return None;
            }
            Shown::of(listed, now)
        })
    }

    fn with_processes(&self, locks: Vec<Shown>) -> Vec<LockStats> {
        let mut known = HashMap::new();
        let mut process_of = |instance| *known.entry(instance).or_insert_with(|| self.process(instance));
        let stats = locks.into_iter().map(|Shown { mut stats, holders, waiters }| {
            for (holder, instance) in stats.holders.iter_mut().zip(holders) {
                holder.process = process_of(instance);
            }
            for (waiter, instance) in stats.waiters.iter_mut().zip(waiters) {
                waiter.process = process_of(instance);
            }
            stats
        });
        stats.filter(|stats| stats.waiting > 0 || stats.holding > 0).collect()
    }
}

impl Cache {
    /// What has happened in this process, how full the cache is, and the holders and waiters of locks.
    pub fn stats(&self) -> Stats {
        let mut stats = self.counts();
        if let Some(Ok((locks, _))) = self.root().page_of_locks(None, false).now() {
            stats.locks = self.root().with_processes(locks);
        }
        stats
    }

    /// The holders and waiters of each lock, in all processes and scopes, and since when. Locks that are free do not
    /// appear. Where there are more than 100 locks, the list is not of one moment.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn lock_stats(&self) -> Result<Vec<LockStats>, Error> {
        self.root().all_locks(false).await
    }

    /// As [`lock_stats`](Cache::lock_stats), for plain threads.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn lock_stats_blocking(&self) -> Result<Vec<LockStats>, Error> {
        block_on(self.lock_stats())
    }
}

impl Shown {
    fn of(listed: Listed<'_>, now: u64) -> Option<Shown> {
        let row = listed.row?;
        let lock = LockRow::read(Found::Row(row))?;
        if encoding::label(row.payload).is_empty() {
            return None;
        }
        let (scope, name) = encoding::names(row.payload);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let since = |then: u64| Duration::from_nanos(now.saturating_sub(then));
        let (count, rows) = (lock.count(), listed.holders.iter().filter_map(Place::of_row));
        let listed_places: Vec<Place> = lock.places.into_iter().chain(rows).collect();
        let places = listed_places.iter().filter(|place| place.lease > now);
        let ended = listed_places.len() - places.clone().count();
        let holders = places.clone().map(|place| HolderStats {
            fence: place.number,
            process: None,
            held: since(place.since),
            lease_left: Duration::from_nanos(place.lease - now),
            entered: place.entered,
            weight: place.weight,
            offered: matches!(place.standing, Standing::Offered | Standing::Asked),
        });
        let tickets = listed.waiters.iter().filter_map(|waiter| Some((waiter.instance, Ticket::read(waiter)?)));
        let (instances, waiters) = tickets
            .map(|(instance, ticket)| {
                let weight = ticket.demand.map_or(1, |demand| demand.weight());
                (instance, WaiterStats { process: None, waited: since(ticket.since), weight })
            })
            .unzip();
        let stats = LockStats {
            scope: text(scope),
            name: text(name),
            holding: count.saturating_sub(ended) as u64,
            holders: holders.collect(),
            waiting: lock.waiting.into(),
            waiters,
            held_for: Duration::from_nanos(lock.mean),
        };
        Some(Shown { stats, holders: places.map(|place| place.instance).collect(), waiters: instances })
    }
}
