//! One LMDB environment: the generations of its files and their identity, the gate before its writer lock, opening,
//! transactions.

pub(crate) mod at_exit;
pub(crate) mod ending_threads;
pub(crate) mod env;
mod error;
mod file_identity;
mod files;
pub(crate) mod gate;
mod generation;
pub(crate) mod generations;
mod metas;
pub(crate) mod opening;
mod rotation;
pub(crate) mod transaction;
