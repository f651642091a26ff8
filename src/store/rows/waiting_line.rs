//! The waiting line behind a row. Each waiter has a row of its own, so that others notice when its process dies.
//!
//! A throttle's line is in order of time, and a row means something until its turn has come. There a row is a help,
//! never a need: where there is no room for it, the waiter waits without one. A lock's line is in order of number, and
//! consists of its rows alone: where there is no room for one, the update fails.

use super::{
    holders::{self, Due, HolderId, HolderRow, HolderStep},
    room::Room,
    tables::{Change, WAITERS, WaiterKey, row_key},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::Txn,
        record::{
            key::Key,
            row::{Found, Row, decode_any_row, u64_at, with_row},
        },
    },
};
use std::{
    ops::Bound,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// A waiter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// Its place in the order. Behind a throttle: when its turn comes, in ns of machine time; behind a lock: a
    /// [number](WaitingLine::number).
    pub(crate) turn: u64,
    /// Tells apart waiters that have the same turn.
    pub(crate) ticket: u64,
    /// How long the row is kept, in ns of machine time; after that it may be swept.
    pub(crate) until: u64,
    /// The instance in which it waits, see [`Instances`](crate::store::peers::instances::Instances).
    pub(crate) instance: u64,
    /// At most [`WAITER_MAX`] bytes.
    pub(crate) payload: Vec<u8>,
}

/// Bytes of a waiter's payload at most. A waiter with a larger one waits without a row, or not at all.
pub(crate) const WAITER_MAX: usize = 1024;

/// A change of the line by an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Puts the waiter's row, in place of that with the same turn and ticket. Where there is no room for the row, or it
    /// is too large, it is left out; behind a lock, nothing at all is changed and the update fails with [`Error::Full`]
    /// or [`Error::TooLarge`].
    Join(Waiter),
    /// Removes a waiter's row, if it is there.
    Leave { turn: u64, ticket: u64 },
    /// Changes the row of a holder. Where there is no room for a new one, nothing at all is changed and the update fails
    /// with [`Error::Full`].
    Hold(HolderStep),
}

/// The source from which a line is read, and the holders of a lock that have rows of their own.
pub(crate) trait Rows {
    /// The first waiters from a turn and ticket on, in order, at most `most`.
    fn read(&self, from: Bound<(u64, u64)>, most: usize) -> Vec<Waiter>;

    /// See [`WaitingLine::number`].
    fn number(&self) -> u64;

    /// See [`WaitingLine::holder`].
    fn holder(&self, _: HolderId) -> Option<HolderRow> {
        None
    }

    /// See [`WaitingLine::holders`].
    fn holders(&self, _owner: Option<u128>, _most: usize) -> Vec<HolderRow> {
        Vec::new()
    }

    /// See [`WaitingLine::due`].
    fn due(&self, _range: (Due, Due), _most: usize) -> Vec<(Due, HolderId)> {
        Vec::new()
    }

    /// See [`WaitingLine::miss`].
    fn miss(&self) {}

    /// See [`WaitingLine::mended`].
    fn mended(&self) -> Option<&[HolderRow]> {
        None
    }

    /// See [`WaitingLine::latest_lease_end`].
    fn latest_lease_end(&self) -> u64 {
        0
    }

    /// See [`WaitingLine::generation`].
    fn generation(&self) -> u64 {
        0
    }

    /// Until when no lock is granted, in ns of machine time.
    fn grants_from(&self) -> u64 {
        0
    }
}

/// The line as a transition sees it. Nothing is read until it is asked for. Rows that do not decode are left out.
pub(crate) struct WaitingLine<'a> {
    rows: &'a dyn Rows,
    now: u64,
}

