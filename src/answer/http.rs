//! The answers of HTTP and gRPC services.

use super::{
    grpc, problem,
    quota_headers::Limits,
    traits::{Admission, Answer},
};
use crate::{body::Body, decision::Decision, lock::Hold, rejection::Rejection};
use http::{Request, Response, StatusCode, header};
use std::ops::ControlFlow;

/// HTTP status codes, or gRPC ones where the request is gRPC; never an error.
///
/// See the [module](super) for what clients are told. The body becomes a [`Body`], which holds a barrier's lock until it
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
            None => problem::refuse(status, &why, self.x_ratelimit),
        };
        response.extensions_mut().insert(why);
        ControlFlow::Break(Ok(response))
    }
}
