//! Threads that end while an environment is closed.
//!
//! A thread that has read gives its place among LMDB's readers back when it ends, by a destructor of its own: LMDB's key
//! for thread-specific data. Closing the environment deletes the key and unmaps the readers, whether or not a destructor is
//! just about to write there. So whoever closes waits for the threads that are ending, and those that want to end wait for
//! the closing.

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

/// Keeps threads that have read from ending while it lives; those that were ending have ended.
#[derive(Debug)]
pub(super) struct Closing(#[expect(dead_code)] MutexGuard<'static, usize>);

pub(super) fn wait_for_ending_threads() -> Closing {
    // This one itself, if it closes by a destructor.
    let own = usize::from(THIS.try_with(|_| ()).is_err());
    let ending = ENDED.wait_timeout_while(lock(), PATIENCE, |ending| *ending > own);
    Closing(ending.unwrap_or_else(PoisonError::into_inner).0)
}

fn lock() -> MutexGuard<'static, usize> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This thread reads: from now on its end is waited for.
#[inline]
pub(super) fn watch_this_thread() {
    // Of a thread that is ending already it is too late, and it is being waited for.
    let _ = THIS.try_with(|_| ());
}

thread_local! {
    static THIS: Watched = Watched::new();
}

/// Dropped by Rust, before the destructors of keys run.
struct Watched {
    /// See [`fork::forks`].
    forks: u32,
    is_watched: bool,
}

impl Watched {
    fn new() -> Watched {
        // SAFETY: the key was made, and the value is never followed.
        let set = |key| unsafe { libc::pthread_setspecific(key, FIRST) } == 0;
        Watched { forks: fork::forks(), is_watched: key().is_some_and(set) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // A forked child has no threads to wait for, and perhaps a lock that nobody gives back.
        if self.is_watched && self.forks == fork::forks() {
            *lock() += 1;
        } else if let (true, Some(key)) = (self.is_watched, key()) {
            // SAFETY: as in `new`.
            unsafe { libc::pthread_setspecific(key, ptr::null()) };
        }
    }
}

/// The values of the key, in the first and in the second round of a thread's destructors. Those of LMDB run once, in the
/// first.
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
