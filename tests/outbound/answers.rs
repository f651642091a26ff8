//! What each kind of answer does to the budget, on paused time.

use crate::{
    paused::{cache, ms, secs},
    processes::{Child, say, wait_to_be_killed},
};
use http::{Request, Response};
use std::{convert::Infallible, path::Path, time::Duration};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_floodgate::{
    Cache, Reason, Rejection, ThrottleLayer,
    name::Header,
    throttle::{Advice, Decision, LimitError, Rate},
    time::Steady,
};

type Fields = &'static [(&'static str, &'static str)];

/// A server that answers so after half a second.
fn says(
    status: u16,
    fields: Fields,
) -> impl Service<Request<()>, Response = Response<()>, Error = Infallible, Future: Send> + Clone + Send + 'static {
    service_fn(move |_: Request<()>| async move {
        sleep(ms(500)).await;
        let answer = Response::builder().status(status);
        let answer = fields.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value));
        Ok::<_, Infallible>(answer.body(()).unwrap())
    })
}

/// The budget is far above what is asked for here.
fn ours(cache: &Cache) -> ThrottleLayer {
    ThrottleLayer::of(cache.scope("api"), Rate::per_second(1_000))
}

fn of(name: &str) -> Request<()> {
    Request::builder().header("x-api", name).body(()).unwrap()
}

/// What comes of a call: the server's status, or when to come again.
async fn call<S, B>(service: S, request: Request<()>) -> Result<u16, Duration>
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let answer = service.oneshot(request).await.unwrap();
    match answer.extensions().get::<Rejection>() {
        None => Ok(answer.status().as_u16()),
        Some(why) => {
            assert_eq!(why.reason, Reason::Throttled);
            Err(why.retry_after.unwrap())
        }
    }
}

