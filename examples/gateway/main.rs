//! A reverse proxy that guards any HTTP upstream with all three layers.
//!
//! ```sh
//! cargo run --release --example gateway -- --throttle 100/60 --barrier 4
//! cargo run --release --example gateway -- --upstream http://localhost:3000 --help
//! ```
//!
//! Gateways that are given one `--cache-dir` share budgets, locks and answers, also across restarts. The stack itself is
//! `proxy::stack`; the rest is flags, sockets and a demo origin to try it on.

mod admin;
mod demo;
mod flags;
mod paths;
mod proxy;

use flags::Flags;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{future::Future, io::Write, net::SocketAddr, pin::pin, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower::{BoxError, ServiceBuilder};
use tower_floodgate::Cache;

/// How long running requests may take to finish once the gateway is told to stop.
const FAREWELL: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match Flags::read() {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    match run(flags).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => flags::fail(&error.to_string()),
    }
}

async fn run(flags: Flags) -> Result<(), BoxError> {
    let stop = stop_signal()?;
    let cache = Cache::open(&flags.cache_dir)?;
    let listener = bind(flags.listen).await?;
    let address = listener.local_addr()?;
    let upstream = match &flags.upstream {
        Some(upstream) => upstream.clone(),
        None => {
            let origin = demo::start().await?;
            say(&format!("demo origin on http://{origin}"));
            origin.into()
        }
    };
    let proxy = proxy::stack(&flags, &cache, upstream, address.port());
    if let Some(admin) = flags.admin {
        let admin = bind(admin).await?;
        say(&format!("admin on http://{}", admin.local_addr()?));
        admin::start(admin, cache);
    }
    say(&format!("listening on http://{address}"));
    say(&flags.hints(address));
    serve(listener, proxy, stop).await;
    Ok(())
}

/// Serves HTTP/1.1 and HTTP/2 without TLS (h2c, by prior knowledge) until it is told to stop.
async fn serve(listener: TcpListener, proxy: proxy::Proxy, stop: impl Future<Output = ()>) {
    let server = auto::Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        let (socket, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, mostly: some will come back.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let _ = socket.set_nodelay(true);
        let service =
            ServiceBuilder::new().map_request(move |request| proxy::normalize(request, peer)).service(proxy.clone());
        let connection = server.serve_connection(TokioIo::new(socket), TowerToHyperService::new(service)).into_owned();
        tokio::spawn(graceful.watch(connection));
    }
    drop(listener);
    let _ = tokio::time::timeout(FAREWELL, graceful.shutdown()).await;
}

async fn bind(address: SocketAddr) -> Result<TcpListener, BoxError> {
    TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address}: {error}").into())
}

/// Resolves at the first SIGTERM or SIGINT.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A line on stdout. Whoever reads it may be gone, which `println!` would not survive.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
