//! The throttle as its callers see it, on paused time.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Full};
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Body, Cache, Fail, Http, Lock, Reason, Rejection, ThrottleLayer,
    name::Header,
    throttle::{Decision, LimitError, Rate},
    time::{Clock, Steady},
};

#[path = "support/paused.rs"]
mod paused;
use paused::{cache, ms, secs};
#[path = "support/processes.rs"]
mod processes;

type Answered = Response<Body<Full<Bytes>>>;

/// Sends a request through a layer before a service that says "hello".
async fn ask<L, S>(layer: &L, request: Request<()>) -> Answered
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible>,
{
    layer.layer(hello()).oneshot(request).await.unwrap()
}

type Hello = tower::util::ServiceFn<fn(Request<()>) -> std::future::Ready<Result<Response<Full<Bytes>>, Infallible>>>;

fn hello() -> Hello {
    service_fn(|_| std::future::ready(Ok(Response::new(Full::from("hello")))))
}

async fn status<L, S>(layer: &L) -> u16
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible>,
{
    ask(layer, Request::new(())).await.status().as_u16()
}

fn from(client: &str) -> Request<()> {
    Request::builder().header("x-client", client).body(()).unwrap()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn admits_at_the_exact_instants() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("api"), 2, secs(10));
    assert_eq!((status(&layer).await, status(&layer).await, status(&layer).await), (200, 200, 429));
    advance(ms(4_999)).await;
    assert_eq!(status(&layer).await, 429);
    advance(ms(1)).await;
    assert_eq!((status(&layer).await, status(&layer).await), (200, 429), "one is back after half the time");
    advance(secs(10)).await;
    assert_eq!((status(&layer).await, status(&layer).await, status(&layer).await), (200, 200, 429), "all are, later");
    advance(secs(1_000)).await;
    assert_eq!((status(&layer).await, status(&layer).await, status(&layer).await), (200, 200, 429), "never more");
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.throttled, stats.failures), (7, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_rounded_up_and_at_least_a_second() {
    let cache = cache();
    for (per, told) in [(ms(1), "1"), (ms(1_000), "1"), (ms(1_001), "2"), (ms(90_500), "91")] {
        let layer = ThrottleLayer::new(cache.scope("api"), 1, per).name(format!("{per:?}"));
        assert_eq!(status(&layer).await, 200);
        let refused = ask(&layer, Request::new(())).await;
        assert_eq!(text(refused.headers(), "retry-after"), Some(told), "{per:?}");
        assert_eq!(refused.extensions().get::<Rejection>().unwrap().retry_after, Some(per));
        // Who waits as told is admitted.
        advance(Duration::from_secs(told.parse().unwrap())).await;
        assert_eq!(status(&layer).await, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_why() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("a \"b\""), 2, secs(10));
    for _ in 0..2 {
        let admitted = ask(&layer, Request::new(())).await;
        assert_eq!(text(admitted.headers(), "ratelimit"), None);
        assert!(admitted.extensions().get::<Decision>().is_some());
    }
    advance(ms(500)).await;
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(text(refused.headers(), "content-type"), Some("application/problem+json"));
    assert_eq!(text(refused.headers(), "ratelimit-policy"), Some(r#""a \"b\"";q=2;w=10"#));
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""a \"b\"";r=0;t=5"#));
    let why = refused.extensions().get::<Rejection>().unwrap().clone();
    assert_eq!((why.reason, &*why.scope, why.retry_after), (Reason::Throttled, "a \"b\"", Some(ms(4_500))));
    assert_eq!(why.quota.as_ref().map(|quota| (quota.limit, quota.remaining, quota.reset)), Some((2, 0, ms(9_500))));
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["title"], "Quota Exceeded");
    assert_eq!(problem["violated-policies"], serde_json::json!(["a \"b\""]));
}

#[tokio::test(start_paused = true)]
async fn admitted_answers_can_tell_what_is_left() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("inner"), 5, secs(10)).answer(Http::new().quota_headers());
    let admitted = ask(&layer, Request::new(())).await;
    assert_eq!(text(admitted.headers(), "ratelimit-policy"), Some(r#""inner";q=5;w=10"#));
    assert_eq!(text(admitted.headers(), "ratelimit"), Some(r#""inner";r=4;t=2"#));

    // Two throttles: both speak, in fields of their own.
    let both = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("outer"), 1, secs(1)).answer(Http::new().quota_headers()))
        .layer(layer)
        .service(hello());
    let admitted = both.oneshot(Request::new(())).await.unwrap();
    let told: Vec<_> = admitted.headers().get_all("ratelimit").iter().collect();
    assert_eq!(told, [r#""inner";r=3;t=4"#, r#""outer";r=0;t=1"#]);
}

#[tokio::test(start_paused = true)]
async fn handlers_and_outer_layers_see_the_decision() {
    let cache = cache();
    let handler = service_fn(|request: Request<()>| {
        let seen = request.extensions().get::<Decision>().map(|seen| (seen.quota.remaining, seen.waited));
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("{seen:?}")))))
    });
    let layer = ThrottleLayer::new(cache.scope("api"), 2, secs(10)).wait_at_most(secs(5));
    let service = layer.clone().layer(handler);
    for (left, waited) in [(1, secs(0)), (0, secs(0)), (0, secs(5))] {
        let admitted = service.clone().oneshot(Request::new(())).await.unwrap();
        let decision = admitted.extensions().get::<Decision>().unwrap().clone();
        assert_eq!((&*decision.scope, decision.quota.remaining, decision.waited), ("api", left, waited));
        assert!(decision.others.is_empty() && !decision.shadow);
        let seen = admitted.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(seen, format!("{:?}", Some((left, waited))));
    }
    // Nothing is told of what is not counted.
    let unnamed = layer.name(|_: &Request<()>| None::<String>).layer(handler);
    let passed = unnamed.oneshot(Request::new(())).await.unwrap();
    assert!(passed.extensions().get::<Decision>().is_none());
    assert_eq!(passed.into_body().collect().await.unwrap().to_bytes(), "None");
}

#[tokio::test(start_paused = true)]
async fn grpc_is_refused_in_its_own_words() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("rpc"), 1, ms(1_500));
    let call = || Request::builder().header("content-type", "application/grpc+proto").body(()).unwrap();
    assert_eq!(text(ask(&layer, call()).await.headers(), "grpc-status"), None);
    let refused = ask(&layer, call()).await;
    assert_eq!(refused.status(), 200);
    assert_eq!(text(refused.headers(), "content-type"), Some("application/grpc+proto"));
    assert_eq!(text(refused.headers(), "grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");
    assert_eq!(text(refused.headers(), "grpc-message"), Some("too many requests"));
    assert_eq!(text(refused.headers(), "grpc-retry-pushback-ms"), Some("1500"));
    assert!(refused.headers().get(RETRY_AFTER).is_none());
    assert!(http_body::Body::is_end_stream(refused.body()), "trailers only");
}

