//! The result of an operation that may have been queued: a future that can also be waited for on a plain thread.
//!
//! Not the crate oneshot: in 0.2.1, a receiver that is dropped while its sender sends frees what the sender still uses
//! (faern/oneshot#87), and dropping the future of a queued operation is everyday here.

use crate::store::os::sync::{Mutex, MutexGuard};
use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// Where the result of a queued operation is left for its future.
#[derive(Debug)]
pub(crate) struct Slot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    /// Taken by the future, or the future is gone.
    Over,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Slot(Mutex::new(State::Waiting(None))))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the result. If nobody waits for it any more it is dropped, which undoes what has an undo.
    pub(crate) fn fill(&self, value: T) {
        let mut state = self.lock();
        let before = match &*state {
            State::Waiting(_) => std::mem::replace(&mut *state, State::Done(value)),
            _ => {
                drop(state);
                return drop(value);
            }
        };
        drop(state);
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }

    pub(crate) fn abandoned(&self) -> bool {
        matches!(&*self.lock(), State::Over)
    }
}

/// The result of an operation: there at once, or once the queue has been served. Dropped early, a queued operation is
/// removed and a done one undone by the drop of its result.
#[derive(Debug)]
pub(crate) enum Pending<T> {
    Ready(Option<T>),
    Queued(Arc<Slot<T>>),
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    pub(crate) fn ready(value: T) -> Self {
        Pending::Ready(Some(value))
    }

    /// The result, if it is there already.
    pub(crate) fn now(&mut self) -> Option<T> {
        match self {
            Pending::Ready(value) => value.take(),
            Pending::Queued(_) => None,
        }
    }

    /// Blocks the thread until the result is there.
    pub(crate) fn wait(self) -> T {
        block_on(self)
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            Pending::Ready(value) => Poll::Ready(value.take().expect("polled after completion")),
            Pending::Queued(slot) => {
                // Wakers are the user's: they are cloned and dropped outside the lock.
                let waker = cx.waker().clone();
                let mut state = slot.lock();
                let next = if let State::Waiting(_) = *state { State::Waiting(Some(waker)) } else { State::Over };
                let before = std::mem::replace(&mut *state, next);
                drop(state);
                match before {
                    State::Done(value) => Poll::Ready(value),
                    State::Waiting(_) => Poll::Pending,
                    State::Over => panic!("polled after completion"),
                }
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Pending::Queued(slot) = self {
            // The value, if there is one, is dropped outside the lock: its drop may post an undo.
            let state = std::mem::replace(&mut *slot.lock(), State::Over);
            drop(state);
        }
    }
}

/// Runs a future on this thread, without a runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let future = std::pin::pin!(future);
    block_on_until(future, None).expect("there is no deadline")
}

/// As `block_on`, until a time; `None` if it was not ready by then.
pub(crate) fn block_on_until<T>(mut future: Pin<&mut impl Future<Output = T>>, deadline: Option<Instant>) -> Option<T> {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        let alarm = ALARM.replace(None);
        let polled = future.as_mut().poll(&mut cx);
        let next = ALARM.replace(alarm).into_iter().chain(deadline).min();
        if let Poll::Ready(value) = polled {
            return Some(value);
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return None;
        }
        match next {
            None => std::thread::park(),
            Some(next) => std::thread::park_timeout(next.saturating_duration_since(now)),
        }
    }
}

thread_local! {
    /// When the future that is being polled by `block_on` wants to be polled again.
    static ALARM: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A sleep in real time for who is polled by `block_on`, and so needs no timer.
pub(crate) async fn sleep_on_thread(span: Duration) {
    let Some(end) = Instant::now().checked_add(span) else { return std::future::pending().await };
    std::future::poll_fn(|_| {
        if Instant::now() >= end {
            return Poll::Ready(());
        }
        ALARM.set(ALARM.get().into_iter().chain([end]).min());
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    /// A waker that is the last to hold a task, whose drop may come to the queue and ask there who still waits.
    struct Asking(Arc<Slot<()>>, Arc<AtomicUsize>);

    impl Wake for Asking {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Asking {
        fn drop(&mut self) {
            assert!(self.0.0.try_lock().is_ok(), "the drop of a waker would wait for ever");
            self.1.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn wakers_are_dropped_outside_the_lock() {
        let (slot, dropped) = (Slot::new(), Arc::new(AtomicUsize::new(0)));
        let mut pending = Pending::Queued(slot.clone());
        let mut poll = || {
            let waker = Waker::from(Arc::new(Asking(slot.clone(), dropped.clone())));
            Pin::new(&mut pending).poll(&mut Context::from_waker(&waker))
        };
        assert!(poll().is_pending() && poll().is_pending());
        assert_eq!(dropped.load(SeqCst), 1, "another one takes the place of the first");
        slot.fill(());
        assert_eq!(dropped.load(SeqCst), 2, "it was woken");
        assert!(poll().is_ready());
        assert_eq!(dropped.load(SeqCst), 3);
    }
}
