//! What users write, and what hosts demand: closures whose types are inferred, futures that are `Send`, services that
//! are readied first.

use crate::probe::{self, Probe, at_once, paused_cache};
use crate::support::*;
use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use std::{convert::Infallible, future::ready, task::Poll, time::Duration};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    Fail, Http, Rejection, ThrottleLayer,
    name::Header,
    throttle::{Decision, Limits, Rate},
};

async fn send(app: &Router, headers: &[(&'static str, &'static str)]) -> Response {
    let builder = headers.iter().fold(Request::get("/"), |builder, (name, value)| builder.header(*name, *value));
    app.clone().oneshot(builder.body(Body::empty()).unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn all_of_it_at_once_in_axum() {
    let cache = cache();
    // `Request` is axum's, and `_` is enough for its body.
    let throttle = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(10))
        .name(|request: &Request| request.headers().get("x-client").map(|client| client.as_bytes().to_vec()))
        .rate_of(|request: &Request| match request.headers().contains_key("x-paid") {
            true => "100/1h, 1000/utc-day".parse::<Limits>().unwrap(),
            false => Rate::per_hour(10).into(),
        })
        .allow(|request: &http::Request<_>| request.uri().path() == "/health")
        .deny(|request: &http::Request<_>| request.headers().contains_key("x-bad"))
        .cost(|request: &http::Request<_>| number(request.headers(), "x-cost").unwrap_or(1))
        .settle(
            |request: &http::Request<_>| request.method().clone(),
            |method: http::Method, response: &http::Response<_>| match method == http::Method::GET {
                true => number(response.headers(), "x-tokens").unwrap_or(1),
                false => 1,
            },
        )
        .refund_if(|response: &http::Response<_>| response.status().is_server_error())
        .answer(Http::new().quota_headers());
    let limiter = throttle.limiter("ada");
    let app = Router::new()
        .route("/", get(|| async { ([("x-tokens", "3")], "hello") }))
        .route("/health", get(|| async { "up" }))
        .layer(throttle);

    let answered = send(&app, &[("x-client", "ada"), ("x-cost", "9")]).await;
    assert_eq!((answered.status().as_u16(), text(answered.headers(), "ratelimit").is_some()), (200, true));
    assert_eq!(left(&limiter).await, [7], "nine were taken, six are back");
    assert_eq!(send(&app, &[("x-client", "ada"), ("x-cost", "8")]).await.status(), 429);
    assert_eq!(send(&app, &[("x-client", "bob"), ("x-paid", ""), ("x-cost", "80")]).await.status(), 200);
    assert_eq!(send(&app, &[("x-client", "bob"), ("x-paid", ""), ("x-bad", "")]).await.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn handlers_and_outer_layers_of_axum_see_the_decision() {
    let cache = cache();
    let handler = async |Extension(decision): Extension<Decision>| {
        format!("{} {} {}", decision.scope, decision.quota.remaining, decision.others.len())
    };
    let outer = async |request: Request, next: Next| {
        let mut response = next.run(request).await;
        let told = response.extensions().get::<Decision>().map(|decision| decision.quota.remaining);
        let refused = response.extensions().get::<Rejection>().map(|why| why.reason);
        response.headers_mut().insert("x-log", format!("{told:?} {refused:?}").parse().unwrap());
        response
    };
    let throttle = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(2)).and(Rate::per_day(9));
    let app = Router::new().route("/", get(handler)).layer(throttle).layer(middleware::from_fn(outer));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let answered = send(&app, &[]).await;
        let log = text(answered.headers(), "x-log").unwrap().to_owned();
        let body = match answered.status().as_u16() {
            200 => probe::text(answered.into_body()).await,
            status => status.to_string(),
        };
        seen.push((log, body));
    }
    let expected = [("Some(1) None", "api 1 1"), ("Some(0) None", "api 0 1"), ("None Some(Throttled)", "429")];
    assert_eq!(seen, expected.map(|(log, body)| (log.to_owned(), body.to_owned())));
}

#[tokio::test(start_paused = true)]
async fn closures_for_requests_of_plain_http() {
    let cache = cache();
    let service = ServiceBuilder::new()
        .layer(
            ThrottleLayer::of(cache.scope("api"), Rate::per_hour(10))
                .name(Header::new("x-client"))
                .cost(|request: &http::Request<()>| number(request.headers(), "x-cost").unwrap_or(2))
                .settle(
                    |_: &http::Request<()>| 5,
                    |kept, response: &http::Response<String>| kept + response.body().len() as u32,
                )
                .refund_if(|response: &http::Response<String>| response.status().is_server_error()),
        )
        .service(service_fn(async |_: http::Request<()>| Ok::<_, Infallible>(http::Response::new("abc".to_owned()))));
    assert_eq!(service.oneshot(http::Request::new(())).await.unwrap().status(), 200);
    let limiter = cache.scope("api").throttle("x-client=", Rate::per_hour(10));
    assert!(left(&limiter).await == [2] || left(&limiter).await == [10], "the name is the header's");
}

fn sendable<T: Send>(value: T) -> T {
    value
}

#[tokio::test(start_paused = true)]
async fn futures_and_services_are_send() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(10))
        .and(Rate::per_day(100))
        .rate_of(|_: &u32| Rate::per_hour(10))
        .cost(|_: &u32| 1)
        .settle(|who: &u32| who.to_string(), |_: String, (): &()| 1)
        .refund_if(|(): &()| false)
        .allow(|who: &u32| *who == 1)
        .deny(|who: &u32| *who == 2)
        .wait_at_most(secs(1))
        .answer(Fail);
    let mut service = sendable(layer.clone()).layer(service_fn(|_: u32| ready(Ok::<_, tower::BoxError>(()))));
    let future = sendable(service.ready().await.unwrap().call(3));
    tokio::spawn(future).await.unwrap().unwrap();
    let limiter = layer.limiter("");
    sendable(limiter.check()).await.unwrap();
    sendable(limiter.acquire()).await.unwrap();
    sendable(limiter.acquire_timeout(secs(1))).await.unwrap();
    sendable(limiter.peek()).await.unwrap();
    sendable(limiter.peek_all()).await.unwrap();
    sendable(limiter.reset()).await.unwrap();
    sendable(limiter.penalise(1)).await.unwrap();
    sendable(limiter.block(secs(1))).await.unwrap();
    sendable(limiter.leave_at_most(1)).await.unwrap();
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    shared(&limiter);
    shared(&layer);
    shared(&service);
}

