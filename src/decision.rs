//! What a throttle tells of a budget: [`Quota`], one limit's part of it, and [`Decision`], all of it.

use std::{sync::Arc, time::Duration};

/// What a name has left of one limit, as of one decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Quota {
    /// The limit's own name, if it was given one (else headers and logs use the scope's).
    pub name: Option<Arc<str>>,
    /// The most that can be spent at once: the burst of the rate.
    pub limit: u32,
    /// How much can be spent now without waiting, from 0 to `limit`.
    pub remaining: u32,
    /// How long until `remaining` is `limit` again, if no other request comes. Requests that wait for their turn count
    /// too, so this may be longer than `window`.
    pub reset: Duration,
    /// How long it takes for nothing left to become `limit`: `per`, where the burst is the count.
    pub window: Duration,
}

/// What a throttle decided about a request that it let through.
///
/// [`Http`](crate::Http) puts it into the extensions of the request, for handlers, and into those of the response, for
/// outer layers. Where several throttles are stacked, each overwrites what the one before it put there: handlers see the
/// innermost, outer layers the outermost.
///
/// There is none where nothing was counted: the request has no name, is on the list of the
/// [allowed](crate::ThrottleLayer::allow), or passes because the cache cannot be used. So in axum a handler takes
/// `Option<Extension<Decision>>`; with `Extension<Decision>` such requests are answered with 500.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Decision {
    /// The scope of the throttle.
    pub scope: Arc<str>,
    /// The tightest of its limits: the one that will refuse first.
    pub quota: Quota,
    /// The other limits of the same throttle, in any order; mostly none.
    pub others: Vec<Quota>,
    /// How long the request waited for its turn; zero where it passed at once.
    pub waited: Duration,
    /// Whether the request would have been refused by a throttle that only watches.
    pub shadow: bool,
}

impl Decision {
    pub(crate) fn new(scope: &Arc<str>, quota: Quota) -> Self {
        Decision { scope: scope.clone(), quota, others: Vec::new(), waited: Duration::ZERO, shadow: false }
    }
}
