//! A barrier around websockets: at most so many at once, in all processes of the machine together. The handler takes the
//! guard out of the request's extensions and holds it for as long as the socket lives.
//!
//! ```text
//! cargo run --example websocket
//! websocat ws://127.0.0.1:3000/echo     # two of these; the third is answered 503
//! ```

use axum::{
    Extension, Router,
    extract::ws::{WebSocket, WebSocketUpgrade},
    response::Response,
    routing::any,
};
use tower_floodgate::{
    BarrierLayer, Cache, Semaphore,
    lock::{Guard, Hold},
};

async fn upgrade(request: WebSocketUpgrade, Extension(hold): Extension<Hold>) -> Response {
    // Whoever does not take the guard gives the place back with the response 101.
    let guard = hold.take();
    request.on_upgrade(|socket| echo(socket, guard))
}

/// Says everything again, until the socket is closed or the place is lost.
async fn echo(mut socket: WebSocket, guard: Option<Guard>) {
    let Some(guard) = guard else { return };
    let talk = async {
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = talk => {}
        () = guard.lost() => {}
    }
}

/// A router with one route, for so many sockets at once.
pub(crate) fn app(cache: &Cache, most: u32) -> Router {
    let sockets = BarrierLayer::new(cache.scope("sockets"), Semaphore(most)).try_only();
    Router::new().route("/echo", any(upgrade)).layer(sockets)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".into());
    let cache = Cache::open(std::env::temp_dir().join("floodgate-example"))?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    println!("try: websocat ws://{}/echo", listener.local_addr()?);
    axum::serve(listener, app(&cache, 2)).await?;
    Ok(())
}
