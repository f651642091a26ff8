//! One opening of a directory, which its handles in this process share.

use super::{
    commit::{worker::Worker, write_queue::WriteQueue},
    directory::{layout::Directory, registry::Closing, temporary::Temporary},
    entries::{memory::memory_tier::MemoryTier, shard::Entries},
    events::Events,
    lmdb::at_exit::PutOff,
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
    convert::Infallible,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc::Sender,
    },
    time::{Duration, Instant},
};

/// One opening of a directory by this process.
pub(crate) struct Shared {
    pub(super) temporary: Option<Temporary>,
    pub(crate) secret: Secret,
    /// A clock's time plus this is the directory's time.
    pub(crate) offset: u64,
    /// The directory's time when the machine started.
    pub(crate) booted: u64,
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
    /// When the worker threads last looked after the files, and what is in them.
    pub(super) looked: Mutex<Looked>,
    pub(super) tidied: Mutex<Tidied>,
    /// When the worker thread of `state/` wakes by itself, in ns since `began`.
    pub(super) planned: AtomicU64,
    pub(super) began: Instant,
    pub(super) workers: Workers,
    pub(super) directory: Directory,
    pub(super) handles: Mutex<usize>,
    // The last fields, dropped after the environments are closed.
    pub(super) closing: Closing<Shared>,
    /// Set by the last handle, which waits for its drop.
    pub(super) closed: Mutex<Option<(PutOff, Sender<Infallible>)>>,
}

/// The threads of an opening, beside the listener. None of them ever waits for another.
pub(super) struct Workers {
    /// Serves `state/`, and renews what this process holds.
    pub(super) state: Arc<Worker>,
    /// Serves `entries/`, and tidies there.
    pub(super) entries: Arc<Worker>,
    /// Watches over the queues, so that what waits in them comes to an end even if the others are kept from their work.
    pub(super) watcher: Arc<Worker>,
}

impl Workers {
    pub(super) fn new() -> Workers {
        Workers {
            state: Worker::new("floodgate-state"),
            entries: Worker::new("floodgate-entries"),
            watcher: Worker::new("floodgate-watcher"),
        }
    }

    fn all(&self) -> [&Arc<Worker>; 3] {
        [&self.state, &self.entries, &self.watcher]
    }
}

/// When the files were last checked, and those of dead processes cleared away.
pub(super) struct Looked {
    pub(super) at_files: Instant,
    pub(super) for_dead: Instant,
}

/// When the entries were last tidied: in all shards, and in those that had more to do.
pub(super) struct Tidied {
    pub(super) all: Instant,
    pub(super) some: Instant,
    /// Files of earlier generations.
    pub(super) old: Instant,
}

impl Shared {
    /// Whether this process is a forked child of the one that opened the directory.
    pub(crate) fn forked(&self) -> bool {
        self.state.queue.env.forked()
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

    /// Makes the worker thread renew a holding until it is released. `false`: there is no thread to do so.
    pub(crate) fn hold(&self, holding: Holding) -> bool {
        let due = self.since_began(holding.due);
        self.holdings.add(holding);
        due >= self.planned.load(SeqCst) || self.workers.state.notify()
    }

    /// Ends a holding, see [`Holdings::remove`].
    pub(crate) fn release(&self, number: u64, guard: &dyn Renew) {
        self.holdings.remove(number, guard);
    }

    /// Whether this process has a holding of the number.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.holdings.has(number)
    }

    pub(super) fn since_began(&self, time: Instant) -> u64 {
        nanos(time.saturating_duration_since(self.began))
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &WriteQueue> {
        std::iter::once(&*self.state.queue).chain(self.entries.iter().map(|shard| &*shard.queue))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.forked() {
            // The files, the locks on them and the queued operations belong to the parent.
            return;
        }
        self.workers.all().into_iter().for_each(|worker| worker.close());
        self.wake_ups.close();
        // Queued operations are still wanted, but closing must not wait for ever behind a stopped process.
        for queue in self.queues() {
            queue.serve(Duration::from_millis(100));
            queue.shut();
        }
        if let Some(temporary) = &self.temporary {
            temporary.remove();
        } else {
            let opening = self.directory.close(|| self.queues().all(|queue| queue.env.sync().is_ok()));
            self.closing.keep(opening);
        }
    }
}

#[cfg(test)]
mod tests;
