//! The holders of a lock that do not stand in its own row. Each has a row of its own and one in an index, so that what
//! one of them does costs the same beside ten others and beside thousands.
//!
//! The index says when a holder must be looked at next: those who hold by instance and then by time, so that a death finds
//! its own; those who were offered a place by time.

use super::tables::{HOLDERS, row_key};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::Txn,
        record::{
            key::Key,
            row::{Row, decode_any_row, with_row},
        },
    },
};
use std::ops::Bound;

/// Who holds: the owner, and a number of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HolderId {
    pub(crate) owner: u128,
    pub(crate) number: u64,
}

/// Where a holder stands in the index. The order is that of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// It holds in an instance, and must be looked at at this machine time, in ns.
    Held { instance: u64, at: u64 },
    /// It was offered a place until then.
    Offered { at: u64, instance: u64 },
}

impl Due {
    /// Machine time in ns at which it must be looked at.
    pub(crate) fn time(self) -> u64 {
        match self {
            Due::Held { at, .. } | Due::Offered { at, .. } => at,
        }
    }

    pub(crate) fn instance(self) -> u64 {
        match self {
            Due::Held { instance, .. } | Due::Offered { instance, .. } => instance,
        }
    }
}

/// A holder with a row of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HolderRow {
    pub(crate) id: HolderId,
    pub(crate) due: Due,
    pub(crate) payload: Vec<u8>,
}

/// A change of a holder's row. Without `before` it is new, without `after` it is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HolderStep {
    pub(crate) id: HolderId,
    pub(crate) before: Option<Due>,
    pub(crate) after: Option<(Due, Vec<u8>)>,
}

const ROW: u8 = 0;
const HELD: u8 = 1;
const OFFERED: u8 = 2;

/// Key of the lock, kind, owner and number.
const ROW_KEY: usize = 16 + 1 + 16 + 8;
/// Key of the lock, kind, two numbers of the order, number and owner.
const DUE_KEY: usize = 16 + 1 + 16 + 8 + 16;

fn id_key(lock: &[u8; 16], id: HolderId) -> [u8; ROW_KEY] {
    let mut key = [0; ROW_KEY];
    key[..16].copy_from_slice(lock);
    key[16] = ROW;
    key[17..33].copy_from_slice(&id.owner.to_be_bytes());
    key[33..].copy_from_slice(&id.number.to_be_bytes());
    key
}

fn due_key(lock: &[u8; 16], due: Due, id: HolderId) -> [u8; DUE_KEY] {
    let (kind, first, second) = match due {
        Due::Held { instance, at } => (HELD, instance, at),
        Due::Offered { at, instance } => (OFFERED, at, instance),
    };
    let mut key = [0; DUE_KEY];
    key[..16].copy_from_slice(lock);
    key[16] = kind;
    key[17..25].copy_from_slice(&first.to_be_bytes());
    key[25..33].copy_from_slice(&second.to_be_bytes());
    key[33..41].copy_from_slice(&id.number.to_be_bytes());
    key[41..].copy_from_slice(&id.owner.to_be_bytes());
    key
}

fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

fn owner_at(key: &[u8], at: usize) -> Option<u128> {
    Some(u128::from_be_bytes(key.get(at..at + 16)?.try_into().ok()?))
}

fn decode_due(key: &[u8]) -> Option<(Due, HolderId)> {
    let (first, second) = (number_at(key, 17)?, number_at(key, 25)?);
    let id = HolderId { number: number_at(key, 33)?, owner: owner_at(key, 41)? };
    let due = match key[16] {
        HELD => Due::Held { instance: first, at: second },
        OFFERED => Due::Offered { at: first, instance: second },
        _ => return None,
    };
    Some((due, id))
}

fn decode_row(key: &[u8], bytes: &[u8], echo: u64) -> Option<HolderRow> {
    let (found, row) = decode_any_row(bytes)?;
    let (&kind, payload) = row.payload.split_first()?;
    let (at, instance) = (row.expires, row.tag);
    let due = match kind {
        HELD => Due::Held { instance, at },
        OFFERED => Due::Offered { at, instance },
        _ => return None,
    };
    let id = HolderId { owner: owner_at(key, 17)?, number: number_at(key, 33)? };
    (found == echo).then(|| HolderRow { id, due, payload: payload.to_vec() })
}

