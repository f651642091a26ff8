//! Tidying, a step at a time: entries that have ended go, a walk over all entries removes or rewrites those that purges
//! have hit, and purges that the walk has passed are forgotten.

use super::{
    purge_rule::{PurgeKey, times},
    purges::{LONGEST_FLIGHT, apply_purges},
    shard::{Entries, Walk},
    table::{ENTRIES, PURGES, SEQUENCE, load_ledger, number, save_ledger},
};
use crate::{
    error::Error,
    store::{commit::operation::Operation, lmdb::transaction::Txn},
};
use std::{
    ops::Bound,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// Rows that one step of the walk after a purge looks at.
const STEP: usize = 128;
/// Purge rows that one step of tidying looks at.
const PURGES_STEP: usize = 4096;

impl Entries {
    /// Leaves one step of tidying to the worker thread.
    pub(crate) fn tidy(self: &Arc<Self>) {
        if self.tidying.swap(true, Relaxed) {
            return;
        }
        let now = self.latest.load(Relaxed);
        let tidy = Tidy { entries: self.clone(), now, walk: *self.walk(), more: false };
        self.queue.leave_to_worker(tidy, |tidy, result| {
            if result.is_ok() {
                *tidy.entries.walk() = tidy.walk;
                tidy.entries.more.store(tidy.more, Relaxed);
            }
        });
    }

    /// Whether another step is wanted soon: there is a purge to follow, or more to clear away.
    pub(crate) fn is_untidy(&self) -> bool {
        let walk = *self.walk();
        self.more.load(Relaxed)
            || walk.at.is_some()
            || self.purge_sequence().is_ok_and(|sequence| walk.walked_upto < sequence)
    }
}

/// A step of tidying. It may run twice, so its progress is noted when it settles.
struct Tidy {
    entries: Arc<Entries>,
    now: u64,
    /// How far the walk has got: before the step, then after it.
    walk: Walk,
    more: bool,
}

impl Drop for Tidy {
    fn drop(&mut self) {
        self.entries.tidying.store(false, Relaxed);
    }
}

impl Operation for Tidy {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.walk = *self.entries.walk();
        let mut ledger = load_ledger(&txn.reader())?;
        let trimmed = self.entries.trim(txn, &mut ledger, self.now, 0, STEP)?;
        save_ledger(txn, &ledger)?;
        self.more = trimmed.more;
        let walked = self.walk_on(txn)?;
        let dropped = self.drop_old_purges(txn)?;
        Ok(trimmed.changed || walked || dropped)
    }
}

impl Tidy {
    fn walk_on(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let walk = &mut self.walk;
        if walk.at.is_none() {
            walk.round_upto = number(&txn.reader(), SEQUENCE)?;
            if walk.walked_upto >= walk.round_upto {
                return Ok(false);
            }
        }
        let from = walk.at.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let keys = txn.rows(ENTRIES, from, STEP, |key, _| <[u8; 16]>::try_from(key).unwrap_or_default())?;
        walk.at = (keys.len() == STEP).then(|| keys[STEP - 1]);
        if walk.at.is_none() {
            walk.walked_upto = walk.round_upto;
        }
        let mut changed = false;
        for key in keys {
            changed |= apply_purges(txn, &key)?;
        }
        Ok(changed)
    }

    /// Drops purges whose entries are all gone, and that are older than every computation still under way.
    fn drop_old_purges(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let (done, now) = (self.walk.walked_upto, self.now);
        let from = self.walk.next_purge_row.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_bytes()));
        let rows = txn.rows(PURGES, from, PURGES_STEP, |key, row| {
            let (sequence, time) = times(row).next_back().unwrap_or_default();
            (PurgeKey::of(key), sequence <= done && time.saturating_add(2 * LONGEST_FLIGHT) < now)
        })?;
        self.walk.next_purge_row = (rows.len() == PURGES_STEP).then(|| rows[PURGES_STEP - 1].0);
        let mut changed = false;
        for (key, _) in rows.into_iter().filter(|row| row.1) {
            changed |= txn.delete(PURGES, key.as_bytes())?;
        }
        Ok(changed)
    }
}
