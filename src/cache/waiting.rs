//! The waiters of this process, one queue a key, first come first served. Only the first of a queue looks at the row.

use super::record::Key;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Waker,
};

#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<HashMap<[u8; 16], VecDeque<Arc<Waiter>>>>);

#[derive(Debug, Default)]
struct Waiter {
    /// What is waited for may be free, or this waiter has become the first.
    called: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Waiter {
    fn call(&self) {
        self.called.store(true, SeqCst);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], VecDeque<Arc<Waiter>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_empty(&self, key: &Key) -> bool {
        !self.lock().contains_key(&key.hash)
    }

    /// What is waited for was released here: the first waiter should look.
    pub(crate) fn call_first(&self, key: &Key) {
        let first = self.lock().get(&key.hash).and_then(|queue| queue.front().cloned());
        if let Some(first) = first {
            first.call();
        }
    }
}

/// A place in a queue, given up when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    queues: Arc<Queues>,
    key: Key,
    waiter: Arc<Waiter>,
}

impl Ticket {
    /// The last place, called at once: what is waited for may have become free meanwhile.
    pub(crate) fn draw(queues: &Arc<Queues>, key: Key) -> Ticket {
        let waiter = Arc::new(Waiter::default());
        waiter.called.store(true, SeqCst);
        queues.lock().entry(key.hash).or_default().push_back(waiter.clone());
        Ticket { queues: queues.clone(), key, waiter }
    }

    pub(crate) fn is_first(&self) -> bool {
        self.queues
            .lock()
            .get(&self.key.hash)
            .and_then(|queue| queue.front())
            .is_some_and(|first| Arc::ptr_eq(first, &self.waiter))
    }

    /// Whether it was called since it was last asked; the waker is woken by the next call.
    pub(crate) fn called(&self, waker: &Waker) -> bool {
        *self.waiter.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.waiter.called.swap(false, SeqCst)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        let Some(queue) = queues.get_mut(&self.key.hash) else { return };
        let was_first = queue.front().is_some_and(|first| Arc::ptr_eq(first, &self.waiter));
        queue.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
        let next = queue.front().cloned();
        if next.is_none() {
            queues.remove(&self.key.hash);
        }
        drop(queues);
        if let Some(next) = next.filter(|_| was_first) {
            next.call();
        }
    }
}
