//! How often: [`ThrottleLayer`] lets `count` requests per time pass for each name, on the whole machine.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{convert::Infallible, time::Duration};
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_floodgate::{Cache, ThrottleLayer, name::Header};
//!
//! let cache = Cache::temporary()?;
//! let mut service = ServiceBuilder::new()
//!     .layer(ThrottleLayer::new(cache.scope("api"), 2, Duration::from_secs(60)).name(Header::new("x-client")))
//!     .service(service_fn(|_: http::Request<()>| async { Ok::<_, Infallible>(http::Response::new(String::new())) }));
//!
//! let ask = |client| http::Request::builder().header("x-client", client).body(()).unwrap();
//! for _ in 0..2 {
//!     assert_eq!(service.ready().await?.call(ask("ada")).await?.status(), 200);
//! }
//! let refused = service.ready().await?.call(ask("ada")).await?;
//! assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str()?), (429, "30"));
//! assert_eq!(service.ready().await?.call(ask("bob")).await?.status(), 200, "another name, another budget");
//! # Ok(()) }
//! ```
//!
//! The budget is kept by GCRA ([`Rate`]) in the cache: exact across tasks, threads and processes, unchanged by restarts,
//! by another process, or by making the layer again. A call that fails stays spent.
//!
//! # Waiting instead of refusing
//!
//! [`wait_at_most`](ThrottleLayer::wait_at_most) and [`wait`](ThrottleLayer::wait) reserve the next free slot and sleep
//! until it comes: first come, first served over all processes, one write a request. A waiter that is dropped gives its
//! slot back if it was the last one; from the middle of the queue it stays spent.
//!
//! # When the cache fails
//!
//! The request passes, uncounted, and is noted in [`Stats`](crate::Stats);
//! [`fail_closed`](ThrottleLayer::fail_closed) refuses it instead.

mod layer;
mod limit;
mod quota;
mod rate;
mod service;

pub use layer::{Cost, One, ThrottleLayer, WaitingThrottleLayer};
pub use limit::{Limit, LimitError};
pub use quota::{Decision, Quota};
pub use rate::Rate;
pub use service::{ResponseFuture, Throttle};