#[tokio::test(start_paused = true)]
async fn requests_cost_what_they_say() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("api"), 10, secs(10))
        .cost(|request: &Request<()>| request.headers()["x-cost"].to_str().unwrap().parse::<u32>().unwrap());
    let costing = |cost: u32| Request::builder().header("x-cost", cost).body(()).unwrap();
    assert_eq!(ask(&layer, costing(7)).await.status(), 200);
    let refused = ask(&layer, costing(4)).await;
    assert_eq!((refused.status().as_u16(), text(refused.headers(), "retry-after")), (429, Some("1")));
    assert_eq!(ask(&layer, costing(3)).await.status(), 200, "a refusal takes nothing");
    assert_eq!(ask(&layer, costing(1)).await.status(), 429);
    assert_eq!(ask(&layer, costing(0)).await.status(), 200, "what costs nothing always passes");
    let never = ask(&layer, costing(11)).await;
    assert_eq!((never.status().as_u16(), text(never.headers(), "retry-after")), (429, None));
    assert_eq!(never.extensions().get::<Rejection>().unwrap().reason, Reason::TooCostly);
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_its_own() {
    let cache = cache();
    let even = ThrottleLayer::new(cache.scope("even"), 60, secs(60)).burst(1);
    for _ in 0..5 {
        assert_eq!((status(&even).await, status(&even).await), (200, 429));
        advance(secs(1)).await;
    }
    let greedy = ThrottleLayer::new(cache.scope("greedy"), 1, secs(1)).burst(3);
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(status(&greedy).await);
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
    advance(secs(1)).await;
    assert_eq!((status(&greedy).await, status(&greedy).await), (200, 429));
}

