//! The gate: a robust mutex in a mapped page, shared by all processes. Every thread takes it before LMDB's writer lock.
//!
//! LMDB's own lock has no try and no timeout: a thread of a runtime that waits for it behind a stopped process freezes
//! its runtime. The gate can be tried, and a thread can wait for it with a bound.
//!
//! The page also says what every process must know of the environment: the files that it is made of, the last
//! transaction that was committed, and whether it was found damaged.

#![allow(unsafe_code)]

use super::files::{Files, GATE_SIZE, Id};
use crate::{
    error::Error,
    store::os::{blocks, syscalls},
};
use std::{
    cell::UnsafeCell,
    fs::File,
    io,
    marker::PhantomData,
    mem::size_of,
    os::fd::AsRawFd,
    path::Path,
    ptr::NonNull,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
    time::Duration,
};

#[repr(C)]
struct Page {
    /// [`MAGIC`], or [`CONDEMNED`].
    magic: AtomicU64,
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    /// How often in a row a thread died while it held the gate, or a process while it opened the environment alone.
    deaths: AtomicU64,
    map_size: AtomicU64,
    files: [[AtomicU64; 2]; Files::COUNT],
    /// The last transaction that is known to have been committed, by any process.
    newest: AtomicU64,
}

/// Bytes of a gate's file that are mapped. A mutex has 40 bytes or 48, as the architecture wants.
const MAPPED: usize = GATE_SIZE as usize;
const _: () = assert!(size_of::<Page>() <= MAPPED);

const MAGIC: u64 = u64::from_le_bytes(*b"fldgate2");
const CONDEMNED: u64 = u64::from_le_bytes(*b"flddmgd2");

/// A process that is killed while it writes leaves sound files behind, so one death says nothing. But damaged files
/// kill every process that reads them, again and again.
const DEATHS_MAX: u64 = 3;

/// The gate of one environment.
pub(crate) struct Gate {
    page: NonNull<Page>,
    /// This process must not even touch the page any more.
    shut: AtomicBool,
}

// SAFETY: the page is shared memory; its mutex is process-shared and is only touched through libc's functions, the rest
// is atomic.
unsafe impl Send for Gate {}
// SAFETY: as above.
unsafe impl Sync for Gate {}

/// Possession of the gate, which belongs to the thread that took it.
pub(crate) struct Held<'a> {
    gate: &'a Gate,
    _this_thread: PhantomData<*const ()>,
}

impl Gate {
    /// Maps the gate in `file`. `fresh` makes it anew, which is allowed only while no other process can be using it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the file is no gate, or the gate of an environment that was found damaged.
    pub(crate) fn open(path: &Path, fresh: bool) -> Result<Gate, Error> {
        let file = File::options().read(true).write(true).create(fresh).truncate(false).open(path);
        let file = match file {
            Err(error) if !fresh && error.kind() == io::ErrorKind::NotFound => return Err(Error::Damaged),
            file => file?,
        };
        let short = file.metadata()?.len() < GATE_SIZE;
        if short && !fresh {
            return Err(Error::Damaged);
        }
        if fresh {
            // On a full disk, the first touch of a hole would kill the process.
            blocks::reserve(&file, GATE_SIZE)?;
        }
        // SAFETY: a new shared mapping of a file that we have just made long enough; the result is checked.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MAPPED,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let page = NonNull::new(page.cast()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))?;
        let gate = Gate { page, shut: AtomicBool::new(false) };
        let page = gate.page();
        match (page.magic.load(Acquire), fresh) {
            (MAGIC, false) => {}
            (MAGIC, true) if page.deaths.load(Relaxed) < DEATHS_MAX => gate.init()?,
            (CONDEMNED, _) | (MAGIC, true) | (_, false) => return Err(Error::Damaged),
            (_, true) => {
                page.deaths.store(0, Relaxed);
                gate.init()?;
            }
        }
        Ok(gate)
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is long enough and stays until drop; what other processes change in it is atomic, or
        // behind an `UnsafeCell`.
        unsafe { self.page.as_ref() }
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        self.page().mutex.get()
    }

    fn init(&self) -> io::Result<()> {
        // SAFETY: the caller promises that no other process uses the page, so the mutex may be made anew; each result
        // is checked.
        unsafe {
            let mut kind = std::mem::zeroed::<libc::pthread_mutexattr_t>();
            check(libc::pthread_mutexattr_init(&mut kind))?;
            check(libc::pthread_mutexattr_setpshared(&mut kind, libc::PTHREAD_PROCESS_SHARED))?;
            check(libc::pthread_mutexattr_setrobust(&mut kind, libc::PTHREAD_MUTEX_ROBUST))?;
            check(libc::pthread_mutex_init(self.mutex(), &kind))?;
            check(libc::pthread_mutexattr_destroy(&mut kind))?;
        }
        self.page().magic.store(MAGIC, Release);
        Ok(())
    }

    /// Writes down the environment's files.
    pub(crate) fn describe(&self, files: &Files) {
        let page = self.page();
        page.map_size.store(files.map_size, Relaxed);
        for (kept, id) in page.files.iter().flatten().zip(files.ids.iter().flatten()) {
            kept.store(*id, Relaxed);
        }
        // No process is left that knows of a newer transaction.
        page.newest.store(0, Relaxed);
    }

