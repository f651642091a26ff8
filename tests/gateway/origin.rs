//! Origins to put behind a gateway, and odd ways to speak to one. The tests and the benchmark of the gateway use it.
#![allow(dead_code)]

use crate::process::{Answer, Browser};
use axum::{
    Router,
    extract::{Request, State},
};
use http::{HeaderMap, Uri};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tempfile::{TempDir, tempdir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
};

pub(crate) fn directory() -> TempDir {
    tempdir().expect("a temporary directory")
}

/// An origin that knows who came, and how many of them it served at once.
#[derive(Clone, Default)]
pub(crate) struct Origin {
    came: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Origin {
    async fn enter(&self, path: &str, delay: Duration) {
        self.came.lock().expect("no panic").push(path.to_owned());
        self.most_at_once.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(delay).await;
        self.running.fetch_sub(1, SeqCst);
    }

    /// The paths that were asked for, in order.
    pub(crate) fn came(&self) -> Vec<String> {
        self.came.lock().expect("no panic").clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.came.lock().expect("no panic").len()
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.most_at_once.load(SeqCst)
    }
}

/// Takes so long to answer whatever it is asked.
pub(crate) async fn slow(delay: Duration) -> (String, Origin) {
    let origin = Origin::default();
    let answer = async move |State(origin): State<Origin>, uri: Uri| origin.enter(uri.path(), delay).await;
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}

/// A request that has come to an origin, which answers it when this is dropped.
pub(crate) struct Visit {
    pub(crate) path: String,
    pub(crate) at: Instant,
    _go: oneshot::Sender<()>,
}

/// An origin that tells of each request and answers when the test is done with it.
pub(crate) async fn held() -> (String, mpsc::UnboundedReceiver<Visit>) {
    let (visits, visitors) = mpsc::unbounded_channel();
    let answer = async move |State(visits): State<mpsc::UnboundedSender<Visit>>, uri: Uri| {
        let (go, gone) = oneshot::channel();
        let _ = visits.send(Visit { path: uri.path().to_owned(), at: Instant::now(), _go: go });
        let _ = gone.await;
    };
    (serve(Router::new().fallback(answer).with_state(visits)).await, visitors)
}

/// Serves a router on a port of its own; what to give to `--upstream`.
pub(crate) async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Answers with what it was sent: the request line and the headers, a line each, then the body.
pub(crate) async fn echo(request: Request) -> String {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", value.to_str().expect("ASCII"));
    }
    text + "\n" + std::str::from_utf8(&body).expect("text")
}

/// Sends bytes as they are and reads to the end.
pub(crate) async fn raw(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("text");
    answer.to_lowercase()
}

pub(crate) async fn many(browser: &Browser, urls: impl IntoIterator<Item = String>) -> Vec<Answer> {
    let mut requests = JoinSet::new();
    for url in urls {
        let browser = browser.clone();
        requests.spawn(async move { browser.get(&url).await });
    }
    requests.join_all().await
}

/// Answers every path with its number of calls so far, and the given headers.
pub(crate) async fn numbering(headers: &'static [(&'static str, &'static str)]) -> (String, Origin) {
    let origin = Origin::default();
    let answer = async move |State(origin): State<Origin>| {
        origin.enter("", Duration::ZERO).await;
        (header_map(headers), format!("answer {}", origin.calls()))
    };
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}

/// What is sent into the body of one answer; it ends when this is dropped, and breaks off by an error.
pub(crate) type Pieces = mpsc::Sender<Result<&'static str, std::io::Error>>;

/// An origin whose bodies the test sends piece by piece, one for each visit.
pub(crate) async fn piecewise(
    headers: &'static [(&'static str, &'static str)],
) -> (String, mpsc::UnboundedReceiver<Pieces>) {
    let (visits, visitors) = mpsc::unbounded_channel();
    let answer = async move |State(visits): State<mpsc::UnboundedSender<Pieces>>| {
        let (pieces, body) = mpsc::channel(1);
        let _ = visits.send(pieces);
        let body = axum::body::Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
        (header_map(headers), body)
    };
    (serve(Router::new().fallback(answer).with_state(visits)).await, visitors)
}

pub(crate) fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

/// An origin that answers by a script of the test, which is told the number of the call, from 1.
pub(crate) async fn scripted<F>(script: F) -> (String, Origin)
where
    F: Fn(&Request, usize) -> axum::response::Response + Clone + Send + Sync + 'static,
{
    let origin = Origin::default();
    let answer = async move |State(origin): State<Origin>, request: Request| {
        origin.enter(request.uri().path(), Duration::ZERO).await;
        script(&request, origin.calls())
    };
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}

/// An origin that takes so long for each answer, which has these headers.
pub(crate) async fn slow_with(delay: Duration, headers: &'static [(&'static str, &'static str)]) -> (String, Origin) {
    let origin = Origin::default();
    let answer = async move |State(origin): State<Origin>, uri: Uri| {
        origin.enter(uri.path(), delay).await;
        (header_map(headers), "slow")
    };
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}
