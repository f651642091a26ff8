//! Every example of the page this crate begins from (the recipes of python-diskcache), done with the layers. Time is
//! virtual, so that nobody waits for the minutes of the examples.

use http::{Request, Response};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Error, Fail, Lock, LockFactory, Name, RLock, Rejection, StampedeCacheLayer, ThrottleLayer,
    lock::{Hold, Minted, OneOwner, Owner},
    time::clock_fn,
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

fn is_throttled(error: &BoxError) -> bool {
    error.is::<Rejection>()
}

#[tokio::test(start_paused = true)]
async fn throttling_api_calls() {
    let cache = cache();
    let api =
        service_fn(async |endpoint: u32| Ok::<_, BoxError>(format!("https://api.example.com/endpoint_{endpoint}")));

    // As the seed does it: calls are delayed. 10 a minute is one each 6 s, behind 10 at once.
    let call_api = ThrottleLayer::new(cache.scope("call_api"), 10, secs(60)).wait().layer(api);
    let (began, mut called) = (Instant::now(), Vec::new());
    for endpoint in 0..20 {
        assert!(call_api.clone().oneshot(endpoint).await.unwrap().ends_with(&format!("_{endpoint}")));
        called.push(began.elapsed().as_secs());
        sleep(secs(1)).await;
    }
    assert_eq!(called, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 18, 24, 30, 36, 42, 48, 54, 60]);

    // As a server wants it, and as the example's `except` expects: refused.
    let call_api = ThrottleLayer::new(cache.scope("refusing"), 10, secs(60)).answer(Fail).layer(api);
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    for endpoint in 0..20 {
        match call_api.clone().oneshot(endpoint).await {
            Ok(_) => succeeded.push(endpoint),
            Err(error) => {
                assert_eq!(error.to_string(), "too many requests");
                failed.push(endpoint);
            }
        }
        sleep(secs(1)).await;
    }
    assert_eq!(succeeded, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 18]);
    assert_eq!(failed.len(), 7);
}

#[tokio::test]
async fn custom_throttling_parameters() {
    // `time_func`, and a `sleep_func` that sleeps for half the required time.
    let time = Arc::new(AtomicU64::new(1_000_000_000_000));
    let sleeps = Arc::new(AtomicU32::new(0));
    let (now, nap, naps) = (time.clone(), time.clone(), sleeps.clone());
    let clock = clock_fn(
        move || Duration::from_nanos(now.load(SeqCst)),
        move |delay| {
            naps.fetch_add(1, SeqCst);
            nap.fetch_add(delay.as_nanos() as u64 / 2, SeqCst);
            std::future::ready(())
        },
    );
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let layer = ThrottleLayer::new(cache.scope("custom"), 3, secs(10))
        .name("custom_function")
        .expire(secs(3_600))
        .tag("rate_limited")
        .wait();
    let watch = time.clone();
    let custom_throttled_function = layer.layer(service_fn(move |_: ()| {
        std::future::ready(Ok::<_, BoxError>(watch.load(SeqCst) / 1_000_000 - 1_000_000))
    }));
    let mut called = Vec::new();
    for _ in 0..6 {
        called.push(custom_throttled_function.clone().oneshot(()).await.unwrap());
    }
    assert_eq!(called, [0, 0, 0, 3_333, 6_666, 10_000], "in ms; no call is early");
    assert!((6..200).contains(&sleeps.load(SeqCst)), "{sleeps:?} sleeps for three waits");

    // What the tag is for: the group is reset.
    cache.evict("rate_limited").await.unwrap();
    for _ in 0..3 {
        assert_eq!(custom_throttled_function.clone().oneshot(()).await.unwrap(), 10_000);
    }
}

