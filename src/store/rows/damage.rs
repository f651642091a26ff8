//! Damaged rows of locks. Each is the trouble of one key: it is refused until the latest lease that was ever granted in
//! the directory has ended, and begins anew then. Only a structural error of LMDB's ends the whole environment.

use super::{
    holders,
    tables::{LOCKS, WAITERS, WaiterKey, row_key},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::Txn,
        record::row::{DamagedRow, decode_any_row},
    },
};
use std::{
    ops::Bound,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What stands under a lock's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookedUp<'a> {
    Row(Option<&'a [u8]>),
    /// It was found damaged before.
    Refused {
        until: u64,
    },
    /// The row under this key is damaged: the one that was looked for, or one beside the place where it is missing.
    Damaged {
        at: [u8; 16],
    },
}

/// Looks up a lock's row. A row that is not there may have been lost. Damage that makes a key disappear has mostly garbled
/// its neighbours as well, and the number of rows is written on another page.
pub(super) fn look_up<'a>(txn: &'a Txn<'_>, key: &[u8; 16], now: u64) -> Result<LookedUp<'a>, Error> {
    // A single row is the sequence's, or there is no other row that could have been lost.
    let found = match txn.len(LOCKS)? <= 1 {
        true => txn.get(LOCKS, key)?.map(|bytes| (&key[..], bytes)),
        false => Some(txn.get_or_beside(LOCKS, key)?.ok_or(Error::Damaged)?),
    };
    Ok(found.map_or(LookedUp::Row(None), |(at, bytes)| judge(at, bytes, key, now)))
}

fn judge<'a>(at: &[u8], bytes: &'a [u8], key: &[u8; 16], now: u64) -> LookedUp<'a> {
    let is_asked_for = at == key;
    if decode_any_row(bytes).is_some() {
        return LookedUp::Row(is_asked_for.then_some(bytes));
    }
    match DamagedRow::decode(bytes) {
        None => LookedUp::Damaged { at: row_key(at) },
        Some(row) if row.until <= now => LookedUp::Row(None),
        // One of a sound key says nothing of others.
        Some(DamagedRow { until, has_sound_key }) => match (is_asked_for, has_sound_key) {
            (true, false) => LookedUp::Damaged { at: *key },
            (false, true) => LookedUp::Row(None),
            _ => LookedUp::Refused { until },
        },
    }
}

/// Notes that the row under a key is damaged, and until when it is refused. What stood behind it means nothing any more.
pub(super) fn mark(txn: &mut Txn<'_>, at: &[u8; 16], key: &[u8; 16], damaged: &AtomicU64) -> Result<u64, Error> {
    let before = txn.get(LOCKS, at)?.and_then(DamagedRow::decode);
    if before.is_none() {
        damaged.fetch_add(1, Relaxed);
        clear_line(txn, at)?;
        holders::clear(txn, at)?;
    }
    let until = before.map_or(txn.latest_lease_end(), |row| row.until);
    txn.put(LOCKS, at, &DamagedRow { until, has_sound_key: at == key }.encode())?;
    Ok(until)
}

/// Removes the waiters behind a key.
fn clear_line(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<(), Error> {
    let mut last: WaiterKey = [u8::MAX; 32];
    last[..16].copy_from_slice(key);
    let range = (Bound::Included(&key[..]), Bound::Included(&last[..]));
    for at in txn.rows_within(WAITERS, range, usize::MAX, |at, _| Some(row_key::<32>(at)))? {
        txn.delete(WAITERS, &at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
