//! The tower contract, for each layer: readiness, clones, cancellation at every point, and no state in `layer()`.

#[path = "support/probe.rs"]
mod probe;

use http::{Request, Response};
use probe::{MINUTE, Probe, SECOND, Watch, at_once, cache, get, paused_cache, soon, text};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer},
    service_fn,
};
use tower_floodgate::{
    BarrierLayer, Body, Fail, Lock, RLock, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer,
    barrier::grpc_timeout, lock::ReadWrite, name, stampede::CacheStatus, throttle::Rate,
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
    let barrier = BarrierLayer::new(cache.scope("a"), RLock::new()).forward_owner("x-owner").fence_header("x-fence");
    let barrier = barrier.names(|_: &Request<_>| ["a", "b"]).deadline(grpc_timeout).cancel_on_loss();
    sent(shared(shared(barrier).layer(hyper.clone())).call(request()));
    sent(shared(shared(StampedeCacheLayer::new(cache.scope("a"), SECOND)).layer(hyper)).call(request()));
    let plain = service_fn(|n: u32| async move { Ok::<_, Infallible>(n) });
    sent(shared(shared(StampedeCacheLayer::memoize(cache.scope("a"), SECOND)).layer(plain)).call(1));
}

#[tokio::test]
async fn services_work_within_async_blocks_that_are_spawned() {
    let cache = cache();
    let probe = Probe::new(1);
    // What a future holds over an await must be `Send` for any lifetimes, which some types of names are not.
    macro_rules! spawn {
        ($($layer:expr),+ $(,)?) => {$({
            let service = $layer.layer(probe.clone());
            let held = service.clone();
            let task = tokio::spawn(async move {
                let response = service.oneshot(get("/")).await.unwrap();
                let first = response.status();
                drop(response);
                (first, held.oneshot(get("/")).await.unwrap().status())
            });
            let (first, second) = soon(task).await.unwrap();
            assert_eq!((first.as_u16(), second.as_u16()), (200, 200));
        })+};
    }
    let tenant = name::extension(|tenant: &u32| *tenant);
    spawn!(
        ThrottleLayer::new(cache.scope("a"), 9, MINUTE),
        ThrottleLayer::new(cache.scope("a"), 9, MINUTE).wait_at_most(SECOND).cost(|_: &Request<String>| 2),
        ThrottleLayer::new(cache.scope("b"), 9, MINUTE).name(path),
        ThrottleLayer::new(cache.scope("b"), 9, MINUTE).name(|request: &Request<String>| request.uri().port_u16()),
        ThrottleLayer::new(cache.scope("b"), 9, MINUTE).name((
            name::ClientIp::new(),
            name::Header::new("x-key"),
            tenant
        )),
        BarrierLayer::new(cache.scope("a"), Lock),
        BarrierLayer::new(cache.scope("a"), RLock::new()).name("one"),
        BarrierLayer::new(cache.scope("b"), |_: &Request<String>| Semaphore(2)).name(path),
        BarrierLayer::new(cache.scope("c"), Lock).names(|request: &Request<String>| [path(request), "one".to_owned()]),
        BarrierLayer::new(cache.scope("c"), ReadWrite).deadline(grpc_timeout).cancel_on_loss(),
        BarrierLayer::new(cache.scope("c"), RLock::new()).forward_owner("x-owner").fence_header("x-fence"),
        StampedeCacheLayer::new(cache.scope("a"), MINUTE).ignore(["utm_*"]),
        StampedeCacheLayer::new(cache.scope("b"), MINUTE).name((name::Target::new(), path)),
        ServiceBuilder::new()
            .layer(ThrottleLayer::new(cache.scope("c"), 9, MINUTE).name(path))
            .layer(StampedeCacheLayer::new(cache.scope("c"), MINUTE))
            .layer(BarrierLayer::new(cache.scope("c"), Lock))
            .into_inner(),
    );
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

#[tokio::test]
async fn an_early_refresh_calls_the_readied_instance() {
    let cache = cache();
    let probe = Probe::new(1);
    let watch = probe.watch();
    // So eager that every hit refreshes.
    let mut service = StampedeCacheLayer::new(cache.scope("a"), MINUTE).beta(1e18).layer(probe);
    for n in 1..=3 {
        let response = ServiceExt::<Request<String>>::ready(&mut service).await.unwrap().call(get("/")).await.unwrap();
        let hit = matches!(response.extensions().get(), Some(CacheStatus::Hit { .. }));
        assert_eq!((text(response.into_body()).await.as_str(), hit), ("/", n > 1));
        soon(async {
            while cache.stats().stored < n {
                tokio::time::sleep(SECOND / 1000).await;
            }
        })
        .await;
    }
    assert_eq!(watch.called(), [0, 0, 0]);
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
    at_once(service.clone().oneshot(get("/b"))).await.unwrap();
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
    at_once(service.clone().oneshot(get("/b"))).await.unwrap();
    assert!(began.elapsed() < SECOND / 2, "another name passes meanwhile");
    drop(held);
    assert_eq!(waiting.await.unwrap().status(), 200);
}

/// Calls one instance again and again, which its owner keeps while it waits.
async fn kept<L, S>(layer: L, calls: usize)
where
    L: Layer<ConcurrencyLimit<Probe>, Service = S>,
    S: Service<Request<String>, Error = Infallible>,
{
    let mut service = layer.layer(ConcurrencyLimit::new(Probe::new(1), 1));
    for _ in 0..calls {
        let answering = service.ready().await.unwrap().call(get("/"));
        assert!(soon(answering).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn who_keeps_a_service_and_waits_for_a_turn_does_not_hold_what_the_turn_needs() {
    kept(ThrottleLayer::new(paused_cache().scope("a"), 1, SECOND).wait(), 3).await;
}

#[tokio::test(start_paused = true)]
async fn who_keeps_a_service_and_waits_for_a_lock_does_not_hold_what_the_lock_needs() {
    let scope = paused_cache().scope("a");
    let held = scope.lock("").acquire().await.unwrap();
    let free = async {
        tokio::time::sleep(SECOND).await;
        drop(held);
    };
    tokio::join!(free, kept(BarrierLayer::new(scope.clone(), Lock), 2));
}

#[tokio::test(start_paused = true)]
async fn who_keeps_a_service_that_refused_does_not_hold_what_the_holder_needs() {
    let scope = paused_cache().scope("a");
    let held = scope.lock("").acquire().await.unwrap();
    let layer = BarrierLayer::new(scope.clone(), Lock);
    let permits = GlobalConcurrencyLimitLayer::new(1);
    let mut kept = layer.clone().try_only().layer(permits.layer(Probe::new(1)));
    let ready = ServiceExt::<Request<String>>::ready(&mut kept).await.unwrap();
    assert_eq!(ready.call(get("/")).await.unwrap().status(), 503);
    drop(held);
    let other = layer.layer(permits.layer(Probe::new(1)));
    assert_eq!(soon(other.oneshot(get("/"))).await.unwrap().status(), 200);
    drop(kept);
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
    readiness_is_the_inner_ones(
        BarrierLayer::new(cache.scope("a"), Lock).answer(Fail).names(|_: &&str| ["a", "b"]).cancel_on_loss(),
    );
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
    while !waiting.is_woken() {
        tokio::task::yield_now().await;
    }
    assert_eq!(assert_ready_err!(waiting.poll()).to_string(), "broken");
    let free = scope.lock("").try_acquire().await;
    assert!(free.is_ok(), "the lock was given back, though the future still exists");
}