#[tokio::test(start_paused = true)]
async fn barrier_for_critical_sections() {
    let cache = cache();
    let files = tempfile::tempdir().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let (lines, place) = (log.clone(), files.path().to_path_buf());
    let critical_file_operation = BarrierLayer::new(cache.scope("critical_file_operation"), Lock)
        .expire(secs(60))
        .answer(Fail)
        .layer(service_fn(move |filename: String| {
            let (lines, path) = (lines.clone(), place.join(&filename));
            async move {
                lines.lock().unwrap().push(format!("Starting {filename}"));
                sleep(secs(2)).await;
                std::fs::write(path, "data")?;
                lines.lock().unwrap().push(format!("Completed {filename}"));
                Ok::<_, BoxError>(format!("Processed {filename}"))
            }
        }));
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..5 {
        workers.spawn(critical_file_operation.clone().oneshot(format!("file_{worker}.txt")));
        yield_now().await;
    }
    let results: Vec<_> = workers.join_all().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(began.elapsed(), secs(10));
    assert_eq!(results.len(), 5);
    let expected: Vec<_> =
        (0..5).flat_map(|n| [format!("Starting file_{n}.txt"), format!("Completed file_{n}.txt")]).collect();
    assert_eq!(*log.lock().unwrap(), expected);
    assert_eq!(std::fs::read_dir(files.path()).unwrap().count(), 5);
}

type Recursing = Pin<Box<dyn Future<Output = Result<Response<String>, BoxError>> + Send>>;

/// Calls itself through the layer, and passes on as whom.
fn recursive_critical_function<L, N>(layer: BarrierLayer<L, N, Fail>, request: Request<u32>) -> Recursing
where
    N: Name<Request<u32>> + Clone + Send + Sync + 'static,
    L: LockFactory<Request<u32>, Rule = OneOwner> + Clone + Send + Sync + 'static,
{
    Box::pin(async move {
        let depth = *request.body();
        if depth == 0 {
            return Ok(Response::new("Done".to_owned()));
        }
        sleep(ms(500)).await;
        let mut nested = Request::new(depth - 1);
        nested.extensions_mut().insert(request.extensions().get::<Owner>().ok_or("no owner was handed over")?.clone());
        let deeper = through(layer).oneshot(nested).await?.into_body();
        Ok(Response::new(format!("Depth {depth}: {deeper}")))
    })
}

fn through<L, N>(
    layer: BarrierLayer<L, N, Fail>,
) -> impl Service<Request<u32>, Response = Response<String>, Error = BoxError, Future: Send> + Clone + Send
where
    N: Name<Request<u32>> + Clone + Send + Sync + 'static,
    L: LockFactory<Request<u32>, Rule = OneOwner> + Clone + Send + Sync + 'static,
{
    let inner = layer.clone();
    layer.layer(service_fn(move |request| recursive_critical_function(inner.clone(), request)))
}

#[tokio::test(start_paused = true)]
async fn custom_barrier_with_rlock() {
    let cache = cache();
    let layer = BarrierLayer::new(cache.scope("recursive"), RLock::new()).name("reentrant_critical").answer(Fail);
    let began = Instant::now();
    let first = tokio::spawn(through(layer.clone()).oneshot(Request::new(3)));
    yield_now().await;
    // Another call has to wait until the first and all that it contains is done.
    let second = tokio::spawn(through(layer.clone()).oneshot(Request::new(1)));
    assert_eq!(first.await.unwrap().unwrap().into_body(), "Depth 3: Depth 2: Depth 1: Done");
    assert_eq!(began.elapsed(), ms(1_500));
    assert_eq!(second.await.unwrap().unwrap().into_body(), "Depth 1: Done");
    assert_eq!(began.elapsed(), ms(2_000));

    // With a plain lock the same recursion waits for itself, as in the seed; but not for ever.
    let plain = BarrierLayer::new(cache.scope("plain"), |_: &Request<u32>| Lock).wait_at_most(secs(5)).answer(Fail);
    let service = plain.clone().layer(service_fn(move |_: Request<u32>| {
        let nested = plain.layer(service_fn(async |_: Request<u32>| Ok::<_, BoxError>(Response::new(String::new()))));
        nested.oneshot(Request::new(0))
    }));
    assert!(is_throttled(&service.oneshot(Request::new(1)).await.unwrap_err()));
}

