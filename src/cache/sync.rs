//! What is exchanged where all interleavings of threads are tried: `.ci/loom` builds some of these files with a module of
//! its own in the place of this one.

pub(super) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize},
    },
    thread::yield_now,
};

/// Turns of a short spin before an operation is queued.
pub(super) const SPIN: usize = 100;
