//! A timer for where no runtime has one: a thread that wakes what sleeps.

use hyper::rt::{Sleep, Timer};
use std::{
    collections::BTreeMap,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// How long the thread stays when nothing sleeps.
const IDLE: Duration = Duration::from_secs(10);
/// How many sleepers the thread takes out at once: others come and go meanwhile.
const BATCH: usize = 64;
/// How long a thread that polls a sleep waits itself, if the timer has no thread.
const WITHOUT_A_THREAD: Duration = Duration::from_millis(1);

/// A timer that needs no runtime. A thread of its own wakes what sleeps, with any executor. It is started by the first
/// sleep and ends when nothing has slept for ten seconds. While the system has no thread to give, the thread that polls
/// a sleep is held for up to a millisecond each time.
///
/// ```
/// use tower_floodgate::{Cache, time::{System, ThreadTimer}};
///
/// let cache = Cache::builder_temporary().clock(System(ThreadTimer)).open()?;
/// # let _ = cache;
/// # Ok::<(), tower_floodgate::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ThreadTimer;

impl Timer for ThreadTimer {
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(ThreadSleep { until: Instant::now().checked_add(delay), number: None })
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(ThreadSleep { until: Some(deadline), number: None })
    }
}

struct ThreadSleep {
    /// `None`: beyond all time.
    until: Option<Instant>,
    /// Given by the timer at the first poll.
    number: Option<u64>,
}

impl Sleep for ThreadSleep {}

impl Future for ThreadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until else { return Poll::Pending };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Poll::Ready(());
        }
        // Wakers are the user's code: they are cloned and dropped outside the lock.
        let waker = cx.waker().clone();
        let (mut sleepers, of_a_parent) = sleepers();
        let number = *self.number.get_or_insert_with(|| {
            sleepers.numbers += 1;
            sleepers.numbers
        });
        let before = sleepers.wakers.insert((until, number), waker);
        let is_next = sleepers.wakers.first_key_value().is_some_and(|(&(_, first), _)| first == number);
        if !sleepers.has_thread {
            let started = thread::Builder::new().name("floodgate-timer".into()).spawn(run);
            sleepers.has_thread = started.is_ok();
        }
        let has_thread = sleepers.has_thread;
        drop(sleepers);
        drop((before, of_a_parent));
        if !has_thread {
            thread::sleep(left.min(WITHOUT_A_THREAD));
            cx.waker().wake_by_ref();
        } else if is_next {
            CHANGED.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for ThreadSleep {
    fn drop(&mut self) {
        if let (Some(until), Some(number)) = (self.until, self.number) {
            let (mut sleepers, of_a_parent) = sleepers();
            let waker = sleepers.wakers.remove(&(until, number));
            drop(sleepers);
            drop((waker, of_a_parent));
        }
    }
}

static SLEEPERS: Mutex<Sleepers> =
    Mutex::new(Sleepers { wakers: BTreeMap::new(), numbers: 0, has_thread: false, process: 0 });
static CHANGED: Condvar = Condvar::new();

type Wakers = BTreeMap<(Instant, u64), Waker>;

struct Sleepers {
    wakers: Wakers,
    numbers: u64,
    has_thread: bool,
    /// A forked child has neither the thread of its parent nor the tasks that sleep there.
    process: u32,
}

fn lock() -> MutexGuard<'static, Sleepers> {
    SLEEPERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sleepers of this process, and those that were copied from its parent, which are to be dropped outside the lock.
fn sleepers() -> (MutexGuard<'static, Sleepers>, Wakers) {
    let process = std::process::id();
    let mut sleepers = lock();
    let mut of_a_parent = Wakers::new();
    if sleepers.process != process {
        of_a_parent = std::mem::take(&mut sleepers.wakers);
        (sleepers.has_thread, sleepers.process) = (false, process);
    }
    (sleepers, of_a_parent)
}

fn run() {
    let mut sleepers = lock();
    loop {
        let now = Instant::now();
        let mut due = Vec::new();
        while due.len() < BATCH
            && let Some(first) = sleepers.wakers.first_entry().filter(|first| first.key().0 <= now)
        {
            due.push(first.remove());
        }
        if !due.is_empty() {
            drop(sleepers);
            // A waker that panics must not end the thread on which all others rely.
            due.into_iter().for_each(|waker| drop(catch_unwind(AssertUnwindSafe(|| waker.wake()))));
            sleepers = lock();
            continue;
        }
        let next = sleepers.wakers.first_key_value().map(|(&(next, _), _)| next.saturating_duration_since(now));
        let (awake, wait) =
            CHANGED.wait_timeout(sleepers, next.unwrap_or(IDLE)).unwrap_or_else(PoisonError::into_inner);
        sleepers = awake;
        if next.is_none() && wait.timed_out() && sleepers.wakers.is_empty() {
            sleepers.has_thread = false;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::block_on;
    use std::{
        sync::{Arc, mpsc},
        task::Wake,
    };

    struct Tell(mpsc::Sender<usize>, usize);

    impl Wake for Tell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.send(self.1);
            assert_ne!(self.1, 0, "on purpose");
        }
    }

    #[test]
    fn sleepers_are_woken_in_their_order_and_those_that_are_gone_are_not() {
        let (woken, told) = mpsc::channel();
        let start = |number: usize, delay: u64| {
            let mut sleep = ThreadTimer.sleep(Duration::from_millis(delay));
            let waker = Waker::from(Arc::new(Tell(woken.clone(), number)));
            // Polled again by another task, it wakes that one only.
            let before = Waker::from(Arc::new(Tell(woken.clone(), 99)));
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&before)).is_pending());
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            sleep
        };
        // The first to be woken panics.
        let mut sleeping = [(3, 400), (0, 100), (1, 200), (2, 300)].map(|(number, delay)| start(number, delay));
        drop(start(4, 250));
        assert_eq!([(); 4].map(|()| told.recv().unwrap()), [0, 1, 2, 3]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(sleeping.iter_mut().all(|sleep| sleep.as_mut().poll(&mut cx).is_ready()));
    }

    #[test]
    fn thousands_sleep_at_once() {
        let (ended, wait) = mpsc::channel();
        for _ in 0..4 {
            let ended = ended.clone();
            thread::spawn(move || {
                let mut sleeps: Vec<_> = (0..1000).map(|n| ThreadTimer.sleep(Duration::from_micros(n * 50))).collect();
                block_on(std::future::poll_fn(|cx| {
                    sleeps.retain_mut(|sleep| sleep.as_mut().poll(cx).is_pending());
                    if sleeps.is_empty() { Poll::Ready(()) } else { Poll::Pending }
                }));
                ended.send(()).unwrap();
            });
        }
        (0..4).for_each(|_| wait.recv().unwrap());
        block_on(ThreadTimer.sleep_until(Instant::now()));
    }
}
