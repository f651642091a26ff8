//! The barrier as its callers see it, on paused time.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Fail, Lock, LockFactory, RLock, Reason, Rejection, Semaphore,
    lock::{AcquireError, Holder, Owner, Rule},
    name::Header,
};

#[path = "support/paused.rs"]
mod paused;
#[path = "support/processes.rs"]
mod processes;
use paused::{cache, ms, secs};
use processes::Child;

/// A service that takes a second, notes who came when, and how many were in at once.
#[derive(Clone)]
struct Room {
    began: Instant,
    inside: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    came: Arc<Mutex<Vec<(u32, Duration)>>>,
}

impl Room {
    fn new() -> Self {
        Room { began: Instant::now(), inside: Arc::default(), most: Arc::default(), came: Arc::default() }
    }

    async fn visit(self, who: u32) -> Result<u32, Rejection> {
        self.came.lock().unwrap().push((who, self.began.elapsed()));
        self.most.fetch_max(self.inside.fetch_add(1, SeqCst) + 1, SeqCst);
        sleep(secs(1)).await;
        self.inside.fetch_sub(1, SeqCst);
        Ok(who)
    }

    fn service(
        &self,
    ) -> impl Service<u32, Response = u32, Error = Rejection, Future: Send + 'static> + Clone + Send + 'static {
        let room = self.clone();
        service_fn(move |who: u32| room.clone().visit(who))
    }

    fn came(&self) -> Vec<(u32, Duration)> {
        self.came.lock().unwrap().clone()
    }
}

/// Sends numbered callers, one after the other, and waits for all.
async fn send<S>(service: &S, callers: std::ops::Range<u32>) -> Vec<Result<u32, Rejection>>
where
    S: Service<u32, Response = u32, Error = Rejection, Future: Send + 'static> + Clone + Send + 'static,
{
    let mut sent = JoinSet::new();
    for who in callers {
        sent.spawn(service.clone().oneshot(who));
        yield_now().await;
    }
    let mut answers = Vec::new();
    while let Some(answer) = sent.join_next().await {
        answers.push(answer.unwrap());
    }
    answers
}

fn at(times: &[(u32, u64)]) -> Vec<(u32, Duration)> {
    times.iter().map(|&(who, at)| (who, ms(at))).collect()
}

