//! Three tower layers for when many requests want the same thing at once, over one LMDB-backed cache that every task,
//! thread and process of the machine shares. No server to run.
//!
//! | layer | question | what it does by default |
//! | --- | --- | --- |
//! | [`ThrottleLayer`] | how often? | GCRA per name; 429 with `Retry-After` beyond it, or [waits](ThrottleLayer::wait) |
//! | [`BarrierLayer`] | how many at once? | [`Lock`], [`RLock`], [`Semaphore`], [`ReadWrite`] per name; waits in order, held until the response's body ends |
//! | [`StampedeCacheLayer`] | do we know the answer? | keeps responses; one request of the machine computes what many want; XFetch refreshes early; ended answers bridge failures |
//!
//! ```no_run
//! # use axum::{Router, extract::ConnectInfo, routing::get};
//! # use std::{net::SocketAddr, time::Duration};
//! # use tower::ServiceBuilder;
//! use tower_floodgate::{BarrierLayer, Cache, Semaphore, StampedeCacheLayer, ThrottleLayer, name::extension};
//!
//! # async fn report() -> &'static str { "" }
//! # fn main() -> Result<(), tower_floodgate::Error> {
//! let cache = Cache::open("cache")?; // a directory: 64 MiB at once, private to this user
//! let client = extension(|peer: &ConnectInfo<SocketAddr>| peer.0.ip());
//!
//! let app: Router = Router::new().route("/report/{id}", get(report)).layer(
//!     ServiceBuilder::new()
//!         .layer(ThrottleLayer::new(cache.scope("api"), 100, Duration::from_secs(60)).name(client))
//!         .layer(StampedeCacheLayer::new(cache.scope("report"), Duration::from_secs(300)).tag("report"))
//!         .layer(BarrierLayer::new(cache.scope("db"), Semaphore(4)).wait_at_most(Duration::from_secs(5))),
//! );
//! # let _ = app; Ok(()) }
//! ```
//!
//! # Names and scopes
//!
//! A layer takes a [`Scope`] of the cache, so that no two layers share by accident; equal scopes share on purpose, in
//! this process and in others. Within it, `.name(..)` derives from the request what is counted, locked or kept: see
//! [`name`].
//!
//! # Hosts
//!
//! The error type of a service never changes, and HTTP refusals are responses, so axum needs no `HandleErrorLayer`.
//!
//! | host | how |
//! | --- | --- |
//! | axum | `Router::layer`, `route_layer`, `Handler::layer` |
//! | tonic server | `Server::builder().layer(..)`; refusals are gRPC statuses |
//! | tonic client | `ServiceBuilder::new().layer(..).service(channel)` |
//! | hyper-util's legacy client | `ServiceBuilder::new().layer(..).service(client)` |
//! | reqwest | its own types with layers that wait or fail; HTTP layers by two adapters (see the example) |
//! | any `Service` | throttle and barrier with [`Fail`] or `.wait()`, [`StampedeCacheLayer::memoize`] |
//! | no service at all | [`Cache::throttle`], [`Cache::lock`], [`Cache::get_or_fill`], [`Cache::insert`] |
//!
//! # When it does not compile
//!
//! For a stack that is no `Service`, the compiler says only "trait bounds not satisfied". Mostly the reason is one of
//! these:
//!
//! - the service is not HTTP: give its throttle and barrier [`Fail`] or a closure as `.answer(..)`, or `.wait()`;
//! - [`Fail`] needs an error that is `From<Rejection>`;
//! - [`RLock::new`] and [`ReadWrite`] look into `http` requests; for others there are [`RLock::owned_by`] and a
//!   closure, such as `|order: &Order| if order.is_query { ReadWrite.read() } else { ReadWrite.write() }`;
//! - [`StampedeCacheLayer::memoize`] needs a request that is `Serialize` and a response that is `Serialize` and
//!   `DeserializeOwned`; [`StampedeCacheLayer::new`] needs `http` types, whose bodies are bodies;
//! - a closure given to `.name(..)` must say what it takes: `|request: &Request<_>| ..`;
//! - closures take the requests and responses of the service: in axum `&axum::extract::Request` and
//!   `&axum::response::Response`, and not those of `http` with another body.
//!
//! # When the cache fails
//!
//! A throttle lets the request pass, a barrier refuses it, a stampede cache calls the service; a setting of each layer
//! can change that. No layer waits for the cache once nobody has been able to write for [`Builder::patience`]; a write
//! behind others that move may take longer. [`Cache::stats`] counts such events, and they are logged through `tracing`,
//! each kind at most once a second.
//!
//! # Features
//!
//! `tokio` (default): tokio's timer and executor, so that [`Cache::open`] needs nothing. It starts no runtime, so
//! programs of plain threads, which call the blocking functions, leave it on. Without it, a thread of the crate's own is
//! the timer ([`time::ThreadTimer`]), and background refreshes need an executor, given to the [`Builder`].
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!("tower-floodgate needs Linux: robust process-shared mutexes, CLOCK_BOOTTIME and flock");

#[macro_use]
mod accessors;
pub mod answer;
pub mod barrier;
pub mod body;
pub mod cache;
mod decision;
mod error;
pub mod lock;
mod log_limit;
pub mod name;
mod rejection;
pub mod stampede;
mod store;
pub mod throttle;
pub mod time;
mod varint;

pub use answer::{Answer, Fail, Http};
pub use barrier::BarrierLayer;
pub use body::Body;
pub use cache::{
    Averager, Builder, Cache, Durability, HolderStats, LockStats, Purge, QueueStats, Scope, Stats, WaiterStats,
};
pub use error::Error;
pub use lock::{Lock, LockFactory, RLock, ReadWrite, Semaphore};
pub use name::Name;
pub use rejection::{Reason, Rejection};
pub use stampede::StampedeCacheLayer;
pub use throttle::ThrottleLayer;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
