//! Who uses a directory, and who may change what is in it: locks on files, which the kernel frees when a process dies.

use super::user_socket::{self, UserSocket};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

/// How long an opening waits for another one to finish.
pub(crate) const OPENING: Duration = Duration::from_secs(10);

/// How long it waits for users of whom nothing is known but that they are there: they may be on their way out.
const STRANGERS: Duration = Duration::from_secs(1);

/// The right to change a directory; while it exists nobody else opens or closes the cache.
#[derive(Debug)]
pub(crate) struct OpeningLock {
    _lock: File,
}

/// What says that this process uses the directory, for as long as it lives.
#[derive(Debug)]
pub(crate) struct UserLocks {
    /// The directory itself: whatever is removed in it, it is still known that somebody uses it.
    whole: File,
    own_build: File,
    /// Nobody else of this build used it when this process came.
    pub(crate) alone: bool,
    _socket: UserSocket,
}

impl UserLocks {
    /// Alone, nobody else gets in until [`let_others_in`](UserLocks::let_others_in). `whole` is the directory itself.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`]: somebody uses the directory but neither `users` nor that of another build, so these were
    /// removed; or the directory that was here before.
    pub(crate) fn enter(root: &Path, home: &Path, whole: File) -> io::Result<UserLocks> {
        let own_build = open_file(&home.join("users"))?;
        // A process of another build that looks whether anybody is in holds them for a moment.
        let deadline = Instant::now() + STRANGERS;
        let alone = loop {
            let nobody = flock(&whole, FlockOperation::NonBlockingLockExclusive).is_ok();
            let none_of_ours = flock(&own_build, FlockOperation::NonBlockingLockExclusive).is_ok();
            match (nobody, none_of_ours) {
                (_, false) => break false,
                (true, true) => break true,
                (false, true) if sibling_in_use(root, home).is_some() => break true,
                (false, true) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                (false, true) => return Err(io::ErrorKind::AddrInUse.into()),
            }
        };
        let facts = whole.metadata()?;
        if alone && user_socket::was_another(root, &facts) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let users = UserLocks { whole, own_build, alone, _socket: UserSocket::listen(root, &facts) };
        if !alone {
            users.let_others_in()?;
        }
        Ok(users)
    }

    pub(crate) fn let_others_in(&self) -> io::Result<()> {
        lock_for(&self.whole, FlockOperation::NonBlockingLockShared, OPENING)?;
        lock_for(&self.own_build, FlockOperation::NonBlockingLockShared, OPENING)
    }

    /// Whether the others are gone, and the directory is still the one that was entered. Ends the use of it.
    pub(crate) fn are_gone(&self, home: &Path) -> bool {
        is_at(&self.own_build, &home.join("users"))
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
            // It may have been removed while we waited, and others wait for a new one.
            if is_at(&lock, &path) {
                return Ok(OpeningLock { _lock: lock });
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |facts: fs::Metadata| (facts.dev(), facts.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(there)) => id(file) == id(there),
        _ => false,
    }
}

fn lock_for(file: &File, operation: FlockOperation, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// UserLocks of another version, architecture or libc would share no locks with us.
pub(crate) fn sibling_in_use(root: &Path, home: &Path) -> Option<String> {
    fs::read_dir(root).into_iter().flatten().flatten().find_map(|entry| {
        let users = File::open(entry.path().join("users")).ok()?;
        let in_use = entry.path() != home && flock(&users, FlockOperation::NonBlockingLockExclusive).is_err();
        in_use.then(|| entry.file_name().to_string_lossy().into_owned())
    })
}