#[tokio::test(start_paused = true)]
async fn memoization_with_stampede_protection() {
    let cache = cache();
    let computed = Arc::new(AtomicU64::new(0));
    let counter = computed.clone();
    let expensive_computation = StampedeCacheLayer::memoize(cache.scope("expensive_computation"), secs(10))
        .beta(1.5)
        .tag("expensive_computation")
        .layer(service_fn(move |n: u64| {
            let nth = counter.fetch_add(1, SeqCst) + 1;
            async move {
                sleep(secs(2)).await;
                Ok::<_, BoxError>(n * n + nth)
            }
        }));
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..10 {
        workers.spawn(expensive_computation.clone().oneshot(42));
    }
    for result in workers.join_all().await {
        assert_eq!(result.unwrap(), 1_765);
    }
    assert_eq!((computed.load(SeqCst), began.elapsed()), (1, secs(2)), "ten callers, one computation");
    stored(&cache, 1).await;

    // Close to the end some call refreshes the answer in the background, and none waits for it. Each does so with the
    // chance exp(-remaining / (beta * cost)): that none of the first 20 does is one in 10^13.
    sleep(secs(8)).await;
    let mut calls = 0;
    while computed.load(SeqCst) == 1 {
        let asked = Instant::now();
        assert_eq!(expensive_computation.clone().oneshot(42).await.unwrap(), 1_765);
        assert_eq!(asked.elapsed(), secs(0), "call {calls}");
        yield_now().await;
        calls += 1;
        if computed.load(SeqCst) == 1 {
            sleep(ms(100)).await;
        }
    }
    assert!(began.elapsed() < secs(12) && calls <= 20, "before the answer ended");
    // Whoever comes while it is refreshed shares the one refresh.
    while expensive_computation.clone().oneshot(42).await.unwrap() == 1_765 {
        assert_eq!(computed.load(SeqCst), 2);
        sleep(ms(100)).await;
    }
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.followed >= 9, stats.refreshed >= 1), (1, true, true));
}

/// Python's numbers, which are what they are written as.
#[derive(Clone, Copy, Serialize)]
#[serde(untagged)]
enum Number {
    Int(i64),
    Float(f64),
}
use Number::{Float, Int};

impl Number {
    fn value(self) -> f64 {
        match self {
            Int(number) => number as f64,
            Float(number) => number,
        }
    }
}

/// x, y, debug_info, *args, **kwargs.
type Arguments = (Number, Number, &'static str, Vec<Number>, BTreeMap<&'static str, Number>);

