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
//! The budget is kept in the cache: exact across tasks, threads and processes, unchanged by restarts, by another process,
//! or by making the layer again, deaf to steps of the wall clock. A call that fails stays spent.
//!
//! # Which limits
//!
//! | | admits | good for |
//! | --- | --- | --- |
//! | [`Rate`] | a burst, then evenly (GCRA) | protecting what is behind; the default |
//! | [`SlidingWindow`] | so many in any window, nearly | "100 in any minute", as many APIs put it |
//! | [`CalendarWindow`] | so many in each UTC hour, day or month | quotas and plans |
//!
//! Several at once are decided together, all or nothing, and the answer names the one that refused. They are written in
//! code, or read from a configuration: [`Limit`] and [`Limits`] are parsed, by serde too.
//!
//! ```
//! # use tower_floodgate::{Cache, ThrottleLayer, throttle::{CalendarWindow, Limit, Limits, Rate}};
//! # let cache = Cache::temporary()?;
//! let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(10).burst(20))
//!     .and(Limit::from(CalendarWindow::per_utc_month(100_000)).named("plan"));
//!
//! let same: Limits = "10/s burst 20, 100000/utc-month".parse()?;
//! let layer = ThrottleLayer::of(cache.scope("api"), same)
//!     .rate_of(|request: &http::Request<()>| match request.headers().contains_key("x-premium") {
//!         true => Rate::per_second(100),
//!         false => Rate::per_second(10),
//!     });
//! # let _ = layer;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What a request costs
//!
//! 1, or what [`cost`](ThrottleLayer::cost) says of the request. Where only the response tells,
//! [`settle`](ThrottleLayer::settle) corrects the estimate, and [`refund_if`](ThrottleLayer::refund_if) does not count
//! calls of some outcome. What is given back is what time has not given back already: a unit that is regained after ten
//! seconds is worth nothing to a call that took twelve. So no refund ever lets more pass than the limit says.
//!
//! ```
//! # use std::convert::Infallible;
//! # use http::{Request, Response};
//! # use tower::Layer;
//! # use tower_floodgate::{Cache, ThrottleLayer, throttle::Rate};
//! # let cache = Cache::temporary()?;
//! let tokens = |response: &Response<String>| response.headers().get("x-tokens")?.to_str().ok()?.parse().ok();
//! let layer = ThrottleLayer::of(cache.scope("model"), Rate::per_minute(100_000))
//!     .cost(|_: &Request<()>| 2_000)
//!     .settle(|_: &Request<()>| (), move |(), response: &Response<String>| tokens(response).unwrap_or(2_000))
//!     .refund_if(|response: &Response<String>| response.status().is_server_error());
//! # let _ = layer.layer(tower::service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(String::new())) }));
//! # Ok::<(), tower_floodgate::Error>(())
//! ```
//!
//! # Waiting instead of refusing
//!
//! [`wait_at_most`](ThrottleLayer::wait_at_most) and [`wait`](ThrottleLayer::wait) reserve the next free turn and sleep
//! until it comes: first come, first served over all processes, one write a request. A request that would have to wait
//! too long, or behind too [many](ThrottleLayer::queue_at_most), is refused at once. The turn of a waiter that is
//! dropped, or whose process dies, goes to the next request that comes and fits. The waiters behind it keep theirs.
//!
//! # In a client
//!
//! Before a client of somebody else's API, [`learn`](ThrottleLayer::learn) heeds what its answers say of the budget over there:
//! `Retry-After`, `RateLimit`, `X-RateLimit-*`. Twenty workers in any number of processes then stop before the server has to refuse.
//!
//! ```
//! # use http::{Request, Response};
//! # use std::{convert::Infallible, time::Duration};
//! # use tower::{ServiceBuilder, service_fn};
//! # use tower_floodgate::{Cache, ThrottleLayer, throttle::Rate};
//! # let cache = Cache::temporary()?;
//! # let client = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(String::new())) });
//! let client = ServiceBuilder::new()
//!     .layer(
//!         ThrottleLayer::of(cache.scope("out"), Rate::per_second(50))
//!             .name(|request: &Request<()>| request.uri().host().map(str::to_owned))
//!             .wait_at_most(Duration::from_secs(30))
//!             .learn(),
//!     )
//!     .service(client);
//! # let _ = tower::ServiceExt::oneshot(client, Request::new(()));
//! # Ok::<(), tower_floodgate::Error>(())
//! ```
//!
//! - A refusal with `Retry-After` holds the whole name back for as long as it says. Without, nothing is changed: retries are
//!   yours, or tower's.
//! - What is left over there is one more limit of the name, until its reset. Requests on their way count on top of what
//!   the last answer said, so the order in which answers come back does not matter. A request counts as one, whatever it
//!   [costs](ThrottleLayer::cost) here.
//! - After the reset one request goes ahead, and others follow at the server's average pace, one a second at least, until its answer is there. What
//!   was learnt is forgotten an hour after the reset.
//! - A request that waits already keeps its place in the budget here, and looks again when its turn comes. If the
//!   server has said stop meanwhile, it waits on from the end of that, perhaps behind some that came later, or is
//!   refused if that takes longer than it would wait.
//! - No answer holds anything back for longer than [an hour](ThrottleLayer::hold_at_most), and only its own name. An
//!   answer that cannot be understood changes nothing.
//! - What others take from the same budget cannot be foreseen: where it runs out, the server may refuse as many as they
//!   take in the time of one call. Before the first answer nothing is known at all, and the server may refuse some of
//!   the requests that are sent before it.
//! - It takes one more write a response.
//!
//! # To operate it
//!
//! [`shadow`](ThrottleLayer::shadow) tries a limit without enforcing it; [`allow`](ThrottleLayer::allow) and
//! [`deny`](ThrottleLayer::deny) are lists; [`block_for`](ThrottleLayer::block_for) shuts out names that do not stop
//! asking. [`limiter`](ThrottleLayer::limiter) gives a name's budget to look at, reset, penalise or block, and
//! [`Cache::throttle`](crate::Cache::throttle) one without any layer. The [`Decision`] rides in the extensions of
//! request and response, counts are in [`Stats`](crate::Stats), and every refusal is a `tracing` event of level debug
//! with the scope and the limit.
//!
//! # A flood of names
//!
//! All names share one file of [fixed size](crate::Builder::state_size), half of which is for them: some 100 bytes a name.
//! Neither memory nor disk grows with their number. What is full again, and so means nothing, is dropped along the way.
//! Where that is not enough, a new name takes the place of one among 32: a name of the scope that has most of them, and
//! there the one nearest to full. So a flood displaces its own names: those of other scopes keep their budgets, and so do
//! those of its scope that have spent more than its names did.
//!
//! A name that is dropped early has its full burst again, which may be once too often: the [`Stats`](crate::Stats) say
//! how many were, in `cells_evicted`. Make the file larger if you expect more busy names than fit, and give a limit
//! whose names cost nothing to invent a scope of its own.
//!
//! # When the cache fails
//!
//! The request passes, uncounted, and is noted in [`Stats`](crate::Stats);
//! [`fail_closed`](ThrottleLayer::fail_closed) refuses it instead. A damaged cell counts as a full budget.

mod advice;
mod ask;
mod cell;
mod layer;
mod learnt;
mod limit;
mod limiter;
pub mod policy;
mod row;
mod service;
mod settings;
mod slots;
mod terms;
mod transition;
mod turn;
mod wait;

pub use crate::decision::{Decision, Quota};
pub use advice::Advice;
pub use layer::{ThrottleLayer, WaitingThrottleLayer};
pub use limit::{
    calendar::CalendarWindow,
    limits::{Limit, Limits},
    rate::Rate,
    sliding::SlidingWindow,
    text::ParseLimitError,
};
pub use limiter::{LimitError, Limiter, Permit};
pub use policy::Policy;
pub use service::{ResponseFuture, Throttle};
