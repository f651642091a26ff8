//! Stored answers: inline reads, writes batched by the housekeeping thread, a byte budget.

use super::{
    env::{Reader, Table, Txn},
    lane::{By, Lane, Run},
    pending::Pending,
    purges::{Look, Purge, SEQUENCE, Subject, Walk, as_of_now},
    reads::Reads,
    record::{self, Entry, Key, RowDigest, Stored},
    tier::{Item, Tier},
};
use crate::error::Error;
use hyper::body::Bytes;
use std::{
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub(crate) const TABLES: [&str; 4] = ["entries", "index", "purges", "meta"];
pub(crate) const ENTRIES: Table = Table(0);
/// `expires` (big-endian) and key: what ends first comes first.
const INDEX: Table = Table(1);
pub(crate) const META: Table = Table(3);

const BYTES: &[u8] = b"bytes";
const MARKS: &[u8] = b"marks";

/// Rows that one write clears away, besides those whose room it needs.
const BITE: usize = 16;
/// Rows that one write clears away at most: some ten milliseconds. A larger value leaves the rest to the next writes.
const GULP: usize = 8192;
/// A computation that took longer is not stored: its purge rows may be gone.
pub(crate) const LONGEST_FLIGHT: u64 = Duration::from_secs(3600).as_nanos() as u64;

/// One shard of the stored answers.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) lane: Lane,
    budget: u64,
    pub(crate) counts: Counts,
    pub(crate) walk: Mutex<Walk>,
    /// A step of tidying is queued: one at a time, or a gate that stays shut would pile them up.
    pub(crate) tidying: AtomicBool,
    /// The last step found more than it may clear away.
    pub(crate) more: AtomicBool,
    /// The latest time of any write: the housekeeping thread has no clock of its own that agrees with every user's.
    pub(crate) latest: AtomicU64,
}

