//! Stored answers: their form, their tables, purges, eviction, and those in memory.

pub(crate) mod editing;
pub(crate) mod entry;
pub(crate) mod memory_tier;
pub(crate) mod purge_rule;
pub(crate) mod purges;
pub(crate) mod read_rate;
pub(crate) mod shard;
pub(crate) mod table;
mod tidying;
