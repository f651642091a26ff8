//! Who waits in this process, and how they are called.

use super::record::Key;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
};

#[derive(Debug, Default)]
pub(crate) struct Calls(Mutex<HashMap<u64, Arc<Waiter>>>);

pub(crate) trait Watch: Send + Sync {
    fn look(self: Arc<Self>);
}

#[derive(Debug, Default)]
struct Waiter {
    called: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Whether a call arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Yes,
    No,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Waiter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(self: &Arc<Self>, _: Key, number: u64, _: Arc<dyn Watch>) -> Call {
        let waiter = Arc::new(Waiter::default());
        self.lock().insert(number, waiter.clone());
        Call { calls: self.clone(), number, waiter }
    }

    pub(crate) fn call(&self, number: u64) -> bool {
        let waiter = self.lock().get(&number).cloned();
        let Some(waiter) = waiter else { return false };
        waiter.called.store(true, SeqCst);
        let waker = waiter.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

#[derive(Debug)]
pub(crate) struct Call {
    calls: Arc<Calls>,
    number: u64,
    waiter: Arc<Waiter>,
}

impl Call {
    pub(crate) fn called(&self, waker: &Waker) -> bool {
        *self.waiter.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.waiter.called.swap(false, SeqCst)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.lock().remove(&self.number);
    }
}
