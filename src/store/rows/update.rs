//! One update of a row of `state/`, as it runs in a transaction.

use super::{
    damage::{self, LookedUp},
    holders::{self, Due, HolderId, HolderRow},
    recent_refusals::RecentRefusals,
    room::Room,
    sequence::Sequence,
    tables::{CELLS, Change, LOCKS, PAYLOAD_MAX},
    waiting_line::{self, LineTransition, Rows, Step, Waiter, WaitingLine},
};
use crate::{
    error::Error,
    store::{
        commit::operation::Operation,
        lmdb::transaction::{Table, Txn},
        record::{
            key::Key,
            row::{Found, Row, decode_row, with_row},
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
    time::Duration,
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
    /// What it changes is held already.
    by_holder: bool,
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
        Update { local, table, key, clock, now: 0, transition, outcome: None, is_retry: false, by_holder: false }
    }

    /// The update of somebody who holds what it changes. It runs also while nothing is granted, since the rows of what is
    /// held were lost.
    pub(super) fn by_holder(self) -> Self {
        Update { by_holder: true, ..self }
    }

    #[inline]
    pub(super) fn into_outcome(self) -> Result<R, Error> {
        self.outcome.unwrap_or(Err(Error::Panicked))
    }

    /// The lock is refused, since nobody knows who holds it. Returns `changed`.
    fn refuse(&mut self, until: u64, changed: bool) -> bool {
        let retry_after = Duration::from_nanos(until.saturating_sub(self.now));
        self.outcome = Some(Err(Error::DamagedLock { retry_after }));
        changed
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
        if self.table == LOCKS {
            txn.raise_lease_end(expires);
        }
        Ok(Written::Put)
    }
}

impl<C: Fn() -> u64, F: LineTransition<R>, R> Update<C, F, R> {
    /// Runs the transition; `None`: it panicked.
    fn decide(
        &self,
        txn: &Txn<'_>,
        found: Found<'_>,
        mended: Option<&[HolderRow]>,
    ) -> Result<Option<Decided<R>>, Error> {
        let rows = Behind {
            txn,
            local: &self.local,
            key: &self.key,
            last: Cell::new(None),
            failed: Cell::new(None),
            is_broken: Cell::new(false),
            mended,
        };
        let transition = || (self.transition)(found, &WaitingLine::new(&rows, self.now), self.now);
        let decided = catch_unwind(AssertUnwindSafe(transition));
        if let Some(error) = rows.failed.take() {
            return Err(error);
        }
        let (drawn, is_broken) = (rows.last.get(), rows.is_broken.get());
        Ok(decided.ok().map(|(result, change, steps)| Decided { result, change, steps, drawn, is_broken }))
    }
}

impl<C: Fn() -> u64, F: LineTransition<R>, R> Operation for Update<C, F, R> {
    fn prepare(&mut self) {
        self.now = self.now.max((self.clock)());
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let is_retry = std::mem::replace(&mut self.is_retry, true);
        let grants_from = txn.grants_from();
        if self.table == LOCKS && !self.by_holder && self.now < grants_from {
            return Ok(self.refuse(grants_from, false));
        }
        let mut swept = false;
        let bytes = match self.table {
            LOCKS => match damage::look_up(txn, &self.key.hash, self.now)? {
                LookedUp::Row(bytes) => bytes,
                LookedUp::Refused { until } => return Ok(self.refuse(until, false)),
                LookedUp::Damaged { at } => {
                    let until = damage::mark(txn, &at, &self.key.hash, &self.local.damaged)?;
                    if until > self.now {
                        return Ok(self.refuse(until, true));
                    }
                    swept = true;
                    None
                }
            },
            table => txn.get(table, &self.key.hash)?,
        };
        let before = bytes.map(<[u8]>::len);
        let mut found = decode_row(bytes, &self.key);
        if let (CELLS, Found::Absent) = (self.table, found)
            && let Some(at) = txn.spent_since(self.now)
        {
            found = Found::Lost { at };
        }
        if matches!(found, Found::Damaged) {
            self.local.damaged.fetch_add(1, Relaxed);
        }
        let mut decided = self.decide(txn, found, None)?;
        if let (CELLS, Some(Decided { change: Change::Keep, .. }), Some(bytes)) = (self.table, &decided, bytes)
            && let Some(seen) = txn.seen()
        {
            self.local.recent.keep(&self.key.hash, seen, bytes);
        }
        if decided.as_ref().is_some_and(|decided| decided.is_broken) {
            self.local.damaged.fetch_add(1, Relaxed);
            let left = holders::mend(txn, &self.key)?;
            swept = true;
            let found = decode_row(txn.get(self.table, &self.key.hash)?, &self.key);
            decided = self.decide(txn, found, Some(&left))?;
        }
        let Some(Decided { result, change, steps, drawn, .. }) = decided else {
            self.outcome = Some(Err(Error::Panicked));
            return Ok(swept);
        };
        self.outcome = Some(Ok(result));
        if self.table == LOCKS {
            let joins = self.local.room.check_steps(txn, &self.key, self.now, &steps)?;
            swept |= joins.0;
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

/// What a transition has decided.
struct Decided<R> {
    result: R,
    change: Change,
    steps: Vec<Step>,
    /// The last number that was drawn.
    drawn: Option<u64>,
    /// Rows of holders are damaged, so it means nothing.
    is_broken: bool,
}

/// The waiting line behind the row of an update, its holders, and the sequence.
struct Behind<'a> {
    txn: &'a Txn<'a>,
    local: &'a Local,
    key: &'a Key,
    /// The last number that was drawn.
    last: Cell<Option<u64>>,
    /// A failure of a read. The transition does not learn of it, and its answer is then not used.
    failed: Cell<Option<Error>>,
    is_broken: Cell<bool>,
    mended: Option<&'a [HolderRow]>,
}

impl Behind<'_> {
    fn or_fail<T: Default>(&self, read: Result<T, Error>) -> T {
        read.unwrap_or_else(|error| {
            self.failed.set(Some(error));
            T::default()
        })
    }

    fn or_miss(&self, row: Option<HolderRow>) -> Option<HolderRow> {
        if row.is_none() {
            self.miss();
        }
        row
    }
}

impl Rows for Behind<'_> {
    fn generation(&self) -> u64 {
        self.txn.generation()
    }

    fn grants_from(&self) -> u64 {
        self.txn.grants_from()
    }

    fn read(&self, from: Bound<(u64, u64)>, most: usize) -> Vec<Waiter> {
        self.or_fail(waiting_line::read(self.txn, self.key, from, most, &self.local.damaged))
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

    fn holder(&self, id: HolderId) -> Option<HolderRow> {
        self.or_fail(holders::get(self.txn, self.key, id)).and_then(|row| self.or_miss(row))
    }

    fn holders(&self, owner: Option<u128>, most: usize) -> Vec<HolderRow> {
        let rows = self.or_fail(holders::rows(self.txn, self.key, owner, most));
        rows.into_iter().filter_map(|row| self.or_miss(row)).collect()
    }

    fn due(&self, range: (Due, Due), most: usize) -> Vec<(Due, HolderId)> {
        self.or_fail(holders::due(self.txn, self.key, range, most))
    }

    fn miss(&self) {
        self.is_broken.set(self.mended.is_none());
    }

    fn mended(&self) -> Option<&[HolderRow]> {
        self.mended
    }

    fn latest_lease_end(&self) -> u64 {
        self.txn.latest_lease_end()
    }
}

/// A transition that does not look at the line and leaves it as it is.
pub(super) fn beside_the_line<R>(transition: impl RowTransition<R>) -> impl LineTransition<R> {
    move |found: Found<'_>, _: &WaitingLine<'_>, now: u64| {
        let (result, change) = transition(found, now);
        (result, change, Vec::new())
    }
}
