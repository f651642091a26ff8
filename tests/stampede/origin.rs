//! A service under the test's control, and what comes back through the layer.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request::Parts};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;
use tower::{BoxError, Layer, Service, ServiceExt};
use tower_floodgate::{
    Body, Cache, Name, StampedeCacheLayer,
    stampede::{CacheStatus, StampedeCache},
    time::Steady,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

pub(crate) type TestBody = UnsyncBoxBody<Bytes, BoxError>;

/// What the origin fails with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boom(pub(crate) usize);

pub(crate) type Outcome = Result<Response<TestBody>, Boom>;

/// Answers each call by a closure, after a delay or once the test lets it.
#[derive(Clone)]
pub(crate) struct Origin(Arc<Inner>);

struct Inner {
    answer: Box<dyn Fn(&Parts, usize) -> Outcome + Send + Sync>,
    asked: Mutex<Vec<HeaderMap>>,
    delay: Duration,
    permits: Option<Semaphore>,
    running: AtomicUsize,
}

impl Origin {
    fn make(
        answer: impl Fn(&Parts, usize) -> Outcome + Send + Sync + 'static,
        delay: Duration,
        permits: Option<Semaphore>,
    ) -> Self {
        let (asked, running) = (Mutex::default(), AtomicUsize::new(0));
        Origin(Arc::new(Inner { answer: Box::new(answer), asked, delay, permits, running }))
    }

    /// Answers at once; the closure gets the number of the call, from 1.
    pub(crate) fn new(answer: impl Fn(&Parts, usize) -> Outcome + Send + Sync + 'static) -> Self {
        Self::make(answer, Duration::ZERO, None)
    }

    /// Takes a while.
    pub(crate) fn slow(delay: Duration, answer: impl Fn(&Parts, usize) -> Outcome + Send + Sync + 'static) -> Self {
        Self::make(answer, delay, None)
    }

    /// Each call waits for a [`release`](Origin::release).
    pub(crate) fn held(answer: impl Fn(&Parts, usize) -> Outcome + Send + Sync + 'static) -> Self {
        Self::make(answer, Duration::ZERO, Some(Semaphore::new(0)))
    }

    /// Answers the number of the call.
    pub(crate) fn counting() -> Self {
        Self::new(|_, call| ok(&[], call.to_string()))
    }

    pub(crate) fn held_counting() -> Self {
        Self::held(|_, call| ok(&[], call.to_string()))
    }

    pub(crate) fn release(&self, calls: usize) {
        self.0.permits.as_ref().expect("an origin that holds").add_permits(calls);
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.asked.lock().unwrap().len()
    }

    /// Calls that have not ended.
    pub(crate) fn running(&self) -> usize {
        self.0.running.load(SeqCst)
    }

    /// The headers of a call, from 1.
    pub(crate) fn asked(&self, call: usize) -> HeaderMap {
        self.0.asked.lock().unwrap()[call - 1].clone()
    }
}

struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl<B> Service<Request<B>> for Origin {
    type Response = Response<TestBody>;
    type Error = Boom;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Boom>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, _) = request.into_parts();
        let call = {
            let mut asked = self.0.asked.lock().unwrap();
            asked.push(parts.headers.clone());
            asked.len()
        };
        self.0.running.fetch_add(1, SeqCst);
        let running = Running(self.0.clone());
        Box::pin(async move {
            let inner = &running.0;
            if let Some(permits) = &inner.permits {
                permits.acquire().await.unwrap().forget();
            }
            if !inner.delay.is_zero() {
                tokio::time::sleep(inner.delay).await;
            }
            (inner.answer)(&parts, call)
        })
    }
}

pub(crate) fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    lines.iter().map(line).collect()
}

