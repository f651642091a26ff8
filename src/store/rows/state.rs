//! `update(key, pure function)`: the one primitive of throttle cells, locks and claims.

use super::{
    recent_refusals::RecentRefusals,
    room::Room,
    sequence::Sequence,
    tables::{CELLS, LOCKS, row_key},
    update::{Local, RowTransition, Update, beside_the_line},
    waiting_line::LineTransition,
};
use crate::{
    error::Error,
    store::{
        commit::{operation::Operation, pending::Pending, write_queue::WriteQueue},
        lmdb::transaction::{Table, Txn},
        record::{
            key::Key,
            row::{Found, decode_any_row, decode_row},
        },
    },
};
use std::{
    ops::Bound,
    sync::{Arc, atomic::AtomicU64},
};

/// The shared state of throttles and locks.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) queue: Arc<WriteQueue>,
    pub(crate) local: Arc<Local>,
}

impl State {
    /// `first`: the first number of this generation, see [`sequence`](super::sequence).
    pub(crate) fn new(queue: Arc<WriteQueue>, first: u64) -> State {
        let local = Local {
            room: Room::new(queue.env.pages()),
            sequence: Sequence::new(first),
            recent: RecentRefusals::default(),
            damaged: AtomicU64::new(0),
        };
        State { queue, local: Arc::new(local) }
    }

    /// Reads, decides and writes in one transaction: here and now, or queued while another process is at the gate.
    ///
    /// `settle` turns the outcome into the result, after the commit. If no caller waits for the result any more, it is
    /// dropped; the drop undoes what has to be undone.
    pub(crate) fn update<R, G>(
        &self,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl RowTransition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Send + 'static,
        G: Send + 'static,
    {
        self.update_line(table, key, now, beside_the_line(transition), settle)
    }

    /// Shows `f` a cell as it is, if this process has read it lately and no process has committed anything since.
    pub(crate) fn read_recent<T>(&self, key: &Key, f: impl FnOnce(Found<'_>) -> T) -> Option<T> {
        if self.queue.env.forked() || !self.queue.env.is_sound() {
            return None;
        }
        let last = self.queue.env.last_transaction();
        self.local.recent.get(&key.hash, last, |row| f(decode_row(Some(row), key)))
    }

    /// As `update`, by a transition that sees the waiting line behind its row and may change it in the same
    /// transaction.
    #[inline]
    pub(crate) fn update_line<R, G>(
        &self,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl LineTransition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Send + 'static,
        G: Send + 'static,
    {
        let update = Update::new(&self.local, table, key, now, transition);
        self.queue.submit(update, |update| settle(update.and_then(Update::into_outcome)))
    }

    /// As `update_line`, for an update that must happen however late, and whose result no caller awaits. Never blocks.
    /// Calls `then` with the result: after the commit or the failure, outside the transaction and the gate, on any thread.
    /// A panic of `then` goes no further.
    pub(crate) fn post_then<R: Send + 'static>(
        &self,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl LineTransition<R>,
        then: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        let update = Update::new(&self.local, table, key, now, transition);
        self.queue.post(update, |update| then(update.and_then(Update::into_outcome)));
    }

    /// As `post_then`, for the holder of a lock: also where the rows of all locks were lost.
    pub(crate) fn post_as_holder<R: Send + 'static>(
        &self,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl LineTransition<R>,
        then: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        let update = Update::new(&self.local, LOCKS, key, now, transition).by_holder();
        self.queue.post(update, |update| then(update.and_then(Update::into_outcome)));
    }

    /// Drops the cells whose tag is `wanted` among at most 100 rows behind `after`; returns the last key, if there are
    /// more.
    pub(crate) fn evict_some(
        &self,
        after: Option<[u8; 16]>,
        wanted: impl Fn(u64) -> bool + Send + 'static,
    ) -> Pending<Result<Option<[u8; 16]>, Error>> {
        self.queue.submit(Scan { after, wanted, last: None }, |scan| scan.map(|scan| scan.last))
    }
}

struct Scan<W> {
    after: Option<[u8; 16]>,
    wanted: W,
    last: Option<[u8; 16]>,
}

impl<W: Fn(u64) -> bool> Operation for Scan<W> {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        const ROWS: usize = 100;
        let from = self.after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let rows = txn.rows(CELLS, from, ROWS, |key, row| {
            let doomed = decode_any_row(row).is_none_or(|(_, row)| (self.wanted)(row.tag));
            (row_key(key), doomed)
        })?;
        self.last = (rows.len() == ROWS).then(|| rows[ROWS - 1].0);
        let mut changed = false;
        for (key, _) in rows.into_iter().filter(|row| row.1) {
            changed |= txn.delete(CELLS, &key)?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