/// A holder's row. `None` within: it is there, and damaged.
pub(super) fn get(txn: &Txn<'_>, key: &Key, id: HolderId) -> Result<Option<Option<HolderRow>>, Error> {
    let at = id_key(&key.hash, id);
    Ok(txn.get(HOLDERS, &at)?.map(|bytes| decode_row(&at, bytes, key.echo)))
}

/// The first rows of holders, of one owner or of all, in order of owner. `None` stands for a damaged one.
pub(super) fn rows(
    txn: &Txn<'_>,
    key: &Key,
    owner: Option<u128>,
    most: usize,
) -> Result<Vec<Option<HolderRow>>, Error> {
    let first = id_key(&key.hash, HolderId { owner: owner.unwrap_or(0), number: 0 });
    let last = id_key(&key.hash, HolderId { owner: owner.unwrap_or(u128::MAX), number: u64::MAX });
    let range = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    txn.rows_within(HOLDERS, range, most, |at, bytes| Some(decode_row(at, bytes, key.echo)))
}

/// The first entries of the index from one place to another, in order.
pub(super) fn due(
    txn: &Txn<'_>,
    key: &Key,
    (from, to): (Due, Due),
    most: usize,
) -> Result<Vec<(Due, HolderId)>, Error> {
    let first = due_key(&key.hash, from, HolderId { owner: 0, number: 0 });
    let last = due_key(&key.hash, to, HolderId { owner: u128::MAX, number: u64::MAX });
    let range = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    txn.rows_within(HOLDERS, range, most, |at, _| decode_due(at))
}

/// Takes a step; returns whether anything was changed.
pub(super) fn step(txn: &mut Txn<'_>, key: &Key, step: HolderStep) -> Result<bool, Error> {
    let HolderStep { id, before, after } = step;
    let mut changed = false;
    let due_after = after.as_ref().map(|(due, _)| *due);
    if let Some(before) = before.filter(|before| due_after != Some(*before)) {
        changed |= txn.delete(HOLDERS, &due_key(&key.hash, before, id))?;
    }
    match after {
        None => changed |= txn.delete(HOLDERS, &id_key(&key.hash, id))?,
        Some((due, payload)) => {
            if before != Some(due) {
                txn.put(HOLDERS, &due_key(&key.hash, due, id), &[])?;
            }
            put_row(txn, key, id, due, &payload)?;
            changed = true;
        }
    }
    Ok(changed)
}

fn put_row(txn: &mut Txn<'_>, key: &Key, id: HolderId, due: Due, payload: &[u8]) -> Result<(), Error> {
    let (kind, at, instance) = match due {
        Due::Held { instance, at } => (HELD, at, instance),
        Due::Offered { at, instance } => (OFFERED, at, instance),
    };
    let mut bytes = Vec::with_capacity(1 + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    let row = Row { expires: at, tag: instance, payload: &bytes };
    with_row(key, &row, |bytes| txn.put(HOLDERS, &id_key(&key.hash, id), bytes))
}

/// Removes the holders of a key whose rows are damaged, and makes the index anew. Returns the others.
pub(super) fn mend(txn: &mut Txn<'_>, key: &Key) -> Result<Vec<HolderRow>, Error> {
    let left: Vec<HolderRow> = rows(txn, key, None, usize::MAX)?.into_iter().flatten().collect();
    clear(txn, &key.hash)?;
    for HolderRow { id, due, payload } in &left {
        step(txn, key, HolderStep { id: *id, before: None, after: Some((*due, payload.clone())) })?;
    }
    Ok(left)
}

/// Removes all holders of a key.
pub(super) fn clear(txn: &mut Txn<'_>, lock: &[u8; 16]) -> Result<(), Error> {
    let last = [&lock[..], &[u8::MAX; DUE_KEY - 16]].concat();
    let range = (Bound::Included(&lock[..]), Bound::Included(&last[..]));
    for at in txn.rows_within(HOLDERS, range, usize::MAX, |at, _| Some(at.to_vec()))? {
        txn.delete(HOLDERS, &at)?;
    }
    Ok(())
}

/// The lock to which a row of the table belongs.
pub(super) fn lock_of(at: &[u8]) -> [u8; 16] {
    row_key(at)
}

#[cfg(test)]
mod tests;
