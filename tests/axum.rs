//! The layers in axum: everywhere a router takes a layer, without `HandleErrorLayer`, and over real sockets.

#[path = "support/probe.rs"]
mod probe;

use axum::{
    Extension, Router,
    body::Body,
    extract::{MatchedPath, Path, Request},
    handler::Handler,
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Bytes;
use probe::{MINUTE, SECOND, cache, fetch, http_client, soon, text};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Lock, Reason, Rejection, Scope, Semaphore, StampedeCacheLayer, ThrottleLayer,
    name::{ClientIp, extension},
    throttle::Decision,
};

async fn ask(app: &Router, path: &str) -> Response {
    let request = Request::get(path).body(Body::empty()).unwrap();
    soon(app.clone().oneshot(request)).await.unwrap()
}

async fn status(app: &Router, path: &str) -> u16 {
    ask(app, path).await.status().as_u16()
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await });
    server
}

/// All three layers, in scopes of their own.
macro_rules! all_three {
    ($cache:expr, $scope:literal, $count:expr) => {
        ServiceBuilder::new()
            .layer(ThrottleLayer::new($cache.scope($scope), $count, MINUTE))
            .layer(StampedeCacheLayer::new($cache.scope($scope), MINUTE))
            .layer(BarrierLayer::new($cache.scope($scope), Semaphore(2)).wait_at_most(SECOND))
    };
}

#[tokio::test]
async fn layers_go_wherever_a_router_takes_one() {
    let cache = cache();
    let runs: [Arc<AtomicUsize>; 7] = Default::default();
    let handler = |at: usize| {
        let runs = runs[at].clone();
        move || async move { format!("run {}", runs.fetch_add(1, SeqCst) + 1) }
    };
    let service = |at: usize| {
        let run = handler(at);
        service_fn(move |_: Request| {
            let run = run.clone();
            async move { Ok::<_, Infallible>(run().await.into_response()) }
        })
    };
    let app = Router::new()
        .route("/method", get(handler(0)).layer(all_three!(cache, "method", 2)))
        .route("/method-route", get(handler(1)).route_layer(all_three!(cache, "method-route", 2)))
        .route("/handler", get(handler(2).layer(all_three!(cache, "handler", 2))))
        .route_service("/service", all_three!(cache, "service", 2).service(service(3)))
        .merge(Router::new().route("/router", get(handler(4))).layer(all_three!(cache, "router", 2)))
        .merge(Router::new().route("/router-route", get(handler(5))).route_layer(all_three!(cache, "router-route", 2)))
        .fallback_service(all_three!(cache, "fallback", 2).service(service(6)));

    let paths = ["/method", "/method-route", "/handler", "/service", "/router", "/router-route", "/nowhere"];
    for (path, runs) in paths.into_iter().zip(&runs) {
        for hit in [false, true] {
            let response = ask(&app, path).await;
            assert_eq!((response.status(), response.headers().contains_key("age")), (StatusCode::OK, hit), "{path}");
            assert_eq!(text(response.into_body()).await, "run 1", "{path}");
        }
        let refused = ask(&app, path).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS, "{path}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json", "{path}");
        assert!(refused.headers().contains_key("retry-after"), "{path}");
        assert_eq!(runs.load(SeqCst), 1, "{path}");
    }
}

#[tokio::test]
async fn layers_around_a_handler_count_although_they_are_made_for_each_request() {
    let cache = cache();
    let (in_handler, mut entered) = mpsc::unbounded_channel();
    let slow = move || async move {
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        in_handler.send(go_on).unwrap();
        wait.await.unwrap();
    };
    let app = Router::new()
        .route("/throttled", get((|| async {}).layer(ThrottleLayer::new(cache.scope("throttled"), 3, MINUTE))))
        .route("/locked", get(slow.layer(BarrierLayer::new(cache.scope("locked"), Lock).wait_at_most(Duration::ZERO))));
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(status(&app, "/throttled").await);
    }
    assert_eq!(seen, [200, 200, 200, 429, 429]);

    let first = tokio::spawn({
        let app = app.clone();
        async move { status(&app, "/locked").await }
    });
    let go_on = soon(entered.recv()).await.unwrap();
    assert_eq!(status(&app, "/locked").await, 503);
    go_on.send(()).unwrap();
    assert_eq!(soon(first).await.unwrap(), 200);
}

