//! Cells that were read lately, with the transaction that they were read in: as long as nothing was committed since,
//! they need not be read again. Whoever is refused asks again and again; most of it is answered from here, without the
//! gate and without a transaction.

use std::sync::{Mutex, OnceLock, PoisonError};

/// Cells that are kept, at most; a new one takes the place of the one in its slot. Some 128 KiB, once something is refused.
const SLOTS: usize = 1024;
/// The longest row that is kept: longer ones are those with waiters.
const ROW_MAX: usize = 95;

#[derive(Clone, Copy)]
struct Recent {
    key: [u8; 16],
    transaction: u64,
    len: u8,
    row: [u8; ROW_MAX],
}

/// A table of rows by key.
#[derive(Default)]
pub(crate) struct RecentRefusals(OnceLock<Box<[Mutex<Recent>]>>);

impl RecentRefusals {
    fn slot<'a>(slots: &'a [Mutex<Recent>], key: &[u8; 16]) -> &'a Mutex<Recent> {
        // The keys are hashes.
        &slots[usize::from(u16::from_le_bytes([key[0], key[1]])) % SLOTS]
    }

    /// Keeps a row that was read by the transaction whose snapshot was that of `transaction`.
    pub(crate) fn keep(&self, key: &[u8; 16], transaction: u64, row: &[u8]) {
        let slots = self.0.get_or_init(|| {
            let empty = Recent { key: [0; 16], transaction: 0, len: 0, row: [0; ROW_MAX] };
            (0..SLOTS).map(|_| Mutex::new(empty)).collect()
        });
        // Nobody waits for a slot: it is a help only.
        let Ok(mut slot) = Self::slot(slots, key).try_lock() else { return };
        let Some(bytes) = slot.row.get_mut(..row.len()) else { return };
        bytes.copy_from_slice(row);
        (slot.key, slot.transaction, slot.len) = (*key, transaction, row.len() as u8);
    }

    /// Shows `f` the row, if the last transaction is the one it was read in.
    #[inline]
    pub(crate) fn get<T>(&self, key: &[u8; 16], last: u64, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let recent = Self::slot(self.0.get()?, key).lock().unwrap_or_else(PoisonError::into_inner);
        if recent.key != *key || recent.transaction != last || recent.len == 0 {
            return None;
        }
        // What `f` calls is partly the user's: not under the lock.
        let (row, len) = (recent.row, usize::from(recent.len));
        drop(recent);
        Some(f(&row[..len]))
    }
}

impl std::fmt::Debug for RecentRefusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecentRefusals").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_valid_until_the_next_transaction() {
        let recent = RecentRefusals::default();
        let (key, other) = ([7; 16], [8; 16]);
        let get = |key, last| recent.get(key, last, <[u8]>::to_vec);
        assert_eq!(get(&key, 3), None);
        recent.keep(&key, 3, b"row");
        assert_eq!((get(&key, 3), get(&key, 4), get(&key, 2)), (Some(b"row".to_vec()), None, None));
        assert_eq!(get(&other, 3), None);
        let mut neighbour = key;
        neighbour[15] = 0;
        assert_eq!(get(&neighbour, 3), None, "another key of the same slot");
        recent.keep(&neighbour, 3, b"its");
        assert_eq!((get(&key, 3), get(&neighbour, 3)), (None, Some(b"its".to_vec())));
        recent.keep(&key, 4, &[1; 200]);
        assert_eq!(get(&key, 4), None, "too long");
    }
}
