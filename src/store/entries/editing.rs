//! Writes of one entry, in one transaction with others.

use super::{
    entry::{Claims, Encoded, Entry, Life, Stored, decode_entry, encode_entry, seal},
    eviction::BITE,
    purge_rule::standing,
    purges::as_of_now,
    shard::{Entries, gather},
    table::{ENTRIES, SEQUENCE, load_ledger, number, put, remove, save_ledger},
};
use crate::{
    error::Error,
    store::{
        commit::{operation::Operation, pending::Pending},
        lmdb::transaction::Txn,
        record::key::Key,
    },
};
use hyper::body::Bytes;
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// Rows that one write clears away at most: some ten milliseconds. A larger value leaves the rest to the next writes.
const GULP: usize = 2048;

/// Bytes that an entry takes at least.
const SMALLEST: u64 = 200;

/// Rows whose removal surely sets this many bytes free, within limits.
fn rows_worth(bytes: u64) -> usize {
    usize::try_from(bytes / SMALLEST).unwrap_or(usize::MAX).saturating_add(BITE).min(GULP)
}

/// The moment of an edit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    pub(crate) sequence: u64,
}

/// The result of an edit.
#[derive(Debug)]
pub(crate) enum Edit {
    Keep,
    Store(Entry),
    Remove,
}

/// What an entry that is to be stored is told when that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Its computation began at the purge sequence that it carries.
    Before,
    /// It was not computed, and is of the moment at which it is stored.
    Now,
}

impl Entries {
    /// Stores an entry, whatever is there; resolves to `stored` after the commit. Its bytes are made here, before the
    /// transaction.
    ///
    /// `life` says when it ends, if it is stored at a time.
    pub(crate) fn store<R: Send + 'static>(
        self: &Arc<Self>,
        key: Key,
        name: &[u8],
        now: impl Fn() -> u64 + Send + 'static,
        (entry, begun): (Entry, Begun),
        life: impl Fn(u64) -> Life + Send + 'static,
        stored: R,
    ) -> Pending<Result<R, Error>> {
        let encoded = encode_entry(&key, name, &entry);
        let entry = Entry { payload: Bytes::new(), ..entry };
        let run = Storing {
            entries: self.clone(),
            key,
            name: name.into(),
            clock: now,
            now: 0,
            life,
            entry,
            begun,
            encoded,
            has_room: true,
        };
        self.queue.delegate(run, |run| if run?.has_room { Ok(stored) } else { Err(Error::Full) })
    }

    /// Edits the entry under a key, in one transaction with other edits; resolves after the commit.
    ///
    /// `edit` gets the entry, if it is fresh, and decides what becomes of it; it may run more than once. It stores about
    /// `size` bytes.
    pub(crate) fn edit<R: Send + 'static>(
        self: &Arc<Self>,
        key: Key,
        name: &[u8],
        size: usize,
        now: impl Fn() -> u64 + Send + 'static,
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        let run =
            Editing { entries: self.clone(), key, name: name.into(), size, clock: now, now: 0, edit, outcome: None };
        let settle = |run: Result<Editing<_, _, _>, Error>| run?.outcome.unwrap_or(Err(Error::Panicked));
        self.queue.delegate(run, settle)
    }

    /// Puts an entry in the place of the one that is there, if any. `false`: the files have no room for it.
    fn put(
        &self,
        txn: &mut Txn<'_>,
        now: u64,
        key: &[u8; 16],
        entry: &Entry,
        encoded: &mut Encoded,
    ) -> Result<bool, Error> {
        let incoming = txn.bytes_put() + Claims::footprint(&encoded.row);
        if !self.has_room(incoming) {
            return Ok(false);
        }
        let mut ledger = load_ledger(&txn.reader())?;
        let before = txn.get(ENTRIES, key)?.map(|bytes| Claims::of(bytes).place);
        remove(txn, &mut ledger, key)?;
        if entry.family != 0 && before.is_none() {
            self.trim_family(txn, &mut ledger, entry.family)?;
        }
        // Room is made before the entry is put: it might be the one that goes.
        let trimmed = self.trim(txn, &mut ledger, now, incoming, rows_worth(incoming))?;
        self.more.fetch_or(trimmed.more, Relaxed);
        // A new answer to an old name stays where that was.
        let place = match before.filter(|place| (1..=ledger.last).contains(place)) {
            Some(place) => place,
            None => ledger.next_place(),
        };
        if before.is_none() && self.uses.was_evicted(key, ledger.epoch) {
            self.uses.note(key);
        }
        seal(&mut encoded.row, &entry.life, entry.sequence, place);
        put(txn, &mut ledger, key, encoded)?;
        save_ledger(txn, &ledger)?;
        Ok(true)
    }

    /// Removes an entry, if it is there.
    fn remove(&self, txn: &mut Txn<'_>, now: u64, key: &[u8; 16]) -> Result<(), Error> {
        let mut ledger = load_ledger(&txn.reader())?;
        remove(txn, &mut ledger, key)?;
        self.trim(txn, &mut ledger, now, 0, BITE)?;
        save_ledger(txn, &ledger)
    }
}

