//! A robust mutex in a mapped page, shared by all processes, that everyone takes before LMDB's writer lock.
//!
//! LMDB's own lock has no try and no timeout: a thread of a runtime that waits for it behind a stopped process freezes
//! its runtime. This one can be tried, and waited for with a bound.
//!
//! Its page also says what every process must know of the environment: which files it is made of, which transaction was
//! the last to be committed, and that it was found damaged.

#![allow(unsafe_code)]

use super::files::{Files, GATE_SIZE, Id};
use crate::{error::Error, store::os::syscalls};
use std::{
    cell::UnsafeCell,
    fs::File,
    io,
    io::Write,
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
    /// How often in a row whoever held the gate, or opened the environment alone, did not live to the end of it.
    deaths: AtomicU64,
    map_size: AtomicU64,
    files: [[AtomicU64; 2]; Files::COUNT],
    /// The last transaction that is known to have been committed, by any process.
    newest: AtomicU64,
}

/// Bytes that are mapped of a gate's file. A mutex has 40 bytes or 48, as the architecture wants.
const MAPPED: usize = GATE_SIZE as usize;
const _: () = assert!(size_of::<Page>() <= MAPPED);

const MAGIC: u64 = u64::from_le_bytes(*b"fldgate2");
const CONDEMNED: u64 = u64::from_le_bytes(*b"flddmgd2");

/// Who is killed while it writes leaves sound files behind, so one death says nothing. But damaged files kill whoever
/// reads them, again and again.
const DEATHS_MAX: u64 = 3;

/// The gate of one environment.
pub(crate) struct Gate {
    page: NonNull<Page>,
    /// Not even the page is to be touched any more.
    shut: AtomicBool,
}

// SAFETY: the page is shared memory; its mutex is process-shared and is only touched through libc's functions, the rest is
// atomic.
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
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if it is no gate, or that of an environment that was found damaged.
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
        if short {
            // Written, not only lengthened: on a full disk, the first touch of a hole would kill the process.
            (&file).write_all(&[0; MAPPED])?;
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
        // SAFETY: the mapping is long enough and stays until drop; what other processes change in it is atomic, or behind an
        // `UnsafeCell`.
        unsafe { self.page.as_ref() }
    }

    fn mutex(&self) -> *mut libc::pthread_mutex_t {
        self.page().mutex.get()
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
        }
        self.page().magic.store(MAGIC, Release);
        Ok(())
    }

    /// Writes down what the environment is made of.
    pub(crate) fn describe(&self, files: &Files) {
        let page = self.page();
        page.map_size.store(files.map_size, Relaxed);
        for (kept, id) in page.files.iter().flatten().zip(files.ids.iter().flatten()) {
            kept.store(*id, Relaxed);
        }
        // Nobody is left who knows of a newer one.
        page.newest.store(0, Relaxed);
    }

    /// Whether the last transaction of the data file is not older than one that any process knows of. With the gate held.
    ///
    /// LMDB cannot tell: after the death of a writer, its lock file believes the data file. A writer that dies before it has
    /// raised this number after its commit leaves it too low, which the next one makes good.
    pub(crate) fn is_not_behind(&self, last: u64) -> bool {
        let newest = &self.page().newest;
        let sound = newest.load(Relaxed) <= last;
        if sound {
            newest.store(last, Relaxed);
        }
        sound
    }

    /// What was written down.
    pub(crate) fn described(&self) -> Files {
        let page = self.page();
        let id = |at: usize| -> Id { [page.files[at][0].load(Relaxed), page.files[at][1].load(Relaxed)] };
        Files { map_size: page.map_size.load(Relaxed), length: 0, ids: std::array::from_fn(id) }
    }

    /// Runs what damaged files may kill us in, so that it is known afterwards that they did. For who is alone.
    pub(crate) fn survive<T>(&self, f: impl FnOnce() -> T) -> T {
        let deaths = &self.page().deaths;
        let before = deaths.fetch_add(1, Relaxed);
        let survived = f();
        deaths.store(before, Relaxed);
        survived
    }

    /// The environment was found damaged: from now on nobody gets through, in no process. Whether it was new to say so.
    pub(crate) fn condemn(&self) -> bool {
        !self.shut.load(Relaxed) && self.page().magic.swap(CONDEMNED, Release) == MAGIC
    }

    /// This process gets through no more. Whether it could before.
    pub(crate) fn shut(&self) -> bool {
        !self.shut.swap(true, Relaxed)
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    /// Whether the page is sound and says that the environment is.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_shut() || self.page().magic.load(Relaxed) != MAGIC { Err(Error::Damaged) } else { Ok(()) }
    }

    /// Takes the gate if nobody holds it. Never blocks.
    pub(crate) fn try_lock(&self) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        // SAFETY: the mutex was initialised when the gate was made and is mapped until drop.
        self.taken(unsafe { libc::pthread_mutex_trylock(self.mutex()) })
    }

    /// Waits for the gate, at most for `patience`: for the worker thread only.
    pub(crate) fn lock_for(&self, patience: Duration) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        // SAFETY: as in `try_lock`.
        self.taken(unsafe { syscalls::mutex_lock_for(self.mutex(), patience) })
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
