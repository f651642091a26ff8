//! The sequence of a directory: numbers that only grow, over all keys, processes, restarts and generations.
//!
//! The numbers are the order in which waiters of a lock came, and the fencing tokens of its holders. The last number
//! that was drawn stands in a row of its own among the locks, which is there from the beginning of a generation of
//! `state/` on. If that row is damaged or missing, the sequence goes on far above every number that can have been drawn:
//! each generation that an opening makes has a [first number](crate::store::directory::first_number), written down and
//! synced before any process uses it, and the gate's page knows the last number of all generations.

use super::tables::LOCKS;
use crate::{
    error::Error,
    store::{
        directory::first_number::{self, LEAP, MOST, calendar},
        lmdb::{
            env::Env,
            transaction::{Reader, Txn},
        },
        record::row::u64_at,
    },
};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use xxhash_rust::xxh3::xxh3_64;

/// The row's key. No lock has it, and walks over the locks start behind it.
pub(super) const KEY: [u8; 16] = [0; 16];

fn encode(last: u64) -> [u8; 16] {
    let mut row = [0; 16];
    row[..8].copy_from_slice(&last.to_le_bytes());
    let check = xxh3_64(&row[..8]);
    row[8..].copy_from_slice(&check.to_le_bytes());
    row
}

fn decode(row: &[u8]) -> Option<u64> {
    let last = u64_at(row, 0)?;
    (row == encode(last) && last <= MOST).then_some(last)
}

/// Whether the last number is known. Only for an opening that is alone.
pub(crate) fn is_known(env: &Env) -> Result<bool, Error> {
    env.write_alone(|txn| Ok((txn.get(LOCKS, &KEY)?.and_then(decode).is_some(), false)))
}

/// Begins a sequence with its first number. Only for an opening that is alone.
pub(crate) fn begin(env: &Env, first: u64) -> Result<(), Error> {
    env.write_alone(|txn| txn.put(LOCKS, &KEY, &encode(first.saturating_sub(1))).map(|()| ((), true)))
}

/// Goes on in a new generation, far above every number that can have been drawn.
pub(crate) fn carry_over(_: Option<&Reader<'_>>, txn: &mut Txn<'_>) -> Result<(), Error> {
    let first = first_number::after(Some(txn.last_number()), calendar());
    txn.put(LOCKS, &KEY, &encode(first.saturating_sub(1)))
}

/// The sequence as one process sees it.
#[derive(Debug)]
pub(crate) struct Sequence {
    first: u64,
    /// The highest number that this process has drawn.
    highest: AtomicU64,
}

impl Sequence {
    pub(super) fn new(first: u64) -> Sequence {
        Sequence { first, highest: AtomicU64::new(first.saturating_sub(1)) }
    }

    /// The last number that was drawn: the next one is greater by one.
    pub(super) fn last(&self, txn: &Txn<'_>, damaged: &AtomicU64) -> Result<u64, Error> {
        let highest = self.highest.load(Relaxed);
        Ok(match txn.get(LOCKS, &KEY)?.and_then(decode) {
            Some(last) => last.max(highest),
            None => {
                damaged.fetch_add(1, Relaxed);
                self.after_damage(calendar()).max(txn.last_number().saturating_add(LEAP))
            }
        })
    }

    fn after_damage(&self, now: u64) -> u64 {
        self.highest.load(Relaxed).max(self.first).max(now).saturating_add(LEAP)
    }

    /// Writes down the last number that was drawn.
    pub(super) fn keep(&self, txn: &mut Txn<'_>, last: u64) -> Result<(), Error> {
        self.highest.fetch_max(last, Relaxed);
        txn.raise_last_number(last);
        txn.put(LOCKS, &KEY, &encode(last))
    }
}

#[cfg(test)]
mod tests;
