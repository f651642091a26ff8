//! How the holder of a lock learns that it is lost.
//!
//! Not the crate event-listener, which wakes and drops wakers under its lock: one that panics keeps the others from being
//! told, and one that is the last to hold another who waits never returns. Both are tested below.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, Waker},
};

/// Something that happens once, and those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Signal {
    begun: AtomicBool,
    is_set: AtomicBool,
    next: AtomicU64,
    wakers: Mutex<Vec<(u64, Waker)>>,
}

impl Signal {
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(SeqCst)
    }

    /// Does `first` if this is the first time, before anybody is told.
    pub(super) fn set(&self, first: impl FnOnce()) {
        if self.begun.swap(true, SeqCst) {
            return;
        }
        // Those who are to be told must not suffer from it.
        let _ = catch_unwind(AssertUnwindSafe(first));
        self.is_set.store(true, SeqCst);
        let wakers = std::mem::take(&mut *self.wakers());
        for (_, waker) in wakers {
            // Whoever else is to be told must not suffer from it.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<(u64, Waker)>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The future of a lock's loss, see [`Guard::lost`](super::Guard::lost). It may be kept when the guard is gone.
#[must_use = "futures do nothing unless polled"]
#[derive(Debug)]
pub struct Lost {
    signal: Arc<Signal>,
    id: u64,
}

impl Lost {
    pub(super) fn new(signal: &Arc<Signal>) -> Lost {
        Lost { signal: signal.clone(), id: signal.next.fetch_add(1, Relaxed) }
    }
}

impl Clone for Lost {
    fn clone(&self) -> Self {
        Lost::new(&self.signal)
    }
}

impl Future for Lost {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.is_set() {
            return Poll::Ready(());
        }
        // Wakers are the user's: they are cloned and dropped outside the lock.
        let waker = cx.waker().clone();
        let mut wakers = self.signal.wakers();
        let before = match wakers.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, before)) => Some(std::mem::replace(before, waker)),
            None => {
                wakers.push((self.id, waker));
                None
            }
        };
        drop(wakers);
        drop(before);
        // It may have been set just before the waker was left.
        if self.signal.is_set() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        let mut wakers = self.signal.wakers();
        let at = wakers.iter().position(|(id, _)| *id == self.id);
        let waker = at.map(|at| wakers.swap_remove(at));
        drop(wakers);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    struct Panicking;

    impl Wake for Panicking {
        fn wake(self: Arc<Self>) {
            panic!("as a user's waker may");
        }
    }

    /// A waker that is the last to hold somebody who waits, as that of a task which nobody runs any more.
    struct Keeping(#[expect(dead_code)] Lost);

    impl Wake for Keeping {
        fn wake(self: Arc<Self>) {}
    }

    fn poll(lost: &mut Lost, waker: &Waker) -> Poll<()> {
        Pin::new(lost).poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn a_waker_that_panics_keeps_nobody_from_being_told() {
        let signal = Arc::new(Signal::default());
        let told = Arc::new(Keeping(Lost::new(&signal)));
        let (mut first, mut second) = (Lost::new(&signal), Lost::new(&signal));
        assert!(poll(&mut first, &Arc::new(Panicking).into()).is_pending());
        assert!(poll(&mut second, &told.clone().into()).is_pending());
        assert_eq!(Arc::strong_count(&told), 2);
        let mut before = Vec::new();
        for _ in 0..2 {
            signal.set(|| before.push((signal.is_set(), Arc::strong_count(&told))));
        }
        assert_eq!(before, [(false, 2)], "once, before anybody is told");
        assert_eq!(Arc::strong_count(&told), 1, "it was woken");
    }

    #[test]
    fn a_waker_may_be_the_last_to_hold_another_who_waits() {
        let signal = Arc::new(Signal::default());
        let mut lost = Lost::new(&signal);
        for _ in 0..2 {
            let keeping = Arc::new(Keeping(Lost::new(&signal)));
            assert!(poll(&mut lost, &keeping.into()).is_pending());
        }
        drop(lost);
        assert!(signal.wakers().is_empty());
    }
}
