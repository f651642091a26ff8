//! Stored answers: their form, their tables, purges, eviction, the memory tier and read rates.

mod budget;
pub(crate) mod editing;
pub(crate) mod entry;
pub(crate) mod eviction;
pub(crate) mod forgetting;
mod ledger;
pub(crate) mod memory;
mod pieces;
pub(crate) mod purge_rule;
pub(crate) mod purges;
pub(crate) mod shard;
pub(crate) mod table;
mod tidying;
pub(crate) mod use_table;
mod walk;
