//! reqwest as a tower service: layers that wait or fail fit it as it is, HTTP layers need two adapters.
//!
//! `cargo run --example reqwest` asks a small server of its own.

use std::time::{Duration, Instant};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_floodgate::{BarrierLayer, Cache, Fail, Lock, StampedeCacheLayer, ThrottleLayer};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let url = demo_server().await?;
    let cache = Cache::temporary()?; // or `Cache::open("cache")`, shared by all processes of the machine
    let began = Instant::now();

    // reqwest's own request and response. Waiting changes no type; failing needs an error made from a rejection.
    let host = |request: &reqwest::Request| request.url().host_str().map(str::to_owned);
    let mut polite = ServiceBuilder::new()
        .layer(ThrottleLayer::new(cache.scope("polite"), 2, Duration::from_secs(1)).name(host).wait())
        .layer(BarrierLayer::new(cache.scope("polite"), Lock).name(host).answer(Fail))
        .map_err(BoxError::from)
        .service(reqwest::Client::new());
    for n in 0..4 {
        let request = reqwest::Request::new(reqwest::Method::GET, format!("{url}{n}").parse()?);
        let text = polite.ready().await?.call(request).await?.text().await?;
        println!("{:4.1} s: {text}", began.elapsed().as_secs_f64());
    }

    // With the types of `http`, for the cache and for refusals that are responses.
    let mut cached = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| reqwest::Response::from(response.map(reqwest::Body::wrap)))
        .layer(StampedeCacheLayer::new(cache.scope("web"), Duration::from_secs(10)))
        .map_request(|request: http::Request<reqwest::Body>| reqwest::Request::try_from(request).expect("a full URL"))
        .map_response(http::Response::<reqwest::Body>::from)
        .service(reqwest::Client::new());
    for _ in 0..2 {
        let request = http::Request::get(format!("{url}page")).body(reqwest::Body::default())?;
        let response: reqwest::Response = cached.ready().await?.call(request).await?;
        let told = response.headers()["cache-status"].clone();
        println!("{:4.1} s: {} ({told:?})", began.elapsed().as_secs_f64(), response.text().await?);
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
