//! Good manners towards somebody else's server, with hyper-util's client: no more than the agreed rate for each host, nor
//! than its answers say is left, no two requests to it at once, and nothing asked twice.
//!
//! `cargo run --example hyper_client` asks a small server of its own; with a URL (`-- http://example.com/`) it asks that.

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use std::time::{Duration, Instant};
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_floodgate::{BarrierLayer, Cache, Lock, StampedeCacheLayer, ThrottleLayer};

type Asked = Request<Empty<Bytes>>;

#[tokio::main]
async fn main() -> Result<(), tower::BoxError> {
    let url = match std::env::args().nth(1) {
        Some(url) => url,
        None => demo_server().await?,
    };
    let cache = Cache::open(std::env::temp_dir().join("floodgate-client"))?; // all processes together keep to the rate

    let host = |request: &Asked| request.uri().authority().map(|host| host.as_str().to_owned());
    let mut client = ServiceBuilder::new()
        .layer(StampedeCacheLayer::new(cache.scope("web"), Duration::from_secs(10)))
        .layer(ThrottleLayer::new(cache.scope("web"), 1, Duration::from_secs(1)).name(host).learn().wait())
        .layer(BarrierLayer::new(cache.scope("web"), Lock).name(host))
        .service(Client::builder(TokioExecutor::new()).build_http());

    let began = Instant::now();
    for page in [1, 1, 2, 2, 3, 1] {
        let request = Request::get(format!("{url}?page={page}")).body(Empty::new())?;
        let response = client.ready().await?.call(request).await?;
        let told = response.headers()["cache-status"].to_str()?.to_owned();
        let bytes = response.into_body().collect().await?.to_bytes().len();
        println!("{:4.1} s: page {page}, {bytes} bytes, {told}", began.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn demo_server() -> std::io::Result<String> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let app = axum::Router::new().fallback(|uri: axum::http::Uri| async move { format!("this is {uri}") });
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}
