//! The layers in tonic, server and client: refusals are gRPC statuses, cached answers keep their trailers.

#[path = "support/probe.rs"]
mod probe;

use axum::routing::get;
use bytes::{Buf, BufMut};
use http::{Request, Response, uri::PathAndQuery};
use http_body_util::BodyExt;
use probe::{MINUTE, SECOND, cache, fetch, http_client, soon};
use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::NamedService,
    service::Routes,
    transport::{Channel, Endpoint, Server},
};
use tonic_types::StatusExt;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Lock, StampedeCacheLayer, ThrottleLayer,
    name::{ByBody, GrpcMethod},
    stampede::BodyDigestLayer,
};

/// Messages that are plain text, so that the tests need no protoc.
#[derive(Clone, Copy, Debug)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Text;
    type Decoder = Text;

    fn encoder(&mut self) -> Text {
        Text
    }

    fn decoder(&mut self) -> Text {
        Text
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|_| Status::internal("no text"))
    }
}

/// `Say` says it again and counts; `Fail` fails and counts.
#[derive(Clone, Debug, Default)]
struct Echo {
    calls: Arc<AtomicUsize>,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl Service<Request<Body>> for Echo {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let calls = self.calls.clone();
        let fails = request.uri().path().ends_with("/Fail");
        let method = service_fn(move |request: tonic::Request<String>| {
            let call = calls.fetch_add(1, SeqCst) + 1;
            let answer = match fails {
                true => Err(Status::not_found(format!("call {call}: no {}", request.get_ref()))),
                false => Ok(tonic::Response::new(format!("call {call}: {}", request.get_ref()))),
            };
            std::future::ready(answer)
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Text).unary(method, request).await) })
    }
}

/// Starts `server` on a port of its own.
async fn listen() -> (SocketAddr, TcpListenerStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), TcpListenerStream::new(listener))
}

macro_rules! serve {
    ($server:expr) => {{
        let (address, incoming) = listen().await;
        let server = $server;
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        address
    }};
}

async fn connect(server: SocketAddr) -> Channel {
    soon(Endpoint::try_from(format!("http://{server}")).unwrap().connect()).await.unwrap()
}

/// One unary call.
async fn ask<T>(channel: T, method: &'static str, text: &str) -> Result<String, Status>
where
    T: GrpcService<Body>,
    T::Error: Into<BoxError>,
    T::ResponseBody: Send + 'static,
    <T::ResponseBody as hyper::body::Body>::Error: Into<BoxError>,
{
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let path = PathAndQuery::from_static(method);
    Ok(soon(client.unary(tonic::Request::new(text.to_owned()), path, Text)).await?.into_inner())
}

const SAY: &str = "/test.Echo/Say";
const FAIL: &str = "/test.Echo/Fail";

#[tokio::test]
async fn a_throttled_call_is_resource_exhausted() {
    let cache = cache();
    let throttle = ThrottleLayer::new(cache.scope("calls"), 2, MINUTE).name(GrpcMethod::new());
    let server = serve!(Server::builder().layer(throttle).add_service(Echo::default()));
    let channel = connect(server).await;
    assert_eq!(ask(channel.clone(), SAY, "a").await.unwrap(), "call 1: a");
    assert_eq!(ask(connect(server).await, SAY, "b").await.unwrap(), "call 2: b", "on another connection");
    let refused = ask(channel.clone(), SAY, "c").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "too many requests"));
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().len(), 5, "some 29,999 ms");
    let details = refused.get_error_details();
    let delay = details.retry_info().unwrap().retry_delay.unwrap();
    assert!(delay <= 30 * SECOND && delay > 25 * SECOND, "{delay:?}");
    let [violation] = &details.quota_failure().unwrap().violations[..] else { panic!("{details:?}") };
    assert_eq!(violation.subject, "calls");
    assert_eq!(violation.description, r#"limit "calls" allows 2 in 60s"#);
    let other = ask(channel, FAIL, "d").await.unwrap_err();
    assert_eq!((other.code(), other.message()), (Code::NotFound, "call 3: no d"), "another method, its own status");
}

#[tokio::test]
async fn a_call_that_finds_the_lock_taken_is_unavailable() {
    let cache = cache();
    let scope = cache.scope("one");
    let barrier = BarrierLayer::new(scope.clone(), Lock).wait_at_most(Duration::ZERO);
    let server = serve!(Server::builder().layer(barrier).add_service(Echo::default()));
    let channel = connect(server).await;
    let held = scope.lock("").acquire().await.unwrap();
    let refused = ask(channel.clone(), SAY, "a").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "busy: the lock was not free in time"));
    assert_eq!(refused.get_details_retry_info().unwrap().retry_delay, Some(SECOND));
    drop(held);
    assert_eq!(ask(channel.clone(), SAY, "b").await.unwrap(), "call 1: b");
    // The trailers have been read, so the body that held the lock has ended.
    let _guard = scope.lock("").wait_at_most(5 * SECOND).acquire().await.unwrap();
}

