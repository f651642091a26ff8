//! The LMDB-backed cache that the layers share, usable on its own.
//!
//! A [`Cache`] is a handle of a directory; every task, thread and process that opens the directory shares what is in it.
//! A [`Scope`] is a name space within it, and what a layer is made of.
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
//! Whatever was committed survives `kill -9` of any process; `insert(..).await` resolves after the commit. A crash of the
//! whole machine (another boot id, and no clean end) starts with empty files, since nothing is synced on the way, unless
//! [`Durability::Full`] is asked for. A damaged record counts as a miss and is removed.
//!
//! # Platforms
//!
//! Linux. The directory must be on a local file system and belong to this user. Exactness means on one machine.

// Until the locks use all of it.

mod averager;
mod beacon;
mod builder;
pub(crate) mod calls;
mod entries;
mod env;
mod events;
mod exits;
mod flights;
mod gate;
mod guard;
mod handle;
mod keeper;
mod lane;
mod layout;
pub(crate) mod line;
mod listener;
pub(crate) mod listing;
mod numbers;
mod opening;
mod pending;
mod presence;
mod purge;
mod purges;
mod reads;
mod recent;
pub(crate) mod record;
mod scope;
mod shared;
pub(crate) mod state;
mod sync;
mod sys;
#[cfg(test)]
pub(crate) mod testing;
mod tier;
mod update;
mod users;
mod values;

pub use averager::Averager;
pub use builder::{Builder, Durability};
pub use events::{HolderStats, LockStats, Stats, WaiterStats};
pub use purge::Purge;
pub use scope::Scope;
pub use values::{Insert, Write};

pub(crate) use calls::{Call, Watch};
pub(crate) use entries::{Edit, Hot, LONGEST_FLIGHT};
pub(crate) use events::Event;
pub(crate) use flights::{Flight, Lead, Outcome, Progress, Role, SharedValue};
pub(crate) use handle::Task;
pub(crate) use line::{Line, Step, Waiter};
pub(crate) use listener::Reached;
pub(crate) use listing::Listed;
pub(crate) use pending::{Pending, Slot, block_on, block_on_until, sleep_on_thread};
pub(crate) use record::{Entry, Found, Key, Kind, Life, TAGS_MAX};
pub(crate) use shared::{Holding, Renew};
pub(crate) use state::{CELLS, Change, LOCKS, PAYLOAD_MAX};
pub(crate) use values::{after, decode as decode_value, encode as encode_value};

use crate::error::Error;
use handle::Handle;
use purges::Subject;
use std::{fmt, path::Path, sync::Arc};

/// A handle of a cache's directory. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Cache {
    handle: Arc<Handle>,
    root: Scope,
}

impl Cache {
    /// Opens the cache in a directory, with the defaults of [`Builder`]. May block for some milliseconds.
    ///
    /// # Errors
    ///
    /// As [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Cache, Error> {
        Cache::builder(path).open()
    }

    /// Settings for the cache in a directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(Some(path.as_ref().to_path_buf()))
    }

    /// A cache of its own in a private directory, gone with the last handle: for tests, and where nothing is to be shared.
    /// It takes 64 MiB of the system's temporary directory at once; see [`Builder::state_size`].
    ///
    /// # Errors
    ///
    /// As [`Builder::open`].
    pub fn temporary() -> Result<Cache, Error> {
        Cache::builder_temporary().open()
    }

    /// Settings for a [temporary](Cache::temporary) cache.
    pub fn builder_temporary() -> Builder {
        Builder::new(None)
    }

    /// Opens the cache in a directory or, if that fails, a [temporary](Cache::temporary) one: the service then works,
    /// but shares nothing and forgets everything with the process. The failure is logged.
    ///
    /// # Errors
    ///
    /// If even the temporary directory cannot be made.
    pub fn open_or_temporary(path: impl AsRef<Path>) -> Result<Cache, Error> {
        Cache::open(path).or_else(|error| {
            tracing::error!(%error, "using a temporary cache instead, shared with no other process");
            Cache::temporary()
        })
    }

    /// A name space of the cache: equal names share everything, others nothing.
    pub fn scope(&self, name: &str) -> Scope {
        Scope::new(&self.handle, name)
    }

    /// The scope without a name, in which the methods of the cache itself work.
    pub fn root(&self) -> &Scope {
        &self.root
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.handle.shared.path()
    }

    /// Drops every stored answer that carries the tag, in every process, from the moment this resolves; answers being
    /// computed right now will not be stored. Throttle cells with the tag are full again. A held lock is never freed.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if the cache could not be written in time; the purge may then have happened in part.
    pub async fn evict(&self, tag: &str) -> Result<(), Error> {
        let tag = self.handle.shared.secret.tag(tag);
        self.handle.purge(Subject::Tag(tag), false).await?;
        self.reset_cells(move |cell| cell == tag).await
    }

    /// Drops every stored answer and throttle cell of all scopes. A held lock is never freed.
    ///
    /// # Errors
    ///
    /// As [`evict`](Cache::evict).
    pub async fn clear(&self) -> Result<(), Error> {
        self.handle.purge(Subject::All, false).await?;
        self.reset_cells(|_| true).await
    }

    async fn reset_cells(&self, wanted: impl Fn(u64) -> bool + Clone + Send + 'static) -> Result<(), Error> {
        let mut after = None;
        loop {
            after = self.handle.shared.state.evict_some(after, wanted.clone()).await?;
            if after.is_none() {
                return Ok(());
            }
            yield_once().await;
        }
    }

    /// What has happened in this process, and how full the cache is: all but the locks.
    pub(crate) fn counts(&self) -> Stats {
        self.handle.shared.stats()
    }
}

/// Lets other tasks of the thread run.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("path", &self.path()).finish_non_exhaustive()
    }
}
