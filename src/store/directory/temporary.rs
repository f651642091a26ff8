//! The directories of temporary caches. A process that is killed leaves its own behind; the next one that makes a
//! temporary cache removes it.
//!
//! Whoever makes such a directory holds a flock on a file in it, the claim, for as long as the cache lives. A directory
//! whose claim is free is nobody's. One without a claim is about to get it, or its maker died before: it is empty, and
//! is removed. Its maker, if there is one, notices and makes another.

use super::lock_files::{hold_if_unused, is_at};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

const PREFIX: &str = "floodgate-";
const CLAIM: &str = "claim";
const TRIES: usize = 10;

/// The directory of a temporary cache. It stays until [`remove`](Temporary::remove), or until the process dies and
/// another one [sweeps](sweep).
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    /// Holds the lock.
    _claim: File,
}

impl Temporary {
    /// A private directory of a name that nobody can guess. The crate `tempfile` would add two crates for this, and its
    /// removal on drop would run in a forked child too.
    pub(crate) fn make(parent: &Path) -> io::Result<Temporary> {
        sweep(parent);
        let mut tries = 1;
        loop {
            match Temporary::make_one(parent) {
                // A process that sweeps took it for one without a maker.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::WouldBlock) && tries < TRIES =>
                {
                    tries += 1;
                }
                made => return made,
            }
        }
    }

    fn make_one(parent: &Path) -> io::Result<Temporary> {
        let path = parent.join(format!("{PREFIX}{:032x}", rand::random::<u128>()));
        DirBuilder::new().mode(0o700).create(&path)?;
        let claim = path.join(CLAIM);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&claim)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        if is_at(&file, &claim) { Ok(Temporary { path, _claim: file }) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn remove(&self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a temporary cache was left behind");
        }
    }
}

/// Removes the directories of temporary caches that no process holds any more.
fn sweep(parent: &Path) {
    let me = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        // The facts are of the entry itself, not of where a link leads.
        let is_ours = || entry.metadata().is_ok_and(|facts| facts.is_dir() && facts.uid() == me);
        if !is_temporary(&entry.file_name().to_string_lossy()) || !is_ours() {
            continue;
        }
        match remove_if_free(&entry.path()) {
            Ok(true) => {
                tracing::info!(path = %entry.path().display(), "removed a temporary cache whose process was killed")
            }
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, path = %entry.path().display(), "the temporary cache of a killed process could not be removed")
            }
        }
    }
}

fn is_temporary(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX).unwrap_or_default();
    digits.len() == 32 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

fn remove_if_free(path: &Path) -> io::Result<bool> {
    let claim = match File::open(path.join(CLAIM)) {
        // Only an empty directory goes like this.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::remove_dir(path).map(|()| true),
        claim => claim?,
    };
    if flock(&claim, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(false);
    }
    // Another process may have opened it by its path.
    let Some(_unused) = hold_if_unused(path)? else { return Ok(false) };
    remove(path).map(|()| true)
}

/// Removes the directory, and the claim last: if the process is killed on the way, the rest can still be found.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == CLAIM {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    fs::remove_file(path.join(CLAIM))?;
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::nobody_starts;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    #[test]
    fn what_nobody_holds_is_removed_and_nothing_else() {
        let _alone = nobody_starts();
        let dir = tempfile::tempdir().unwrap();
        let kept = Temporary::make(dir.path()).unwrap();
        let left = Temporary::make(dir.path()).unwrap().path().to_owned();
        fs::create_dir(left.join("v1")).unwrap();
        fs::write(left.join("v1").join("data.mdb"), "x").unwrap();
        fs::write(left.join("users"), "").unwrap();
        let used = Temporary::make(dir.path()).unwrap().path().to_owned();
        let users = File::create(used.join("users")).unwrap();
        flock(&users, FlockOperation::LockShared).unwrap();
        // Its maker died before it was claimed.
        let unclaimed = dir.path().join(format!("{PREFIX}{:032x}", 1));
        fs::create_dir(&unclaimed).unwrap();
        let others = ["floodgate-x", "floodgate-0123", "another"].map(|name| dir.path().join(name));
        others.iter().for_each(|other| fs::create_dir(other).unwrap());
        let link = dir.path().join(format!("{PREFIX}{:032x}", 2));
        std::os::unix::fs::symlink(&others[2], &link).unwrap();

        let next = Temporary::make(dir.path()).unwrap();
        assert!(!left.exists() && !unclaimed.exists());
        for there in [kept.path(), next.path(), &used, &link].into_iter().chain(others.iter().map(PathBuf::as_path)) {
            assert!(there.exists(), "{}", there.display());
        }
        next.remove();
        kept.remove();
        assert!(!next.path().exists() && !kept.path().exists());
    }

    #[test]
    fn what_is_being_made_is_not_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !over.load(SeqCst) {
                        sweep(dir.path());
                    }
                });
            }
            // If one fails, the other threads end all the same.
            let fine = (0..300).all(|_| Temporary::make(dir.path()).is_ok_and(|made| made.path().join(CLAIM).exists()));
            over.store(true, SeqCst);
            assert!(fine);
        });
    }
}
