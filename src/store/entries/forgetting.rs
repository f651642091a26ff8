//! Forgetting purges: their rows have a bound, since names and tags to purge come from requests.
//!
//! A purge whose entries are gone is only of use to the answers that are being computed. Forgotten, it leaves a floor to
//! its group, which is its scope or, for a tag, everything: what began to be computed before it is not stored. Entries
//! that are there are never touched by it.

use super::{
    purge_rule::{Group, PurgeKey, applied, times},
    table::{AGES, FLOOR, FLOORS, META, PURGES, number},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::{Reader, Txn},
        record::key::ScopeId,
    },
};
use std::{ops::Bound, time::Duration};

/// The answer of a computation that took longer is not stored: purge rows since its begin may be gone.
pub(crate) const LONGEST_FLIGHT: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// Purges that are remembered; fewer in unit tests, which go beyond it many times.
pub(crate) const PURGES_MAX: u64 = if cfg!(test) { 4096 } else { 32_768 };
/// Scopes that have a floor of their own.
pub(super) const FLOORS_MAX: u64 = 1024;

/// Rows that are looked at to find one that may be forgotten.
const LOOKED_AT: usize = 16;
/// Rows that a purge forgets at most: more than the one that it adds.
const FORGOTTEN: usize = 2;
/// Rows that a step of tidying looks at.
const SWEPT: usize = 256;

/// Computations of a scope that began before this sequence are not stored.
pub(super) fn floor(reader: &Reader<'_>, scope: ScopeId) -> Result<u64, Error> {
    let own = reader.get(FLOORS, &Group::of_scope(&scope).0)?.and_then(sequence_of).unwrap_or(0);
    Ok(own.max(number(reader, FLOOR)?))
}

/// Makes room for one more purge: first among those of its own group. Returns whether there is room; there may be none
/// before the walk has followed more of them.
pub(super) fn make_way(txn: &mut Txn<'_>, group: Group) -> Result<bool, Error> {
    if txn.len(PURGES)? < PURGES_MAX {
        return Ok(true);
    }
    // Mostly the oldest ones may be forgotten.
    for looked_at in [FORGOTTEN, LOOKED_AT] {
        let own = txn.rows(AGES, Bound::Included(&group.0), looked_at, age)?;
        if forget(txn, own.into_iter().filter(|age| age.group == group))? {
            return Ok(true);
        }
    }
    // Those of the groups behind it, and of the first ones.
    let own_end = group.aged(u64::MAX);
    for from in [Bound::Excluded(&own_end[..]), Bound::Unbounded] {
        let others = txn.rows(AGES, from, LOOKED_AT, age)?;
        if forget(txn, others.into_iter())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Forgets some of these purges, and returns whether it could.
fn forget(txn: &mut Txn<'_>, ages: impl Iterator<Item = Age>) -> Result<bool, Error> {
    let applied = applied(&txn.reader())?;
    let mut forgotten = false;
    for age in ages.filter(|age| age.sequence <= applied || age.subject.is_applied_at_once()).take(FORGOTTEN) {
        txn.delete(PURGES, age.subject.as_bytes())?;
        txn.delete(AGES, &age.group.aged(age.sequence))?;
        raise_floor(txn, age.group, age.sequence)?;
        forgotten = true;
    }
    Ok(forgotten)
}

/// Drops a step of purges whose entries are all gone, and that are older than every computation still under way. Returns
/// the row up to which all have been looked at, if there are more, and whether any was dropped.
pub(super) fn sweep(txn: &mut Txn<'_>, after: Option<PurgeKey>, now: u64) -> Result<(Option<PurgeKey>, bool), Error> {
    let applied = applied(&txn.reader())?;
    let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_bytes()));
    let rows = txn.rows(PURGES, from, SWEPT, |key, row| {
        let (sequence, time) = times(row).next_back().unwrap_or_default();
        let key = PurgeKey::of(key);
        let is_applied = sequence <= applied || key.is_applied_at_once();
        (key, sequence, is_applied && time.saturating_add(2 * LONGEST_FLIGHT) < now)
    })?;
    let last = rows.last().filter(|_| rows.len() == SWEPT).map(|row| row.0);
    let mut dropped = false;
    for (key, sequence, _) in rows.into_iter().filter(|row| row.2) {
        dropped |= txn.delete(PURGES, key.as_bytes())?;
        txn.delete(AGES, &key.group().aged(sequence))?;
    }
    Ok((last, dropped))
}

fn raise_floor(txn: &mut Txn<'_>, group: Group, sequence: u64) -> Result<(), Error> {
    if group == Group::ALL {
        return raise_common_floor(txn, sequence);
    }
    let before = txn.get(FLOORS, &group.0)?.and_then(sequence_of);
    if before.is_some_and(|before| before >= sequence) {
        return Ok(());
    }
    if before.is_none() && txn.len(FLOORS)? >= FLOORS_MAX {
        // One more that is known by its own makes one less: the floor of another scope becomes everybody's.
        let others = txn.rows(FLOORS, Bound::Unbounded, FORGOTTEN, |key, row| (key.to_vec(), sequence_of(row)))?;
        for (key, floor) in others {
            txn.delete(FLOORS, &key)?;
            raise_common_floor(txn, floor.unwrap_or(0))?;
        }
    }
    txn.put(FLOORS, &group.0, &sequence.to_le_bytes())
}

fn raise_common_floor(txn: &mut Txn<'_>, sequence: u64) -> Result<(), Error> {
    if number(&txn.reader(), FLOOR)? >= sequence {
        return Ok(());
    }
    txn.put(META, FLOOR, &sequence.to_le_bytes())
}

fn sequence_of(row: &[u8]) -> Option<u64> {
    row.try_into().ok().map(u64::from_le_bytes)
}

/// A purge, by its age in its group.
struct Age {
    group: Group,
    sequence: u64,
    subject: PurgeKey,
}

fn age(key: &[u8], subject: &[u8]) -> Age {
    let (group, sequence) = Group::split(key);
    Age { group, sequence, subject: PurgeKey::of(subject) }
}
