//! Why a lock was not acquired, or not released.

use crate::error::Error;
use std::{fmt, time::Duration};

/// Why a lock was not acquired.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// It was not free in time.
    #[non_exhaustive]
    Busy {
        /// How long it may take from now, guessed from how long it was held of late and how many wait. `None`: it is not
        /// known.
        retry_after: Option<Duration>,
    },
    /// As many wait already as [may](crate::lock::Acquire::queue_at_most).
    #[non_exhaustive]
    QueueFull {
        /// As of [`Busy`](AcquireError::Busy).
        retry_after: Option<Duration>,
    },
    /// The [rule](crate::lock::Rule) must be shown all holders, and they are more than the 1,000 that it may be shown. Give it
    /// a [`demand`](crate::lock::Rule::demand).
    TooManyHolders,
    /// The cache could not be used.
    Cache(Error),
}

impl AcquireError {
    /// How long it may take until the lock can be had, if that can be guessed.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            AcquireError::Busy { retry_after } | AcquireError::QueueFull { retry_after } => *retry_after,
            AcquireError::Cache(Error::DamagedLock { retry_after }) => Some(*retry_after),
            AcquireError::TooManyHolders | AcquireError::Cache(_) => None,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcquireError::Busy { .. } => f.write_str("the lock was not free in time"),
            AcquireError::QueueFull { .. } => f.write_str("too many wait for the lock already"),
            AcquireError::TooManyHolders => {
                f.write_str("the lock's rule must see all holders, and they are more than 1,000: give it a `demand`")
            }
            AcquireError::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AcquireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AcquireError::Busy { .. } | AcquireError::QueueFull { .. } | AcquireError::TooManyHolders => None,
            AcquireError::Cache(error) => Some(error),
        }
    }
}

/// Why a release was none.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The lock was lost before: others may have held it meanwhile, and may hold it now. Nothing was changed.
    Lost,
    /// The cache could not be used. The lock is free when its lease ends, or its process.
    Cache(Error),
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReleaseError::Lost => f.write_str("the lock was lost before it was released: its lease had ended"),
            ReleaseError::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ReleaseError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ReleaseError::Lost => None,
            ReleaseError::Cache(error) => Some(error),
        }
    }
}