#[tokio::test(start_paused = true)]
async fn one_at_a_time_in_the_order_of_their_coming() {
    let cache = cache();
    let room = Room::new();
    let service = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).layer(room.service());
    let answers = send(&service, 0..5).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(room.came(), at(&[(0, 0), (1, 1_000), (2, 2_000), (3, 3_000), (4, 4_000)]));
    assert_eq!(room.most.load(SeqCst), 1);
    let stats = cache.stats();
    assert_eq!((stats.locked, stats.busy, stats.leases_lost), (5, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_semaphore_admits_so_many() {
    let cache = cache();
    let room = Room::new();
    let service = BarrierLayer::new(cache.scope("db"), Semaphore(3)).answer(Fail).layer(room.service());
    send(&service, 0..7).await;
    let times: Vec<_> = room.came().into_iter().map(|(_, at)| at.as_secs()).collect();
    assert_eq!(times, [0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(room.most.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn names_have_locks_of_their_own_and_no_name_takes_none() {
    let cache = cache();
    let room = Room::new();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail);
    let service = layer.clone().name(|who: &u32| who % 2).layer(room.service());
    send(&service, 0..4).await;
    assert_eq!(room.came(), at(&[(0, 0), (1, 0), (2, 1_000), (3, 1_000)]));

    let room = Room::new();
    let unnamed = layer.name(|who: &u32| (*who < 2).then_some("few"));
    assert_eq!((unnamed.name_of(&1).as_deref(), unnamed.name_of(&2)), (Some("few"), None));
    send(&unnamed.layer(room.service()), 0..4).await;
    assert_eq!(room.came(), at(&[(0, 0), (2, 0), (3, 0), (1, 1_000)]));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_is_refused() {
    let cache = cache();
    let room = Room::new();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail);
    let patient = layer.clone().wait_at_most(ms(1_500)).layer(room.service());
    let answers = send(&patient, 0..3).await;
    assert_eq!((&answers[0], &answers[2]), (&Ok(0), &Ok(1)), "the third gave up before the second was done");
    let refused = answers[1].clone().unwrap_err();
    assert_eq!((refused.reason, &*refused.scope, refused.quota), (Reason::Busy, "db", None));
    assert_eq!(room.began.elapsed(), secs(2));

    let held = tokio::spawn(patient.clone().oneshot(3));
    yield_now().await;
    let impatient = layer.wait_at_most(secs(0)).layer(room.service());
    assert_eq!(impatient.clone().oneshot(4).await.unwrap_err().reason, Reason::Busy);
    assert_eq!(room.began.elapsed(), secs(2), "at once");
    held.await.unwrap().unwrap();
    assert_eq!(impatient.oneshot(5).await, Ok(5));
    assert_eq!(cache.stats().busy, 2);
}

#[tokio::test(start_paused = true)]
async fn over_http_a_refusal_is_a_503_in_the_callers_protocol() {
    let cache = cache();
    let service = ServiceBuilder::new()
        .layer(BarrierLayer::new(cache.scope("db"), Lock).wait_at_most(secs(0)))
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))));
    let held = service.clone().oneshot(Request::new(())).await.unwrap();
    let refused = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    assert!(refused.headers().get("ratelimit").is_none());
    assert_eq!(refused.extensions().get::<Rejection>().unwrap().reason, Reason::Busy);

    let call = Request::builder().header("content-type", "application/grpc").body(()).unwrap();
    let refused = service.clone().oneshot(call).await.unwrap();
    assert_eq!((refused.status(), &refused.headers()["grpc-status"]), (StatusCode::OK, &"14".parse().unwrap()));
    drop(held);
    assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_streaming_response_holds_the_lock_until_it_ends_or_is_dropped() {
    let cache = cache();
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let bodies = Arc::new(Mutex::new(vec![receiver]));
    let service = ServiceBuilder::new()
        .layer(BarrierLayer::new(cache.scope("db"), Lock).wait_at_most(secs(0)))
        .service(service_fn(move |_: Request<()>| {
            let body = bodies.lock().unwrap().pop().unwrap_or_else(|| mpsc::channel(1).1);
            std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(ReceiverStream::new(body)))))
        }));
    let status = async || service.clone().oneshot(Request::new(())).await.unwrap().status().as_u16();

    let mut streaming = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(status().await, 503);
    sender.send(Ok(Frame::data("chunk".into()))).await.unwrap();
    assert!(streaming.frame().await.unwrap().unwrap().is_data());
    assert_eq!(status().await, 503, "still streaming");
    drop(sender);
    assert!(streaming.frame().await.is_none());
    assert_eq!(status().await, 200, "ended, though the response still exists");
    drop(streaming);

    let dropped = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(status().await, 503);
    drop(dropped);
    assert_eq!(status().await, 200);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_gives_up_its_place() {
    let cache = cache();
    let room = Room::new();
    let service = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).layer(room.service());
    let mut sent = Vec::new();
    for who in 0..5 {
        sent.push(tokio::spawn(service.clone().oneshot(who)));
        yield_now().await;
    }
    advance(ms(500)).await;
    // The first of the queue, one from its middle, and the holder itself.
    for gone in [1, 3, 0] {
        sent[gone].abort();
        yield_now().await;
    }
    for stays in [2, 4] {
        assert_eq!((&mut sent[stays]).await.unwrap(), Ok(stays as u32));
    }
    assert_eq!(room.came(), at(&[(0, 0), (2, 500), (4, 1_500)]));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_panics_or_fails_lets_go() {
    let cache = cache();
    let service = BarrierLayer::new(cache.scope("db"), Lock).wait_at_most(secs(0)).answer(Fail);
    let service = service.layer(service_fn(|who: u32| async move {
        sleep(secs(1)).await;
        match who {
            0 => panic!("as it is meant to"),
            1 => Err(std::io::Error::other("fails").into()),
            _ => Ok::<u32, tower::BoxError>(who),
        }
    }));
    assert!(tokio::spawn(service.clone().oneshot(0)).await.unwrap_err().is_panic());
    assert_eq!(service.clone().oneshot(1).await.unwrap_err().to_string(), "fails");
    assert_eq!(service.oneshot(2).await.unwrap(), 2);
    // A panic in `call`, before there is a future.
    let service = BarrierLayer::new(cache.scope("db"), Lock).wait_at_most(secs(0)).answer(Fail);
    let panics =
        service.clone().layer(service_fn(|_: ()| -> std::future::Ready<Result<(), Rejection>> { panic!("too") }));
    assert!(tokio::spawn(panics.oneshot(())).await.unwrap_err().is_panic());
    service.layer(service_fn(async |_: ()| Ok::<_, Rejection>(()))).oneshot(()).await.unwrap();
}

type Boxed = tower::util::BoxCloneSyncService<Request<u32>, Response<u32>, Rejection>;

/// Answers how deep it got, by asking itself through the layers around it.
#[derive(Clone, Default)]
struct Nested {
    outer: Arc<Mutex<Option<Boxed>>>,
    order: Arc<Mutex<Vec<String>>>,
}

