//! The result of an operation that may have been queued: a future on which a plain thread can also wait.
//!
//! It does not use the crate oneshot: in 0.2.1, a receiver that is dropped while its sender sends frees memory that the
//! sender still uses (faern/oneshot#87), and futures of queued operations are often dropped here.

use crate::store::os::sync::{AtomicBool, Mutex, MutexGuard};
use std::{
    any::Any,
    cell::Cell,
    fmt,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, PoisonError, Weak, atomic::Ordering::SeqCst},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// The place where the result of a queued operation is left for its future.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    state: Mutex<State<T>>,
    /// The future shall help the queue on when it is polled next.
    called: AtomicBool,
}

#[derive(Debug)]
struct State<T> {
    phase: Phase<T>,
    /// The caller has been told that the operation failed, so it must not be committed any more.
    given_up: bool,
}

#[derive(Debug)]
enum Phase<T> {
    Waiting(Option<Waker>),
    /// The operation is about to be committed.
    Sealed(Option<Waker>),
    Done(Outcome<T>),
    /// The future has taken the result, or is gone.
    Over,
}

/// A result, or the panic in the place of one.
pub(super) type Outcome<T> = Result<T, Box<dyn Any + Send>>;

impl<T> Slot<T> {
    pub(crate) fn new() -> Arc<Self> {
        let state = State { phase: Phase::Waiting(None), given_up: false };
        Arc::new(Slot { state: Mutex::new(state), called: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the result. If the future is gone, the result is dropped, which undoes the operation if it has an undo.
    pub(crate) fn fill(&self, value: T) {
        self.fill_with(Ok(value));
    }

    /// As `fill`; a panic goes on in the future.
    pub(super) fn fill_with(&self, outcome: Outcome<T>) {
        let mut state = self.lock();
        let before = match &state.phase {
            Phase::Waiting(_) | Phase::Sealed(_) => std::mem::replace(&mut state.phase, Phase::Done(outcome)),
            Phase::Done(_) | Phase::Over => {
                drop(state);
                return drop(outcome);
            }
        };
        drop(state);
        if let Phase::Waiting(Some(waker)) | Phase::Sealed(Some(waker)) = before {
            waker.wake();
        }
    }

    pub(crate) fn abandoned(&self) -> bool {
        let state = self.lock();
        state.given_up || !matches!(state.phase, Phase::Waiting(_) | Phase::Sealed(_))
    }

    /// From now on, the operation cannot be given up. `false`: it has been, before.
    pub(super) fn seal(&self) -> bool {
        let mut state = self.lock();
        if state.given_up {
            return false;
        }
        if let Phase::Waiting(waker) = &mut state.phase {
            state.phase = Phase::Sealed(waker.take());
        }
        true
    }

    /// From now on, the operation must not be committed. `false`: it is too late for that, or nobody waits for it.
    pub(super) fn give_up(&self) -> bool {
        let mut state = self.lock();
        let gives_up = !state.given_up && matches!(state.phase, Phase::Waiting(_));
        state.given_up |= gives_up;
        gives_up
    }

    /// Wakes the future, so that its thread helps the queue on.
    pub(super) fn call(&self) {
        self.called.store(true, SeqCst);
        let mut state = self.lock();
        let waker = match &mut state.phase {
            Phase::Waiting(waker) | Phase::Sealed(waker) => waker.take(),
            Phase::Done(_) | Phase::Over => None,
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        // Wakers are the user's code: they are cloned and dropped outside the lock.
        let waker = Some(cx.waker().clone());
        let mut state = self.lock();
        let next = match state.phase {
            Phase::Waiting(_) => Phase::Waiting(waker),
            Phase::Sealed(_) => Phase::Sealed(waker),
            Phase::Done(_) | Phase::Over => Phase::Over,
        };
        let before = std::mem::replace(&mut state.phase, next);
        drop(state);
        match before {
            Phase::Done(outcome) => Poll::Ready(outcome),
            Phase::Waiting(_) | Phase::Sealed(_) => Poll::Pending,
            Phase::Over => panic!("polled after completion"),
        }
    }
}

/// A queue in which operations wait.
pub(super) trait Queue: Send + Sync {
    /// Serves it, since no other thread does.
    fn help(&self);

    /// Takes an operation out that no caller awaits any more.
    fn forget(&self, number: u64);
}

/// The place of an operation in its queue.
pub(crate) struct Place {
    queue: Weak<dyn Queue>,
    number: u64,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The result of an operation, ready at once or when the queue has been served. If this is dropped early, a queued
/// operation is removed, and the drop of its result undoes a done one.
#[derive(Debug)]
pub(crate) enum Pending<T> {
    Ready(Option<T>),
    Queued(Arc<Slot<T>>, Option<Place>),
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    pub(crate) fn ready(value: T) -> Self {
        Pending::Ready(Some(value))
    }

    /// What will be left in a slot.
    pub(crate) fn of(slot: &Arc<Slot<T>>) -> Self {
        Pending::Queued(slot.clone(), None)
    }

    pub(super) fn queued(slot: Arc<Slot<T>>, queue: Weak<dyn Queue>, number: u64) -> Self {
        Pending::Queued(slot, Some(Place { queue, number }))
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self, Pending::Queued(..))
    }

    /// The result, if it is there already.
    pub(crate) fn now(&mut self) -> Option<T> {
        match self {
            Pending::Ready(value) => value.take(),
            Pending::Queued(..) => None,
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
            Pending::Queued(slot, place) => {
                if slot.called.swap(false, SeqCst)
                    && let Some(queue) = place.as_ref().and_then(|place| place.queue.upgrade())
                {
                    queue.help();
                }
                slot.poll(cx).map(|outcome| outcome.unwrap_or_else(|panic| resume_unwind(panic)))
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        let Pending::Queued(slot, place) = self else { return };
        // The value, if there is one, is dropped outside the lock: its drop may post an undo.
        let before = std::mem::replace(&mut slot.lock().phase, Phase::Over);
        if let (Phase::Waiting(_), Some(Place { queue, number })) = (&before, place)
            && let Some(queue) = queue.upgrade()
        {
            queue.forget(*number);
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

/// A sleep in real time for a future that `block_on` polls. It needs no timer.
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

    /// A waker that holds the last reference to a task. The task's drop may come to the queue and ask whether the
    /// result is still awaited.
    struct Asking(Arc<Slot<()>>, Arc<AtomicUsize>);

    impl Wake for Asking {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Asking {
        fn drop(&mut self) {
            assert!(self.0.state.try_lock().is_ok(), "the drop of a waker would wait for ever");
            self.1.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn wakers_are_dropped_outside_the_lock() {
        let (slot, dropped) = (Slot::new(), Arc::new(AtomicUsize::new(0)));
        let mut pending = Pending::of(&slot);
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
