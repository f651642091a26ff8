//! One environment: its gate, and the generation of its files that is in use.
//!
//! Another generation takes the place of files that were found damaged, or that have grown too much since a snapshot pins
//! their pages. Its number stands in the gate's page. Every write, under the gate, and every read compares it with the
//! generation that this process has open. A process that is behind opens the new one, and closes the old one when none
//! of its threads uses it any more.

use super::{
    ending_threads,
    files::{self, FileState, Files},
    gate::{Gate, Held},
    generation::Generation,
    generations::Generations,
    opening::{self, Options},
    rotation,
    transaction::{Reader, Txn},
};
use crate::{
    error::Error,
    log_limit::LogLimit,
    store::os::{boot::coarse_time, fork},
};
use arc_swap::{ArcSwap, Guard};
use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

/// How old the last check of the files may be at a write, in ns.
const LOOK_EVERY: u64 = Duration::from_millis(10).as_nanos() as u64;
/// How long after one that failed another is tried.
const AGAIN: Duration = Duration::from_millis(200);
/// How long an opening waits for the gate.
const OPENING: Duration = Duration::from_secs(2);
/// How long a reader that must pass the gate waits for writers. Its thread blocks meanwhile.
const AT_THE_GATE: Duration = Duration::from_millis(20);

/// An open environment with its gate.
pub(crate) struct Env {
    current: ArcSwap<Generation>,
    pub(crate) gate: Gate,
    generations: Generations,
    options: Options,
    /// When its files were last checked, in ns of [`coarse_time`].
    looked: AtomicU64,
    /// Locked while this process changes to another generation.
    changing: Mutex<()>,
    /// Generations that this process no longer uses, except in threads that are about to finish.
    retired: Mutex<Vec<Arc<Generation>>>,
    /// Bytes on disk of the generations that are no longer current, as of the last look.
    bytes_besides: AtomicU64,
    /// This process was the first to find the current files damaged, and has not told so yet.
    found_damaged: AtomicBool,
    /// A rotation is wanted, though the files are sound.
    outgrown: AtomicBool,
    notify: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// When a rotation that failed is tried again.
    not_before: Mutex<Option<Instant>>,
    failed: LogLimit,
    /// See [`fork::forks`].
    forks: u32,
}

