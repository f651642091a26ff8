//! How a layer speaks for itself: what callers see of an admitted response, and of a refusal.
//!
//! The error type of a service never changes. [`Http`], the default, answers with HTTP or gRPC responses of its own;
//! [`Fail`] makes an error out of a [`Rejection`]; a closure does as it likes:
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
//! | a limit is spent ([`Throttled`](Reason::Throttled)), or can never be met ([`TooCostly`](Reason::TooCostly)) | 429 | `quota-exceeded` |
//! | too many wait for their turn at a throttle ([`QueueFull`](Reason::QueueFull)) | 429 | `quota-exceeded` |
//! | the name is blocked, by too many refusals or by hand ([`Blocked`](Reason::Blocked)) | 429 | `abnormal-usage-detected` |
//! | the name may never pass ([`Denied`](Reason::Denied)) | 403 | |
//! | a lock is not free ([`Busy`](Reason::Busy)), or too many wait for it ([`QueueFull`](Reason::QueueFull)) | 503, or 429 or 409 as [`Http::busy`] says | |
//! | its lock was lost while the request was served ([`Lost`](Reason::Lost)) | 503 | |
//! | the cache failed ([`CacheFailed`](Reason::CacheFailed)) | 503 | |
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
//! [`Http`] puts a throttle's [`Decision`] into the extensions of the request, before the inner service is called, and
//! into those of the response; refusals have the [`Rejection`] in theirs. Other answers get the decision in
//! [`Answer::mark`] and [`Answer::admit`].
//!
//! It puts a barrier's [`Hold`] into the extensions of the request; other answers get it in [`Answer::hold`].

mod grpc;
mod http;
mod quota_headers;
#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::rejection::Reason;
use crate::{
    body::Body,
    lock::{Guard, Hold},
    rejection::Rejection,
    throttle::Decision,
};
use ::http::{Request, Response, StatusCode, header};
use quota_headers::Limits;
use std::ops::ControlFlow;

/// What a layer knows of a request that it let through.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Admission {
    /// What a throttle decided. `None` from a barrier, and where nothing was counted: the request has no name, is
    /// [allowed](crate::ThrottleLayer::allow), or the cache failed.
    pub decision: Option<Decision>,
    /// The lock that is held for the request; it is released when this is dropped.
    pub guard: Option<Guard>,
    /// With what a response that goes on should fail when the lock is lost; `None` lets it go on. See
    /// [`cancel_on_loss`](crate::BarrierLayer::cancel_on_loss).
    pub if_lost: Option<Rejection>,
}

/// How a layer speaks for itself.
pub trait Answer<Req, Res, Err> {
    /// What comes out of the layer.
    type Response;

    /// Called before the inner service is, with what a throttle decided: the place to put it into the request. Does
    /// nothing unless it is written.
    fn mark(&self, request: &mut Req, decision: &Decision) {
        let _ = (request, decision);
    }

    /// Called before the inner service is, with the lock that a barrier holds for the request: the place to put it into
    /// the request. Does nothing unless it is written.
    fn hold(&self, request: &mut Req, hold: &Hold) {
        let _ = (request, hold);
    }

    /// The inner service's response, made into the layer's own.
    fn admit(&self, response: Res, admission: Admission) -> Self::Response;

    /// What a refused request gets: [`ControlFlow::Break`] with it, or [`ControlFlow::Continue`] to let the request pass
    /// after all.
    fn refuse(&self, request: &Req, why: Rejection) -> ControlFlow<Result<Self::Response, Err>>;
}

/// HTTP status codes, or gRPC ones where the request is gRPC; never an error.
///
/// See the [module](self) for what clients are told. The body becomes a [`Body`], which holds a barrier's lock until it
/// ends. A throttle's [`Decision`] is in the extensions of the request and of the response, a barrier's [`Hold`] in those
/// of the request, and the [`Rejection`] in those of a refusal.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// 503 unless said otherwise.
    busy: Option<StatusCode>,
    quota_always: bool,
    x_ratelimit: bool,
}

impl Http {
    /// Refusals carry the state of the budget, admitted responses do not.
    pub fn new() -> Self {
        Http::default()
    }

