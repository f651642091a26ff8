//! The tower contract, for each layer: readiness, clones, cancellation at every point, and no state in `layer()`.

#[path = "support/probe.rs"]
mod probe;

use http::{Request, Response};
use probe::{MINUTE, Probe, SECOND, Watch, cache, get, paused_cache, poll_once, soon, text};
use std::{convert::Infallible, future::Future, pin::pin, sync::Arc, task::Poll, time::Duration};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
use tower::{Layer, Service, ServiceExt, limit::GlobalConcurrencyLimitLayer, service_fn};
use tower_floodgate::{
    BarrierLayer, Body, Fail, Lock, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer, lock::AcquireError,
    throttle::Rate,
};
use tower_test::{assert_request_eq, mock};

/// The name of a request, for tests in which names matter.
fn path(request: &Request<String>) -> String {
    request.uri().path().to_owned()
}

#[tokio::test]
async fn layers_services_and_futures_go_to_other_threads() {
    fn shared<T: Clone + Send + Sync + 'static>(it: T) -> T {
        it
    }
    fn sent<T: Send + 'static>(_: T) {}
    let cache = cache();
    let hyper = probe::http_client();
    let request = || Request::get("http://[::1]:1").body(http_body_util::Empty::new()).unwrap();
    sent(shared(shared(ThrottleLayer::new(cache.scope("a"), 1, SECOND)).layer(hyper.clone())).call(request()));
    sent(shared(shared(ThrottleLayer::new(cache.scope("a"), 1, SECOND).wait()).layer(hyper.clone())).call(request()));
    sent(shared(shared(BarrierLayer::new(cache.scope("a"), Lock)).layer(hyper.clone())).call(request()));
    sent(shared(shared(StampedeCacheLayer::new(cache.scope("a"), SECOND)).layer(hyper)).call(request()));
    let plain = service_fn(|n: u32| async move { Ok::<_, Infallible>(n) });
    sent(shared(shared(StampedeCacheLayer::memoize(cache.scope("a"), SECOND)).layer(plain)).call(1));
}

/// Calls a layered probe twice on one instance, for two names.
async fn called_by<L>(layer: L) -> Vec<usize>
where
    L: Layer<Probe>,
    L::Service: Service<Request<String>, Response = Response<Body<String>>, Error = Infallible>,
{
    let probe = Probe::new(1);
    let watch = probe.watch();
    let mut service = layer.layer(probe);
    for path in ["/a", "/b"] {
        let response = soon(service.ready().await.unwrap().call(get(path))).await.unwrap();
        assert_eq!(text(response.into_body()).await, path);
    }
    watch.called()
}

