//! What applies here of python-diskcache's own tests and doctests, on virtual time.

use http::Request;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    future::Future,
    future::IntoFuture,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::yield_now,
    time::{Instant, advance, sleep},
};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_floodgate::{
    Cache, Error, Lock, LockFactory, RLock, Semaphore, StampedeCacheLayer, ThrottleLayer,
    lock::{Owner, Rule},
    name::Args,
    stampede::Serde,
};

#[path = "support/paused.rs"]
mod paused;
use paused::{cache, ms, secs};

/// Waits until so many answers are on disk, while virtual time stands still.
async fn stored(cache: &Cache, answers: u64) {
    while cache.stats().stored < answers {
        yield_now().await;
    }
}

// The documentation's examples of the recipes.

#[tokio::test(start_paused = true)]
async fn doctest_throttle_calls_as_often_as_it_may() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("f"), 2, secs(1)).wait();
    let increment = layer.layer(service_fn(async |_: ()| Ok::<_, BoxError>(())));
    let (began, mut calls) = (Instant::now(), 0);
    while began.elapsed() < secs(2) {
        increment.clone().oneshot(()).await.unwrap();
        calls += 1;
    }
    assert_eq!(calls, 6, "2 at once and one each half a second, the last of which ends the loop");
}

#[tokio::test(start_paused = true)]
async fn doctest_memoized_fibonacci() {
    #[derive(Clone)]
    struct Fib(StampedeCacheLayer<Args, Serde>);
    impl Fib {
        fn of(self, n: u64) -> Pin<Box<dyn Future<Output = Result<u128, BoxError>> + Send>> {
            let me = self.clone();
            Box::pin(self.0.layer(service_fn(move |n| me.clone().compute(n))).oneshot(n))
        }

        fn compute(self, n: u64) -> Pin<Box<dyn Future<Output = Result<u128, BoxError>> + Send>> {
            Box::pin(async move {
                if n < 2 { Ok(n.into()) } else { Ok(self.clone().of(n - 1).await? + self.of(n - 2).await?) }
            })
        }
    }
    let cache = cache();
    let fib = Fib(StampedeCacheLayer::memoize(cache.scope("fib"), secs(3_600)).beta(0.0));
    assert_eq!(fib.clone().of(100).await.unwrap(), 354_224_848_179_261_915_075);
    assert_eq!((cache.stats().misses, cache.stats().hits), (101, 98));
    assert_eq!(fib.clone().of(100).await.unwrap(), 354_224_848_179_261_915_075);
    assert_eq!((cache.stats().misses, cache.stats().hits), (101, 99));
    stored(&cache, 101).await;
    fib.0.remove(&100_u64).await.unwrap();
    assert_eq!(fib.of(100).await.unwrap(), 354_224_848_179_261_915_075);
    assert_eq!((cache.stats().misses, cache.stats().hits), (102, 101), "only the removed one again");
}

// test_recipes.py, as far as it applies.