/// When the next may go after an answer like this; zero: at once.
async fn held_by(status: u16, fields: Fields) -> Duration {
    let service = ours(&cache()).learn().layer(says(status, fields));
    assert_eq!(call(service.clone(), of("a")).await, Ok(status));
    call(service, of("a")).await.err().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_holds_for_as_long_as_it_says() {
    assert_eq!(held_by(429, &[("retry-after", "7")]).await, secs(7));
    assert_eq!(held_by(503, &[("retry-after", "7")]).await, secs(7));
    assert_eq!(held_by(429, &[]).await, secs(0), "without it the user's own retries are in charge");
    assert_eq!(held_by(200, &[("retry-after", "7")]).await, secs(0));
    assert_eq!(held_by(500, &[("retry-after", "7")]).await, secs(0));
    let dated = [("date", "Mon, 13 Jun 2022 11:48:53 GMT"), ("retry-after", "Mon, 13 Jun 2022 11:48:55 GMT")];
    assert_eq!(held_by(429, dated.to_vec().leak()).await, secs(2));
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_holds_until_its_reset() {
    assert_eq!(held_by(200, &[("ratelimit", r#""a";r=0;t=9"#)]).await, secs(9));
    assert_eq!(held_by(200, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "9")]).await, secs(9));
    assert_eq!(held_by(200, &[("ratelimit", r#""a";r=1;t=9"#)]).await, secs(0));
    assert_eq!(held_by(200, &[("ratelimit", r#""a";r=0"#)]).await, secs(0), "nobody knows until when");
    assert_eq!(held_by(200, &[("ratelimit", "nonsense;r=-1;t=x")]).await, secs(0));
}

#[tokio::test(start_paused = true)]
async fn no_answer_holds_for_longer_than_is_allowed() {
    const ENDLESS: &[(&str, &str)] = &[("retry-after", "99999999999999999999"), ("ratelimit", "a;r=0;t=99999999999")];
    assert_eq!(held_by(429, ENDLESS).await, secs(3_600));
    let service = ours(&cache()).hold_at_most(secs(60)).learn().layer(says(429, ENDLESS));
    assert_eq!(call(service.clone(), of("a")).await, Ok(429));
    assert_eq!(call(service, of("a")).await, Err(secs(60)));
}

#[test]
#[should_panic(expected = "a hold of 0ns at most")]
fn a_hold_of_no_length_is_a_mistake() {
    let _ = ours(&Cache::temporary().unwrap()).hold_at_most(Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn only_the_name_that_was_answered_is_held_back() {
    let cache = cache();
    let layer = ours(&cache).name(Header::new("x-api")).learn();
    let service = layer.layer(says(429, &[("retry-after", "7")]));
    assert_eq!(call(service.clone(), of("a")).await, Ok(429));
    assert_eq!(call(service.clone(), of("a")).await, Err(secs(7)));
    assert_eq!(call(service, of("b")).await, Ok(429));
    assert_eq!(call(layer.layer(says(200, &[])), of("c")).await, Ok(200));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_shared_and_seen_and_comes_back() {
    let cache = cache();
    let layer = ours(&cache).learn();
    let told = says(200, &[("ratelimit-policy", r#""a";q=10;w=60"#), ("ratelimit", r#""a";r=3;t=60"#)]);
    assert_eq!(call(layer.layer(told), of("a")).await, Ok(200));
    let limiter = layer.limiter("");
    assert_eq!(limiter.peek().await.unwrap().remaining, 3);
    // Three are on their way to a server that takes its time.
    let slow = layer.layer(service_fn(|_: Request<()>| std::future::pending::<Result<Response<()>, Infallible>>()));
    let mut calls: Vec<_> = (0..3).map(|_| Box::pin(slow.clone().oneshot(of("a")))).collect();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).await.is_pending());
    }
    assert_eq!(call(slow.clone(), of("a")).await, Err(secs(60)));
    assert_eq!(limiter.peek().await.unwrap().remaining, 0);
    // Who hangs up is not on the way any more.
    calls.pop();
    assert_eq!(limiter.peek().await.unwrap().remaining, 1);
    // Those whose process dies, neither, after a while.
    calls.into_iter().for_each(std::mem::forget);
    advance(secs(59)).await;
    assert_eq!(limiter.peek().await.unwrap().remaining, 3);
    advance(secs(3_600 + 61)).await;
    assert_eq!(limiter.peek().await.unwrap().remaining, 1_000, "an hour after the window nothing is known");
}

async fn poll_once<F: Future + Unpin>(mut future: F) -> std::task::Poll<F::Output> {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut future).poll(cx))).await
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_the_budget_forgets_what_was_learnt() {
    let cache = cache();
    let layer = ours(&cache).learn();
    let service = layer.layer(says(429, &[("retry-after", "7")]));
    assert_eq!(call(service.clone(), of("a")).await, Ok(429));
    assert_eq!(call(service.clone(), of("a")).await, Err(secs(7)));
    layer.limiter("").reset().await.unwrap();
    assert_eq!(call(service, of("a")).await, Ok(429));
}

#[tokio::test(start_paused = true)]
async fn who_waits_waits_through_a_hold() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1).burst(1)).wait_at_most(secs(20)).learn();
    let service = layer.layer(says(429, &[("retry-after", "5")]));
    let began = Instant::now();
    // The second has its turn after one second; the answer to the first is there after half of one.
    let (first, second) = tokio::join!(service.clone().oneshot(of("a")), service.clone().oneshot(of("a")));
    assert_eq!(first.unwrap().extensions().get::<Decision>().unwrap().waited, Duration::ZERO);
    assert_eq!(second.unwrap().extensions().get::<Decision>().unwrap().waited, ms(5_500));
    assert_eq!(began.elapsed(), ms(6_000));
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.waited, stats.throttled), (2, 1, 0));
    // The second answer held for 5 s more, and the turn that was not used is used again.
    assert_eq!(layer.limiter("").peek().await.unwrap().reset, ms(500));
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_for_the_end_of_a_hold_is_refused_when_the_turn_comes() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1).burst(1)).wait_at_most(secs(3)).learn();
    let service = layer.layer(says(429, &[("retry-after", "5")]));
    let began = Instant::now();
    let (first, second) = tokio::join!(call(service.clone(), of("a")), call(service.clone(), of("a")));
    // Asked at 1 s; the hold ends at 5.5 s, and it would wait until 3 s.
    assert_eq!((first, second, began.elapsed()), (Ok(429), Err(ms(2_500)), secs(1)));
    assert_eq!(call(service, of("a")).await, Err(ms(1_500)), "of who comes then that is known at once");
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.waited, stats.throttled), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn who_waits_and_hangs_up_while_held_gives_the_turn_back() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1).burst(1)).wait_at_most(secs(20)).learn();
    let service = layer.layer(says(429, &[("retry-after", "5")]));
    let waits = tokio::time::timeout(secs(3), service.clone().oneshot(of("a")));
    let (first, second) = tokio::join!(call(service.clone(), of("a")), waits);
    assert!(first == Ok(429) && second.is_err());
    let began = Instant::now();
    assert_eq!(call(service, of("a")).await, Ok(429));
    assert_eq!(began.elapsed(), ms(2_500 + 500), "the first turn after the hold, not the second");
}

#[tokio::test(start_paused = true)]
async fn advice_can_be_in_other_words() {
    let cache = cache();
    // A protocol whose answers are numbers: how many seconds to be quiet.
    let layer = ours(&cache)
        .learn_by(|quiet: &u64| Advice::hold_for(secs(*quiet)))
        .answer(|_: &u64, why: Rejection| Err::<u64, _>(why.retry_after.unwrap()));
    let service = layer.layer(service_fn(|quiet: u64| async move { Ok::<_, Duration>(quiet) }));
    assert_eq!(service.clone().oneshot(4).await, Ok(4));
    assert_eq!(service.clone().oneshot(0).await, Err(secs(4)));
    advance(secs(4)).await;
    assert_eq!(service.oneshot(0).await, Ok(0));

    // No service at all.
    let limiter = cache.throttle("other", Rate::per_second(1_000)).learning();
    limiter.check().await.unwrap().learn(Advice::left(2, secs(30)));
    let (one, two) = (limiter.check().await.unwrap(), limiter.check().await.unwrap());
    let Err(LimitError::Throttled { reason, retry_after, .. }) = limiter.check().await else { panic!("admitted") };
    assert_eq!((reason, retry_after), (Reason::Throttled, Some(secs(30))));
    drop(one);
    two.learn(Advice::default());
    assert_eq!(limiter.check().await.unwrap().quota.remaining, 1);
}

#[tokio::test(start_paused = true)]
async fn what_costs_nothing_passes_and_is_learnt_from() {
    let cache = cache();
    let layer = ours(&cache).cost(|request: &Request<()>| u32::from(request.uri().path() != "/free")).learn();
    let service = layer.layer(says(429, &[("retry-after", "7")]));
    let free = || Request::get("/free").body(()).unwrap();
    assert_eq!(call(service.clone(), free()).await, Ok(429));
    assert_eq!(call(service.clone(), of("a")).await, Err(secs(7)));
    assert_eq!(call(service, free()).await, Ok(429));
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_only_watches_holds_nothing_back() {
    let cache = cache();
    let layer = ours(&cache).shadow().learn();
    let service = layer.layer(says(429, &[("retry-after", "7")]));
    assert_eq!(call(service.clone(), of("a")).await, Ok(429));
    assert_eq!(call(service, of("a")).await, Ok(429));
    assert_eq!(cache.stats().throttled, 1);
}

#[tokio::test(start_paused = true)]
async fn two_openings_of_one_directory_learn_together() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Steady::new();
    let open = || Cache::builder(directory.path()).state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let (one, other) = (open(), open());
    assert_eq!(call(ours(&one).learn().layer(says(429, &[("retry-after", "7")])), of("a")).await, Ok(429));
    assert_eq!(call(ours(&other).learn().layer(says(200, &[])), of("a")).await, Err(secs(7)));
    assert_eq!(
        call(ours(&other).layer(says(200, &[])), of("a")).await,
        Err(secs(7)),
        "who does not learn heeds it too"
    );
}

#[tokio::test]
async fn processes_learn_from_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::builder(directory.path()).state_size(1 << 20).open().unwrap();
    let service = ours(&cache).name(Header::new("x-api")).learn().layer(says(200, &[]));
    assert_eq!(call(service.clone(), of("a")).await, Ok(200));
    let mut child = Child::spawn("refused by the server", directory.path());
    child.expect("refused");
    let again = call(service.clone(), of("a")).await.unwrap_err();
    assert!(again > secs(200) && again <= secs(300), "{again:?}");
    assert_eq!(call(service, of("b")).await, Ok(200));
}

/// A part: calls a server that refuses for five minutes, once.
pub(crate) fn refused_by_the_server(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let refused = runtime.block_on(async {
        let cache = Cache::open(path).unwrap();
        let service = ours(&cache).name(Header::new("x-api")).learn().layer(says(429, &[("retry-after", "300")]));
        call(service, of("a")).await
    });
    assert_eq!(refused, Ok(429));
    say("refused");
    wait_to_be_killed()
}
