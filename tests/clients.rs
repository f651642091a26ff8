//! The layers around HTTP clients, and around a server of hyper's own.

#[path = "support/probe.rs"]
mod probe;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
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
use tokio::net::TcpListener;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Fail, Lock, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer,
    name::{Header, Target},
};

/// Serves with hyper alone.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    server
}

/// A server that counts its requests and says which one it is.
async fn origin() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let n = counted.fetch_add(1, SeqCst) + 1;
        std::future::ready(Ok::<_, Infallible>(Response::new(format!("{n} {}", request.uri().path()))))
    });
    (serve(service).await, count)
}

fn request(server: SocketAddr, path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{server}{path}")).body(Empty::new()).unwrap()
}

#[tokio::test]
async fn hypers_client_takes_all_three_layers() {
    let cache = cache();
    let (server, count) = origin().await;
    let by_host = |request: &Request<Empty<Bytes>>| request.uri().authority().map(ToString::to_string);
    let client = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("out"), 4, MINUTE).name(by_host))
        .layer(StampedeCacheLayer::new(cache.scope("out"), MINUTE))
        .layer(BarrierLayer::new(cache.scope("out"), Semaphore(2)).name(by_host))
        .service(http_client());
    for (path, expected) in [("/a", "1 /a"), ("/a", "1 /a"), ("/b", "2 /b"), ("/a", "1 /a")] {
        let response = soon(client.clone().oneshot(request(server, path))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(text(response.into_body()).await, expected);
    }
    let refused = soon(client.oneshot(request(server, "/a"))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.extensions().get::<Rejection>().is_some());
    assert_eq!(count.load(SeqCst), 2);
}

#[tokio::test]
async fn an_answer_that_is_still_read_counts_as_on_its_way() {
    let cache = cache();
    let (server, _) = origin().await;
    let client = ServiceBuilder::new()
        .layer(BarrierLayer::new(cache.scope("one"), Lock).wait_at_most(Duration::ZERO))
        .service(http_client());
    let unread = soon(client.clone().oneshot(request(server, "/a"))).await.unwrap();
    assert_eq!(unread.status(), StatusCode::OK);
    let refused = soon(client.clone().oneshot(request(server, "/b"))).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(unread.into_body()).await, "1 /a");
    assert_eq!(soon(client.oneshot(request(server, "/c"))).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn the_clients_own_errors_stay_what_they_are() {
    let cache = cache();
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("out"), 9, MINUTE))
        .layer(StampedeCacheLayer::new(cache.scope("out"), MINUTE))
        .layer(BarrierLayer::new(cache.scope("out"), Lock).wait_at_most(Duration::ZERO))
        .service(http_client());
    for _ in 0..2 {
        let error: hyper_util::client::legacy::Error =
            soon(client.clone().oneshot(request(nobody, "/"))).await.unwrap_err();
        assert!(error.is_connect());
    }
}

#[tokio::test]
async fn reqwest_waits_and_fails_with_its_own_types() {
    let cache = cache();
    let (server, count) = origin().await;
    let by_host = |request: &reqwest::Request| request.url().host_str().map(str::to_owned);
    let ask =
        |path: &str| reqwest::Request::new(reqwest::Method::GET, format!("http://{server}{path}").parse().unwrap());

    // Waiting changes no type at all.
    let patient = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("patient"), 1, SECOND / 20).name(by_host).wait())
        .service(reqwest::Client::new());
    let began = std::time::Instant::now();
    for n in 1..=3 {
        let response: reqwest::Response = soon(patient.clone().oneshot(ask("/a"))).await.unwrap();
        assert_eq!(response.text().await.unwrap(), format!("{n} /a"));
    }
    assert!(began.elapsed() >= SECOND / 10);

    // Failing needs an error that can be made from a rejection.
    let strict = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("strict"), 1, MINUTE).name(by_host).answer(Fail))
        .layer(BarrierLayer::new(cache.scope("strict"), Lock).name(by_host).answer(Fail))
        .map_err(BoxError::from)
        .service(reqwest::Client::new());
    assert_eq!(soon(strict.clone().oneshot(ask("/b"))).await.unwrap().status(), 200);
    let refused = soon(strict.oneshot(ask("/b"))).await.unwrap_err();
    assert_eq!(refused.downcast_ref::<Rejection>().unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(count.load(SeqCst), 4);
}

#[tokio::test]
async fn reqwest_takes_http_layers_with_two_adapters() {
    let cache = cache();
    let (server, count) = origin().await;
    let client = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("web"), 3, MINUTE))
        .layer(StampedeCacheLayer::new(cache.scope("web"), MINUTE).name(Target::new().ignore(["utm_*"])))
        .layer(BarrierLayer::new(cache.scope("web"), Lock))
        .map_request(|request: Request<reqwest::Body>| reqwest::Request::try_from(request).expect("a valid URL"))
        .map_response(Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());
    let ask = |path: &str| Request::get(format!("http://{server}{path}")).body(reqwest::Body::default()).unwrap();
    for (path, status) in [("/a?b=1", 200), ("/a?utm_source=x&b=1", 200), ("/a", 200), ("/a", 429)] {
        let response = soon(client.clone().oneshot(ask(path))).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        // And back into reqwest's own, for `json` and the like.
        let response = reqwest::Response::from(response.map(reqwest::Body::wrap));
        assert!(!response.text().await.unwrap().is_empty());
    }
    assert_eq!(count.load(SeqCst), 2);
}

#[tokio::test]
async fn a_server_of_hypers_own_answers_refusals_and_keeps_the_connection() {
    let cache = cache();
    let service = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("in"), 2, MINUTE).name(Header::new("x-key")))
        .layer(StampedeCacheLayer::new(cache.scope("in"), MINUTE))
        .layer(BarrierLayer::new(cache.scope("in"), Lock))
        .service(service_fn(|_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(String::from("hello")))
        }));
    let server = serve(service).await;

    // One connection, by hand.
    let stream = tokio::net::TcpStream::connect(server).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut seen = Vec::new();
    for key in ["ada", "ada", "ada", "bob"] {
        soon(sender.ready()).await.unwrap();
        let request =
            Request::get("/").header("host", "example").header("x-key", key).body(Empty::<Bytes>::new()).unwrap();
        let response = soon(sender.send_request(request)).await.unwrap();
        seen.push(response.status().as_u16());
        soon(response.into_body().collect()).await.unwrap();
    }
    assert_eq!(seen, [200, 200, 429, 200]);
    assert_eq!(fetch(&http_client(), server, "/").await.status(), 200, "without a key, and with another client");
}