/// What a read has found.
pub(crate) struct Hot<T> {
    pub(crate) value: Arc<T>,
    /// When it was found.
    pub(crate) now: u64,
    /// How often it is read in this process, where that is kept.
    pub(crate) reads: Option<Arc<Reads>>,
    /// No file was looked into.
    pub(crate) from_memory: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) evicted: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Entries {
    pub(crate) fn new(lane: Lane, budget: u64) -> Entries {
        Entries {
            lane,
            budget,
            counts: Counts::default(),
            walk: Mutex::default(),
            tidying: AtomicBool::new(false),
            more: AtomicBool::new(false),
            latest: AtomicU64::new(0),
        }
    }

    /// Bytes a payload may have.
    pub(crate) fn largest(&self) -> usize {
        usize::try_from(self.budget / 4).unwrap_or(usize::MAX).min(u32::MAX as usize) - record::ENTRY_OVERHEAD
    }

    /// Reads an entry whose life is not over, fresh or not, and the time at which it is not; or the purge sequence to carry
    /// if one is computed.
    ///
    /// `now` is asked after the entry was read: an answer stored in between would be one from the future.
    pub(crate) fn get(
        &self,
        key: &Key,
        name: &[u8],
        now: impl FnOnce() -> u64,
    ) -> Result<Result<(Entry, u64), u64>, Error> {
        let (found, sequence) = self.lane.env.read(|reader| {
            let sequence = reader.number(SEQUENCE)?;
            Ok((self.find(reader, sequence, key, name)?, sequence))
        })?;
        let found = found.map(|(entry, _)| (entry, now()));
        Ok(found.filter(|(entry, now)| !entry.life.is_over(*now)).ok_or(sequence))
    }

    /// As `get`, decoded: from memory if it has not changed since it was last read. What `decode` cannot read is damaged.
    pub(crate) fn read<T: Send + Sync + 'static>(
        &self,
        tier: &Tier,
        key: &Key,
        name: &[u8],
        now: impl Fn() -> u64,
        decode: impl FnOnce(&Entry) -> Option<T>,
    ) -> Result<Result<Hot<T>, u64>, Error> {
        let item = tier.get(key, name);
        if let Some(item) = &item {
            match self.look_again(item, key)? {
                Some(from_memory) => {
                    let (value, now) = (item.value.clone().downcast::<T>(), now());
                    if let Ok(value) = value
                        && !item.entry.life.is_over(now)
                    {
                        return Ok(Ok(Hot { value, now, reads: Some(item.reads.clone()), from_memory }));
                    }
                }
                None => tier.remove(key),
            }
        }
        let (found, sequence, seen) = self.lane.env.read(|reader| {
            let sequence = reader.number(SEQUENCE)?;
            Ok((self.find(reader, sequence, key, name)?, sequence, reader.seen()))
        })?;
        let Some((entry, row)) = found else { return Ok(Err(sequence)) };
        let now = now();
        if entry.life.is_over(now) {
            return Ok(Err(sequence));
        }
        let Some(value) = decode(&entry).map(Arc::new) else {
            self.counts.damaged.fetch_add(1, Relaxed);
            return Ok(Err(sequence));
        };
        let reads = tier.is_on().then(|| item.map_or_else(|| Arc::new(Reads::new(now)), |item| item.reads.clone()));
        if let (Some(row), Some(reads)) = (row, &reads) {
            tier.put(key, Item::new(key, name, (entry, row, seen), value.clone(), reads.clone()));
        }
        Ok(Ok(Hot { value, now, reads, from_memory: false }))
    }

    /// Whether an item is still what stands under its key; `Some(true)`: without a look into the file.
    fn look_again(&self, item: &Item, key: &Key) -> Result<Option<bool>, Error> {
        let env = &self.lane.env;
        if env.forked() {
            return Err(Error::Forked);
        }
        if item.is_current(env.last_transaction()) {
            return Ok(Some(true));
        }
        env.read(|reader| {
            let is_same = reader.look(ENTRIES, &key.hash)?.and_then(RowDigest::of) == Some(item.row);
            let life = item.entry.life;
            if !is_same || reader.standing(&key.hash, item.name(), &item.entry)? != Some(life) {
                return Ok(None);
            }
            item.was_seen_by(reader.seen());
            Ok(Some(false))
        })
    }

    /// The entry under a key, whatever its life.
    fn find(
        &self,
        reader: &Reader<'_>,
        sequence: u64,
        key: &Key,
        name: &[u8],
    ) -> Result<Option<(Entry, Option<RowDigest>)>, Error> {
        let Some(bytes) = reader.look(ENTRIES, &key.hash)? else { return Ok(None) };
        match record::decode_entry(&Bytes::copy_from_slice(bytes), key, name) {
            Stored::Entry(entry) => {
                let standing = reader.standing_at(sequence, &key.hash, name, &entry)?;
                Ok(standing.map(|life| (Entry { life, ..entry }, RowDigest::of(bytes))))
            }
            Stored::Damaged => {
                self.counts.damaged.fetch_add(1, Relaxed);
                Ok(None)
            }
            Stored::Other => Ok(None),
        }
    }

    pub(crate) fn sequence(&self) -> Result<u64, Error> {
        self.lane.env.read(|reader| reader.number(SEQUENCE))
    }

    /// Answers, and bytes of all entries, now.
    pub(crate) fn size(&self) -> Result<(u64, u64), Error> {
        self.lane.env.read(|reader| {
            let marks = reader.number(MARKS)?;
            Ok((reader.len(ENTRIES)?.saturating_sub(marks), reader.number(BYTES)?))
        })
    }

    /// Edits what stands under a key, in one transaction with others; resolves after the commit.
    ///
    /// `edit` gets the entry that is fresh and says what becomes of it; it may run more than once.
    pub(crate) fn edit<R: Send + 'static>(
        self: &Arc<Self>,
        by: By,
        key: Key,
        name: &[u8],
        now: impl Fn() -> u64 + Send + 'static,
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        let run = Editing { entries: self.clone(), key, name: name.into(), clock: now, now: 0, edit, outcome: None };
        let settle = |run: Editing<_, _, _>, result: Result<(), Error>| {
            result.and_then(|()| run.outcome.unwrap_or(Err(Error::Panicked)))
        };
        self.lane.submit_by(by, run, settle)
    }

    /// Whether an entry would be fresh if it were stored.
    pub(crate) fn is_current(&self, key: &Key, name: &[u8], entry: &Entry, now: u64) -> Result<bool, Error> {
        self.lane.env.read(|reader| {
            let entry = as_of_now(reader, &key.hash, name, entry)?;
            Ok(entry.is_some_and(|entry| entry.life.is_fresh(now)))
        })
    }

    /// From the commit on, nothing that the subject matches and that was begun before is read or stored; or, softly, it has
    /// ended.
    pub(crate) fn purge(&self, by: By, subject: Subject, soft: bool, now: u64) -> Pending<Result<(), Error>> {
        self.latest.fetch_max(now, Relaxed);
        let walked = self.walk().done;
        self.lane.submit_by(by, Purge { subject, soft, now, walked }, |_, result| result)
    }

    fn put(&self, txn: &mut Txn<'_>, key: &[u8; 16], expires: u64, bytes: &[u8]) -> Result<(), Error> {
        txn.put(INDEX, &index_key(expires, key), &[])?;
        txn.put(ENTRIES, key, bytes)?;
        if record::claims_to_be_mark(bytes) {
            add(txn, MARKS, 1)?;
        }
        add(txn, BYTES, footprint(bytes.len()) as i64)
    }

    /// Clears away some of what has ended, and of the rest what ends first while `incoming` bytes more would exceed the
    /// budget. Whether `most` rows were not enough, and whether anything was changed.
    pub(crate) fn trim(&self, txn: &mut Txn<'_>, now: u64, incoming: u64, most: usize) -> Result<(bool, bool), Error> {
        let mut bytes = txn.number(BYTES)?.saturating_add(incoming);
        let mut cleared = 0;
        while cleared < most {
            // A bite at a time: mostly the first row says that nothing need be done.
            let rows = txn.rows(INDEX, Bound::Unbounded, BITE.min(most - cleared), |key, _| split_index_key(key))?;
            if rows.is_empty() {
                return Ok((false, cleared > 0));
            }
            for (expires, key) in rows {
                if expires > now && bytes <= self.budget {
                    return Ok((false, cleared > 0));
                }
                if expires > now {
                    self.counts.evicted.fetch_add(1, Relaxed);
                }
                bytes = bytes.saturating_sub(remove(txn, &key, Some(expires))?);
                cleared += 1;
            }
        }
        Ok((true, true))
    }
}

