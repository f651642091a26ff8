//! Requests that are dropped before they are answered: at every point of their way they leave nothing behind.

#[path = "support/probe.rs"]
mod probe;

use http::{Request, Response};
use probe::{MINUTE, Probe, SECOND, cache, get, paused_cache, poll_once, soon, text};
use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, task::Poll, time::Duration};
use tokio_test::assert_pending;
use tower::{Layer, ServiceExt, limit::GlobalConcurrencyLimitLayer, service_fn};
use tower_floodgate::{BarrierLayer, Lock, StampedeCacheLayer, ThrottleLayer, lock::AcquireError, throttle::Rate};

/// The name of a request, for tests in which names matter.
fn path(request: &Request<String>) -> String {
    request.uri().path().to_owned()
}

/// What the test does to a request before it drops it: so many polls, with something done before some of them.
async fn polls<F: Future>(request: F, polls: usize, mut before: impl FnMut(usize)) -> Option<F::Output> {
    let mut request = pin!(request);
    for n in 0..polls {
        before(n);
        if let Poll::Ready(output) = poll_once(request.as_mut()) {
            return Some(output);
        }
        tokio::time::advance(SECOND / 10).await;
    }
    None
}

/// Holds the only permit of the inner service during those polls.
fn busy_during(permits: &Arc<tokio::sync::Semaphore>, polls: std::ops::Range<usize>) -> impl FnMut(usize) {
    let (permits, mut taken) = (permits.clone(), None);
    move |n| {
        taken = polls.contains(&n).then(|| taken.take().unwrap_or_else(|| permits.clone().try_acquire_owned().unwrap()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_turn_may_be_dropped_at_any_poll() {
    let cache = paused_cache();
    let (scope, rate) = (cache.scope("a"), Rate::new(1, SECOND));
    let (permits, probe) = (Arc::new(tokio::sync::Semaphore::new(1)), Probe::new(3));
    let watch = probe.watch();
    let inner = GlobalConcurrencyLimitLayer::with_semaphore(permits.clone()).layer(probe);
    let service = ThrottleLayer::new(scope.clone(), 1, SECOND).wait().name(path).layer(inner);
    let (mut given_back, mut unready, mut dropped_inside, mut finished) = (0, 0, 0, 0);
    for k in 0..22 {
        let cell = scope.throttle(&format!("/{k}"), rate);
        cell.check().await.unwrap();
        let (began, calls) = (tokio::time::Instant::now(), watch.calls());
        // The turn comes at the 11th poll, the inner service is busy up to the 14th, and takes three more.
        let output = polls(service.clone().oneshot(get(&format!("/{k}"))), k, busy_during(&permits, 5..14)).await;
        let called = watch.calls() > calls;
        let spent = if k > 10 { 2 * SECOND } else { SECOND };
        assert_eq!(cell.peek().await.unwrap().reset, spent.saturating_sub(began.elapsed()), "dropped after {k} polls");
        assert_eq!((watch.running(), permits.available_permits()), (0, 1), "dropped after {k} polls");
        match (k > 10, called, output.is_some()) {
            (false, false, false) => given_back += 1,
            (true, false, false) => unready += 1,
            (true, true, false) => dropped_inside += 1,
            (true, true, true) => finished += 1,
            odd => panic!("after {k} polls: {odd:?}"),
        }
    }
    assert_eq!((given_back, unready, dropped_inside, finished), (11, 4, 3, 4), "every state was met");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_lock_may_be_dropped_at_any_poll() {
    let cache = paused_cache();
    let scope = cache.scope("a");
    let (permits, probe) = (Arc::new(tokio::sync::Semaphore::new(1)), Probe::new(3));
    let watch = probe.watch();
    let inner = GlobalConcurrencyLimitLayer::with_semaphore(permits.clone()).layer(probe);
    let service = BarrierLayer::new(scope.clone(), Lock).layer(inner);
    let at_once = || scope.lock("").wait_at_most(Duration::ZERO).acquire();
    let (mut queued, mut unready, mut dropped_inside, mut finished) = (0, 0, 0, 0);
    for k in 0..16 {
        let mut held = Some(scope.lock("").acquire().await.unwrap());
        let calls = watch.calls();
        // Freed before the 6th poll, the inner service is busy up to the 9th, and takes three more.
        let mut busy = busy_during(&permits, 3..9);
        let output = polls(service.clone().oneshot(get("/")), k, |n| {
            busy(n);
            if n == 5 {
                held = None;
            }
        });
        let output = output.await;
        match (held.is_some(), watch.calls() > calls, &output) {
            (true, false, None) => queued += 1,
            (false, false, None) => unready += 1,
            (false, true, None) => dropped_inside += 1,
            (false, true, Some(_)) => finished += 1,
            odd => panic!("after {k} polls: {odd:?}"),
        }
        drop(busy);
        assert_eq!((watch.running(), permits.available_permits()), (0, 1), "dropped after {k} polls");
        if let (None, Some(response)) = (&held, &output) {
            assert_eq!(response.as_ref().unwrap().status(), 200);
            assert!(matches!(at_once().await, Err(AcquireError::Busy { .. })), "its body still holds the lock");
        }
        drop((held, output));
        drop(at_once().await.unwrap_or_else(|error| panic!("dropped after {k} polls: {error}")));
    }
    assert_eq!((queued, unready, dropped_inside, finished), (6, 4, 3, 3), "every state was met");
}

#[tokio::test]
async fn a_request_that_leads_may_be_dropped_at_any_poll() {
    let cache = cache();
    let probe = Probe::new(3);
    let watch = probe.watch();
    let service = StampedeCacheLayer::new(cache.scope("a"), MINUTE).layer(probe);
    for k in 0..8 {
        let path = format!("/{k}");
        let calls = watch.calls();
        {
            let mut leader = pin!(service.clone().oneshot(get(&path)));
            for _ in 0..k {
                if poll_once(leader.as_mut()).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..2 {
            let answer = soon(service.clone().oneshot(get(&path))).await.unwrap();
            assert_eq!(text(answer.into_body()).await, path);
        }
        assert_eq!(watch.calls(), calls + 1, "dropped after {k} polls: the flight goes on without its leader");
        assert_eq!(watch.running(), 0, "dropped after {k} polls");
    }
}

#[tokio::test]
async fn a_request_that_follows_may_be_dropped_at_any_poll() {
    let cache = cache();
    for k in 0..4 {
        let (go_on, wait) = tokio::sync::watch::channel(false);
        let slow = service_fn(move |_: Request<String>| {
            let mut wait = wait.clone();
            async move {
                wait.wait_for(|go| *go).await.unwrap();
                Ok::<_, Infallible>(Response::new(String::from("done")))
            }
        });
        let service = StampedeCacheLayer::new(cache.scope(&format!("{k}")), MINUTE).layer(slow);
        let leader = tokio::spawn(service.clone().oneshot(get("/")));
        tokio::task::yield_now().await;
        {
            let mut follower = pin!(service.clone().oneshot(get("/")));
            for _ in 0..k {
                assert_pending!(poll_once(follower.as_mut()));
                tokio::task::yield_now().await;
            }
        }
        let follower = tokio::spawn(service.clone().oneshot(get("/")));
        tokio::task::yield_now().await;
        go_on.send(true).unwrap();
        for task in [leader, follower] {
            let answer = soon(task).await.unwrap().unwrap();
            assert_eq!(text(answer.into_body()).await, "done", "dropped after {k} polls");
        }
    }
}
