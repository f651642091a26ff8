//! The housekeeping thread: serves the queues that nobody else can, renews leases, sweeps. Started when first needed,
//! tied to no runtime, gone with the last handle of its cache.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

const AFTER_A_PANIC: Duration = Duration::from_millis(20);

/// What the thread does each time it is woken; the answer is when it wants to be woken next.
pub(crate) trait Chores: Send + Sync + 'static {
    fn work(&self) -> Duration;
}

/// Wakes the housekeeping thread, which it starts when it rings for the first time.
#[derive(Default)]
pub(crate) struct Bell {
    state: Mutex<State>,
    changed: Condvar,
    chores: OnceLock<Weak<dyn Chores>>,
}

#[derive(Default)]
struct State {
    rung: bool,
    started: bool,
    closed: bool,
}

impl Bell {
    pub(crate) fn serve(&self, chores: Weak<dyn Chores>) {
        let _ = self.chores.set(chores);
    }

    pub(crate) fn ring(self: &std::sync::Arc<Self>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.rung = true;
        if !state.started {
            let bell = self.clone();
            let spawned = std::thread::Builder::new().name("floodgate-keeper".into()).spawn(move || bell.keep());
            state.started = spawned.is_ok();
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        while let Some(chores) = self.chores.get().and_then(Weak::upgrade) {
            // A chore that panics, by a user's clock perhaps, must not end the others for ever.
            let pause = catch_unwind(AssertUnwindSafe(|| chores.work())).unwrap_or(AFTER_A_PANIC);
            drop(chores);
            let deadline = Instant::now() + pause;
            let mut state = self.lock();
            while !state.rung && !state.closed {
                let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                    break;
                };
                state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.closed {
                return;
            }
            state.rung = false;
        }
    }
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell").finish_non_exhaustive()
    }
}
