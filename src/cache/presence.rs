//! Instances, and which of them are alive.
//!
//! Each opening of a directory is an instance: a random number and a file of that name under `run/`, locked by `flock` for
//! as long as the opening lives. The kernel frees the lock when the process dies, by whatever end and in whatever
//! container; a stopped process keeps it. So does a forked child that has not executed another program: what depends on a
//! death must have an end of its own as well.

use super::sys;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// How long an instance that was alive counts as alive. Real time: whoever waits for a death does so in real time.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// How long after a failure nobody tries to make the own file.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Instances of which something is remembered, at most.
const KNOWN_MAX: usize = 1024;

/// The instance of one opening, and what it knows of the others.
#[derive(Debug)]
pub(crate) struct Presence {
    run: PathBuf,
    own: OnceLock<Own>,
    /// When the own file could not be made. Locked while it is made.
    failed: Mutex<Option<Instant>>,
    known: Mutex<HashMap<u64, Known>>,
    /// See [`sys::forks`].
    forks: u32,
}

#[derive(Clone, Copy, Debug)]
enum Known {
    Dead,
    AliveAt(Instant),
}

impl Presence {
    pub(crate) fn new(run: PathBuf) -> Presence {
        sys::watch_forks();
        Presence { run, own: OnceLock::new(), failed: Mutex::default(), known: Mutex::default(), forks: sys::forks() }
    }

    /// The number of this instance, made when first asked for; never zero. `None` if its file cannot be made, on a full disk
    /// for instance: it is tried again after a second. A forked child has none, since the parent's lock is not its own.
    pub(crate) fn instance(&self) -> Option<u64> {
        if self.forks != sys::forks() {
            return None;
        }
        if let Some(own) = self.own.get() {
            return Some(own.instance);
        }
        let mut failed = lock(&self.failed);
        if let Some(own) = self.own.get() {
            return Some(own.instance);
        }
        if failed.is_some_and(|at| at.elapsed() < TRY_AGAIN) {
            return None;
        }
        match Own::make(&self.run) {
            Ok(own) => Some(self.own.get_or_init(|| own).instance),
            Err(error) => {
                tracing::warn!(%error, run = %self.run.display(), "others will not see whether this process is alive");
                *failed = Some(Instant::now());
                None
            }
        }
    }

    /// Whether an instance is gone for good. What cannot be found out counts as alive. Takes some microseconds at most
    /// every 25 ms, so it is no question for a transaction.
    pub(crate) fn is_dead(&self, instance: u64) -> bool {
        self.ask(instance, ASK_AGAIN)
    }

    /// As `is_dead`, of one that should have answered: what was found out before counts only if it is dead.
    pub(crate) fn is_dead_now(&self, instance: u64) -> bool {
        self.ask(instance, Duration::ZERO)
    }

    /// The process of an instance, as that knows itself.
    pub(crate) fn process(&self, instance: u64) -> Option<u32> {
        fs::read_to_string(self.run.join(name(instance))).ok()?.parse().ok()
    }

    pub(crate) fn is_own(&self, instance: u64) -> bool {
        self.own.get().is_some_and(|own| own.instance == instance)
    }

    /// `memory`: how long it counts as alive.
    fn ask(&self, instance: u64, memory: Duration) -> bool {
        if instance == 0 || self.is_own(instance) || self.forks != sys::forks() {
            return false;
        }
        match lock(&self.known).get(&instance) {
            Some(Known::Dead) => return true,
            Some(Known::AliveAt(asked)) if asked.elapsed() < memory => return false,
            _ => {}
        }
        let asked = Instant::now();
        let dead = is_free(&self.run.join(name(instance)));
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(instance, if dead { Known::Dead } else { Known::AliveAt(asked) });
        dead
    }

    /// Removes the files and sockets of the dead. That says as much as their unlocked files did.
    pub(crate) fn tidy(&self) {
        clear(&self.run);
    }
}

/// Removes the files that nobody holds, and the sockets beside them.
pub(crate) fn clear(run: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = name.strip_suffix(SOCKET).unwrap_or(&name);
        if is_instance(file) && is_free(&run.join(file)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(instance: u64) -> String {
    format!("{instance:016x}")
}

/// Ends the name of the socket on which an instance is called.
const SOCKET: &str = ".sock";

pub(super) fn socket_name(instance: u64) -> String {
    name(instance) + SOCKET
}

/// Ends the name of a file that is not locked yet.
const NEWBORN: &str = ".new";

fn is_instance(name: &str) -> bool {
    let digits = name.strip_suffix(NEWBORN).unwrap_or(name);
    digits.len() == 16 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Whether nobody holds the file, or it is gone.
fn is_free(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => flock(&file, FlockOperation::NonBlockingLockShared).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// The file of this instance.
#[derive(Debug)]
struct Own {
    instance: u64,
    path: PathBuf,
    /// Holds the lock.
    _file: File,
    forks: u32,
}

impl Own {
    fn make(run: &Path) -> io::Result<Own> {
        DirBuilder::new().recursive(true).mode(0o700).create(run)?;
        // Whoever clears `run/` may take the file away before it is locked.
        let in_the_way =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound);
        let mut made = Own::make_one(run);
        for _ in 0..3 {
            match &made {
                Err(error) if in_the_way(error) => made = Own::make_one(run),
                _ => break,
            }
        }
        made
    }

    /// The file gets its name when it is locked: until then it would say that the instance is dead.
    fn make_one(run: &Path) -> io::Result<Own> {
        let instance = rand::random::<u64>().max(1);
        let path = run.join(name(instance));
        let newborn = run.join(name(instance) + NEWBORN);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&newborn)?;
        // For people who look; without it everything works.
        let _ = write!(file, "{}", std::process::id());
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
        if let Err(error) = locked.and_then(|()| fs::rename(&newborn, &path)) {
            let _ = fs::remove_file(newborn);
            return Err(error);
        }
        Ok(Own { instance, path, _file: file, forks: sys::forks() })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // In a forked child, the file is the parent's.
        if self.forks == sys::forks() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
