//! The worker thread: serves the queues that nobody else can, renews leases, sweeps. Started when first needed,
//! tied to no runtime, gone with the last handle of its cache.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread::ThreadId,
    time::{Duration, Instant},
};

const AFTER_A_PANIC: Duration = Duration::from_millis(20);

/// What the thread does each time it is woken; the answer is when it wants to be woken next.
pub(crate) trait Chores: Send + Sync + 'static {
    fn work(&self) -> Duration;
}

/// Wakes the worker thread, which it starts when it rings for the first time.
#[derive(Default)]
pub(crate) struct Worker {
    state: Mutex<State>,
    changed: Condvar,
    chores: OnceLock<Weak<dyn Chores>>,
}

#[derive(Default)]
struct State {
    notified: bool,
    started: bool,
    closed: bool,
    /// The thread is at work, or a handle is being dropped.
    busy: bool,
    keeper: Option<ThreadId>,
}

/// How long the drop of a handle waits for the thread.
const PAUSED_WITHIN: Duration = Duration::from_secs(1);

/// Keeps the worker thread from work while a handle is dropped. Otherwise the thread may be the last to hold what
/// the handles share, and the process ends before it has closed the files.
#[derive(Debug)]
pub(crate) struct WorkerPause {
    worker: Arc<Worker>,
    taken: bool,
}

impl WorkerPause {
    pub(crate) fn new(worker: &Arc<Worker>) -> WorkerPause {
        WorkerPause { worker: worker.clone(), taken: false }
    }

    /// From now until this is dropped. Not for ever, and not on the thread itself.
    pub(crate) fn begin(&mut self) {
        let mut state = self.worker.lock();
        if state.keeper == Some(std::thread::current().id()) {
            return;
        }
        let (waited, late) = self
            .worker
            .changed
            .wait_timeout_while(state, PAUSED_WITHIN, |state| state.busy)
            .unwrap_or_else(PoisonError::into_inner);
        state = waited;
        if !late.timed_out() {
            state.busy = true;
            self.taken = true;
        }
    }
}

impl Drop for WorkerPause {
    fn drop(&mut self) {
        if self.taken {
            self.worker.lock().busy = false;
            self.worker.changed.notify_all();
        }
    }
}

impl Worker {
    pub(crate) fn serve(&self, chores: Weak<dyn Chores>) {
        let _ = self.chores.set(chores);
    }

    pub(crate) fn notify(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.notified = true;
        if !state.started {
            let worker = self.clone();
            let spawned = std::thread::Builder::new().name("floodgate-worker".into()).spawn(move || worker.keep());
            state.started = spawned.is_ok();
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        self.lock().keeper = Some(std::thread::current().id());
        while let Some(pause) = self.work() {
            let deadline = Instant::now() + pause;
            let mut state = self.lock();
            while !state.notified && !state.closed {
                let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                    break;
                };
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.notified = false;
        }
    }

    /// When to work next; `None` when there is nothing to work for any more.
    fn work(&self) -> Option<Duration> {
        let mut state = self.lock();
        while state.busy && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.busy = true;
        drop(state);
        let pause = self.chores.get().and_then(Weak::upgrade).map(|chores| {
            // A chore that panics, by a user's clock perhaps, must not end the others for ever.
            catch_unwind(AssertUnwindSafe(|| chores.work())).unwrap_or(AFTER_A_PANIC)
        });
        self.lock().busy = false;
        self.changed.notify_all();
        pause
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
