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
//! [`Lock`](crate::Lock) admits one, [`Semaphore`](crate::Semaphore) some, [`RLock`](crate::RLock) one owner and what
//! is nested in its request; a [`LockFactory`](crate::LockFactory) of your own decides by itself.
//!
//! With the answer [`Http`](crate::answer::Http) the lock is held until the response's body has ended or is dropped; with
//! others, until the inner future ends. A request that is dropped gives it back at once, also out of the queue. A process
//! that dies gives it back within 100 ms; one that hangs keeps it until its lease ends ([`expire`](BarrierLayer::expire)).
//!
//! A living request keeps the lock, so two things can hold it without limit: an inner service that is not ready or
//! never answers, and a client that reads the response slowly. Give both a timeout: a layer inside the barrier for the
//! first, the server's for the second. [`wait_at_most`](BarrierLayer::wait_at_most) only bounds the wait for the lock.
//!
//! # In the handler
//!
//! [`Http`](crate::answer::Http) puts a [`Hold`](crate::lock::Hold) into the request's extensions: the fencing token,
//! whether the lock was lost, and the guard itself for a handler that goes on after its response, as with a websocket.
//! A handler that upgrades a connection and does not take the guard gives the lock back with the response 101. Behind
//! several barriers it is the hold of the innermost. A request that passes without a lock, since it has no name or by
//! [`fail_open`](BarrierLayer::fail_open), has none: there an axum handler takes `Option<Extension<Hold>>`. Without
//! HTTP, [`LockFactory::hand_over`](crate::LockFactory::hand_over) can pass it on.
//!
//! ```
//! use http::{Request, Response};
//! use tower_floodgate::lock::Hold;
//!
//! async fn upgrade(request: Request<String>) -> Response<String> {
//!     let Some(guard) = request.extensions().get::<Hold>().and_then(Hold::take) else {
//!         return Response::new("not behind a barrier".to_owned());
//!     };
//!     // The lock is held until the guard is dropped, whatever becomes of the response.
//!     Response::new(format!("write with token {}", guard.fence()))
//! }
//! ```
//!
//! # When the lock is lost
//!
//! A process that was suspended for longer than the lease, or could not renew it, may go on beside the next holder.
//! [`cancel_on_loss`](BarrierLayer::cancel_on_loss) ends such a request; a store that must never see it checks the
//! [fencing token](crate::lock::Fence), which [`fence_header`](BarrierLayer::fence_header) sends on.
//!
//! # Refusals
//!
//! A lock that is not free in time is [`Busy`](crate::Reason::Busy), one for which too many wait is
//! [`QueueFull`](crate::Reason::QueueFull): 503 unless [`Http::busy`](crate::Http::busy) says otherwise, with a
//! `Retry-After` guessed from how long the lock was held of late, how many wait, and for how long it
//! [must](BarrierLayer::at_least) be held: one second at least.
//!
//! # When the cache fails
//!
//! The request is refused (503), since mutual exclusion lost in silence is worse;
//! [`fail_open`](BarrierLayer::fail_open) lets it pass, unless the record of that lock is damaged.

mod deadline;
mod headers;
mod layer;
mod names;
mod service;
mod settings;

pub use deadline::{Deadline, NoDeadline, grpc_timeout};
pub use headers::{FenceHeader, OwnerHeader};
pub use layer::BarrierLayer;
pub use names::Several;
pub use service::{Barrier, ResponseFuture};
