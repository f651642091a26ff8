//! Real clients and a real server.

use axum::{Router, routing::get};
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use std::time::Duration;
use tokio::{net::TcpListener, task::JoinSet};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_floodgate::{
    Body, Cache, Fail, Http, Rejection, ThrottleLayer,
    throttle::{Advice, Rate},
};

const HOUR: Duration = Duration::from_secs(3_600);

fn cache() -> Cache {
    Cache::builder_temporary().state_size(1 << 20).open().unwrap()
}

/// A server that allows 30 an hour, and whose cache counts them.
async fn server(answer: Http) -> (String, Cache) {
    let theirs = cache();
    let layer = ThrottleLayer::new(theirs.scope("theirs"), 30, HOUR).answer(answer);
    let app = Router::new().route("/", get(async || "hello")).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, theirs)
}

fn ours(cache: &Cache) -> ThrottleLayer {
    ThrottleLayer::of(cache.scope("api"), Rate::per_second(1_000))
}

/// One call, and then twenty workers who call until they are refused on this side.
async fn work<S, Req, Res, E>(service: S, request: impl Fn() -> Req, refused: fn(&Result<Res, E>) -> bool)
where
    S: Service<Req, Response = Res, Error = E> + Clone + Send + 'static,
    S::Future: Send,
    Req: Send + 'static,
    Res: Send + 'static,
    E: Send + 'static,
{
    assert!(!refused(&service.clone().oneshot(request()).await));
    let mut workers = JoinSet::new();
    for _ in 0..20 {
        let service = service.clone();
        let requests: Vec<_> = (0..100).map(|_| request()).collect();
        workers.spawn(async move {
            for request in requests {
                if refused(&service.clone().oneshot(request).await) {
                    return;
                }
            }
            panic!("never refused");
        });
    }
    workers.join_all().await;
}

#[tokio::test]
async fn hypers_client_stops_in_time() {
    // What `RateLimit` says, and what `X-RateLimit-*` does.
    for answer in [Http::new().quota_headers(), Http::new().quota_headers().x_ratelimit()] {
        let (url, theirs) = server(answer).await;
        let client = ServiceBuilder::new()
            .layer(ours(&cache()).name(|request: &Request<_>| request.uri().host().map(str::to_owned)).learn())
            .service(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());
        let request = || Request::get(&url).body(Empty::new()).unwrap();
        let refused = |answer: &Result<Response<Body<Incoming>>, _>| {
            answer.as_ref().unwrap().extensions().get::<Rejection>().is_some()
        };
        work(client, request, refused).await;
        assert_eq!((theirs.stats().admitted, theirs.stats().throttled), (30, 0));
    }
}

#[tokio::test]
async fn reqwest_stops_in_time() {
    let (url, theirs) = server(Http::new().quota_headers()).await;
    let client = ServiceBuilder::new()
        .layer(
            ours(&cache())
                .learn_by(|response: &reqwest::Response| Advice::read(response.status(), response.headers()))
                .answer(Fail),
        )
        .map_err(BoxError::from)
        .service(reqwest::Client::new());
    let request = || reqwest::Request::new(reqwest::Method::GET, url.parse().unwrap());
    work(client, request, |answer: &Result<_, BoxError>| {
        answer.as_ref().is_err_and(|error| error.downcast_ref::<Rejection>().is_some())
    })
    .await;
    assert_eq!((theirs.stats().admitted, theirs.stats().throttled), (30, 0));
}

#[tokio::test]
async fn those_who_do_not_learn_are_refused_by_the_server() {
    let (url, theirs) = server(Http::new().quota_headers()).await;
    let client = ServiceBuilder::new()
        .layer(ours(&cache()))
        .service(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());
    let request = || Request::get(&url).body(Empty::new()).unwrap();
    work(client, request, |answer: &Result<Response<Body<Incoming>>, _>| answer.as_ref().unwrap().status() == 429)
        .await;
    assert_eq!((theirs.stats().admitted, theirs.stats().throttled), (30, 20));
}
