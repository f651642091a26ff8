//! An origin to try the gateway on: slow, and counting how often it is asked.

use axum::{
    Router,
    extract::{Path, State},
    http::header::CACHE_CONTROL,
    response::IntoResponse,
    routing::get,
};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::net::TcpListener;

/// How often `/slow` ran.
type Runs = Arc<AtomicU64>;

/// Starts the origin on a port of its own.
pub(crate) async fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let origin = Router::new()
        .route("/slow/{ms}", get(slow))
        .route("/count", get(count))
        .route("/hello", get(async || "hello\n"))
        .with_state(Runs::default());
    tokio::spawn(async move { axum::serve(listener, origin).await });
    Ok(address)
}

/// Says nothing about caching, so the gateway's `--expire` decides.
async fn slow(State(runs): State<Runs>, Path(ms): Path<u32>) -> String {
    let run = runs.fetch_add(1, Relaxed) + 1;
    tokio::time::sleep(Duration::from_millis(ms.into())).await;
    format!("run {run} of /slow, after {ms} ms\n")
}

async fn count(State(runs): State<Runs>) -> impl IntoResponse {
    ([(CACHE_CONTROL, "no-store")], runs.load(Relaxed).to_string())
}
