//! The state behind a cache's handles: the files, a clock, an executor.

use crate::{
    error::Error,
    store::{Opened, Pending, Purged, Shared, Subject, block_on_until},
    time::{Clock, nanos},
};
use hyper::rt::{Executor, Sleep};
use std::{
    future::Future,
    panic::{RefUnwindSafe, UnwindSafe},
    pin::Pin,
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    time::{Duration, Instant, SystemTime},
};

/// How long a thread waits for a write at most where the clock may be paused. Processes leave the gate within microseconds.
const PAUSED_FOR: Duration = Duration::from_millis(200);

/// How long the drop of a cache's last handle waits on a runtime's thread until the files are closed.
const CLOSED_FOR: Duration = Duration::from_millis(50);

/// A future that an executor can run on its own.
pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
pub(super) type SharedExecutor = Arc<dyn Executor<Task> + Send + Sync>;

/// The state that the handles of one opening share: the files, and this opening's clock and executor.
pub(crate) struct Handle {
    pub(crate) shared: Opened,
    clock: Box<dyn Clock>,
    executor: Option<SharedExecutor>,
}

#[cfg(feature = "tokio")]
pub(super) fn default_clock() -> Box<dyn Clock> {
    Box::new(crate::time::System(crate::time::TokioTimer))
}

#[cfg(not(feature = "tokio"))]
pub(super) fn default_clock() -> Box<dyn Clock> {
    Box::new(crate::time::System(crate::time::ThreadTimer))
}

/// A clock and an executor may be the user's. Nothing of theirs is looked into, so a panic leaves nothing half-done here.
impl UnwindSafe for Handle {}
impl RefUnwindSafe for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close(if on_a_runtime() { Some(CLOSED_FOR) } else { None });
    }
}

#[cfg(feature = "tokio")]
fn on_a_runtime() -> bool {
    tokio::runtime::Handle::try_current().is_ok()
}

#[cfg(not(feature = "tokio"))]
fn on_a_runtime() -> bool {
    true
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, clock: Box<dyn Clock>, executor: Option<SharedExecutor>) -> Handle {
        Handle { shared: Opened::new(shared), clock, executor }
    }

    /// Machine time in ns, the same in every process that shares the directory.
    pub(crate) fn now(&self) -> u64 {
        nanos(self.clock.now()).saturating_add(self.shared.offset)
    }

    pub(crate) fn wall(&self) -> SystemTime {
        self.clock.wall()
    }

    pub(crate) fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        self.clock.sleep(delay)
    }

    /// A write as the caller sees it. The runtime of a [paused](Clock::may_be_paused) clock must not count as idle
    /// while a write is queued, so there the thread waits for it.
    pub(crate) fn settled<T>(&self, mut write: Pending<T>) -> Pending<T> {
        if self.clock.may_be_paused() && write.is_queued() {
            let deadline = Instant::now() + PAUSED_FOR;
            if let Some(settled) = block_on_until(Pin::new(&mut write), Some(deadline)) {
                return Pending::ready(settled);
            }
        }
        write
    }

    /// As `settled`, for a write that nobody awaits: `post` gets what it has to drop once the write has settled.
    pub(crate) fn posted(&self, post: impl FnOnce(Option<Sender<()>>)) {
        if !self.clock.may_be_paused() {
            return post(None);
        }
        let (settled, wait) = mpsc::channel();
        post(Some(settled));
        let _ = wait.recv_timeout(PAUSED_FOR);
    }

    /// Queues a purge in every shard at once; the answer resolves when all are committed.
    pub(crate) fn purge(
        self: &Arc<Self>,
        subject: Subject,
        soft: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.purge_in((0..self.shared.entries.len()).collect(), subject, soft)
    }

    /// As `purge`, in some of the shards.
    pub(crate) fn purge_in(
        self: &Arc<Self>,
        shards: Vec<usize>,
        subject: Subject,
        soft: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (handle, now) = (self.clone(), self.now());
        let begin = move |shard: usize| handle.shared.entries[shard].purge(subject.clone(), soft, now);
        let purges: Vec<_> = shards.iter().map(|&shard| begin(shard)).collect();
        let purges: Vec<_> = purges.into_iter().map(|purge| self.settled(purge)).collect();
        let handle = self.clone();
        async move {
            for (shard, mut purge) in shards.into_iter().zip(purges) {
                while purge.await? == Purged::Again {
                    purge = handle.settled(begin(shard));
                }
            }
            Ok(())
        }
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
