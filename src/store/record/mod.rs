//! What the rows of `state/` and the entries of `entries/` both stand on: keys, row headers, checksums.

pub(crate) mod key;
pub(crate) mod row;