#[tokio::test(start_paused = true)]
async fn evicting_a_tag_makes_its_budgets_full_again() {
    let cache = cache();
    let tagged = ThrottleLayer::new(cache.scope("a"), 1, secs(3_600)).name(Header::new("x-client")).tag("team");
    let other = ThrottleLayer::new(cache.scope("b"), 1, secs(3_600)).tag("others");
    for client in ["ada", "bob"] {
        assert_eq!(ask(&tagged, from(client)).await.status(), 200);
        assert_eq!(ask(&tagged, from(client)).await.status(), 429);
    }
    assert_eq!(status(&other).await, 200);
    cache.evict("team").await.unwrap();
    for client in ["ada", "bob"] {
        assert_eq!(ask(&tagged, from(client)).await.status(), 200);
        assert_eq!(ask(&tagged, from(client)).await.status(), 429);
    }
    assert_eq!(status(&other).await, 429);
    cache.clear().await.unwrap();
    assert_eq!(status(&other).await, 200);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_by_a_changed_limit_regains_at_its_pace() {
    let cache = cache();
    let slow = cache.throttle("plan", Rate::per_day(4));
    for _ in 0..4 {
        slow.check().await.unwrap();
    }
    let quick = cache.throttle("plan", Rate::per_second(4));
    assert!(quick.check().await.is_err(), "what is spent stays spent");
    advance(ms(250)).await;
    quick.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_same_cell_keeps_the_layers_tag() {
    let cache = cache();
    let rate = Rate::new(4, secs(4 * 3_600));
    let layer = ThrottleLayer::new(cache.scope("api"), 4, secs(4 * 3_600)).name("ada").tag("team");
    let limit = cache.scope("api").throttle("ada", rate);
    assert_eq!(status(&layer).await, 200);
    limit.check().await.unwrap();
    assert_eq!(limit.peek().await.unwrap().remaining, 2, "one cell");
    cache.evict("team").await.unwrap();
    assert_eq!(limit.peek().await.unwrap().remaining, 4, "after a check");

    // A waiter that leaves writes the cell too.
    assert_eq!(status(&layer).await, 200);
    limit.cost(3).check().await.unwrap();
    assert!(tokio::time::timeout(secs(1), limit.acquire()).await.is_err());
    assert_eq!(limit.peek().await.unwrap().reset, secs(4 * 3_600 - 1), "given back");
    cache.evict("team").await.unwrap();
    assert_eq!(limit.peek().await.unwrap().remaining, 4, "after a slot was given back");
}

type Notes = Arc<Mutex<Vec<(u32, Duration)>>>;

/// A service that notes who came when.
fn noting(began: Instant) -> (Notes, impl Service<u32, Response = (), Error = Rejection, Future: Send> + Clone) {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let noted = notes.clone();
    let service = service_fn(move |who: u32| {
        noted.lock().unwrap().push((who, began.elapsed()));
        std::future::ready(Ok::<_, Rejection>(()))
    });
    (notes, service)
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_the_order_of_their_coming() {
    let cache = cache();
    let (notes, service) = noting(Instant::now());
    let service = ThrottleLayer::new(cache.scope("api"), 2, secs(2)).wait().layer(service);
    let mut callers = JoinSet::new();
    for who in 0..6 {
        callers.spawn(service.clone().oneshot(who));
        yield_now().await;
    }
    while let Some(answered) = callers.join_next().await {
        answered.unwrap().unwrap();
    }
    let expected = [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)].map(|(who, second)| (who, secs(second)));
    assert_eq!(*notes.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_too_long_is_refused_at_once() {
    let cache = cache();
    let began = Instant::now();
    let (notes, service) = noting(began);
    let service = ThrottleLayer::new(cache.scope("api"), 1, secs(1)).wait_at_most(secs(2)).answer(Fail).layer(service);
    let mut callers = JoinSet::new();
    for who in 0..3 {
        callers.spawn(service.clone().oneshot(who));
        yield_now().await;
    }
    let refused = service.clone().oneshot(3).await.unwrap_err();
    assert_eq!(began.elapsed(), secs(0));
    assert_eq!(
        (refused.reason, refused.retry_after),
        (Reason::Throttled, Some(secs(1))),
        "then its wait is short enough"
    );
    while let Some(answered) = callers.join_next().await {
        answered.unwrap().unwrap();
    }
    assert_eq!(*notes.lock().unwrap(), [(0, secs(0)), (1, secs(1)), (2, secs(2))]);
    service.oneshot(4).await.unwrap();
    assert_eq!(notes.lock().unwrap()[3], (4, secs(3)));
}

#[tokio::test(start_paused = true)]
async fn the_turn_of_a_waiter_that_leaves_goes_to_the_next_that_comes() {
    let cache = cache();
    let (notes, service) = noting(Instant::now());
    let service = ThrottleLayer::new(cache.scope("api"), 1, secs(1)).wait().layer(service);
    let peek = async || cache.scope("api").throttle("", Rate::new(1, secs(1))).peek().await.unwrap().reset;
    service.clone().oneshot(0).await.unwrap();

    let last = tokio::spawn(service.clone().oneshot(1));
    yield_now().await;
    assert_eq!(peek().await, secs(2));
    last.abort();
    let _ = last.await;
    assert_eq!(peek().await, secs(1), "given back");

    let middle = tokio::spawn(service.clone().oneshot(2));
    yield_now().await;
    let end = tokio::spawn(service.clone().oneshot(3));
    yield_now().await;
    middle.abort();
    let _ = middle.await;
    assert_eq!(peek().await, secs(3), "someone waits behind it, and keeps the turn");
    service.clone().oneshot(4).await.unwrap();
    end.await.unwrap().unwrap();
    assert_eq!(*notes.lock().unwrap(), [(0, secs(0)), (4, secs(1)), (3, secs(2))]);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_sit_on_the_inner_services_readiness() {
    let cache = cache();
    let (notes, service) = noting(Instant::now());
    let service = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("api"), 1, secs(1)).wait().name(|who: &u32| *who % 2))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(1))
        .service(service);
    service.clone().oneshot(1).await.unwrap();
    let waiter = tokio::spawn(service.clone().oneshot(3));
    yield_now().await;
    service.oneshot(2).await.unwrap();
    waiter.await.unwrap().unwrap();
    assert_eq!(*notes.lock().unwrap(), [(1, secs(0)), (2, secs(0)), (3, secs(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_failing_call_stays_spent_and_a_waiting_one_too() {
    let cache = cache();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let failing = service_fn(move |_: ()| {
        counted.fetch_add(1, SeqCst);
        async { Err::<(), _>("it failed") }
    });
    let service = ThrottleLayer::new(cache.scope("api"), 1, secs(60)).wait_at_most(secs(60));
    let service =
        service.answer(|_: &(), why: Rejection| if why.retry_after.is_some() { Err("later") } else { Ok(()) });
    let service = service.layer(failing);
    assert_eq!(service.clone().oneshot(()).await, Err("it failed"));
    assert_eq!(service.clone().oneshot(()).await, Err("it failed"), "after a wait");
    let third = tokio::spawn(service.clone().oneshot(()));
    yield_now().await;
    assert_eq!(service.oneshot(()).await, Err("later"));
    assert_eq!(third.await.unwrap(), Err("it failed"));
    assert_eq!(calls.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn names_have_budgets_of_their_own_and_no_name_is_not_counted() {
    let cache = cache();
    let layer = ThrottleLayer::new(cache.scope("api"), 1, secs(60))
        .name(|request: &Request<()>| text(request.headers(), "x-client").map(str::to_owned));
    assert_eq!(layer.name_of(&from("ada")).as_deref(), Some("ada"));
    assert_eq!(layer.name_of(&Request::new(())), None);
    for client in ["ada", "bob", ""] {
        assert_eq!(ask(&layer, from(client)).await.status(), 200);
        assert_eq!(ask(&layer, from(client)).await.status(), 429, "{client}");
    }
    for _ in 0..5 {
        let passed = ask(&layer, Request::new(())).await;
        assert_eq!((passed.status().as_u16(), passed.extensions().get::<Decision>()), (200, None));
    }
    let elsewhere = ThrottleLayer::new(cache.scope("other"), 1, secs(60)).name(Header::new("x-client"));
    assert_eq!(ask(&elsewhere, from("ada")).await.status(), 200, "scopes never meet");
}

#[tokio::test(start_paused = true)]
async fn a_throttle_and_a_barrier_of_one_name_never_meet() {
    // In diskcache the two share a key, and deadlock.
    let cache = cache();
    let service = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("api"), 2, secs(60)).name("report"))
        .layer(BarrierLayer::new(cache.scope("api"), Lock).name("report").wait_at_most(secs(0)))
        .service(hello());
    for status in [200, 200, 429] {
        let answered = service.clone().oneshot(Request::new(())).await.unwrap();
        assert_eq!(answered.status(), status);
        answered.into_body().collect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn neither_restarts_nor_other_handles_refill_a_budget() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Steady::new();
    let open = || Cache::builder(dir.path()).state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let layer = |cache: &Cache| ThrottleLayer::new(cache.scope("api"), 4, secs(40));

    let first = open();
    assert_eq!(status(&layer(&first)).await, 200);
    assert_eq!(status(&layer(&first)).await, 200, "made again");
    let second = open();
    assert_eq!(status(&layer(&second)).await, 200, "another handle");
    drop((first, second));
    for _ in 0..3 {
        let reopened = open();
        let layer = layer(&reopened);
        assert_eq!((status(&layer).await, status(&layer).await), (200, 429), "opened again");
        advance(secs(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_woken_early_goes_on_waiting() {
    /// Sleeps half of what it is asked to, as a clock in the seed's examples does.
    #[derive(Clone)]
    struct Hasty(Steady, Arc<AtomicU32>);
    impl Clock for Hasty {
        fn now(&self) -> Duration {
            self.0.now()
        }
        fn sleep(&self, delay: Duration) -> std::pin::Pin<Box<dyn hyper::rt::Sleep>> {
            self.1.fetch_add(1, SeqCst);
            self.0.sleep(delay / 2)
        }
    }
    let clock = Hasty(Steady::new(), Arc::default());
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let began = Instant::now();
    let (notes, service) = noting(began);
    let service = ThrottleLayer::new(cache.scope("api"), 1, secs(8)).wait().layer(service);
    service.clone().oneshot(0).await.unwrap();
    service.oneshot(1).await.unwrap();
    assert_eq!(*notes.lock().unwrap(), [(0, secs(0)), (1, secs(8))]);
    assert!((2..40).contains(&clock.1.load(SeqCst)), "{} sleeps", clock.1.load(SeqCst));

    let limit = cache.throttle("l", Rate::new(1, secs(8)));
    limit.acquire().await.unwrap();
    limit.acquire().await.unwrap();
    assert_eq!(began.elapsed(), secs(16));
}

#[tokio::test(start_paused = true)]
async fn a_limit_works_without_tower() {
    let cache = cache();
    let limit = cache.throttle("mails", Rate::new(3, secs(30)));
    let peek = async || limit.peek().await.unwrap();
    assert_eq!((peek().await.limit, peek().await.remaining, peek().await.reset), (3, 3, secs(0)));
    assert_eq!(limit.check().await.unwrap().quota.remaining, 2);
    assert_eq!(limit.cost(2).check().await.unwrap().quota.remaining, 0);
    assert_eq!(peek().await.remaining, 0, "looking takes nothing");
    let Err(LimitError::Throttled { retry_after, quota, .. }) = limit.check().await else { panic!("admitted") };
    assert_eq!((retry_after, quota.remaining, quota.reset), (Some(secs(10)), 0, secs(30)));
    let Err(LimitError::Throttled { retry_after: None, .. }) = limit.cost(4).acquire().await else {
        panic!("more than the burst never fits")
    };

    let began = Instant::now();
    limit.acquire().await.unwrap();
    assert_eq!(began.elapsed(), secs(10));
    let Err(LimitError::Throttled { retry_after, .. }) = limit.cost(2).acquire_timeout(secs(15)).await else {
        panic!("waited")
    };
    assert_eq!((began.elapsed(), retry_after), (secs(10), Some(secs(5))), "known at once");
    limit.reset().await.unwrap();
    assert_eq!(peek().await.remaining, 3);

    // A dropped waiter gives back; a plain thread can ask too.
    limit.cost(3).check().await.unwrap();
    assert!(tokio::time::timeout(secs(1), limit.acquire()).await.is_err());
    assert_eq!(peek().await.reset, secs(29));
    let threads = limit.clone();
    let refused = std::thread::spawn(move || threads.check_blocking()).join().unwrap();
    assert!(matches!(refused, Err(LimitError::Throttled { .. })));

    // The layer of the same scope and name has the same budget.
    let layer = ThrottleLayer::new(cache.scope("shared"), 2, secs(20)).name(|_: &Request<()>| "mails");
    let limit = cache.scope("shared").throttle("mails", Rate::new(2, secs(20)));
    assert_eq!(status(&layer).await, 200);
    assert_eq!(limit.check().await.unwrap().quota.remaining, 0);
    assert_eq!(status(&layer).await, 429);
}

#[tokio::test]
async fn while_the_cache_fails_requests_pass_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).patience(ms(30)).open().unwrap();
    let open = ThrottleLayer::new(cache.scope("api"), 1, secs(3_600));
    let closed = open.clone().fail_closed();
    let waiting =
        ThrottleLayer::new(cache.scope("api"), 1, secs(3_600)).wait().layer(service_fn(async |_: ()| Ok::<_, ()>(())));
    assert_eq!((status(&open).await, status(&open).await), (200, 429));

    // Another process sits in the middle of a write.
    let mut child = processes::Child::spawn("sit in the gate", dir.path());
    child.expect("in");
    assert_eq!(status(&open).await, 429, "known to be spent, and nobody can have changed it");
    let (fresh, fresh_closed) = (open.clone().name("another"), closed.clone().name("another"));
    assert_eq!((status(&fresh).await, status(&fresh).await), (200, 200));
    let refused = ask(&fresh_closed, Request::new(())).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(refused.headers(), "retry-after"), Some("1"));
    let why = refused.extensions().get::<Rejection>().unwrap();
    assert_eq!((why.reason, why.retry_after), (Reason::CacheFailed, Some(secs(1))));
    let call = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
    let refused = ask(&fresh_closed, call).await;
    assert_eq!(text(refused.headers(), "grpc-status"), Some("14"), "UNAVAILABLE");
    assert_eq!(text(refused.headers(), "grpc-retry-pushback-ms"), Some("1000"));
    waiting.oneshot(()).await.unwrap();
    assert!(matches!(cache.throttle("l", Rate::new(1, secs(1))).check().await, Err(LimitError::Cache(_))));
    assert_eq!(cache.stats().failures, 6);

    child.kill();
    // The first after it may still be told of the failure; the budgets are as they were.
    while status(&fresh_closed).await == 503 {
        sleep(ms(1)).await;
    }
    assert_eq!((status(&fresh).await, status(&open).await, status(&closed).await), (429, 429, 429));
    assert_eq!(cache.stats().admitted, 2);
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    assert_eq!(role, "sit in the gate");
    processes::sit_in_the_gate(&path);
}
