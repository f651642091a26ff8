//! Twenty workers, a way that takes its time, and a server that counts by itself.

use crate::paused::{cache, ms, secs};
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
    /// Somebody else takes one each so often.
    strangers: Option<Duration>,
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
            strangers: None,
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

/// How many the server admitted, and refused before and after the first answer was there, of 20 workers.
async fn fare<L, S, B>(layer: L, server: Server, time: Duration) -> (usize, (usize, usize))
where
    L: Layer<Wire, Service = S>,
    S: Service<Request<()>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
{
    let strangers = server.strangers;
    let wire = Wire(Arc::new(Mutex::new(server)));
    let stranger = wire.clone();
    let stranger = tokio::spawn(async move {
        while let Some(pause) = strangers {
            sleep(pause).await;
            stranger.server().decide();
        }
    });
    work(layer.layer(wire.clone()), 20, Instant::now() + time).await;
    stranger.abort();
    let server = wire.server();
    (server.admitted, server.refused)
}

/// A budget greater than the servers'.
fn ours(cache: &Cache) -> ThrottleLayer {
    ThrottleLayer::of(cache.scope("api"), Rate::per_second(100))
}

const RULES: [Rule; 3] = [Rule::Window, Rule::Bucket, Rule::Drops];

#[tokio::test(start_paused = true)]
async fn twenty_workers_stop_before_the_server_refuses() {
    for rule in RULES {
        let server = || Server::new(rule, 30, secs(5));
        let (admitted, refused) = fare(ours(&cache()).learn(), server(), secs(30)).await;
        // 30 at once and 30 each 5 s; whole seconds are told, and rounded up, so some time is lost.
        assert!(refused == (0, 0) && admitted >= 150, "{rule:?}: {admitted}, {refused:?}");
        let (admitted, refused) = fare(ours(&cache()).learn().wait(), server(), secs(30)).await;
        assert!(refused == (0, 0) && admitted >= 150, "waiting, {rule:?}: {admitted}, {refused:?}");
        let (_, (_, refused)) = fare(ours(&cache()), server(), secs(30)).await;
        assert!(refused > 1_000, "those who do not learn, {rule:?}: {refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_allows_fewer_than_there_are_workers_refuses_only_those_who_left_before_it_spoke() {
    for rule in RULES {
        let (admitted, refused) = fare(ours(&cache()).learn(), Server::new(rule, 5, secs(1)), secs(20)).await;
        assert!(refused == (15, 0) && admitted >= 75, "{rule:?}: {admitted}, {refused:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_allows_more_changes_nothing() {
    for rule in RULES {
        let server = || Server::new(rule, 1_000, secs(1));
        let learning = fare(ours(&cache()).learn(), server(), secs(5)).await;
        assert_eq!(learning, fare(ours(&cache()), server(), secs(5)).await);
        assert_eq!(learning.1, (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn strangers_who_spend_too_cost_few_refusals() {
    // They take one each 400 ms, some two in the time of a call: at the end of a budget these may be refused.
    for rule in RULES {
        let server = || Server { strangers: Some(ms(400)), ..Server::new(rule, 100, secs(10)) };
        let (admitted, (early, late)) = fare(ours(&cache()).learn(), server(), secs(60)).await;
        assert!(early == 0 && late <= 12 && admitted >= 300, "{rule:?}: {admitted}, {early}, {late}");
        let (_, (_, late)) = fare(ours(&cache()), server(), secs(60)).await;
        assert!(late > 1_000, "those who do not learn, {rule:?}: {late}");
    }
}
