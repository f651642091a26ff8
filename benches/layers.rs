//! The cost of a layer when nothing happens: each layer wraps a service that does nothing, and is measured beside the
//! crates that people use today.
//!
//! ```text
//! cargo bench --bench layers
//! ```
//!
//! Compare ratios within one run: absolute times differ by half between machines and hours. The cache is in the
//! system's temporary directory; set `TMPDIR` to put it elsewhere.
#![allow(missing_docs)]

use axum::body::Body;
use criterion::{BenchmarkId, Criterion, criterion_group};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Bytes;
use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    hint::black_box,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, service_fn};
use tower_floodgate::{BarrierLayer, Cache, Lock, StampedeCacheLayer};

#[path = "support/statistics.rs"]
mod statistics;
#[path = "support/throttles.rs"]
mod throttles;

const NAMES: usize = 10_000;

/// Drives a future that is ready at once: no runtime in the measurement.
fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("had to wait"),
    }
}

fn call<S, Req>(service: &mut S, request: Req) -> S::Response
where
    S: Service<Req, Error = Infallible>,
{
    let Poll::Ready(Ok(())) = service.poll_ready(&mut Context::from_waker(Waker::noop())) else { panic!("not ready") };
    let Ok(response) = now(service.call(request));
    response
}

type Answer<B> = Ready<Result<Response<B>, Infallible>>;

fn nothing<B: Default>()
-> impl Service<Request<()>, Response = Response<B>, Error = Infallible, Future = Answer<B>> + Clone {
    service_fn(|_: Request<()>| ready(Ok(Response::new(B::default()))))
}

/// Requests of many clients, in turn.
struct Clients {
    names: Vec<HeaderValue>,
    next: AtomicUsize,
}

impl Clients {
    fn new(count: usize) -> Self {
        let names = (0..count).map(|i| format!("client-{i:06}").parse().unwrap()).collect();
        Clients { names, next: AtomicUsize::new(0) }
    }

    fn request(&self) -> Request<()> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.names.len();
        let mut request = Request::new(());
        request.headers_mut().insert("x-client", self.names[at].clone());
        request
    }
}

fn throttle(c: &mut Criterion) {
    let mut group = c.benchmark_group("throttle");
    let clients = Clients::new(NAMES);
    let mut bare = nothing::<Body>();
    group.bench_function("no layer", |b| b.iter(|| call(&mut bare, clients.request())));
    for names in [1, NAMES] {
        for mut contestant in throttles::contestants(names) {
            let id = BenchmarkId::new(contestant.what, names);
            group.bench_function(id, |b| b.iter(|| (contestant.ask)()));
        }
    }
    group.finish();
}

fn barrier(c: &mut Criterion) {
    let mut group = c.benchmark_group("barrier");
    let cache = Cache::temporary().unwrap();
    let clients = Clients::new(1);
    let mut locked = BarrierLayer::new(cache.scope("lock"), Lock).layer(nothing::<Full<Bytes>>());
    group.bench_function("uncontended", |b| b.iter(|| call(&mut locked, clients.request())));
    let mutex = tokio::sync::Mutex::new(());
    group.bench_function("tokio mutex", |b| b.iter(|| drop(black_box(now(mutex.lock())))));
    group.finish();
}

fn hit(c: &mut Criterion) {
    const URLS: usize = 1_000;
    let mut group = c.benchmark_group("hit 1 KiB");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let origin = service_fn(|_: Request<Full<Bytes>>| {
        let mut response = Response::builder();
        for (name, value) in [
            ("content-type", "text/html; charset=utf-8"),
            ("server", "origin"),
            ("date", "Mon, 23 Nov 2026 00:00:00 GMT"),
            ("etag", "\"33a64df551425fcc55e4d42a148795d9f25f89d4\""),
            ("last-modified", "Sun, 22 Nov 2026 00:00:00 GMT"),
            ("cache-control", "public, max-age=86400"),
            ("x-request-id", "f058ebd6-02f7-4d3f-942e-904344e8cde5"),
            ("vary", "accept-encoding"),
        ] {
            response = response.header(name, value);
        }
        ready(Ok::<_, Infallible>(response.body(Full::new(Bytes::from(vec![b'x'; 1024]))).unwrap()))
    });
    let uris: Vec<http::Uri> = (0..URLS).map(|i| format!("http://example.test/page/{i}").parse().unwrap()).collect();
    let ask = |at: usize| {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uris[at % URLS].clone();
        request
    };
    let mut at = 0;
    for (what, memory) in [("through the layer, in memory", 32 << 20), ("through the layer, LMDB", 0)] {
        let cache = Cache::builder_temporary().memory(memory).open().unwrap();
        let mut cached = StampedeCacheLayer::new(cache.scope("pages"), Duration::from_secs(86_400)).layer(origin);
        runtime.block_on(async {
            for at in 0..URLS {
                cached.call(ask(at)).await.unwrap();
            }
            while cache.stats().stored < URLS as u64 {
                tokio::task::yield_now().await;
            }
        });
        group.bench_function(what, |b| {
            b.iter(|| {
                at += 1;
                call(&mut cached, ask(at))
            })
        });
        let stats = cache.stats();
        // Unless a filter has left it out.
        assert!(stats.hits == 0 || (stats.hits_in_memory > 0) == (memory > 0), "{stats:?}");
    }

    let moka = moka::sync::Cache::<String, Bytes>::new(10_000);
    let keys: Vec<String> = uris.iter().map(ToString::to_string).collect();
    keys.iter().for_each(|key| moka.insert(key.clone(), Bytes::from(vec![b'x'; 1024])));
    group.bench_function("moka get", |b| {
        b.iter(|| {
            at += 1;
            black_box(moka.get(&keys[at % URLS]))
        })
    });
    group.finish();
}

criterion_group! {
    name = layers;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = throttle, barrier, hit
}

fn main() {
    layers();
    Criterion::default().configure_from_args().final_summary();
    // `cargo test --benches` runs this too.
    if std::env::args().any(|argument| argument == "--bench") {
        throttles::print_ratios(NAMES);
        println!("Hits beside http-cache: cargo bench --manifest-path benches/peers/Cargo.toml");
    }
}
