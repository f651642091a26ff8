//! What is exchanged where all interleavings of threads are tried: `.ci/loom` builds some of these files with a module of
//! its own in the place of this one.

pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize},
    },
    thread::yield_now,
};

/// Ticks without anybody who waits before the listening thread sleeps: waking it costs more than a second of them.
pub(crate) const LINGER: u32 = 33;
/// Turns of a short spin before an operation is queued.
pub(crate) const SPIN: usize = 100;
