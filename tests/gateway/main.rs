//! The gateway as a black box: real processes, real sockets, and its flags as a contract.

mod barrier;
mod caching;
mod flags;
mod leaks;
mod limits;
mod load;
mod origin;
mod process;
mod proxying;
mod purging;
mod stale;
mod stampede;
mod streaming;
mod throttling;
