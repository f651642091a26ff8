//! Purges, and the tidying that follows them.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it. A soft purge ends the life of what it matches at its own time, and leaves it its
//! grace. A walk over all entries, in steps, removes or rewrites what purges have hit.

mod rule;

pub(crate) use rule::{Look, Subject};

use super::{
    entries::{ENTRIES, Entries, LONGEST_FLIGHT, META, remove, replace},
    env::{Table, Txn},
    lane::Run,
    record::{self, Entry, ScopeId},
};
use crate::error::Error;
use rule::{NAME, PurgeKey, SOFTLY, times};
use std::{
    ops::Bound,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

pub(crate) const PURGES: Table = Table(2);
pub(crate) const SEQUENCE: &[u8] = b"sequence";
/// The sequence of the last soft purge, and of the last of a prefix: what began after it need not look for such.
const SOFT: &[u8] = b"soft";
const PREFIXED: &[u8] = b"prefixed";
/// Computations begun before this sequence are not stored: purges of their names have been forgotten.
const FLOOR: &[u8] = b"floor";
/// Rows that one step of the walk after a purge looks at.
const STEP: usize = 128;
/// Purges of names and tags that are remembered one by one.
pub(crate) const PURGES_MAX: u64 = 32_768;
/// Purge rows that one step of tidying looks at.
const PURGES_STEP: usize = 4096;
/// Bytes that a prefix may have: those of a name that are kept beside its entry.
pub(crate) const PREFIX_MAX: usize = record::ECHO_MAX;
/// Soft purges of one subject that are remembered one by one.
const TIMES_MAX: usize = 16;
/// Prefixes of one scope that are remembered one by one.
const PREFIXES_MAX: usize = 64;

/// The walk over all entries that follows a purge, after which the purge's row can go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    at: Option<[u8; 16]>,
    /// The sequence when this round began.
    began: u64,
    /// The sequence up to which everything has been walked.
    pub(crate) done: u64,
    /// The purge row up to which all have been looked at.
    purge: Option<PurgeKey>,
}

/// An answer that is to be stored, as purges since its begin have left it: the walk that follows them may have come by
/// already. `None`: it must not be stored, since one of them matches it, or it began so long ago that nobody knows.
pub(crate) fn as_of_now(txn: &impl Look, key: &[u8; 16], name: &[u8], entry: &Entry) -> Result<Option<Entry>, Error> {
    if entry.cost >= LONGEST_FLIGHT || entry.sequence < txn.number(FLOOR)? {
        return Ok(None);
    }
    let sequence = txn.number(SEQUENCE)?;
    let standing = txn.standing_at(sequence, key, name, entry)?;
    Ok(standing.map(|life| Entry { life, sequence: entry.sequence.max(sequence), ..entry.clone() }))
}

pub(crate) struct Purge {
    pub(crate) subject: Subject,
    /// What it matches has ended, and may be served as such.
    pub(crate) soft: bool,
    pub(crate) now: u64,
    /// Entries that a purge up to this sequence took are gone.
    pub(crate) walked: u64,
}

