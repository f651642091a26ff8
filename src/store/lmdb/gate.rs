//! The gate: a robust mutex in a mapped page, shared by all processes. Every thread takes it before LMDB's writer lock.
//!
//! LMDB's own lock has no try and no timeout: a thread of a runtime that waits for it behind a stopped process freezes
//! its runtime. The gate can be tried, and a thread can wait for it with a bound.
//!
//! The page also says what every process must know of the environment: its current generation and the files of it, the
//! last transaction that was committed, and whether the generation was found damaged.

#![allow(unsafe_code)]

use super::files::{Files, GATE_SIZE, Id, id_of};
use crate::{
    error::Error,
    store::{
        os::{blocks, syscalls},
        record::row::u64_at,
    },
};
use std::{
    cell::UnsafeCell,
    fs::{self, File},
    io,
    marker::PhantomData,
    mem::{offset_of, size_of},
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
    /// [`MAGIC`].
    magic: AtomicU64,
    /// Device and inode of the gate's file: a copy is no gate.
    own: [AtomicU64; 2],
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    /// How often in a row a thread died while it held the gate, or a process while it opened the environment alone.
    deaths: AtomicU64,
    /// The number of the current generation, and in the lowest bit which of `sides` describes it: all change in one step.
    current: AtomicU64,
    /// The generation that was found damaged, plus one; 0: none.
    condemned: AtomicU64,
    sides: [Side; 2],
    /// The latest end of a lease that was ever granted, in ns of machine time. It only grows.
    latest_lease_end: AtomicU64,
    /// The last number that was drawn, of a [lock](crate::store::rows::sequence) or a purge. It only grows.
    last_number: AtomicU64,
    /// Where the rows of the generation before were lost: until when no lock is granted, and since when budgets are spent,
    /// in ns of machine time. [`NOT_YET`]: since the first one is looked at.
    grants_from: AtomicU64,
    spent_since: AtomicU64,
}

const NOT_YET: u64 = u64::MAX;

/// What every process must know of the files of a generation.
#[repr(C)]
struct Side {
    map_size: AtomicU64,
    files: [[AtomicU64; 2]; Files::COUNT],
    /// The last transaction that is known to have been committed, by any process.
    newest: AtomicU64,
}

/// Bytes of a gate's file that are mapped. A mutex has 40 bytes or 48, as the architecture wants.
const MAPPED: usize = GATE_SIZE as usize;
const _: () = assert!(size_of::<Page>() <= MAPPED);