impl<'a> WaitingLine<'a> {
    pub(crate) fn new(rows: &'a dyn Rows, now: u64) -> WaitingLine<'a> {
        WaitingLine { rows, now }
    }

    /// The first waiters whose turn has not come, in order of turn, at most `most`.
    pub(crate) fn waiting(&self, most: usize) -> Vec<Waiter> {
        self.behind(self.now, u64::MAX, most)
    }

    /// The first waiters in order, at most `most`, whatever the time: also those whose `until` is over.
    pub(crate) fn first(&self, most: usize) -> Vec<Waiter> {
        self.rows.read(Bound::Unbounded, most)
    }

    /// As [`first`](WaitingLine::first), of the waiters behind a turn and ticket.
    pub(crate) fn behind(&self, turn: u64, ticket: u64, most: usize) -> Vec<Waiter> {
        self.rows.read(Bound::Excluded((turn, ticket)), most)
    }

    /// Draws the next number of the directory, see [`sequence`](super::sequence): each call draws another one, greater
    /// than all that were drawn in transactions before. Numbers stay below 2^53 for decades. If the update fails, the
    /// number was drawn in vain.
    pub(crate) fn number(&self) -> u64 {
        self.rows.number()
    }

    /// A holder that has a row of its own.
    pub(crate) fn holder(&self, id: HolderId) -> Option<HolderRow> {
        self.rows.holder(id)
    }

    /// The first holders that have rows of their own, of one owner or of all, at most `most`.
    pub(crate) fn holders(&self, owner: Option<u128>, most: usize) -> Vec<HolderRow> {
        self.rows.holders(owner, most)
    }

    /// The holders that stand in a range of the index, in order, at most `most`.
    pub(crate) fn due(&self, range: (Due, Due), most: usize) -> Vec<(Due, HolderId)> {
        self.rows.due(range, most)
    }

    /// A holder that must have a row has none, so rows are damaged. What the transition answers is not used: the rows are
    /// [mended](WaitingLine::mended), and it runs again.
    pub(crate) fn miss(&self) {
        self.rows.miss();
    }

    /// All rows of holders that are left, where damaged ones were removed just now.
    pub(crate) fn mended(&self) -> Option<&[HolderRow]> {
        self.rows.mended()
    }

    /// The latest end of a lease that was ever granted in the directory, in ns of machine time.
    pub(crate) fn latest_lease_end(&self) -> u64 {
        self.rows.latest_lease_end()
    }

    /// The generation of `state/` in which the rows stand.
    pub(crate) fn generation(&self) -> u64 {
        self.rows.generation()
    }

    /// Whether the row of what was held in a generation was lost since, so that its holder must enter once more. Nothing
    /// is granted to others meanwhile.
    pub(crate) fn has_lost(&self, generation: u64) -> bool {
        self.now < self.rows.grants_from() && generation != self.rows.generation()
    }
}

impl std::fmt::Debug for WaitingLine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitingLine").finish_non_exhaustive()
    }
}

/// An updating function that sees the line behind its row: pure, and re-runnable. `now` is machine time in ns.
pub(crate) trait LineTransition<R>:
    Fn(Found<'_>, &WaitingLine<'_>, u64) -> (R, Change, Vec<Step>) + Send + 'static
{
}
impl<R, F: Fn(Found<'_>, &WaitingLine<'_>, u64) -> (R, Change, Vec<Step>) + Send + 'static> LineTransition<R> for F {}

fn waiter_key(hash: &[u8; 16], turn: u64, ticket: u64) -> WaiterKey {
    let mut key = [0; 32];
    key[..16].copy_from_slice(hash);
    key[16..24].copy_from_slice(&turn.to_be_bytes());
    key[24..].copy_from_slice(&ticket.to_be_bytes());
    key
}

/// Turn and ticket.
fn split_key(key: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    (key.len() == 32).then_some(())?;
    Some((number(16)?, number(24)?))
}

/// `None`: damaged. `Some(None)`: the waiter is behind another row whose hash is the same.
fn decode(key: &[u8], bytes: &[u8], echo: u64) -> Option<Option<Waiter>> {
    let (turn, ticket) = split_key(key)?;
    let (found, row) = decode_any_row(bytes)?;
    let (until, instance) = (row.expires, u64_at(row.payload, 0)?);
    Some((found == echo).then(|| Waiter { turn, ticket, until, instance, payload: row.payload[8..].to_vec() }))
}

/// The first waiters of the line from a turn and ticket on.
pub(super) fn read(
    txn: &Txn<'_>,
    key: &Key,
    from: Bound<(u64, u64)>,
    most: usize,
    damaged: &AtomicU64,
) -> Result<Vec<Waiter>, Error> {
    if most == 0 {
        return Ok(Vec::new());
    }
    let from = match from {
        Bound::Unbounded => Bound::Included((0, 0)),
        bound => bound,
    };
    let first = from.map(|(turn, ticket)| waiter_key(&key.hash, turn, ticket));
    let last = waiter_key(&key.hash, u64::MAX, u64::MAX);
    let range = (first.as_ref().map(|key| &key[..]), Bound::Included(&last[..]));
    txn.rows_within(WAITERS, range, most, |at, bytes| {
        decode(at, bytes, key.echo).unwrap_or_else(|| {
            damaged.fetch_add(1, Relaxed);
            None
        })
    })
}

/// Rows of its line that an update removes at most, since their turn has passed.
const CLEARED: usize = 8;

