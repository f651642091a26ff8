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

mod entries;
mod env;
mod events;
mod flights;
mod gate;
mod keeper;
mod lane;
mod layout;
mod pending;
mod purges;
pub(crate) mod record;
mod shared;
pub(crate) mod state;
mod sys;
#[cfg(test)]
pub(crate) mod testing;
mod values;
mod waiting;

pub use events::Stats;
pub use values::{Insert, Write};

pub(crate) use entries::Edit;
pub(crate) use events::Event;
pub(crate) use flights::{Flight, Landing, Lead, Place};
pub(crate) use pending::{Pending, Slot, block_on};
pub(crate) use record::{Entry, Found, Key, Kind, TAGS_MAX};
pub(crate) use shared::{Holding, Renew};
pub(crate) use state::{CELLS, Change, LOCKS, PAYLOAD_MAX};
pub(crate) use values::{after, decode as decode_value, encode as encode_value};
pub(crate) use waiting::Ticket;

use crate::{rejection::Error, time::Clock};
use hyper::rt::{Executor, Sleep};
use layout::Wanted;
use purges::Subject;
use record::ScopeId;
use shared::Shared;
use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// A future that an executor can run on its own.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type SharedExecutor = Arc<dyn Executor<Task> + Send + Sync>;

/// A handle of a cache's directory. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Cache {
    handle: Arc<Handle>,
    root: Scope,
}

/// What the handles of one opening share: the files, and this opening's clock and executor.
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    clock: Box<dyn Clock>,
    executor: Option<SharedExecutor>,
    // The last field: it ends when `shared` has been dropped.
    farewell: keeper::Farewell,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.say_farewell(&mut self.farewell);
    }
}

impl Handle {
    /// Machine time in ns, the same in every process that shares the directory.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.clock.now().as_nanos()).unwrap_or(u64::MAX).saturating_add(self.shared.offset)
    }

    pub(crate) fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    pub(crate) fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        self.clock.sleep(delay)
    }

    /// Runs a future on its own, or gives it back where nothing can run it.
    pub(crate) fn spawn(&self, task: Task) -> Result<(), Task> {
        match &self.executor {
            Some(executor) => {
                executor.execute(task);
                Ok(())
            }
            #[cfg(feature = "tokio")]
            None => match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    runtime.spawn(task);
                    Ok(())
                }
                Err(_) => Err(task),
            },
            #[cfg(not(feature = "tokio"))]
            None => Err(task),
        }
    }
}

/// How much a commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// Every crash of a process. A crash of the machine starts with empty files.
    #[default]
    Process,
    /// Crashes of the machine too, as long as every process that uses the directory asks for it: each commit is synced,
    /// which costs a disk flush (0.1 to 10 ms) every time.
    Full,
}

/// Settings of a cache that is about to be opened.
#[must_use = "a builder does nothing until `open`"]
pub struct Builder {
    path: Option<PathBuf>,
    size: u64,
    state_size: u64,
    shards: u32,
    durability: Durability,
    patience: Duration,
    mixed: bool,
    clock: Option<Box<dyn Clock>>,
    executor: Option<SharedExecutor>,
}

impl Builder {
    fn new(path: Option<PathBuf>) -> Self {
        Builder {
            path,
            size: 1 << 30,
            state_size: 64 << 20,
            shards: 1,
            durability: Durability::default(),
            patience: Duration::from_millis(250),
            mixed: false,
            clock: None,
            executor: None,
        }
    }

    /// Bytes that stored answers may take on disk: 1 GiB unless said otherwise. Beyond it, what ends first goes first.
    ///
    /// # Panics
    ///
    /// Below 1 MiB or above 32 GiB.
    pub fn size(mut self, bytes: u64) -> Self {
        assert!((1 << 20..=32 << 30).contains(&bytes), "a cache's size is 1 MiB to 32 GiB, not {bytes} bytes");
        self.size = bytes;
        self
    }

    /// Bytes of the fixed-size file of throttle cells and locks: 64 MiB unless said otherwise. Cells take up to half of it,
    /// some 600,000, locks up to three eighths. The disk space is taken at once. Who makes the directory decides; later
    /// openings keep what it has.
    ///
    /// # Panics
    ///
    /// Below 1 MiB, above 1 TiB, or if it is not a multiple of 64 KiB.
    pub fn state_size(mut self, bytes: u64) -> Self {
        assert!(
            layout::is_state_size(bytes),
            "the state's size is 1 MiB to 1 TiB in multiples of 64 KiB, not {bytes} bytes"
        );
        self.state_size = bytes;
        self
    }

