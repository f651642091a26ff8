//! The worker threads. They serve the queues that no other thread can, renew leases and sweep. Each is started when first
//! needed, is tied to no runtime, and ends with the last handle of its cache.

use crate::log_limit::LogLimit;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread::ThreadId,
    time::{Duration, Instant},
};

const AFTER_A_PANIC: Duration = Duration::from_millis(20);

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
    /// The thread is at work, or a handle is being dropped.
    busy: bool,
    thread: Option<ThreadId>,
}

/// How long the drop of a handle waits for the threads.
const PAUSED_WITHIN: Duration = Duration::from_secs(1);

/// Keeps worker threads from work while a handle is dropped. Otherwise a thread may hold the last reference to the shared
/// state, and the process may end before the thread has closed the files.
#[derive(Debug)]
pub(crate) struct WorkerPause {
    workers: Vec<Arc<Worker>>,
    /// Those that are kept from work.
    paused: Vec<Arc<Worker>>,
}

impl WorkerPause {
    pub(crate) fn new(workers: impl IntoIterator<Item = Arc<Worker>>) -> WorkerPause {
        WorkerPause { workers: workers.into_iter().collect(), paused: Vec::new() }
    }

    /// Pauses the worker threads until this is dropped. It does not wait for ever, and does nothing on a worker thread.
    pub(crate) fn begin(&mut self) {
        if self.workers.iter().any(|worker| worker.is_this_thread()) {
            return;
        }
        let deadline = Instant::now() + PAUSED_WITHIN;
        self.paused = self.workers.iter().filter(|worker| worker.pause(deadline)).cloned().collect();
    }
}

impl Drop for WorkerPause {
    fn drop(&mut self) {
        for worker in self.paused.drain(..) {
            worker.lock().busy = false;
            worker.changed.notify_all();
        }
    }
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

    fn is_this_thread(&self) -> bool {
        self.lock().thread == Some(std::thread::current().id())
    }

    /// Waits until the thread rests, and keeps it from work. `false`: it did not rest by then.
    fn pause(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), left, |state| state.busy);
        let (mut state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        let rests = !late.timed_out();
        state.busy |= rests;
        rests
    }

    fn run(&self) {
        {
            let mut state = self.lock();
            state.thread = Some(std::thread::current().id());
            state.notified = false;
        }
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
        let mut state = self.lock();
        while state.busy && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.busy = true;
        drop(state);
        let pause = self.chores.get().and_then(|chores| {
            // A chore that panics, perhaps in a user's clock, must not end the others for ever.
            catch_unwind(AssertUnwindSafe(chores)).unwrap_or(Some(AFTER_A_PANIC))
        });
        self.lock().busy = false;
        self.changed.notify_all();
        pause
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}
