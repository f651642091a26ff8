//! The tables of `state/`, and what may be done to a row of them.

use crate::store::lmdb::transaction::Table;

/// Cells are in the table without a name: a commit of one in a named table would write that table's row of it too.
pub(crate) const TABLES: [&str; 3] = ["", "locks", "waiters"];
/// Rows that may be dropped when room is needed.
pub(crate) const CELLS: Table = Table(0);
/// Rows that never are.
pub(crate) const LOCKS: Table = Table(1);
/// Who waits behind a row, see [`waiting_line`](super::waiting_line).
pub(crate) const WAITERS: Table = Table(2);

/// Bytes of a row's payload at most: a larger one would make room at the cost of everybody's cells and not fit all the
/// same.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;

/// What an update leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Keep,
    Put { expires: u64, tag: u64, payload: Vec<u8> },
    Remove,
}

/// The key of a row. Among the cells stand the rows of the other tables, whose shorter keys are no cell's.
pub(crate) fn row_key<const N: usize>(key: &[u8]) -> [u8; N] {
    let mut row = [0; N];
    let len = key.len().min(N);
    row[..len].copy_from_slice(&key[..len]);
    row
}

/// Key of the row, turn, ticket; big endian, so that the rows of a line stand together in order of turn.
pub(super) type WaiterKey = [u8; 32];
