//! The counter of a directory: numbers that only grow, over all keys, processes, restarts and generations.
//!
//! They are the order in which those came who wait for a lock, and the fences of those who hold one. The last number that
//! was drawn stands in a row of its own among the locks. Whoever loses that row begins far above every number that can
//! have been drawn: each generation of `state/` has a first number, written down and synced before anybody uses it.
//!
//! First numbers follow the calendar in microseconds. Nobody draws a million a second for long, so what a generation has
//! drawn is behind the calendar soon, and each generation begins so far above the last that a calendar that goes back, or
//! a damaged row, takes no number with it. They stay below 2^53, so that they survive in JSON and in a double, until the
//! year 2255, or for some 3,000 generations.

use super::{env::Txn, record::u64_at, state::LOCKS};
use crate::error::Error;
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::SystemTime,
};
use xxhash_rust::xxh3::xxh3_64;

/// The row's key: that of no lock, and what walks over the locks starts behind it.
pub(super) const KEY: [u8; 16] = [0; 16];

/// How far a damaged row is left behind, and half as far as a generation is.
const LEAP: u64 = 1 << 40;

/// Numbers above say that the row, or the layout, is damaged.
pub(super) const MOST: u64 = 1 << 62;

/// The first number of a generation, `last` being that of the one before and `now` the calendar in microseconds.
pub(super) fn first(last: Option<u64>, now: u64) -> u64 {
    match last {
        Some(last) => last.max(now).saturating_add(2 * LEAP),
        None => now,
    }
    .clamp(1, MOST)
}

/// Microseconds since 1970.
pub(super) fn calendar() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(MOST)
}

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

/// The counter as one process sees it.
#[derive(Debug)]
pub(super) struct Numbers {
    first: u64,
    /// The highest number that this process has drawn.
    highest: AtomicU64,
}

impl Numbers {
    pub(super) fn new(first: u64) -> Numbers {
        Numbers { first, highest: AtomicU64::new(first.saturating_sub(1)) }
    }

    /// The last number that was drawn: the next one is greater by one.
    pub(super) fn last(&self, txn: &Txn<'_>, damaged: &AtomicU64) -> Result<u64, Error> {
        let highest = self.highest.load(Relaxed);
        let Some(row) = txn.get(LOCKS, &KEY)? else { return Ok(highest) };
        Ok(match decode(row) {
            Some(last) => last.max(highest),
            None => {
                damaged.fetch_add(1, Relaxed);
                self.after_damage(calendar())
            }
        })
    }

    fn after_damage(&self, now: u64) -> u64 {
        self.highest.load(Relaxed).max(self.first).max(now).saturating_add(LEAP)
    }

    /// Writes down the last number that was drawn.
    pub(super) fn keep(&self, txn: &mut Txn<'_>, last: u64) -> Result<(), Error> {
        self.highest.fetch_max(last, Relaxed);
        txn.put(LOCKS, &KEY, &encode(last))
    }
}

#[cfg(test)]
mod tests;