impl Nested {
    async fn answer(self, request: Request<u32>) -> Result<Response<u32>, Rejection> {
        let depth = *request.body();
        self.order.lock().unwrap().push(format!("{}{depth}", request.uri().path()));
        sleep(secs(1)).await;
        if depth == 0 {
            return Ok(Response::new(0));
        }
        let mut nested = Request::get(request.uri()).body(depth - 1).unwrap();
        nested.extensions_mut().insert(request.extensions().get::<Owner>().expect("handed over").clone());
        let outer = self.outer.lock().unwrap().clone().unwrap();
        Ok(outer.oneshot(nested).await?.map(|deep| deep + 1))
    }

    fn behind<L>(&self, layer: L) -> Boxed
    where
        L: Layer<Boxed>,
        L::Service: Service<Request<u32>, Response = Response<u32>, Error = Rejection, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let me = self.clone();
        let inner = tower::util::BoxCloneSyncService::new(service_fn(move |request| me.clone().answer(request)));
        let service = tower::util::BoxCloneSyncService::new(layer.layer(inner));
        *self.outer.lock().unwrap() = Some(service.clone());
        service
    }
}

#[tokio::test(start_paused = true)]
async fn an_rlock_lets_its_owner_in_again_while_others_wait() {
    let cache = cache();
    let nested = Nested::default();
    let service = nested.behind(BarrierLayer::new(cache.scope("r"), RLock::new()).answer(Fail));
    let first = tokio::spawn(service.clone().oneshot(Request::get("/a").body(3).unwrap()));
    yield_now().await;
    let second = tokio::spawn(service.oneshot(Request::get("/b").body(1).unwrap()));
    assert_eq!(first.await.unwrap().unwrap().into_body(), 3);
    assert_eq!(second.await.unwrap().unwrap().into_body(), 1);
    assert_eq!(*nested.order.lock().unwrap(), ["/a3", "/a2", "/a1", "/a0", "/b1", "/b0"]);
    assert!(cache.scope("r").lock("").wait_at_most(secs(0)).await.is_ok(), "all left");
}

#[tokio::test(start_paused = true)]
async fn owners_can_come_from_elsewhere() {
    let cache = cache();
    let room = Room::new();
    // The tenant of a request, which a trusted gateway has put there.
    let owner_of = |who: &u32| (*who < 10).then(|| Owner::from_u128(u128::from(who % 2)));
    let service = BarrierLayer::new(cache.scope("r"), RLock::owned_by(owner_of))
        .answer(Fail)
        .wait_at_most(secs(0))
        .layer(room.service());
    let answers = send(&service, 0..4).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 2, "0 and 2 are one owner, 1 and 3 another");
    assert_eq!(room.came(), at(&[(0, 0), (2, 0)]));
    let strangers = send(&service, 10..12).await;
    assert_eq!(strangers.iter().filter(|answer| answer.is_ok()).count(), 1, "nobody's request enters alone");
}

#[derive(Clone)]
struct Pairs;

impl LockFactory<u32> for Pairs {
    type Rule = Semaphore;

    fn rule(&self, _: &u32) -> Semaphore {
        Semaphore(2)
    }
}

#[tokio::test(start_paused = true)]
async fn users_bring_lock_factories_and_rules_of_their_own() {
    let cache = cache();
    let room = Room::new();
    let service = BarrierLayer::new(cache.scope("factory"), Pairs).answer(Fail).layer(room.service());
    send(&service, 0..3).await;
    assert_eq!(room.came(), at(&[(0, 0), (1, 0), (2, 1_000)]));

    // A closure chooses one of the rules by the request.
    let room = Room::new();
    let by_request = |who: &u32| Semaphore(if *who == 0 { 1 } else { 2 });
    let service = BarrierLayer::new(cache.scope("closure"), by_request).answer(Fail).layer(room.service());
    send(&service, 0..3).await;
    assert_eq!(room.came(), at(&[(0, 0), (1, 0), (2, 1_000)]));

    // A rule may be a closure too.
    fn at_most_two(holders: &[Holder], _: &Owner) -> bool {
        holders.len() < 2 && holders.iter().all(|holder| holder.entered == 1)
    }
    let room = Room::new();
    let service = BarrierLayer::new(cache.scope("rule"), |_: &u32| at_most_two).answer(Fail).layer(room.service());
    send(&service, 0..3).await;
    assert_eq!(room.came(), at(&[(0, 0), (1, 0), (2, 1_000)]));
}

#[derive(Clone)]
struct Panicking;

impl Rule for Panicking {
    fn admits(&self, _: &[Holder], _: &Owner) -> bool {
        panic!("as it is meant to")
    }
}

/// Asks for a lease of so many nanoseconds, which requests may bring with them.
#[derive(Clone)]
struct Leased;

impl LockFactory<u64> for Leased {
    type Rule = Lock;

