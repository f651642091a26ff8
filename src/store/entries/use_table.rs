//! Which entries are used: a table that every process maps, so that a hit costs no write transaction.
//!
//! Both parts are found by a key's hash. The counters count the hits of late, up to three, which eviction takes back one
//! by one; keys that share a counter spare each other's entries. The marks remember which entries were evicted unread.

use crate::store::os::mapped::MappedWords;
use std::{
    path::Path,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// The name of the file beside an environment's files.
const FILE: &str = "uses";

/// Words for each MiB that the entries may take: for each KiB sixteen counters in two words, and one mark.
const WORDS_PER_MIB: u64 = 3 << 10;
const WORDS_MAX: u64 = 12 << 20;

/// Hits that are counted, and the bits of a counter.
pub(super) const USES_MAX: u16 = 0b11;
/// Counters in a word.
const COUNTERS: usize = 8;

/// The bits of a mark that say when the entry was evicted: the low bits of an epoch.
const EPOCH: u16 = 0b1111;
/// Those that say which entry it was: some bits of its key, and never all clear.
const WHICH: u16 = !EPOCH;
/// Epochs after its own for which an eviction is remembered.
const REMEMBERED: u16 = 2;

/// The uses of the entries of one environment.
pub(crate) struct UseTable {
    words: MappedWords,
    /// Words of counters. Those behind them are marks.
    counters: usize,
}

impl UseTable {
    fn new(words: MappedWords) -> UseTable {
        UseTable { counters: words.len() / 3 * 2, words }
    }

    /// Opens the table of the environment in a directory that may hold `budget` bytes of entries. With `reserving`, the
    /// file system keeps blocks that a process which is `alone` reserves; elsewhere, and on a full disk, a process knows
    /// its own hits only.
    pub(crate) fn open(directory: &Path, budget: u64, reserving: bool, alone: bool) -> std::io::Result<UseTable> {
        let len = (budget >> 20).saturating_mul(WORDS_PER_MIB).clamp(WORDS_PER_MIB, WORDS_MAX) as usize;
        let shared = reserving.then(|| MappedWords::of_file(&directory.join(FILE), len, alone));
        let words = match shared {
            Some(Ok(words)) => words,
            Some(Err(_)) | None => MappedWords::private(len)?,
        };
        Ok(UseTable::new(words))
    }

    /// Notes a hit. A counter that is full already is only read, so that no processor takes its word from the others.
    pub(crate) fn note(&self, key: &[u8; 16]) {
        let counter = self.counter(key);
        if counter.uses() < USES_MAX {
            counter.set(counter.uses() + 1);
        }
    }

    /// Hits of late, at most [`USES_MAX`].
    pub(super) fn count(&self, key: &[u8; 16]) -> u16 {
        self.counter(key).uses()
    }

    /// Takes a hit back.
    pub(super) fn take(&self, key: &[u8; 16]) {
        let counter = self.counter(key);
        if counter.uses() > 0 {
            counter.set(counter.uses() - 1);
        }
    }

    /// Remembers that the entry of a key was evicted unread.
    pub(super) fn evicted(&self, key: &[u8; 16], epoch: u64) {
        self.mark(key).store(which(key) | epoch as u16 & EPOCH, Relaxed);
    }

    /// Whether the entry of a key was evicted unread of late.
    pub(super) fn was_evicted(&self, key: &[u8; 16], epoch: u64) -> bool {
        let mark = self.mark(key).load(Relaxed);
        mark & WHICH == which(key) && (epoch as u16).wrapping_sub(mark) & EPOCH <= REMEMBERED
    }

    fn counter(&self, key: &[u8; 16]) -> Counter<'_> {
        let at = place(key, self.counters * COUNTERS);
        Counter { word: &self.words[at / COUNTERS], shift: (at % COUNTERS) as u32 * USES_MAX.count_ones() }
    }

    fn mark(&self, key: &[u8; 16]) -> &AtomicU16 {
        let marks = &self.words[self.counters..];
        &marks[place(key, marks.len())]
    }
}

/// A counter in a word. Threads that write to one word at once may lose a hit.
struct Counter<'a> {
    word: &'a AtomicU16,
    shift: u32,
}

impl Counter<'_> {
    fn uses(&self) -> u16 {
        self.word.load(Relaxed) >> self.shift & USES_MAX
    }

    fn set(&self, uses: u16) {
        let others = self.word.load(Relaxed) & !(USES_MAX << self.shift);
        self.word.store(others | uses << self.shift, Relaxed);
    }
}

/// The place of a key among `most`.
fn place(key: &[u8; 16], most: usize) -> usize {
    let part = u32::from_le_bytes([key[4], key[5], key[6], key[7]]);
    ((u64::from(part) * most as u64) >> u32::BITS) as usize
}

fn which(key: &[u8; 16]) -> u16 {
    (u16::from_le_bytes([key[8], key[9]]) & WHICH).max(EPOCH + 1)
}

impl std::fmt::Debug for UseTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UseTable").field("words", &self.words.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> UseTable {
        UseTable::new(MappedWords::private(3072).unwrap())
    }

    fn key(n: u64) -> [u8; 16] {
        crate::store::record::key::Secret::new([3; 32]).key(crate::store::Kind::Value, &[7; 16], &n.to_le_bytes()).hash
    }

    #[test]
    fn hits_are_counted_up_to_three_and_taken_back_one_by_one() {
        let (table, key) = (table(), key(1));
        table.take(&key);
        assert_eq!(table.count(&key), 0);
        (0..7).for_each(|_| table.note(&key));
        let counts = [0; 4].map(|_| {
            table.take(&key);
            table.count(&key)
        });
        assert_eq!(counts, [2, 1, 0, 0]);
    }

    #[test]
    fn an_eviction_is_remembered_for_some_epochs_beside_the_hits() {
        let (table, key) = (table(), key(1));
        assert!(!table.was_evicted(&key, 0));
        table.note(&key);
        for epoch in [0, 14, 15, 16, 1 << 40] {
            table.evicted(&key, epoch);
            assert_eq!(table.count(&key), 1);
            let remembered = [0, 1, 2, 3, 13].map(|later| table.was_evicted(&key, epoch + later));
            assert_eq!(remembered, [true, true, true, false, false]);
        }
    }

    #[test]
    fn few_keys_are_taken_for_others() {
        let table = table();
        (0..1000).for_each(|n| table.evicted(&key(n), 5));
        let taken = (1000..101_000).filter(|&n| table.was_evicted(&key(n), 5)).count();
        assert!(taken < 200, "{taken} of 100,000");
    }
}
