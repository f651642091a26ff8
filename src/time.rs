//! Clocks, which tell the time and sleep, as `time_func` and `sleep_func` do in python-diskcache.
//!
//! A [`Clock`] belongs to a handle of the cache ([`Builder::clock`](crate::Builder::clock)), never to the shared files.
//! [`System`] is the one for production; [`Steady`] follows `tokio::time::pause` in tests; [`clock_fn`] is made of two
//! closures.

use hyper::rt::{Sleep, Timer};
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

mod thread_timer;
pub use thread_timer::ThreadTimer;

/// A clock: it tells the time and sleeps.
///
/// All processes that share a directory must agree on [`now`](Clock::now), so a clock of your own is for tests and
/// simulations within one process.
pub trait Clock: Send + Sync + 'static {
    /// Machine time: nanoseconds matter, the origin does not, and it never runs backwards.
    fn now(&self) -> Duration;

    /// The calendar's time, read for HTTP dates and for the windows of a calendar. It may step.
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    /// A future that ends after `delay`.
    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>>;

    /// Whether this may be the time of a paused runtime. The calling thread then waits for its writes: a runtime that
    /// only waits for another thread counts as idle and advances to its next timer.
    fn may_be_paused(&self) -> bool {
        false
    }
}

/// Machine time (`CLOCK_BOOTTIME`: the same in every process, deaf to clock steps, counting through suspend) with the
/// sleeps of any [`hyper::rt::Timer`].
#[derive(Clone, Copy, Debug, Default)]
pub struct System<T>(pub T);

impl<T: Timer + Send + Sync + 'static> Clock for System<T> {
    fn now(&self) -> Duration {
        boot_time()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        self.0.sleep(delay)
    }
}

/// A span in ns. A span that does not fit is as good as for ever.
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since the machine started, counting through suspend.
pub(crate) fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(feature = "tokio")]
pub use with_tokio::{Steady, TokioTimer};

#[cfg(feature = "tokio")]
mod with_tokio {
    use super::*;
    use std::{
        cell::Cell,
        panic::{UnwindSafe, catch_unwind},
        time::Instant,
    };

    /// Tokio's timer, where there is one. Outside a tokio runtime, and on one that was built without
    /// [`enable_time`](tokio::runtime::Builder::enable_time), it is a [`ThreadTimer`].
    ///
    /// A runtime does not tell whether it has a timer, but panics without one. So each thread of such a runtime logs one
    /// panic, which is caught. Where panics abort the process, this always is a [`ThreadTimer`].
    #[derive(Clone, Copy, Debug, Default)]
    #[non_exhaustive]
    pub struct TokioTimer;

    impl Timer for TokioTimer {
        fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
            match on_this_runtime(|| tokio::time::sleep(delay)) {
                Some(sleep) => Box::pin(Nap(sleep)),
                None => ThreadTimer.sleep(delay),
            }
        }

        fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
            match on_this_runtime(|| tokio::time::sleep_until(deadline.into())) {
                Some(sleep) => Box::pin(Nap(sleep)),
                None => ThreadTimer.sleep_until(deadline),
            }
        }

        fn now(&self) -> Instant {
            tokio::time::Instant::now().into()
        }
    }

    thread_local! {
        /// This thread has met a runtime without a timer.
        static WITHOUT_TIMER: Cell<bool> = const { Cell::new(false) };
    }

    /// `None` where no runtime is, or one without a timer.
    fn on_this_runtime(sleep: impl FnOnce() -> tokio::time::Sleep + UnwindSafe) -> Option<tokio::time::Sleep> {
        if cfg!(panic = "abort") || WITHOUT_TIMER.get() || tokio::runtime::Handle::try_current().is_err() {
            return None;
        }
        let sleep = catch_unwind(sleep).ok();
        if sleep.is_none() {
            WITHOUT_TIMER.set(true);
            tracing::warn!(
                "this tokio runtime has no timer: a thread wakes what waits; `enable_time` on the runtime's builder is cheaper"
            );
        }
        sleep
    }

    /// A clock that follows the time of one tokio runtime, so that a test can `tokio::time::pause` and `advance` it
    /// (tokio's feature `test-util`).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_floodgate::{Cache, throttle::Rate, time::Steady};
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let cache = Cache::builder_temporary().state_size(1 << 20).clock(Steady::new()).open().unwrap();
    /// let limit = cache.throttle("mails", Rate::new(1, Duration::from_secs(60)));
    /// limit.check().await.unwrap();
    /// assert!(limit.check().await.is_err());
    /// tokio::time::advance(Duration::from_secs(60)).await;
    /// limit.check().await.unwrap();
    /// # }
    /// ```
    ///
    /// Never use it beside another process: paused time is known to this one only.
    #[derive(Clone, Debug)]
    pub struct Steady {
        runtime: tokio::runtime::Handle,
        began: tokio::time::Instant,
        machine: Duration,
        wall: SystemTime,
    }

    impl Steady {
        /// A clock that reads machine time once and follows the current runtime from there.
        ///
        /// # Panics
        ///
        /// Outside a tokio runtime.
        #[allow(clippy::new_without_default)]
        pub fn new() -> Self {
            Steady {
                runtime: tokio::runtime::Handle::current(),
                began: tokio::time::Instant::now(),
                machine: boot_time(),
                wall: SystemTime::now(),
            }
        }

        fn elapsed(&self) -> Duration {
            // Other threads (the worker) must see the runtime's paused time too.
            let _context = self.runtime.enter();
            self.began.elapsed()
        }
    }

    impl Clock for Steady {
        fn now(&self) -> Duration {
            self.machine + self.elapsed()
        }

        fn wall(&self) -> SystemTime {
            self.wall + self.elapsed()
        }

        fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
            let _context = self.runtime.enter();
            Box::pin(Nap(tokio::time::sleep(delay)))
        }

        fn may_be_paused(&self) -> bool {
            true
        }
    }
}

/// A clock made of two closures: no runtime, no system time.
///
/// ```
/// use std::{sync::atomic::{AtomicU64, Ordering::SeqCst}, sync::Arc, time::Duration};
/// use tower_floodgate::{Cache, time::clock_fn};
///
/// let seconds = Arc::new(AtomicU64::new(1_000));
/// let (now, sleep) = (seconds.clone(), seconds.clone());
/// let clock = clock_fn(
///     move || Duration::from_secs(now.load(SeqCst)),
///     move |delay| { sleep.fetch_add(delay.as_secs() + 1, SeqCst); std::future::ready(()) },
/// );
/// let cache = Cache::builder_temporary().clock(clock).open()?;
/// # let _ = cache;
/// # Ok::<(), tower_floodgate::Error>(())
/// ```
pub fn clock_fn<N, S, F>(now: N, sleep: S) -> impl Clock
where
    N: Fn() -> Duration + Send + Sync + 'static,
    S: Fn(Duration) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + Sync + 'static,
{
    Closures { now, sleep }
}

struct Closures<N, S> {
    now: N,
    sleep: S,
}

impl<N, S> fmt::Debug for Closures<N, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

impl<N, S, F> Clock for Closures<N, S>
where
    N: Fn() -> Duration + Send + Sync + 'static,
    S: Fn(Duration) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + Sync + 'static,
{
    fn now(&self) -> Duration {
        (self.now)()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap((self.sleep)(delay)))
    }
}

#[pin_project]
struct Nap<F>(#[pin] F);

impl<F: Future<Output = ()>> Future for Nap<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().0.poll(cx)
    }
}

impl<F: Future<Output = ()> + Send + Sync> Sleep for Nap<F> {}
