//! Stored answers: inline reads, writes batched by the housekeeping thread, a byte budget, purges.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it.

use super::{
    env::{Reader, Table, Txn},
    lane::{Lane, Pending, Run},
    record::{self, Entry, Key, ScopeId, Stored},
};
use crate::rejection::Error;
use hyper::body::Bytes;
use std::{
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub(crate) const TABLES: [&str; 4] = ["entries", "index", "purges", "meta"];
const ENTRIES: Table = Table(0);
/// `expires` (big-endian) and key: what ends first comes first.
const INDEX: Table = Table(1);
const PURGES: Table = Table(2);
const META: Table = Table(3);

const SEQUENCE: &[u8] = b"sequence";
const BYTES: &[u8] = b"bytes";

/// Rows that one write clears away at most.
const BITE: usize = 16;
/// Rows that one step of the walk after a purge looks at.
const STEP: usize = 128;
/// A computation that took longer is not stored: its purge rows may be gone.
pub(crate) const LONGEST_FLIGHT: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// What a purge is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    All,
    Scope(ScopeId),
    Tag(u64),
    Name([u8; 16]),
}

impl Subject {
    fn key(&self) -> ([u8; 17], usize) {
        let mut key = [0; 17];
        let (kind, bytes): (u8, &[u8]) = match self {
            Subject::All => (0, &[]),
            Subject::Scope(scope) => (1, scope),
            Subject::Tag(tag) => (2, &tag.to_be_bytes()),
            Subject::Name(name) => (3, name),
        };
        key[0] = kind;
        key[1..=bytes.len()].copy_from_slice(bytes);
        (key, 1 + bytes.len())
    }
}

/// Both kinds of transaction can be asked.
trait Look {
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
        if entry.sequence >= self.number(SEQUENCE)? {
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

/// One shard of the stored answers.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) lane: Lane,
    budget: u64,
    pub(crate) counts: Counts,
    walk: Mutex<Walk>,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) evicted: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

/// The walk over all entries that follows a purge, after which the purge's row can go.
#[derive(Debug, Default)]
struct Walk {
    at: Option<[u8; 16]>,
    /// The sequence when this round began.
    began: u64,
    /// The sequence up to which everything has been walked.
    done: u64,
}

impl Entries {
    pub(crate) fn new(lane: Lane, budget: u64) -> Entries {
        Entries { lane, budget, counts: Counts::default(), walk: Mutex::default() }
    }

    /// Bytes a payload may have.
    pub(crate) fn largest(&self) -> usize {
        usize::try_from(self.budget / 4).unwrap_or(usize::MAX).min(u32::MAX as usize) - record::ENTRY_OVERHEAD
    }

    /// Reads an entry that is still alive at `now`, or the purge sequence to carry if one is computed.
    pub(crate) fn get(&self, key: &Key, name: &[u8], now: u64) -> Result<Result<Entry, u64>, Error> {
        if super::sys::forked() {
            return Err(Error::Forked);
        }
        self.lane.env.read(|reader| match reader.look(ENTRIES, &key.hash)? {
            None => Ok(Err(reader.number(SEQUENCE)?)),
            Some(bytes) => match record::decode_entry(&Bytes::copy_from_slice(bytes), key, name) {
                Stored::Entry(entry) if is_alive(&entry, now) && !reader.is_purged(&key.hash, &entry)? => Ok(Ok(entry)),
                Stored::Damaged => {
                    self.counts.damaged.fetch_add(1, Relaxed);
                    Ok(Err(reader.number(SEQUENCE)?))
                }
                _ => Ok(Err(reader.number(SEQUENCE)?)),
            },
        })
    }

    pub(crate) fn sequence(&self) -> Result<u64, Error> {
        self.lane.env.read(|reader| reader.number(SEQUENCE))
    }

    /// Entries and bytes now.
    pub(crate) fn size(&self) -> Result<(u64, u64), Error> {
        self.lane.env.read(|reader| Ok((reader.len(ENTRIES)?, reader.number(BYTES)?)))
    }

    /// Edits what stands under a key, in one transaction with others; resolves after the commit.
    ///
    /// `edit` gets the living entry and says what becomes of it; it may run more than once.
    pub(crate) fn edit<R: Send + 'static>(
        self: &Arc<Self>,
        key: Key,
        name: &[u8],
        now: impl Fn() -> u64 + Send + 'static,
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        let run = Editing { entries: self.clone(), key, name: name.into(), clock: now, now: 0, edit, outcome: None };
        self.lane.delegate(run, |run, result| result.and_then(|()| run.outcome.unwrap_or(Err(Error::Panicked))))
    }

