//! How many at once: [`BarrierLayer`] lets requests of one name through one by one, or a few at a time, on the whole
//! machine.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{convert::Infallible, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_floodgate::{BarrierLayer, Cache, Semaphore};
//!
//! let cache = Cache::temporary()?;
//! let service = ServiceBuilder::new()
//!     .layer(BarrierLayer::new(cache.scope("db"), Semaphore(1)).wait_at_most(Duration::ZERO))
//!     .service(service_fn(|_: http::Request<()>| async { Ok::<_, Infallible>(http::Response::new(String::new())) }));
//!
//! let held = service.clone().oneshot(http::Request::new(())).await?;
//! assert_eq!(held.status(), 200);
//! let refused = service.clone().oneshot(http::Request::new(())).await?;
//! assert_eq!(refused.status(), 503, "the first response's body has not ended yet");
//! drop(held);
//! assert_eq!(service.oneshot(http::Request::new(())).await?.status(), 200);
//! # Ok(()) }
//! ```
//!
//! [`Lock`](crate::Lock) admits one, [`Semaphore`](crate::Semaphore) some, [`RLock`](crate::RLock) one owner and what is
//! nested in its request; a [`LockFactory`](crate::LockFactory) of your own admits whom it likes.
//!
//! With the answer [`Http`](crate::answer::Http) the lock is held until the response's body has ended or is dropped; with
//! others, until the inner future ends. A request that is dropped gives it back at once, also out of the queue. A process
//! that dies keeps it until its lease ends ([`expire`](BarrierLayer::expire)).
//!
//! # When the cache fails
//!
//! The request is refused (503), since mutual exclusion lost in silence is worse;
//! [`fail_open`](BarrierLayer::fail_open) lets it pass.

mod layer;
mod service;

pub use layer::BarrierLayer;
pub use service::{Barrier, ResponseFuture};
