//! An empty library: see `hits.rs`.
