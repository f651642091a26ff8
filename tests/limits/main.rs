//! What a throttle limits, how and whom, as its callers see it, on paused time.

#[path = "../support/paused.rs"]
mod paused;
#[path = "../support/probe.rs"]
mod probe;
mod support;

mod clocks;
mod costs;
mod holes;
mod hosts;
mod limiter;
mod manners;
mod operations;
mod plans;
mod several;
mod waiting;