#[tokio::test(start_paused = true)]
async fn advanced_memoization_options() {
    let cache = cache();
    let computed = Arc::new(AtomicU32::new(0));
    let advanced_function = {
        let counter = computed.clone();
        service_fn(move |(x, y, _, args, kwargs): Arguments| {
            counter.fetch_add(1, SeqCst);
            async move {
                sleep(secs(1)).await;
                let rest = args.into_iter().chain(kwargs.into_values()).map(Number::value);
                Ok::<_, BoxError>(x.value() * y.value() + rest.sum::<f64>())
            }
        })
    };
    let typed = StampedeCacheLayer::memoize(cache.scope("typed"), secs(300))
        .typed()
        .ignore(["2"])
        .tag("advanced_function")
        .beta(2.0);
    let arguments = |x, y, debug_info| (x, y, debug_info, vec![Int(10)], BTreeMap::from([("extra", Int(5))]));
    let call = async |x, y, debug_info| {
        typed.layer(advanced_function.clone()).oneshot(arguments(x, y, debug_info)).await.unwrap()
    };
    assert_eq!(call(Int(2), Int(3), "debug1").await, 21.0);
    assert_eq!(computed.load(SeqCst), 1);
    assert_eq!(call(Int(2), Int(3), "debug2").await, 21.0);
    assert_eq!(computed.load(SeqCst), 1, "debug_info is ignored");
    assert_eq!(call(Float(2.0), Float(3.0), "debug3").await, 21.0);
    assert_eq!(computed.load(SeqCst), 2, "another type");
    let more = (Int(2), Int(3), "debug1", vec![Int(10), Int(0)], BTreeMap::from([("extra", Int(5))]));
    assert_eq!(typed.layer(advanced_function.clone()).oneshot(more).await.unwrap(), 21.0);
    assert_eq!(computed.load(SeqCst), 3, "other arguments");

    // Without `typed`, numbers that are equal are the same.
    let untyped = StampedeCacheLayer::memoize(cache.scope("untyped"), secs(300)).ignore(["2"]);
    for (x, y) in [(Int(2), Int(3)), (Float(2.0), Float(3.0)), (Int(2), Float(3.0))] {
        assert_eq!(untyped.layer(advanced_function.clone()).oneshot(arguments(x, y, "")).await.unwrap(), 21.0);
    }
    assert_eq!(computed.load(SeqCst), 4);

    // The seed's `__cache_key__`, `del cache[key]`, and the tag.
    let request = arguments(Int(2), Int(3), "debug1");
    assert_eq!(typed.name_of(&request), typed.name_of(&arguments(Int(2), Int(3), "other")));
    assert_ne!(typed.name_of(&request), untyped.name_of(&request));
    stored(&cache, 4).await;
    typed.remove(&request).await.unwrap();
    assert_eq!(call(Int(2), Int(3), "debug1").await, 21.0);
    assert_eq!(computed.load(SeqCst), 5);
    cache.evict("advanced_function").await.unwrap();
    assert_eq!(call(Int(2), Int(3), "debug1").await, 21.0);
    assert_eq!(computed.load(SeqCst), 6);
}

#[tokio::test(start_paused = true)]
async fn combining_recipe_functions() {
    let cache = cache();
    let computed = Arc::new(AtomicU32::new(0));
    let counter = computed.clone();
    let api = service_fn(move |query: String| {
        counter.fetch_add(1, SeqCst);
        async move {
            sleep(secs(1)).await;
            Ok::<_, BoxError>(format!("API result for {query}"))
        }
    });
    let throttle = |scope| ThrottleLayer::new(cache.scope(scope), 5, secs(60)).answer(Fail);
    let memoize = |scope| StampedeCacheLayer::memoize(cache.scope(scope), secs(300)).beta(1.0);

    // As the seed stacks them: every call counts, also one that is answered from the cache.
    let stack = ServiceBuilder::new().layer(throttle("outer")).layer(memoize("inner")).service(api.clone());
    let call = async |query: String| stack.clone().oneshot(query).await;
    let began = Instant::now();
    for i in 0..3 {
        assert_eq!(call(format!("query_{i}")).await.unwrap(), format!("API result for query_{i}"));
    }
    assert_eq!((began.elapsed(), computed.load(SeqCst)), (secs(3), 3));
    for i in 0..2 {
        assert_eq!(call(format!("query_{i}")).await.unwrap(), format!("API result for query_{i}"));
    }
    assert_eq!((began.elapsed(), computed.load(SeqCst)), (secs(3), 3), "from the cache, at once");
    for i in 0..10 {
        assert!(is_throttled(&call(format!("new_query_{i}")).await.unwrap_err()), "new call {i}");
    }
    advance(secs(9)).await;
    assert!(call("new_query_0".into()).await.is_ok(), "one more each 12 s");
    assert_eq!(computed.load(SeqCst), 4);

    // The other way round only computations count.
    let stack = ServiceBuilder::new().layer(memoize("outer")).layer(throttle("inner")).service(api);
    let call = async |query: String| stack.clone().oneshot(query).await;
    for _ in 0..4 {
        for i in 0..3 {
            assert!(call(format!("query_{i}")).await.is_ok());
        }
    }
    assert_eq!(computed.load(SeqCst), 7);
    let mut throttled = 0;
    for i in 0..10 {
        throttled += u32::from(call(format!("new_query_{i}")).await.is_err_and(|error| is_throttled(&error)));
    }
    assert_eq!((computed.load(SeqCst), throttled), (9, 8), "refusals are not kept, and start nothing");
}