#[tokio::test(start_paused = true)]
async fn what_is_decided_at_once_calls_the_service_that_was_readied_and_what_waits_a_clone() {
    let cache = paused_cache();
    let probe = Probe::new(0);
    let watch = probe.watch();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).and(Rate::per_hour(100));
    let mut service = layer.wait_at_most(Duration::MAX).layer(probe);
    for expected in [vec![0], vec![0, 1]] {
        let call = ServiceExt::<http::Request<String>>::ready(&mut service).await.unwrap().call(probe::get("/"));
        if expected.len() == 1 {
            at_once(call).await.unwrap();
        } else {
            call.await.unwrap();
        }
        assert_eq!(watch.called(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_and_failure_of_the_service_are_passed_on() {
    let cache = cache();
    let (service, mut handle) = tower_test::mock::pair::<u32, u32>();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(1)).and(Rate::per_day(1)).answer(Fail);
    let mut service = layer.layer(service);
    handle.allow(0);
    assert!(matches!(tokio_test::task::spawn(service.ready()).poll(), Poll::Pending));
    handle.allow(1);
    let call = service.ready().await.unwrap().call(7);
    let (asked, answer) = handle.next_request().await.unwrap();
    answer.send_response(asked + 1);
    assert_eq!(call.await.unwrap(), 8);
    handle.send_error("broken");
    assert_eq!(service.ready().await.err().unwrap().to_string(), "broken");
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_service_share_one_budget() {
    let cache = cache();
    let began = Instant::now();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(3));
    let service = layer.layer(hello());
    let mut admitted = 0;
    for clone in [service.clone(), service.clone(), layer.layer(hello()), layer.clone().layer(hello()), service] {
        admitted += u32::from(clone.oneshot(http::Request::new(())).await.unwrap().status() == 200);
    }
    assert_eq!((admitted, began.elapsed()), (3, secs(0)));
}