struct Storing<C, L> {
    entries: Arc<Entries>,
    key: Key,
    name: Box<[u8]>,
    clock: C,
    now: u64,
    life: L,
    /// The entry without its payload.
    entry: Entry,
    begun: Begun,
    encoded: Encoded,
    has_room: bool,
}

impl<C: Fn() -> u64, L: Fn(u64) -> Life> Operation for Storing<C, L> {
    fn prepare(&mut self) {
        self.now = self.now.max((self.clock)());
        self.entry.life = (self.life)(self.now);
        self.entries.latest.fetch_max(self.now, Relaxed);
    }

    fn size(&self) -> usize {
        self.encoded.len()
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let key = &self.key.hash;
        if self.begun == Begun::Now {
            self.entry.sequence = number(&txn.reader(), SEQUENCE)?;
        }
        match as_of_now(&txn.reader(), key, &self.name, &self.entry)? {
            Some(entry) if !entry.life.is_over(self.now) => {
                self.has_room = self.entries.put(txn, self.now, key, &entry, &mut self.encoded)?;
                return Ok(self.has_room);
            }
            // The new entry has ended already, and the old one goes too.
            Some(_) => self.entries.remove(txn, self.now, key)?,
            None => return Ok(false),
        }
        Ok(true)
    }
}

struct Editing<C, F, R> {
    entries: Arc<Entries>,
    key: Key,
    name: Box<[u8]>,
    size: usize,
    clock: C,
    now: u64,
    edit: F,
    outcome: Option<Result<R, Error>>,
}

impl<C: Fn() -> u64, F: FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit), R> Operation for Editing<C, F, R> {
    fn prepare(&mut self) {
        self.now = self.now.max((self.clock)());
        self.entries.latest.fetch_max(self.now, Relaxed);
    }

    fn size(&self) -> usize {
        self.size
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let key = &self.key.hash;
        let moment = Moment { now: self.now, sequence: number(&txn.reader(), SEQUENCE)? };
        let bytes = txn.get(ENTRIES, key)?.map(Bytes::copy_from_slice);
        let found = match bytes.as_ref().map(|bytes| decode_entry(bytes, &self.key, &self.name)) {
            Some(Stored::InPieces(entry, len)) => {
                let mut payload = Vec::new();
                match gather(&txn.reader(), &self.key, &mut payload, len)? {
                    true => Some(Stored::Entry(Entry { payload: payload.into(), ..entry })),
                    false => Some(Stored::Damaged),
                }
            }
            found => found,
        };
        let alive = match found {
            Some(Stored::Entry(entry)) => {
                let standing = standing(&txn.reader(), key, &self.name, &entry)?.filter(|life| !life.is_over(self.now));
                standing.map(|life| Entry { life, ..entry })
            }
            Some(Stored::Damaged) => {
                self.entries.counts.damaged.fetch_add(1, Relaxed);
                None
            }
            _ => None,
        };
        let fresh = alive.as_ref().filter(|entry| entry.life.is_fresh(self.now));
        if fresh.is_some() {
            self.entries.uses.note(key);
        }
        let (outcome, edit) = (self.edit)(fresh, moment);
        self.outcome = Some(outcome);
        let edit = match edit {
            Edit::Store(entry) => match as_of_now(&txn.reader(), key, &self.name, &entry)? {
                Some(entry) if !entry.life.is_over(self.now) => {
                    let mut encoded = encode_entry(&self.key, &self.name, &entry);
                    let has_room = self.entries.put(txn, self.now, key, &entry, &mut encoded)?;
                    if !has_room {
                        self.outcome = Some(Err(Error::Full));
                    }
                    return Ok(has_room);
                }
                // The new entry has ended already, and the old one goes too.
                Some(_) => Edit::Remove,
                None => Edit::Keep,
            },
            other => other,
        };
        match edit {
            // The edit kept the entry, or the new one was refused: then the entry that is there is as good as before.
            Edit::Keep if alive.is_some() || bytes.is_none() => return Ok(false),
            _ => self.entries.remove(txn, self.now, key)?,
        }
        Ok(true)
    }
}
