//! The line behind a row: one row of its own for each who waits there, so that others notice when a waiter's process dies.
//!
//! A row means something until its turn has come. It is a help, never a need: where there is no room for it, the waiter
//! waits without.

use super::{
    env::Txn,
    record::{self, Found, Key, Row, u64_at},
    state::{self, Change, LOCKS, State, WAITERS},
};
use crate::error::Error;
use std::{
    ops::Bound,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// One who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    /// When its turn comes, in ns of machine time.
    pub(crate) turn: u64,
    /// Tells apart those who have the same turn.
    pub(crate) ticket: u64,
    /// Where it waits, see [`Presence`](super::presence::Presence).
    pub(crate) instance: u64,
    /// At most [`WAITER_MAX`] bytes.
    pub(crate) payload: Vec<u8>,
}

/// Bytes of a waiter's payload at most; a larger one waits without a row.
pub(crate) const WAITER_MAX: usize = 1024;

/// What an update does to the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Puts the waiter's row, in place of that with the same turn and ticket. Where there is no room, or it is too large, it
    /// is left out.
    Join(Waiter),
    /// Removes a waiter's row, if it is there.
    Leave { turn: u64, ticket: u64 },
}

/// The line as a transition sees it. Nothing is read until it is asked.
pub(crate) struct Line<'a>(&'a dyn Fn(usize) -> Vec<Waiter>);

impl<'a> Line<'a> {
    /// A line that `read` answers for: at most so many waiters whose turn has not come, in order.
    pub(crate) fn new(read: &'a dyn Fn(usize) -> Vec<Waiter>) -> Line<'a> {
        Line(read)
    }

    /// The first waiters whose turn has not come, in order of turn, at most so many. Rows that do not decode are left out.
    pub(crate) fn waiting(&self, most: usize) -> Vec<Waiter> {
        (self.0)(most)
    }
}

impl std::fmt::Debug for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

/// An updating function that sees the line behind its row: pure, and re-runnable. `now` is machine time in ns.
pub(crate) trait Transition<R>:
    Fn(Found<'_>, &Line<'_>, u64) -> (R, Change, Vec<Step>) + Send + 'static
{
}
impl<R, F: Fn(Found<'_>, &Line<'_>, u64) -> (R, Change, Vec<Step>) + Send + 'static> Transition<R> for F {}

/// Key of the row, turn, ticket; big endian, so that the rows of a line stand together in order of turn.
pub(super) type WaiterKey = [u8; 32];

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

/// `None`: damaged. `Some(None)`: it waits behind another row whose hash is the same.
fn decode(key: &[u8], bytes: &[u8], echo: u64) -> Option<Option<Waiter>> {
    let (turn, ticket) = split_key(key)?;
    let (found, row) = record::decode_any_row(bytes).filter(|(_, row)| row.expires == turn)?;
    let instance = u64_at(row.payload, 0)?;
    Some((found == echo).then(|| Waiter { turn, ticket, instance, payload: row.payload[8..].to_vec() }))
}

/// The first of the line whose turn has not come.
pub(super) fn waiting(
    txn: &Txn<'_>,
    key: &Key,
    now: u64,
    most: usize,
    damaged: &AtomicU64,
) -> Result<Vec<Waiter>, Error> {
    let first = waiter_key(&key.hash, now, u64::MAX);
    let last = waiter_key(&key.hash, u64::MAX, u64::MAX);
    let range = (Bound::Excluded(&first[..]), Bound::Included(&last[..]));
    txn.rows_within(WAITERS, range, most, |at, bytes| {
        decode(at, bytes, key.echo).unwrap_or_else(|| {
            damaged.fetch_add(1, Relaxed);
            None
        })
    })
}

/// Rows of its line, whose turn has passed, that an update takes with it at most.
const CLEARED: usize = 8;

impl State {
    /// Applies the steps; whether anything was changed. `crowded`: no row is added, since the transaction failed before.
    pub(super) fn step(
        &self,
        txn: &mut Txn<'_>,
        key: &Key,
        now: u64,
        steps: Vec<Step>,
        crowded: bool,
    ) -> Result<bool, Error> {
        let mut changed = !crowded && clear_passed(txn, key, now)?;
        for step in steps {
            changed |= match step {
                Step::Leave { turn, ticket } => txn.delete(WAITERS, &waiter_key(&key.hash, turn, ticket))?,
                Step::Join(waiter) => {
                    // Left out or not: it is the sweep that makes room.
                    let swept = self.sweep_waiters(txn, now)?;
                    let joined = !crowded && self.has_room(txn, &waiter)?;
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

    /// Waiters may use a sixteenth of the pages, and with the locks seven sixteenths: beside half for the cells, a
    /// sixteenth is always left.
    fn has_room(&self, txn: &Txn<'_>, waiter: &Waiter) -> Result<bool, Error> {
        let (waiters, locks, all) = (txn.pages(WAITERS)?, txn.pages(LOCKS)?, self.lane.env.pages());
        Ok(waiter.payload.len() <= WAITER_MAX && waiters * 16 < all && (waiters + locks) * 16 < all * 7)
    }

    fn sweep_waiters(&self, txn: &mut Txn<'_>, now: u64) -> Result<bool, Error> {
        let joins = self.joins.fetch_add(1, Relaxed);
        if !joins.is_multiple_of(state::SWEEP_EVERY) {
            return Ok(false);
        }
        state::sweep_next(txn, WAITERS, &self.waiter_cursor, now)
    }
}

fn join(txn: &mut Txn<'_>, key: &Key, waiter: &Waiter) -> Result<(), Error> {
    let mut payload = Vec::with_capacity(8 + waiter.payload.len());
    payload.extend_from_slice(&waiter.instance.to_le_bytes());
    payload.extend_from_slice(&waiter.payload);
    record::with_row(key, &Row { expires: waiter.turn, tag: 0, payload: &payload }, |bytes| {
        txn.put(WAITERS, &waiter_key(&key.hash, waiter.turn, waiter.ticket), bytes)
    })
}

fn clear_passed(txn: &mut Txn<'_>, key: &Key, now: u64) -> Result<bool, Error> {
    let (first, last) = (waiter_key(&key.hash, 0, 0), waiter_key(&key.hash, now, u64::MAX));
    let range = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    let passed = txn.rows_within(WAITERS, range, CLEARED, |at, _| Some(state::row_key::<32>(at)))?;
    for key in &passed {
        txn.delete(WAITERS, key)?;
    }
    Ok(!passed.is_empty())
}

#[cfg(test)]
mod tests;
