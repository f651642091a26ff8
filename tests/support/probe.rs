//! What the tests of hosts and of the tower contract share.
#![allow(dead_code)]

use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};
use tower::Service;
use tower_floodgate::{Cache, time::Steady};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A small cache in real time.
pub(crate) fn cache() -> Cache {
    Cache::builder_temporary().state_size(1 << 20).open().unwrap()
}

/// A small cache whose time is the test's, which is paused. Another thread of this process may be at the gate for a while
/// of real time, so there is plenty of patience.
pub(crate) fn paused_cache() -> Cache {
    Cache::builder_temporary().state_size(1 << 20).patience(MINUTE).clock(Steady::new()).open().unwrap()
}

/// What the clones of a [`Probe`] have in common: what has happened to them.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    instances: AtomicUsize,
    called: Mutex<Vec<usize>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl Watch {
    /// The numbers of the instances that were called, in order.
    pub(crate) fn called(&self) -> Vec<usize> {
        self.called.lock().unwrap().clone()
    }

    /// How many calls there were.
    pub(crate) fn calls(&self) -> usize {
        self.called.lock().unwrap().len()
    }

    /// How many futures are alive.
    pub(crate) fn running(&self) -> usize {
        self.running.load(SeqCst)
    }

    /// How many futures were alive at once at most.
    pub(crate) fn most_running(&self) -> usize {
        self.most.load(SeqCst)
    }
}

/// A service whose instances are told apart: a clone has a number of its own and is not ready, and calling one that is not
/// panics. Its futures take some polls to end, and it knows how many of them are alive.
pub(crate) struct Probe {
    id: usize,
    ready: bool,
    polls: usize,
    watch: Arc<Watch>,
}

impl Probe {
    /// Instance 0, whose futures are pending so many times before they end.
    pub(crate) fn new(polls: usize) -> Self {
        Probe { id: 0, ready: false, polls, watch: Arc::default() }
    }

    /// Looks at this one and all its clones.
    pub(crate) fn watch(&self) -> Arc<Watch> {
        self.watch.clone()
    }
}

impl Clone for Probe {
    fn clone(&self) -> Self {
        let id = self.watch.instances.fetch_add(1, SeqCst) + 1;
        Probe { id, ready: false, polls: self.polls, watch: self.watch.clone() }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Counts itself among the running.
struct Running(Arc<Watch>);

impl Running {
    fn new(watch: &Arc<Watch>) -> Self {
        let now = watch.running.fetch_add(1, SeqCst) + 1;
        watch.most.fetch_max(now, SeqCst);
        Running(watch.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl<B: Send + 'static> Service<Request<B>> for Probe {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<String>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(self.ready, "instance {} was called before it was ready", self.id);
        self.ready = false;
        self.watch.called.lock().unwrap().push(self.id);
        let (running, polls) = (Running::new(&self.watch), self.polls);
        Box::pin(async move {
            let _running = running;
            for _ in 0..polls {
                tokio::task::yield_now().await;
            }
            Ok(Response::new(request.uri().path().to_owned()))
        })
    }
}

/// A request for a path, with an empty body.
pub(crate) fn get(path: &str) -> Request<String> {
    Request::get(path).body(String::new()).unwrap()
}

/// Polls once, noting nothing of wakers.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(std::task::Waker::noop()))
}

/// Ends within ten seconds of real or paused time, or the test fails.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    tokio::time::timeout(10 * SECOND, &mut future).await.expect("took longer than ten seconds")
}

/// Ends without any of the paused time, which passes only while everyone sleeps.
pub(crate) async fn at_once<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    for _ in 0..10_000 {
        if let Poll::Ready(output) = poll_once(future.as_mut()) {
            return output;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now();
    }
    panic!("waits for something");
}

/// The whole body as text.
pub(crate) async fn text<B>(body: B) -> String
where
    B: Body<Data = Bytes>,
    B::Error: fmt::Debug,
{
    String::from_utf8(soon(body.collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A real client.
pub(crate) type HttpClient = Client<HttpConnector, Empty<Bytes>>;

pub(crate) fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Asks a server of this machine.
pub(crate) async fn fetch(client: &HttpClient, server: SocketAddr, path: &str) -> Response<hyper::body::Incoming> {
    let uri = format!("http://{server}{path}").parse().unwrap();
    soon(client.get(uri)).await.unwrap()
}
