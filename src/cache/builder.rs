//! Settings of a cache that is about to be opened.

use super::{
    cache::Cache,
    handle::{Handle, SharedExecutor, default_clock},
};
use crate::{
    error::Error,
    store::{Settings, Shared, Wanted, is_state_size},
    time::Clock,
};
use hyper::rt::Executor;
use std::{
    fmt,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

/// The crashes that a commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// A commit survives every crash of a process. After a crash of the machine, the cache starts with empty files.
    #[default]
    Process,
    /// A commit survives crashes of the machine too, as long as every process that uses the directory asks for it: each
    /// commit is synced, which costs a disk flush (0.1 to 10 ms) every time.
    Full,
}

/// Settings of a cache that is about to be opened.
#[must_use = "a builder does nothing until `open`"]
pub struct Builder {
    path: Option<PathBuf>,
    size: Option<u64>,
    memory: usize,
    state_size: u64,
    shards: u32,
    durability: Durability,
    patience: Duration,
    mixed: bool,
    any_file_system: bool,
    clock: Option<Box<dyn Clock>>,
    executor: Option<SharedExecutor>,
}

impl Builder {
    fn new(path: Option<PathBuf>) -> Self {
        Builder {
            path,
            size: None,
            memory: 32 << 20,
            state_size: 64 << 20,
            shards: 1,
            durability: Durability::default(),
            patience: Duration::from_millis(250),
            mixed: false,
            any_file_system: false,
            clock: None,
            executor: None,
        }
    }

    /// Bytes that stored answers may take on disk: 1 GiB unless said otherwise. Beyond it, what has ended is dropped
    /// first, then what no process reads: an answer that nobody asked for again leaves before one that is asked for often
    /// (S3-FIFO), however long each would live. Another 6 MiB a GiB say what is read. The files may be larger by a quarter,
    /// or by 8 MiB a shard if that is more; beside a reader that is stopped, twice as large, or larger by 24 MiB a shard.
    ///
    /// The size is the directory's, and written down in it. It changes when a process that asks for another size opens
    /// the directory while no other process uses it. Whoever joins others keeps their size, which is logged; whoever asks
    /// for none keeps what is there.
    ///
    /// # Panics
    ///
    /// Below 1 MiB or above 32 GiB.
    pub fn size(mut self, bytes: u64) -> Self {
        assert!((1 << 20..=32 << 30).contains(&bytes), "a cache's size is 1 MiB to 32 GiB, not {bytes} bytes");
        self.size = Some(bytes);
        self
    }

    /// Bytes of memory in which this process may keep decoded answers that are read often: 32 MiB unless said
    /// otherwise, 0 for none. This memory is never ahead of the files nor behind them: an answer that another process
    /// purges is not read here any more.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Bytes of the fixed-size file of throttle cells and locks: 64 MiB unless said otherwise. Cells take up to half of
    /// it, which holds at least some 170,000; beyond that, [the least missed](crate::throttle#a-flood-of-names) go
    /// first. Locks take up to three eighths. The disk space is taken at once. The process that makes the directory
    /// decides; later openings keep its size.
    ///
    /// # Panics
    ///
    /// Below 1 MiB, above 1 TiB, or if it is not a multiple of 64 KiB.
    pub fn state_size(mut self, bytes: u64) -> Self {
        assert!(is_state_size(bytes), "the state's size is 1 MiB to 1 TiB in multiples of 64 KiB, not {bytes} bytes");
        self.state_size = bytes;
        self
    }

    /// Environments that stored answers are spread over: 1 unless said otherwise. More let several processes write at
    /// once. The process that makes the directory decides; later openings keep its number.
    ///
    /// # Panics
    ///
    /// If it is 0 or above 256.
    pub fn shards(mut self, shards: u32) -> Self {
        assert!((1..=256).contains(&shards), "a cache has 1 to 256 shards, not {shards}");
        self.shards = shards;
        self
    }

    /// The crashes that a commit survives: [`Durability::Process`] unless said otherwise.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How long nobody may get to write before the writes that wait count as failed: 250 ms of real time unless said
    /// otherwise; [`Duration::MAX`] waits for ever. This happens when another process is stopped in the middle of a write;
    /// layers then answer as if there were no cache. A write is never late because many wait before it, as long as they
    /// move, and the time in which this process is stopped does not count.
    ///
    /// # Panics
    ///
    /// If it is zero.
    pub fn patience(mut self, patience: Duration) -> Self {
        assert!(!patience.is_zero(), "a cache needs some patience, not {patience:?}");
        self.patience = patience;
        self
    }

    /// The clock of this handle. Without one, the handle uses machine time and tokio's timer, or that of a thread where
    /// there is no such timer.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// The executor that runs background refreshes, such as `hyper_util::rt::TokioExecutor`. Without one, they run on
    /// the tokio runtime of the request; where there is none, the request does the work itself.
    pub fn executor<E>(mut self, executor: E) -> Self
    where
        E: Executor<Pin<Box<dyn Future<Output = ()> + Send>>> + Send + Sync + 'static,
    {
        self.executor = Some(Arc::new(executor));
        self
    }

    /// Opens the directory even while processes of another version, architecture or libc of this crate use it. The two
    /// groups share nothing, above all no lock.
    pub fn allow_mixed_builds(mut self) -> Self {
        self.mixed = true;
        self
    }

    /// Opens the directory even on a file system that is not known to be local: a network file system, a shared folder of
    /// a virtual machine, FUSE. It must keep `flock` and shared maps coherent between all processes that use the
    /// directory, and these must run on one machine; otherwise locks are held twice and files are damaged. This is
    /// logged.
    ///
    /// These are known to do so: ext2 to ext4, xfs, btrfs, bcachefs, f2fs, jfs, reiserfs, zfs, tmpfs, ramfs and overlayfs.
    pub fn allow_any_file_system(mut self) -> Self {
        self.any_file_system = true;
        self
    }

    /// Opens the cache, making the directory if need be. Blocks for some milliseconds; for up to ten seconds behind
    /// another process that is opening or closing it.
    ///
    /// A directory that this process has open already is shared; then only the clock and the executor are this
    /// handle's.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] with the reason and what to do: no permission, not a directory, a network file system, writable by
    /// others. A directory of ours that others may write to, and that holds nothing but a cache, is set right instead: all
    /// rights of other users are taken away, which is logged. A sticky directory, such as `/tmp`, is refused.
    pub fn open(self) -> Result<Cache, Error> {
        let clock = self.clock.unwrap_or_else(default_clock);
        let shared = Shared::open(&Settings {
            path: self.path,
            memory: self.memory,
            patience: self.patience,
            wanted: Wanted {
                state_size: self.state_size,
                size: self.size,
                shards: self.shards,
                mixed: self.mixed,
                sync: self.durability == Durability::Full,
                any_file_system: self.any_file_system,
            },
        })?;
        Ok(Cache::new(Arc::new(Handle::new(shared, clock, self.executor))))
    }
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

    /// A cache in a private directory of its own, which is removed with the last handle: for tests, and where nothing
    /// is to be shared. It takes 64 MiB of the system's temporary directory at once; see [`Builder::state_size`]. What a
    /// killed process leaves is removed when any process of this user opens the next temporary cache.
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
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}
