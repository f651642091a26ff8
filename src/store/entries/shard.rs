//! One shard of the stored answers: inline reads, writes batched by the worker thread, a byte budget.

use super::{
    entry::{ENTRY_OVERHEAD, Entry, RowDigest, Stored, decode_entry},
    memory_tier::{Item, MemoryTier},
    purge_rule::{PurgeKey, Subject, standing, standing_at},
    purges::{Purge, Purged, as_of_now},
    read_rate::ReadRate,
    table::{ENTRIES, SEQUENCE, load_ledger, number},
    use_table::UseTable,
};
use crate::{
    error::Error,
    store::{
        commit::{pending::Pending, write_queue::WriteQueue},
        lmdb::transaction::Reader,
        record::key::Key,
    },
};
use hyper::body::Bytes;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// One shard of the stored answers.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) queue: WriteQueue,
    pub(super) budget: u64,
    pub(super) uses: UseTable,
    pub(crate) counts: Counts,
    /// How far this process has looked for purges that are old.
    pub(super) swept: Mutex<Option<PurgeKey>>,
    /// A step of tidying is queued. There is one at a time: otherwise steps would pile up behind a gate that stays
    /// shut.
    pub(crate) tidying: AtomicBool,
    /// The last step found more than it may clear away.
    pub(crate) more: AtomicBool,
    /// The latest time of any write: the worker thread has no clock of its own that agrees with every user's.
    pub(crate) latest: AtomicU64,
}

/// The result of a read.
pub(crate) struct Hit<T> {
    pub(crate) value: Arc<T>,
    /// When it was found.
    pub(crate) now: u64,
    /// Its read rate in this process, where that is kept.
    pub(crate) reads: Option<Arc<ReadRate>>,
    /// It was found without a look into the file.
    pub(crate) from_memory: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) evicted: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Entries {
    pub(crate) fn new(queue: WriteQueue, budget: u64, uses: UseTable) -> Entries {
        Entries {
            queue,
            budget,
            uses,
            counts: Counts::default(),
            swept: Mutex::default(),
            tidying: AtomicBool::new(false),
            more: AtomicBool::new(false),
            latest: AtomicU64::new(0),
        }
    }

    /// Bytes that a payload may have.
    pub(crate) fn largest(&self) -> usize {
        usize::try_from(self.budget / 4).unwrap_or(usize::MAX).min(u32::MAX as usize) - ENTRY_OVERHEAD
    }

    /// Reads an entry whose life is not over, fresh or not. Returns it with the time at which that was so; or the purge
    /// sequence that a new computation must carry.
    ///
    /// `now` is asked after the entry was read: otherwise an answer stored in between would seem to come from the
    /// future.
    pub(crate) fn get(
        &self,
        key: &Key,
        name: &[u8],
        now: impl FnOnce() -> u64,
    ) -> Result<Result<(Entry, u64), u64>, Error> {
        let (found, sequence) = self.queue.env.read(|reader| {
            let sequence = number(reader, SEQUENCE)?;
            Ok((self.find(reader, sequence, key, name)?, sequence))
        })?;
        let found = found.map(|(entry, _)| (entry, now())).filter(|(entry, now)| !entry.life.is_over(*now));
        if found.is_some() {
            self.uses.note(&key.hash);
        }
        Ok(found.ok_or(sequence))
    }

    /// As `get`, decoded: from the memory tier if it has not changed since it was last read. An entry that `decode`
    /// cannot read counts as damaged.
    pub(crate) fn read<T: Send + Sync + 'static>(
        &self,
        tier: &MemoryTier,
        key: &Key,
        name: &[u8],
        now: impl Fn() -> u64,
        decode: impl FnOnce(&Entry) -> Option<T>,
    ) -> Result<Result<Hit<T>, u64>, Error> {
        let item = tier.get(key, name);
        if let Some(item) = &item {
            match self.look_again(item, key)? {
                Some(from_memory) => {
                    let (value, now) = (item.value.clone().downcast::<T>(), now());
                    if let Ok(value) = value
                        && !item.entry.life.is_over(now)
                    {
                        self.uses.note(&key.hash);
                        return Ok(Ok(Hit { value, now, reads: Some(item.reads.clone()), from_memory }));
                    }
                }
                None => tier.remove(key),
            }
        }
        let (found, sequence, seen) = self.queue.env.read(|reader| {
            let sequence = number(reader, SEQUENCE)?;
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
        self.uses.note(&key.hash);
        let reads = tier.is_on().then(|| item.map_or_else(|| Arc::new(ReadRate::new(now)), |item| item.reads.clone()));
        if let (Some(row), Some(reads)) = (row, &reads) {
            tier.put(key, Item::new(key, name, (entry, row, seen), value.clone(), reads.clone()));
        }
        Ok(Ok(Hit { value, now, reads, from_memory: false }))
    }

    /// Whether an item of the memory tier is still the entry under its key. `None`: it is not. `Some(true)`: it is, and
    /// this took no look into the file.
    fn look_again(&self, item: &Item, key: &Key) -> Result<Option<bool>, Error> {
        let env = &self.queue.env;
        if env.forked() {
            return Err(Error::Forked);
        }
        if item.is_current(env.last_transaction()) {
            return Ok(Some(true));
        }
        env.read(|reader| {
            let is_same = reader.get(ENTRIES, &key.hash)?.and_then(RowDigest::of) == Some(item.row);
            let life = item.entry.life;
            if !is_same || standing(reader, &key.hash, item.name(), &item.entry)? != Some(life) {
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
        let Some(bytes) = reader.get(ENTRIES, &key.hash)? else { return Ok(None) };
        match decode_entry(&Bytes::copy_from_slice(bytes), key, name) {
            Stored::Entry(entry) => {
                let standing = standing_at(reader, sequence, &key.hash, name, &entry)?;
                Ok(standing.map(|life| (Entry { life, ..entry }, RowDigest::of(bytes))))
            }
            Stored::Damaged => {
                self.counts.damaged.fetch_add(1, Relaxed);
                Ok(None)
            }
            Stored::Other => Ok(None),
        }
    }

    pub(crate) fn purge_sequence(&self) -> Result<u64, Error> {
        self.queue.env.read(|reader| number(reader, SEQUENCE))
    }

    /// The number of answers, and the bytes of all entries, now.
    pub(crate) fn size(&self) -> Result<(u64, u64), Error> {
        self.queue.env.read(|reader| {
            let ledger = load_ledger(reader)?;
            Ok((reader.len(ENTRIES)?.saturating_sub(ledger.marks), ledger.bytes))
        })
    }

    /// Whether an entry would be fresh if it were stored.
    pub(crate) fn is_current(&self, key: &Key, name: &[u8], entry: &Entry, now: u64) -> Result<bool, Error> {
        self.queue.env.read(|reader| {
            let entry = as_of_now(reader, &key.hash, name, entry)?;
            Ok(entry.is_some_and(|entry| entry.life.is_fresh(now)))
        })
    }

    /// From the commit on, no answer that the subject matches and whose computation began before is read or stored;
    /// after a soft purge, such answers have ended. [`Purged::Again`]: not yet.
    pub(crate) fn purge(&self, subject: Subject, soft: bool, now: u64) -> Pending<Result<Purged, Error>> {
        self.latest.fetch_max(now, Relaxed);
        let purge = Purge { subject, soft, now, purged: Purged::Done };
        self.queue.delegate(purge, |purge, result| result.map(|()| purge.purged))
    }
}

#[cfg(test)]
mod tests;
