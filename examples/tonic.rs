//! A tonic server behind a throttle and a barrier: clients see refusals as gRPC statuses. The service is axum's, to need
//! no protoc; one from generated code goes into `add_service` as ever.
//!
//! `cargo run --example tonic` starts the server and calls it a few times.

use std::time::Duration;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Status,
    body::Body,
    service::Routes,
    transport::{Endpoint, Server},
};
use tower::{Service, ServiceExt};
use tower_floodgate::{BarrierLayer, Cache, Semaphore, ThrottleLayer, name::GrpcMethod};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cache = Cache::temporary()?; // or `Cache::open("cache")`, shared by all servers of the machine

    let throttle = ThrottleLayer::new(cache.scope("calls"), 3, Duration::from_secs(60)).name(GrpcMethod::new());
    let barrier = BarrierLayer::new(cache.scope("calls"), Semaphore(8)).wait_at_most(Duration::from_secs(1));
    let answer = || async { Status::ok("done").into_http::<Body>() };
    let routes = Routes::from(axum::Router::new().route("/demo.Greeter/Hello", axum::routing::post(answer)));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let server = listener.local_addr()?;
    tokio::spawn(
        Server::builder()
            .layer(throttle)
            .layer(barrier)
            .add_routes(routes)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );

    let mut channel = Endpoint::try_from(format!("http://{server}"))?.connect().await?;
    for call in 1..=5 {
        let request = http::Request::post(format!("http://{server}/demo.Greeter/Hello"))
            .header("content-type", "application/grpc")
            .body(Body::empty())?;
        let response = channel.ready().await?.call(request).await?;
        let status = Status::from_header_map(response.headers()).ok_or("no status")?;
        let pushback = response.headers().get("grpc-retry-pushback-ms");
        println!("call {call}: {:?} {:?}, retry after {pushback:?} ms", status.code(), status.message());
    }
    Ok(())
}
