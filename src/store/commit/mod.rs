//! Group commit: the write queue before an environment's gate, the worker that serves it, and results that can be
//! awaited.

mod applying;
pub(crate) mod backlog;
pub(crate) mod operation;
pub(crate) mod pending;
mod standstill;
pub(crate) mod worker;
pub(crate) mod write_queue;
