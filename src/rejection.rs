//! Why a request was not let through.

use crate::decision::Quota;
use http::StatusCode;
use std::{fmt, sync::Arc, time::Duration};

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
    pub scope: Arc<str>,
    /// How long to wait before asking again, where that is known.
    pub retry_after: Option<Duration>,
    /// The limit that refused, where a throttle did.
    pub quota: Option<Quota>,
    /// The other limits of the throttle that refused, in any order; mostly none.
    pub others: Vec<Quota>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A throttle's budget is spent.
    Throttled,
    /// The request costs more than the throttle's burst: it can never be admitted.
    TooCostly,
    /// The name is not allowed to pass at all.
    Denied,
    /// The name was refused too often, or blocked by hand, and is refused for a while whatever its budget is.
    Blocked,
    /// As many wait already as may.
    QueueFull,
    /// A barrier's lock was not free in time.
    Busy,
    /// A barrier's lock was lost while the request was served, and the layer
    /// [cancels](crate::BarrierLayer::cancel_on_loss) it. The service may have done a part of its work.
    Lost,
    /// The cache could not be used, and the layer fails closed.
    CacheFailed,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, scope: &Arc<str>) -> Self {
        Rejection { reason, scope: scope.clone(), retry_after: None, quota: None, others: Vec::new() }
    }

    /// Whether the caller asked for too much, rather than the server being short of something. Of a full queue that is
    /// only said by a throttle, which always tells its quota.
    fn is_callers_doing(&self) -> bool {
        match self.reason {
            Reason::Throttled | Reason::TooCostly | Reason::Blocked => true,
            Reason::QueueFull => self.quota.is_some(),
            Reason::Denied | Reason::Busy | Reason::Lost | Reason::CacheFailed => false,
        }
    }

    /// Whether a barrier's lock is not to be had, which [`Http::busy`](crate::Http::busy) has a status for.
    pub(crate) fn is_of_busy_lock(&self) -> bool {
        match self.reason {
            Reason::Busy => true,
            Reason::QueueFull => self.quota.is_none(),
            _ => false,
        }
    }

    /// The HTTP status of the refusal: 429 for a throttle, 403 for a name that is [denied](Reason::Denied), 503 for the
    /// rest ([`Http::busy`](crate::Http::busy) may choose another).
    pub fn status(&self) -> StatusCode {
        match self.reason {
            Reason::Denied => StatusCode::FORBIDDEN,
            _ if self.is_callers_doing() => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The gRPC status code of the refusal: 8 (`RESOURCE_EXHAUSTED`) for a throttle, 7 (`PERMISSION_DENIED`) for a name
    /// that is [denied](Reason::Denied), 10 (`ABORTED`) for a [lost](Reason::Lost) lock, since a library that repeats
    /// calls by itself must not repeat one that was half done, 14 (`UNAVAILABLE`) for the rest.
    pub fn grpc_code(&self) -> u8 {
        match self.reason {
            Reason::Denied => 7,
            Reason::Lost => 10,
            _ if self.is_callers_doing() => 8,
            _ => 14,
        }
    }

    /// Whole seconds for `Retry-After`: rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|delay| delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).max(1))
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Throttled => "too many requests",
            Reason::TooCostly => "the request costs more than the limit ever allows",
            Reason::Denied => "not allowed",
            Reason::Blocked => "blocked for a while",
            Reason::QueueFull => "too many are waiting already",
            Reason::Busy => "busy: the lock was not free in time",
            Reason::Lost => "the lock was lost while the request was served",
            Reason::CacheFailed => "the cache is not available",
        })
    }
}

impl std::error::Error for Rejection {}
