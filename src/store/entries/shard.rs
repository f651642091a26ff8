//! One shard of the stored answers: inline reads, writes batched by the worker thread, a byte budget.

use super::{
    budget::Budget,
    entry::{ENTRY_OVERHEAD, Entry, RowDigest, Stored, decode_entry},
    memory::{
        memory_tier::{Item, MemoryTier, Weight},
        read_rate::ReadRate,
    },
    pieces::{PIECE, part, piece_key},
    purge_rule::{PurgeKey, Subject, standing, standing_at},
    purges::{Purge, Purged, as_of_now},
    table::{ENTRIES, PIECES, SEQUENCE, load_ledger, number},
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

/// Bytes of a payload that are collected in one transaction: some hundred microseconds.
const GATHERED_AT_ONCE: usize = 16 * PIECE;
/// Times that an entry is looked for which is replaced while it is collected.
const GATHERED_MAX: usize = 3;
/// Bytes that answers need beside their rows: LMDB's lock file, its lists of free pages, and the table of uses.
const OVERHEAD: u64 = 4 << 20;

/// One shard of the stored answers.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) queue: Arc<WriteQueue>,
    budget: Budget,
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

enum Gathered {
    Whole(Bytes),
    Damaged,
    /// Another entry has taken its place meanwhile.
    Replaced,
}

/// Adds pieces to a payload until it has some bytes. Returns `false` if one is missing or damaged.
pub(super) fn gather(reader: &Reader<'_>, key: &Key, payload: &mut Vec<u8>, upto: usize) -> Result<bool, Error> {
    while payload.len() < upto {
        let number = payload.len() / PIECE;
        let row = reader.get(PIECES, &piece_key(&key.hash, number))?;
        let Some(part) = row.and_then(|row| part(key, number, row)).filter(|part| !part.is_empty()) else {
            return Ok(false);
        };
        payload.extend_from_slice(part);
    }
    Ok(true)
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) evicted: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

impl Entries {
    pub(crate) fn new(queue: Arc<WriteQueue>, budget: u64, uses: UseTable) -> Entries {
        Entries {
            queue,
            budget: Budget(budget),
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
        usize::try_from(self.budget.0 / 4).unwrap_or(usize::MAX).min(u32::MAX as usize) - ENTRY_OVERHEAD
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
        let (found, sequence, _) = self.look(key, name)?;
        let found = found.map(|(entry, _)| (entry, now())).filter(|(entry, now)| !entry.life.is_over(*now));
        if found.is_some() {
            self.uses.note(&key.hash);
        }
        Ok(found.ok_or(sequence))
    }

    /// As `get`, decoded: from the memory tier if it has not changed since it was last read. An entry that `decode`
    /// cannot read counts as damaged.
    pub(crate) fn read<T: Weight + Send + Sync + 'static>(
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
        let (found, sequence, seen) = self.look(key, name)?;
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
        if let Some(reads) = &reads {
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

    /// The entry under a key, whatever its life; the purge sequence, and the transaction that was seen.
    fn look(&self, key: &Key, name: &[u8]) -> Result<(Option<(Entry, RowDigest)>, u64, u64), Error> {
        for _ in 0..GATHERED_MAX {
            let (found, sequence, seen) = self.queue.env.read(|reader| {
                let sequence = number(reader, SEQUENCE)?;
                Ok((self.find(reader, sequence, key, name)?, sequence, reader.seen()))
            })?;
            let Some((entry, row, in_pieces)) = found else { return Ok((None, sequence, seen)) };
            if in_pieces == 0 {
                return Ok((Some((entry, row)), sequence, seen));
            }
            match self.gather(key, &row, in_pieces)? {
                Gathered::Whole(payload) => return Ok((Some((Entry { payload, ..entry }, row)), sequence, seen)),
                Gathered::Damaged => {
                    self.counts.damaged.fetch_add(1, Relaxed);
                    return Ok((None, sequence, seen));
                }
                Gathered::Replaced => {}
            }
        }
        // It is replaced faster than it can be read.
        Ok((None, self.purge_sequence()?, 0))
    }

    /// The entry under a key, whatever its life, and the bytes of its payload that are kept in pieces.
    fn find(
        &self,
        reader: &Reader<'_>,
        sequence: u64,
        key: &Key,
        name: &[u8],
    ) -> Result<Option<(Entry, RowDigest, usize)>, Error> {
        let Some(bytes) = reader.get(ENTRIES, &key.hash)? else { return Ok(None) };
        let (entry, in_pieces) = match decode_entry(&Bytes::copy_from_slice(bytes), key, name) {
            Stored::Entry(entry) => (entry, 0),
            Stored::InPieces(entry, len) => (entry, len),
            Stored::Damaged => {
                self.counts.damaged.fetch_add(1, Relaxed);
                return Ok(None);
            }
            Stored::Other => return Ok(None),
        };
        let Some(row) = RowDigest::of(bytes) else { return Ok(None) };
        let standing = standing_at(reader, sequence, &key.hash, name, &entry)?;
        Ok(standing.map(|life| (Entry { life, ..entry }, row, in_pieces)))
    }

    /// Collects the payload of an entry, a few pieces in a transaction: a snapshot that is kept for long keeps pages from
    /// being used again.
    fn gather(&self, key: &Key, row: &RowDigest, len: usize) -> Result<Gathered, Error> {
        let mut payload = Vec::with_capacity(len);
        while payload.len() < len {
            let upto = len.min(payload.len() + GATHERED_AT_ONCE);
            let is_whole = self.queue.env.read(|reader| {
                let now = reader.get(ENTRIES, &key.hash)?.and_then(RowDigest::of);
                if now.as_ref() != Some(row) { Ok(None) } else { gather(reader, key, &mut payload, upto).map(Some) }
            })?;
            match is_whole {
                None => return Ok(Gathered::Replaced),
                Some(false) => return Ok(Gathered::Damaged),
                Some(true) => {}
            }
        }
        Ok(if payload.len() == len { Gathered::Whole(payload.into()) } else { Gathered::Damaged })
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
        self.queue.delegate(purge, |purge| purge.map(|purge| purge.purged))
    }

    /// Bytes that the entries may take.
    pub(super) fn budget(&self) -> u64 {
        self.budget.of_entries(self.queue.env.bytes_besides())
    }

    /// Whether the files have room for so many bytes more, which the transaction under way adds. If they have grown too
    /// much, a new generation is begun soon.
    pub(super) fn has_room(&self, incoming: u64) -> bool {
        let env = &self.queue.env;
        let (bytes, besides) = (env.bytes(), env.bytes_besides());
        if bytes > self.budget.of_file(besides) {
            env.want_rotation();
        }
        bytes + besides + incoming + OVERHEAD <= self.budget.most()
    }
}

#[cfg(test)]
mod tests;
