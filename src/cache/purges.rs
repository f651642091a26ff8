//! Purges, and the tidying that follows them.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it. A soft purge ends the life of what it matches at its own time, and leaves it its
//! grace. A walk over all entries, in steps, removes or rewrites what purges have hit.

use super::{
    entries::{ENTRIES, Entries, LONGEST_FLIGHT, META, remove, replace},
    env::{Reader, Table, Txn},
    lane::Run,
    record::{self, Entry, Life, ScopeId},
};
use crate::error::Error;
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

/// What a purge is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    All,
    Scope(ScopeId),
    Tag(u64),
    Name([u8; 16]),
    /// Of the names of a scope, at most [`PREFIX_MAX`] bytes.
    Prefix(ScopeId, Vec<u8>),
}

/// The first byte of the rows of [`Subject::Name`] and [`Subject::Prefix`].
const NAME: u8 = 3;
const PREFIX: u8 = 4;
/// Added to the first byte of the row of a soft purge.
const SOFTLY: u8 = 0x80;

impl Subject {
    fn key(&self, soft: bool) -> PurgeKey {
        let mut key = PurgeKey { bytes: [0; PurgeKey::MAX], len: 1 };
        let kind = match self {
            Subject::All => 0,
            Subject::Scope(scope) => key.push(scope, 1),
            Subject::Tag(tag) => key.push(&tag.to_be_bytes(), 2),
            Subject::Name(name) => key.push(name, NAME),
            Subject::Prefix(scope, prefix) => {
                key.push(scope, PREFIX);
                key.push(&prefix[..prefix.len().min(PREFIX_MAX)], PREFIX)
            }
        };
        key.bytes[0] = if soft { kind | SOFTLY } else { kind };
        key
    }
}

/// The key of a purge's row.
#[derive(Clone, Copy, Debug)]
struct PurgeKey {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl PurgeKey {
    const MAX: usize = 1 + 16 + PREFIX_MAX;

    fn push<T>(&mut self, bytes: &[u8], then: T) -> T {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        then
    }

    fn of(row: &[u8]) -> PurgeKey {
        let len = row.len().min(Self::MAX);
        let mut key = PurgeKey { bytes: [0; Self::MAX], len };
        key.bytes[..len].copy_from_slice(&row[..len]);
        key
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// When the purges of a row were made, by sequence and clock, the last one last. Soft ones are listed as long as there may be
/// entries that each of them has ended.
fn times(row: &[u8]) -> impl DoubleEndedIterator<Item = (u64, u64)> {
    row.chunks_exact(16).filter_map(|time| Some((record::u64_at(time, 0)?, record::u64_at(time, 8)?)))
}

/// The time of the first purge of a row since `sequence`.
fn first_since(row: &[u8], sequence: u64) -> Option<u64> {
    times(row).find(|(purge, _)| *purge > sequence).map(|(_, time)| time)
}

/// Both kinds of transaction can be asked.
pub(crate) trait Look {
    fn look(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error>;

    fn any_purge(
        &self,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool, Error>;

    fn number(&self, key: &[u8]) -> Result<u64, Error> {
        Ok(self.look(META, key)?.and_then(|bytes| record::u64_at(bytes, 0)).unwrap_or(0))
    }

    /// The time of the first purge since `sequence`.
    fn purged_since(&self, subject: &Subject, soft: bool, sequence: u64) -> Result<Option<u64>, Error> {
        let row = self.look(PURGES, subject.key(soft).as_bytes())?;
        Ok(row.and_then(|row| first_since(row, sequence)))
    }

    /// The time of the first purge since `sequence` by a prefix of the name.
    fn purged_by_prefix_since(
        &self,
        scope: ScopeId,
        name: &[u8],
        soft: bool,
        sequence: u64,
    ) -> Result<Option<u64>, Error> {
        let all = Subject::Prefix(scope, Vec::new()).key(soft);
        let mut since = None;
        self.any_purge((Bound::Included(all.as_bytes()), Bound::Unbounded), &mut |key, row| {
            let Some(prefix) = key.strip_prefix(all.as_bytes()) else { return true };
            if name.starts_with(prefix)
                && let Some(time) = first_since(row, sequence)
            {
                since = Some(since.map_or(time, |since: u64| since.min(time)));
            }
            false
        })?;
        Ok(since)
    }

    /// What purges newer than the start of its computation have left of an entry: nothing, or a life that may have ended
    /// early.
    fn standing(&self, key: &[u8; 16], name: &[u8], entry: &Entry) -> Result<Option<Life>, Error> {
        self.standing_at(self.number(SEQUENCE)?, key, name, entry)
    }

    /// As `standing`, where the sequence of the newest purge is known.
    fn standing_at(&self, newest: u64, key: &[u8; 16], name: &[u8], entry: &Entry) -> Result<Option<Life>, Error> {
        if entry.sequence >= newest {
            return Ok(Some(entry.life));
        }
        let may_be = |what: &[u8]| Ok::<_, Error>(entry.sequence < self.number(what)?);
        let (soft, prefixed) = (may_be(SOFT)?, may_be(PREFIXED)?);
        let mut life = entry.life;
        let fixed = [Subject::All, Subject::Scope(entry.scope), Subject::Name(*key)];
        for subject in fixed.into_iter().chain(entry.tags.iter().copied().map(Subject::Tag)) {
            if self.purged_since(&subject, false, entry.sequence)?.is_some() {
                return Ok(None);
            }
            if soft && let Some(at) = self.purged_since(&subject, true, entry.sequence)? {
                life = life.ended_at(at);
            }
        }
        if prefixed {
            if self.purged_by_prefix_since(entry.scope, name, false, entry.sequence)?.is_some() {
                return Ok(None);
            }
            if let Some(at) = self.purged_by_prefix_since(entry.scope, name, true, entry.sequence)? {
                life = life.ended_at(at);
            }
        }
        Ok(Some(life))
    }
}

macro_rules! looks {
    ($($transaction:ident)*) => {$(
        impl Look for $transaction<'_> {
            fn look(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
                self.get(table, key)
            }

            fn any_purge(
                &self,
                range: (Bound<&[u8]>, Bound<&[u8]>),
                f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
            ) -> Result<bool, Error> {
                self.any(PURGES, range, f)
            }
        }
    )*};
}

looks! { Reader Txn }

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
