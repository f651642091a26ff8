//! The gateway as a black box: real processes, real sockets, and its flags as a contract.

mod caching;
mod flags;
mod limits;
mod origin;
mod process;
mod proxying;
