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
//! Values without any service are filled by [`Cache::get_or_fill`](crate::Cache::get_or_fill).
//!
//! # One computation
//!
//! A miss is led by one request of the whole machine and followed by the others that want the same name, in this
//! process and in others. Followers in the process get the answer from memory, before it is on disk. When a leader has
//! stored, failed or died, the next leader, in whatever process, looks first at what is stored.
//!
//! Where there is an executor (tokio's, unless [`Builder::executor`](crate::Builder::executor) names one) the
//! computation is a task of its own: a client that hangs up does not stop it. Without one it runs within the leading
//! request and, if that is dropped, a follower leads. A process that is killed is noticed by the others within a tenth
//! of a second. A leader's error or panic is its own, unless errors are [shared](StampedeCacheLayer::share_errors). A
//! follower then leads. A request that has waited for three failures calls the service itself, so that no queue forms
//! behind slow failures. No request waits longer than [`follow_at_most`](StampedeCacheLayer::follow_at_most).
//!
//! An answer that may not be stored is remembered as such, in every process and for
//! [a while](StampedeCacheLayer::uncacheable_for): its followers, and the requests after them, call the service
//! together and not one by one. So do the followers of a response that tells of a failure, unless failures are
//! [shared](StampedeCacheLayer::share_failures).
//!
//! # Before it ends, and after
//!
//! Shortly before an answer ends, a request chosen by XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic
//! Cache Stampede Prevention, PVLDB 8(8), 2015) refreshes it in the background, one on the whole machine, while all
//! others still get the stored one. The chance is `exp(-remaining / (beta * cost))`, where `cost` is a decaying
//! estimate of how long the computation takes, of which at most a quarter of the life counts.
//! [`tuned`](StampedeCacheLayer::tuned) chooses by cost and reads instead, and refreshes no sooner than it must.
//!
//! An answer that has ended is served while a new one is computed, within
//! [`stale_while_revalidate`](StampedeCacheLayer::stale_while_revalidate); and where none is to be had, or not soon enough
//! ([`soft_timeout`](StampedeCacheLayer::soft_timeout)), within [`stale_if_error`](StampedeCacheLayer::stale_if_error). A service
//! that fails is asked again after one second, then two, four and so on up to thirty, by one request of the machine.
//! Responses that say so themselves (RFC 5861) are taken at their word.
//!
//! # What is stored
//!
//! For HTTP: answers to `GET` and `HEAD`, as RFC 9111 allows a shared cache, read strictly. The life is what
//! [`life_of`](StampedeCacheLayer::life_of) says, else that of `Cache-Control` or `Expires`, else the layer's. Never
//! stored: answers with `private`, `no-store`, `no-cache`, `Set-Cookie`, `Vary: *`, status 206 or an error,
//! `text/event-stream` and other types that may never end, a gRPC status other than 0; bodies above the
//! [limit](StampedeCacheLayer::body_limit), which stream through; more tags than fit (some 50); answers to requests
//! with `Authorization`, `Cookie` or `Proxy-Authorization`, unless they say `public` or `s-maxage`. Such requests are
//! served only answers that say so. 404, 410 and gRPC's `NOT_FOUND` may be given a
//! [life of their own](StampedeCacheLayer::negative).
//!
//! **Where callers are known by anything but these three headers (an API key in another header, a session in the
//! extensions, the peer's address), that must be part of the [name](StampedeCacheLayer::name)**, or one user is served
//! another's page.
//!
//! Bodies are passed on while they are recorded: a client sees the first byte when the service sends it. They are read
//! at the service's pace, up to the limit, so that a client that reads slowly does not stall the others; what is longer
//! flows on and is not kept. Followers read along where the length is known to fit, and wait for the whole otherwise. A
//! body that breaks off, or ends before its announced length, is not kept, and is an error to all readers. The end of a
//! body is shown when its answer is stored. A flight takes up to three times the limit in memory. Conditional requests
//! are answered in full.
//!
//! Variants by `Vary` are kept side by side, 32 of a name and a shard at most: those that nobody asks for go first.
//! `Cache-Tag` of the response becomes tags. Trailers survive. A request's `Range`, `Upgrade`, `no-store`, body or other
//! method makes it pass by the cache, the last two unless the name [accounts for them](StampedeCacheLayer::bodies_named), by
//! a [`BodyDigestLayer`] for instance; its `no-cache` and `max-age=0` do not, since any client could then flood the service.
//!
//! A response says what happened in `Cache-Status` (RFC 9211) and in the extension [`CacheStatus`], and its age in `Age`:
//!
//! | `Cache-Status: floodgate; ..` | the answer |
//! | --- | --- |
//! | `hit; ttl=59` | was stored, and is fresh |
//! | `hit; ttl=-3` | was stored, and has ended: it is being refreshed, or cannot be just now |
//! | `fwd=stale; ttl=-3; detail=bridged` | the same, since the service was asked and has failed or is slow |
//! | `fwd=miss; stored; ttl=60` | was computed, and is stored unless its body breaks off |
//! | `fwd=miss; ttl=60; detail=recording` | is being computed, and stored if it turns out to fit |
//! | `fwd=miss; collapsed; ttl=60` | was computed by another request at the same time |
//! | `fwd=miss; detail=REASON` | was computed, and not stored: `queue-full` where 64 MiB of writes wait already |
//! | `fwd=bypass` | is none of the cache's business |
//!
//! # When the cache fails
//!
//! The service is called as if there were no cache, and the failure is noted in [`Stats`](crate::Stats). Where only the state
//! cannot be written, computations are one a process instead of one a machine.

#[macro_use]
mod setters;

mod codec;
mod core;
mod fill;
mod flight;
mod http;
mod layer;
mod leading;
mod lives;
mod marks;
mod plan;
mod serve;
mod service;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod xfetch;

pub use codec::{Codec, Serde};
pub use fill::{Fill, Filling};
pub use http::digest::{BodyDigestFuture, BodyDigestLayer, BodyDigestService};
pub use http::recorded::Recorded;
pub use layer::StampedeCacheLayer;
pub use service::{ResponseFuture, StampedeCache};
pub use status::CacheStatus;