    /// As `edit`, but nobody waits for it.
    pub(crate) fn edit_later(
        self: &Arc<Self>,
        key: Key,
        name: &[u8],
        now: impl Fn() -> u64 + Send + 'static,
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<(), Error>, Edit) + Send + 'static,
    ) {
        let run = Editing { entries: self.clone(), key, name: name.into(), clock: now, now: 0, edit, outcome: None };
        self.lane.delegate_unawaited(run);
    }

    /// Whether an entry would be alive if it were stored.
    pub(crate) fn is_current(&self, key: &Key, entry: &Entry, now: u64) -> Result<bool, Error> {
        self.lane.env.read(|reader| Ok(is_alive(entry, now) && !reader.is_purged(&key.hash, entry)?))
    }

    /// From the commit on, nothing that the subject matches and that was begun before is read or stored.
    pub(crate) fn purge(&self, subject: Subject, now: u64) -> Pending<Result<(), Error>> {
        self.lane.delegate(Purge { subject, now }, |_, result| result)
    }

    /// Leaves one step of tidying to the housekeeping thread; whether more will be wanted soon.
    pub(crate) fn tidy(self: &Arc<Self>, now: u64) -> bool {
        let Ok(sequence) = self.sequence() else { return false };
        let walk = self.walk().done < sequence;
        self.lane.leave_to_keeper(Tidy { entries: self.clone(), now, walk });
        walk
    }

    pub(crate) fn is_walking(&self) -> bool {
        let walk = self.walk();
        walk.at.is_some() || self.sequence().is_ok_and(|sequence| walk.done < sequence)
    }

    fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, txn: &mut Txn<'_>, key: &[u8; 16], expires: u64, bytes: &[u8]) -> Result<(), Error> {
        txn.put(INDEX, &index_key(expires, key), &[])?;
        txn.put(ENTRIES, key, bytes)?;
        add_bytes(txn, footprint(bytes.len()) as i64)
    }

    /// Clears away some of what has ended, and of the rest what ends first while the budget is exceeded.
    fn trim(&self, txn: &mut Txn<'_>, now: u64, most: usize) -> Result<bool, Error> {
        let mut bytes = txn.number(BYTES)?;
        let rows = txn.rows(INDEX, Bound::Unbounded, most, |key, _| split_index_key(key))?;
        let mut changed = false;
        for (expires, key) in rows {
            if expires > now && bytes <= self.budget {
                break;
            }
            changed = true;
            if expires > now {
                self.counts.evicted.fetch_add(1, Relaxed);
            }
            bytes = bytes.saturating_sub(remove(txn, &key, Some(expires))?);
        }
        Ok(changed)
    }
}

fn is_alive(entry: &Entry, now: u64) -> bool {
    // An entry from the future was stored by a clock that is no more.
    entry.stored <= now && now < entry.expires
}

fn index_key(expires: u64, key: &[u8; 16]) -> [u8; 24] {
    let mut index = [0; 24];
    index[..8].copy_from_slice(&expires.to_be_bytes());
    index[8..].copy_from_slice(key);
    index
}

fn split_index_key(index: &[u8]) -> (u64, [u8; 16]) {
    let mut expires = [0; 8];
    let mut key = [0; 16];
    if index.len() == 24 {
        expires.copy_from_slice(&index[..8]);
        key.copy_from_slice(&index[8..]);
    }
    (u64::from_be_bytes(expires), key)
}

/// Bytes that a value takes on disk: small ones share pages, large ones have whole ones.
fn footprint(len: usize) -> u64 {
    const PAGE: u64 = 4096;
    let len = len as u64;
    if len <= 2000 { len + 128 } else { (len + 16).div_ceil(PAGE) * PAGE + 64 }
}

fn add_bytes(txn: &mut Txn<'_>, change: i64) -> Result<(), Error> {
    let bytes = txn.number(BYTES)?.saturating_add_signed(change);
    txn.put(META, BYTES, &bytes.to_le_bytes())
}

/// Removes an entry and its index row; the bytes set free. With `indexed`, the index row named goes in any case, the
/// entry only if that row is its own.
fn remove(txn: &mut Txn<'_>, key: &[u8; 16], indexed: Option<u64>) -> Result<u64, Error> {
    let found = txn.get(ENTRIES, key)?.map(|bytes| (record::claimed_expiry(bytes), footprint(bytes.len())));
    if let Some(expires) = indexed {
        txn.delete(INDEX, &index_key(expires, key))?;
    }
    let Some((expires, freed)) = found.filter(|found| indexed.is_none_or(|indexed| indexed == found.0)) else {
        return Ok(0);
    };
    if indexed.is_none() {
        txn.delete(INDEX, &index_key(expires, key))?;
    }
    txn.delete(ENTRIES, key)?;
    add_bytes(txn, -(freed as i64))?;
    Ok(freed)
}

