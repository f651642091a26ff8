//! Damaged rows of locks. Each is the trouble of one key: it is refused until the latest lease that was ever granted in
//! the directory has ended, and begins anew then. Only a structural error of LMDB's ends the whole environment.

use super::tables::{LOCKS, WAITERS, WaiterKey, row_key};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Table, Txn},
        record::row::{damaged_row, decode_any_row, refused_until},
    },
};
use std::ops::Bound;

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
    if decode_any_row(bytes).is_some() {
        return LookedUp::Row((at == key).then_some(bytes));
    }
    match refused_until(bytes) {
        Some(until) if until > now => LookedUp::Refused { until },
        Some(_) => LookedUp::Row(None),
        None => LookedUp::Damaged { at: row_key(at) },
    }
}

/// Notes that the row under a key is damaged, and until when it is refused. What stood behind it means nothing any more.
pub(super) fn mark(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<u64, Error> {
    let until = txn.latest_lease_end();
    txn.put(LOCKS, key, &damaged_row(until))?;
    clear(txn, WAITERS, key)?;
    Ok(until)
}

/// Removes the rows that stand behind a key.
fn clear(txn: &mut Txn<'_>, table: Table, key: &[u8; 16]) -> Result<(), Error> {
    let mut last: WaiterKey = [u8::MAX; 32];
    last[..16].copy_from_slice(key);
    let range = (Bound::Included(&key[..]), Bound::Included(&last[..]));
    for key in txn.rows_within(table, range, usize::MAX, |key, _| Some(key.to_vec()))? {
        txn.delete(table, &key)?;
    }
    Ok(())
}