    /// Admitted responses carry `RateLimit` and `RateLimit-Policy` too.
    pub fn quota_headers(mut self) -> Self {
        self.quota_always = true;
        self
    }

    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` go with `RateLimit`, for clients that know
    /// only those: on refusals, and on admitted responses with [`quota_headers`](Http::quota_headers).
    ///
    /// There is no standard for them. They tell of the tightest limit only, and the reset is in seconds from now, rounded
    /// up; other servers mean a Unix time by it.
    pub fn x_ratelimit(mut self) -> Self {
        self.x_ratelimit = true;
        self
    }

    /// What a barrier answers if its lock is not free in time, or too many wait for it: 503 (`UNAVAILABLE` over gRPC)
    /// unless said otherwise, 429 (`RESOURCE_EXHAUSTED`) where that is the caller's doing, or 409 (`ABORTED`) where
    /// callers want one thing at once.
    ///
    /// # Panics
    ///
    /// On any other status.
    #[track_caller]
    pub fn busy(mut self, status: StatusCode) -> Self {
        let known = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS, StatusCode::CONFLICT];
        assert!(known.contains(&status), "a busy barrier answers 503, 429 or 409, not {}", status.as_u16());
        self.busy = Some(status);
        self
    }

    /// The status of a refusal, and its gRPC code.
    fn status(&self, why: &Rejection) -> (StatusCode, u8) {
        match self.busy.filter(|_| why.is_of_busy_lock()) {
            Some(StatusCode::TOO_MANY_REQUESTS) => (StatusCode::TOO_MANY_REQUESTS, 8),
            Some(StatusCode::CONFLICT) => (StatusCode::CONFLICT, 10),
            _ => (why.status(), why.grpc_code()),
        }
    }
}

impl<A, B, E> Answer<Request<A>, Response<B>, E> for Http {
    type Response = Response<Body<B>>;

    fn mark(&self, request: &mut Request<A>, decision: &Decision) {
        request.extensions_mut().insert(decision.clone());
    }

    fn hold(&self, request: &mut Request<A>, hold: &Hold) {
        request.extensions_mut().insert(hold.clone());
    }

    fn admit(&self, response: Response<B>, admission: Admission) -> Self::Response {
        let Admission { decision, guard, if_lost } = admission;
        let mut response = response.map(|body| match guard {
            Some(guard) => Body::guarded(body, guard, if_lost),
            None => Body::inner(body),
        });
        if let Some(decision) = decision {
            if self.quota_always {
                let limits = Limits::admitted(&decision);
                limits.write(response.headers_mut());
                if self.x_ratelimit {
                    limits.write_x(response.headers_mut());
                }
            }
            response.extensions_mut().insert(decision);
        }
        response
    }

    fn refuse(&self, request: &Request<A>, why: Rejection) -> ControlFlow<Result<Self::Response, E>> {
        let grpc =
            request.headers().get(header::CONTENT_TYPE).filter(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let (status, code) = self.status(&why);
        let mut response = match grpc {
            Some(content_type) => grpc::refuse(content_type.clone(), code, &why),
            None => http::refuse(status, &why, self.x_ratelimit),
        };
        response.extensions_mut().insert(why);
        ControlFlow::Break(Ok(response))
    }
}

/// An error of the service's own kind, made from the [`Rejection`]: for services that are not HTTP.
///
/// The error must be `From<Rejection>`, as [`tower::BoxError`] is: `.map_err(BoxError::from)` below the layer makes it one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fail;

impl<Req, Res, Err: From<Rejection>> Answer<Req, Res, Err> for Fail {
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, _: &Req, why: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Break(Err(why.into()))
    }
}

/// Never refuses, so response and error types are left alone; see
/// [`ThrottleLayer::wait`](crate::throttle::ThrottleLayer::wait).
#[derive(Clone, Copy, Debug)]
pub struct Patient {
    // Only a throttle that cannot refuse may have it: under a barrier it would mean no lock.
    _made_by_wait: (),
}

impl Patient {
    pub(crate) fn new() -> Self {
        Patient { _made_by_wait: () }
    }
}

impl<Req, Res, Err> Answer<Req, Res, Err> for Patient {
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, _: &Req, _: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Continue(())
    }
}

impl<F, Req, Res, Err> Answer<Req, Res, Err> for F
where
    F: Fn(&Req, Rejection) -> Result<Res, Err>,
{
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, request: &Req, why: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Break(self(request, why))
    }
}
