//! Nothing: see `hits.rs`.