impl Room {
    /// Applies the steps; returns whether anything was changed. `is_retry`: no row is added, since the transaction
    /// failed before.
    pub(super) fn step(
        &self,
        txn: &mut Txn<'_>,
        key: &Key,
        now: u64,
        steps: Vec<Step>,
        is_retry: bool,
    ) -> Result<bool, Error> {
        let mut changed = !is_retry && clear_passed(txn, key, now)?;
        for step in steps {
            changed |= match step {
                Step::Leave { turn, ticket } => txn.delete(WAITERS, &waiter_key(&key.hash, turn, ticket))?,
                Step::Hold(step) => holders::step(txn, key, step)?,
                Step::Join(waiter) => {
                    // The sweep comes first, whether the waiter is left out or not: it makes room.
                    let swept = self.sweep_waiters(txn, now)?;
                    let joined = !is_retry && waiter.payload.len() <= WAITER_MAX && self.has_room(txn)?;
                    if joined {
                        join(txn, key, &waiter)?;
                    } else {
                        self.left_out.fetch_add(1, Relaxed);
                    }
                    swept | joined
                }
            };
        }
        Ok(changed)
    }

    /// Whether all steps behind a lock can be taken, since no waiter and no holder can be without its row. It is asked
    /// before anything is written. Also returns whether anything was swept, which makes room.
    pub(super) fn check_steps(
        &self,
        txn: &mut Txn<'_>,
        key: &Key,
        now: u64,
        steps: &[Step],
    ) -> Result<(bool, Result<(), Error>), Error> {
        let mut swept = false;
        for step in steps {
            let waiter = match step {
                Step::Join(waiter) => waiter,
                Step::Hold(HolderStep { before: None, after: Some(_), .. }) if !self.has_room_for_holders(txn)? => {
                    return Ok((swept, Err(Error::Full)));
                }
                Step::Hold(_) | Step::Leave { .. } => continue,
            };
            let (size, limit) = (waiter.payload.len(), WAITER_MAX);
            if size > limit {
                return Ok((swept, Err(Error::TooLarge { size, limit })));
            }
            swept |= self.sweep_waiters(txn, now)?;
            if !self.has_room(txn)? && !replaces(txn, key, waiter)? {
                return Ok((swept, Err(Error::Full)));
            }
        }
        Ok((swept, Ok(())))
    }
}

/// Takes the steps behind a lock, for which there is room; returns whether anything was changed. Nothing is cleared on
/// the way, since turns are not times there.
pub(super) fn step_all(txn: &mut Txn<'_>, key: &Key, steps: Vec<Step>) -> Result<bool, Error> {
    let mut changed = false;
    for step in steps {
        changed |= match step {
            Step::Leave { turn, ticket } => txn.delete(WAITERS, &waiter_key(&key.hash, turn, ticket))?,
            Step::Hold(step) => holders::step(txn, key, step)?,
            Step::Join(waiter) => join(txn, key, &waiter).map(|()| true)?,
        };
    }
    Ok(changed)
}

/// Whether the waiter's row takes the place of one that is no shorter.
fn replaces(txn: &Txn<'_>, key: &Key, waiter: &Waiter) -> Result<bool, Error> {
    let before = txn.get(WAITERS, &waiter_key(&key.hash, waiter.turn, waiter.ticket))?.map(<[u8]>::len);
    Ok(with_waiter(key, waiter, |bytes| before.is_some_and(|before| before >= bytes.len())))
}

fn with_waiter<T>(key: &Key, waiter: &Waiter, with: impl FnOnce(&[u8]) -> T) -> T {
    let mut payload = Vec::with_capacity(8 + waiter.payload.len());
    payload.extend_from_slice(&waiter.instance.to_le_bytes());
    payload.extend_from_slice(&waiter.payload);
    with_row(key, &Row { expires: waiter.until, tag: 0, payload: &payload }, with)
}

fn join(txn: &mut Txn<'_>, key: &Key, waiter: &Waiter) -> Result<(), Error> {
    with_waiter(key, waiter, |bytes| txn.put(WAITERS, &waiter_key(&key.hash, waiter.turn, waiter.ticket), bytes))
}

fn clear_passed(txn: &mut Txn<'_>, key: &Key, now: u64) -> Result<bool, Error> {
    let (first, last) = (waiter_key(&key.hash, 0, 0), waiter_key(&key.hash, now, u64::MAX));
    let range = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    let passed = txn.rows_within(WAITERS, range, CLEARED, |at, _| Some(row_key::<32>(at)))?;
    for key in &passed {
        txn.delete(WAITERS, key)?;
    }
    Ok(!passed.is_empty())
}

#[cfg(test)]
mod tests;
