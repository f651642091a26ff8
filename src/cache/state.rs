//! `update(key, pure function)`: the one primitive of throttle cells, locks and claims.

use super::{
    env::{Table, Txn},
    lane::{Lane, Run},
    line::{self, WaiterKey},
    numbers::Numbers,
    pending::Pending,
    recent::Recents,
    record::{self, Found, Key},
    update::{Update, beside_the_line},
};
use crate::error::Error;
use std::{
    cmp::Reverse,
    ops::Bound,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Cells are in the table without a name: a commit of one in a named table would write that table's row of it too.
pub(crate) const TABLES: [&str; 3] = ["", "locks", "waiters"];
/// Rows that may be dropped when room is needed.
pub(crate) const CELLS: Table = Table(0);
/// Rows that never are.
pub(crate) const LOCKS: Table = Table(1);
/// Who waits behind a row, see [`line`](mod@line).
pub(crate) const WAITERS: Table = Table(2);

/// Each so many rows that are new, so many of the next are looked at and dropped if they mean nothing any more.
pub(super) const SWEEP_EVERY: u64 = 8;
const SWEEP_ROWS: usize = 16;
/// A cell that runs full may be asked for again at once; one more row is cheaper than to make it anew each time.
const CELL_GRACE: u64 = Duration::from_secs(1).as_nanos() as u64;
/// All are swept each so many writes; locks only long after their last lease has ended: they were left by processes that died.
const SWEEP_ALL_EVERY: u64 = 64;
const LOCK_GRACE: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// Where cells have to go, they are chosen among so many.
const CHOICE: usize = 32;

/// Bytes of a row's payload at most: a larger one would make room at the cost of everybody's cells and not fit all the
/// same.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;

/// What an update leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Keep,
    Put { expires: u64, tag: u64, payload: Vec<u8> },
    Remove,
}

/// The shared state of throttles and locks.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) lane: Lane,
    pub(super) recents: Recents,
    pub(super) numbers: Numbers,
    /// The keys behind which the next sweeps start.
    cursor: Mutex<[u8; 16]>,
    lock_cursor: Mutex<[u8; 16]>,
    pub(super) waiter_cursor: Mutex<WaiterKey>,
    writes: AtomicU64,
    /// Cells that were made.
    cells: AtomicU64,
    pub(super) joins: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) damaged: AtomicU64,
    /// Waiters for whose rows there was no room.
    pub(crate) left_out: AtomicU64,
}

