//! How a layer speaks for itself: what callers see of an admitted response, and of a refusal.
//!
//! The error type of a service never changes. [`Http`], the default, answers with HTTP or gRPC responses of its own;
//! [`Fail`] makes an error out of a [`Rejection`](crate::Rejection); a closure does as it likes:
//!
//! ```
//! # use std::{convert::Infallible, time::Duration};
//! # use tower_floodgate::{Cache, Rejection, ThrottleLayer};
//! # let cache = Cache::temporary()?;
//! let teapot = |_: &http::Request<()>, why: Rejection| {
//!     let mut response = http::Response::new(why.to_string());
//!     *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
//!     Ok::<_, Infallible>(response)
//! };
//! let layer = ThrottleLayer::new(cache.scope("tea"), 1, Duration::from_secs(1)).answer(teapot);
//! # let _ = layer;
//! # Ok::<(), tower_floodgate::Error>(())
//! ```
//!
//! # What HTTP clients are told
//!
//! | refused because | status | problem type |
//! |---|---|---|
//! | a limit is spent ([`Throttled`](crate::Reason::Throttled)), or can never be met ([`TooCostly`](crate::Reason::TooCostly)) | 429 | `quota-exceeded` |
//! | too many wait for their turn at a throttle ([`QueueFull`](crate::Reason::QueueFull)) | 429 | `quota-exceeded` |
//! | the name is blocked, by too many refusals or by hand ([`Blocked`](crate::Reason::Blocked)) | 429 | `abnormal-usage-detected` |
//! | the name may never pass ([`Denied`](crate::Reason::Denied)) | 403 | |
//! | a lock is not free ([`Busy`](crate::Reason::Busy)), or too many wait for it ([`QueueFull`](crate::Reason::QueueFull)) | 503, or 429 or 409 as [`Http::busy`] says | |
//! | its lock was lost while the request was served ([`Lost`](crate::Reason::Lost)) | 503 | |
//! | the cache failed ([`CacheFailed`](crate::Reason::CacheFailed)) | 503 | |
//!
//! `Retry-After` says after how many seconds to ask again, rounded up and at least 1; it is left out where that is never,
//! or not known, and of a lost lock, whose request may be half done. The body is `application/problem+json` (RFC 9457): title, status and detail. A refusal by a throttle has
//! a type as well, and in `violated-policies` the name of the limit, as draft-ietf-httpapi-ratelimit-headers-11 defines
//! them.
//!
//! `RateLimit-Policy` and `RateLimit` (the same draft) have one item for each limit of the throttle:
//!
//! ```text
//! RateLimit-Policy: "burst";q=10;w=1, "daily";q=5000;w=86400
//! RateLimit: "burst";r=0;t=1, "daily";r=1200;t=65664
//! ```
//!
//! - `q` is [`Quota::limit`](crate::throttle::Quota::limit), and `w` its window in seconds.
//! - `r` is what is left, and `t` for how many seconds to reckon with no more than that: until the limit is whole again
//!   or, for the limit that refused, as long as `Retry-After` says.
//! - The name is the limit's own, or else the scope's: `"api"`, or `"api-1"`, `"api-2"` and so on from the shortest window
//!   where several limits have none. What is not printable ASCII is percent-encoded, as such fields have nothing else.
//!
//! They are on refusals; on admitted responses only with [`Http::quota_headers`], and there as of the decision: what is
//! settled or refunded by the response shows in the next one. Throttles around one another each add
//! items of their own. [`Http::x_ratelimit`] adds the older `X-RateLimit-*`.
//!
//! # What gRPC clients are told
//!
//! A request whose content type is `application/grpc*` gets a trailers-only response: `RESOURCE_EXHAUSTED` for what is
//! 429 above, `PERMISSION_DENIED` for 403, `ABORTED` for 409 and for a lost lock, `UNAVAILABLE` for other 503. Its `grpc-status-details-bin` has a
//! `google.rpc.RetryInfo` where the delay is known and, where a limit refused, a `google.rpc.QuotaFailure` whose subject
//! is the scope. `grpc-retry-pushback-ms` tells clients that retry by themselves when to, or (-1) not to.
//!
//! # What handlers and logs are told
//!
//! [`Http`] puts a throttle's [`Decision`](crate::throttle::Decision) into the extensions of the request, before the inner service is called, and
//! into those of the response; refusals have the [`Rejection`](crate::Rejection) in theirs. Other answers get the decision in
//! [`Answer::mark`] and [`Answer::admit`].
//!
//! It puts a barrier's [`Hold`](crate::lock::Hold) into the extensions of the request; other answers get it in [`Answer::hold`].

mod grpc;
mod http;
mod plain;
mod problem;
mod quota_headers;
#[cfg(test)]
mod tests;
mod traits;

pub use http::Http;
pub use plain::{Fail, Patient};
pub use traits::{Admission, Answer};