/// An `RLock` with a lease of its own unless it is given one: `expire or 120`.
#[derive(Clone, Default)]
struct CustomLock {
    rlock: RLock<Minted>,
    expire: Option<Duration>,
}

impl<B> LockFactory<Request<B>> for CustomLock {
    type Rule = OneOwner;

    fn rule(&self, request: &Request<B>) -> OneOwner {
        self.rlock.rule(request)
    }

    fn owner(&self, request: &Request<B>) -> Option<Owner> {
        self.rlock.owner(request)
    }

    fn hand_over(&self, request: &mut Request<B>, hold: &Hold) {
        self.rlock.hand_over(request, hold);
    }

    fn lease(&self, _: &Request<B>) -> Option<Duration> {
        Some(self.expire.unwrap_or(secs(120)))
    }
}

#[tokio::test(start_paused = true)]
async fn custom_lock_factory() {
    let cache = cache();
    let layer = BarrierLayer::new(cache.scope("custom"), CustomLock::default()).tag("critical_ops").answer(Fail);
    let service = layer.layer(service_fn(async |_: Request<u32>| {
        sleep(secs(1)).await;
        Ok::<_, BoxError>(Response::new("Operation completed".to_owned()))
    }));
    let began = Instant::now();
    let (one, other) = tokio::join!(service.clone().oneshot(Request::new(0)), service.oneshot(Request::new(0)));
    assert_eq!((one.unwrap().into_body(), other.unwrap().into_body().len()), ("Operation completed".to_owned(), 19));
    assert_eq!(began.elapsed(), secs(2), "one at a time");
    let recursive = through(layer.clone()).oneshot(Request::new(2)).await.unwrap().into_body();
    assert_eq!(recursive, "Depth 2: Depth 1: Done", "and re-entrant");
    let given = CustomLock { expire: Some(secs(180)), ..CustomLock::default() };
    assert_eq!(LockFactory::lease(&given, &Request::new(())), Some(secs(180)));
}

#[tokio::test(start_paused = true)]
async fn throttling_best_practices() {
    let cache = cache();
    async fn count<N: Name<()> + Clone>(layer: &ThrottleLayer<N, Fail>, calls: u32) -> u32 {
        let mut admitted = 0;
        for _ in 0..calls {
            let operation = service_fn(async |_: ()| Ok::<_, BoxError>(()));
            admitted += u32::from(layer.layer(operation).oneshot(()).await.is_ok());
        }
        admitted
    }
    // 100 an hour, kept for two hours.
    let rate_limited = ThrottleLayer::new(cache.scope("hourly"), 100, secs(3_600)).expire(secs(7_200)).answer(Fail);
    assert_eq!(count(&rate_limited, 150).await, 100);
    advance(secs(360)).await;
    assert_eq!(count(&rate_limited, 150).await, 10);
    // In the seed the limit is lost for ever, with an error at each call, once its data has expired.
    advance(secs(7_201)).await;
    assert_eq!(count(&rate_limited, 150).await, 100);

    // Different names for different limits.
    let writes = ThrottleLayer::new(cache.scope("api"), 10, secs(60)).name("api_writes").answer(Fail);
    let reads = ThrottleLayer::new(cache.scope("api"), 100, secs(60)).name("api_reads").answer(Fail);
    assert_eq!((count(&writes, 20).await, count(&reads, 120).await, count(&writes, 5).await), (10, 100, 0));
}

#[derive(Clone, Serialize)]
struct Order {
    data: String,
    timestamp: Option<u64>,
    request_id: Option<u64>,
}

