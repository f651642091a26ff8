//! Tidying, a step at a time: entries that have ended go, the walk after a purge goes on, and old purges are dropped.

use super::{
    forgetting::sweep,
    purge_rule::PurgeKey,
    shard::Entries,
    table::{load_ledger, save_ledger},
    walk::{is_wanted, walk_on},
};
use crate::{
    error::Error,
    store::{commit::operation::Operation, lmdb::transaction::Txn},
};
use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

/// Entries that one step clears away at most.
const STEP: usize = 512;

impl Entries {
    /// Leaves one step of tidying to the worker thread.
    pub(crate) fn tidy(self: &Arc<Self>) {
        if self.tidying.swap(true, Relaxed) {
            return;
        }
        let now = self.latest.load(Relaxed);
        let tidy = Tidy { entries: self.clone(), now, swept: None, more: false };
        self.queue.leave_to_worker(tidy, |tidy| {
            if let Ok(tidy) = tidy {
                *tidy.entries.swept.lock().unwrap_or_else(PoisonError::into_inner) = tidy.swept;
                tidy.entries.more.store(tidy.more, Relaxed);
            }
        });
    }

    /// Whether another step is wanted soon: there is a purge to follow, or more to clear away.
    pub(crate) fn is_untidy(&self) -> bool {
        self.more.load(Relaxed) || self.queue.env.read(is_wanted).unwrap_or(false)
    }
}

/// A step of tidying. It may run twice, so its progress is noted when it settles.
struct Tidy {
    entries: Arc<Entries>,
    now: u64,
    /// The purge up to which all have been looked at, after the step.
    swept: Option<PurgeKey>,
    more: bool,
}

impl Drop for Tidy {
    fn drop(&mut self) {
        self.entries.tidying.store(false, Relaxed);
    }
}

impl Operation for Tidy {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let mut ledger = load_ledger(&txn.reader())?;
        let trimmed = self.entries.trim(txn, &mut ledger, self.now, 0, STEP)?;
        save_ledger(txn, &ledger)?;
        self.more = trimmed.more;
        let walked = walk_on(txn)?;
        let after = *self.entries.swept.lock().unwrap_or_else(PoisonError::into_inner);
        let (swept, dropped) = sweep(txn, after, self.now)?;
        self.swept = swept;
        Ok(trimmed.changed || walked || dropped)
    }
}
