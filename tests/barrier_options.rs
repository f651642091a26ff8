//! What a barrier can be told: whom it lets wait, for how long, and under which names. On paused time.

use http::Request;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::{JoinHandle, JoinSet, yield_now},
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Fail, Lock, Reason, Rejection, Scope, Semaphore,
    barrier::grpc_timeout,
    lock::{Holder, Owner, ReadWrite, Rule},
};

#[path = "support/paused.rs"]
mod paused;
use paused::{cache, ms, secs};

/// Takes so many milliseconds.
fn takes()
-> impl Service<u64, Response = u64, Error = Rejection, Future: Send + 'static> + Clone + Send + Sync + 'static {
    service_fn(|millis: u64| async move {
        sleep(ms(millis)).await;
        Ok(millis)
    })
}

async fn sent<S, Req>(service: &S, request: Req) -> JoinHandle<Result<S::Response, S::Error>>
where
    S: Service<Req, Future: Send, Response: Send, Error: Send> + Clone + Send + 'static,
    Req: Send + 'static,
{
    let task = tokio::spawn(service.clone().oneshot(request));
    yield_now().await;
    task
}

async fn is_free(scope: &Scope) -> bool {
    scope.lock("").try_acquire().await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn who_only_tries_does_not_wait() {
    let cache = cache();
    let service = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).try_only().layer(takes());
    let held = sent(&service, 1_000).await;
    let began = Instant::now();
    let refused = service.clone().oneshot(1).await.unwrap_err();
    assert_eq!((refused.reason, began.elapsed()), (Reason::Busy, ms(0)));
    assert_eq!(refused.retry_after, Some(secs(1)), "nothing is known of how long it takes");
    held.await.unwrap().unwrap();
    assert_eq!(service.clone().oneshot(1).await, Ok(1));

    let held = sent(&service, 60_000).await;
    sleep(secs(5)).await;
    let later = service.oneshot(1).await.unwrap_err().retry_after.unwrap();
    assert!(later > secs(1), "it has taken long already: {later:?}");
    held.abort();
}