pub(crate) fn full(data: impl Into<Bytes>) -> TestBody {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn empty() -> TestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of these frames, whose length nobody knows before.
pub(crate) fn frames(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> TestBody {
    StreamBody::new(tokio_stream::iter(frames)).boxed_unsync()
}

pub(crate) fn respond(status: u16, lines: &[(&str, &str)], body: TestBody) -> Outcome {
    let mut response = Response::new(body);
    *response.status_mut() = status.try_into().unwrap();
    *response.headers_mut() = headers(lines);
    Ok(response)
}

pub(crate) fn ok(lines: &[(&str, &str)], text: impl Into<Bytes>) -> Outcome {
    respond(200, lines, full(text))
}

/// A small cache whose time is the test's, which is paused; its worker thread lives in real time.
pub(crate) fn cache() -> Cache {
    Cache::builder_temporary().state_size(1 << 20).patience(MINUTE).clock(Steady::new()).open().unwrap()
}

pub(crate) fn layer(cache: &Cache) -> StampedeCacheLayer {
    StampedeCacheLayer::new(cache.scope("pages"), MINUTE).beta(0.0)
}

pub(crate) type App<N = tower_floodgate::name::Target> = StampedeCache<Origin, N>;

/// The layer with its defaults, without early refreshes, around an origin.
pub(crate) fn app(cache: &Cache, origin: &Origin) -> App {
    layer(cache).layer(origin.clone())
}

pub(crate) fn get(path: &str) -> Request<String> {
    Request::get(path).body(String::new()).unwrap()
}

pub(crate) fn with(path: &str, lines: &[(&str, &str)]) -> Request<String> {
    let mut request = get(path);
    *request.headers_mut() = headers(lines);
    request
}

/// What came back, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) did: CacheStatus,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    /// The error that the body ended with.
    pub(crate) error: Option<BoxError>,
}

impl Reply {
    pub(crate) async fn read(response: Response<Body<TestBody>>) -> Self {
        let (parts, mut body) = response.into_parts();
        let (mut data, mut trailers, mut error) = (Vec::new(), None, None);
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(bytes)) => data.extend_from_slice(&bytes),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(found) => error = Some(found),
            }
        }
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            did: *parts.extensions.get().expect("every response says what the cache did"),
            body: data.into(),
            trailers,
            error,
        }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The last line of a header, "" if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let last: Option<&HeaderValue> = self.headers.get_all(name).iter().next_back();
        last.map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn told(&self) -> &str {
        self.header("cache-status").strip_prefix("floodgate; ").expect("our member comes last")
    }

    pub(crate) fn is_hit(&self) -> bool {
        matches!(self.did, CacheStatus::Hit { .. })
    }

    pub(crate) fn is_stored(&self) -> bool {
        matches!(self.did, CacheStatus::Stored { .. })
    }

    pub(crate) fn is_collapsed(&self) -> bool {
        matches!(self.did, CacheStatus::Collapsed { .. })
    }

    pub(crate) fn reason(&self) -> &'static str {
        match self.did {
            CacheStatus::NotStored { reason, .. } => reason,
            other => panic!("{other:?} says no reason"),
        }
    }
}

pub(crate) type Asking = Pin<Box<dyn Future<Output = Result<Reply, Boom>> + Send>>;

/// A request on its way; nothing happens before it is polled.
pub(crate) fn asking<N>(app: &App<N>, request: Request<String>) -> Asking
where
    N: Name<Request<String>> + Clone + Send + 'static,
{
    let response = app.clone().oneshot(request);
    Box::pin(async move { Ok(Reply::read(response.await?).await) })
}

pub(crate) async fn ask<N>(app: &App<N>, request: Request<String>) -> Reply
where
    N: Name<Request<String>> + Clone + Send + 'static,
{
    asking(app, request).await.unwrap()
}

pub(crate) fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// A request that has reached the layer and waits there.
pub(crate) fn waiting<N>(app: &App<N>, request: Request<String>) -> Asking
where
    N: Name<Request<String>> + Clone + Send + 'static,
{
    let mut asking = asking(app, request);
    assert!(poll(&mut asking).is_pending(), "answered at once");
    asking
}

/// Lets tasks and the worker thread work until something has come about. Paused time stands still.
pub(crate) async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + 10 * SECOND;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come about in ten seconds");
        tokio::task::yield_now().await;
    }
}

/// Runs what is ready to run, several times over.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
