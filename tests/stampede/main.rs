//! The stampede cache, by what clients and the service behind it see.

mod answers;
mod case_study;
mod composed;
mod flights;
mod memoize;
mod mocks;
mod origin;
mod personal;
mod purges;
mod refresh;
mod stale;
mod streaming;
mod uncacheable;
mod values;
mod variants;