impl Env {
    /// Opens an environment that no other process uses, and creates it if it is missing. Its generation is that which the
    /// gate names, and no earlier one than `at_least`.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the files are not sound.
    pub(crate) fn open_alone(path: &Path, at_least: u64, options: &Options) -> Result<Env, Error> {
        watch();
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Damaged),
            made => made?,
        }
        let generations = Generations::of(path);
        let gate_path = path.join(files::GATE);
        let named = Gate::last_generation(&gate_path);
        let number = named.or_else(|| generations.latest_since(at_least)).unwrap_or(at_least).max(at_least);
        let own = generations.path(number);
        match DirBuilder::new().recursive(true).mode(0o700).create(&own) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Damaged),
            made => made?,
        }
        Files::check_kinds(&files::paths(path, &own))?;
        let gate = Gate::make(&gate_path, number)?;
        let opened = gate.survive(|| opening::open_alone(&generations, number, options))?;
        gate.go_on_with(number, &opened.files);
        if let Ok(Some(changing)) = generations.begin_change() {
            generations.remove_unused(&changing, |other| other == number);
        }
        let generation = Generation::new(&generations, number, options, opened)?;
        Ok(Env::new(generation, gate, generations, options))
    }

    /// Opens the current generation of an environment that other processes use. One that is damaged is replaced, where
    /// that is possible.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the files are not sound, or not the files that the other processes use.
    pub(crate) fn open_beside(path: &Path, options: &Options) -> Result<Env, Error> {
        watch();
        let generations = Generations::of(path);
        let gate = Gate::open(&path.join(files::GATE))?;
        let generation = rotation::open_or_replace(&generations, options, &gate)?;
        let env = Env::new(generation, gate, generations, options);
        env.count_bytes();
        Ok(env)
    }

    fn new(generation: Generation, gate: Gate, generations: Generations, options: &Options) -> Env {
        Env {
            current: ArcSwap::from_pointee(generation),
            gate,
            generations,
            options: options.clone(),
            looked: AtomicU64::new(0),
            changing: Mutex::default(),
            retired: Mutex::default(),
            bytes_besides: AtomicU64::new(0),
            found_damaged: AtomicBool::new(false),
            outgrown: AtomicBool::new(false),
            notify: OnceLock::new(),
            not_before: Mutex::default(),
            failed: LogLimit::new(),
            forks: fork::forks(),
        }
    }

    /// Sets what is called when a rotation is wanted or a generation can be closed: it wakes the thread that will see to
    /// it.
    pub(crate) fn on_change(&self, notify: impl Fn() + Send + Sync + 'static) {
        let _ = self.notify.set(Box::new(notify));
    }

    #[cfg(test)]
    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.current.load().path().to_path_buf()
    }

    /// Whether this opening made the files.
    pub(crate) fn is_new(&self) -> bool {
        self.current.load().is_new
    }

    /// The last number that any process may have drawn, over all generations; 0 if none was.
    pub(crate) fn last_number(&self) -> u64 {
        self.gate.last_number()
    }

    /// The number of the generation that this process has open.
    pub(crate) fn generation(&self) -> u64 {
        self.current.load().number
    }

    /// The last transaction that was committed, by any process, over all generations. Takes some nanoseconds.
    pub(crate) fn last_transaction(&self) -> u64 {
        let generation = self.current.load();
        match generation.number == self.gate.generation() {
            true => generation.last_transaction(),
            // Nothing that was read before is current.
            false => u64::MAX,
        }
    }

    /// Whether this process is a forked child of the one that opened the environment.
    pub(crate) fn forked(&self) -> bool {
        self.forks != fork::forks()
    }

    /// Whether the cache's directory was removed or replaced. Held locks can be renewed and released, since other
    /// processes may use the same files, but nothing may be granted.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.current.load().identity.as_ref().is_some_and(|identity| identity.is_orphaned())
    }

    /// Whether the environment was not found damaged, so that its files can be touched.
    pub(crate) fn is_sound(&self) -> bool {
        self.gate.check().is_ok()
    }

    /// Runs `f` in a write transaction and commits it if `f` says so. One synchronous call on one thread: heed's
    /// transaction is `Send`, but committing it elsewhere silently blocks every process of the machine.
    pub(crate) fn write<T>(
        &self,
        held: &Held<'_>,
        f: impl FnOnce(&mut Txn<'_>) -> Result<(T, bool), Error>,
    ) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let generation = self.current(Some(held))?;
        let result = generation.write(&self.gate, f);
        if matches!(result, Err(Error::Damaged)) {
            self.condemn(&generation);
        }
        result
    }

    /// As `write`, for an opening that is alone. Damaged files may kill it, which is kept on record.
    pub(crate) fn write_alone<T>(&self, f: impl FnOnce(&mut Txn<'_>) -> Result<(T, bool), Error>) -> Result<T, Error> {
        self.gate.survive(|| {
            let held = self.gate.lock_for(OPENING)?.ok_or(Error::Busy)?;
            self.write(&held, f)
        })
    }

    /// Runs `f` in a read transaction. `f` must not begin another one: heed has one reader for each thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let generation = self.current(None)?;
        let result = generation.read(&self.gate, f);
        if matches!(result, Err(Error::Damaged)) {
            self.condemn(&generation);
        }
        result
    }

    /// The current generation. If another process has made a new one, it is opened, which takes some milliseconds. `held`:
    /// the gate, if this thread has it.
    #[inline]
    fn current(&self, held: Option<&Held<'_>>) -> Result<Guard<Arc<Generation>>, Error> {
        let generation = self.current.load();
        if generation.number == self.gate.generation() {
            return Ok(generation);
        }
        drop(generation);
        self.open_current(held)?;
        Ok(self.current.load())
    }

    #[cold]
    fn open_current(&self, held: Option<&Held<'_>>) -> Result<(), Error> {
        // Where the gate will be needed, it is taken first, as by those that write.
        let own = match held {
            None if self.current.load().shares_pid => Some(self.gate.lock_for(AT_THE_GATE)?.ok_or(Error::Busy)?),
            _ => None,
        };
        let _changing = lock(&self.changing);
        if self.current.load().number == self.gate.generation() {
            return Ok(());
        }
        let number = self.gate.generation();
        match rotation::open_current(&self.generations, &self.options, &self.gate, held.or(own.as_ref())) {
            Ok(new) => {
                self.change_to(new);
                Ok(())
            }
            Err(Error::Damaged) => {
                if self.gate.condemn(number) {
                    self.notify();
                }
                Err(Error::Damaged)
            }
            Err(error) => Err(error),
        }
    }

    fn change_to(&self, new: Generation) {
        let old = self.current.swap(Arc::new(new));
        self.outgrown.store(false, SeqCst);
        lock(&self.retired).push(old);
        self.count_bytes();
        self.notify();
    }

    fn notify(&self) {
        if let Some(notify) = self.notify.get() {
            notify();
        }
    }

    fn condemn(&self, generation: &Generation) {
        if self.gate.condemn(generation.number) {
            self.found_damaged.store(true, SeqCst);
            self.notify();
        }
    }

    /// Whether the current files were found damaged and the worker thread will replace them.
    pub(crate) fn is_to_be_replaced(&self) -> bool {
        self.gate.is_condemned()
    }

    /// Has another generation take the place of files that have grown too much.
    pub(crate) fn want_rotation(&self) {
        if !self.outgrown.swap(true, SeqCst) {
            self.notify();
        }
    }

    /// Begins a new generation if the current one was found damaged or has grown too much, goes over to that of another
    /// process, and closes those that no thread of this process uses any more. For the worker thread.
    pub(crate) fn change_generation_if_due(&self) {
        if self.forked() || self.gate.is_shut() {
            return;
        }
        if self.found_damaged.swap(false, SeqCst) {
            let path = self.generations.environment().display();
            tracing::error!(%path, "its files were found damaged: going on with empty ones");
        }
        // Who hardly uses the files would keep those of an earlier generation; who does will tell of the failure.
        let _ = self.current(None);
        if self.is_to_be_replaced() || self.outgrown.load(SeqCst) {
            self.rotate_again();
        }
        let is_unused = |generation: &mut Arc<Generation>| Arc::strong_count(generation) == 1;
        let finished: Vec<_> = lock(&self.retired).extract_if(.., is_unused).collect();
        if !finished.is_empty() {
            drop(finished);
            self.remove_old_generations();
        }
    }

    /// Whether there may be files of earlier generations.
    pub(crate) fn has_old_generations(&self) -> bool {
        self.bytes_besides() > 0
    }

    /// Removes the files of earlier generations that no process uses any more. For the worker thread.
    pub(crate) fn remove_old_generations(&self) {
        if !self.has_old_generations() || self.forked() || self.gate.is_shut() {
            return;
        }
        if let Ok(Some(changing)) = self.generations.begin_change() {
            self.generations.remove_unused(&changing, |number| number == self.gate.generation());
        }
        self.count_bytes();
    }

    /// Rotates, unless that has failed just now.
    fn rotate_again(&self) {
        let mut not_before = lock(&self.not_before);
        if not_before.is_some_and(|not_before| Instant::now() < not_before) {
            return;
        }
        let rotated = self.rotate();
        *not_before = rotated.is_err().then(|| Instant::now() + AGAIN);
        if let Err(error) = rotated
            && self.failed.allows()
        {
            tracing::warn!(
                %error, path = %self.generations.environment().display(),
                "the files could not be replaced by new ones; this is tried again"
            );
        }
    }

    fn rotate(&self) -> Result<(), Error> {
        let Some(right_to_change) = self.generations.begin_change()? else { return Ok(()) };
        let old = self.current.load_full();
        let is_behind = old.number != self.gate.generation();
        if is_behind && !self.gate.is_condemned() {
            // Another process has done it.
            return self.open_current(None);
        }
        let changing = lock(&self.changing);
        let before = Some(&*old).filter(|_| !is_behind);
        let made = rotation::make_next(&self.generations, &self.options, &self.gate, before, &right_to_change)?;
        let Some((new, held)) = made else { return Err(Error::Busy) };
        drop(old);
        self.change_to(new);
        drop((held, changing, right_to_change));
        // The log is the user's code: it runs outside the gate.
        tracing::info!(path = %self.current.load().path().display(), "new files have taken the place of the old ones");
        Ok(())
    }

    fn count_bytes(&self) {
        self.bytes_besides.store(self.generations.bytes_besides(self.gate.generation()), Relaxed);
    }

    /// Bytes of the current data file.
    pub(crate) fn bytes(&self) -> u64 {
        self.current.load().bytes()
    }

    /// Bytes on disk of the generations that are no longer current, but still used by some process.
    pub(crate) fn bytes_besides(&self) -> u64 {
        self.bytes_besides.load(Relaxed)
    }

    /// Checks the files if no thread has for a hundredth of a second, so that a file that was cut does not kill this
    /// process. A thread that holds the gate must not call it.
    pub(crate) fn look_if_due(&self) {
        if self.options.guarded.is_none() {
            return;
        }
        let (last, now) = (self.looked.load(Relaxed), coarse_time());
        // Of racing threads, one looks.
        if now.wrapping_sub(last) >= LOOK_EVERY && self.looked.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            self.look();
        }
    }

    /// Checks the files.
    pub(crate) fn look(&self) {
        let generation = self.current.load();
        let Some(identity) = &generation.identity else { return };
        let is_old = generation.number != self.gate.generation();
        if self.forked() || self.gate.is_shut() || is_old {
            return;
        }
        match identity.look() {
            FileState::Intact | FileState::Gone => {}
            FileState::Cut => self.condemn(&generation),
            FileState::CutOff => self.give_up(&generation),
        }
    }

    /// From now on, this process neither uses nor even touches the environment.
    fn give_up(&self, generation: &Generation) {
        if self.gate.shut() {
            tracing::error!(
                path = %generation.path().display(),
                "truncated: this process uses these files no more; stop every process that uses the cache, the next one starts \
                 with empty files"
            );
            generation.leave_open();
        }
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        if self.gate.is_shut() {
            return Err(Error::Damaged);
        }
        self.current(None)?.sync()?;
        Ok(self.gate.sync()?)
    }

    pub(crate) fn clear_stale_readers(&self) {
        if !self.gate.is_shut() {
            let _ = self.current.load().heed.clear_stale_readers();
        }
    }

    /// Pages of the map.
    pub(crate) fn pages(&self) -> usize {
        self.current.load().pages()
    }

    /// Closes the environment and returns when it is closed, so that it can be opened again.
    #[cfg(test)]
    pub(crate) fn close(self) {
        let closed = heed::Env::clone(&self.current.load().heed).prepare_for_closing();
        drop(self);
        closed.wait();
    }
}

fn watch() {
    fork::watch_forks();
    ending_threads::watch_this_thread();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("path", &self.current.load().path()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