/// A worker that counts before and after it holds the lock.
async fn worker_waits_for_the_lock<R>(rule: R, times: u32)
where
    R: Rule + Clone,
{
    let cache = cache();
    let owner = Owner::random();
    let held = cache.lock("demo").rule(rule.clone()).await.unwrap();
    let num = Arc::new(AtomicU32::new(0));
    let (counter, lock) = (num.clone(), cache.lock("demo").rule(rule.clone()).owner(owner));
    let worker = tokio::spawn(async move {
        counter.fetch_add(1, SeqCst);
        let mut guards = Vec::new();
        for _ in 0..times {
            guards.push(lock.clone().await.unwrap());
        }
        counter.fetch_add(1, SeqCst);
        sleep(ms(100)).await;
    });
    sleep(ms(100)).await;
    assert_eq!(num.load(SeqCst), 1, "it waits");
    drop(held);
    worker.await.unwrap();
    assert_eq!(num.load(SeqCst), 2);
    assert!(cache.lock("demo").rule(rule).wait_at_most(secs(0)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn test_lock() {
    worker_waits_for_the_lock(Lock, 1).await;
}

#[tokio::test(start_paused = true)]
async fn test_rlock() {
    worker_waits_for_the_lock(RLock::new().rule(&Request::new(())), 2).await;
}

#[tokio::test(start_paused = true)]
async fn test_semaphore() {
    let cache = cache();
    let permit = || cache.lock("demo").rule(Semaphore(3));
    let (first, second, scoped) = (permit().await.unwrap(), permit().await.unwrap(), permit().await.unwrap());
    let waiting = tokio::spawn(permit().acquire());
    sleep(ms(100)).await;
    assert!(!waiting.is_finished());
    drop(scoped);
    drop(waiting.await.unwrap().unwrap());
    drop((first, second));
    let all = [permit().await.unwrap(), permit().await.unwrap(), permit().await.unwrap()];
    assert!(permit().wait_at_most(secs(0)).await.is_err(), "three, no more");
    drop(all);
}

#[tokio::test(start_paused = true)]
async fn test_memoize_stampede() {
    let cache = cache();
    let computed = Arc::new(AtomicU64::new(0));
    let counter = computed.clone();
    let worker = StampedeCacheLayer::memoize(cache.scope("worker"), ms(100)).layer(service_fn(move |num: u32| {
        let counter = counter.clone();
        async move {
            sleep(ms(10)).await;
            counter.fetch_add(1, SeqCst);
            Ok::<_, BoxError>(num)
        }
    }));
    let began = Instant::now();
    while began.elapsed() < secs(1) {
        assert_eq!(worker.clone().oneshot(100).await.unwrap(), 100);
        stored(&cache, computed.load(SeqCst)).await;
        sleep(ms(1)).await;
    }
    // At least once in each life and computation of 110 ms; at most without a pause.
    assert!((9..=100).contains(&computed.load(SeqCst)), "{computed:?}");
}

// test_core.py and test_fanout.py, as far as they apply.

#[tokio::test(start_paused = true)]
async fn test_add() {
    let cache = cache();
    assert!(cache.add("key", &1).await.unwrap());
    assert!(!cache.add("key", &2).await.unwrap());
    assert_eq!(cache.get::<u32>("key").unwrap(), Some(1));
    assert!(cache.remove("key").await.unwrap());
    assert!(cache.add("key", &3).expire(ms(1)).await.unwrap());
    advance(ms(10)).await;
    assert!(cache.add("key", &4).await.unwrap());
    assert_eq!(cache.get::<u32>("key").unwrap(), Some(4));
}

#[test]
fn test_add_concurrent() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let added = AtomicU32::new(0);
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| {
                for key in 0..200 {
                    added.fetch_add(u32::from(cache.add(&key.to_string(), &key).wait().unwrap()), SeqCst);
                }
            });
        }
    });
    assert_eq!((added.load(SeqCst), cache.stats().entries), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn test_incr_and_decr() {
    let cache = cache();
    assert_eq!(cache.incr("key", 1).await.unwrap(), 1);
    assert_eq!(cache.incr("key", 2).await.unwrap(), 3);
    assert_eq!(cache.incr("key", -1).await.unwrap(), 2);
    assert_eq!(cache.get::<i64>("key").unwrap(), Some(2));
    for delta in [1, -1] {
        cache.insert("key", &100_i64).expire(ms(100)).tag("counters").await.unwrap();
        assert_eq!(cache.incr("key", delta).await.unwrap(), 100 + delta, "a living one keeps its life and tag");
        advance(ms(120)).await;
        assert_eq!(cache.incr("key", delta).await.unwrap(), delta, "an expired one starts anew");
        cache.evict("counters").await.unwrap();
        assert_eq!(cache.get("key").unwrap(), Some(delta), "without a tag");
        cache.remove("key").await.unwrap();
    }
    cache.insert("text", "no number").await.unwrap();
    assert!(matches!(cache.incr("text", 1).await, Err(Error::Codec(_))));
}

#[test]
fn test_incr_concurrent() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    std::thread::scope(|threads| {
        for _ in 0..16 {
            threads.spawn(|| (0..50).all(|_| cache.incr("key", 1).wait().is_ok()));
        }
    });
    assert_eq!(cache.get("key").unwrap(), Some(800));
}

