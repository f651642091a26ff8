//! The sums over all entries, and how far eviction has got. An operation loads the ledger once, changes it with the rows
//! and saves it once, in the same transaction.

use crate::store::record::row::u64_at;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Bytes that the entries take.
    pub(super) bytes: u64,
    /// Entries that are no answers.
    pub(super) marks: u64,
    /// The last place that was given to an entry.
    pub(super) last: u64,
    /// The entries up to this place are in the main queue, those behind it in the small one.
    pub(super) main_end: u64,
    /// Bytes that the entries of the small queue take.
    pub(super) small: u64,
    /// The place in the main queue where eviction looked last.
    pub(super) hand: u64,
    /// Counts the times that as many entries as half of those there were evicted unread.
    pub(super) epoch: u64,
    /// Evictions in this epoch.
    pub(super) evicted: u64,
}

impl Ledger {
    pub(super) fn decode(row: &[u8]) -> Ledger {
        let number = |at: usize| u64_at(row, 8 * at).unwrap_or(0);
        Ledger {
            bytes: number(0),
            marks: number(1),
            last: number(2),
            main_end: number(3),
            small: number(4),
            hand: number(5),
            epoch: number(6),
            evicted: number(7),
        }
    }

    pub(super) fn encode(&self) -> [u8; 64] {
        let Ledger { bytes, marks, last, main_end, small, hand, epoch, evicted } = *self;
        let mut row = [0; 64];
        for (at, number) in [bytes, marks, last, main_end, small, hand, epoch, evicted].into_iter().enumerate() {
            row[8 * at..8 * at + 8].copy_from_slice(&number.to_le_bytes());
        }
        row
    }

    /// The place of a new entry.
    pub(super) fn next_place(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn added(&mut self, place: u64, bytes: u64, is_mark: bool) {
        self.bytes += bytes;
        self.marks += u64::from(is_mark);
        if place > self.main_end {
            self.small += bytes;
        }
    }

    pub(super) fn removed(&mut self, place: u64, bytes: u64, is_mark: bool) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.marks = self.marks.saturating_sub(u64::from(is_mark));
        if place > self.main_end {
            self.small = self.small.saturating_sub(bytes);
        }
    }

    /// Counts one of `entries` that was evicted unread.
    pub(super) fn count_eviction(&mut self, entries: u64) {
        self.evicted += 1;
        if self.evicted > entries / 2 {
            self.evicted = 0;
            self.epoch += 1;
        }
    }
}
