//! The LMDB-backed cache that the layers share, usable on its own.
//!
//! A [`Cache`] is a handle of a directory; every task, thread and process that opens the directory shares its contents.
//! A [`Scope`] is a name space within it; each layer is made from one.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_floodgate::Error> {
//! use std::time::Duration;
//! use tower_floodgate::Cache;
//!
//! let cache = Cache::temporary()?; // or `Cache::open("cache")?`
//! let users = cache.scope("users");
//! users.insert("42", &"Ada").expire(Duration::from_secs(60)).tag("people").await?;
//! assert_eq!(users.get::<String>("42")?.as_deref(), Some("Ada"));
//! cache.evict("people").await?;
//! assert_eq!(users.get::<String>("42")?, None);
//! assert_eq!(users.incr("visits", 1).await?, 1);
//! # Ok(()) }
//! ```
//!
//! # What it survives
//!
//! A committed write survives `kill -9` of any process; `insert(..).await` resolves after the commit. A crash of the
//! whole machine (another boot id, and no clean end) starts with empty files, since nothing is synced on the way,
//! unless [`Durability::Full`] is asked for. A damaged answer is a miss and is removed; a damaged lock is refused for a
//! while ([`Error::DamagedLock`](crate::Error::DamagedLock)).
//!
//! # Closing
//!
//! The files are closed when the last handle is dropped, by a thread of its own, since they are synced first; what the
//! directory then holds outlives a reboot. The drop waits for that: on a thread of a tokio runtime (and, without the
//! feature `tokio`, on any thread) for 50 ms, elsewhere to the end. What is closed later still keeps others from opening the directory meanwhile, and the end of the process waits
//! for it, for ten seconds at most.
//!
//! # Platforms
//!
//! Linux. The directory must be on a [local file system](Builder::allow_any_file_system) and belong to this user. On a full
//! disk, storing fails and nothing else: the files that are mapped have blocks of their own. A copy by `cp --reflink` and a
//! snapshot take these away while the cache is open, and then a process may be killed on a full disk; so may it on btrfs
//! with a kernel that writes nothing in place on a full disk (6.18 does). Copy or snapshot a cache that is closed.
//! "Exact" means on one machine.

mod averager;
mod builder;
#[allow(clippy::module_inception)]
mod cache;
mod handle;
mod purge;
mod scope;
mod stats;
#[cfg(test)]
pub(crate) mod testing;
mod values;

pub use averager::Averager;
pub use builder::{Builder, Durability};
pub use cache::Cache;
pub use purge::Purge;
pub use scope::Scope;
pub use stats::{HolderStats, LockStats, QueueStats, Stats, WaiterStats};
pub use values::{Insert, Write};

pub(crate) use handle::Task;
pub(crate) use values::{after, decode as decode_value, encode as encode_value};