impl Run for Purge {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let sequence = txn.number(SEQUENCE)? + 1;
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
        match (&self.subject, self.soft) {
            (Subject::Name(name), false) => {
                remove(txn, name, None)?;
            }
            (Subject::Name(name), true) => {
                settle(txn, name)?;
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Makes an entry what purges have left of it. Whether anything was changed.
fn settle(txn: &mut Txn<'_>, key: &[u8; 16]) -> Result<bool, Error> {
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(false) };
    let standing = match record::decode_without_payload(bytes) {
        Some((entry, name)) => txn.standing(key, name, &entry)?.map(|life| (life, entry)),
        None => None,
    };
    match standing {
        Some((life, entry)) if life == entry.life => return Ok(false),
        Some((life, _)) => {
            let settled = record::with_life(bytes, &life, txn.number(SEQUENCE)?);
            match settled {
                Some(settled) => replace(txn, key, life.ends(), &settled)?,
                None => remove(txn, key, None).map(drop)?,
            }
        }
        None => remove(txn, key, None).map(drop)?,
    }
    Ok(true)
}

fn put_purge(txn: &mut Txn<'_>, subject: &Subject, soft: bool, time: (u64, u64), walked: u64) -> Result<(), Error> {
    let key = subject.key(soft);
    let mut all: Vec<_> = match txn.get(PURGES, key.as_bytes())?.filter(|_| soft) {
        // What the walk has come by has ended by its own account.
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

/// Every read of what is older than them goes through the prefixes of its scope. Whether there were too many: a purge of
/// the scope is to take their place.
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
/// the name or a walk has come by, only what is being computed now needs the row, and is then not stored, whatever its
/// name. If too many rows are left, everything is purged, even if some were soft.
fn forget_purges(txn: &mut Txn<'_>, walked: u64, sequence: u64, now: u64) -> Result<(), Error> {
    let rows = txn.rows(PURGES, Bound::Unbounded, usize::MAX, |key, row| {
        let is_name = key.first().is_some_and(|kind| kind & !SOFTLY == NAME);
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

impl Entries {
    /// Leaves one step of tidying to the housekeeping thread.
    pub(crate) fn tidy(self: &Arc<Self>) {
        if self.tidying.swap(true, Relaxed) {
            return;
        }
        let now = self.latest.load(Relaxed);
        let tidy = Tidy { entries: self.clone(), now, walk: *self.walk(), more: false };
        self.lane.leave_to_keeper(tidy, |tidy, result| {
            if result.is_ok() {
                *tidy.entries.walk() = tidy.walk;
                tidy.entries.more.store(tidy.more, Relaxed);
            }
        });
    }

    /// Whether another step is wanted soon: there is a purge to follow, or more to clear away.
    pub(crate) fn is_untidy(&self) -> bool {
        let walk = *self.walk();
        self.more.load(Relaxed) || walk.at.is_some() || self.sequence().is_ok_and(|sequence| walk.done < sequence)
    }

    pub(crate) fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A step of tidying. It may run twice, so where it got to is noted by its settling.
struct Tidy {
    entries: Arc<Entries>,
    now: u64,
    /// How far the walk has got: before the step, then after it.
    walk: Walk,
    more: bool,
}

impl Drop for Tidy {
    fn drop(&mut self) {
        self.entries.tidying.store(false, Relaxed);
    }
}

impl Run for Tidy {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.walk = *self.entries.walk();
        let (more, trimmed) = self.entries.trim(txn, self.now, 0, STEP)?;
        self.more = more;
        let walked = self.walk_on(txn)?;
        let dropped = self.drop_old_purges(txn)?;
        Ok(trimmed || walked || dropped)
    }
}

impl Tidy {
    fn walk_on(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let walk = &mut self.walk;
        if walk.at.is_none() {
            walk.began = txn.number(SEQUENCE)?;
            if walk.done >= walk.began {
                return Ok(false);
            }
        }
        let from = walk.at.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let keys = txn.rows(ENTRIES, from, STEP, |key, _| <[u8; 16]>::try_from(key).unwrap_or_default())?;
        walk.at = (keys.len() == STEP).then(|| keys[STEP - 1]);
        if walk.at.is_none() {
            walk.done = walk.began;
        }
        let mut changed = false;
        for key in keys {
            changed |= settle(txn, &key)?;
        }
        Ok(changed)
    }

    /// Purges whose entries are all gone, and that no computation still under way can be older than.
    fn drop_old_purges(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let (done, now) = (self.walk.done, self.now);
        let from = self.walk.purge.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.as_bytes()));
        let rows = txn.rows(PURGES, from, PURGES_STEP, |key, row| {
            let (sequence, time) = times(row).next_back().unwrap_or_default();
            (PurgeKey::of(key), sequence <= done && time.saturating_add(2 * LONGEST_FLIGHT) < now)
        })?;
        self.walk.purge = (rows.len() == PURGES_STEP).then(|| rows[PURGES_STEP - 1].0);
        let mut changed = false;
        for (key, _) in rows.into_iter().filter(|row| row.1) {
            changed |= txn.delete(PURGES, key.as_bytes())?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests;
