//! No user is served another's answer: the table of the gateway's tests, in axum.

#[path = "support/leaks.rs"]
mod leaks;

use std::time::Duration;
use tower_floodgate::{Cache, StampedeCacheLayer};

async fn serve(layer: StampedeCacheLayer) -> String {
    let app = leaks::router().layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    format!("http://{address}")
}

#[tokio::test]
async fn nobody_is_served_anothers_answer() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let minute = Duration::from_secs(60);
    leaks::check(&serve(StampedeCacheLayer::new(cache.scope("plain"), minute)).await, &[]).await;
}

#[tokio::test]
async fn nor_by_grace_shared_failures_or_eager_refreshes() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let minute = Duration::from_secs(60);
    let eager = StampedeCacheLayer::new(cache.scope("eager"), minute)
        .stale_while_revalidate(minute)
        .stale_if_error(minute)
        .beta(1e9);
    leaks::check(&serve(eager).await, &[]).await;
}
