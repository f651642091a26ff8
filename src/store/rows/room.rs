//! Room in `state/`: the share of the fixed number of pages that each table may use, and the sweeping that keeps it so.

use super::{
    holders,
    tables::{CELLS, HOLDERS, LOCKS, WAITERS, WaiterKey, row_key},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Table, Txn},
        record::{
            key::scope_mark,
            row::{DamagedRow, decode_any_row},
        },
    },
};
use std::{
    cmp::Reverse,
    ops::Bound,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// After each `SWEEP_EVERY` new rows, `SWEEP_ROWS` of the next rows are looked at, and dropped if they mean nothing any
/// more.
const SWEEP_EVERY: u64 = 8;
const SWEEP_ROWS: usize = 16;
/// A cell that runs full may be asked for again at once. It is cheaper to keep its row than to make it anew each time.
const CELL_GRACE: u64 = Duration::from_secs(1).as_nanos() as u64;
/// All tables are swept after each `SWEEP_ALL_EVERY` writes. Locks are swept only `LOCK_GRACE` after their last lease
/// has ended: they were left by processes that died.
const SWEEP_ALL_EVERY: u64 = 64;
const LOCK_GRACE: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// Cells that have to go are chosen among this many.
const CHOICE: usize = 32;

/// The room as one process knows it, and what this process has done for it.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Pages of the whole map.
    pages: usize,
    /// The keys behind which the next sweeps start.
    cursor: Mutex<[u8; 16]>,
    lock_cursor: Mutex<[u8; 16]>,
    waiter_cursor: Mutex<WaiterKey>,
    holder_cursor: Mutex<Vec<u8>>,
    writes: AtomicU64,
    /// Cells that were made.
    cells: AtomicU64,
    joins: AtomicU64,
    pub(crate) evicted: AtomicU64,
    /// Waiters for whose rows there was no room.
    pub(crate) left_out: AtomicU64,
}

impl Room {
    pub(super) fn new(pages: usize) -> Room {
        Room { pages, ..Room::default() }
    }

    /// `made`: a cell was made. On average, two others are looked at for each new cell.
    pub(super) fn sweep(&self, txn: &mut Txn<'_>, now: u64, made: bool) -> Result<(), Error> {
        if made && self.cells.fetch_add(1, Relaxed).is_multiple_of(SWEEP_EVERY) {
            sweep_next(txn, CELLS, &self.cursor, now.saturating_sub(CELL_GRACE))?;
        }
        let writes = self.writes.fetch_add(1, Relaxed);
        if writes.is_multiple_of(SWEEP_ALL_EVERY) {
            sweep_next(txn, CELLS, &self.cursor, now.saturating_sub(CELL_GRACE))?;
            sweep_next(txn, LOCKS, &self.lock_cursor, now.saturating_sub(LOCK_GRACE))?;
            sweep_next(txn, WAITERS, &self.waiter_cursor, now)?;
            sweep_holders(txn, &self.holder_cursor)?;
        }
        Ok(())
    }

    /// Puts a row that is new or grows. Locks may use three eighths of the pages, so that some pages are always left:
    /// without any, not even a removal succeeds. Beyond that share, only a row that needs no further page is put.
    pub(super) fn put_lock(&self, txn: &mut Txn<'_>, key: &[u8; 16], row: &[u8]) -> Result<bool, Error> {
        if self.has_room_for_holders(txn)? {
            return txn.put(LOCKS, key, row).map(|()| true);
        }
        // A row that is put back may leave split pages behind.
        if (lock_pages(txn)? + txn.pages(WAITERS)?) * 16 >= self.pages * 7 {
            return Ok(false);
        }
        let pages = txn.pages(LOCKS)?;
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
        if txn.pages(CELLS)? * 2 < self.pages {
            return Ok(());
        }
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = next_rows(txn, CELLS, &*cursor, CHOICE)?;
        // At the end of the table there is too little choice, so it goes on at the start.
        rows.extend(next_rows(txn, CELLS, &[0; 16], CHOICE - rows.len())?);
        *cursor = rows.last().map_or([0; 16], |row| row.0);
        let live = drop_least(txn, rows, CHOICE / 8, now)?;
        self.evicted.fetch_add(live, Relaxed);
        Ok(())
    }

    /// Whether locks and their holders use less than their share.
    pub(super) fn has_room_for_holders(&self, txn: &Txn<'_>) -> Result<bool, Error> {
        Ok(lock_pages(txn)? * 8 < self.pages * 3)
    }

    /// Waiters may use a sixteenth of the pages, and waiters and locks together seven sixteenths. Beside half for the
    /// cells, a sixteenth is always left.
    pub(super) fn has_room(&self, txn: &Txn<'_>) -> Result<bool, Error> {
        let (waiters, locks, all) = (txn.pages(WAITERS)?, lock_pages(txn)?, self.pages);
        Ok(waiters * 16 < all && (waiters + locks) * 16 < all * 7)
    }

    pub(super) fn sweep_waiters(&self, txn: &mut Txn<'_>, now: u64) -> Result<bool, Error> {
        let joins = self.joins.fetch_add(1, Relaxed);
        if !joins.is_multiple_of(SWEEP_EVERY) {
            return Ok(false);
        }
        sweep_next(txn, WAITERS, &self.waiter_cursor, now)
    }
}

/// The pages of the locks with their holders.
fn lock_pages(txn: &Txn<'_>) -> Result<usize, Error> {
    Ok(txn.pages(LOCKS)? + txn.pages(HOLDERS)?)
}

/// Drops the holders among the next ones whose lock is gone.
fn sweep_holders(txn: &mut Txn<'_>, cursor: &Mutex<Vec<u8>>) -> Result<(), Error> {
    let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
    // LMDB takes no empty key.
    let from = if cursor.is_empty() { Bound::Unbounded } else { Bound::Excluded(&cursor[..]) };
    let rows = txn.rows(HOLDERS, from, SWEEP_ROWS, |at, _| at.to_vec())?;
    *cursor = if rows.len() < SWEEP_ROWS { Vec::new() } else { rows[rows.len() - 1].clone() };
    for at in rows {
        if txn.get(LOCKS, &holders::lock_of(&at))?.is_none() {
            txn.delete(HOLDERS, &at)?;
        }
    }
    Ok(())
}

/// Drops the rows that had ended by `end` among the next ones; returns whether there were any. It starts behind a key
/// of zeros, so that it never meets the sequence's row among the locks.
fn sweep_next<const N: usize>(
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
        // A cell or waiter that cannot be read means nothing; a lock that cannot be read may be held.
        let unread = if table == LOCKS { DamagedRow::decode(row).map_or(u64::MAX, |row| row.until) } else { 0 };
        let expires = decode_any_row(row).map_or(unread, |(_, row)| row.expires);
        (row_key(key), expires)
    })
}

/// Drops `most` of the rows: first cells that are full again; then, in the scope that has most of the rows, the cells
/// that are nearest to full. A flood of names thus takes the place of its own cells and not that of other scopes' busy
/// names, however long its cells last. Returns how many were not full.
fn drop_least(txn: &mut Txn<'_>, rows: Vec<([u8; 16], u64)>, most: usize, now: u64) -> Result<u64, Error> {
    let of_scope = |key| rows.iter().filter(|row| scope_mark(&row.0) == scope_mark(key)).count();
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
