//! HTTP responses: which may be kept and for how long, how they are recorded, and how they are stored.

mod cache_control;
pub(super) mod digest;
mod encoding;
mod freshness;
pub(super) mod recorded;
