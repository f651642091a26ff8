//! All three layers around an axum router: a throttle for each client, a cache for a slow report, and at most two reports
//! being computed at once. No `HandleErrorLayer`: what a layer refuses is a response.
//!
//! ```text
//! cargo run --example axum
//! curl -i http://127.0.0.1:3000/report/7          # takes a second, then none
//! curl -i http://127.0.0.1:3000/report/8 &        # any number of these at once are one computation
//! ```
//!
//! Start it twice, the second time with another address (`cargo run --example axum -- 127.0.0.1:3001`): both share the
//! budgets, the locks and the answers.

use axum::{
    Router,
    extract::{ConnectInfo, Path},
    routing::get,
};
use std::{net::SocketAddr, time::Duration};
use tower::ServiceBuilder;
use tower_floodgate::{BarrierLayer, Cache, Semaphore, StampedeCacheLayer, ThrottleLayer, name::ClientIp};

async fn report(Path(id): Path<u64>) -> String {
    tokio::time::sleep(Duration::from_secs(1)).await;
    format!("report {id}\n")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".into());
    let cache = Cache::open(std::env::temp_dir().join("floodgate-example"))?;

    let client =
        ClientIp::from_fn(|extensions| extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip()));
    let guarded = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("clients"), 20, Duration::from_secs(60)).name(client))
        .layer(StampedeCacheLayer::new(cache.scope("report"), Duration::from_secs(30)).ignore(["utm_*"]))
        .layer(BarrierLayer::new(cache.scope("report"), Semaphore(2)).wait_at_most(Duration::from_secs(5)));
    let app = Router::new().route("/report/{id}", get(report)).layer(guarded);

    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("try: curl -i http://{}/report/7", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