#[tokio::test]
async fn a_cached_answer_keeps_its_trailers() {
    let cache = cache();
    // gRPC requests are POST and hide what they ask for in their bodies: only their users know how to name them.
    // Here the method is enough, as it is where messages are empty.
    let layers = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("echo"), 100, MINUTE))
        .layer(StampedeCacheLayer::new(cache.scope("echo"), MINUTE).name(GrpcMethod::new()).bodies_named())
        .layer(BarrierLayer::new(cache.scope("echo"), Lock));
    let server = serve!(Server::builder().layer(layers).add_service(Echo::default()));
    let channel = connect(server).await;
    for _ in 0..3 {
        assert_eq!(ask(channel.clone(), SAY, "a").await.unwrap(), "call 1: a");
    }

    // As it comes over the wire.
    let frame = &b"\0\0\0\0\x01a"[..];
    let request = Request::post(format!("http://{server}{SAY}"))
        .header("content-type", "application/grpc")
        .body(Body::new(http_body_util::Full::from(frame)))
        .unwrap();
    let hit = soon(channel.clone().oneshot(request)).await.unwrap();
    assert!(hit.headers().contains_key("age"), "{:?}", hit.headers());
    let body = soon(hit.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), "\0\0\0\0\x09call 1: a");

    // Failures are answered, with code and message, and never kept.
    for call in [2, 3] {
        let failed = ask(channel.clone(), FAIL, "b").await.unwrap_err();
        assert_eq!((failed.code(), failed.message()), (Code::NotFound, format!("call {call}: no b").as_str()));
    }
}

#[tokio::test]
async fn a_channel_takes_the_layers_too() {
    let cache = cache();
    let echo = Echo::default();
    let server = serve!(Server::builder().add_service(echo.clone()));
    let channel = connect(server).await;

    let throttled = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("out"), 2, MINUTE))
        .layer(BarrierLayer::new(cache.scope("out"), Lock))
        .service(channel.clone());
    for n in [1, 2] {
        assert_eq!(ask(throttled.clone(), SAY, "a").await.unwrap(), format!("call {n}: a"));
    }
    let refused = ask(throttled, SAY, "a").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::ResourceExhausted, "too many requests"));
    assert_eq!(echo.calls.load(SeqCst), 2, "it was never sent");

    let cached = ServiceBuilder::new()
        .layer(StampedeCacheLayer::new(cache.scope("out"), MINUTE).name("the same for all").bodies_named())
        .layer(BarrierLayer::new(cache.scope("out"), Lock))
        .service(channel.clone());
    for _ in 0..2 {
        assert_eq!(ask(cached.clone(), SAY, "b").await.unwrap(), "call 3: b");
    }

    let patient =
        ServiceBuilder::new().layer(ThrottleLayer::new(cache.scope("patient"), 1, SECOND / 20).wait()).service(channel);
    for n in [4, 5, 6] {
        assert_eq!(ask(patient.clone(), SAY, "c").await.unwrap(), format!("call {n}: c"));
    }
}

#[tokio::test]
async fn axum_and_tonic_share_one_throttle() {
    let cache = cache();
    let routes =
        Routes::from(axum::Router::new().route("/page", get(|| async { "page" }))).add_service(Echo::default());
    let throttle = ThrottleLayer::new(cache.scope("all"), 3, MINUTE);
    let server = serve!(Server::builder().accept_http1(true).layer(throttle).add_routes(routes));
    let (browser, channel) = (http_client(), connect(server).await);
    assert_eq!(fetch(&browser, server, "/page").await.status(), 200);
    assert_eq!(ask(channel.clone(), SAY, "a").await.unwrap(), "call 1: a");
    assert_eq!(fetch(&browser, server, "/nowhere").await.status(), 404);
    let refused = fetch(&browser, server, "/page").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["content-type"]),
        (429, &"application/problem+json".parse().unwrap())
    );
    assert_eq!(ask(channel, SAY, "a").await.unwrap_err().code(), Code::ResourceExhausted);
}

/// Layers that memoize unary calls by what they say.
macro_rules! by_message {
    ($cache:expr) => {
        ServiceBuilder::new()
            .layer(BodyDigestLayer::new(1000))
            .layer(
                StampedeCacheLayer::new($cache.scope("messages"), MINUTE)
                    .name((GrpcMethod::new(), ByBody))
                    .bodies_named()
                    .negative(MINUTE),
            )
            .map_request(|request: Request<tower_floodgate::Body<Body>>| request.map(Body::new))
    };
}

#[tokio::test]
async fn unary_calls_are_told_apart_by_what_they_say() {
    let cache = cache();
    let echo = Echo::default();
    let server = serve!(Server::builder().layer(by_message!(cache)).add_service(echo.clone()));
    let (one, two) = (connect(server).await, connect(server).await);
    for channel in [&one, &two] {
        assert_eq!(ask(channel.clone(), SAY, "a").await.unwrap(), "call 1: a");
    }
    for channel in [&one, &two] {
        assert_eq!(ask(channel.clone(), SAY, "b").await.unwrap(), "call 2: b");
    }
    for channel in [&one, &two] {
        let missing = ask(channel.clone(), FAIL, "a").await.unwrap_err();
        assert_eq!((missing.code(), missing.message()), (Code::NotFound, "call 3: no a"), "kept as what is not there");
    }
    let long = "x".repeat(2000);
    for call in [4, 5] {
        assert_eq!(ask(one.clone(), SAY, &long).await.unwrap(), format!("call {call}: {long}"), "too long to be named");
    }
    let stampede: Vec<_> = (0..20).map(|_| tokio::spawn(ask(two.clone(), SAY, "c"))).collect();
    for answer in stampede {
        assert_eq!(answer.await.unwrap().unwrap(), "call 6: c");
    }
    assert_eq!(echo.calls.load(SeqCst), 6);
}

#[tokio::test]
async fn a_client_tells_its_calls_apart_too() {
    let cache = cache();
    let echo = Echo::default();
    let server = serve!(Server::builder().add_service(echo.clone()));
    let channel = by_message!(cache).service(connect(server).await);
    for _ in 0..2 {
        assert_eq!(ask(channel.clone(), SAY, "a").await.unwrap(), "call 1: a");
        assert_eq!(ask(channel.clone(), SAY, "b").await.unwrap(), "call 2: b");
        assert_eq!(ask(channel.clone(), FAIL, "a").await.unwrap_err().message(), "call 3: no a");
    }
}
