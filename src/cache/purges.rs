//! Purges, and the tidying that follows them.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it. What is dead by a purge is removed by a walk over all entries, in steps.

use super::{
    entries::{ENTRIES, Entries, LONGEST_FLIGHT, META, remove},
    env::{Reader, Table, Txn},
    lane::Run,
    record::{self, Entry, ScopeId},
};
use crate::error::Error;
use std::{
    ops::Bound,
    sync::{Arc, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

pub(crate) const PURGES: Table = Table(2);
pub(crate) const SEQUENCE: &[u8] = b"sequence";
/// Computations begun before this sequence are not stored: purges of their names have been forgotten.
const FLOOR: &[u8] = b"floor";
/// Rows that one step of the walk after a purge looks at.
const STEP: usize = 128;
/// Purges of names and tags that are remembered one by one.
pub(crate) const PURGES_MAX: u64 = 32_768;
/// Purge rows that one step of tidying looks at.
const PURGES_STEP: usize = 4096;

/// What a purge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    All,
    Scope(ScopeId),
    Tag(u64),
    Name([u8; 16]),
}

/// The first byte of the rows of [`Subject::Name`].
const NAME: u8 = 3;

impl Subject {
    fn key(&self) -> PurgeKey {
        let mut key = [0; 17];
        let (kind, bytes): (u8, &[u8]) = match self {
            Subject::All => (0, &[]),
            Subject::Scope(scope) => (1, scope),
            Subject::Tag(tag) => (2, &tag.to_be_bytes()),
            Subject::Name(name) => (NAME, name),
        };
        key[0] = kind;
        key[1..=bytes.len()].copy_from_slice(bytes);
        (key, 1 + bytes.len())
    }
}

/// Both kinds of transaction can be asked.
pub(crate) trait Look {
    fn look(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error>;

    fn number(&self, key: &[u8]) -> Result<u64, Error> {
        Ok(self.look(META, key)?.and_then(|bytes| record::u64_at(bytes, 0)).unwrap_or(0))
    }

    fn purged_since(&self, subject: Subject, sequence: u64) -> Result<bool, Error> {
        let (key, len) = subject.key();
        Ok(self.look(PURGES, &key[..len])?.and_then(|row| record::u64_at(row, 0)).is_some_and(|purge| purge > sequence))
    }

    /// Whether a purge that matches the entry is newer than the start of its computation.
    fn is_purged(&self, key: &[u8; 16], entry: &Entry) -> Result<bool, Error> {
        self.is_purged_by(self.number(SEQUENCE)?, key, entry)
    }

    /// As `is_purged`, where the sequence of the newest purge is known.
    fn is_purged_by(&self, newest: u64, key: &[u8; 16], entry: &Entry) -> Result<bool, Error> {
        if entry.sequence >= newest {
            return Ok(false);
        }
        for subject in [Subject::All, Subject::Scope(entry.scope), Subject::Name(*key)] {
            if self.purged_since(subject, entry.sequence)? {
                return Ok(true);
            }
        }
        for &tag in &entry.tags {
            if self.purged_since(Subject::Tag(tag), entry.sequence)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Look for Reader<'_> {
    fn look(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.get(table, key)
    }
}

impl Look for Txn<'_> {
    fn look(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.get(table, key)
    }
}

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

type PurgeKey = ([u8; 17], usize);

/// Whether an answer must not be stored, since its computation began before a purge that matches it, or so long ago that
/// nobody knows.
pub(crate) fn is_too_old(txn: &impl Look, key: &[u8; 16], entry: &Entry) -> Result<bool, Error> {
    Ok(entry.cost >= LONGEST_FLIGHT || entry.sequence < txn.number(FLOOR)? || txn.is_purged(key, entry)?)
}

pub(crate) struct Purge {
    pub(crate) subject: Subject,
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
        put_purge(txn, self.subject, sequence, self.now)?;
        txn.put(META, SEQUENCE, &sequence.to_le_bytes())?;
        if let Subject::Name(name) = self.subject {
            remove(txn, &name, None)?;
        }
        Ok(true)
    }
}

fn put_purge(txn: &mut Txn<'_>, subject: Subject, sequence: u64, now: u64) -> Result<(), Error> {
    let (key, len) = subject.key();
    let mut row = [0; 16];
    row[..8].copy_from_slice(&sequence.to_le_bytes());
    row[8..].copy_from_slice(&now.to_le_bytes());
    txn.put(PURGES, &key[..len], &row)
}

/// Names to purge come from requests, so rows have a bound. Where the entries are gone already, since they stood under
/// the name or a walk has come by, only what is being computed now needs the row, and is then not stored, whatever its
/// name. If too many rows are left, everything is purged.
fn forget_purges(txn: &mut Txn<'_>, walked: u64, sequence: u64, now: u64) -> Result<(), Error> {
    let rows = txn.rows(PURGES, Bound::Unbounded, usize::MAX, |key, row| {
        let gone = key.first() == Some(&NAME) || record::u64_at(row, 0).is_none_or(|sequence| sequence <= walked);
        (key.to_vec(), gone)
    })?;
    let left = rows.iter().filter(|row| !row.1).count();
    let all = left as u64 > PURGES_MAX / 4 * 3;
    for (key, _) in rows.into_iter().filter(|row| all || row.1) {
        txn.delete(PURGES, &key)?;
    }
    txn.put(META, FLOOR, &sequence.to_le_bytes())?;
    if all { put_purge(txn, Subject::All, sequence, now) } else { Ok(()) }
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
        let rows = txn.rows(ENTRIES, from, STEP, |key, bytes| {
            (<[u8; 16]>::try_from(key).unwrap_or_default(), record::decode_without_payload(bytes))
        })?;
        walk.at = (rows.len() == STEP).then(|| rows[STEP - 1].0);
        if walk.at.is_none() {
            walk.done = walk.began;
        }
        let mut changed = false;
        for (key, entry) in rows {
            let purged = match &entry {
                Some(entry) => txn.is_purged(&key, entry)?,
                None => true,
            };
            if purged {
                remove(txn, &key, None)?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Purges whose entries are all gone, and that no computation still under way can be older than.
    fn drop_old_purges(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let (done, now) = (self.walk.done, self.now);
        let from = self.walk.purge.as_ref().map_or(Bound::Unbounded, |(key, len)| Bound::Excluded(&key[..*len]));
        let rows = txn.rows(PURGES, from, PURGES_STEP, |key, row| {
            let mut copy = [0; 17];
            let len = key.len().min(copy.len());
            copy[..len].copy_from_slice(&key[..len]);
            let (sequence, time) = (record::u64_at(row, 0).unwrap_or(0), record::u64_at(row, 8).unwrap_or(0));
            ((copy, len), sequence <= done && time.saturating_add(2 * LONGEST_FLIGHT) < now)
        })?;
        self.walk.purge = (rows.len() == PURGES_STEP).then(|| rows[PURGES_STEP - 1].0);
        let mut changed = false;
        for ((key, len), _) in rows.into_iter().filter(|row| row.1) {
            changed |= txn.delete(PURGES, &key[..len])?;
        }
        Ok(changed)
    }
}
