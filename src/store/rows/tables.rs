//! The tables of `state/`, and the changes of a row.

use crate::store::lmdb::transaction::Table;

/// Cells are in the table without a name: a commit to a named table also writes that table's own row in the table
/// without a name.
pub(crate) const TABLES: [&str; 4] = ["", "locks", "waiters", "holders"];
/// Rows that may be dropped when room is needed.
pub(crate) const CELLS: Table = Table(0);
/// Rows that are never dropped for room.
pub(crate) const LOCKS: Table = Table(1);
/// The waiters behind a row, see [`waiting_line`](super::waiting_line).
pub(crate) const WAITERS: Table = Table(2);
/// The holders of locks that have many, see [`holders`](super::holders).
pub(crate) const HOLDERS: Table = Table(3);

/// Bytes of a row's payload at most. A larger one would make room at the cost of all cells and still not fit.
pub(crate) const PAYLOAD_MAX: usize = 64 << 10;

/// The change of a row by an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Keep,
    Put { expires: u64, tag: u64, payload: Vec<u8> },
    Remove,
}

/// The key of a row. LMDB's own rows for the other tables stand among the cells; no cell has a key as short as theirs.
pub(crate) fn row_key<const N: usize>(key: &[u8]) -> [u8; N] {
    let mut row = [0; N];
    let len = key.len().min(N);
    row[..len].copy_from_slice(&key[..len]);
    row
}

/// Key of the row, turn, ticket; big endian, so that the rows of a line stand together in order of turn.
pub(super) type WaiterKey = [u8; 32];
