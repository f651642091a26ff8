//! Lock files, which tell the users of a directory and the process that may change it. The kernel frees the locks when
//! a process dies.

use super::user_socket::{self, UserSocket};
use crate::store::os::file_lock::lock_for;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// How long an opening waits for another one to finish.
pub(crate) const OPENING: Duration = Duration::from_secs(10);

/// How long an opening waits for users of which it knows nothing but that they are there: they may be about to leave.
const STRANGERS: Duration = Duration::from_secs(1);

/// The file on which a user holds a shared lock: one in the directory for all builds, and one for each build.
const USERS: &str = "users";

/// The right to change a directory. While it exists, no other process opens or closes the cache.
#[derive(Debug)]
pub(crate) struct OpeningLock {
    _lock: File,
}

/// Locks that say that this process uses the directory, for as long as they live.
#[derive(Debug)]
pub(crate) struct UserLocks {
    /// The directory itself, if no other user can lock it. Whatever is removed in it, this lock still says that a
    /// process uses it.
    directory: Option<File>,
    every_build: File,
    own_build: File,
    /// No other process of this build used the directory when this one came.
    pub(crate) alone: bool,
    _socket: UserSocket,
}

impl UserLocks {
    /// If this process is alone, no other one gets in until [`let_others_in`](UserLocks::let_others_in). `directory` is
    /// the directory itself, if it is private: a lock on what another user can open, that user could hold for ever.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`]: a process uses the directory but holds neither `users` nor that file of another
    /// build, so these were removed; or a process uses the directory that was here before.
    pub(crate) fn enter(root: &Path, home: &Path, directory: Option<File>) -> io::Result<UserLocks> {
        let every_build = open_file(&root.join(USERS))?;
        let own_build = open_file(&home.join(USERS))?;
        // A process of another build that looks for users holds these locks for a moment.
        let deadline = Instant::now() + STRANGERS;
        let alone = loop {
            let mut all = directory.iter().chain([&every_build]);
            let nobody = all.all(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
            let none_of_ours = flock(&own_build, FlockOperation::NonBlockingLockExclusive).is_ok();
            match (nobody, none_of_ours) {
                (_, false) => break false,
                (true, true) => break true,
                (false, true) if sibling_in_use(root, home).is_some() => break true,
                (false, true) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                (false, true) => return Err(io::ErrorKind::AddrInUse.into()),
            }
        };
        // While a process uses the directory, its file is not another's, wherever the directory or the file went.
        let facts = every_build.metadata()?;
        if alone && user_socket::was_another(root, &facts) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let users = UserLocks { directory, every_build, own_build, alone, _socket: UserSocket::listen(root, &facts) };
        if !alone {
            users.let_others_in()?;
        }
        Ok(users)
    }

    pub(crate) fn let_others_in(&self) -> io::Result<()> {
        let mut all = self.directory.iter().chain([&self.every_build, &self.own_build]);
        all.try_for_each(|file| lock_for(file, FlockOperation::NonBlockingLockShared, OPENING))
    }

    /// Whether the other users are gone, and the directory is still the one that was entered. Ends this process's use
    /// of it.
    pub(crate) fn are_gone(&self, home: &Path) -> bool {
        is_at(&self.own_build, &home.join(USERS))
            && flock(&self.own_build, FlockOperation::NonBlockingLockExclusive).is_ok()
    }
}

impl OpeningLock {
    pub(crate) fn enter(home: &Path, patience: Duration) -> io::Result<OpeningLock> {
        let path = home.join("open.lock");
        let deadline = Instant::now() + patience;
        loop {
            let lock = open_file(&path)?;
            let left = deadline.saturating_duration_since(Instant::now());
            lock_for(&lock, FlockOperation::NonBlockingLockExclusive, left)?;
            // The file may have been removed while we waited, and others may wait for a new one.
            if is_at(&lock, &path) {
                return Ok(OpeningLock { _lock: lock });
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Keeps a directory from being used as long as the result lives; `None` if it is in use.
pub(super) fn hold_if_unused(root: &Path) -> io::Result<Option<[File; 2]>> {
    let files = [File::open(root)?, open_file(&root.join(USERS))?];
    let unused = files.iter().all(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok());
    Ok(unused.then_some(files))
}

/// Whether an open file is the one at a path.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let id = |facts: fs::Metadata| (facts.dev(), facts.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(there)) => id(file) == id(there),
        _ => false,
    }
}

/// Opens a lock file that no other user can open: whoever can, could hold the lock for ever.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Finds another build that uses the directory. Users of another version, architecture or libc would share no locks
/// with us.
pub(crate) fn sibling_in_use(root: &Path, home: &Path) -> Option<String> {
    fs::read_dir(root).into_iter().flatten().flatten().find_map(|entry| {
        let users = File::open(entry.path().join(USERS)).ok()?;
        let in_use = entry.path() != home && flock(&users, FlockOperation::NonBlockingLockExclusive).is_err();
        in_use.then(|| entry.file_name().to_string_lossy().into_owned())
    })
}
