//! The walk over all entries that follows purges, a step at a time: it removes or rewrites those that a purge has hit.
//! What it has got to stands in the files, so that all processes walk on together.

use super::{
    entry::{decode_without_payload, with_life},
    purge_rule::{applied, standing_since},
    table::{ENTRIES, META, SEQUENCE, WALKED, WANTED, key_of, load_ledger, number, remove, replace, save_ledger},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Reader, Txn},
        record::row::u64_at,
    },
};
use std::ops::Bound;

/// Where this round is: the sequence at its beginning, and the key of the last entry.
const ROUND: &[u8] = b"round";

/// Entries that one step looks at.
const STEP: usize = 128;

/// Whether there is a purge to follow.
pub(super) fn is_wanted(reader: &Reader<'_>) -> Result<bool, Error> {
    Ok(number(reader, WALKED)? < number(reader, WANTED)?)
}

/// Makes the walk follow a purge.
pub(super) fn follow(txn: &mut Txn<'_>, sequence: u64) -> Result<(), Error> {
    txn.put(META, WANTED, &sequence.to_le_bytes())
}

/// Walks on by a step, if there is a purge to follow. Returns whether it has.
pub(super) fn walk_on(txn: &mut Txn<'_>) -> Result<bool, Error> {
    if !is_wanted(&txn.reader())? {
        return Ok(false);
    }
    let round = txn.get(META, ROUND)?.and_then(|row| Some((u64_at(row, 0)?, row.get(8..).map(key_of)?)));
    let (upto, at) = match round {
        Some((upto, at)) => (upto, Some(at)),
        None => (number(&txn.reader(), SEQUENCE)?, None),
    };
    let from = at.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
    let keys = txn.rows(ENTRIES, from, STEP, |key, _| key_of(key))?;
    let applied = applied(&txn.reader())?;
    for key in &keys {
        apply_purges(txn, key, applied)?;
    }
    match keys.last() {
        Some(last) if keys.len() == STEP => {
            let mut row = [0; 24];
            row[..8].copy_from_slice(&upto.to_le_bytes());
            row[8..].copy_from_slice(last);
            txn.put(META, ROUND, &row)?;
        }
        _ => {
            txn.delete(META, ROUND)?;
            txn.put(META, WALKED, &upto.to_le_bytes())?;
        }
    }
    Ok(true)
}

/// Rewrites or removes an entry as the purges since `applied` have left it.
pub(super) fn apply_purges(txn: &mut Txn<'_>, key: &[u8; 16], applied: u64) -> Result<(), Error> {
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(()) };
    let standing = match decode_without_payload(bytes) {
        Some((entry, name)) => {
            let since = entry.sequence.max(applied);
            standing_since(&txn.reader(), since, key, name, &entry)?.map(|life| (life, entry))
        }
        None => None,
    };
    let settled = match standing {
        Some((life, entry)) if life == entry.life => return Ok(()),
        Some((life, _)) => with_life(bytes, &life, number(&txn.reader(), SEQUENCE)?),
        None => None,
    };
    if let Some(settled) = settled {
        replace(txn, key, &settled)?;
    } else {
        let mut ledger = load_ledger(&txn.reader())?;
        remove(txn, &mut ledger, key)?;
        save_ledger(txn, &ledger)?;
    }
    Ok(())
}
