//! Why a request was not let through.

use http::StatusCode;
use std::{fmt, time::Duration};

/// Why a layer did not let a request through.
///
/// It rides in the extensions of the responses that [`Http`](crate::answer::Http) makes, and is the error that
/// [`Fail`](crate::answer::Fail) converts from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// What kind of refusal this is.
    pub reason: Reason,
    /// The scope of the layer that refused.
    pub scope: std::sync::Arc<str>,
    /// How long to wait before asking again, where that is known.
    pub retry_after: Option<Duration>,
    /// The state of the budget, where a throttle refused.
    pub quota: Option<crate::throttle::Quota>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A throttle's budget is spent.
    Throttled,
    /// The request costs more than the throttle's burst: it can never be admitted.
    TooCostly,
    /// A barrier's lock was not free in time.
    Busy,
    /// The cache could not be used, and the layer fails closed.
    CacheFailed,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, scope: &std::sync::Arc<str>) -> Self {
        Rejection { reason, scope: scope.clone(), retry_after: None, quota: None }
    }

    /// The HTTP status that says so: 429 for a throttle, 503 for the rest.
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Reason::Throttled | Reason::TooCostly => StatusCode::TOO_MANY_REQUESTS,
            Reason::Busy | Reason::CacheFailed => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status code that says so: 8 (`RESOURCE_EXHAUSTED`) for a throttle, 14 (`UNAVAILABLE`) for the rest.
    pub fn grpc_code(&self) -> u8 {
        match self.reason {
            Reason::Throttled | Reason::TooCostly => 8,
            Reason::Busy | Reason::CacheFailed => 14,
        }
    }

    /// Whole seconds for `Retry-After`: rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|delay| (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Throttled => "too many requests",
            Reason::TooCostly => "the request costs more than the limit ever allows",
            Reason::Busy => "busy: the lock was not free in time",
            Reason::CacheFailed => "the cache is not available",
        })
    }
}

impl std::error::Error for Rejection {}
