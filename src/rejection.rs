//! Why a request was not let through ([`Rejection`]), and what can go wrong with the cache itself ([`Error`]).

use http::StatusCode;
use std::{fmt, io, path::PathBuf, time::Duration};

/// What went wrong with the cache.
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
        /// What is wrong with it.
        reason: String,
    },
    /// The cache could not be written in time: another process is stopped while it writes, or the disk is stuck.
    Busy,
    /// There is no room left, on disk or in the environment's fixed size.
    Full,
    /// The files are damaged; what they held is lost, a later opening starts with fresh ones.
    Damaged,
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
    /// The operation was given up because code of the user's panicked.
    Panicked,
    /// The operating system refused.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Open { path, reason } => {
                write!(f, "cannot open the cache {}: {reason}", path.display())
            }
            Error::Busy => f.write_str("the cache could not be written in time"),
            Error::Full => f.write_str("the cache is full: give it a larger size or more disk space"),
            Error::Damaged => f.write_str("the cache's files are damaged"),
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
        Error::Io(error)
    }
}

/// Why a layer did not let a request through.
///
/// It rides in the extensions of the responses that [`Http`](crate::answer::Http) makes, and is the error that
/// [`Fail`](crate::answer::Fail) converts from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// What kind of refusal this is.
    pub reason: Reason,
    /// The scope of the layer that refused.
    pub scope: std::sync::Arc<str>,
    /// How long to wait before asking again, where that is known.
    pub retry_after: Option<Duration>,
    /// The state of the budget, where a throttle refused.
    pub quota: Option<crate::throttle::Quota>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A throttle's budget is spent.
    Throttled,
    /// The request costs more than the throttle's burst: it can never be admitted.
    TooCostly,
    /// A barrier's lock was not free in time.
    Busy,
    /// The cache could not be used, and the layer fails closed.
    CacheFailed,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, scope: &std::sync::Arc<str>) -> Self {
        Rejection { reason, scope: scope.clone(), retry_after: None, quota: None }
    }

    /// The HTTP status that says so: 429 for a throttle, 503 for the rest.
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Reason::Throttled | Reason::TooCostly => StatusCode::TOO_MANY_REQUESTS,
            Reason::Busy | Reason::CacheFailed => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status code that says so: 8 (`RESOURCE_EXHAUSTED`) for a throttle, 14 (`UNAVAILABLE`) for the rest.
    pub fn grpc_code(&self) -> u8 {
        match self.reason {
            Reason::Throttled | Reason::TooCostly => 8,
            Reason::Busy | Reason::CacheFailed => 14,
        }
    }

    /// Whole seconds for `Retry-After`: rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|delay| (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Throttled => "too many requests",
            Reason::TooCostly => "the request costs more than the limit ever allows",
            Reason::Busy => "busy: the lock was not free in time",
            Reason::CacheFailed => "the cache is not available",
        })
    }
}

impl std::error::Error for Rejection {}