const MAGIC: u64 = u64::from_le_bytes(*b"fldgate3");

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
    /// Maps the gate of an environment that other processes may be using.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the file is no gate.
    pub(crate) fn open(path: &Path) -> Result<Gate, Error> {
        let file = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Damaged),
            file => file?,
        };
        if file.metadata()?.len() < GATE_SIZE {
            return Err(Error::Damaged);
        }
        let (gate, own) = (Gate::map(&file)?, id_of(&file.metadata()?));
        let page = gate.page();
        let sound = page.magic.load(Acquire) == MAGIC && page.own.each_ref().map(|id| id.load(Relaxed)) == own;
        if sound { Ok(gate) } else { Err(Error::Damaged) }
    }

    /// Makes the gate for this generation, which is allowed only while no other process can be using it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the generation was found damaged.
    pub(crate) fn make(path: &Path, generation: u64) -> Result<Gate, Error> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        // On a full disk, the first touch of a hole would kill the process.
        blocks::reserve(&file, GATE_SIZE)?;
        let gate = Gate::map(&file)?;
        let page = gate.page();
        let sound = page.magic.load(Acquire) == MAGIC;
        if sound && gate.generation() == generation {
            if gate.is_condemned() || page.deaths.load(Relaxed) >= DEATHS_MAX {
                return Err(Error::Damaged);
            }
        } else {
            page.deaths.store(0, Relaxed);
            page.condemned.store(0, Relaxed);
            page.grants_from.store(0, Relaxed);
            page.spent_since.store(0, Relaxed);
            page.current.store(generation << 1, Relaxed);
        }
        for (kept, id) in page.own.iter().zip(id_of(&file.metadata()?)) {
            kept.store(id, Relaxed);
        }
        gate.init()?;
        Ok(gate)
    }

    /// The generation that the gate in a file names; `None` if there is no sound gate.
    pub(crate) fn last_generation(path: &Path) -> Option<u64> {
        let page = fs::read(path).ok()?;
        (u64_at(&page, offset_of!(Page, magic))? == MAGIC).then_some(u64_at(&page, offset_of!(Page, current))? >> 1)
    }

    fn map(file: &File) -> Result<Gate, Error> {
        // SAFETY: a new shared mapping of a file that the callers have found or made long enough; the result is checked.
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
        Ok(Gate { page, shut: AtomicBool::new(false) })
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

    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        self.page().current.load(Acquire) >> 1
    }

    fn side(&self) -> &Side {
        let page = self.page();
        &page.sides[(page.current.load(Acquire) & 1) as usize]
    }

    /// Says that the rows are lost to the generation that comes next, while processes rely on them. The caller holds the
    /// gate.
    pub(super) fn begin_after_loss(&self) {
        let page = self.page();
        page.grants_from.store(page.latest_lease_end.load(Relaxed), Relaxed);
        page.spent_since.store(NOT_YET, Relaxed);
    }

    /// Makes a generation with these files the current one. The caller holds the gate, or is alone.
    pub(crate) fn go_on_with(&self, generation: u64, files: &Files) {
        let page = self.page();
        let side = page.current.load(Relaxed) & 1 ^ 1;
        let new = &page.sides[side as usize];
        new.map_size.store(files.map_size, Relaxed);
        for (kept, id) in new.files.iter().flatten().zip(files.ids.iter().flatten()) {
            kept.store(*id, Relaxed);
        }
        // No process knows of a newer transaction in these files.
        new.newest.store(0, Relaxed);
        page.current.store(generation << 1 | side, Release);
    }

    /// Whether the last transaction of the data file is not older than one that any process knows of. The caller holds
    /// the gate.
    ///
    /// LMDB cannot tell: after the death of a writer, its lock file takes over the number in the data file. A writer
    /// that dies after its commit and before it has raised this number leaves it too low; the next writer makes up for
    /// that.
    pub(crate) fn is_not_behind(&self, last: u64) -> bool {
        let newest = &self.side().newest;
        let sound = newest.load(Relaxed) <= last;
        if sound {
            newest.store(last, Relaxed);
        }
        sound
    }

    /// The latest end of a lease that was ever granted, in ns of machine time.
    pub(crate) fn latest_lease_end(&self) -> u64 {
        self.page().latest_lease_end.load(Relaxed)
    }

    /// Notes the end of a lease that is about to be granted. The caller holds the gate.
    pub(crate) fn raise_lease_end(&self, end: u64) {
        let latest = &self.page().latest_lease_end;
        if latest.load(Relaxed) < end {
            latest.store(end, Relaxed);
        }
    }

    pub(super) fn last_number(&self) -> u64 {
        self.page().last_number.load(Relaxed)
    }

    /// Notes the last number that was drawn. The caller holds the gate.
    pub(super) fn raise_last_number(&self, number: u64) {
        self.page().last_number.fetch_max(number, Relaxed);
    }

    /// Until when no lock is granted, since the rows of those that are held were lost; in ns of machine time.
    pub(super) fn grants_from(&self) -> u64 {
        self.page().grants_from.load(Relaxed)
    }

    /// Since when budgets without a row are spent, since their rows were lost; in ns of machine time. The caller holds the
    /// gate.
    pub(super) fn spent_since(&self, now: u64) -> Option<u64> {
        let since = &self.page().spent_since;
        if since.load(Relaxed) == NOT_YET {
            since.store(now, Relaxed);
        }
        Some(since.load(Relaxed)).filter(|since| *since > 0)
    }

    /// The files of the current generation.
    pub(crate) fn described(&self) -> Files {
        let side = self.side();
        let id = |at: usize| -> Id { [side.files[at][0].load(Relaxed), side.files[at][1].load(Relaxed)] };
        Files { map_size: side.map_size.load(Relaxed), length: 0, ids: std::array::from_fn(id) }
    }

    /// Writes the page to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping is ours and begins at a page.
        check(unsafe { libc::msync(self.page.as_ptr().cast(), MAPPED, libc::MS_SYNC) })
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

    /// Marks a generation as damaged: from now on, no process gets through to it. Returns whether this was the first
    /// report.
    pub(crate) fn condemn(&self, generation: u64) -> bool {
        // A late report of an earlier generation does not acquit a later one.
        !self.is_shut() && self.page().condemned.fetch_max(generation + 1, Release) < generation + 1
    }

    /// Whether the current generation was found damaged.
    pub(crate) fn is_condemned(&self) -> bool {
        !self.is_shut() && self.page().condemned.load(Relaxed) == self.generation() + 1
    }

    /// Shuts the gate for this process. Returns whether it was open before.
    pub(crate) fn shut(&self) -> bool {
        !self.shut.swap(true, Relaxed)
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Relaxed)
    }

    /// Fails unless the page is sound and says that the current generation is sound.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.is_sound() || self.is_condemned() { Err(Error::Damaged) } else { Ok(()) }
    }

    /// Whether the page can be used.
    fn is_sound(&self) -> bool {
        !self.is_shut() && self.page().magic.load(Relaxed) == MAGIC
    }

    /// Takes the gate if no thread holds it. Never blocks.
    pub(crate) fn try_lock(&self) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        // SAFETY: the mutex was initialised when the gate was made and is mapped until drop.
        let held = self.taken(unsafe { libc::pthread_mutex_trylock(self.mutex()) })?;
        self.check().map(|()| held)
    }

    /// Waits for the gate, at most for `patience`. It blocks: for the worker thread, for openings, and for readers that
    /// must pass the gate.
    pub(crate) fn lock_for(&self, patience: Duration) -> Result<Option<Held<'_>>, Error> {
        self.check()?;
        let held = self.lock_whatever_its_state(patience)?;
        // The generation may have been condemned while we waited.
        self.check().map(|()| held)
    }

    /// As `lock_for`, also where the current generation was found damaged.
    pub(super) fn lock_whatever_its_state(&self, patience: Duration) -> Result<Option<Held<'_>>, Error> {
        if !self.is_sound() {
            return Err(Error::Damaged);
        }
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
        let deaths = &self.page().deaths;
        deaths.store(deaths.load(Relaxed).saturating_add(1), Relaxed);
        Ok(Some(Held { gate: self, _this_thread: PhantomData }))
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
        let gate = Gate::make(&dir.path().join("gate"), 0).unwrap();
        let again = Gate::open(&dir.path().join("gate")).unwrap();
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
        assert!(Gate::open(&path).is_err());
        assert!(!path.exists());
        std::fs::write(&path, [1; 200]).unwrap();
        assert!(Gate::open(&path).is_err());
        assert!(Gate::make(&path, 0).is_ok());
        assert!(Gate::open(&path).is_ok());
    }

    #[test]
    fn a_condemned_gate_lets_nobody_through_and_stays_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gate");
        let (gate, again) = (Gate::make(&path, 0).unwrap(), Gate::open(&path).unwrap());
        let held = gate.try_lock().unwrap();
        assert!(again.condemn(0) && !gate.condemn(0), "once");
        drop(held);
        assert!(gate.try_lock().is_err() && again.lock_for(Duration::from_secs(1)).is_err());
        assert!(Gate::open(&path).unwrap().is_condemned() && Gate::make(&path, 0).is_err());
        gate.go_on_with(1, &gate.described());
        assert!(!again.is_condemned() && again.try_lock().unwrap().is_some(), "the next generation is sound");
        assert_eq!(Gate::last_generation(&path), Some(1));
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
            let gate = Gate::make(&path, 0).unwrap();
            die(&gate);
            drop(gate.lock_for(Duration::from_secs(5)).unwrap().unwrap());
        }
        for _ in 0..DEATHS_MAX {
            let gate = Gate::make(&path, 0).unwrap();
            // An opening that ends well says nothing of what comes after.
            gate.survive(|| ());
            die(&gate);
        }
        assert!(matches!(Gate::make(&path, 0), Err(Error::Damaged)));
    }
}
