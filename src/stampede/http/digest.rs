//! Reads the bodies of requests, so that they can be part of a name.

use crate::{
    accessors::to_call_later,
    body::{Body, Reading},
    name::BodyDigest,
};
use http::Request;
use hyper::body::{Body as HttpBody, Bytes};
use pin_project::pin_project;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};
use tower::{BoxError, Layer};
use tower_service::Service;

/// Reads the body of each request up to a limit and puts its [`BodyDigest`] into the extensions, so that a
/// [`StampedeCacheLayer`](crate::StampedeCacheLayer) further in can tell `POST`, `QUERY`, GraphQL and unary gRPC calls apart:
/// by [`Target`](crate::name::Target), its usual name, or another with [`ByBody`](crate::name::ByBody) beside it.
///
/// The service behind it gets the same bytes and trailers, in a [`Body`]. A body beyond the limit goes on as it came, what was
/// read of it first, and has no digest: the cache lets it pass. One that fails on its way does so further in, too.
///
/// Put it on routes whose calls only ask, since it says that a stored answer is as good as a call. It waits for the end of a
/// body: no route for gRPC streams in both directions, and a client that never ends its body is up to the server's timeouts.
///
/// ```
/// # use std::{convert::Infallible, time::Duration};
/// # use tower::ServiceBuilder;
/// use axum::{Router, extract::Request, routing::post};
/// use tower_floodgate::{Cache, StampedeCacheLayer, stampede::BodyDigestLayer};
///
/// # async fn graphql() -> &'static str { "" }
/// # let cache = Cache::temporary()?;
/// let app: Router = Router::new().route("/graphql", post(graphql)).layer(
///     ServiceBuilder::new()
///         .layer(BodyDigestLayer::new(64 << 10))
///         .layer(StampedeCacheLayer::new(cache.scope("graphql"), Duration::from_secs(60)).bodies_named())
///         // Back to the body that axum knows; for tonic, `tonic::body::Body::new`.
///         .map_request(|request: Request<tower_floodgate::Body<_>>| request.map(axum::body::Body::new)),
/// );
/// # let _ = app;
/// # Ok::<(), tower_floodgate::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct BodyDigestLayer {
    limit: usize,
}

impl BodyDigestLayer {
    /// For bodies of so many bytes at most. Each request under way takes so much memory.
    pub fn new(limit: usize) -> BodyDigestLayer {
        BodyDigestLayer { limit }
    }
}

impl<S> Layer<S> for BodyDigestLayer {
    type Service = BodyDigestService<S>;

    fn layer(&self, inner: S) -> BodyDigestService<S> {
        BodyDigestService { inner, limit: self.limit }
    }
}

/// The service of a [`BodyDigestLayer`].
#[derive(Clone, Debug)]
pub struct BodyDigestService<S> {
    inner: S,
    limit: usize,
}

impl<S> BodyDigestService<S> {
    inner_service_accessors!("Its requests have no digest.");
}

impl<S, A> Service<Request<A>> for BodyDigestService<S>
where
    S: Service<Request<Body<A>>> + Clone + Send + 'static,
    S::Future: Send,
    A: HttpBody<Data = Bytes> + Send + 'static,
    A::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BodyDigestFuture<S::Future, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        if body.is_end_stream() {
            parts.extensions.insert(BodyDigest::of(&parts.headers, &Bytes::new(), None));
            let request = Request::from_parts(parts, Body::inner(body));
            return BodyDigestFuture { state: State::Called { future: self.inner.call(request) } };
        }
        let (mut inner, mut reading) = (to_call_later(&mut self.inner), Reading::new(body, self.limit, None));
        let boxed = async move {
            let body = match reading.read().await {
                Ok(()) => {
                    let whole = reading.whole();
                    parts.extensions.insert(BodyDigest::of(&parts.headers, &whole.data, whole.trailers.as_ref()));
                    Body::stored(whole.data, whole.trailers)
                }
                Err(cut) => Body::resumed(reading.resume(cut)),
            };
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            inner.call(Request::from_parts(parts, body)).await
        };
        BodyDigestFuture { state: State::Reading { boxed: Box::pin(boxed) } }
    }
}

/// The future of a [`BodyDigestService`].
#[pin_project]
pub struct BodyDigestFuture<F, Res, Err> {
    #[pin]
    state: State<F, Res, Err>,
}

#[pin_project(project = StateProj)]
enum State<F, Res, Err> {
    Called {
        #[pin]
        future: F,
    },
    Reading {
        boxed: Pin<Box<dyn Future<Output = Result<Res, Err>> + Send>>,
    },
}

impl<F, Res, Err> Future for BodyDigestFuture<F, Res, Err>
where
    F: Future<Output = Result<Res, Err>>,
{
    type Output = Result<Res, Err>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Called { future } => future.poll(cx),
            StateProj::Reading { boxed } => boxed.as_mut().poll(cx),
        }
    }
}

impl<F, Res, Err> fmt::Debug for BodyDigestFuture<F, Res, Err> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyDigestFuture").finish_non_exhaustive()
    }
}