#[derive(Clone)]
struct Tenant(&'static str);

#[tokio::test]
async fn path_parameters_and_extensions_pass_through_all_three_layers() {
    let cache = cache();
    let show = |Path((kind, id)): Path<(String, u64)>, Extension(tenant): Extension<Tenant>, matched: MatchedPath| async move {
        format!("{} {kind} {id} {}", tenant.0, matched.as_str())
    };
    let app = Router::new()
        .route("/{kind}/{id}", get(show))
        .layer(all_three!(cache, "shop", 100))
        .layer(Extension(Tenant("acme")));
    for (path, shown) in [("/book/7", "acme book 7 /{kind}/{id}"), ("/book/8", "acme book 8 /{kind}/{id}")] {
        for hit in [false, true] {
            let response = ask(&app, path).await;
            assert_eq!((response.status(), response.headers().contains_key("age")), (StatusCode::OK, hit), "{path}");
            assert_eq!(text(response.into_body()).await, shown);
        }
    }
    assert_eq!(status(&app, "/book/seven").await, 400, "what the extractor refuses stays refused");
}

#[tokio::test]
async fn a_matched_path_is_a_name() {
    let cache = cache();
    let by_route = extension(|path: &MatchedPath| Some(path.as_str().to_owned()));
    let app = Router::new()
        .route("/users/{id}", get(|| async {}))
        .route("/books/{id}", get(|| async {}))
        .layer(ThrottleLayer::new(cache.scope("routes"), 2, MINUTE).name(by_route));
    let mut seen = Vec::new();
    for path in ["/users/1", "/users/2", "/users/3", "/books/1", "/books/1", "/books/1"] {
        seen.push(status(&app, path).await);
    }
    assert_eq!(seen, [200, 200, 429, 200, 200, 429]);
}

#[tokio::test]
async fn an_outer_layer_sees_why() {
    async fn explain(request: Request, next: Next) -> Response {
        let mut response = next.run(request).await;
        let why = response.extensions().get::<Rejection>().map(|why| format!("{}: {:?}", why.scope, why.reason));
        let quota = response.extensions().get::<Decision>().map(|decision| decision.quota.remaining);
        let said = why.unwrap_or_else(|| format!("{} left", quota.unwrap()));
        response.headers_mut().insert("x-why", HeaderValue::try_from(said).unwrap());
        response
    }
    let cache = cache();
    let app = Router::new()
        .route("/", get(|| async {}))
        .layer(ThrottleLayer::new(cache.scope("mine"), 2, MINUTE))
        .layer(middleware::from_fn(explain));
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(ask(&app, "/").await.headers()["x-why"].to_str().unwrap().to_owned());
    }
    assert_eq!(seen, ["1 left", "0 left", &format!("mine: {:?}", Reason::Throttled)]);
}

#[tokio::test]
async fn a_merged_router_with_a_fallback_is_limited_where_it_says() {
    let cache = cache();
    let limit = |scope: &str| ThrottleLayer::new(cache.scope(scope), 1, MINUTE);
    let api = Router::new().route("/api", get(|| async {})).layer(limit("api"));
    let pages = Router::new().route("/page", get(|| async {}));
    let app: Router = api.merge(pages).fallback(|| async { StatusCode::IM_A_TEAPOT });
    assert_eq!([status(&app, "/api").await, status(&app, "/api").await], [200, 429]);
    assert_eq!([status(&app, "/page").await, status(&app, "/page").await], [200, 200]);
    assert_eq!([status(&app, "/none").await, status(&app, "/none").await], [418, 418]);

    // route_layer: not spent on unknown paths; layer: fallback included.
    let routes_only = Router::new().route("/", get(|| async {})).route_layer(limit("routes"));
    assert_eq!([status(&routes_only, "/none").await, status(&routes_only, "/").await], [404, 200]);
    assert_eq!([status(&routes_only, "/none").await, status(&routes_only, "/").await], [404, 429]);
    let everything = Router::new().route("/", get(|| async {})).layer(limit("everything"));
    assert_eq!([status(&everything, "/none").await, status(&everything, "/").await], [404, 429]);
}

