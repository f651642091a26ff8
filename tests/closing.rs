//! Caches that are closed: while a thread that has used them ends, while another is being opened, at the end of a process.

#![allow(unsafe_code)] // in place of getpid, and what it needs

use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tower_floodgate::Cache;

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, open, role, say, told};

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

/// A file of the directory that a build has in the cache's.
fn inner(path: &Path, name: &str) -> PathBuf {
    let inner = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path().join(name));
    inner.into_iter().find(|file| file.exists()).unwrap()
}

/// While this lives, whoever opens or closes the cache waits.
fn hold_up(path: &Path) -> File {
    let lock = File::open(inner(path, "open.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    lock
}

#[test]
fn a_directory_whose_opening_waits_keeps_nobody_from_another() {
    let [first, second, third] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    drop(open(first.path()));
    let other = open(third.path());
    let held = hold_up(first.path());
    let (begins, begun) = mpsc::channel();
    let waiting = thread::spawn({
        let path = first.path().to_owned();
        move || {
            begins.send(()).unwrap();
            processes::builder(&path).open().map(drop)
        }
    });
    begun.recv().unwrap();
    // All of it happens while the first waits, or that would fail, since it waits for ten seconds at most.
    for _ in 0..20 {
        drop(open(second.path()));
    }
    drop(other);
    assert!(!waiting.is_finished());
    drop(held);
    waiting.join().unwrap().unwrap();
}

#[test]
fn a_runtime_does_not_wait_for_a_closing_but_the_end_of_the_process_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Child::spawn("close", dir.path());
    child.expect("open");
    let held = hold_up(dir.path());
    child.tell("close");
    child.expect("dropped");
    let layout = inner(dir.path(), "layout");
    let is_clean = || fs::read_to_string(&layout).unwrap().contains("clean=1");
    assert!(!is_clean());
    drop(held);
    child.end();
    assert!(is_clean());
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "close");
    let cache = open(&path);
    cache.insert("x", &1).wait().unwrap();
    say("open");
    told();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { drop(cache) });
    say("dropped");
}
