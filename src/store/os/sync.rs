//! The locks and bounds that a model checker replaces. `.ci/loom` tries all interleavings of threads: it builds some
//! files of the engine with a module of its own in the place of this one.

pub(crate) use std::{
    hint::spin_loop,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize},
    },
};

/// Ticks without a waiter before the listener thread sleeps. Waking it costs more than a second of ticks.
pub(crate) const LINGER: u32 = 33;
/// Turns of a short spin before an operation is queued.
pub(crate) const SPIN: usize = 100;
