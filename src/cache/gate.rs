//! A robust mutex in a mapped page, shared by all processes, that everyone takes before LMDB's writer lock.
//!
//! LMDB's own lock has no try and no timeout: a thread of a runtime that waits for it behind a stopped process freezes
//! its runtime. This one can be tried, and waited for with a bound.

#![allow(unsafe_code)]

use super::sys;
use crate::error::Error;
use std::{
    cell::UnsafeCell, fs::File, io, io::Write, marker::PhantomData, mem::size_of, os::fd::AsRawFd, path::Path,
    ptr::NonNull, time::Duration,
};

#[repr(C)]
struct Page {
    magic: u64,
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}

const MAGIC: u64 = u64::from_le_bytes(*b"fldgate1");

/// The gate of one environment.
pub(crate) struct Gate {
    page: NonNull<Page>,
}

// SAFETY: the page is shared memory; its mutex is process-shared and is only touched through libc's functions.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

/// Possession of the gate; it belongs to the thread that took it.
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    _this_thread: PhantomData<*const ()>,
}

impl Gate {
    /// Maps the gate in `file`. `fresh` makes it anew: only where nobody else can be using it.
    pub(crate) fn open(path: &Path, fresh: bool) -> io::Result<Gate> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let short = file.metadata()?.len() < size_of::<Page>() as u64;
        if short && !fresh {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the gate's file is too short"));
        }
        if short {
            // Written, not only lengthened: on a full disk, the first touch of a hole would kill the process.
            (&file).write_all(&[0; size_of::<Page>()])?;
        }
        // SAFETY: a new shared mapping of a file that we have just made long enough; the result is checked.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Page>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let gate = Gate { page: NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)? };
        if fresh {
            gate.init()?;
        } else if gate.magic() != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the gate's file is not a gate"));
        }
        Ok(gate)
    }

    fn magic(&self) -> u64 {
        // SAFETY: the mapping is at least a page long and stays until drop.
        unsafe { std::ptr::read_volatile(&raw const (*self.page.as_ptr()).magic) }
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        // SAFETY: the mapping stays until drop; only the pointer is formed here.
        unsafe { (*self.page.as_ptr()).mutex.get() }
    }

    fn init(&self) -> io::Result<()> {
        // SAFETY: nobody else uses the page (the caller's promise), so the mutex may be made anew; each result is checked.
        unsafe {
            let mut kind = std::mem::zeroed::<libc::pthread_mutexattr_t>();
            check(libc::pthread_mutexattr_init(&mut kind))?;
            check(libc::pthread_mutexattr_setpshared(&mut kind, libc::PTHREAD_PROCESS_SHARED))?;
            check(libc::pthread_mutexattr_setrobust(&mut kind, libc::PTHREAD_MUTEX_ROBUST))?;
            check(libc::pthread_mutex_init(self.mutex(), &kind))?;
            check(libc::pthread_mutexattr_destroy(&mut kind))?;
            std::ptr::write_volatile(&raw mut (*self.page.as_ptr()).magic, MAGIC);
        }
        Ok(())
    }

    /// Takes the gate if nobody holds it. Never blocks.
    pub(crate) fn try_lock(&self) -> Result<Option<Held<'_>>, Error> {
        // SAFETY: the mutex was initialised when the gate was made and is mapped until drop.
        self.taken(unsafe { libc::pthread_mutex_trylock(self.mutex()) })
    }

    /// Waits for the gate, at most for `patience`: for the housekeeping thread only.
    pub(crate) fn lock_for(&self, patience: Duration) -> Result<Option<Held<'_>>, Error> {
        // SAFETY: as in `try_lock`.
        self.taken(unsafe { sys::mutex_lock_for(self.mutex(), patience) })
    }

    fn taken(&self, result: libc::c_int) -> Result<Option<Held<'_>>, Error> {
        match result {
            0 => {}
            // The last holder died. LMDB rolls its transaction back by itself, so there is nothing to mend but the mutex.
            libc::EOWNERDEAD => {
                // SAFETY: we own the mutex, whose former owner died.
                let result = unsafe { libc::pthread_mutex_consistent(self.mutex()) };
                check(result)?;
            }
            libc::EBUSY | libc::ETIMEDOUT => return Ok(None),
            libc::ENOTRECOVERABLE => return Err(Error::Damaged),
            error => return Err(io::Error::from_raw_os_error(error).into()),
        }
        Ok(Some(Held { gate: self, _this_thread: PhantomData }))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread took the mutex (`Held` cannot leave it).
        unsafe { libc::pthread_mutex_unlock(self.gate.mutex()) };
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no `Held` can outlive it. The mutex itself stays: others use it.
        unsafe { libc::munmap(self.page.as_ptr().cast(), size_of::<Page>()) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_a_dead_one_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::open(&dir.path().join("gate"), true).unwrap();
        let again = Gate::open(&dir.path().join("gate"), false).unwrap();
        let held = gate.try_lock().unwrap().unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                assert!(again.try_lock().unwrap().is_none());
                assert!(again.lock_for(Duration::from_millis(5)).unwrap().is_none());
            });
        });
        drop(held);
        // A thread that ends while it holds the gate counts as dead, as a process does.
        std::thread::scope(|threads| {
            // Joined by hand: the scope's own end does not wait for the thread's very last breath.
            threads.spawn(|| std::mem::forget(again.try_lock().unwrap().unwrap())).join().unwrap();
        });
        assert!(gate.try_lock().unwrap().is_some());
        assert!(again.lock_for(Duration::from_secs(5)).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_no_gate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        assert!(Gate::open(&path, false).is_err());
        std::fs::write(&path, [1; 100]).unwrap();
        assert!(Gate::open(&path, false).is_err());
    }
}