#[tokio::test(start_paused = true)]
async fn memoization_best_practices() {
    let cache = cache();
    let computed = Arc::new(AtomicU32::new(0));
    let counter = computed.clone();
    let report = service_fn(move |_: ()| {
        let nth = counter.fetch_add(1, SeqCst) + 1;
        async move {
            sleep(ms(10)).await;
            Ok::<_, BoxError>(nth)
        }
    });
    let hourly_report =
        StampedeCacheLayer::memoize(cache.scope("hourly_report"), secs(3_600)).beta(1.2).layer(report.clone());
    let daily_summary = StampedeCacheLayer::memoize(cache.scope("daily_summary"), secs(86_400)).beta(1.5).layer(report);
    assert_eq!(hourly_report.clone().oneshot(()).await.unwrap(), 1);
    assert_eq!(daily_summary.clone().oneshot(()).await.unwrap(), 2);
    stored(&cache, 2).await;
    advance(secs(3_000)).await;
    assert_eq!(hourly_report.clone().oneshot(()).await.unwrap(), 1);
    advance(secs(601)).await;
    assert_eq!(hourly_report.oneshot(()).await.unwrap(), 3, "an hour later");
    assert_eq!(daily_summary.clone().oneshot(()).await.unwrap(), 2);
    stored(&cache, 3).await;
    advance(secs(86_400)).await;
    assert_eq!(daily_summary.oneshot(()).await.unwrap(), 4, "a day later");

    // Volatile arguments do not count.
    let counter = computed.clone();
    let process_request = StampedeCacheLayer::memoize(cache.scope("process_request"), secs(300))
        .ignore(["timestamp", "request_id"])
        .layer(service_fn(move |order: Order| {
            counter.fetch_add(1, SeqCst);
            async move { Ok::<_, BoxError>(order.data.to_uppercase()) }
        }));
    for (timestamp, request_id) in [(None, None), (Some(1), None), (Some(2), Some(7))] {
        let order = Order { data: "tea".into(), timestamp, request_id };
        assert_eq!(process_request.clone().oneshot(order).await.unwrap(), "TEA");
    }
    assert_eq!(computed.load(SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn error_handling() {
    let cache = cache();
    let attempts = Arc::new(AtomicU32::new(0));
    let counter = attempts.clone();
    let fragile_operation = ThrottleLayer::new(cache.scope("fragile_operation"), 5, secs(60)).answer(Fail).layer(
        service_fn(move |_: ()| {
            let failing = !counter.fetch_add(1, SeqCst).is_multiple_of(2);
            async move { if failing { Err(BoxError::from("Operation failed")) } else { Ok("success") } }
        }),
    );
    let mut told = Vec::new();
    for _ in 0..7 {
        let answered = fragile_operation.clone().oneshot(()).await;
        told.push(answered.map_or_else(|error| error.to_string(), str::to_owned));
    }
    let (fails, refused) = ("Operation failed", "too many requests");
    assert_eq!(told, ["success", fails, "success", fails, "success", refused, refused], "a failing call counts too");
    assert_eq!(attempts.load(SeqCst), 5);

    // A memoized failure is not kept.
    let counter = Arc::new(AtomicU32::new(0));
    let risky = StampedeCacheLayer::memoize(cache.scope("risky"), secs(300)).layer(service_fn(move |x: u32| {
        let first = counter.fetch_add(1, SeqCst) == 0;
        async move { if first { Err(BoxError::from("Operation failed")) } else { Ok(x * x) } }
    }));
    assert_eq!(risky.clone().oneshot(4).await.unwrap_err().to_string(), "Operation failed");
    assert_eq!(risky.oneshot(4).await.unwrap(), 16);

    // Graceful degradation: the directory cannot be opened.
    let blocked = tempfile::NamedTempFile::new().unwrap();
    let Err(Error::Open { path, reason, .. }) = Cache::open(blocked.path()) else { panic!("opened a file") };
    assert_eq!((path.as_path(), reason.contains("not a directory")), (blocked.path(), true), "{reason}");
    let fallback = Cache::open_or_temporary(blocked.path()).unwrap();
    let cached_operation = StampedeCacheLayer::memoize(fallback.scope("cached_operation"), secs(300))
        .layer(service_fn(async |x: u32| Ok::<_, BoxError>(x * x)));
    assert_eq!(cached_operation.clone().oneshot(4).await.unwrap(), 16);
    assert_eq!(cached_operation.oneshot(4).await.unwrap(), 16);
    assert_eq!(fallback.stats().hits, 1);
}
