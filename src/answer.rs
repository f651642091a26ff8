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

use crate::{
    body::Body,
    lock::Guard,
    rejection::Rejection,
    throttle::{Decision, Quota},
};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Bytes;
use std::{fmt::Write as _, ops::ControlFlow};

/// What a layer knows of a request that it let through.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Admission {
    /// What a throttle decided. `None` from a barrier, and where nothing was counted: the request has no name, or the
    /// cache failed.
    pub decision: Option<Decision>,
    /// The lock that is held for the request; it is released when this is dropped.
    pub guard: Option<Guard>,
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

    /// The inner service's response, made into the layer's own.
    fn admit(&self, response: Res, admission: Admission) -> Self::Response;

    /// What a refused request gets: [`ControlFlow::Break`] with it, or [`ControlFlow::Continue`] to let the request pass
    /// after all.
    fn refuse(&self, request: &Req, why: Rejection) -> ControlFlow<Result<Self::Response, Err>>;
}

/// HTTP status codes, or gRPC ones where the request is gRPC; never an error.
///
/// A refusal is 429 or 503 with `Retry-After` (but for a cost that never fits), and from a throttle `RateLimit` and `RateLimit-Policy`
/// (draft-ietf-httpapi-ratelimit-headers), a small `application/problem+json` body (RFC 9457), and the [`Rejection`] in
/// its extensions. A request whose content type is `application/grpc*` gets a trailers-only gRPC response instead:
/// `RESOURCE_EXHAUSTED` or `UNAVAILABLE`, with `grpc-retry-pushback-ms`. The body becomes a [`Body`], which holds a
/// barrier's lock until it ends.
#[derive(Clone, Debug, Default)]
pub struct Http {
    quota_always: bool,
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
}

impl<A, B, E> Answer<Request<A>, Response<B>, E> for Http {
    type Response = Response<Body<B>>;

    fn mark(&self, request: &mut Request<A>, decision: &Decision) {
        request.extensions_mut().insert(decision.clone());
    }

    fn admit(&self, response: Response<B>, admission: Admission) -> Self::Response {
        let Admission { decision, guard } = admission;
        let mut response = response.map(|body| Body::inner(body, guard));
        if let Some(decision) = decision {
            if self.quota_always {
                add_quota(response.headers_mut(), &decision.scope, &decision.quota);
            }
            response.extensions_mut().insert(decision);
        }
        response
    }

    fn refuse(&self, request: &Request<A>, why: Rejection) -> ControlFlow<Result<Self::Response, E>> {
        let grpc =
            request.headers().get(header::CONTENT_TYPE).filter(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let mut response = match grpc {
            Some(content_type) => refuse_grpc(content_type.clone(), &why),
            None => refuse_http(&why),
        };
        response.extensions_mut().insert(why);
        ControlFlow::Break(Ok(response))
    }
}

fn refuse_http<B>(why: &Rejection) -> Response<Body<B>> {
    let status = why.status();
    let title = status.canonical_reason().unwrap_or_default();
    let problem = format!(r#"{{"title":"{title}","status":{},"detail":"{why}"}}"#, status.as_u16());
    let mut response = Response::new(Body::stored(Bytes::from(problem), None));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if let Some(seconds) = why.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(quota) = &why.quota {
        add_quota(headers, &why.scope, quota);
    }
    response
}

/// A trailers-only response: one block of headers, no body, status 200.
fn refuse_grpc<B>(content_type: HeaderValue, why: &Rejection) -> Response<Body<B>> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert("grpc-status", u16::from(why.grpc_code()).into());
    // Percent-encoding of the few characters that our own texts have.
    let message = why.to_string().replace(' ', "%20");
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    if let Some(delay) = why.retry_after {
        let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert("grpc-retry-pushback-ms", millis.into());
    }
    response
}

/// `RateLimit-Policy: "name";q=100;w=60` and `RateLimit: "name";r=0;t=12`, behind those of other layers.
fn add_quota(headers: &mut HeaderMap, scope: &str, quota: &Quota) {
    let mut name = String::with_capacity(scope.len() + 48);
    name.push('"');
    for symbol in scope.chars() {
        match symbol {
            '"' | '\\' => name.extend(['\\', symbol]),
            ' '..='~' => name.push(symbol),
            _ => name.push('?'),
        }
    }
    name.push('"');
    let seconds = |span: std::time::Duration| span.as_nanos().div_ceil(1_000_000_000);
    let mut policy = name.clone();
    let _ = write!(policy, ";q={};w={}", quota.limit, seconds(quota.window).max(1));
    let mut state = name;
    let _ = write!(state, ";r={};t={}", quota.remaining, seconds(quota.reset));
    for (header, value) in [("ratelimit-policy", policy), ("ratelimit", state)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.append(header, value);
        }
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
