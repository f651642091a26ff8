//! A cache is closed while a thread that has used it ends.

#![allow(unsafe_code)] // in place of getpid, and what it needs

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};
use tower_floodgate::Cache;

/// The thread that is slow to end, and whether it is at its end.
static SLOW: AtomicI64 = AtomicI64::new(0);
static ENDS: AtomicBool = AtomicBool::new(false);

fn this_thread() -> i64 {
    // SAFETY: it only answers a number.
    unsafe { libc::syscall(libc::SYS_gettid) }
}

/// In place of libc's: when a thread ends, LMDB asks for it between finding the thread's reader and giving that back.
#[unsafe(no_mangle)]
extern "C" fn getpid() -> libc::pid_t {
    if this_thread() == SLOW.load(SeqCst) {
        ENDS.store(true, SeqCst);
        thread::sleep(Duration::from_millis(200));
    }
    // SAFETY: it only answers a number.
    unsafe { libc::syscall(libc::SYS_getpid) as libc::pid_t }
}

#[test]
fn a_thread_that_ends_has_given_its_readers_back_before_the_files_are_closed() {
    let cache = Cache::temporary().unwrap();
    let reading = cache.clone();
    let reader = thread::spawn(move || {
        assert_eq!(reading.get::<u64>("nothing").unwrap(), None);
        drop(reading);
        SLOW.store(this_thread(), SeqCst);
    });
    let began = Instant::now();
    while !ENDS.load(SeqCst) {
        assert!(began.elapsed() < Duration::from_secs(10), "the reader's end was not seen");
        thread::yield_now();
    }
    drop(cache);
    reader.join().unwrap();
}
