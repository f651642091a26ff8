//! Which entries are used: a table of words that every process maps, so that a hit costs no write transaction.
//!
//! A word is found by a key's hash. It counts the hits of late, up to three, which eviction takes back one by one; and it
//! remembers that an entry was evicted unread. Keys that share a word spare each other's entries.

use crate::store::os::mapped::MappedWords;
use std::{
    path::Path,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

/// The name of the file beside an environment's files.
const FILE: &str = "uses";

/// Words for each MiB that the entries may take: two for each KiB.
const WORDS_PER_MIB: u64 = 2048;
const WORDS_MAX: u64 = 8 << 20;

/// The bits of a word that count hits.
const USES: u16 = 0b11;
/// Those that say when an entry was evicted: the low bits of an epoch.
const EPOCH: u16 = 0b1111 << EPOCH_SHIFT;
const EPOCH_SHIFT: u32 = 2;
/// Those that say which one: some bits of its key, and never all clear.
const WHICH_SHIFT: u32 = 6;
const WHICH: u16 = !(USES | EPOCH);

/// Epochs after its own for which an eviction is remembered.
const REMEMBERED: u16 = 2;

/// The uses of the entries of one environment.
pub(crate) struct UseTable {
    words: MappedWords,
}

impl UseTable {
    /// Opens the table of the environment in a directory that may hold `budget` bytes of entries. With `reserving`, the
    /// file system keeps blocks that are reserved; elsewhere, and on a full disk, a process knows its own hits only.
    pub(crate) fn open(directory: &Path, budget: u64, reserving: bool) -> std::io::Result<UseTable> {
        let len = (budget >> 20).saturating_mul(WORDS_PER_MIB).clamp(WORDS_PER_MIB, WORDS_MAX) as usize;
        let shared = reserving.then(|| MappedWords::of_file(&directory.join(FILE), len));
        let words = match shared {
            Some(Ok(words)) => words,
            Some(Err(_)) | None => MappedWords::private(len)?,
        };
        Ok(UseTable { words })
    }

    /// Notes a hit. A word that is full already is only read, so that no processor takes it from the others.
    pub(crate) fn note(&self, key: &[u8; 16]) {
        let word = self.word(key);
        let before = word.load(Relaxed);
        if before & USES < USES {
            word.store(before + 1, Relaxed);
        }
    }

    pub(super) fn is_used(&self, key: &[u8; 16]) -> bool {
        self.word(key).load(Relaxed) & USES > 0
    }

    /// Whether a word has counted as many hits as it can.
    pub(super) fn is_full(&self, key: &[u8; 16]) -> bool {
        self.word(key).load(Relaxed) & USES == USES
    }

    /// Takes a hit back, and returns whether there was one.
    pub(super) fn take(&self, key: &[u8; 16]) -> bool {
        let word = self.word(key);
        let before = word.load(Relaxed);
        let used = before & USES > 0;
        if used {
            word.store(before - 1, Relaxed);
        }
        used
    }

    /// Remembers that the entry of a key was evicted unread.
    pub(super) fn evicted(&self, key: &[u8; 16], epoch: u64) {
        let word = self.word(key);
        word.store(word.load(Relaxed) & USES | ((epoch as u16) << EPOCH_SHIFT) & EPOCH | which(key), Relaxed);
    }

    /// Whether the entry of a key was evicted unread of late.
    pub(super) fn was_evicted(&self, key: &[u8; 16], epoch: u64) -> bool {
        let word = self.word(key).load(Relaxed);
        let age = (epoch as u16).wrapping_sub(word >> EPOCH_SHIFT) & (EPOCH >> EPOCH_SHIFT);
        word & WHICH == which(key) && age <= REMEMBERED
    }

    fn word(&self, key: &[u8; 16]) -> &AtomicU16 {
        let [a, b, c, d] = [key[4], key[5], key[6], key[7]];
        let part = u64::from(u32::from_le_bytes([a, b, c, d]));
        &self.words[((part * self.words.len() as u64) >> 32) as usize]
    }
}

fn which(key: &[u8; 16]) -> u16 {
    (u16::from_le_bytes([key[8], key[9]]) << WHICH_SHIFT).max(1 << WHICH_SHIFT)
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
        UseTable { words: MappedWords::private(2048).unwrap() }
    }

    fn key(n: u64) -> [u8; 16] {
        crate::store::record::key::Secret::new([3; 32]).key(crate::store::Kind::Value, &[7; 16], &n.to_le_bytes()).hash
    }

    #[test]
    fn hits_are_counted_up_to_three_and_taken_back_one_by_one() {
        let (table, key) = (table(), key(1));
        assert!(!table.is_used(&key) && !table.take(&key));
        (0..7).for_each(|_| table.note(&key));
        assert_eq!([0; 4].map(|_| table.take(&key)), [true, true, true, false]);
    }

    #[test]
    fn an_eviction_is_remembered_for_some_epochs_beside_the_hits() {
        let (table, key) = (table(), key(1));
        assert!(!table.was_evicted(&key, 0));
        table.note(&key);
        for epoch in [0, 14, 15, 16, 1 << 40] {
            table.evicted(&key, epoch);
            assert!(table.is_used(&key));
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
