//! What one admission took, and its stored form in the row of a waiter.

use super::limit::algorithm::Slot;
use crate::store::u64_at;

/// The slots that one admission took, one a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    pub(super) cost: u32,
    /// Machine time at which they were taken, or a moment later where limits changed just then.
    pub(super) asked: u64,
    pub(super) first: Slot,
    pub(super) others: Vec<Slot>,
}

impl Slots {
    /// Their stored form. `fingerprint` tells the limits that they were taken of: for others they mean something else.
    pub(super) fn write(&self, fingerprint: u32) -> Vec<u8> {
        let head = u64::from(self.cost) | u64::from(fingerprint) << 32;
        let mut out = [head.to_le_bytes(), self.asked.to_le_bytes()].concat();
        for slot in std::iter::once(&self.first).chain(&self.others) {
            out.extend_from_slice(&slot.start.to_le_bytes());
            out.extend_from_slice(&slot.end.to_le_bytes());
        }
        out
    }

    /// `None`: damaged, or taken of other limits.
    pub(super) fn read(bytes: &[u8], fingerprint: u32) -> Option<Slots> {
        let (head, slots) = bytes.split_at_checked(16)?;
        let cost = u64_at(head, 0).filter(|cost| (cost >> 32) as u32 == fingerprint)? as u32;
        let mut slots =
            slots.chunks_exact(16).map_while(|slot| Some(Slot { start: u64_at(slot, 0)?, end: u64_at(slot, 8)? }));
        Some(Slots { cost, asked: u64_at(head, 8)?, first: slots.next()?, others: slots.collect() })
    }
}