    fn rule(&self, _: &u64) -> Lock {
        Lock
    }

    fn lease(&self, nanos: &u64) -> Option<Duration> {
        Some(if *nanos == u64::MAX { Duration::MAX } else { Duration::from_nanos(*nanos) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_out_of_range_that_comes_with_a_request_is_brought_into_it() {
    let cache = cache();
    let layer = BarrierLayer::new(cache.scope("db"), Leased).answer(Fail);
    let service = layer.clone().layer(service_fn(async |nanos: u64| Ok::<_, Rejection>(nanos)));
    let held =
        || tokio::spawn(layer.layer(service_fn(|_| std::future::pending::<Result<u64, Rejection>>())).oneshot(1));
    for nanos in [1_000_000, 0, 1, u64::MAX - 1, u64::MAX] {
        assert_eq!(service.clone().oneshot(nanos).await, Ok(nanos));
    }
    // However short, it is a lock.
    let held = held();
    yield_now().await;
    let lock = cache.scope("db").lock("").wait_at_most(secs(0));
    assert!(matches!(lock.clone().await, Err(AcquireError::Busy { .. })));
    held.abort();
    assert!(held.await.unwrap_err().is_cancelled());
    assert!(lock.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_panics_is_a_failed_cache() {
    let cache = cache();
    let room = Room::new();
    let layer = BarrierLayer::new(cache.scope("db"), |_: &u32| Panicking).answer(Fail);
    let refused = layer.clone().layer(room.service()).oneshot(0).await.unwrap_err();
    assert_eq!(refused.reason, Reason::CacheFailed);
    assert_eq!(cache.stats().failures, 1);
    assert_eq!(layer.fail_open().layer(room.service()).oneshot(1).await, Ok(1));
    assert_eq!(cache.stats().failures, 2);
    let fine = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).layer(room.service());
    assert_eq!(fine.oneshot(2).await, Ok(2), "others are not harmed");
    assert!(matches!(cache.lock("l").rule(Panicking).await, Err(AcquireError::Cache(_))));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_sit_on_the_inner_services_readiness() {
    let cache = cache();
    let room = Room::new();
    let service = ServiceBuilder::new()
        .layer(BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).name(|who: &u32| who % 2))
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(2))
        .service(room.service());
    send(&service, 1..2).await;
    let mut sent = JoinSet::new();
    for who in [1, 3, 5, 2] {
        sent.spawn(service.clone().oneshot(who));
        yield_now().await;
    }
    sent.join_all().await;
    assert_eq!(room.came()[1..3], at(&[(1, 1_000), (2, 1_000)]));
}

#[tokio::test(start_paused = true)]
async fn evicting_and_clearing_free_no_held_lock() {
    let cache = cache();
    let room = Room::new();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail).tag("team").wait_at_most(secs(0));
    let held =
        tokio::spawn(layer.layer(service_fn(|_: u32| std::future::pending::<Result<u32, Rejection>>())).oneshot(0));
    yield_now().await;
    cache.evict("team").await.unwrap();
    cache.clear().await.unwrap();
    assert_eq!(layer.layer(room.service()).oneshot(1).await.unwrap_err().reason, Reason::Busy);
    held.abort();
    yield_now().await;
    assert_eq!(layer.layer(room.service()).oneshot(2).await, Ok(2));
}

#[tokio::test]
async fn while_the_cache_fails_requests_are_refused_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).patience(ms(30)).open().unwrap();
    let layer = BarrierLayer::new(cache.scope("db"), Lock).answer(Fail);
    let service = service_fn(async |who: u32| Ok::<_, Rejection>(who));
    let (closed, open) = (layer.layer(service), layer.clone().fail_open().layer(service));
    let mut child = Child::spawn("sit in the gate", dir.path());
    child.expect("in");
    assert_eq!(closed.clone().oneshot(0).await.unwrap_err().reason, Reason::CacheFailed);
    assert_eq!(open.oneshot(1).await, Ok(1));
    assert_eq!(cache.stats().failures, 2);
    child.kill();
    while closed.clone().oneshot(2).await.is_err() {
        sleep(ms(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn headers_can_choose_the_lock() {
    let cache = cache();
    let service = ServiceBuilder::new()
        .layer(BarrierLayer::new(cache.scope("db"), Lock).name(Header::new("x-client")).wait_at_most(secs(0)))
        .service(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("done")))));
    let ask = async |client: &str| {
        let request = Request::builder().header("x-client", client).body(()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    };
    let (ada, bob) = (ask("ada").await, ask("bob").await);
    assert_eq!((ada.status().as_u16(), bob.status().as_u16(), ask("ada").await.status().as_u16()), (200, 200, 503));
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    assert_eq!(role, "sit in the gate");
    processes::sit_in_the_gate(&path);
}
