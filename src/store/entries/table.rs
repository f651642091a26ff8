//! The tables of `entries/`, and the rows of an entry: the entry itself, its place in the index, its share in the sums.

use super::entry::{checksum_holds, claimed_expiry, claims_to_be_mark};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Reader, Table, Txn},
        record::row::u64_at,
    },
};
use std::ops::Bound;

pub(crate) const TABLES: [&str; 4] = ["entries", "index", "purges", "meta"];
pub(crate) const ENTRIES: Table = Table(0);
/// `expires` (big-endian) and key: what ends first comes first.
pub(crate) const INDEX: Table = Table(1);
pub(crate) const PURGES: Table = Table(2);
/// Numbers under names.
pub(crate) const META: Table = Table(3);

pub(super) const BYTES: &[u8] = b"bytes";
pub(super) const MARKS: &[u8] = b"marks";

/// The sequence of the last purge.
pub(crate) const SEQUENCE: &[u8] = b"sequence";
/// The sequence of the last soft purge, and of the last one of a prefix: an entry whose computation began after it need
/// not look for such purges.
pub(super) const SOFT: &[u8] = b"soft";
pub(super) const PREFIXED: &[u8] = b"prefixed";
/// Computations begun before this sequence are not stored: purges of their names have been forgotten.
pub(super) const FLOOR: &[u8] = b"floor";

/// Rows that one write clears away, besides the rows whose room it needs.
pub(super) const BITE: usize = 16;

/// A number of [`META`]; 0 if it is not there.
pub(super) fn number(reader: &Reader<'_>, name: &[u8]) -> Result<u64, Error> {
    Ok(reader.get(META, name)?.and_then(|bytes| u64_at(bytes, 0)).unwrap_or(0))
}

fn index_key(expires: u64, key: &[u8; 16]) -> [u8; 24] {
    let mut index = [0; 24];
    index[..8].copy_from_slice(&expires.to_be_bytes());
    index[8..].copy_from_slice(key);
    index
}

pub(super) fn split_index_key(index: &[u8]) -> (u64, [u8; 16]) {
    let mut expires = [0; 8];
    let mut key = [0; 16];
    if index.len() == 24 {
        expires.copy_from_slice(&index[..8]);
        key.copy_from_slice(&index[8..]);
    }
    (u64::from_be_bytes(expires), key)
}

/// Bytes that a value takes on disk: small values share pages, large ones have whole pages.
pub(super) fn footprint(len: usize) -> u64 {
    const PAGE: u64 = 4096;
    let len = len as u64;
    if len <= 2000 { len + 128 } else { (len + 16).div_ceil(PAGE) * PAGE + 64 }
}

fn add(txn: &mut Txn<'_>, number: &[u8], change: i64) -> Result<(), Error> {
    let sum = self::number(&txn.reader(), number)?.saturating_add_signed(change);
    txn.put(META, number, &sum.to_le_bytes())
}

/// Removes an entry and its index row; returns the bytes set free. With `indexed`, that index row goes in any case. The
/// entry goes only if that row is its own, or if the entry is damaged: then it may have no other row.
pub(crate) fn remove(txn: &mut Txn<'_>, key: &[u8; 16], indexed: Option<u64>) -> Result<u64, Error> {
    if let Some(expires) = indexed {
        txn.delete(INDEX, &index_key(expires, key))?;
    }
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(0) };
    let (expires, freed) = (claimed_expiry(bytes), footprint(bytes.len()));
    let is_mark = claims_to_be_mark(bytes);
    if indexed.is_some_and(|indexed| indexed != expires) && checksum_holds(bytes) {
        return Ok(0);
    }
    if indexed != Some(expires) {
        txn.delete(INDEX, &index_key(expires, key))?;
    }
    txn.delete(ENTRIES, key)?;
    if is_mark {
        add(txn, MARKS, -1)?;
    }
    add(txn, BYTES, -(freed as i64))?;
    Ok(freed)
}

/// Puts other bytes of the same length in the place of an entry's.
pub(crate) fn replace(txn: &mut Txn<'_>, key: &[u8; 16], expires: u64, bytes: &[u8]) -> Result<(), Error> {
    if let Some(before) = txn.get(ENTRIES, key)? {
        let before = claimed_expiry(before);
        txn.delete(INDEX, &index_key(before, key))?;
    }
    txn.put(INDEX, &index_key(expires, key), &[])?;
    txn.put(ENTRIES, key, bytes)
}

/// Puts an entry that is not there yet.
pub(super) fn put(txn: &mut Txn<'_>, key: &[u8; 16], expires: u64, bytes: &[u8]) -> Result<(), Error> {
    txn.put(INDEX, &index_key(expires, key), &[])?;
    txn.put(ENTRIES, key, bytes)?;
    if claims_to_be_mark(bytes) {
        add(txn, MARKS, 1)?;
    }
    add(txn, BYTES, footprint(bytes.len()) as i64)
}

/// Called when the map or the disk is full: drops the entries that end first.
pub(crate) fn make_room(txn: &mut Txn<'_>) -> Result<bool, Error> {
    let rows = txn.rows(INDEX, Bound::Unbounded, BITE, |key, _| split_index_key(key))?;
    for &(expires, key) in &rows {
        remove(txn, &key, Some(expires))?;
    }
    Ok(!rows.is_empty())
}
