//! What waits without tokio's timer: on a runtime that has none, and on no runtime at all.

use std::{
    convert::Infallible,
    future::Future,
    panic::{RefUnwindSafe, UnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{BarrierLayer, Cache, Semaphore, StampedeCacheLayer, ThrottleLayer, throttle::Rate};

/// An executor without anything but wakers.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park();
    }
}

/// Everything that sleeps: a turn that is waited for, a contended lock, a wait that ends, a flight with a deadline.
async fn wait_for_everything() {
    let cache = Cache::builder_temporary().state_size(1 << 20).patience(Duration::from_secs(30)).open().unwrap();
    let limit = cache.throttle("turns", Rate::new(1, Duration::from_millis(100)));
    for _ in 0..3 {
        limit.acquire().await.unwrap();
    }

    let held = cache.lock("l").acquire().await.unwrap();
    assert!(cache.lock("l").acquire_timeout(Duration::from_millis(50)).await.is_err());
    let second = cache.lock("l");
    let waiter = thread::spawn(move || block_on(second.acquire()).map(drop));
    thread::yield_now();
    held.release().await.unwrap();
    waiter.join().unwrap().unwrap();

    let memo = StampedeCacheLayer::memoize(cache.scope("m"), Duration::from_secs(60));
    let service = memo.layer(service_fn(|n: u32| async move { Ok::<_, Infallible>(n) }));
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
}

#[test]
fn a_runtime_without_a_timer_waits_all_the_same() {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(wait_for_everything());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async { tokio::spawn(wait_for_everything()).await.unwrap() });
}

#[test]
fn without_a_runtime_too() {
    block_on(wait_for_everything());
}

fn is_unwind_safe<T: UnwindSafe + RefUnwindSafe>(_: &T) {}

#[test]
fn caches_may_be_used_across_a_caught_panic() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    is_unwind_safe(&cache);
    is_unwind_safe(cache.root());
    let rate = Rate::new(1, Duration::from_secs(1));
    is_unwind_safe(&cache.throttle("t", rate));
    is_unwind_safe(&cache.lock("l"));
    is_unwind_safe(&cache.lock("l").try_acquire_blocking().unwrap());
    is_unwind_safe(&ThrottleLayer::new(cache.scope("t"), 1, Duration::from_secs(1)));
    is_unwind_safe(&BarrierLayer::new(cache.scope("b"), Semaphore(1)));
    let panics = || {
        cache.insert("x", &1).wait().unwrap();
        panic!("on purpose")
    };
    assert!(catch_unwind(panics).is_err());
    assert_eq!(cache.get::<u32>("x").unwrap(), Some(1));
}
