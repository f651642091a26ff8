//! What is read often, in memory, and how often it is read.

pub(crate) mod memory_tier;
pub(crate) mod read_rate;