#[tokio::test]
async fn the_readied_instance_is_the_one_that_is_called() {
    let cache = cache();
    assert_eq!(called_by(ThrottleLayer::new(cache.scope("a"), 2, MINUTE)).await, [0, 0]);
    assert_eq!(called_by(BarrierLayer::new(cache.scope("a"), Lock)).await, [0, 0]);
    assert_eq!(called_by(StampedeCacheLayer::new(cache.scope("a"), MINUTE)).await, [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_turn_holds_no_readiness() {
    let cache = paused_cache();
    let probe = Probe::new(1);
    let watch = probe.watch();
    let throttle = ThrottleLayer::new(cache.scope("a"), 1, SECOND).wait().name(path);
    let service = throttle.layer(GlobalConcurrencyLimitLayer::new(1).layer(probe));
    service.clone().oneshot(get("/a")).await.unwrap();
    let mut waiting = tokio_test::task::spawn(service.clone().oneshot(get("/a")));
    assert_pending!(waiting.poll());
    let began = tokio::time::Instant::now();
    service.clone().oneshot(get("/b")).await.unwrap();
    assert!(began.elapsed() < SECOND / 2, "another name passes meanwhile");
    assert_eq!(watch.calls(), 2);
    waiting.await.unwrap();
    assert_eq!((watch.calls(), watch.most_running()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_lock_holds_no_readiness() {
    let cache = paused_cache();
    let scope = cache.scope("a");
    let held = scope.lock("/a").acquire().await.unwrap();
    let layer = BarrierLayer::new(scope, Lock).name(path);
    let service = layer.layer(GlobalConcurrencyLimitLayer::new(1).layer(Probe::new(1)));
    let mut waiting = tokio_test::task::spawn(service.clone().oneshot(get("/a")));
    assert_pending!(waiting.poll());
    let began = tokio::time::Instant::now();
    service.clone().oneshot(get("/b")).await.unwrap();
    assert!(began.elapsed() < SECOND / 2, "another name passes meanwhile");
    drop(held);
    assert_eq!(waiting.await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_follows_a_flight_holds_no_readiness() {
    let cache = cache();
    let (go_on, wait) = tokio::sync::watch::channel(false);
    let slow = service_fn(move |request: Request<String>| {
        let mut wait = wait.clone();
        async move {
            if request.uri().path() == "/slow" {
                wait.wait_for(|go| *go).await.unwrap();
            }
            Ok::<_, Infallible>(Response::new(String::from("done")))
        }
    });
    let layer = StampedeCacheLayer::new(cache.scope("a"), MINUTE);
    let service = layer.layer(GlobalConcurrencyLimitLayer::new(2).layer(slow));
    let mut slow: Vec<_> = (0..10).map(|_| tokio_test::task::spawn(service.clone().oneshot(get("/slow")))).collect();
    for one in &mut slow {
        assert_pending!(one.poll());
    }
    tokio::task::yield_now().await;
    // The flight has one permit of the two; its followers have none.
    let response = soon(service.clone().oneshot(get("/fast"))).await.unwrap();
    assert_eq!(text(response.into_body()).await, "done");
    go_on.send(true).unwrap();
    for one in slow {
        assert_eq!(text(soon(one).await.unwrap().into_body()).await, "done");
    }
}

/// A thousand requests at once, on clones and on services of their own, over all threads.
async fn a_thousand<L>(layer: L) -> (Vec<Response<Body<String>>>, Arc<Watch>)
where
    L: Layer<Probe> + Clone,
    L::Service:
        Service<Request<String>, Response = Response<Body<String>>, Error = Infallible> + Clone + Send + 'static,
    <L::Service as Service<Request<String>>>::Future: Send,
{
    let probe = Probe::new(2);
    let watch = probe.watch();
    let one = layer.layer(probe.clone());
    let tasks: Vec<_> = (0..1000)
        .map(|n| if n % 2 == 0 { one.clone() } else { layer.clone().layer(probe.clone()) })
        .map(|service| tokio::spawn(service.oneshot(get("/"))))
        .collect();
    let mut responses = Vec::new();
    for task in tasks {
        responses.push(soon(task).await.unwrap().unwrap());
    }
    (responses, watch)
}

fn admitted(responses: &[Response<Body<String>>]) -> usize {
    responses.iter().filter(|response| response.status() == 200).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_at_once_on_clones_and_new_services() {
    let cache = cache();
    let (responses, watch) = a_thousand(ThrottleLayer::new(cache.scope("a"), 37, 3600 * SECOND)).await;
    assert_eq!((admitted(&responses), watch.calls()), (37, 37), "exactly the burst");

    let (responses, watch) =
        a_thousand(BarrierLayer::new(cache.scope("a"), Semaphore(5)).wait_at_most(Duration::ZERO)).await;
    assert_eq!((admitted(&responses), watch.calls()), (5, 5), "bodies that are not read hold their places");
    drop(responses);

    let (responses, watch) = a_thousand(StampedeCacheLayer::new(cache.scope("a"), MINUTE)).await;
    assert_eq!((admitted(&responses), watch.calls()), (1000, 1), "one flight for all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_passes_a_barrier_a_few_at_a_time() {
    let cache = cache();
    let probe = Probe::new(3);
    let watch = probe.watch();
    let service = BarrierLayer::new(cache.scope("a"), Semaphore(3)).layer(probe);
    let tasks: Vec<_> = (0..200)
        .map(|_| service.clone().oneshot(get("/")))
        .map(|asked| tokio::spawn(async { text(asked.await.unwrap().into_body()).await }))
        .collect();
    for task in tasks {
        assert_eq!(soon(task).await.unwrap(), "/");
    }
    assert_eq!(watch.calls(), 200);
    assert!((1..=3).contains(&watch.most_running()), "{} at once", watch.most_running());
}

#[tokio::test]
async fn making_a_layer_a_service_a_thousand_times_changes_nothing() {
    let cache = cache();
    let throttle = ThrottleLayer::new(cache.scope("a"), 3, 3600 * SECOND);
    let barrier = BarrierLayer::new(cache.scope("a"), Lock).wait_at_most(Duration::ZERO);
    let stampede = StampedeCacheLayer::new(cache.scope("a"), MINUTE);
    let [counted, locked, cached] = [Probe::new(0), Probe::new(0), Probe::new(0)];
    let held = barrier.layer(locked.clone()).oneshot(get("/")).await.unwrap();
    for n in 0..1000 {
        let status = throttle.layer(counted.clone()).oneshot(get("/")).await.unwrap().status();
        assert_eq!(status, if n < 3 { 200 } else { 429 });
        assert_eq!(barrier.layer(locked.clone()).oneshot(get("/")).await.unwrap().status(), 503);
        let answer = soon(stampede.layer(cached.clone()).oneshot(get("/"))).await.unwrap();
        assert_eq!(text(answer.into_body()).await, "/");
    }
    drop(held);
    assert_eq!(barrier.layer(locked.clone()).oneshot(get("/")).await.unwrap().status(), 200);
    assert_eq!([counted.watch().calls(), locked.watch().calls(), cached.watch().calls()], [3, 2, 1]);
}

#[tokio::test(start_paused = true)]
async fn mocks_see_the_very_request() {
    let cache = paused_cache();
    let rejection = |error: tower::BoxError| *error.downcast::<Rejection>().unwrap();

    let layer = ThrottleLayer::new(cache.scope("a"), 1, SECOND).answer(Fail);
    let (mut service, mut handle) = mock::spawn_layer::<&str, String, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let answer = service.call("hello");
    assert_request_eq!(handle, "hello").send_response("world".into());
    assert_eq!(answer.await.unwrap(), "world");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(rejection(service.call("hello").await.unwrap_err()).retry_after, Some(SECOND));

    let layer = BarrierLayer::new(cache.scope("a"), Lock).answer(Fail).wait_at_most(Duration::ZERO);
    let (mut service, mut handle) = mock::spawn_layer::<&str, String, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let answer = service.call("hello");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(rejection(service.call("again").await.unwrap_err()).status(), 503);
    assert_request_eq!(handle, "hello").send_response("world".into());
    assert_eq!(answer.await.unwrap(), "world", "what was refused never came to the mock");
}

#[tokio::test]
async fn a_memoized_mock_is_asked_once() {
    let cache = cache();
    let layer = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE);
    let (mut service, mut handle) = mock::spawn_layer::<&'static str, String, _>(layer);
    assert_ready_ok!(service.poll_ready());
    let answer = tokio::spawn(service.call("hello"));
    assert_request_eq!(handle, "hello").send_response("world".into());
    assert_eq!(soon(answer).await.unwrap().unwrap(), "world");
    assert_ready_ok!(service.poll_ready());
    assert_eq!(soon(service.call("hello")).await.unwrap(), "world");
    assert_ready_ok!(service.poll_ready());
    let answer = tokio::spawn(service.call("bye"));
    assert_request_eq!(handle, "bye").send_error("no");
    assert_eq!(soon(answer).await.unwrap().unwrap_err().to_string(), "no", "an error is nobody's but the service's");
}

/// Pending, ready and failed, as the inner service says.
fn readiness_is_the_inner_ones<L>(layer: L)
where
    L: Layer<mock::Mock<&'static str, String>>,
    L::Service: Service<&'static str, Error = tower::BoxError>,
{
    let (mut service, mut handle) = mock::spawn_layer::<&'static str, String, _>(layer);
    handle.allow(0);
    assert_pending!(service.poll_ready());
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.poll_ready());
    handle.send_error("broken");
    assert_eq!(assert_ready_err!(service.poll_ready()).to_string(), "broken");
}

#[tokio::test]
async fn readiness_and_its_errors_are_passed_through() {
    let cache = cache();
    readiness_is_the_inner_ones(ThrottleLayer::new(cache.scope("a"), 1, SECOND).answer(Fail));
    readiness_is_the_inner_ones(ThrottleLayer::new(cache.scope("a"), 1, SECOND).wait());
    readiness_is_the_inner_ones(BarrierLayer::new(cache.scope("a"), Lock).answer(Fail));
    readiness_is_the_inner_ones(StampedeCacheLayer::memoize(cache.scope("a"), SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_breaks_while_a_request_waits_fails_that_request() {
    let cache = paused_cache();
    let scope = cache.scope("a");
    scope.throttle("", Rate::new(1, SECOND)).check().await.unwrap();
    let (mut service, mut handle) =
        mock::spawn_layer::<&str, String, _>(ThrottleLayer::new(scope.clone(), 1, SECOND).wait());
    assert_ready_ok!(service.poll_ready());
    let mut waiting = tokio_test::task::spawn(service.call("hello"));
    assert_pending!(waiting.poll());
    handle.send_error("broken");
    assert_eq!(waiting.await.unwrap_err().to_string(), "broken");

    let held = scope.lock("").acquire().await.unwrap();
    let (mut service, mut handle) =
        mock::spawn_layer::<&str, String, _>(BarrierLayer::new(scope.clone(), Lock).answer(Fail));
    assert_ready_ok!(service.poll_ready());
    let mut waiting = tokio_test::task::spawn(service.call("hello"));
    assert_pending!(waiting.poll());
    handle.send_error("broken");
    drop(held);
    assert_eq!(waiting.await.unwrap_err().to_string(), "broken");
    scope.lock("").wait_at_most(Duration::ZERO).acquire().await.expect("the lock was given back");
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
            assert!(matches!(at_once().await, Err(AcquireError::Busy)), "its body still holds the lock");
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
