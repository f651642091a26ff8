//! The three layers together, as the crate's first page has them.

use crate::origin::*;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame};
use std::time::Duration;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_floodgate::{BarrierLayer, Body, Cache, Semaphore, StampedeCacheLayer, ThrottleLayer, name::Header};

type Stacked = Response<Body<Body<Body<TestBody>>>>;

fn stack(
    cache: &Cache,
    origin: &Origin,
) -> impl Service<Request<String>, Response = Stacked, Error = Boom, Future: Send> + Clone + Send + use<> {
    ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("api"), 100, MINUTE).name(Header::new("x-client")))
        .layer(StampedeCacheLayer::new(cache.scope("report"), MINUTE).beta(0.0).tag("report"))
        .layer(BarrierLayer::new(cache.scope("db"), Semaphore(1)).wait_at_most(Duration::ZERO))
        .service(origin.clone())
}

async fn text(response: Stacked) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_crowd_is_counted_collapsed_and_let_through_once() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = stack(&cache, &origin);
    let mut crowd: Vec<_> = (0..120).map(|_| Box::pin(app.clone().oneshot(with("/", &[("x-client", "a")])))).collect();
    let mut refused = 0;
    crowd.retain_mut(|request| match poll(request) {
        std::task::Poll::Pending => true,
        std::task::Poll::Ready(response) => {
            assert_eq!(response.unwrap().status(), 429);
            refused += 1;
            false
        }
    });
    assert_eq!((refused, crowd.len()), (20, 100));
    settle().await;
    assert_eq!(origin.calls(), 1);
    origin.release(1);
    for request in crowd {
        let response = request.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "1");
    }
    let stats = cache.stats();
    assert_eq!((stats.throttled, stats.followed, stats.misses, stats.busy), (20, 99, 1, 0));

    let other = app.oneshot(with("/", &[("x-client", "b")])).await.unwrap();
    assert_eq!(other.headers()["cache-status"], "floodgate; hit; ttl=60");
}

#[tokio::test(start_paused = true)]
async fn the_barrier_is_held_only_while_computing() {
    let (cache, origin) = (cache(), Origin::counting());
    let app = stack(&cache, &origin);
    let ask = |path: &str| app.clone().oneshot(get(path));
    // Kept answers: their bodies were read by the cache, however long their readers hold them.
    let held = [ask("/a").await.unwrap(), ask("/b").await.unwrap(), ask("/a").await.unwrap()];
    for response in &held {
        assert_eq!(response.status(), 200);
    }
    assert_eq!(cache.stats().busy, 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_streams_through_holds_the_barrier_to_its_end() {
    let cache = cache();
    let origin = Origin::new(|parts, _| match parts.uri.path() {
        "/large" => {
            let piece = || Ok(Frame::data(Bytes::from(vec![7; 1 << 19])));
            respond(200, &[], frames((0..6).map(|_| piece()).collect()))
        }
        _ => ok(&[], "small"),
    });
    let app = stack(&cache, &origin);
    let same = |path: &str| with(path, &[("x-client", "a")]);
    let large = app.clone().oneshot(same("/large")).await.unwrap();
    let busy = app.clone().oneshot(same("/large")).await.unwrap();
    assert_eq!(busy.status(), 503, "the other is still streaming");
    assert_eq!(busy.headers()["cache-status"], "floodgate; fwd=miss; detail=failure", "a refusal is not kept");
    assert_eq!(large.into_body().collect().await.unwrap().to_bytes().len(), 6 << 19);
    assert_eq!(app.oneshot(same("/large")).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn two_caches_may_be_nested() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = ServiceBuilder::new()
        .layer(StampedeCacheLayer::new(cache.scope("outer"), Duration::from_secs(10)).beta(0.0))
        .layer(StampedeCacheLayer::new(cache.scope("inner"), MINUTE).beta(0.0))
        .service(origin.clone());
    let mut crowd: Vec<_> = (0..20).map(|_| Box::pin(app.clone().oneshot(get("/")))).collect();
    crowd.iter_mut().for_each(|request| assert!(poll(request).is_pending()));
    settle().await;
    origin.release(1);
    for request in crowd {
        assert_eq!(request.await.unwrap().into_body().collect().await.unwrap().to_bytes(), "1");
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    let again = app.oneshot(get("/")).await.unwrap();
    let lines: Vec<_> = again.headers().get_all("cache-status").iter().collect();
    assert_eq!(lines, ["floodgate; hit; ttl=50", "floodgate; fwd=miss; detail=aged"], "ten seconds old already");
    assert_eq!(origin.calls(), 1);
}
