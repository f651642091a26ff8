//! The cost of a hit through the layer, beside the crates that people use today: a 1 KiB body with 8 headers, a
//! thousand URLs.
//!
//! ```text
//! cargo bench --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! All contestants take turns in each round, so that a machine that is slow for a while is slow for all; the medians
//! are of rounds, and so are the ratios. Each pays for the clone of a request and the reading of the body. It ends with
//! an error if an aim is missed.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use http_cache::MokaManager;
use http_cache_tower_server::ServerCacheLayer;
use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tower::{Layer, Service, service_fn};
use tower_floodgate::{Cache, StampedeCacheLayer};

const URLS: usize = 1_000;
const ROUNDS: usize = 41;
/// Requests of each contestant in a round.
const REQUESTS: usize = 4_000;
/// Untimed requests before them: each contestant finds the heap and the processor's caches as another has left them.
const WARM_UP: usize = 1_000;

type Asked = Request<Full<Bytes>>;
type Page = Response<Full<Bytes>>;

fn page() -> Page {
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
    response.body(Full::new(Bytes::from(vec![b'x'; 1024]))).expect("a response")
}

fn origin()
-> impl Service<Asked, Response = Page, Error = Infallible, Future = Ready<Result<Page, Infallible>>> + Clone + Send {
    service_fn(|_: Asked| ready(Ok(page())))
}

/// Asks for page after page; returns the time that one took.
fn time<S, B>(runtime: &Runtime, service: &mut S, requests: &[Asked], next: &mut usize) -> Duration
where
    S: Service<Asked, Response = Response<B>, Error: std::fmt::Debug>,
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    runtime.block_on(async {
        let mut began = Instant::now();
        for at in 0..WARM_UP + REQUESTS {
            if at == WARM_UP {
                began = Instant::now();
            }
            *next = (*next + 1) % URLS;
            let response = service.call(requests[*next].clone()).await.expect("an answer");
            let body = response.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(black_box(body).len(), 1024);
        }
        began.elapsed() / REQUESTS as u32
    })
}

fn floodgate(memory: usize) -> (Cache, StampedeCacheLayer) {
    let cache = Cache::builder_temporary().memory(memory).open().expect("a cache");
    let layer = StampedeCacheLayer::new(cache.scope("pages"), Duration::from_secs(86_400));
    (cache, layer)
}

/// The least that a layer in memory must do: look up, clone the headers, share the body.
#[derive(Clone)]
struct Ideal(moka::future::Cache<Uri, (HeaderMap, Bytes)>);

impl Ideal {
    async fn answer(self, request: Asked) -> Result<Page, Infallible> {
        let (headers, body) = match self.0.get(request.uri()).await {
            Some(found) => found,
            None => {
                let (parts, body) = page().into_parts();
                let found = (parts.headers, body.collect().await?.to_bytes());
                self.0.insert(request.uri().clone(), found.clone()).await;
                found
            }
        };
        let mut response = Response::new(Full::new(body));
        *response.headers_mut() = headers;
        Ok(response)
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let requests: Vec<Asked> = (0..URLS)
        .map(|n| Request::get(format!("http://example.test/page/{n}")).body(Full::default()).expect("a request"))
        .collect();
    let ((in_memory, memory_layer), (in_files, file_layer)) = (floodgate(32 << 20), floodgate(0));
    let (mut memory, mut files) = (memory_layer.layer(origin()), file_layer.layer(origin()));
    let ideal = Ideal(moka::future::Cache::new(10_000));
    let mut ideal = service_fn(move |request| ideal.clone().answer(request));
    let mut http_cache = ServerCacheLayer::new(MokaManager::new(moka_cache())).layer(origin());
    let mut bare = origin();
    let names =
        ["no cache", "ideal moka layer", "floodgate, in memory", "floodgate, LMDB", "http-cache-tower-server, moka"];
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut next = 0;
    for round in 0..=ROUNDS {
        let round_times = [
            time(&runtime, &mut bare, &requests, &mut next),
            time(&runtime, &mut ideal, &requests, &mut next),
            time(&runtime, &mut memory, &requests, &mut next),
            time(&runtime, &mut files, &requests, &mut next),
            time(&runtime, &mut http_cache, &requests, &mut next),
        ];
        // The first round fills the caches.
        if round > 0 {
            times.iter_mut().zip(round_times).for_each(|(all, time)| all.push(time.as_secs_f64() * 1e9));
        }
    }
    let hits = (ROUNDS * REQUESTS) as u64;
    assert!(in_memory.stats().hits_in_memory >= hits && in_files.stats().hits >= hits, "these were no hits");
    let ratio = |a: usize, b: usize| {
        let mut ratios: Vec<f64> = times[a].iter().zip(&times[b]).map(|(a, b)| a / b).collect();
        median(&mut ratios)
    };
    let (to_memory, to_ideal) = (ratio(4, 2), [ratio(2, 1), ratio(3, 1)]);
    println!("{:<32} {:>9}", "a hit, 1 KiB, 8 headers", "median");
    let medians = times.map(|mut times| median(&mut times));
    for (name, nanos) in names.iter().zip(medians) {
        println!("{name:<32} {nanos:>6.0} ns");
    }
    println!(
        "to the ideal: in memory {:.2}, LMDB {:.2}; http-cache to in memory: {to_memory:.1}",
        to_ideal[0], to_ideal[1]
    );
    let aims = [
        ("in memory below 800 ns", medians[2] < 800.0),
        ("LMDB below 1600 ns", medians[3] < 1600.0),
        ("http-cache at least 25 times that", to_memory >= 25.0),
    ];
    for (aim, met) in aims {
        println!("{:<6} {aim}", if met { "ok" } else { "MISSED" });
    }
    if aims.iter().all(|aim| aim.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn moka_cache<V: Clone + Send + Sync + 'static>() -> moka::future::Cache<String, V> {
    moka::future::Cache::new(10_000)
}