/// Rows whose removal surely sets so many bytes free, within limits.
fn rows_worth(bytes: u64) -> usize {
    usize::try_from(bytes / SMALLEST).unwrap_or(usize::MAX).saturating_add(BITE).min(GULP)
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

/// The least that an entry takes.
const SMALLEST: u64 = 200;

/// Bytes that a value takes on disk: small ones share pages, large ones have whole ones.
fn footprint(len: usize) -> u64 {
    const PAGE: u64 = 4096;
    let len = len as u64;
    if len <= 2000 { len + 128 } else { (len + 16).div_ceil(PAGE) * PAGE + 64 }
}

fn add(txn: &mut Txn<'_>, number: &[u8], change: i64) -> Result<(), Error> {
    let sum = txn.number(number)?.saturating_add_signed(change);
    txn.put(META, number, &sum.to_le_bytes())
}

/// Removes an entry and its index row; the bytes set free. With `indexed`, the index row named goes in any case, the
/// entry only if that row is its own, or if it is damaged: then it may have no other.
pub(crate) fn remove(txn: &mut Txn<'_>, key: &[u8; 16], indexed: Option<u64>) -> Result<u64, Error> {
    if let Some(expires) = indexed {
        txn.delete(INDEX, &index_key(expires, key))?;
    }
    let Some(bytes) = txn.get(ENTRIES, key)? else { return Ok(0) };
    let (expires, freed) = (record::claimed_expiry(bytes), footprint(bytes.len()));
    let is_mark = record::claims_to_be_mark(bytes);
    if indexed.is_some_and(|indexed| indexed != expires) && record::checksum_holds(bytes) {
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
        let before = record::claimed_expiry(before);
        txn.delete(INDEX, &index_key(before, key))?;
    }
    txn.put(INDEX, &index_key(expires, key), &[])?;
    txn.put(ENTRIES, key, bytes)
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
        self.entries.latest.fetch_max(self.now, Relaxed);
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let key = &self.key.hash;
        let moment = Moment { now: self.now, sequence: txn.number(SEQUENCE)? };
        let bytes = txn.get(ENTRIES, key)?.map(Bytes::copy_from_slice);
        let alive = match bytes.as_ref().map(|bytes| record::decode_entry(bytes, &self.key, &self.name)) {
            Some(Stored::Entry(entry)) => {
                let standing = txn.standing(key, &self.name, &entry)?.filter(|life| !life.is_over(self.now));
                standing.map(|life| Entry { life, ..entry })
            }
            Some(Stored::Damaged) => {
                self.entries.counts.damaged.fetch_add(1, Relaxed);
                None
            }
            _ => None,
        };
        let fresh = alive.as_ref().filter(|entry| entry.life.is_fresh(self.now));
        let (outcome, edit) = (self.edit)(fresh, moment);
        self.outcome = Some(outcome);
        let edit = match edit {
            Edit::Store(entry) => match as_of_now(txn, key, &self.name, &entry)? {
                Some(entry) if !entry.life.is_over(self.now) => {
                    remove(txn, key, None)?;
                    let bytes = record::encode_entry(&self.key, &self.name, &entry);
                    // Before it is put: it might be the one that ends first.
                    let incoming = footprint(bytes.len());
                    let (more, _) = self.entries.trim(txn, self.now, incoming, rows_worth(incoming))?;
                    self.entries.more.fetch_or(more, Relaxed);
                    self.entries.put(txn, key, entry.life.ends(), &bytes)?;
                    return Ok(true);
                }
                // It has ended already: nothing is left of what was there, either.
                Some(_) => Edit::Remove,
                None => Edit::Keep,
            },
            other => other,
        };
        match edit {
            // Kept, or refused: then what is there is as good as before.
            Edit::Keep if alive.is_some() || bytes.is_none() => return Ok(false),
            _ => {
                remove(txn, key, None)?;
            }
        }
        self.entries.trim(txn, self.now, 0, BITE)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
