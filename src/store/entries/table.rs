//! The tables of `entries/`, and the rows of an entry: the entry itself, those that lead to it by its end, by its place and
//! by its family, and its share in the sums.

use super::{
    entry::{Claims, Encoded, checksum_holds},
    ledger::Ledger,
    pieces::{footprint, piece_key},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Reader, Table, Txn},
        record::row::u64_at,
    },
};
use std::ops::Bound;

pub(crate) const TABLES: [&str; 9] =
    ["entries", "index", "order", "families", "purges", "ages", "floors", "meta", "pieces"];
pub(crate) const ENTRIES: Table = Table(0);
/// `expires` (big-endian) and key: what ends first comes first.
pub(crate) const INDEX: Table = Table(1);
/// Place (big-endian) to key: the order of eviction.
pub(super) const ORDER: Table = Table(2);
/// Family (big-endian) and key of each of its entries.
pub(super) const FAMILIES: Table = Table(3);
pub(crate) const PURGES: Table = Table(4);
/// Group and sequence of each purge (big-endian) to its key in [`PURGES`].
pub(super) const AGES: Table = Table(5);
/// Group to the sequence before which its computations must not have begun, see [`FLOOR`].
pub(super) const FLOORS: Table = Table(6);
/// Numbers under names, and the [ledger](super::ledger).
pub(crate) const META: Table = Table(7);
/// Key and number of a piece (big-endian): the payloads that are not kept whole.
pub(super) const PIECES: Table = Table(8);

const LEDGER: &[u8] = b"ledger";

/// Entries that a name has beside its own: variants and marks.
pub(super) const FAMILY_MAX: usize = 32;

/// The sequence of the last purge.
pub(crate) const SEQUENCE: &[u8] = b"sequence";
/// The sequence of the last purge that the walk must follow. Others have removed all that they match themselves.
pub(super) const WANTED: &[u8] = b"wanted";
/// The sequence up to which the walk has followed all purges.
pub(super) const WALKED: &[u8] = b"walked";
/// Computations begun before this sequence are not stored: purges of their names have been forgotten.
pub(super) const FLOOR: &[u8] = b"floor";

/// A number of [`META`]; 0 if it is not there.
pub(super) fn number(reader: &Reader<'_>, name: &[u8]) -> Result<u64, Error> {
    Ok(reader.get(META, name)?.and_then(|bytes| u64_at(bytes, 0)).unwrap_or(0))
}

pub(crate) fn load_ledger(reader: &Reader<'_>) -> Result<Ledger, Error> {
    Ok(Ledger::decode(reader.get(META, LEDGER)?.unwrap_or_default()))
}

pub(super) fn save_ledger(txn: &mut Txn<'_>, ledger: &Ledger) -> Result<(), Error> {
    let row = ledger.encode();
    if txn.get(META, LEDGER)? == Some(&row[..]) { Ok(()) } else { txn.put(META, LEDGER, &row) }
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

/// The keys of the entries of a family, up to `most`.
pub(super) fn family_members(txn: &Txn<'_>, family: u64, most: usize) -> Result<Vec<[u8; 16]>, Error> {
    let family = family.to_be_bytes();
    let range = (Bound::Included(&family[..]), Bound::Unbounded);
    // Rows are in order: what comes behind the family is of no interest, and ends it.
    let rows = txn.rows_within(FAMILIES, range, most, |row, _| Some(row.strip_prefix(&family).map(key_of)))?;
    Ok(rows.into_iter().map_while(|key| key).collect())
}

pub(super) fn key_of(bytes: &[u8]) -> [u8; 16] {
    bytes.try_into().unwrap_or_default()
}

fn family_key(family: u64, key: &[u8; 16]) -> [u8; 24] {
    index_key(family, key)
}

/// Removes an entry with the rows that lead to it; returns the bytes set free.
pub(crate) fn remove(txn: &mut Txn<'_>, ledger: &mut Ledger, key: &[u8; 16]) -> Result<u64, Error> {
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(0) };
    let (claims, mut freed) = (Claims::of(bytes), footprint(bytes.len()));
    txn.delete(ENTRIES, key)?;
    freed += remove_pieces(txn, key)?;
    txn.delete(INDEX, &index_key(claims.expires, key))?;
    // The entry may be damaged, and its place that of another.
    if txn.get(ORDER, &claims.place.to_be_bytes())? == Some(key) {
        txn.delete(ORDER, &claims.place.to_be_bytes())?;
    }
    if claims.family != 0 {
        txn.delete(FAMILIES, &family_key(claims.family, key))?;
    }
    ledger.removed(claims.place, freed, claims.is_mark);
    Ok(freed)
}

/// Removes the payload of an entry; returns the bytes set free.
fn remove_pieces(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<u64, Error> {
    let (first, last) = (piece_key(key, 0), piece_key(key, usize::MAX));
    let range = (Bound::Included(&first[..]), Bound::Included(&last[..]));
    let pieces =
        txn.rows_within(PIECES, range, usize::MAX, |key, row| Some((<[u8; 20]>::try_from(key).ok(), row.len())))?;
    let mut freed = 0;
    for (key, len) in pieces {
        freed += footprint(len);
        txn.delete(PIECES, &key.unwrap_or_default())?;
    }
    Ok(freed)
}

/// Removes an entry that was found by a row that leads to it. The row goes in any case; the entry only if the row is its
/// own, or if the entry is damaged: then it may have no other row.
pub(super) fn remove_found(txn: &mut Txn<'_>, ledger: &mut Ledger, key: &[u8; 16], by: FoundBy) -> Result<u64, Error> {
    match by {
        FoundBy::End(expires) => txn.delete(INDEX, &index_key(expires, key))?,
        FoundBy::Place(place) => txn.delete(ORDER, &place.to_be_bytes())?,
    };
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(0) };
    let claims = Claims::of(bytes);
    let is_own = match by {
        FoundBy::End(expires) => claims.expires == expires,
        FoundBy::Place(place) => claims.place == place,
    };
    if is_own || !checksum_holds(bytes) { remove(txn, ledger, key) } else { Ok(0) }
}

/// The row by which an entry was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum FoundBy {
    End(u64),
    Place(u64),
}

/// Puts other bytes of the same length in the place of an entry's.
pub(super) fn replace(txn: &mut Txn<'_>, key: &[u8; 16], bytes: &[u8]) -> Result<(), Error> {
    if let Some(before) = txn.get(ENTRIES, key)? {
        let before = Claims::of(before).expires;
        txn.delete(INDEX, &index_key(before, key))?;
    }
    txn.put(INDEX, &index_key(Claims::of(bytes).expires, key), &[])?;
    txn.put(ENTRIES, key, bytes)
}

/// Puts an entry that is not there yet.
pub(super) fn put(txn: &mut Txn<'_>, ledger: &mut Ledger, key: &[u8; 16], entry: &Encoded) -> Result<(), Error> {
    let Encoded { row, pieces } = entry;
    let claims = Claims::of(row);
    txn.put(INDEX, &index_key(claims.expires, key), &[])?;
    txn.put(ORDER, &claims.place.to_be_bytes(), key)?;
    if claims.family != 0 {
        txn.put(FAMILIES, &family_key(claims.family, key), &[])?;
    }
    txn.put(ENTRIES, key, row)?;
    for (number, piece) in pieces.iter().enumerate() {
        txn.put(PIECES, &piece_key(key, number), piece)?;
    }
    ledger.added(claims.place, Claims::footprint(row), claims.is_mark);
    Ok(())
}
