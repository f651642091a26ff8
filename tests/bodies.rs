//! Requests that are told apart by their bodies, over real sockets.

#[path = "support/probe.rs"]
mod probe;

use axum::{Router, extract::Request, routing::any};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use probe::{MINUTE, cache, soon};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{BoxError, ServiceBuilder};
use tower_floodgate::{Cache, StampedeCacheLayer, stampede::BodyDigestLayer};

const LIMIT: usize = 1000;

/// Answers with the number of the call and what it was asked.
async fn serve(cache: &Cache) -> (SocketAddr, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let echo = move |request: Request| {
        let counted = counted.clone();
        async move {
            let body = axum::body::to_bytes(request.into_body(), usize::MAX)
                .await
                .map_err(|_| http::StatusCode::BAD_REQUEST)?;
            let call = counted.fetch_add(1, SeqCst) + 1;
            Ok::<_, http::StatusCode>(format!("{call}: {}", String::from_utf8_lossy(&body)))
        }
    };
    let layers = ServiceBuilder::new()
        .layer(BodyDigestLayer::new(LIMIT))
        .layer(StampedeCacheLayer::new(cache.scope("bodies"), MINUTE).bodies_named())
        .map_request(|request: http::Request<tower_floodgate::Body<_>>| request.map(axum::body::Body::new));
    let app = Router::new().route("/ask", any(echo)).layer(layers);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, calls)
}

type Outgoing = UnsyncBoxBody<Bytes, BoxError>;

fn full(text: &str) -> Outgoing {
    Full::from(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

async fn ask(server: SocketAddr, method: &str, kind: &str, body: Outgoing) -> (String, String) {
    let client: Client<HttpConnector, Outgoing> = Client::builder(TokioExecutor::new()).build_http();
    let request = http::Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(format!("http://{server}/ask"))
        .header("content-type", kind)
        .body(body)
        .unwrap();
    let response = soon(client.request(request)).await.unwrap();
    let did = response.headers()["cache-status"].to_str().unwrap().to_owned();
    let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
    (String::from_utf8(body.to_vec()).unwrap(), did)
}

const JSON: &str = "application/json";

#[tokio::test]
async fn equal_questions_have_one_answer_and_others_their_own() {
    let cache = cache();
    let (server, calls) = serve(&cache).await;
    let queries = [r#"{"query":"{ user(id: 1) { name } }"}"#, r#"{"query":"{ user(id: 2) { name } }"}"#];
    for (at, query) in queries.into_iter().enumerate() {
        for expected in ["floodgate; fwd=miss; stored", "floodgate; hit"] {
            let (answer, did) = ask(server, "POST", JSON, full(query)).await;
            assert_eq!(answer, format!("{}: {query}", at + 1));
            assert!(did.starts_with(expected), "{did}");
        }
    }
    // Another method, another meaning, or no body at all.
    for (method, kind, body) in [("QUERY", JSON, queries[0]), ("POST", "text/plain", queries[0]), ("POST", JSON, "")] {
        for expected in ["floodgate; fwd=miss; stored", "floodgate; hit"] {
            let (_, did) = ask(server, method, kind, full(body)).await;
            assert!(did.starts_with(expected), "{method} {kind} {body:?}: {did}");
        }
    }
    assert_eq!(calls.load(SeqCst), 5);
}

#[tokio::test]
async fn how_a_body_is_cut_into_pieces_does_not_matter() {
    let cache = cache();
    let (server, calls) = serve(&cache).await;
    let pieces = ["one ", "body ", "in pieces"];
    let frames = pieces.map(|piece| Ok::<_, BoxError>(Frame::data(Bytes::from(piece))));
    let chunked = StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
    assert_eq!(ask(server, "POST", JSON, chunked).await.0, "1: one body in pieces");
    assert_eq!(ask(server, "POST", JSON, full("one body in pieces")).await.0, "1: one body in pieces");
    assert_eq!(calls.load(SeqCst), 1);
}

#[tokio::test]
async fn what_is_too_large_passes_unharmed() {
    let cache = cache();
    let (server, calls) = serve(&cache).await;
    for (length, kept) in [(LIMIT, true), (LIMIT + 1, false), (300_000, false)] {
        let body: String = (0..length).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
        let before = calls.load(SeqCst);
        for _ in 0..2 {
            let (answer, did) = ask(server, "POST", JSON, full(&body)).await;
            assert!(answer.ends_with(&body) && answer.len() < length + 5, "{length}");
            assert_eq!(did.contains("fwd=bypass"), !kept, "{length}: {did}");
        }
        assert_eq!(calls.load(SeqCst) - before, if kept { 1 } else { 2 }, "{length}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_question_that_was_asked() {
    let cache = cache();
    let (server, calls) = serve(&cache).await;
    let mut socket = TcpStream::connect(server).await.unwrap();
    let head = "POST /ask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n";
    socket.write_all(format!("{head}half").as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(socket.read_to_end(&mut rest)).await;
    let (answer, did) = ask(server, "POST", JSON, full("half")).await;
    assert!(did.contains("fwd=miss"), "{did}");
    assert_eq!((answer.as_str(), calls.load(SeqCst)), ("1: half", 1), "the other was never answered");
}
