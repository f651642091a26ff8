//! The errors of the cache itself.

use std::{fmt, io, path::PathBuf, time::Duration};

/// An error of the cache.
///
/// Layers never return it: they answer as their module says (a throttle lets the request pass, a barrier refuses it, a
/// stampede cache calls the service).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The directory cannot be opened; the text says why and what to do.
    #[non_exhaustive]
    Open {
        /// The cache's directory.
        path: PathBuf,
        /// The reason, in words.
        reason: String,
    },
    /// The cache could not be written in time: nobody could write for the whole patience, since another process is stopped
    /// in the middle of a write, a callback does not return, or the disk is stuck.
    Busy,
    /// A thread that would serve the cache could not be started, and the calling thread could not do its work: raise the
    /// limit of threads (`ulimit -u`, `pids.max` of the control group, `TasksMax` of the service).
    NoThread,
    /// There is no room left, on disk, in the user's part of the disk (quota) or in the environment's fixed size.
    Full,
    /// The files are damaged, or were removed or replaced while processes use them, and could not be replaced by fresh ones
    /// yet. If that lasts, stop every process that uses the cache: some may still hold locks by the old files. The next one
    /// starts with fresh files.
    Damaged,
    /// The record of this lock is damaged, so nobody knows who holds it. It is refused until the latest lease that can have
    /// been granted has ended; other locks are not concerned.
    #[non_exhaustive]
    DamagedLock {
        /// After how long it is granted again.
        retry_after: Duration,
    },
    /// The value could not be turned into bytes, or the stored bytes not into the value asked for.
    Codec(String),
    /// The value is larger than the cache takes.
    #[non_exhaustive]
    TooLarge {
        /// Bytes that were to be stored.
        size: usize,
        /// Bytes that would fit.
        limit: usize,
    },
    /// This process was forked from the one that opened the cache; open it again after the fork.
    Forked,
    /// The operation was given up because the user's code panicked.
    Panicked,
    /// The operating system refused.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { path, reason } => match path.as_os_str().is_empty() {
                true => write!(f, "cannot open the cache: {reason}"),
                false => write!(f, "cannot open the cache {}: {reason}", path.display()),
            },
            Error::Busy => f.write_str("the cache could not be written in time"),
            Error::NoThread => f.write_str(
                "no thread could be started to serve the cache: raise the limit of threads (ulimit -u, pids.max, TasksMax)",
            ),
            Error::Full => f.write_str("the cache is full: give it a larger size, more disk space or a larger quota"),
            Error::Damaged => f.write_str(
                "the cache's files are damaged, or were removed or replaced while in use; mostly fresh ones take their place at \
                 once; if this lasts, stop every process that uses the cache: the next one starts with fresh files",
            ),
            Error::DamagedLock { retry_after } => write!(
                f,
                "the record of this lock is damaged: until every lease that can have been granted is over, it is refused; \
                 try again in {retry_after:?}"
            ),
            Error::Codec(why) => write!(f, "the value does not fit its stored form: {why}"),
            Error::TooLarge { size, limit } => {
                write!(f, "the value has {size} bytes, the cache takes at most {limit}")
            }
            Error::Forked => f.write_str("the cache was opened before a fork: open it again in the child"),
            Error::Panicked => f.write_str("the operation was given up because a callback panicked"),
            Error::Io(error) => write!(f, "the operating system refused: {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full,
            _ => Error::Io(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_quota_is_a_full_disk() {
        for code in [libc::ENOSPC, libc::EDQUOT] {
            assert!(matches!(Error::from(io::Error::from_raw_os_error(code)), Error::Full));
        }
        assert!(matches!(Error::from(io::Error::from_raw_os_error(libc::EACCES)), Error::Io(_)));
    }
}