#[tokio::test(start_paused = true)]
async fn test_touch() {
    let cache = cache();
    assert!(!cache.touch("key", None).await.unwrap());
    cache.insert("key", &0).expire(secs(60)).await.unwrap();
    assert!(cache.touch("key", None).await.unwrap());
    advance(secs(3_600)).await;
    assert_eq!(cache.get("key").unwrap(), Some(0));
    assert!(cache.touch("key", Some(secs(0))).await.unwrap());
    assert!(!cache.touch("key", Some(secs(60))).await.unwrap());
    assert_eq!(cache.get::<u32>("key").unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn test_expire() {
    let cache = cache();
    for life in 1..=100 {
        cache.insert(&life.to_string(), &life).expire(secs(life)).await.unwrap();
    }
    advance(ms(10_500)).await;
    let alive = || (1..=100).filter(|life| cache.get::<u64>(&life.to_string()).unwrap() == Some(*life)).count();
    assert_eq!(alive(), 90);
    // Later writes clear the dead away.
    cache.insert("later", &0).await.unwrap();
    cache.remove("later").await.unwrap();
    assert_eq!((alive(), cache.stats().entries), (90, 90));
}

#[tokio::test(start_paused = true)]
async fn test_evict_and_clear() {
    let cache = cache();
    let tags = ["red", "green", "blue"];
    for key in 0..90 {
        cache.insert(&key.to_string(), &key).tag(tags[key % 3]).await.unwrap();
    }
    let left = || (0..90).filter(|key| cache.get::<usize>(&key.to_string()).unwrap().is_some()).count();
    cache.evict("red").await.unwrap();
    assert_eq!((left(), cache.get::<u32>("0").unwrap(), cache.get("1").unwrap()), (60, None, Some(1)));
    cache.evict("no such tag").await.unwrap();
    assert_eq!(left(), 60);
    cache.clear().await.unwrap();
    assert_eq!(left(), 0);
    assert!(cache.add("0", &7).await.unwrap());
    assert_eq!(cache.get("0").unwrap(), Some(7), "what comes later stays");
}

#[tokio::test(start_paused = true)]
async fn test_stats() {
    let cache = cache();
    let service = StampedeCacheLayer::memoize(cache.scope("f"), secs(60)).beta(0.0);
    let service = service.layer(service_fn(async |n: u32| Ok::<_, BoxError>(n)));
    for _ in 0..11 {
        for n in 0..10 {
            service.clone().oneshot(n).await.unwrap();
        }
    }
    assert_eq!((cache.stats().hits, cache.stats().misses), (100, 10));
}

#[tokio::test(start_paused = true)]
async fn values_come_back_as_they_were() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Value {
        none: Option<u8>,
        text: String,
        bytes: Vec<u8>,
        number: f64,
        nested: BTreeMap<String, (i64, bool)>,
    }
    let cache = cache();
    let value = Value {
        none: None,
        text: "näïve \0".into(),
        bytes: vec![0, 255],
        number: -0.5,
        nested: BTreeMap::from([("a".into(), (i64::MIN, true))]),
    };
    cache.insert("v", &value).await.unwrap();
    assert_eq!(cache.get("v").unwrap(), Some(value));
    cache.insert("none", &None::<u8>).await.unwrap();
    assert_eq!(cache.get::<Option<u8>>("none").unwrap(), Some(None), "kept, and nothing");
    assert!(matches!(cache.get::<Vec<String>>("v"), Err(Error::Codec(_))));
}

#[tokio::test(start_paused = true)]
async fn writes_take_no_virtual_time() {
    let (cache, began) = (cache(), tokio::time::Instant::now());
    for i in 0..100 {
        let name = i.to_string();
        tokio::time::timeout(secs(1), cache.insert(&name, &i).tag("t").into_future()).await.unwrap().unwrap();
        tokio::time::timeout(secs(1), cache.evict("t")).await.unwrap().unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}
