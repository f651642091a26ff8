//! Lists of the allowed and the denied, and limits that only watch.

use crate::support::*;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use std::{future::ready, time::Duration};
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    Http, Reason, ThrottleLayer,
    name::Header,
    throttle::{Decision, Rate},
};

fn is(client: &'static str) -> impl Fn(&Request<()>) -> bool + Clone {
    move |request| text(request.headers(), "x-client") == Some(client)
}

#[tokio::test(start_paused = true)]
async fn who_is_allowed_passes_uncounted() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1)).allow(is("monitor"));
    for _ in 0..5 {
        let passed = ask(&layer, with([("x-client", "monitor")])).await;
        assert_eq!((passed.status(), passed.extensions().get::<Decision>()), (StatusCode::OK, None));
    }
    assert_eq!(statuses(&layer, 2).await, [200, 429]);
    assert_eq!(ask(&layer, with([("x-client", "monitor")])).await.status(), 200);
    assert_eq!(cache.stats().admitted, 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_denied_is_refused_whatever_is_left() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1)).deny(is("mallory"));
    let refused = ask(&layer, with([("x-client", "mallory")])).await;
    assert_eq!((refused.status(), why(&refused).reason), (StatusCode::FORBIDDEN, Reason::Denied));
    assert_eq!((why(&refused).retry_after, why(&refused).quota.as_ref()), (None, None));
    assert_eq!(text(refused.headers(), "retry-after"), None);
    assert_eq!(json(refused).await["status"], 403);
    assert_eq!(passed(&layer, 1).await, 1, "it took nothing");
    assert_eq!(ask(&layer, with([("x-client", "mallory")])).await.status(), 403);
    let stats = cache.stats();
    assert_eq!((stats.denied, stats.throttled, stats.admitted), (2, 0, 1));

    let call = with([("x-client", "mallory"), ("content-type", "application/grpc")]);
    assert_eq!(text(ask(&layer, call).await.headers(), "grpc-status"), Some("7"), "PERMISSION_DENIED");
}

#[tokio::test(start_paused = true)]
async fn who_is_on_both_lists_is_denied() {
    let cache = cache();
    let base = || ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1));
    let request = || with([("x-client", "both")]);
    assert_eq!(ask(&base().allow(is("both")).deny(is("both")), request()).await.status(), 403);
    assert_eq!(ask(&base().deny(is("both")).allow(is("both")), request()).await.status(), 403);
    let lists = base().allow(is("a")).deny(is("b")).allow(is("c")).deny(is("d"));
    let mut answered = Vec::new();
    for client in ["a", "a", "b", "c", "c", "d", "e", "e"] {
        answered.push(ask(&lists, with([("x-client", client)])).await.status().as_u16());
    }
    assert_eq!(answered, [200, 200, 403, 200, 200, 403, 200, 429]);
}

#[tokio::test(start_paused = true)]
async fn who_is_denied_is_refused_without_a_name_too() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1))
        .name(|request: &Request<()>| text(request.headers(), "x-key").map(str::to_owned))
        .deny(is("mallory"));
    assert_eq!(ask(&layer, with([("x-client", "mallory")])).await.status(), 403);
    assert_eq!(ask(&layer, with([("x-client", "ada")])).await.status(), 200);
}

/// A service that tells whether its request had been over the limit.
fn watching<L, S>(layer: &L) -> impl AsyncFn(Request<()>) -> (u16, Option<bool>, Option<bool>)
where
    L: Layer<tower::util::BoxCloneService<Request<()>, Plain, std::convert::Infallible>, Service = S>,
    S: tower::Service<Request<()>, Response = Answered, Error = std::convert::Infallible, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
{
    let service = answering(layer, |request| {
        let seen = request.extensions().get::<Decision>().map(|seen| seen.shadow);
        let mut response = Response::new(Full::<Bytes>::default());
        response.headers_mut().insert("x-seen", format!("{seen:?}").parse().unwrap());
        response
    });
    async move |request| {
        let answered = service.clone().oneshot(request).await.unwrap();
        let within = match text(answered.headers(), "x-seen") {
            Some("Some(true)") => Some(true),
            Some("Some(false)") => Some(false),
            _ => None,
        };
        let outside = answered.extensions().get::<Decision>().map(|told| told.shadow);
        (answered.status().as_u16(), within, outside)
    }
}

#[tokio::test(start_paused = true)]
async fn a_shadow_counts_and_tells_and_lets_pass() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(2)).shadow();
    let ask = watching(&layer);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(ask(Request::new(())).await);
    }
    let (under, over) = ((200, Some(false), Some(false)), (200, Some(true), Some(true)));
    assert_eq!(seen, [under, under, over, over]);
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.throttled, stats.shadowed), (2, 2, 2));
    assert_eq!(left(&layer.limiter("")).await, [0], "and takes");
}

#[tokio::test(start_paused = true)]
async fn a_shadow_never_waits() {
    let cache = cache();
    let began = Instant::now();
    let base = |scope| ThrottleLayer::of(cache.scope(scope), Rate::per_hour(1));
    for layer in [base("before").shadow().wait_at_most(Duration::MAX), base("after").wait_at_most(secs(9_999)).shadow()]
    {
        assert_eq!(passed(&layer, 3).await, 3);
    }
    let patient = base("patient").shadow().wait().layer(service_fn(|()| ready(Ok::<_, ()>(()))));
    for _ in 0..3 {
        patient.clone().oneshot(()).await.unwrap();
    }
    assert_eq!(began.elapsed(), secs(0));
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.shadowed, stats.waited), (3, 6, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_lets_pass_the_denied_the_blocked_and_the_too_costly() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_minute(2))
        .name(Header::new("x-client"))
        .deny(is("mallory"))
        .block_for(secs(60), 2)
        .cost(|request: &Request<()>| number(request.headers(), "x-cost").unwrap_or(1))
        .shadow();
    let ask = watching(&layer);
    assert_eq!(ask(with([("x-client", "mallory")])).await, (200, None, None), "nothing was decided about it");
    assert_eq!(ask(with([("x-client", "ada"), ("x-cost", "3")])).await, (200, Some(true), Some(true)));
    for over in [false, false, true, true] {
        assert_eq!(ask(with([("x-client", "bob")])).await, (200, Some(over), Some(over)));
    }
    let bob = layer.name_of(&with([("x-client", "bob")])).unwrap();
    assert_eq!(refusal(layer.limiter(&bob).check().await).0, Reason::Blocked);
    let stats = cache.stats();
    assert_eq!((stats.shadowed, stats.denied, stats.throttled, stats.admitted), (4, 1, 4, 2));
}

#[tokio::test(start_paused = true)]
async fn a_shadow_tells_its_headers_when_asked() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1)).shadow().answer(Http::new().quota_headers());
    assert_eq!(passed(&layer, 1).await, 1);
    let over = ask(&layer, Request::new(())).await;
    assert_eq!((over.status().as_u16(), text(over.headers(), "ratelimit")), (200, Some(r#""api";r=0;t=3600"#)));
    assert_eq!(text(over.headers(), "retry-after"), None);
}

#[tokio::test(start_paused = true)]
#[should_panic = "`.wait()` cannot refuse whom `.deny(..)` is for"]
async fn a_throttle_that_cannot_refuse_has_no_list_of_the_denied() {
    let layer = ThrottleLayer::new(cache().scope("api"), 1, secs(1)).deny(|_: &Request<()>| true);
    let _ = layer.wait();
}
