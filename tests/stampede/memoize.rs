//! Plain services: any serde request and response.

use crate::origin::{MINUTE, cache, poll, settle, until};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_floodgate::StampedeCacheLayer;

#[derive(Clone, Debug, Serialize)]
struct Query {
    id: u32,
    lang: &'static str,
    trace: u64,
}

fn query(id: u32, trace: u64) -> Query {
    Query { id, lang: "en", trace }
}

/// Any answer that a closure makes of a request and the number of the call.
#[derive(Clone)]
struct Worker<F> {
    answer: F,
    calls: Arc<AtomicUsize>,
}

impl<F> Worker<F> {
    fn new(answer: F) -> Self {
        Worker { answer, calls: Arc::default() }
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

impl<F, Req, Res> Service<Req> for Worker<F>
where
    F: Fn(Req, usize) -> Result<Res, String>,
    Res: Send + 'static,
{
    type Response = Res;
    type Error = String;
    type Future = Pin<Box<dyn Future<Output = Result<Res, String>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), String>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let call = self.calls.fetch_add(1, SeqCst) + 1;
        let answer = (self.answer)(request, call);
        Box::pin(async move { answer })
    }
}

#[tokio::test(start_paused = true)]
async fn what_counts_and_what_does_not() {
    let cache = cache();
    let worker = Worker::new(|query: Query, call| Ok(format!("{} {call}", query.id)));
    let service =
        StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).beta(0.0).ignore(["trace"]).layer(worker.clone());
    for (asked, answer) in [(query(1, 1), "1 1"), (query(1, 2), "1 1"), (query(2, 1), "2 2"), (query(2, 9), "2 2")] {
        assert_eq!(service.clone().oneshot(asked).await.unwrap(), answer);
    }
    tokio::time::advance(MINUTE).await;
    assert_eq!(service.oneshot(query(1, 1)).await.unwrap(), "1 3");
}