/// Called when the map or the disk is full: drops what ends first.
pub(crate) fn make_room(txn: &mut Txn<'_>) -> Result<bool, Error> {
    let rows = txn.rows(INDEX, Bound::Unbounded, BITE, |key, _| split_index_key(key))?;
    for &(expires, key) in &rows {
        remove(txn, &key, Some(expires))?;
    }
    Ok(!rows.is_empty())
}

/// When an edit happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    pub(crate) sequence: u64,
}

/// What an edit leaves behind.
#[derive(Debug)]
pub(crate) enum Edit {
    Keep,
    Store(Entry),
    Remove,
}

struct Editing<C, F, R> {
    entries: Arc<Entries>,
    key: Key,
    name: Box<[u8]>,
    clock: C,
    now: u64,
    edit: F,
    outcome: Option<Result<R, Error>>,
}

impl<C: Fn() -> u64, F: FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit), R> Run for Editing<C, F, R> {
    fn prepare(&mut self) {
        self.now = self.now.max((self.clock)());
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let key = &self.key.hash;
        let moment = Moment { now: self.now, sequence: txn.number(SEQUENCE)? };
        let bytes = txn.get(ENTRIES, key)?.map(Bytes::copy_from_slice);
        let live = match bytes.as_ref().map(|bytes| record::decode_entry(bytes, &self.key, &self.name)) {
            Some(Stored::Entry(entry)) if is_alive(&entry, self.now) && !txn.is_purged(key, &entry)? => Some(entry),
            _ => None,
        };
        let (outcome, edit) = (self.edit)(live.as_ref(), moment);
        self.outcome = Some(outcome);
        let outdated = match &edit {
            Edit::Store(entry) => txn.is_purged(key, entry)? || entry.cost >= LONGEST_FLIGHT,
            _ => false,
        };
        match edit {
            Edit::Keep if live.is_some() || bytes.is_none() => return Ok(false),
            // What lives is newer than the purge.
            Edit::Store(_) if outdated && live.is_some() => return Ok(false),
            Edit::Store(entry) if !outdated && is_alive(&entry, self.now) => {
                remove(txn, key, None)?;
                let bytes = record::encode_entry(&self.key, &self.name, &entry);
                self.entries.put(txn, key, entry.expires, &bytes)?;
            }
            _ => {
                remove(txn, key, None)?;
            }
        }
        self.entries.trim(txn, self.now, BITE)?;
        Ok(true)
    }
}

struct Purge {
    subject: Subject,
    now: u64,
}

impl Run for Purge {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let sequence = txn.number(SEQUENCE)? + 1;
        let (key, len) = self.subject.key();
        let mut row = [0; 16];
        row[..8].copy_from_slice(&sequence.to_le_bytes());
        row[8..].copy_from_slice(&self.now.to_le_bytes());
        txn.put(PURGES, &key[..len], &row)?;
        txn.put(META, SEQUENCE, &sequence.to_le_bytes())?;
        if let Subject::Name(name) = self.subject {
            remove(txn, &name, None)?;
        }
        Ok(true)
    }
}

struct Tidy {
    entries: Arc<Entries>,
    now: u64,
    walk: bool,
}

impl Run for Tidy {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let changed = self.entries.trim(txn, self.now, STEP)?;
        if self.walk { Ok(self.walk_on(txn)? || changed) } else { Ok(changed) }
    }
}

impl Tidy {
    fn walk_on(&self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let mut walk = self.entries.walk();
        if walk.at.is_none() {
            walk.began = txn.number(SEQUENCE)?;
        }
        let from = walk.at.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let rows = txn.rows(ENTRIES, from, STEP, |key, bytes| {
            (<[u8; 16]>::try_from(key).unwrap_or_default(), record::decode_without_payload(bytes))
        })?;
        let last = (rows.len() == STEP).then(|| rows[STEP - 1].0);
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
        walk.at = last;
        if last.is_none() {
            walk.done = walk.began;
            changed |= drop_old_purges(txn, walk.began, self.now)?;
        }
        Ok(changed)
    }
}

/// Purges whose entries are all gone, and that no computation still under way can be older than.
fn drop_old_purges(txn: &mut Txn<'_>, walked: u64, now: u64) -> Result<bool, Error> {
    let rows = txn.rows(PURGES, Bound::Unbounded, 4096, |key, row| {
        let (sequence, time) = (record::u64_at(row, 0).unwrap_or(0), record::u64_at(row, 8).unwrap_or(0));
        (sequence <= walked && time.saturating_add(2 * LONGEST_FLIGHT) < now).then(|| key.to_vec())
    })?;
    let mut changed = false;
    for key in rows.into_iter().flatten() {
        changed |= txn.delete(PURGES, &key)?;
    }
    Ok(changed)
}
