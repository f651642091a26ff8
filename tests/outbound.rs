//! Clients that learn from the answers of a foreign server, on paused time and over real HTTP.

use http::{Request, Response};
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::{Layer, Service, ServiceExt};
use tower_floodgate::{Cache, Rejection, ThrottleLayer, throttle::Rate};

#[path = "support/paused.rs"]
mod paused;
use paused::{cache, ms, secs};

/// How the server counts.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// `limit` in each window, which all begin together.
    Window,
    /// `limit` at once, of which one is regained each `window / limit`; all that was taken is back after `t`.
    Bucket,
    /// As `Bucket`, where `t` is the time until there is one more.
    Drops,
}

/// Somebody else's server: counts by itself and says so.
#[derive(Debug)]
struct Server {
    rule: Rule,
    limit: u32,
    window: Duration,
    began: Instant,
    /// Of which window, and how many in it; or when a bucket will be full.
    nth: u32,
    used: u32,
    full: Instant,
    /// Seed of the latencies.
    random: u64,
    /// From, and up to, so many ms each way.
    latency: (u64, u64),
    /// When the first answer was there.
    first_answer: Option<Instant>,
    admitted: usize,
    /// Refused of those sent before and after the first answer was there.
    refused: (usize, usize),
}

impl Server {
    fn new(rule: Rule, limit: u32, window: Duration) -> Server {
        let now = Instant::now();
        Server {
            rule,
            limit,
            window,
            began: now,
            nth: 0,
            used: 0,
            full: now,
            random: 88_172_645_463_325_252,
            latency: (5, 120),
            first_answer: None,
            admitted: 0,
            refused: (0, 0),
        }
    }

    fn latency(&mut self) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ms(self.latency.0 + self.random % (self.latency.1 - self.latency.0 + 1))
    }

    /// Whether it admits, what is left and in what time there is more.
    fn decide(&mut self) -> (bool, u32, Duration) {
        let now = Instant::now();
        match self.rule {
            Rule::Window => {
                let passed = now - self.began;
                let nth = (passed.as_nanos() / self.window.as_nanos()) as u32;
                if nth != self.nth {
                    (self.nth, self.used) = (nth, 0);
                }
                let admits = self.used < self.limit;
                self.used += u32::from(admits);
                (admits, self.limit - self.used, self.window * (nth + 1) - passed)
            }
            Rule::Bucket | Rule::Drops => {
                let step = self.window / self.limit;
                let full = self.full.max(now) + step;
                let admits = full <= now + self.window;
                if admits {
                    self.full = full;
                }
                let missing = self.full.max(now) - now;
                let left = ((self.window - missing).as_nanos() / step.as_nanos()) as u32;
                let one_more = missing.saturating_sub(step * (self.limit - left - 1));
                (admits, left, if matches!(self.rule, Rule::Drops) { one_more } else { missing })
            }
        }
    }

    fn answer(&mut self, sent: Instant) -> Response<()> {
        let (admits, left, reset) = self.decide();
        let reset = reset.as_nanos().div_ceil(1_000_000_000);
        let response = Response::builder()
            .header("ratelimit-policy", format!(r#""x";q={};w={}"#, self.limit, self.window.as_secs()))
            .header("ratelimit", format!(r#""x";r={left};t={reset}"#));
        if admits {
            self.admitted += 1;
            return response.body(()).unwrap();
        }
        match self.first_answer.is_some_and(|first| sent >= first) {
            true => self.refused.1 += 1,
            false => self.refused.0 += 1,
        }
        response.status(429).header("retry-after", reset.to_string()).body(()).unwrap()
    }
}

/// A way to the server.
#[derive(Clone, Debug)]
struct Wire(Arc<Mutex<Server>>);

impl Wire {
    fn server(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap()
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<()>, Infallible>> + Send>>;

impl Service<Request<()>> for Wire {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Answer {
        let wire = self.clone();
        Box::pin(async move {
            let sent = Instant::now();
            let there = wire.server().latency();
            let back = wire.server().latency();
            sleep(there).await;
            let answer = wire.server().answer(sent);
            sleep(back).await;
            wire.server().first_answer.get_or_insert_with(Instant::now);
            Ok(answer)
        })
    }
}

/// Workers that call without a pause until `end`; who is refused on this side comes back when told.
async fn work<S, B>(service: S, workers: usize, end: Instant)
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let mut all = JoinSet::new();
    for _ in 0..workers {
        let service = service.clone();
        all.spawn(async move {
            while Instant::now() < end {
                let call = service.clone().oneshot(Request::new(()));
                let Ok(answer) = tokio::time::timeout_at(end, call).await else { break };
                if let Some(why) = answer.unwrap().extensions().get::<Rejection>() {
                    sleep_until((Instant::now() + why.retry_after.unwrap()).min(end)).await;
                }
            }
        });
    }
    all.join_all().await;
}

/// How 20 workers fare.
async fn fare<L, S, B>(layer: L, server: Server, time: Duration) -> (usize, (usize, usize))
where
    L: Layer<Wire, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let wire = Wire(Arc::new(Mutex::new(server)));
    work(layer.layer(wire.clone()), 20, Instant::now() + time).await;
    let server = wire.server();
    (server.admitted, server.refused)
}

fn ours(cache: &Cache) -> ThrottleLayer {
    ThrottleLayer::of(cache.scope("api"), Rate::per_second(100))
}

const RULES: [Rule; 3] = [Rule::Window, Rule::Bucket, Rule::Drops];

async fn shared<L, S, B>(layer: L, server: Server, time: Duration, every: Duration) -> (usize, (usize, usize))
where
    L: Layer<Wire, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let wire = Wire(Arc::new(Mutex::new(server)));
    let stranger = wire.clone();
    let stranger = tokio::spawn(async move {
        loop {
            sleep(every).await;
            stranger.server().decide();
        }
    });
    work(layer.layer(wire.clone()), 20, Instant::now() + time).await;
    stranger.abort();
    let server = wire.server();
    (server.admitted, server.refused)
}

#[tokio::test(start_paused = true)]
async fn explore() {
    for rule in RULES {
        for (limit, window, every) in [
            (60, secs(1), ms(100)),
            (60, secs(60), secs(10)),
            (60, secs(60), secs(2)),
            (300, secs(60), ms(400)),
            (300, secs(60), ms(100)),
        ] {
            let time = secs(120).max(window * 2);
            let server = || Server::new(rule, limit, window);
            let refusing = shared(ours(&cache()).learn(), server(), time, every).await;
            let waiting = shared(ours(&cache()).learn().wait(), server(), time, every).await;
            let control = shared(ours(&cache()), server(), time, every).await;
            println!(
                "{rule:?} {limit}/{window:?} {every:?}: refusing {refusing:?} waiting {waiting:?} control {control:?}"
            );
        }
    }
}
