//! The worker thread. It serves the queues that no other thread can, renews leases and sweeps. It is started when first
//! needed, is tied to no runtime, and ends with the last handle of its cache.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    thread::ThreadId,
    time::{Duration, Instant},
};

const AFTER_A_PANIC: Duration = Duration::from_millis(20);

/// The work that the thread does each time it is woken. The result says after how long it wants to be woken next.
pub(crate) trait Chores: Send + Sync + 'static {
    fn work(&self) -> Duration;
}

/// Wakes the worker thread, and starts it at the first notify.
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
    thread: Option<ThreadId>,
}

/// How long the drop of a handle waits for the thread.
const PAUSED_WITHIN: Duration = Duration::from_secs(1);

/// Keeps the worker thread from work while a handle is dropped. Otherwise the thread may hold the last reference to the
/// shared state, and the process may end before the thread has closed the files.
#[derive(Debug)]
pub(crate) struct WorkerPause {
    worker: Arc<Worker>,
    taken: bool,
}

impl WorkerPause {
    pub(crate) fn new(worker: &Arc<Worker>) -> WorkerPause {
        WorkerPause { worker: worker.clone(), taken: false }
    }

    /// Pauses the worker thread until this is dropped. It does not wait for ever, and does nothing on the worker thread
    /// itself.
    pub(crate) fn begin(&mut self) {
        let mut state = self.worker.lock();
        if state.thread == Some(std::thread::current().id()) {
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
            let spawned = std::thread::Builder::new().name("floodgate-worker".into()).spawn(move || worker.run());
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

    fn run(&self) {
        self.lock().thread = Some(std::thread::current().id());
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

    /// Works, and returns after how long to work next; `None` when there is nothing to work for any more.
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
            // A chore that panics, perhaps in a user's clock, must not end the others for ever.
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
