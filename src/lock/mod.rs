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
//! A lock is a row of places, each with an owner and a lease, and a waiting line: first come, first served, over all
//! tasks, threads and processes. Its release offers it to the first waiter and wakes the process of that one alone.
//!
//! - A holder whose process dies loses its place within 100 ms, whatever its lease is. So does a waiter. Only an owner
//!   that is inside from two processes at once keeps its place for the other one, for as long as the lease.
//! - A holder whose process hangs loses it when its [lease](Acquire::expire) ends, and [learns](Guard::lost) of it when
//!   it goes on. The leases of living guards are renewed at a third of their time by one thread a process.
//! - Such a holder may still write to a store. The store can refuse its [fencing token](Fence); see [`Watermark`].
//!
//! | rule | who may hold the lock |
//! |---|---|
//! | [`Lock`] | one |
//! | [`RLock`] | one [owner](Acquire::owner), as often as it likes |
//! | [`Semaphore`] | so many, each with a [weight](Semaphore::weighing) if need be |
//! | [`ReadWrite`], [to read](ReadWrite::read) or [to write](ReadWrite::write) | many readers or one writer |
//! | any [`Rule`] of your own | whom it admits |

mod acquire;
mod acquiring;
mod error;
mod factory;
mod fence;
mod guard;
mod lost;
mod options;
mod owner;
mod row;
mod rule;
mod stats;
mod waiters;

pub use acquire::Acquire;
pub use acquiring::Acquiring;
pub use error::{AcquireError, ReleaseError};
pub use factory::{LockFactory, Minted, RLock, Weighted};
pub use fence::{Fence, StaleFence, Watermark};
pub use guard::{Guard, Hold, Releasing};
pub use lost::Lost;
pub(crate) use options::{LockOptions, check_lease, clamp_lease};
pub use owner::Owner;
pub use rule::{Demand, Holder, Lock, OneOwner, ReadWrite, Rule, Semaphore, Weighing};
