//! One opening of a directory, which its handles in this process share.

use super::{
    commit::{
        worker::{Worker, WorkerPause},
        write_queue::WriteQueue,
    },
    directory::{layout::Directory, registry::Closing},
    entries::{memory_tier::MemoryTier, shard::Entries},
    events::Events,
    peers::{
        holdings::{Holding, Holdings, Renew},
        instances::Instances,
        listener::{Reached, Sockets},
        wake_ups::WakeUps,
    },
    record::key::{Key, Secret},
    rows::state::State,
    singleflight::Flights,
};
use crate::time::nanos;
use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// One opening of a directory by this process.
pub(crate) struct Shared {
    pub(super) temporary: bool,
    pub(crate) secret: Secret,
    /// A clock's time plus this is the directory's time.
    pub(crate) offset: u64,
    pub(crate) state: Arc<State>,
    pub(crate) entries: Vec<Arc<Entries>>,
    pub(crate) tier: MemoryTier,
    pub(crate) events: Events,
    pub(crate) instances: Arc<Instances>,
    pub(super) sockets: Arc<Sockets>,
    /// The waiters of this process that other processes may wake.
    pub(crate) wake_ups: Arc<WakeUps>,
    /// The computations under way in this process.
    pub(crate) flights: Arc<Flights>,
    pub(super) holdings: Holdings,
    pub(super) tidied: Mutex<Tidied>,
    pub(super) looked: Mutex<Instant>,
    /// When the worker thread wakes by itself, in ns since `began`.
    pub(super) planned: AtomicU64,
    pub(super) began: Instant,
    pub(super) worker: Arc<Worker>,
    pub(super) directory: Directory,
    // The last field, dropped after the environments are closed.
    pub(super) closing: Closing<Shared>,
}

/// When the worker thread tidied last: everything, and the shards that had more to do.
pub(super) struct Tidied {
    pub(super) all: Instant,
    pub(super) some: Instant,
}

impl Shared {
    /// Whether this process is a forked child of the one that opened the directory.
    pub(super) fn forked(&self) -> bool {
        self.state.queue.env.forked()
    }

    /// Keeps the worker thread from work while a handle is dropped, see [`WorkerPause`].
    pub(crate) fn pause_worker(&self, worker_pause: &mut WorkerPause) {
        // A forked child has no worker thread, though the copied state may say that it is at work.
        if !self.forked() {
            worker_pause.begin();
        }
    }

    pub(crate) fn worker_pause(&self) -> WorkerPause {
        WorkerPause::new(&self.worker)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.root()
    }

    pub(crate) fn shard(&self, key: &Key) -> &Arc<Entries> {
        &self.entries[self.shard_number(key)]
    }

    pub(crate) fn shard_number(&self, key: &Key) -> usize {
        key.hash[0] as usize % self.entries.len()
    }

    /// Wakes a waiter in this process or another. Never blocks.
    pub(crate) fn wake(&self, instance: u64, number: u64) -> Reached {
        match self.instances.is_own(instance) || instance == 0 {
            true if self.wake_ups.wake(number) => Reached::Yes,
            // The waiter is about to wait, and will find that it was woken.
            true if instance != 0 => Reached::Yes,
            true => Reached::No,
            false => self.sockets.send(instance, number),
        }
    }

    /// Makes the worker thread renew a holding until it is released.
    pub(crate) fn hold(&self, key: &Key, holding: Holding) {
        let due = self.since_began(holding.due);
        self.holdings.add(key, holding);
        if due < self.planned.load(SeqCst) {
            self.worker.notify();
        }
    }

    /// Ends a holding, see [`Holdings::remove`].
    pub(crate) fn release(&self, key: &Key, guard: &dyn Renew) {
        self.holdings.remove(key, guard);
    }

    /// The numbers of this process's holdings under the key.
    pub(crate) fn held_here(&self, key: &Key) -> Vec<u64> {
        self.holdings.numbers(key)
    }

    pub(super) fn since_began(&self, time: Instant) -> u64 {
        nanos(time.saturating_duration_since(self.began))
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &WriteQueue> {
        std::iter::once(&self.state.queue).chain(self.entries.iter().map(|shard| &shard.queue))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.forked() {
            // The files, the locks on them and the queued operations belong to the parent.
            return;
        }
        self.worker.close();
        self.wake_ups.close();
        // Queued operations are still wanted, but closing must not wait for ever behind a stopped process.
        for queue in self.queues() {
            queue.serve(Duration::from_millis(100));
            queue.shut();
        }
        if self.temporary {
            let _ = fs::remove_dir_all(self.path());
        } else {
            let opening = self.directory.close(|| self.queues().all(|queue| queue.env.sync().is_ok()));
            self.closing.keep(opening);
        }
    }
}

#[cfg(test)]
mod tests;