/// An updating function: pure, and re-runnable. `now` is machine time in ns.
pub(crate) trait Transition<R>: Fn(Found<'_>, u64) -> (R, Change) + Send + 'static {}
impl<R, F: Fn(Found<'_>, u64) -> (R, Change) + Send + 'static> Transition<R> for F {}

impl State {
    /// `first`: the first number of this generation, see [`numbers`](super::numbers).
    pub(crate) fn new(lane: Lane, first: u64) -> State {
        State {
            lane,
            recents: Recents::default(),
            numbers: Numbers::new(first),
            cursor: Mutex::default(),
            lock_cursor: Mutex::default(),
            waiter_cursor: Mutex::default(),
            writes: AtomicU64::new(0),
            cells: AtomicU64::new(0),
            joins: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// Reads, decides and writes in one transaction: here and now, or queued while another process is at it.
    ///
    /// `settle` turns the outcome into the result, after the commit. If nobody waits for the result any more it is
    /// dropped, so what has to be undone is undone by its drop.
    pub(crate) fn update<R, G>(
        self: &Arc<Self>,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl Transition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Send + 'static,
        G: Send + 'static,
    {
        self.update_line(table, key, now, beside_the_line(transition), settle)
    }

    /// Shows `f` a cell as it is, if this process has read it lately and nobody has committed anything since.
    pub(crate) fn glance<T>(&self, key: &Key, f: impl FnOnce(Found<'_>) -> T) -> Option<T> {
        if self.lane.env.forked() || !self.lane.env.is_sound() {
            return None;
        }
        let last = self.lane.env.last_transaction();
        self.recents.get(&key.hash, last, |row| f(record::decode_row(Some(row), key)))
    }

    /// As `update`, by a transition that sees the line behind its row and may change it in the same transaction.
    #[inline]
    pub(crate) fn update_line<R, G>(
        self: &Arc<Self>,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl line::Transition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Send + 'static,
        G: Send + 'static,
    {
        let update = Update::new(self, table, key, now, transition);
        self.lane.submit(update, |mut update, result| settle(update.outcome(result)))
    }

    /// As `update_line`, for what must happen however late, and whose result nobody awaits. Never blocks.
    pub(crate) fn post_line(
        self: &Arc<Self>,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl line::Transition<()>,
    ) {
        self.post_then(table, key, now, transition, drop);
    }

    /// As `post_line`, and calls `then` with the result: after the commit or the failure, outside the transaction and the
    /// gate, on whichever thread that is. A panic of `then` goes no further.
    pub(crate) fn post_then<R: Send + 'static>(
        self: &Arc<Self>,
        table: Table,
        key: Key,
        now: impl Fn() -> u64 + Send + 'static,
        transition: impl line::Transition<R>,
        then: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        let update = Update::new(self, table, key, now, transition);
        self.lane.post(update, |mut update, result| then(update.outcome(result)));
    }

    /// Drops the cells whose tag is `wanted` among at most 100 rows behind `after`; the last key, if there are more.
    pub(crate) fn evict_some(
        &self,
        after: Option<[u8; 16]>,
        wanted: impl Fn(u64) -> bool + Send + 'static,
    ) -> Pending<Result<Option<[u8; 16]>, Error>> {
        self.lane.submit(Scan { after, wanted, last: None }, |scan, result| result.map(|()| scan.last))
    }

    /// `made`: a cell was, and makes up for by looking at two others.
    pub(super) fn sweep(&self, txn: &mut Txn<'_>, now: u64, made: bool) -> Result<(), Error> {
        if made && self.cells.fetch_add(1, Relaxed).is_multiple_of(SWEEP_EVERY) {
            sweep_next(txn, CELLS, &self.cursor, now.saturating_sub(CELL_GRACE))?;
        }
        let writes = self.writes.fetch_add(1, Relaxed);
        if writes.is_multiple_of(SWEEP_ALL_EVERY) {
            sweep_next(txn, CELLS, &self.cursor, now.saturating_sub(CELL_GRACE))?;
            sweep_next(txn, LOCKS, &self.lock_cursor, now.saturating_sub(LOCK_GRACE))?;
            sweep_next(txn, WAITERS, &self.waiter_cursor, now)?;
        }
        Ok(())
    }

    /// Puts a row that is new or grows. Locks may use three eighths of the pages, so that some are always left: without,
    /// not even a removal succeeds. Beyond, only what needs no further page is put.
    pub(super) fn put_lock(&self, txn: &mut Txn<'_>, key: &[u8; 16], row: &[u8]) -> Result<bool, Error> {
        let (pages, all) = (txn.pages(LOCKS)?, self.lane.env.pages());
        if pages * 8 < all * 3 {
            return txn.put(LOCKS, key, row).map(|()| true);
        }
        // What is put back may leave split pages behind.
        if (pages + txn.pages(WAITERS)?) * 16 >= all * 7 {
            return Ok(false);
        }
        let before = txn.get(LOCKS, key)?.map(<[u8]>::to_vec);
        txn.put(LOCKS, key, row)?;
        if txn.pages(LOCKS)? <= pages {
            return Ok(true);
        }
        match before {
            Some(before) => txn.put(LOCKS, key, &before)?,
            None => txn.delete(LOCKS, key).map(drop)?,
        }
        Ok(false)
    }

    /// Cells may use half the pages; a new one beyond that takes the place of others, see [`drop_least`].
    pub(super) fn keep_cells_bounded(&self, txn: &mut Txn<'_>, now: u64) -> Result<(), Error> {
        if txn.pages(CELLS)? * 2 < self.lane.env.pages() {
            return Ok(());
        }
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = next_rows(txn, CELLS, &*cursor, CHOICE)?;
        // At the end of the table there is no choice, so it goes on at the start.
        rows.extend(next_rows(txn, CELLS, &[0; 16], CHOICE - rows.len())?);
        *cursor = rows.last().map_or([0; 16], |row| row.0);
        let live = drop_least(txn, rows, CHOICE / 8, now)?;
        self.evicted.fetch_add(live, Relaxed);
        Ok(())
    }
}

/// Drops what ended before `end` among the next rows; whether there was any. It starts behind a key of zeros, so that the
/// counter among the locks is never met.
pub(super) fn sweep_next<const N: usize>(
    txn: &mut Txn<'_>,
    table: Table,
    cursor: &Mutex<[u8; N]>,
    end: u64,
) -> Result<bool, Error> {
    let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
    let rows = next_rows(txn, table, &*cursor, SWEEP_ROWS)?;
    *cursor = if rows.len() < SWEEP_ROWS { [0; N] } else { rows[rows.len() - 1].0 };
    let mut changed = false;
    for (key, _) in rows.into_iter().filter(|row| row.1 <= end) {
        changed |= txn.delete(table, &key)?;
    }
    Ok(changed)
}

fn next_rows<const N: usize>(
    txn: &Txn<'_>,
    table: Table,
    after: &[u8],
    most: usize,
) -> Result<Vec<([u8; N], u64)>, Error> {
    txn.rows(table, Bound::Excluded(after), most, |key, row| {
        // A cell or waiter that cannot be read means nothing; a lock that cannot may be held.
        let unread = if table == LOCKS { u64::MAX } else { 0 };
        let expires = record::decode_any_row(row).map_or(unread, |(_, row)| row.expires);
        (row_key(key), expires)
    })
}

/// The key of a row. Among the cells stand the rows of the other tables, whose shorter keys are no cell's.
pub(super) fn row_key<const N: usize>(key: &[u8]) -> [u8; N] {
    let mut row = [0; N];
    let len = key.len().min(N);
    row[..len].copy_from_slice(&key[..len]);
    row
}

/// Drops `most` of the rows: what is full again; then, of the scope that has most of the rows, what is nearest to full. A
/// flood of names thus takes the place of its own kind and not that of other scopes' busy names, however long its cells
/// last. Answers how many were not full.
fn drop_least(txn: &mut Txn<'_>, rows: Vec<([u8; 16], u64)>, most: usize, now: u64) -> Result<u64, Error> {
    let of_scope = |key| rows.iter().filter(|row| record::scope_mark(&row.0) == record::scope_mark(key)).count();
    let mut ranked: Vec<_> = rows.iter().map(|(key, end)| (*end > now, Reverse(of_scope(key)), *end, *key)).collect();
    ranked.sort_unstable();
    let mut live = 0;
    for (lives, _, _, key) in ranked.into_iter().take(most) {
        let dropped = txn.delete(CELLS, &key)?;
        live += u64::from(dropped && lives);
    }
    Ok(live)
}

/// Called when the map is full: drops some cells, never a lock.
pub(crate) fn make_room(txn: &mut Txn<'_>) -> Result<bool, Error> {
    let rows = next_rows(txn, CELLS, &[0; 16], 64)?;
    let any = !rows.is_empty();
    drop_least(txn, rows, 32, 0)?;
    Ok(any)
}

struct Scan<W> {
    after: Option<[u8; 16]>,
    wanted: W,
    last: Option<[u8; 16]>,
}

impl<W: Fn(u64) -> bool> Run for Scan<W> {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        const ROWS: usize = 100;
        let from = self.after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let rows = txn.rows(CELLS, from, ROWS, |key, row| {
            let doomed = record::decode_any_row(row).is_none_or(|(_, row)| (self.wanted)(row.tag));
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
