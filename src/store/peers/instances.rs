//! Instances, and which of them are alive.
//!
//! Each opening of a directory is an instance: a random number and a file of that name under `run/`, locked by `flock`
//! for as long as the opening lives. The kernel frees the lock when the process dies, however it dies and in whichever
//! container. A stopped process keeps the lock. So does a forked child that has not executed another program: a thing
//! that depends on a death must have an end of its own as well.
//!
//! Only a file that is there and not locked says that its instance is dead. A file that is missing may have been
//! removed, and a copy says nothing. When the file of a dead instance is tidied away, its name tells of the death for
//! another hour.

use crate::store::os::fork;
use rustix::fs::{FlockOperation, flock};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// How long an instance that was alive counts as alive. Real time, since a process waits for a death in real time.
const ASK_AGAIN: Duration = Duration::from_millis(25);
/// How long after a failure no thread tries to make this instance's file.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Instances that are remembered, at most.
const KNOWN_MAX: usize = 1024;
/// Instances whose files are kept open, at most.
const FILES_MAX: usize = 32;
/// How long a death is remembered in `run/`. Waiters ask far more often.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// The instance of one opening, and what it knows of other instances.
#[derive(Debug)]
pub(crate) struct Instances {
    run: PathBuf,
    own: OnceLock<Own>,
    /// When this instance's file could not be made. Locked while it is made.
    failed: Mutex<Option<Instant>>,
    known: Mutex<HashMap<u64, Known>>,
    /// See [`fork::forks`].
    forks: u32,
}

#[derive(Debug)]
enum Known {
    Dead,
    AliveAt {
        asked: Instant,
        /// Its file, kept open as long as there are few: then it costs a third to ask again.
        file: Option<File>,
    },
}

impl Instances {
    pub(crate) fn new(run: PathBuf) -> Instances {
        fork::watch_forks();
        Instances { run, own: OnceLock::new(), failed: Mutex::default(), known: Mutex::default(), forks: fork::forks() }
    }