#[tokio::test]
async fn a_real_server_tells_clients_apart_and_says_when_to_come_back() {
    let cache = cache();
    let peer = ClientIp::from_fn(|extensions| {
        extensions.get::<axum::extract::ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
    });
    let throttle = ThrottleLayer::new(cache.scope("peers"), 2, MINUTE).name(peer.trusted_proxies(0));
    let server = serve(Router::new().route("/", get(|| async { "hello" })).layer(throttle)).await;
    let client = http_client();
    for _ in 0..2 {
        assert_eq!(text(fetch(&client, server, "/").await).await, "hello");
    }
    let refused = fetch(&client, server, "/").await;
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &HeaderValue::from(30))
    );
    assert!(text(refused).await.contains(r#""status":429"#));
    let cell = cache.scope("peers").throttle("127.0.0.1", tower_floodgate::throttle::Rate::new(2, MINUTE));
    assert_eq!(cell.peek().await.unwrap().remaining, 0, "counted by the peer's address");
}

/// A stream of events whose sender the test has.
type Opened = mpsc::UnboundedReceiver<mpsc::Sender<&'static str>>;

/// `/events` and `/bytes` stream, one at a time with `/free`, which never waits; `/patient` is `/free` with patience.
fn streaming(cache: &Cache) -> (Router, Opened) {
    let (opened, opening) = mpsc::unbounded_channel();
    let open = move || {
        let (feed, stream) = mpsc::channel(8);
        opened.send(feed).unwrap();
        ReceiverStream::new(stream)
    };
    let sse = open.clone();
    let one_at_a_time = |patience| BarrierLayer::new(cache.scope("stream"), Lock).wait_at_most(patience);
    let app = Router::new()
        .route(
            "/events",
            get(|| async move { Sse::new(sse().map(|text| Ok::<_, Infallible>(Event::default().data(text)))) }),
        )
        .route("/bytes", get(|| async move { Body::from_stream(open().map(Ok::<_, Infallible>)) }))
        .route("/free", get(|| async { "free" }))
        .layer(one_at_a_time(Duration::ZERO));
    (app.merge(Router::new().route("/patient", get(|| async { "free" })).layer(one_at_a_time(10 * SECOND))), opening)
}

async fn next_chunk<B>(body: &mut B) -> Option<Bytes>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    soon(body.frame()).await.map(|frame| frame.unwrap().into_data().unwrap())
}

#[tokio::test]
async fn a_stream_holds_its_place_until_it_ends() {
    let cache = cache();
    let (app, mut opened) = streaming(&cache);
    let server = serve(app).await;
    let client = http_client();
    for (path, chunk) in [("/events", "data: one\n\n"), ("/bytes", "one")] {
        let mut streamed = fetch(&client, server, path).await;
        let feed = soon(opened.recv()).await.unwrap();
        feed.send("one").await.unwrap();
        assert_eq!(next_chunk(&mut streamed).await.unwrap(), chunk);
        assert_eq!(fetch(&client, server, "/free").await.status(), StatusCode::SERVICE_UNAVAILABLE, "{path} streams");
        drop(feed);
        assert_eq!(next_chunk(&mut streamed).await, None);
        assert_eq!(text(fetch(&client, server, "/patient").await).await, "free", "{path} has ended");
    }
}

/// Returns when so many wait for the one lock of the scope, which is held.
async fn until_waiting(scope: &Scope, wanted: u64) {
    let watching = async {
        while scope.lock_stats().await.unwrap()[0].waiting != wanted {
            tokio::task::yield_now().await;
        }
    };
    soon(watching).await;
}

#[tokio::test]
async fn hanging_up_frees_the_place() {
    let cache = cache();
    let (app, mut opened) = streaming(&cache);
    let server = serve(app).await;
    let other = http_client();

    // In the middle of a stream that never ends by itself.
    let client = http_client();
    let mut streamed = fetch(&client, server, "/events").await;
    let feed = soon(opened.recv()).await.unwrap();
    feed.send("one").await.unwrap();
    assert!(next_chunk(&mut streamed).await.is_some());
    assert_eq!(fetch(&other, server, "/free").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop((streamed, client));
    soon(feed.closed()).await;
    assert_eq!(text(fetch(&other, server, "/patient").await).await, "free");

    // In the queue, without ever having been let in: whoever comes next is not stuck behind the one who left.
    let scope = cache.scope("stream");
    let held = scope.lock("").acquire().await.unwrap();
    let client = http_client();
    let left = tokio::spawn(client.get(format!("http://{server}/patient").parse().unwrap()));
    until_waiting(&scope, 1).await;
    left.abort();
    drop(client);
    until_waiting(&scope, 0).await;
    let next = tokio::spawn({
        let other = other.clone();
        async move { text(fetch(&other, server, "/patient").await).await }
    });
    until_waiting(&scope, 1).await;
    drop(held);
    assert_eq!(soon(next).await.unwrap(), "free");
}
