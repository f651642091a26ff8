//! Threads that end while an environment is closed.
//!
//! A thread that has read gives its reader slot back when it ends: the destructor of LMDB's key for thread-specific
//! data does so. Closing the environment deletes the key and unmaps the reader slots, even while such a destructor is
//! about to write there. So a thread that closes an environment waits for the threads that are ending, and threads that
//! want to end wait for the closing.

#![allow(unsafe_code)]

use crate::store::os::fork;
use std::{
    ffi::c_void,
    ptr,
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

/// How many threads that have read are ending.
static ENDING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();
/// How long closing waits for them: the main thread of a process never runs its last destructors.
const PATIENCE: Duration = Duration::from_secs(1);

/// While this lives, no thread that has read ends; threads that were ending have ended.
#[derive(Debug)]
pub(super) struct Closing(#[expect(dead_code)] MutexGuard<'static, usize>);

pub(super) fn wait_for_ending_threads() -> Closing {
    // This thread counts too, if it closes the environment in a destructor.
    let own = usize::from(this_thread_ends());
    let ending = ENDED.wait_timeout_while(lock(), PATIENCE, |ending| *ending > own);
    Closing(ending.unwrap_or_else(PoisonError::into_inner).0)
}

fn lock() -> MutexGuard<'static, usize> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether this thread is running its last destructors.
pub(crate) fn this_thread_ends() -> bool {
    THIS.try_with(|_| ()).is_err()
}

/// The process ends: this thread, whose destructors of keys will never run, is waited for no more.
pub(crate) fn the_process_ends() {
    // SAFETY: the key exists, and the value is never dereferenced.
    let value = |key| unsafe { libc::pthread_getspecific(key) };
    if this_thread_ends() && key().is_some_and(|key| value(key).cast_const() == FIRST) {
        at_end(SECOND.cast_mut());
    }
}

/// A thread that reads calls this: from now on, a closing waits for its end.
#[inline]
pub(super) fn watch_this_thread() {
    // If the thread is already ending, it is too late for this, and a closing waits for it anyway.
    let _ = THIS.try_with(|_| ());
}

thread_local! {
    static THIS: Watched = Watched::new();
}

/// Rust drops this before the destructors of keys run.
struct Watched {
    /// See [`fork::forks`].
    forks: u32,
    is_watched: bool,
}

impl Watched {
    fn new() -> Watched {
        // SAFETY: the key exists, and the value is never dereferenced.
        let set = |key| unsafe { libc::pthread_setspecific(key, FIRST) } == 0;
        Watched { forks: fork::forks(), is_watched: key().is_some_and(set) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A forked child has no threads to wait for, and perhaps a lock that no thread gives back.
        if self.is_watched && self.forks == fork::forks() {
            *lock() += 1;
        } else if let (true, Some(key)) = (self.is_watched, key()) {
            // SAFETY: as in `new`.
            unsafe { libc::pthread_setspecific(key, ptr::null()) };
        }
    }
}

/// The values of the key, in the first and in the second round of a thread's destructors. LMDB's destructors run once,
/// in the first round.
const FIRST: *const c_void = ptr::without_provenance(1);
const SECOND: *const c_void = ptr::without_provenance(2);

fn key() -> Option<libc::pthread_key_t> {
    static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: the key is valid for a write, and the destructor never unwinds.
        (unsafe { libc::pthread_key_create(&mut key, Some(at_end)) } == 0).then_some(key)
    })
}

extern "C" fn at_end(value: *mut c_void) {
    // SAFETY: as in `Watched::new`.
    let again = |key| unsafe { libc::pthread_setspecific(key, SECOND) } == 0;
    if value.cast_const() == FIRST && key().is_some_and(again) {
        return;
    }
    let mut ending = lock();
    *ending = ending.saturating_sub(1);
    ENDED.notify_all();
}
