//! The worker thread. It serves the queues that no other thread can, renews leases and sweeps. It is started when first
//! needed, is tied to no runtime, and ends with the last handle of its cache.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

const AFTER_A_PANIC: Duration = Duration::from_millis(20);

thread_local! {
    static ON_A_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is a worker, of whichever cache.
pub(crate) fn on_a_worker() -> bool {
    ON_A_WORKER.try_with(Cell::get).unwrap_or(false)
}

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
        ON_A_WORKER.set(true);
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
        let chores = self.chores.get().filter(|_| !self.lock().closed)?.upgrade()?;
        // A chore that panics, perhaps in a user's clock, must not end the others for ever.
        Some(catch_unwind(AssertUnwindSafe(|| chores.work())).unwrap_or(AFTER_A_PANIC))
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