    /// The number of this instance, made when first asked for; never zero. `None` if its file cannot be made, for
    /// instance on a full disk; a call after a second tries again. A forked child has none, since the parent's lock is
    /// not its own.
    pub(crate) fn instance(&self) -> Option<u64> {
        if self.forks != fork::forks() {
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

    /// Whether an instance is gone for good. An instance that cannot be examined counts as alive. The check takes some
    /// microseconds, at most every 25 ms, so it must not be made in a transaction.
    pub(crate) fn is_dead(&self, instance: u64) -> bool {
        self.ask(instance, ASK_AGAIN)
    }

    /// As `is_dead`, of an instance that should have answered: an earlier result counts only if it was "dead".
    pub(crate) fn is_dead_now(&self, instance: u64) -> bool {
        self.ask(instance, Duration::ZERO)
    }

    /// Makes an instance that has died.
    #[cfg(test)]
    pub(crate) fn add_dead(&self, instance: u64) {
        make_run(&self.run).unwrap();
        File::create(self.run.join(name(instance))).unwrap();
    }

    /// The process id of an instance, as that process knows it.
    pub(crate) fn process(&self, instance: u64) -> Option<u32> {
        fs::read_to_string(self.run.join(name(instance))).ok()?.split(' ').next()?.parse().ok()
    }

    pub(crate) fn is_own(&self, instance: u64) -> bool {
        self.own.get().is_some_and(|own| own.instance == instance)
    }

    /// `memory`: how long an instance that was found alive counts as alive.
    fn ask(&self, instance: u64, memory: Duration) -> bool {
        if instance == 0 || self.is_own(instance) || self.forks != fork::forks() {
            return false;
        }
        let asked = Instant::now();
        let mut known = lock(&self.known);
        match known.get_mut(&instance) {
            Some(Known::Dead) => return true,
            Some(Known::AliveAt { asked: before, .. }) if asked.saturating_duration_since(*before) < memory => {
                return false;
            }
            Some(Known::AliveAt { asked: before, file: Some(file) }) if !is_unlocked(file) => {
                *before = asked;
                return false;
            }
            _ => {}
        }
        drop(known);
        let path = self.run.join(name(instance));
        let dead = is_known_dead(&self.run, &name(instance));
        let file = if dead { None } else { File::open(path).ok() };
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        let file = file.filter(|_| known.len() < FILES_MAX);
        known.insert(instance, if dead { Known::Dead } else { Known::AliveAt { asked, file } });
        dead
    }

    /// Clears away the files of dead instances, see [`clear`]. Those that were kept open are closed.
    pub(crate) fn tidy(&self) {
        clear(&self.run);
        lock(&self.known).retain(|_, known| match known {
            Known::AliveAt { file: Some(file), .. } => !is_unlocked(file),
            Known::AliveAt { file: None, .. } | Known::Dead => true,
        });
    }

    /// Puts this instance's file back if it was removed or replaced: without it, no process would notice when this one
    /// dies.
    pub(crate) fn keep_own_file(&self) {
        if let Some(own) = self.own.get().filter(|own| own.forks == fork::forks())
            && let Err(error) = own.keep_file(&self.run)
        {
            tracing::debug!(%error, "others will not see when this process dies");
        }
    }
}

/// Removes the sockets of dead instances and renames their files, so that the deaths stay known for a while.
pub(crate) fn clear(run: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if let Some(instance) = name.strip_suffix(SOCKET) {
            if is_instance(instance) && is_known_dead(run, instance) {
                let _ = fs::remove_file(path);
            }
        } else if let Some(instance) = name.strip_suffix(NEWBORN) {
            if is_instance(instance) && is_free(&path).unwrap_or(false) {
                let _ = fs::remove_file(path);
            }
        } else if let Some(instance) = name.strip_suffix(DEAD) {
            let age =
                entry.metadata().and_then(|facts| facts.modified()).map(|died| SystemTime::now().duration_since(died));
            if is_instance(instance) && age.is_ok_and(|age| age.is_ok_and(|age| age >= REMEMBERED)) {
                let _ = fs::remove_file(path);
            }
        } else if is_instance(&name) && is_free(&path).unwrap_or(false) {
            let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            let _ = fs::rename(&path, run.join(name + DEAD));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(instance: u64) -> String {
    format!("{instance:016x}")
}

/// The end of the name of the socket on which an instance gets wake-ups.
const SOCKET: &str = ".sock";

pub(super) fn socket_name(instance: u64) -> String {
    name(instance) + SOCKET
}

/// The end of the name of a file that is not locked yet.
const NEWBORN: &str = ".new";

/// The end of the name of the file of an instance that was found dead.
const DEAD: &str = ".dead";

fn is_instance(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn is_known_dead(run: &Path, name: &str) -> bool {
    match is_free(&run.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => run.join(format!("{name}{DEAD}")).exists(),
        free => free.unwrap_or(false),
    }
}

fn is_unlocked(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockShared).is_ok()
}

/// Whether no process holds the file, and the file is no copy of one that a process may hold.
fn is_free(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    if !is_unlocked(&file) {
        return Ok(false);
    }
    let said = io::read_to_string(&file).unwrap_or_default();
    // The file may be empty, since the disk was full when it was made.
    Ok(said.split_once(' ').is_none_or(|(_, id)| file.metadata().is_ok_and(|facts| id == id_of(&facts))))
}

/// An id that tells a file from its copies.
fn id_of(facts: &fs::Metadata) -> String {
    format!("{:x}-{:x}", facts.dev(), facts.ino())
}

/// The file of this instance.
#[derive(Debug)]
struct Own {
    instance: u64,
    path: PathBuf,
    /// Holds the lock.
    file: Mutex<File>,
    forks: u32,
}

impl Own {
    fn make(run: &Path) -> io::Result<Own> {
        make_run(run)?;
        // A process that clears `run/` may take the file away before it is locked.
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
        let file = make_file(run, instance)?;
        Ok(Own { instance, path: run.join(name(instance)), file: Mutex::new(file), forks: fork::forks() })
    }

    fn keep_file(&self, run: &Path) -> io::Result<()> {
        let mut file = lock(&self.file);
        let there = match fs::metadata(&self.path) {
            Ok(there) => Some(id_of(&there)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if there != Some(id_of(&file.metadata()?)) {
            make_run(run)?;
            *file = make_file(run, self.instance)?;
        }
        Ok(())
    }
}

/// Makes `run/` only: the directories around it are made when the cache is opened, and never here.
fn make_run(run: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(run) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn make_file(run: &Path, instance: u64) -> io::Result<File> {
    let newborn = run.join(name(instance) + NEWBORN);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&newborn)?;
    let made = file.metadata().and_then(|facts| {
        // The process id is for people who look.
        let _ = file.write_all(format!("{} {}", std::process::id(), id_of(&facts)).as_bytes());
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(&newborn, run.join(name(instance)))
    });
    if let Err(error) = made {
        let _ = fs::remove_file(newborn);
        return Err(error);
    }
    Ok(file)
}

impl Drop for Own {
    fn drop(&mut self) {
        // In a forked child, the file is the parent's.
        if self.forks == fork::forks() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
