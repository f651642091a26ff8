//! Not again, if we know the answer: [`StampedeCacheLayer`] keeps responses, and lets one request compute what many want.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{convert::Infallible, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_floodgate::{Cache, StampedeCacheLayer};
//!
//! let cache = Cache::temporary()?;
//! let service = ServiceBuilder::new()
//!     .layer(StampedeCacheLayer::new(cache.scope("report"), Duration::from_secs(300)).ignore(["utm_*"]))
//!     .service(service_fn(|_: http::Request<String>| async {
//!         Ok::<_, Infallible>(http::Response::new("a report that took long".to_string()))
//!     }));
//!
//! let ask = |uri| http::Request::get(uri).body(String::new()).unwrap();
//! let first = service.clone().oneshot(ask("http://localhost/report?year=2026&utm_source=x")).await?;
//! assert_eq!(first.headers()["cache-status"], "floodgate; fwd=miss; stored; ttl=300");
//! let second = service.oneshot(ask("http://localhost/report?year=2026")).await?;
//! assert!(second.headers()["cache-status"].to_str()?.starts_with("floodgate; hit"));
//! # Ok(()) }
//! ```
//!
//! Plain services are memoized by their serde requests and responses:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{convert::Infallible, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_floodgate::{Cache, StampedeCacheLayer};
//!
//! let cache = Cache::temporary()?;
//! let square = ServiceBuilder::new()
//!     .layer(StampedeCacheLayer::memoize(cache.scope("square"), Duration::from_secs(60)))
//!     .service(service_fn(|n: u64| async move { Ok::<_, Infallible>(n * n) }));
//! assert_eq!(square.clone().oneshot(12).await?, 144);
//! assert_eq!(square.oneshot(12).await?, 144);
//! assert_eq!(cache.stats().hits, 1);
//! # Ok(()) }
//! ```
//!
//! # One computation
//!
//! A miss is led by one request and followed by the others of this process that want the same name. Where there is an
//! executor (tokio's, unless [`Builder::executor`](crate::Builder::executor) names one) the computation is a task of its
//! own: a client that hangs up does not stop it. Without one it runs within the leading request and, if that is dropped,
//! a follower leads. A leader's error or panic is its own; a follower then leads, and who has waited for three that failed
//! calls the service itself, so that nobody queues behind slow failures. A computation that has not ended after a minute
//! gathers no more followers: the next request begins another.
//!
//! Shortly before an answer ends, a request chosen by XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic
//! Cache Stampede Prevention, PVLDB 8(8), 2015) refreshes it in the background while everyone is still served the stored
//! one. The chance is `exp(-remaining / (beta * cost))`, where `cost` is how long the stored answer took.
//!
//! # What is stored
//!
//! For HTTP: answers to `GET` and `HEAD`, as RFC 9111 allows a shared cache, read strictly. The life is that of
//! `Cache-Control` or `Expires`, else the layer's. Never stored: answers with `private`, `no-store`, `no-cache`,
//! `Set-Cookie`, `Vary: *`, status 206 or an error, `text/event-stream` and other types that may never end, a gRPC status
//! other than 0; bodies above the [limit](StampedeCacheLayer::body_limit), which stream through; more tags than fit (some
//! 50); answers to requests with `Authorization`, `Cookie` or `Proxy-Authorization`, unless they say `public` or
//! `s-maxage`. Such requests are served only what says so.
//!
//! **Whoever is known by anything but these three headers (an API key of another header, a session in the extensions, the
//! peer's address) must be part of the [name](StampedeCacheLayer::name)**, or one user is served another's page.
//!
//! An answer that may be kept is read whole, up to the limit, before its first byte goes on. Conditional requests are
//! answered in full.
//!
//! Variants by `Vary` are kept side by side. `Cache-Tag` of the response becomes tags. Trailers survive. A request's
//! `Range`, `Upgrade`, `no-store`, body or other method makes it pass by the cache, the last two unless the name
//! [accounts for them](StampedeCacheLayer::bodies_named); its `no-cache` and `max-age=0` do not, since any client could
//! then flood the service.
//!
//! A response says what happened in `Cache-Status` (RFC 9211) and in the extension [`CacheStatus`], and its age in `Age`.
//!
//! # When the cache fails
//!
//! The service is called as if there were no cache, and the failure is noted in [`Stats`](crate::Stats).

mod codec;
mod core;
mod digest;
mod fill;
mod flight;
mod fresh;
mod http_codec;
mod layer;
mod marks;
mod plan;
mod serve;
mod service;
mod status;
#[cfg(test)]
mod tests;
mod wire;
mod xfetch;

pub use codec::{Codec, Serde};
pub use digest::{BodyDigestFuture, BodyDigestLayer, BodyDigestService};
pub use fill::{Fill, Filling};
pub use http_codec::Recorded;
pub use layer::StampedeCacheLayer;
pub use service::{ResponseFuture, StampedeCache};
pub use status::CacheStatus;
