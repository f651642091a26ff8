//! What the tests of limits share.
#![allow(dead_code, unused_imports)] // the tests of events use a part of it

pub(crate) use crate::paused::{cache, ms, secs};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::rt::Sleep;
use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    task::{JoinHandle, yield_now},
    time::Instant,
};
use tower::{
    Layer, Service, ServiceExt, service_fn,
    util::{BoxCloneService, ServiceFn},
};
use tower_floodgate::{
    Body, Reason, Rejection,
    throttle::{LimitError, Limiter, Permit},
    time::{Clock, Steady},
};

pub(crate) type Answered = Response<Body<Full<Bytes>>>;
pub(crate) type Plain = Response<Full<Bytes>>;
pub(crate) type Hello = ServiceFn<fn(Request<()>) -> Ready<Result<Plain, Infallible>>>;

/// Says "hello" to everyone.
pub(crate) fn hello() -> Hello {
    service_fn(|_| ready(Ok(Response::new(Full::from("hello")))))
}

/// Sends a request through a layer before a service that says "hello".
pub(crate) async fn ask<L, S>(layer: &L, request: Request<()>) -> Answered
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible>,
{
    layer.layer(hello()).oneshot(request).await.unwrap()
}

/// The statuses of so many requests, one after the other.
pub(crate) async fn statuses<L, S>(layer: &L, requests: usize) -> Vec<u16>
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible>,
{
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(ask(layer, Request::new(())).await.status().as_u16());
    }
    statuses
}

/// How many of so many requests pass.
pub(crate) async fn passed<L, S>(layer: &L, requests: usize) -> usize
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible>,
{
    statuses(layer, requests).await.into_iter().filter(|status| *status == 200).count()
}

/// A request with some headers.
pub(crate) fn with<const N: usize>(headers: [(&'static str, &str); N]) -> Request<()> {
    let builder = headers.into_iter().fold(Request::builder(), |builder, (name, value)| builder.header(name, value));
    builder.body(()).unwrap()
}

pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// A header that is a number.
pub(crate) fn number(headers: &HeaderMap, name: &str) -> Option<u32> {
    text(headers, name)?.parse().ok()
}

/// Why a request was refused.
pub(crate) fn why(refused: &Answered) -> &Rejection {
    refused.extensions().get().expect("a refusal")
}

pub(crate) async fn json(answered: Answered) -> serde_json::Value {
    serde_json::from_slice(&answered.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

/// Why a limiter refused, and when to ask again.
#[track_caller]
pub(crate) fn refusal(checked: Result<Permit, LimitError>) -> (Reason, Option<Duration>) {
    match checked {
        Err(LimitError::Throttled { reason, retry_after, .. }) => (reason, retry_after),
        other => panic!("{other:?}"),
    }
}

/// What is left of each limit, the scarcest first.
pub(crate) async fn left(limiter: &Limiter) -> Vec<u32> {
    limiter.peek_all().await.unwrap().iter().map(|quota| quota.remaining).collect()
}

/// When each of some waiters had its turn.
#[derive(Default)]
pub(crate) struct Line {
    tasks: HashMap<u32, JoinHandle<()>>,
    served: Arc<Mutex<Vec<(u32, Duration)>>>,
}

impl Line {
    /// Waits for a turn of the limiter in a task, from now on. Times are those since `began`.
    pub(crate) async fn join(&mut self, who: u32, limiter: &Limiter, began: Instant) {
        let (limiter, served) = (limiter.clone(), self.served.clone());
        let task = async move {
            limiter.acquire().await.unwrap();
            served.lock().unwrap().push((who, began.elapsed()));
        };
        self.tasks.insert(who, tokio::spawn(task));
        yield_now().await;
    }

    /// Hangs up.
    pub(crate) async fn leave(&mut self, who: u32) {
        let task = self.tasks.remove(&who).unwrap();
        task.abort();
        assert!(task.await.is_err(), "{who} was served already");
    }

    /// Waits for all who are in the line, and says who had which turn.
    pub(crate) async fn served(mut self) -> Vec<(u32, Duration)> {
        for (_, task) in self.tasks.drain() {
            task.await.unwrap();
        }
        self.served.lock().unwrap().clone()
    }
}

/// A service that answers as its closure says, behind a layer.
pub(crate) fn answering<L, S>(
    layer: &L,
    answer: impl Fn(Request<()>) -> Plain + Clone + Send + 'static,
) -> BoxCloneService<Request<()>, Answered, Infallible>
where
    L: Layer<BoxCloneService<Request<()>, Plain, Infallible>, Service = S>,
    S: Service<Request<()>, Response = Answered, Error = Infallible, Future: Send + 'static> + Clone + Send + 'static,
{
    let service = service_fn(move |request| ready(Ok::<_, Infallible>(answer(request))));
    BoxCloneService::new(layer.layer(BoxCloneService::new(service)))
}

/// Paused time, and a calendar that the test sets.
#[derive(Clone)]
pub(crate) struct Calendar {
    steady: Steady,
    /// What the calendar shows at which machine time.
    set: Arc<Mutex<(Duration, Duration)>>,
}

impl Calendar {
    /// A calendar that shows so many seconds since the Unix epoch.
    pub(crate) fn at(unix: u64) -> Calendar {
        let steady = Steady::new();
        let set = Arc::new(Mutex::new((steady.now(), secs(unix))));
        Calendar { steady, set }
    }

    fn shows(&self) -> Duration {
        let (machine, wall) = *self.set.lock().unwrap();
        wall + (self.steady.now() - machine)
    }

    /// Sets the calendar forward, or back.
    pub(crate) fn step(&self, seconds: i64) {
        let wall = self.shows().as_secs().checked_add_signed(seconds).unwrap();
        *self.set.lock().unwrap() = (self.steady.now(), secs(wall));
    }
}

impl Clock for Calendar {
    fn now(&self) -> Duration {
        self.steady.now()
    }

    fn wall(&self) -> SystemTime {
        UNIX_EPOCH + self.shows()
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn Sleep>> {
        self.steady.sleep(delay)
    }

    fn may_be_paused(&self) -> bool {
        true
    }
}
