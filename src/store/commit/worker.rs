//! The worker threads. They serve the queues that no other thread can, renew leases and sweep. Each is started when first
//! needed, is tied to no runtime, and ends with the last handle of its cache.

use crate::log_limit::LogLimit;
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
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

/// The work that a thread does each time it is woken. The result says after how long it wants to be woken next; `None`:
/// there is nothing to work for any more.
type Chores = Box<dyn Fn() -> Option<Duration> + Send + Sync>;

/// Wakes a worker thread, and starts it at the first notify.
pub(crate) struct Worker {
    name: &'static str,
    state: Mutex<State>,
    changed: Condvar,
    chores: OnceLock<Chores>,
    refused: LogLimit,
}

#[derive(Default)]
struct State {
    notified: bool,
    started: bool,
    closed: bool,
}

impl Worker {
    /// A thread of that name, which is not started yet.
    pub(crate) fn new(name: &'static str) -> Arc<Worker> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        Arc::new(Worker { name, state, changed, chores: OnceLock::new(), refused: LogLimit::default() })
    }

    pub(crate) fn serve(&self, chores: impl Fn() -> Option<Duration> + Send + Sync + 'static) {
        let _ = self.chores.set(Box::new(chores));
    }

    /// Makes the thread work now. `false`: it could not be started.
    pub(crate) fn notify(self: &Arc<Self>) -> bool {
        self.lock().notified = true;
        let started = self.start();
        self.changed.notify_all();
        started
    }

    /// Starts the thread, if that has not been done. `false`: it could not be.
    pub(crate) fn start(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        if state.started || state.closed {
            return true;
        }
        let worker = self.clone();
        let spawned = std::thread::Builder::new().name(self.name.into()).spawn(move || worker.run());
        state.started = spawned.is_ok();
        drop(state);
        if let Err(error) = &spawned
            && self.refused.allows()
        {
            tracing::warn!(%error, thread = self.name, "a thread could not be started: callers do its work, or fail");
        }
        spawned.is_ok()
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
        self.lock().notified = false;
        while let Some(pause) = self.work() {
            let began = Instant::now();
            let mut state = self.lock();
            while !state.notified && !state.closed {
                let left = pause.saturating_sub(began.elapsed());
                if left.is_zero() {
                    break;
                }
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            state.notified = false;
        }
    }

    /// Works, and returns after how long to work next; `None` when there is nothing to work for any more.
    fn work(&self) -> Option<Duration> {
        let chores = self.chores.get().filter(|_| !self.lock().closed)?;
        // A chore that panics, perhaps in a user's clock, must not end the others for ever.
        catch_unwind(AssertUnwindSafe(chores)).unwrap_or(Some(AFTER_A_PANIC))
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}
