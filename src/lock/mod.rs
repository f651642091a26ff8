//! Locks across tasks, threads and processes, as barriers use them and on their own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tower_floodgate::Cache;
//!
//! let cache = Cache::temporary()?;
//! let guard = cache.lock("nightly-report").acquire().await?;
//! let other = cache.lock("nightly-report").wait_at_most(Duration::ZERO).acquire().await;
//! assert!(other.is_err(), "held");
//! drop(guard);
//! cache.lock("nightly-report").acquire().await?;
//! # Ok(()) }
//! ```
//!
//! A lock is a row of holders, each with a random owner token and a lease. The housekeeping thread renews the leases of
//! living guards; a holder whose process died loses its place when its lease ends. Within a process waiters are served in
//! the order of their coming; between processes the first waiter of each polls, with pauses of 1 to 64 ms.

mod acquire;
mod row;
mod rule;

pub use acquire::{Acquire, AcquireError, Acquiring, Guard};
pub(crate) use acquire::{LEASE, check_lease, clamp_lease};
pub use rule::{Holder, Lock, LockFactory, Minted, OneOwner, Owner, RLock, Rule, Semaphore};

use crate::cache::{Cache, Scope};

impl Scope {
    /// A lock of this scope, by name: exclusive unless [`Acquire::rule`] says otherwise.
    pub fn lock(&self, name: &str) -> Acquire {
        Acquire::new(self, name.as_bytes(), Lock)
    }
}

impl Cache {
    /// [`Scope::lock`] of the [root](Cache::root) scope.
    pub fn lock(&self, name: &str) -> Acquire {
        self.root().lock(name)
    }
}
