//! The end of the process, which waits for what is still being closed: otherwise files would not be marked as safe to
//! keep over a reboot, or a thread would be cut short in the middle of a commit.

#![allow(unsafe_code)]

use super::ending_threads;
use crate::store::os::fork;
use std::{
    sync::{
        Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

/// How long the end of the process waits.
const PATIENCE: Duration = Duration::from_secs(10);

static CLOSINGS: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();
/// See [`fork::forks`]. In a forked child nothing is being closed, whatever was copied.
static BEGUN_IN: AtomicU32 = AtomicU32::new(0);

/// While this lives, the end of the process is put off.
#[derive(Debug)]
pub(crate) struct PutOff;

impl PutOff {
    pub(crate) fn begin() -> PutOff {
        static ONCE: Once = Once::new();
        // SAFETY: the handler takes no arguments and never unwinds.
        ONCE.call_once(|| unsafe {
            libc::atexit(at_exit);
        });
        let mut closings = lock();
        if BEGUN_IN.swap(fork::forks(), SeqCst) != fork::forks() {
            *closings = 0;
        }
        *closings += 1;
        PutOff
    }
}

impl Drop for PutOff {
    fn drop(&mut self) {
        if BEGUN_IN.load(SeqCst) == fork::forks() {
            *lock() -= 1;
            ENDED.notify_all();
        }
    }
}

fn lock() -> MutexGuard<'static, usize> {
    CLOSINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn at_exit() {
    if BEGUN_IN.load(SeqCst) == fork::forks() {
        ending_threads::the_process_ends();
        let _ = ENDED.wait_timeout_while(lock(), PATIENCE, |closings| *closings > 0);
    }
}
