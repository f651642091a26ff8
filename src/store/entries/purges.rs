//! Purges of stored answers.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it. A soft purge ends the life of matching entries at its own time, and leaves
//! them their grace. [Tidying](super::tidying) removes or rewrites the entries that purges have hit.

use super::{
    entry::{Entry, decode_without_payload, with_life},
    eviction::FAMILY_MAX,
    purge_rule::{FAMILY, NAME, PurgeKey, SOFTLY, Subject, standing, standing_at, times},
    table::{
        ENTRIES, FLOOR, META, PREFIXED, PURGES, SEQUENCE, SOFT, family_members, load_ledger, number, remove, replace,
        save_ledger,
    },
};
use crate::{
    error::Error,
    store::{
        commit::operation::Operation,
        lmdb::transaction::{Reader, Txn},
        record::key::ScopeId,
    },
};
use std::{ops::Bound, time::Duration};

/// The answer of a computation that took longer is not stored: purge rows since its begin may be gone.
pub(crate) const LONGEST_FLIGHT: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// Purges of names and tags that are remembered one by one.
pub(crate) const PURGES_MAX: u64 = 32_768;
/// Soft purges of one subject that are remembered one by one.
const TIMES_MAX: usize = 16;
/// Prefixes of one scope that are remembered one by one.
const PREFIXES_MAX: usize = 64;

/// An answer that is to be stored, as the purges since its computation began have left it: the walk that follows them
/// may have passed already. `None`: it must not be stored, since one of them matches it, or it began so long ago that
/// this is not known.
pub(crate) fn as_of_now(
    reader: &Reader<'_>,
    key: &[u8; 16],
    name: &[u8],
    entry: &Entry,
) -> Result<Option<Entry>, Error> {
    if entry.cost >= LONGEST_FLIGHT || entry.sequence < number(reader, FLOOR)? {
        return Ok(None);
    }
    let sequence = number(reader, SEQUENCE)?;
    let standing = standing_at(reader, sequence, key, name, entry)?;
    Ok(standing.map(|life| Entry { life, sequence: entry.sequence.max(sequence), ..entry.clone() }))
}

pub(crate) struct Purge {
    pub(crate) subject: Subject,
    /// Matching entries have ended, and may be served as ended ones.
    pub(crate) soft: bool,
    pub(crate) now: u64,
    /// Entries that a purge up to this sequence matched are gone.
    pub(crate) walked: u64,
}

impl Operation for Purge {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let sequence = number(&txn.reader(), SEQUENCE)? + 1;
        if txn.len(PURGES)? >= PURGES_MAX {
            forget_purges(txn, self.walked, sequence, self.now)?;
        }
        if let Subject::Prefix(scope, _) = self.subject {
            if forget_prefixes(txn, scope, self.soft)? {
                self.subject = Subject::Scope(scope);
            } else {
                txn.put(META, PREFIXED, &sequence.to_le_bytes())?;
            }
        }
        put_purge(txn, &self.subject, self.soft, (sequence, self.now), self.walked)?;
        txn.put(META, SEQUENCE, &sequence.to_le_bytes())?;
        if self.soft {
            txn.put(META, SOFT, &sequence.to_le_bytes())?;
        }
        match &self.subject {
            Subject::Name(name) => apply_purges(txn, name).map(drop)?,
            Subject::Family(_, family) => {
                for key in family_members(txn, *family, FAMILY_MAX)? {
                    apply_purges(txn, &key)?;
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Rewrites or removes an entry as purges have left it. Returns whether anything was changed.
pub(super) fn apply_purges(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<bool, Error> {
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(false) };
    let standing = match decode_without_payload(bytes) {
        Some((entry, name)) => standing(&txn.reader(), key, name, &entry)?.map(|life| (life, entry)),
        None => None,
    };
    match standing {
        Some((life, entry)) if life == entry.life => return Ok(false),
        Some((life, _)) => {
            let settled = with_life(bytes, &life, number(&txn.reader(), SEQUENCE)?);
            match settled {
                Some(settled) => replace(txn, key, &settled)?,
                None => remove_alone(txn, key)?,
            }
        }
        None => remove_alone(txn, key)?,
    }
    Ok(true)
}

fn remove_alone(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<(), Error> {
    let mut ledger = load_ledger(&txn.reader())?;
    remove(txn, &mut ledger, key)?;
    save_ledger(txn, &ledger)
}

fn put_purge(txn: &mut Txn<'_>, subject: &Subject, soft: bool, time: (u64, u64), walked: u64) -> Result<(), Error> {
    let key = subject.key(soft);
    let mut all: Vec<_> = match txn.get(PURGES, key.as_bytes())?.filter(|_| soft) {
        // The entries that the walk has passed carry their end themselves.
        Some(row) => times(row).filter(|(sequence, _)| *sequence > walked).collect(),
        None => Vec::new(),
    };
    if all.len() >= TIMES_MAX {
        // The earlier time stands for both.
        all[0].0 = all[1].0;
        all.remove(1);
    }
    all.push(time);
    let row: Vec<u8> =
        all.iter().flat_map(|(sequence, now)| [sequence.to_le_bytes(), now.to_le_bytes()]).flatten().collect();
    txn.put(PURGES, key.as_bytes(), &row)
}

/// Every read of an entry that is older than they are goes through the prefixes of its scope. Returns whether there
/// were too many: then a purge of the scope takes their place.
fn forget_prefixes(txn: &mut Txn<'_>, scope: ScopeId, soft: bool) -> Result<bool, Error> {
    let all = Subject::Prefix(scope, Vec::new()).key(soft);
    let range = (Bound::Included(all.as_bytes()), Bound::Unbounded);
    let prefixes = txn.rows_within(PURGES, range, PREFIXES_MAX, |key, _| {
        Some(key.starts_with(all.as_bytes()).then(|| PurgeKey::of(key)))
    })?;
    let prefixes: Vec<PurgeKey> = prefixes.into_iter().map_while(|key| key).collect();
    let too_many = prefixes.len() >= PREFIXES_MAX;
    if too_many {
        for key in prefixes {
            txn.delete(PURGES, key.as_bytes())?;
        }
    }
    Ok(too_many)
}

/// Names to purge come from requests, so rows have a bound. Where the entries are gone already, since they stood under
/// the name or a walk has passed, only computations under way need the row. Their answers are then not stored, whatever
/// their name. If too many rows are left, everything is purged, even if some purges were soft.
fn forget_purges(txn: &mut Txn<'_>, walked: u64, sequence: u64, now: u64) -> Result<(), Error> {
    let rows = txn.rows(PURGES, Bound::Unbounded, usize::MAX, |key, row| {
        let is_name = key.first().is_some_and(|kind| matches!(kind & !SOFTLY, NAME | FAMILY));
        let gone = is_name || times(row).next_back().is_none_or(|(sequence, _)| sequence <= walked);
        (key.to_vec(), gone)
    })?;
    let left = rows.iter().filter(|row| !row.1).count();
    let all = left as u64 > PURGES_MAX / 4 * 3;
    for (key, _) in rows.into_iter().filter(|row| all || row.1) {
        txn.delete(PURGES, &key)?;
    }
    txn.put(META, FLOOR, &sequence.to_le_bytes())?;
    if all { put_purge(txn, &Subject::All, false, (sequence, now), walked) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