#[tokio::test(start_paused = true)]
async fn types_count_when_asked_to() {
    async fn calls(typed: bool) -> usize {
        let cache = cache();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let mut layer = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE);
        if typed {
            layer = layer.typed();
        }
        let one = layer.layer(Worker { answer: |_: u8, call| Ok(call), calls: counted.clone() });
        let other = layer.layer(Worker { answer: |_: i64, call| Ok(call), calls: counted });
        one.oneshot(3).await.unwrap();
        other.oneshot(3).await.unwrap();
        calls.load(SeqCst)
    }
    assert_eq!((calls(false).await, calls(true).await), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn errors_are_not_kept_and_empty_answers_are() {
    let cache = cache();
    let worker = Worker::new(|id: u32, call: usize| if id == 0 { Err(call.to_string()) } else { Ok(None::<u64>) });
    let service = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).layer(worker.clone());
    for call in ["1", "2"] {
        assert_eq!(service.clone().oneshot(0).await.unwrap_err(), call);
    }
    for _ in 0..3 {
        assert_eq!(service.clone().oneshot(1).await.unwrap(), None);
    }
    assert_eq!(worker.calls(), 3);

    let worker = Worker::new(|_: (), _| Ok(()));
    let service = StampedeCacheLayer::memoize(cache.scope("b"), MINUTE).layer(worker.clone());
    for _ in 0..3 {
        service.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(worker.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_another_type_is_a_miss() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        name: String,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        name: String,
        size: u64,
    }
    async fn get<T>(cache: &tower_floodgate::Cache, make: impl Fn() -> T + Clone + Send + Sync + 'static) -> (T, usize)
    where
        T: Serialize + DeserializeOwned + Send + 'static,
    {
        let worker = Worker::new(move |_: u8, _| Ok(make()));
        let service = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).layer(worker.clone());
        (service.oneshot(1).await.unwrap(), worker.calls())
    }
    let cache = cache();
    let old = || Old { name: "a".into() };
    let new = || New { name: "a".into(), size: 1 };
    assert_eq!(get(&cache, old).await, (old(), 1));
    assert_eq!(get(&cache, new).await, (new(), 1), "the old one has no size");
    assert_eq!(get(&cache, new).await, (new(), 0));
    assert_eq!(get(&cache, || "text".to_owned()).await.1, 1);
    assert_eq!(get(&cache, || 5_u64).await, (5, 1));
    assert_eq!(get(&cache, || (1_u8, 2_u8, 3_u8)).await.1, 1);
    assert_eq!(get(&cache, || (1_u8, 2_u8)).await, ((1, 2), 1));
    assert_eq!(cache.stats().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn followers_have_their_own_copy() {
    let (cache, gate) = (cache(), Arc::new(Semaphore::new(0)));
    let (held, calls) = (gate.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let service = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).layer(service_fn(move |ids: Vec<u32>| {
        let (held, call) = (held.clone(), counted.fetch_add(1, SeqCst) + 1);
        async move {
            held.acquire().await.unwrap().forget();
            if call == 1 { Err("first".to_owned()) } else { Ok(ids) }
        }
    }));
    let mut all: Vec<_> = (0..100).map(|_| Box::pin(service.clone().oneshot(vec![1, 2, 3]))).collect();
    all.iter_mut().for_each(|request| assert!(poll(request).is_pending()));
    gate.add_permits(2);
    let first = all.remove(0).await;
    assert_eq!(first.unwrap_err(), "first");
    for request in all {
        assert_eq!(request.await.unwrap(), [1, 2, 3]);
    }
    assert_eq!(calls.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_named_or_written_passes() {
    /// Serialises to an error, or not.
    #[derive(Clone, Debug)]
    struct Fickle(bool);
    impl Serialize for Fickle {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            if self.0 { serializer.serialize_u8(1) } else { Err(serde::ser::Error::custom("not this one")) }
        }
    }
    impl<'de> Deserialize<'de> for Fickle {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u8::deserialize(deserializer).map(|_| Fickle(true))
        }
    }
    let cache = cache();
    let worker = Worker::new(|fickle: Fickle, _| Ok(fickle));
    let service = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).name(|_: &Fickle| "one").layer(worker.clone());
    for call in 1..=3 {
        assert!(!service.clone().oneshot(Fickle(false)).await.unwrap().0);
        assert_eq!(worker.calls(), call);
    }
    for _ in 0..2 {
        assert!(service.clone().oneshot(Fickle(true)).await.unwrap().0);
        until(|| cache.stats().entries == 1).await;
        settle().await;
    }
    assert_eq!(worker.calls(), 4, "kept as soon as one can be");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_is_answered_and_not_kept() {
    let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).size(1 << 20).open().unwrap();
    let worker = Worker::new(|length: usize, _| Ok("x".repeat(length)));
    let service = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).layer(worker.clone());
    for call in 1..=2 {
        assert_eq!(service.clone().oneshot(300_000).await.unwrap().len(), 300_000);
        assert_eq!(worker.calls(), call);
    }
    for length in 200_000..200_020 {
        assert_eq!(service.clone().oneshot(length).await.unwrap().len(), length);
    }
    let stats = cache.stats();
    assert!(stats.entries < 6 && stats.entries_evicted > 10, "the budget holds: {stats:?}");
    assert_eq!(stats.failures, 0);
}

#[tokio::test(start_paused = true)]
async fn names_and_removal() {
    let cache = cache();
    let worker = Worker::new(|_: Query, call| Ok(call));
    let layer = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).ignore(["trace"]);
    let service = layer.layer(worker.clone());
    assert_eq!(layer.name_of(&query(1, 2)), layer.name_of(&query(1, 3)));
    assert_ne!(layer.name_of(&query(1, 2)), layer.name_of(&query(2, 2)));
    assert_eq!(service.clone().oneshot(query(1, 2)).await.unwrap(), 1);
    layer.remove(&query(2, 2)).await.unwrap();
    assert_eq!(service.clone().oneshot(query(1, 2)).await.unwrap(), 1);
    layer.remove(&query(1, 7)).await.unwrap();
    assert_eq!(service.oneshot(query(1, 2)).await.unwrap(), 2);
}

#[test]
#[should_panic(expected = "memoized responses need a life above zero, not 0ns")]
fn a_life_of_zero_is_refused() {
    let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let _ = StampedeCacheLayer::memoize(cache.scope("a"), std::time::Duration::ZERO);
}

#[test]
#[should_panic(expected = "beta is a finite number from 0, not -1")]
fn a_negative_beta_is_refused() {
    let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let _ = StampedeCacheLayer::memoize(cache.scope("a"), MINUTE).beta(-1.0);
}
