//! What becomes of requests when the cache cannot be used.

use super::{CacheStatus, StampedeCacheLayer};
use crate::{
    cache::{
        Cache,
        testing::{Holder, LONG, builder},
    },
    name::Target,
    store::Kind,
};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::{Layer, Service, ServiceExt, service_fn};

const LIFE: Duration = Duration::from_secs(300);

type Reply = (String, CacheStatus);

/// Asks a page of the number of the call, through a layer of its own.
async fn ask(cache: &Cache, calls: &Arc<AtomicUsize>, cookie: bool) -> Reply {
    let calls = calls.clone();
    let inner = service_fn(move |_: Request<Full<Bytes>>| {
        let call = calls.fetch_add(1, SeqCst) + 1;
        let response =
            Response::builder().header("cache-control", "public").body(Full::<Bytes>::from(call.to_string()));
        async move { Ok::<_, Infallible>(response.unwrap()) }
    });
    let mut service = StampedeCacheLayer::new(cache.scope("pages"), LIFE).beta(0.0).layer(inner);
    let mut request = Request::new(Full::default());
    if cookie {
        request.headers_mut().insert("cookie", "a=b".parse().unwrap());
    }
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    let did = *response.extensions().get().unwrap();
    (String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(), did)
}

fn failed(call: usize) -> Reply {
    (call.to_string(), CacheStatus::NotStored { reason: "cache-failed" })
}

#[tokio::test]
async fn behind_a_gate_that_stays_shut_the_service_answers() {
    for cookie in [false, true] {
        let cache = builder().patience(Duration::from_millis(30)).open().unwrap();
        let calls = Arc::default();
        let holder = Holder::of(&cache.root().handle().shared.entries[0].queue);
        for call in 1..=5 {
            assert_eq!(ask(&cache, &calls, cookie).await, failed(call));
            assert_eq!(cache.stats().failures, call as u64);
        }
        assert_eq!(cache.stats().entries, 0);
        holder.release();
        let deadline = std::time::Instant::now() + LONG;
        while !matches!(ask(&cache, &calls, cookie).await.1, CacheStatus::Hit { .. }) {
            assert!(std::time::Instant::now() < deadline, "it is stored again once it can be");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn while_an_answer_waits_for_the_gate_it_is_served() {
    let cache = builder().open().unwrap();
    let calls = Arc::default();
    let holder = Holder::of(&cache.root().handle().shared.entries[0].queue);
    let first = tokio::spawn({
        let (cache, calls) = (cache.clone(), Arc::clone(&calls));
        async move { ask(&cache, &calls, false).await }
    });
    while calls.load(SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        let (text, did) = ask(&cache, &calls, false).await;
        assert_eq!(text, "1");
        assert!(matches!(did, CacheStatus::Hit { .. } | CacheStatus::Collapsed { .. }));
    }
    assert!(!first.is_finished(), "what is said to be stored is on disk");
    holder.release();
    assert!(matches!(first.await.unwrap(), (_, CacheStatus::Stored { .. })));
}

#[tokio::test]
async fn a_record_that_does_not_decode_is_a_miss() {
    let cache = builder().open().unwrap();
    let calls = Arc::default();
    ask(&cache, &calls, false).await;
    let scope = cache.scope("pages");
    let name = StampedeCacheLayer::new(scope.clone(), LIFE).name_of(&Request::new(Full::<Bytes>::default())).unwrap();
    let key = scope.key(Kind::Response, name.as_bytes());
    // What is stored there is whole, and no response.
    let (entry, _) = scope.entry(&key, name.as_bytes()).unwrap().unwrap();
    for payload in [&b""[..], b"\x01", b"\xff no such version", &entry.payload[..entry.payload.len() - 1]] {
        let odd = crate::store::Entry { payload: Bytes::copy_from_slice(payload), ..entry.clone() };
        scope.commit(key, name.as_bytes(), odd).await.unwrap();
        let call = calls.load(SeqCst) + 1;
        let (text, did) = ask(&cache, &calls, false).await;
        assert_eq!(text, call.to_string());
        assert!(matches!(did, CacheStatus::Stored { .. }));
    }
    assert!(matches!(ask(&cache, &calls, false).await.1, CacheStatus::Hit { .. }));
}

#[test]
#[should_panic(expected = "a layer has 16 tags at most")]
fn more_tags_than_fit_are_refused() {
    let cache = builder().open().unwrap();
    let layer = StampedeCacheLayer::new(cache.scope("pages"), LIFE).name(Target::new());
    let _ = (0..17).fold(layer, |layer, n| layer.tag(&n.to_string()));
}
