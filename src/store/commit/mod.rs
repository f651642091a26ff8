//! Group commit: the queue of writes before an environment's gate, the thread that serves it, and results that may be
//! awaited.

pub(crate) mod operation;
pub(crate) mod pending;
pub(crate) mod worker;
pub(crate) mod write_queue;
