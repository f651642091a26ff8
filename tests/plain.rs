//! The layers around services that are not HTTP: requests, responses and errors of one's own.

#[path = "support/probe.rs"]
mod probe;

use probe::{MINUTE, SECOND, cache, paused_cache, soon};
use serde::{Deserialize, Serialize};
use std::{
    convert::Infallible,
    future::{Future, ready},
    ops::ControlFlow,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use tower_floodgate::{
    Answer, BarrierLayer, Fail, Lock, RLock, Reason, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer,
    answer::Admission, lock::Owner, name::Args, throttle::Quota,
};

/// A question about the price of something.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Ask {
    symbol: String,
    day: u32,
    trace: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Price {
    cents: u64,
    note: Option<String>,
}

#[derive(Debug, PartialEq)]
enum Failure {
    Refused(Reason),
    Unknown(String),
}

impl From<Rejection> for Failure {
    fn from(why: Rejection) -> Self {
        Failure::Refused(why.reason)
    }
}

fn ask(symbol: &str, trace: u64) -> Ask {
    Ask { symbol: symbol.into(), day: 7, trace }
}

/// Answers with the number of the call; knows nothing of "none".
#[derive(Clone, Debug, Default)]
struct Exchange {
    calls: Arc<AtomicUsize>,
}

impl Exchange {
    fn service(
        &self,
    ) -> impl Service<Ask, Response = Price, Error = Failure, Future: Send + 'static> + Clone + Send + Sync + use<>
    {
        let calls = self.calls.clone();
        service_fn(move |ask: Ask| {
            let cents = calls.fetch_add(1, SeqCst) as u64 + 1;
            async move {
                tokio::task::yield_now().await;
                match ask.symbol.as_str() {
                    "none" => Err(Failure::Unknown(ask.symbol)),
                    _ => Ok(Price { cents, note: None }),
                }
            }
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

#[tokio::test]
async fn a_refusal_becomes_an_error_of_the_services_own() {
    let (cache, exchange) = (cache(), Exchange::default());
    let scope = cache.scope("prices");
    let by_symbol = |ask: &Ask| ask.symbol.clone();
    let service = ServiceBuilder::new()
        .layer(ThrottleLayer::new(scope.clone(), 2, MINUTE).name(by_symbol).answer(Fail))
        .layer(BarrierLayer::new(scope.clone(), Lock).name(by_symbol).wait_at_most(Duration::ZERO).answer(Fail))
        .service(exchange.service());
    let go = |symbol| service.clone().oneshot(ask(symbol, 0));
    assert_eq!(go("a").await.unwrap(), Price { cents: 1, note: None });
    assert_eq!(go("none").await.unwrap_err(), Failure::Unknown("none".into()), "the service's own error passes");
    let held = scope.lock("a").acquire().await.unwrap();
    assert_eq!(go("a").await.unwrap_err(), Failure::Refused(Reason::Busy));
    drop(held);
    assert_eq!(go("a").await.unwrap_err(), Failure::Refused(Reason::Throttled), "what the barrier refused stays spent");
    assert_eq!(go("b").await.unwrap(), Price { cents: 3, note: None });
}

#[tokio::test]
async fn a_closure_answers_what_it_likes() {
    let (cache, exchange) = (cache(), Exchange::default());
    let guess = |ask: &Ask, why: Rejection| match ask.symbol.as_str() {
        "strict" => Err(Failure::from(why)),
        _ => Ok(Price { cents: 0, note: Some(format!("a guess: {why}")) }),
    };
    let throttle = ThrottleLayer::new(cache.scope("prices"), 1, MINUTE).answer(guess);
    let service = throttle.layer(exchange.service());
    assert_eq!(service.clone().oneshot(ask("a", 0)).await.unwrap().cents, 1);
    let guessed = service.clone().oneshot(ask("a", 0)).await.unwrap();
    assert_eq!(guessed.note.as_deref(), Some("a guess: too many requests"));
    assert_eq!(service.oneshot(ask("strict", 0)).await.unwrap_err(), Failure::Refused(Reason::Throttled));
    assert_eq!(exchange.calls(), 1);
}

/// Only watches: lets the refused pass, and puts what it was told beside the response.
#[derive(Clone, Debug, Default)]
struct DryRun {
    refused: Arc<AtomicUsize>,
}

impl<Res, Err> Answer<Ask, Res, Err> for DryRun {
    type Response = (Res, Option<Quota>);

    fn admit(&self, response: Res, admission: Admission) -> Self::Response {
        (response, admission.decision.map(|decision| decision.quota))
    }

    fn refuse(&self, _: &Ask, _: Rejection) -> ControlFlow<Result<Self::Response, Err>> {
        self.refused.fetch_add(1, SeqCst);
        ControlFlow::Continue(())
    }
}

#[tokio::test]
async fn an_answer_of_ones_own_may_change_the_response_and_let_the_refused_pass() {
    let (cache, exchange, dry_run) = (cache(), Exchange::default(), DryRun::default());
    let throttle = ThrottleLayer::new(cache.scope("prices"), 2, MINUTE).answer(dry_run.clone());
    let service = throttle.layer(exchange.service());
    let mut left = Vec::new();
    for _ in 0..4 {
        let (_, quota) = service.clone().oneshot(ask("a", 0)).await.unwrap();
        left.push(quota.unwrap().remaining);
    }
    assert_eq!((left, exchange.calls(), dry_run.refused.load(SeqCst)), (vec![1, 0, 0, 0], 4, 2));
}

#[tokio::test]
async fn memoizing_keeps_answers_by_their_arguments() {
    let (cache, exchange) = (cache(), Exchange::default());
    let memoize = StampedeCacheLayer::memoize(cache.scope("prices"), MINUTE).ignore(["trace"]);
    let same = memoize.name_of(&ask("a", 1));
    assert!(same.is_some() && same == memoize.name_of(&ask("a", 2)), "the trace does not matter");
    assert_ne!(same, memoize.name_of(&ask("b", 1)));

    let service = memoize.layer(exchange.service());
    let crowd: Vec<_> = (0..100).map(|trace| tokio::spawn(service.clone().oneshot(ask("a", trace)))).collect();
    for one in crowd {
        assert_eq!(soon(one).await.unwrap().unwrap(), Price { cents: 1, note: None });
    }
    assert_eq!(soon(service.clone().oneshot(ask("b", 0))).await.unwrap().cents, 2);
    assert_eq!(soon(service.clone().oneshot(ask("a", 0))).await.unwrap().cents, 1);
    assert_eq!(exchange.calls(), 2);

    // Errors belong to who asked, and are not kept.
    for _ in 0..2 {
        assert_eq!(soon(service.clone().oneshot(ask("none", 0))).await.unwrap_err(), Failure::Unknown("none".into()));
    }
    assert_eq!(exchange.calls(), 4);

    memoize.remove(&ask("a", 9)).await.unwrap();
    assert_eq!(soon(service.oneshot(ask("a", 0))).await.unwrap().cents, 5, "asked anew");
}

#[tokio::test]
async fn memoizing_by_a_name_of_ones_own_needs_nothing_of_the_request() {
    /// Neither `Serialize` nor `Clone`.
    struct Opaque(u8);
    fn parity(n: u8) -> &'static str {
        ["even", "odd"][usize::from(n & 1)]
    }
    let (cache, calls) = (cache(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let service = StampedeCacheLayer::memoize(cache.scope("even"), MINUTE)
        .name(|request: &Opaque| (request.0 < 100).then_some(parity(request.0)))
        .layer(service_fn(move |request: Opaque| {
            counted.fetch_add(1, SeqCst);
            ready(Ok::<_, Infallible>(parity(request.0).to_owned()))
        }));
    for (n, expected) in [(2, "even"), (4, "even"), (5, "odd"), (7, "odd"), (100, "even"), (100, "even")] {
        assert_eq!(soon(service.clone().oneshot(Opaque(n))).await.unwrap(), expected);
    }
    assert_eq!(calls.load(SeqCst), 4, "each parity once, and the two that pass by");
}

#[tokio::test]
async fn all_three_around_one_service() {
    let (cache, exchange) = (cache(), Exchange::default());
    let service: BoxCloneService<Ask, Price, Failure> = ServiceBuilder::new()
        .boxed_clone()
        .layer(ThrottleLayer::new(cache.scope("prices"), 3, MINUTE).name(Args::new().ignore(["trace"])).answer(Fail))
        .layer(StampedeCacheLayer::memoize(cache.scope("prices"), MINUTE).ignore(["trace"]))
        .layer(BarrierLayer::new(cache.scope("prices"), Semaphore(1)).answer(Fail))
        .service(exchange.service());
    let mut seen = Vec::new();
    for trace in 0..5 {
        seen.push(soon(service.clone().oneshot(ask("a", trace))).await.map(|price| price.cents));
    }
    let refused = || Err(Failure::Refused(Reason::Throttled));
    assert_eq!(seen, [Ok(1), Ok(1), Ok(1), refused(), refused()]);
}

#[tokio::test(start_paused = true)]
async fn waiting_takes_its_time_and_changes_no_type() {
    let cache = paused_cache();
    let throttle = ThrottleLayer::new(cache.scope("slowly"), 1, SECOND).wait();
    let mut service = throttle.layer(service_fn(|n: u32| ready(Ok::<u32, Infallible>(n))));
    let began = tokio::time::Instant::now();
    for n in 0..4 {
        assert_eq!(service.ready().await.unwrap().call(n).await, Ok(n));
        assert_eq!(began.elapsed(), n * SECOND);
    }

    // Those who wait at once are served in the order of their coming, a second apart.
    tokio::time::advance(SECOND).await;
    let began = tokio::time::Instant::now();
    let waiting: Vec<_> = (0..4).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    for (n, one) in (0..).zip(waiting) {
        assert_eq!(one.await.unwrap(), Ok(n));
        assert_eq!(began.elapsed(), n * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_has_its_limits_when_asked() {
    let cache = paused_cache();
    let throttle = ThrottleLayer::new(cache.scope("slowly"), 1, SECOND).wait_at_most(2 * SECOND).answer(Fail);
    let service = throttle.layer(service_fn(|n: u32| ready(Ok::<u32, tower::BoxError>(n))));
    let began = tokio::time::Instant::now();
    let asked: Vec<_> = (0..5).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    let mut seen = Vec::new();
    for one in asked {
        let said = one.await.unwrap().map_err(|error| error.downcast::<Rejection>().unwrap().retry_after);
        seen.push((said, began.elapsed().as_secs()));
    }
    // The fourth would have to wait a third second: one more than it may.
    assert_eq!(seen, [(Ok(0), 0), (Ok(1), 1), (Ok(2), 2), (Err(Some(SECOND)), 2), (Err(Some(SECOND)), 2)]);
}

#[tokio::test]
async fn a_request_may_cost_more_than_one_or_nothing() {
    let (cache, exchange) = (cache(), Exchange::default());
    let throttle = ThrottleLayer::new(cache.scope("prices"), 10, MINUTE).cost(|ask: &Ask| ask.day).answer(Fail);
    let service = throttle.layer(exchange.service());
    let go = |day| service.clone().oneshot(Ask { day, ..ask("a", 0) });
    assert_eq!(go(11).await.unwrap_err(), Failure::Refused(Reason::TooCostly));
    assert!(go(8).await.is_ok() && go(2).await.is_ok());
    assert_eq!(go(1).await.unwrap_err(), Failure::Refused(Reason::Throttled));
    assert!(go(0).await.is_ok());
}

/// A visit that leads to others, all of one owner.
#[derive(Clone)]
struct Visit {
    depth: u32,
    owner: Owner,
}

type Visits = BoxCloneService<Visit, u32, Failure>;

/// A service that calls itself through the barrier around it.
fn nested<L>(layer: L) -> Visits
where
    L: Layer<BoxCloneService<Visit, u32, Failure>> + Clone + Send + 'static,
    L::Service: Service<Visit, Response = u32, Error = Failure, Future: Send> + Clone + Send + 'static,
{
    let inner = layer.clone();
    let visit = move |visit: Visit| -> Pin<Box<dyn Future<Output = Result<u32, Failure>> + Send>> {
        let layer = inner.clone();
        Box::pin(async move {
            match visit.depth {
                0 => Ok(0),
                depth => Ok(1 + nested(layer).oneshot(Visit { depth: depth - 1, ..visit }).await?),
            }
        })
    };
    BoxCloneService::new(layer.layer(BoxCloneService::new(service_fn(visit))))
}

#[tokio::test]
async fn an_owner_may_enter_its_lock_again() {
    let cache = cache();
    let barrier =
        |scope| BarrierLayer::new(cache.scope(scope), RLock::owned_by(|visit: &Visit| Some(visit.owner.clone())));
    let owned = barrier("nested").wait_at_most(Duration::ZERO).answer(Fail);
    let visit = || Visit { depth: 3, owner: Owner::random() };
    assert_eq!(nested(owned.clone()).oneshot(visit()).await, Ok(3));

    let held = cache.scope("nested").lock("").acquire().await.unwrap();
    assert_eq!(nested(owned.clone()).oneshot(visit()).await, Err(Failure::Refused(Reason::Busy)), "another's");
    drop(held);
    assert_eq!(nested(owned).oneshot(visit()).await, Ok(3), "left as often as entered");

    let plain = BarrierLayer::new(cache.scope("plain"), Lock).wait_at_most(Duration::ZERO).answer(Fail);
    assert_eq!(
        nested(plain).oneshot(visit()).await,
        Err(Failure::Refused(Reason::Busy)),
        "a plain lock is no one's twice"
    );
}

#[tokio::test]
async fn a_closure_chooses_the_lock_for_each_request() {
    let cache = cache();
    let scope = cache.scope("prices");
    // Two at a time, but for the symbol that everybody wants.
    let choose = |ask: &Ask| Semaphore(if ask.symbol == "hot" { 1 } else { 2 });
    let barrier = BarrierLayer::new(scope.clone(), choose)
        .name(|ask: &Ask| ask.symbol.clone())
        .wait_at_most(Duration::ZERO)
        .answer(Fail);
    let service = barrier.layer(service_fn(|_: Ask| std::future::pending::<Result<Price, Failure>>()));
    let mut waiting = Vec::new();
    for (symbol, enters) in [("hot", true), ("hot", false), ("cold", true), ("cold", true), ("cold", false)] {
        let mut one = tokio_test::task::spawn(service.clone().oneshot(ask(symbol, 0)));
        assert_eq!(one.poll().is_pending(), enters, "{symbol}");
        waiting.push(one);
    }
}
