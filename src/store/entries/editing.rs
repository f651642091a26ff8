//! Edits of one entry, in one transaction with others.

use super::{
    entry::{Entry, Stored, decode_entry, encode_entry},
    purge_rule::standing,
    purges::as_of_now,
    shard::Entries,
    table::{BITE, ENTRIES, SEQUENCE, footprint, number, put, remove},
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
const GULP: usize = 8192;

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

impl Entries {
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
        let alive = match bytes.as_ref().map(|bytes| decode_entry(bytes, &self.key, &self.name)) {
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
        let (outcome, edit) = (self.edit)(fresh, moment);
        self.outcome = Some(outcome);
        let edit = match edit {
            Edit::Store(entry) if !self.entries.has_room(footprint(entry.payload.len())) => {
                self.outcome = Some(Err(Error::Full));
                Edit::Keep
            }
            Edit::Store(entry) => match as_of_now(&txn.reader(), key, &self.name, &entry)? {
                Some(entry) if !entry.life.is_over(self.now) => {
                    remove(txn, key, None)?;
                    let bytes = encode_entry(&self.key, &self.name, &entry);
                    // Room is made before the entry is put: it might be the one that ends first.
                    let incoming = footprint(bytes.len());
                    let (more, _) = self.entries.trim(txn, self.now, incoming, rows_worth(incoming))?;
                    self.entries.more.fetch_or(more, Relaxed);
                    put(txn, key, entry.life.ends(), &bytes)?;
                    return Ok(true);
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
            _ => {
                remove(txn, key, None)?;
            }
        }
        self.entries.trim(txn, self.now, 0, BITE)?;
        Ok(true)
    }
}