    /// Environments that stored answers are spread over: 1 unless said otherwise. More let several processes write at
    /// once. Who makes the directory decides; later openings keep what it has.
    ///
    /// # Panics
    ///
    /// If it is 0 or above 256.
    pub fn shards(mut self, shards: u32) -> Self {
        assert!((1..=256).contains(&shards), "a cache has 1 to 256 shards, not {shards}");
        self.shards = shards;
        self
    }

    /// How much a commit survives: [`Durability::Process`] unless said otherwise.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long a write may take before it counts as failed: 250 ms of real time unless said otherwise. It does so when
    /// another process is stopped in the middle of a write; layers then answer as if there were no cache.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn patience(mut self, patience: Duration) -> Self {
        assert!(!patience.is_zero(), "a cache needs some patience, not {patience:?}");
        self.patience = patience;
        self
    }

    /// The clock of this handle. Without one, machine time and tokio's timer.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// What runs background refreshes, such as `hyper_util::rt::TokioExecutor`. Without one, the tokio runtime that the
    /// request runs on; where there is none, the request does the work itself.
    pub fn executor<E>(mut self, executor: E) -> Self
    where
        E: Executor<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync + 'static,
    {
        self.executor = Some(Arc::new(executor));
        self
    }

    /// Opens the directory even while processes of another version, architecture or libc of this crate use it. The two
    /// groups share nothing, no lock above all.
    pub fn allow_mixed_builds(mut self) -> Self {
        self.mixed = true;
        self
    }

    /// Opens the cache, making the directory if need be. Blocks for some milliseconds; for up to ten seconds behind
    /// another process that is opening or closing it.
    ///
    /// A directory that this process has open already is shared; then only the clock and the executor are this handle's.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] with the reason: no permission, not a directory, a network file system, writable by others.
    pub fn open(self) -> Result<Cache, Error> {
        let shared = Shared::open(&shared::Settings {
            path: self.path,
            size: self.size,
            patience: self.patience,
            wanted: Wanted {
                state_size: self.state_size,
                shards: self.shards,
                mixed: self.mixed,
                sync: self.durability == Durability::Full,
            },
        })?;
        let clock = match self.clock {
            Some(clock) => clock,
            None => default_clock(),
        };
        let farewell = shared.farewell();
        let handle = Arc::new(Handle { shared, clock, executor: self.executor, farewell });
        let root = Scope::new(&handle, "");
        Ok(Cache { handle, root })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

#[cfg(feature = "tokio")]
fn default_clock() -> Box<dyn Clock> {
    Box::new(crate::time::System(crate::time::TokioTimer))
}

#[cfg(not(feature = "tokio"))]
fn default_clock() -> Box<dyn Clock> {
    struct NoTimer;
    impl hyper::rt::Timer for NoTimer {
        fn sleep(&self, _: Duration) -> Pin<Box<dyn Sleep>> {
            panic!("waiting needs a timer: give the cache a clock with `Builder::clock`, or enable the feature `tokio`")
        }
        fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn Sleep>> {
            self.sleep(Duration::ZERO)
        }
    }
    Box::new(crate::time::System(NoTimer))
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
        self.purge(Subject::Tag(tag)).await?;
        self.reset_cells(move |cell| cell == tag).await
    }

    /// Drops every stored answer and throttle cell of all scopes. A held lock is never freed.
    ///
    /// # Errors
    ///
    /// As [`evict`](Cache::evict).
    pub async fn clear(&self) -> Result<(), Error> {
        self.purge(Subject::All).await?;
        self.reset_cells(|_| true).await
    }

    async fn purge(&self, subject: Subject) -> Result<(), Error> {
        let now = self.handle.now();
        let shards: Vec<_> = self.handle.shared.entries.iter().map(|shard| shard.purge(subject, now)).collect();
        for purged in shards {
            purged.await?;
        }
        Ok(())
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

    /// What has happened in this process, and how full the cache is.
    pub fn stats(&self) -> Stats {
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

/// A name space of a [`Cache`], and what layers are made of: a layer takes a scope, so that no two share by accident.
///
/// Kinds never meet either: a throttle and a barrier of one scope and name are two things.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<ScopeInner>,
}

struct ScopeInner {
    handle: Arc<Handle>,
    name: Arc<str>,
    id: ScopeId,
}

impl Scope {
    fn new(handle: &Arc<Handle>, name: &str) -> Scope {
        let id = handle.shared.secret.scope(name);
        Scope { inner: Arc::new(ScopeInner { handle: handle.clone(), name: name.into(), id }) }
    }

    /// The scope's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Drops every stored answer of this scope, in every process, from the moment this resolves. Throttle cells and
    /// locks stay.
    ///
    /// # Errors
    ///
    /// As [`Cache::evict`].
    pub async fn clear(&self) -> Result<(), Error> {
        let handle = self.handle();
        let (subject, now) = (Subject::Scope(self.inner.id), handle.now());
        let shards: Vec<_> = handle.shared.entries.iter().map(|shard| shard.purge(subject, now)).collect();
        for purged in shards {
            purged.await?;
        }
        Ok(())
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.inner.name
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.inner.handle
    }

    pub(crate) fn key(&self, kind: Kind, name: &[u8]) -> Key {
        self.handle().shared.secret.key(kind, &self.inner.id, name)
    }

    pub(crate) fn tag(&self, tag: &str) -> u64 {
        self.handle().shared.secret.tag(tag)
    }

    pub(crate) fn note(&self, event: Event) {
        self.handle().shared.events.note(event, &self.inner.name);
    }

    /// See [`state::State::update`].
    pub(crate) fn update<R: Send + 'static, G: Send + 'static>(
        &self,
        table: env::Table,
        key: Key,
        transition: impl state::Transition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G> {
        let handle = self.handle().clone();
        self.handle().shared.state.update(table, key, move || handle.now(), transition, settle)
    }

    /// See [`state::State::post`].
    pub(crate) fn post(&self, table: env::Table, key: Key, transition: impl state::Transition<()>) {
        let handle = self.handle().clone();
        self.handle().shared.state.post(table, key, move || handle.now(), transition);
    }

    /// The stored entry and the time at which it is alive, or the purge sequence that a computation starting now must
    /// carry.
    pub(crate) fn entry(&self, key: &Key, name: &[u8]) -> Result<Result<(Entry, u64), u64>, Error> {
        self.handle().shared.shard(key).get(key, name, || self.handle().now())
    }

    /// The purge sequence that a computation starting now must carry.
    pub(crate) fn sequence(&self, key: &Key) -> Result<u64, Error> {
        self.handle().shared.shard(key).sequence()
    }

    /// Bytes that a stored payload may have at most.
    pub(crate) fn largest(&self) -> usize {
        self.handle().shared.entries[0].largest()
    }

    /// Stores an entry; resolves after the commit.
    pub(crate) fn commit(&self, key: Key, name: &[u8], entry: Entry) -> Pending<Result<(), Error>> {
        self.edit(key, name, move |_, _| (Ok(()), Edit::Store(entry.clone())))
    }

    /// Whether no purge has hit an entry that is in memory only.
    pub(crate) fn is_current(&self, key: &Key, entry: &Entry) -> Result<bool, Error> {
        self.handle().shared.shard(key).is_current(key, entry, self.handle().now())
    }

    pub(crate) fn edit<R: Send + 'static>(
        &self,
        key: Key,
        name: &[u8],
        edit: impl FnMut(Option<&Entry>, entries::Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        let handle = self.handle().clone();
        self.handle().shared.shard(&key).edit(key, name, move || handle.now(), edit)
    }

    /// From the moment this resolves, the entry of the key is gone with all that carry its [`own_tag`](Key::own_tag),
    /// and what is being computed for it will not be stored.
    pub(crate) fn purge_name(&self, key: &Key) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (shared, now) = (&self.handle().shared, self.handle().now());
        let mut purges = vec![shared.shard(key).purge(Subject::Name(key.hash), now)];
        purges.extend(shared.entries.iter().map(|shard| shard.purge(Subject::Tag(key.own_tag()), now)));
        async {
            for purged in purges {
                purged.await?;
            }
            Ok(())
        }
    }

    pub(crate) fn id(&self) -> ScopeId {
        self.inner.id
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.inner.name).finish()
    }
}
