//! The ground of both the rows of `state/` and the entries of `entries/`: keys, row headers, checksums.

pub(crate) mod key;
pub(crate) mod row;
