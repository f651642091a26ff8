//! HTTP responses: which may be kept and for how long, how they are recorded, and how they are stored.

mod cache_control;
mod encoding;
mod freshness;
pub(super) mod recorded;