#[tokio::test(start_paused = true)]
async fn so_many_may_wait() {
    let cache = cache();
    let service = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).queue_at_most(2).layer(takes());
    let mut passed = Vec::new();
    for _ in 0..3 {
        passed.push(sent(&service, 1_000).await);
    }
    let refused = service.clone().oneshot(1).await.unwrap_err();
    assert_eq!((refused.reason, refused.quota.is_some()), (Reason::QueueFull, false));
    assert_eq!((refused.status().as_u16(), refused.grpc_code()), (503, 14));
    assert_eq!(cache.stats().busy, 1);
    passed.remove(0).await.unwrap().unwrap();
    passed.push(sent(&service, 1).await);
    for one in passed {
        one.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_can_be_held_for_a_minimum() {
    let cache = cache();
    let scope = cache.scope("db");
    let service = BarrierLayer::new(scope.clone(), Lock).answer(Fail).at_least(secs(10)).layer(takes());
    service.clone().oneshot(1_000).await.unwrap();
    let refused = BarrierLayer::new(scope.clone(), Lock).answer(Fail).try_only().layer(takes()).oneshot(1);
    assert_eq!(refused.await.unwrap_err().retry_after, Some(secs(9)), "until then it is certain");
    sleep(ms(8_900)).await;
    assert!(!is_free(&scope).await, "ten seconds since it was acquired are not over");
    sleep(ms(200)).await;
    assert!(is_free(&scope).await);
    service.oneshot(10_001).await.unwrap();
    assert!(is_free(&scope).await);
}

#[tokio::test(start_paused = true)]
async fn who_would_come_before_the_minimum_is_over_is_refused_at_once() {
    let cache = cache();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail);
    layer.clone().at_least(secs(10)).layer(takes()).oneshot(1_000).await.unwrap();
    let hurried = layer.deadline(|_: &u64| Some(secs(5))).layer(takes());
    let began = Instant::now();
    assert_eq!(hurried.clone().oneshot(1).await.unwrap_err().retry_after, Some(secs(9)));
    assert_eq!(began.elapsed(), secs(0));
    sleep(secs(9)).await;
    assert_eq!(hurried.oneshot(1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn behind_a_first_holder_that_stays_long_one_waits_as_long_as_its_caller() {
    let cache = cache();
    let scope = cache.scope("db");
    let layer = BarrierLayer::new(scope.clone(), Lock).answer(Fail).deadline(|_: &u64| Some(secs(5)));
    let service = layer.layer(takes());
    let held = scope.lock("").await.unwrap();
    // Nobody has left yet, so nothing is known of how long it takes.
    sleep(secs(3_600)).await;
    let began = Instant::now();
    assert_eq!(service.clone().oneshot(1).await.unwrap_err().reason, Reason::Busy);
    assert_eq!(began.elapsed(), secs(5));
    let waiting = sent(&service, 1).await;
    drop(held);
    assert_eq!(waiting.await.unwrap(), Ok(1));
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_longer_than_its_caller() {
    let cache = cache();
    let scope = cache.scope("db");
    let deadline = |millis: &u64| (*millis > 0).then(|| ms(*millis));
    let layer = BarrierLayer::new(scope.clone(), Lock).answer(Fail).wait_at_most(secs(2)).deadline(deadline);
    let service = layer.layer(service_fn(async |millis: u64| Ok::<_, Rejection>(millis)));
    let held = scope.lock("").await.unwrap();
    for (millis, waits) in [(700, 700), (1, 1), (5_000, 2_000), (0, 2_000)] {
        let began = Instant::now();
        assert_eq!(service.clone().oneshot(millis).await.unwrap_err().reason, Reason::Busy);
        assert_eq!(began.elapsed(), ms(waits), "{millis}");
    }
    drop(held);
    assert_eq!(service.oneshot(1).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn who_would_come_too_late_is_refused_at_once() {
    let cache = cache();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail);
    let slow = layer.clone().layer(takes());
    let first = sent(&slow, 1_000).await;
    let others = [sent(&slow, 1_000).await, sent(&slow, 1_000).await];
    first.await.unwrap().unwrap();
    let hurried = layer.deadline(grpc_timeout).layer(service_fn(async |_: Request<()>| Ok::<_, Rejection>(())));
    let ask = |timeout: &str| Request::builder().header("grpc-timeout", timeout).body(()).unwrap();
    let began = Instant::now();
    let refused = hurried.clone().oneshot(ask("1500m")).await.unwrap_err();
    assert_eq!((refused.reason, refused.retry_after), (Reason::Busy, Some(secs(2))));
    assert_eq!(began.elapsed(), ms(0), "a second for each before it is more than it has");
    assert_eq!(hurried.oneshot(ask("3S")).await, Ok(()));
    assert_eq!(began.elapsed(), secs(2));
    for one in others {
        one.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn several_names_are_locked_together() {
    let cache = cache();
    let scope = cache.scope("account");
    let layer = BarrierLayer::new(scope.clone(), Lock).answer(Fail).names(|accounts: &Vec<u32>| accounts.clone());
    assert_eq!(layer.name_of(&vec![1, 20]).as_deref(), Some("1:1,2:20,"));
    assert_eq!(layer.name_of(&vec![]), None);
    let service = layer.clone().layer(service_fn(async |accounts: Vec<u32>| {
        sleep(secs(1)).await;
        Ok::<_, Rejection>(accounts)
    }));
    let began = Instant::now();
    let both = sent(&service, vec![7, 8]).await;
    for name in ["7", "8"] {
        assert!(scope.lock(name).try_acquire().await.is_err(), "{name} is held");
    }
    assert!(scope.lock("").try_acquire().await.is_ok() && scope.lock("1:7,1:8,").try_acquire().await.is_ok());
    let after = sent(&service, vec![8, 9, 8]).await;
    service.clone().oneshot(vec![]).await.unwrap();
    assert_eq!(began.elapsed(), secs(1), "who names nothing passes");
    both.await.unwrap().unwrap();
    after.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), secs(2));

    // A single name after all.
    let layer = layer.name(|accounts: &Vec<u32>| accounts.len());
    assert_eq!(layer.name_of(&vec![1, 20]).as_deref(), Some("2"));
    layer.layer(service_fn(async |_: Vec<u32>| Ok::<_, Rejection>(()))).oneshot(vec![5, 6]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn names_in_any_order_never_wait_for_one_another_for_ever() {
    let cache = cache();
    let inside: Arc<Mutex<HashSet<&str>>> = Arc::default();
    let layer = BarrierLayer::new(cache.scope("fork"), Lock).answer(Fail).wait_at_most(Duration::MAX);
    let service = layer.names(|forks: &[&'static str; 2]| *forks).layer(service_fn(move |forks: [&'static str; 2]| {
        let inside = inside.clone();
        async move {
            assert!(forks.iter().all(|fork| inside.lock().unwrap().insert(*fork)), "somebody has one of {forks:?}");
            sleep(ms(10)).await;
            forks.iter().for_each(|fork| assert!(inside.lock().unwrap().remove(fork)));
            Ok::<_, Rejection>(())
        }
    }));
    let mut philosophers = JoinSet::new();
    for _ in 0..10 {
        for forks in [["a", "b"], ["b", "c"], ["c", "a"], ["b", "a"], ["c", "b"]] {
            philosophers.spawn(service.clone().oneshot(forks));
        }
    }
    assert!(philosophers.join_all().await.iter().all(Result::is_ok));
    let stats = cache.stats();
    assert_eq!((stats.locked, stats.leases_lost), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn heavy_requests_take_more_places() {
    let cache = cache();
    let weighed = Semaphore(3).weight(|millis: &u64| (*millis / 1_000) as u32);
    let service = BarrierLayer::new(cache.scope("db"), weighed).answer(Fail).layer(takes());
    let began = Instant::now();
    let mut sending = Vec::new();
    for millis in [2_000, 1_000, 3_000] {
        sending.push(sent(&service, millis).await);
    }
    for (one, at) in sending.into_iter().zip([2, 2, 5]) {
        one.await.unwrap().unwrap();
        assert_eq!(began.elapsed(), secs(at));
    }
}

#[tokio::test(start_paused = true)]
async fn many_read_or_one_writes() {
    let cache = cache();
    let service = ServiceBuilder::new().layer(BarrierLayer::new(cache.scope("file"), ReadWrite).answer(Fail)).service(
        service_fn(async |_: Request<()>| {
            sleep(secs(1)).await;
            Ok::<_, Rejection>(())
        }),
    );
    let began = Instant::now();
    let mut sending = Vec::new();
    for method in ["GET", "HEAD", "PUT", "GET"] {
        sending.push(sent(&service, Request::builder().method(method).body(()).unwrap()).await);
    }
    for (one, at) in sending.into_iter().zip([1, 1, 2, 3]) {
        one.await.unwrap().unwrap();
        assert_eq!(began.elapsed(), secs(at));
    }
}

/// Admits one, until it breaks.
#[derive(Clone, Default)]
struct Breaking(Arc<AtomicBool>);

impl Rule for Breaking {
    fn admits(&self, holders: &[Holder], _: &Owner) -> bool {
        assert!(!self.0.load(SeqCst), "as it is meant to");
        holders.is_empty()
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_cache_fails_is_refused_or_passes() {
    async fn waits(cache: &Cache, fail_open: bool) -> Result<u64, Rejection> {
        let rule = Breaking::default();
        let scope = cache.scope(if fail_open { "open" } else { "closed" });
        let held = scope.lock("").rule(rule.clone()).await.unwrap();
        let mut layer = BarrierLayer::new(scope, {
            let rule = rule.clone();
            move |_: &u64| rule.clone()
        })
        .answer(Fail);
        if fail_open {
            layer = layer.fail_open();
        }
        let waiting = sent(&layer.layer(takes()), 1).await;
        sleep(secs(1)).await;
        assert!(!waiting.is_finished());
        rule.0.store(true, SeqCst);
        drop(held);
        waiting.await.unwrap()
    }
    let cache = cache();
    assert_eq!(waits(&cache, false).await.unwrap_err().reason, Reason::CacheFailed);
    assert_eq!(waits(&cache, true).await, Ok(1));
    assert_eq!(cache.stats().failures, 2);
}