    /// Whether the last transaction of the data file is not older than one that any process knows of. The caller holds
    /// the gate.
    ///
    /// LMDB cannot tell: after the death of a writer, its lock file takes over the number in the data file. A writer
    /// that dies after its commit and before it has raised this number leaves it too low; the next writer makes up for
    /// that.
    pub(crate) fn is_not_behind(&self, last: u64) -> bool {
        let newest = &self.page().newest;
        let sound = newest.load(Relaxed) <= last;
        if sound {
            newest.store(last, Relaxed);
        }
        sound
    }

    /// The files that were written down.
    pub(crate) fn described(&self) -> Files {
        let page = self.page();
        let id = |at: usize| -> Id { [page.files[at][0].load(Relaxed), page.files[at][1].load(Relaxed)] };
        Files { map_size: page.map_size.load(Relaxed), length: 0, ids: std::array::from_fn(id) }
    }

    /// Runs a function in which damaged files may kill this process, and keeps a record of such a death. Only for a
    /// process that is alone.
    pub(crate) fn survive<T>(&self, f: impl FnOnce() -> T) -> T {
        let deaths = &self.page().deaths;
        let before = deaths.fetch_add(1, Relaxed);
        let survived = f();
        deaths.store(before, Relaxed);
        survived
    }

    /// Marks the environment as damaged: from now on, no process gets through. Returns whether this was the first
    /// report.
    pub(crate) fn condemn(&self) -> bool {
        !self.shut.load(Relaxed) && self.page().magic.swap(CONDEMNED, Release) == MAGIC
    }

    /// Shuts the gate for this process. Returns whether it was open before.
    pub(crate) fn shut(&self) -> bool {
        !self.shut.swap(true, Relaxed)
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    /// Fails unless the page is sound and says that the environment is sound.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_shut() || self.page().magic.load(Relaxed) != MAGIC { Err(Error::Damaged) } else { Ok(()) }
    }

    /// Takes the gate if no thread holds it. Never blocks.
    pub(crate) fn try_lock(&self) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        // SAFETY: the mutex was initialised when the gate was made and is mapped until drop.
        self.taken(unsafe { libc::pthread_mutex_trylock(self.mutex()) })
    }

    /// Waits for the gate, at most for `patience`. It blocks: for the worker thread, for openings, and for readers that
    /// must pass the gate.
    pub(crate) fn lock_for(&self, patience: Duration) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        // SAFETY: as in `try_lock`.
        self.taken(unsafe { syscalls::mutex_lock_for(self.mutex(), patience) })
    }

    fn taken(&self, result: libc::c_int) -> Result<Option<Held<'_>>, Error> {
        match result {
            0 => {}
            // The last holder died. LMDB rolls its transaction back by itself, so only the mutex must be mended.
            libc::EOWNERDEAD => {
                // SAFETY: we own the mutex, whose former owner died.
                let result = unsafe { libc::pthread_mutex_consistent(self.mutex()) };
                check(result)?;
            }
            libc::EBUSY | libc::ETIMEDOUT => return Ok(None),
            // Not recoverable, or no mutex at all.
            _ => return Err(Error::Damaged),
        }
        let held = Held { gate: self, _this_thread: PhantomData };
        let deaths = &self.page().deaths;
        deaths.store(deaths.load(Relaxed).saturating_add(1), Relaxed);
        // It may have been condemned while we waited.
        self.check().map(|()| Some(held))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.gate.page().deaths.store(0, Relaxed);
        // SAFETY: this thread took the mutex (`Held` cannot leave it).
        unsafe { libc::pthread_mutex_unlock(self.gate.mutex()) };
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no `Held` can outlive it. The mutex itself stays: others use it.
        unsafe { libc::munmap(self.page.as_ptr().cast(), MAPPED) };
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
        assert!(!path.exists());
        std::fs::write(&path, [1; 200]).unwrap();
        assert!(Gate::open(&path, false).is_err());
        assert!(Gate::open(&path, true).is_ok());
        assert!(Gate::open(&path, false).is_ok());
    }

    #[test]
    fn a_condemned_gate_lets_nobody_through_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        let (gate, again) = (Gate::open(&path, true).unwrap(), Gate::open(&path, false).unwrap());
        let held = gate.try_lock().unwrap();
        assert!(again.condemn() && !gate.condemn(), "once");
        drop(held);
        assert!(gate.try_lock().is_err() && again.lock_for(Duration::from_secs(1)).is_err());
        assert!(Gate::open(&path, false).is_err() && Gate::open(&path, true).is_err());
    }

    #[test]
    fn what_kills_again_and_again_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        let die = |gate: &Gate| {
            std::thread::scope(|threads| {
                threads
                    .spawn(|| std::mem::forget(gate.lock_for(Duration::from_secs(5)).unwrap().unwrap()))
                    .join()
                    .unwrap();
            });
        };
        for _ in 0..2 * DEATHS_MAX {
            let gate = Gate::open(&path, true).unwrap();
            die(&gate);
            drop(gate.lock_for(Duration::from_secs(5)).unwrap().unwrap());
        }
        for _ in 0..DEATHS_MAX {
            let gate = Gate::open(&path, true).unwrap();
            // An opening that ends well says nothing of what comes after.
            gate.survive(|| ());
            die(&gate);
        }
        assert!(matches!(Gate::open(&path, true), Err(Error::Damaged)));
    }
}
