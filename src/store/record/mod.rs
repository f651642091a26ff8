//! The ground of both the rows of `state/` and the entries of `entries/`: keys, row headers, checksums, and the names of
//! the directories that hold them.

pub(crate) mod generation_names;
pub(crate) mod key;
pub(crate) mod row;
