//! Origins to put behind a gateway, and odd ways to speak to one.

use crate::process::{Answer, Browser};
use axum::{
    Router,
    extract::{Request, State},
};
use http::HeaderMap;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tempfile::{TempDir, tempdir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) fn directory() -> TempDir {
    tempdir().expect("a temporary directory")
}

/// An origin that counts its requests, and how many of them it serves at once.
#[derive(Clone, Default)]
pub(crate) struct Origin {
    pub(crate) calls: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    pub(crate) most_at_once: Arc<AtomicUsize>,
}

impl Origin {
    pub(crate) async fn enter(&self, delay: Duration) {
        self.calls.fetch_add(1, SeqCst);
        self.most_at_once.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(delay).await;
        self.running.fetch_sub(1, SeqCst);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
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
        origin.enter(Duration::ZERO).await;
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        (headers, format!("answer {}", origin.calls()))
    };
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}
