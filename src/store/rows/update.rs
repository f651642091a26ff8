//! One update of a row of `state/`, as it runs in a transaction.

use super::{
    recent_refusals::RecentRefusals,
    room::Room,
    sequence::Sequence,
    tables::{CELLS, Change, LOCKS, PAYLOAD_MAX},
    waiting_line::{self, LineTransition, Rows, Waiter, WaitingLine},
};
use crate::{
    error::Error,
    store::{
        commit::operation::Operation,
        lmdb::transaction::{Table, Txn},
        record::{
            key::Key,
            row::{Found, Row, decode_any_row, decode_row, with_row},
        },
    },
};
use std::{
    cell::Cell,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// An updating function: pure, and re-runnable. `now` is machine time in ns.
pub(crate) trait RowTransition<R>: Fn(Found<'_>, u64) -> (R, Change) + Send + 'static {}
impl<R, F: Fn(Found<'_>, u64) -> (R, Change) + Send + 'static> RowTransition<R> for F {}

/// The state that this process keeps beside the rows.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) room: Room,
    pub(super) sequence: Sequence,
    pub(super) recent: RecentRefusals,
    pub(crate) damaged: AtomicU64,
}

pub(super) struct Update<C, F, R> {
    local: Arc<Local>,
    table: Table,
    key: Key,
    clock: C,
    now: u64,
    transition: F,
    outcome: Option<Result<R, Error>>,
    /// The update has run before, in a transaction that failed, mostly for want of room. Now a throttle lists no
    /// waiter.
    is_retry: bool,
}

/// The outcome of writing an update's row.
enum Written {
    No,
    Removed(bool),
    Put,
    /// Nothing is to be changed: the outcome says why.
    Refused,
}

impl<C: Fn() -> u64, F, R> Update<C, F, R> {
    pub(super) fn new(local: &Arc<Local>, table: Table, key: Key, clock: C, transition: F) -> Self {
        let local = local.clone();
        Update { local, table, key, clock, now: 0, transition, outcome: None, is_retry: false }
    }

    #[inline]
    pub(super) fn into_outcome(self) -> Result<R, Error> {
        self.outcome.unwrap_or(Err(Error::Panicked))
    }

    /// Writes the row, which has `before` bytes so far.
    fn write(&mut self, txn: &mut Txn<'_>, change: Change, before: Option<usize>) -> Result<Written, Error> {
        let (expires, tag, payload) = match change {
            Change::Keep => return Ok(Written::No),
            Change::Remove => return txn.delete(self.table, &self.key.hash).map(Written::Removed),
            Change::Put { expires, tag, payload } => (expires, tag, payload),
        };
        if payload.len() > PAYLOAD_MAX {
            self.outcome = Some(Err(Error::TooLarge { size: payload.len(), limit: PAYLOAD_MAX }));
            return Ok(Written::Refused);
        }
        if self.table == CELLS && before.is_none() {
            self.local.room.keep_cells_bounded(txn, self.now)?;
        }
        let put = with_row(&self.key, &Row { expires, tag, payload: &payload }, |bytes| {
            match self.table == LOCKS && bytes.len() > before.unwrap_or(0) {
                true => self.local.room.put_lock(txn, &self.key.hash, bytes),
                false => txn.put(self.table, &self.key.hash, bytes).map(|()| true),
            }
        })?;
        if !put {
            self.outcome = Some(Err(Error::Full));
            return Ok(Written::Refused);
        }
        Ok(Written::Put)
    }
}

impl<C: Fn() -> u64, F: LineTransition<R>, R> Operation for Update<C, F, R> {
    fn prepare(&mut self) {
        self.now = self.now.max((self.clock)());
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let is_retry = std::mem::replace(&mut self.is_retry, true);
        let bytes = match self.table {
            LOCKS => read_lock(txn, &self.key)?,
            table => txn.get(table, &self.key.hash)?,
        };
        let before = bytes.map(<[u8]>::len);
        let found = decode_row(bytes, &self.key);
        if matches!(found, Found::Damaged) {
            self.local.damaged.fetch_add(1, Relaxed);
            if self.table == LOCKS {
                // Its holders are not known, nor for how long they hold it.
                return Err(Error::Damaged);
            }
        }
        let rows = Behind { txn, local: &self.local, key: &self.key, last: Cell::new(None), failed: Cell::new(None) };
        let transition = || (self.transition)(found, &WaitingLine::new(&rows, self.now), self.now);
        let Ok((result, change, steps)) = catch_unwind(AssertUnwindSafe(transition)) else {
            self.outcome = Some(Err(Error::Panicked));
            return Ok(false);
        };
        if let Some(error) = rows.failed.take() {
            return Err(error);
        }
        let drawn = rows.last.get();
        self.outcome = Some(Ok(result));
        if let (CELLS, Change::Keep, Some(bytes)) = (self.table, &change, bytes)
            && let Some(seen) = txn.seen()
        {
            self.local.recent.keep(&self.key.hash, seen, bytes);
        }
        let mut swept = false;
        if self.table == LOCKS {
            let joins = self.local.room.check_joins(txn, &self.key, self.now, &steps)?;
            swept = joins.0;
            if let Err(error) = joins.1 {
                self.outcome = Some(Err(error));
                return Ok(swept);
            }
        }
        let written = self.write(txn, change, before)?;
        if matches!(written, Written::Refused) {
            return Ok(swept);
        }
        if let Some(last) = drawn {
            self.local.sequence.keep(txn, last)?;
        }
        let stepped = match (steps.is_empty(), self.table) {
            (true, _) => false,
            (false, LOCKS) => waiting_line::step_all(txn, &self.key, steps)?,
            (false, _) => self.local.room.step(txn, &self.key, self.now, steps, is_retry)?,
        };
        if stepped || matches!(written, Written::Put) {
            let made = self.table == CELLS && before.is_none() && matches!(written, Written::Put);
            self.local.room.sweep(txn, self.now, made)?;
        }
        Ok(swept || drawn.is_some() || stepped || matches!(written, Written::Put | Written::Removed(true)))
    }
}

/// The bytes of a lock's row. A row that is not there may have been lost. Damage that makes a key disappear has mostly
/// garbled its neighbours as well, and the number of rows is written on another page.
fn read_lock<'a>(txn: &'a Txn<'_>, key: &Key) -> Result<Option<&'a [u8]>, Error> {
    // A single row is the sequence's, or there is no other row that could have been lost.
    if txn.len(LOCKS)? <= 1 {
        return txn.get(LOCKS, &key.hash);
    }
    match txn.get_or_beside(LOCKS, &key.hash)? {
        Ok(row) => Ok(Some(row)),
        Err(Some(beside)) if decode_any_row(beside).is_some() => Ok(None),
        Err(_) => Err(Error::Damaged),
    }
}

/// The waiting line behind the row of an update, and the sequence.
struct Behind<'a> {
    txn: &'a Txn<'a>,
    local: &'a Local,
    key: &'a Key,
    /// The last number that was drawn.
    last: Cell<Option<u64>>,
    /// A failure of a read. The transition does not learn of it, and its answer is then not used.
    failed: Cell<Option<Error>>,
}

impl Rows for Behind<'_> {
    fn read(&self, from: Bound<(u64, u64)>, most: usize) -> Vec<Waiter> {
        waiting_line::read(self.txn, self.key, from, most, &self.local.damaged).unwrap_or_else(|error| {
            self.failed.set(Some(error));
            Vec::new()
        })
    }

    fn number(&self) -> u64 {
        let last = self.last.get().map_or_else(|| self.local.sequence.last(self.txn, &self.local.damaged), Ok);
        let number = last.unwrap_or_else(|error| {
            self.failed.set(Some(error));
            0
        }) + 1;
        self.last.set(Some(number));
        number
    }
}

/// A transition that does not look at the line and leaves it as it is.
pub(super) fn beside_the_line<R>(transition: impl RowTransition<R>) -> impl LineTransition<R> {
    move |found: Found<'_>, _: &WaitingLine<'_>, now: u64| {
        let (result, change) = transition(found, now);
        (result, change, Vec::new())
    }
}
