//! What requests cost: estimated before, settled after.

use crate::support::*;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use proptest::{prelude::*, test_runner::RngSeed};
use std::{
    convert::Infallible,
    future::{pending, ready},
    pin::pin,
    time::Duration,
};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    Cache, ThrottleLayer,
    throttle::{CalendarWindow, Limit, Limits, Rate, SlidingWindow},
};

/// Ten a second, of which a request is thought to cost four; what it costs, its response says.
macro_rules! metered {
    ($cache:expr) => {
        ThrottleLayer::of($cache.scope("model"), Rate::per_second(10)).cost(|_: &Request<()>| 4).settle(
            |_: &Request<()>| (),
            |(), response: &Response<Full<Bytes>>| number(response.headers(), "x-tokens").unwrap(),
        )
    };
}

fn costing(tokens: &str) -> Response<Full<Bytes>> {
    Response::builder().header("x-tokens", tokens).body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_too_much_is_given_back_and_what_is_missing_is_taken() {
    for (really, remaining, reset) in [("4", 6, ms(400)), ("1", 9, ms(100)), ("0", 10, ms(0)), ("10", 0, secs(1))] {
        let cache = cache();
        let layer = metered!(cache);
        let answered = answering(&layer, move |_| costing(really)).oneshot(Request::new(())).await.unwrap();
        assert_eq!(answered.status(), 200);
        let quota = layer.limiter("").peek().await.unwrap();
        assert_eq!((quota.remaining, quota.reset), (remaining, reset), "{really}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cost_beyond_the_limit_is_a_debt_that_must_be_regained_first() {
    let cache = cache();
    let layer = metered!(cache);
    let service = answering(&layer, |_| costing("25"));
    assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 200);
    let refused = service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!((refused.status(), why(&refused).retry_after), (StatusCode::TOO_MANY_REQUESTS, Some(ms(1_900))));
    advance(ms(1_900)).await;
    assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_limit_is_settled() {
    let cache = cache();
    for limit in [
        Limit::from(Rate::per_hour(100)),
        SlidingWindow::new(100, secs(3_600)).into(),
        CalendarWindow::per_utc_month(100).into(),
    ] {
        let limiter = cache.throttle(&limit.to_string(), limit);
        limiter.cost(40).check().await.unwrap().settle(15);
        assert_eq!(left(&limiter).await, [85]);
        limiter.cost(40).check().await.unwrap().settle(40);
        assert_eq!(left(&limiter).await, [45]);
        limiter.cost(5).check().await.unwrap().settle(35);
        assert_eq!(left(&limiter).await, [10]);
        limiter.cost(10).check().await.unwrap().settle(60);
        assert_eq!(left(&limiter).await, [0], "a debt");
        let debt = limiter.peek().await.unwrap().reset;
        assert!(debt > limiter.peek().await.unwrap().window / 2 || debt > secs(3_600), "{debt:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn all_limits_of_a_name_are_settled_together() {
    let cache = cache();
    let limiter = cache.throttle("x", [Rate::per_minute(10), Rate::per_hour(100), Rate::per_day(1_000)]);
    limiter.cost(8).check().await.unwrap().settle(3);
    assert_eq!(left(&limiter).await, [7, 97, 997]);
    limiter.cost(2).check().await.unwrap().settle(5);
    assert_eq!(left(&limiter).await, [2, 92, 992]);
}

#[tokio::test(start_paused = true)]
async fn the_response_is_settled_with_what_was_kept_of_the_request() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("model"), Rate::per_hour(100))
        .cost(|request: &Request<()>| number(request.headers(), "x-estimate").unwrap())
        .settle(
            |request: &Request<()>| text(request.headers(), "x-factor").unwrap().to_owned(),
            |factor: String, response: &Response<Full<Bytes>>| {
                factor.parse::<u32>().unwrap() * number(response.headers(), "x-tokens").unwrap()
            },
        );
    let service = answering(&layer, |_| costing("7"));
    service.oneshot(with([("x-estimate", "90"), ("x-factor", "3")])).await.unwrap();
    assert_eq!(left(&layer.limiter("")).await, [79]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_or_fails_or_panics_stays_at_the_estimate() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("model"), Rate::per_hour(100))
        .name(|request: &&'static str| *request)
        .cost(|_: &&'static str| 40)
        .settle(|_: &&'static str| (), |(), response: &u32| *response)
        .refund_if(|_: &u32| true)
        .answer(|_: &&'static str, _| Err("refused"));
    let service = layer.layer(service_fn(|request: &'static str| async move {
        match request {
            "hangs" => pending().await,
            "fails" => Err("failed"),
            "panics" => panic!("on purpose"),
            _ => Ok(1),
        }
    }));
    {
        let mut hanging = pin!(service.clone().oneshot("hangs"));
        assert!(crate::probe::poll_once(hanging.as_mut()).is_pending());
    }
    assert_eq!(service.clone().oneshot("fails").await, Err("failed"));
    assert!(tokio::spawn(service.clone().oneshot("panics")).await.unwrap_err().is_panic());
    assert_eq!(service.clone().oneshot("works").await, Ok(1));
    for (name, remaining) in [("hangs", 60), ("fails", 60), ("panics", 60), ("works", 100)] {
        assert_eq!(left(&layer.limiter(name)).await, [remaining], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_at_once_stays_at_the_estimate() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("model"), Rate::per_hour(100)).cost(|_: &()| 40);
    let layer = layer.answer(|_: &(), _| Err(())).refund_if(|(): &()| true);
    let service = layer.layer(service_fn(|()| -> std::future::Ready<Result<(), ()>> { panic!("on purpose") }));
    assert!(tokio::spawn(async { service.oneshot(()).await }).await.unwrap_err().is_panic());
    assert_eq!(left(&layer.limiter("")).await, [60]);
}

#[tokio::test(start_paused = true)]
async fn responses_of_some_kind_do_not_count() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(3))
        .refund_if(|response: &Response<Full<Bytes>>| response.status().is_server_error());
    let service = answering(&layer, |request| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = text(request.headers(), "x-status").unwrap().parse().unwrap();
        response
    });
    let mut answered = Vec::new();
    for status in ["500", "200", "503", "502", "404", "500", "200", "200", "500"] {
        answered.push(service.clone().oneshot(with([("x-status", status)])).await.unwrap().status().as_u16());
    }
    assert_eq!(answered, [500, 200, 503, 502, 404, 500, 200, 429, 429]);
}

#[tokio::test(start_paused = true)]
async fn a_refund_wins_over_a_settlement_wherever_it_is_said() {
    let cache = cache();
    let failed = |response: &Response<Full<Bytes>>| response.status().is_server_error();
    let base = |scope| ThrottleLayer::of(cache.scope(scope), Rate::per_hour(100)).cost(|_: &Request<()>| 40);
    let after = base("after").settle(|_: &Request<()>| (), |(), _: &Response<Full<Bytes>>| 10).refund_if(failed);
    let before = base("before").refund_if(failed).settle(|_: &Request<()>| (), |(), _: &Response<Full<Bytes>>| 10);
    let answer = |status| {
        move |_| {
            let mut response = Response::new(Full::default());
            *response.status_mut() = status;
            response
        }
    };
    for (status, remaining) in [(StatusCode::BAD_GATEWAY, 100), (StatusCode::OK, 90)] {
        answering(&after, answer(status)).oneshot(Request::new(())).await.unwrap();
        answering(&before, answer(status)).oneshot(Request::new(())).await.unwrap();
        assert_eq!(left(&after.limiter("")).await, [remaining], "{status}");
        assert_eq!(left(&before.limiter("")).await, [remaining], "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_given_back_only_what_time_has_not_given_back() {
    let cache = cache();
    let slow = |millis| {
        service_fn(move |_: Request<()>| async move {
            sleep(ms(millis)).await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        })
    };
    let layer = |scope| {
        ThrottleLayer::of(cache.scope(scope), Rate::per_second(10))
            .cost(|_: &Request<()>| 10)
            .refund_if(|_: &Response<Full<Bytes>>| true)
    };
    for (scope, millis, left_while, left_then) in [("quick", 300, 3, 10), ("slow", 1_200, 10, 10)] {
        let layer = layer(scope);
        let call = tokio::spawn(layer.layer(slow(millis)).oneshot(Request::new(())));
        yield_now().await;
        advance(ms(millis) - ms(1)).await;
        assert_eq!(left(&layer.limiter("")).await, [if millis > 1_000 { left_while } else { 2 }], "{scope}");
        call.await.unwrap().unwrap();
        assert_eq!(left(&layer.limiter("")).await, [left_then], "{scope}");
        let limiter = layer.limiter("");
        limiter.cost(10).check().await.unwrap();
        refusal(limiter.check().await);
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_for_nothing_is_charged_what_it_cost() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("model"), Rate::per_hour(10))
        .cost(|request: &Request<()>| number(request.headers(), "x-cost").unwrap())
        .settle(
            |_: &Request<()>| (),
            |(), response: &Response<Full<Bytes>>| number(response.headers(), "x-tokens").unwrap(),
        );
    let service = answering(&layer, |_| costing("4"));
    service.clone().oneshot(with([("x-cost", "0")])).await.unwrap();
    assert_eq!(left(&layer.limiter("")).await, [6]);
    service.oneshot(with([("x-cost", "1")])).await.unwrap();
    assert_eq!(left(&layer.limiter("")).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn who_waited_is_settled_too() {
    let (cache, began) = (cache(), Instant::now());
    let layer = metered!(cache).wait_at_most(secs(10));
    let service = answering(&layer, |_| costing("1"));
    layer.limiter("").cost(10).check().await.unwrap();
    service.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!(began.elapsed(), ms(400));
    assert_eq!(left(&layer.limiter("")).await, [3], "four were regained, and of the four taken three are back");
    service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(began.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_after_a_reset_gives_nothing_more() {
    let cache = cache();
    for limit in [Limits::from(Rate::per_hour(10)), SlidingWindow::new(10, secs(3_600)).into()] {
        let limiter = cache.throttle(&limit.to_string(), limit);
        let permit = limiter.cost(8).check().await.unwrap();
        advance(ms(1)).await;
        limiter.reset().await.unwrap();
        limiter.cost(5).check().await.unwrap();
        permit.settle(0);
        assert_eq!(left(&limiter).await, [5]);
    }
}

/// What one caller of the proptest does.
#[derive(Clone, Copy, Debug)]
struct Caller {
    /// After the caller before.
    comes: u64,
    estimate: u32,
    really: u32,
    takes: u64,
    /// How long it is willing to wait; hangs up then if it was given a later turn.
    patience: u64,
    hangs_up: bool,
}

fn callers() -> impl Strategy<Value = Vec<Caller>> {
    let caller = (0..400_u64, 1..=5_u32, 0..=5_u32, 0..1_500_u64, 0..2_000_u64, any::<bool>());
    let caller = caller.prop_map(|(comes, estimate, really, takes, patience, hangs_up)| Caller {
        comes: comes.saturating_sub(200),
        estimate,
        really: really.min(estimate),
        takes,
        patience,
        hangs_up,
    });
    prop::collection::vec(caller, 1..60)
}

/// Has the callers come through a layer, and answers what each that was served has really cost, and when.
async fn play(limits: Limits, callers: Vec<Caller>) -> Vec<(Duration, u32)> {
    let cache: Cache = cache();
    let began = Instant::now();
    let layer = ThrottleLayer::of(cache.scope("api"), limits)
        .cost(|caller: &Caller| caller.estimate)
        .settle(|caller: &Caller| caller.really, |really: u32, _: &Option<(Duration, u32)>| really)
        .answer(|_: &Caller, _| Ok(None))
        .wait_at_most(secs(1));
    let service = layer.layer(service_fn(move |caller: Caller| async move {
        let began = began.elapsed();
        sleep(ms(caller.takes)).await;
        Ok::<_, ()>(Some((began, caller.really)))
    }));
    let mut calls = JoinSet::new();
    for caller in callers {
        sleep(ms(caller.comes)).await;
        let call = service.clone().oneshot(caller);
        calls.spawn(async move {
            if caller.hangs_up {
                // It may have been served by then; it costs what was estimated.
                return tokio::time::timeout(ms(caller.patience), call).await.ok()?.unwrap();
            }
            call.await.unwrap()
        });
        yield_now().await;
    }
    let mut served: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    served.sort_unstable();
    served
}

/// Checks that no window has more than the burst and what is regained in it.
fn assert_bounded(served: &[(Duration, u32)], burst: u32, each: Duration) {
    for (at, (first, _)) in served.iter().enumerate() {
        let mut sum = 0;
        for (last, cost) in &served[at..] {
            sum += cost;
            let regained = (*last - *first).as_nanos() / each.as_nanos();
            assert!(u128::from(sum) <= u128::from(burst) + regained, "{sum} from {first:?} to {last:?}: {served:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1_905),
        failure_persistence: None,
        ..ProptestConfig::with_cases(40)
    })]

    #[test]
    fn whatever_callers_do_no_more_passes_than_the_limit_says(callers in callers()) {
        let play = |limits| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            runtime.unwrap().block_on(play(limits, callers.clone()))
        };
        let rate = Rate::per_second(10).burst(6);
        assert_bounded(&play(rate.into()), 6, ms(100));
        let served = play(Limits::from([rate, Rate::per_second(5).burst(9)]));
        assert_bounded(&served, 6, ms(100));
        assert_bounded(&served, 9, ms(200));
        let served = play(SlidingWindow::new(8, secs(1)).into());
        for (first, _) in &served {
            let within = |(at, _): &&(Duration, u32)| (*first..*first + secs(1)).contains(at);
            let sum: u32 = served.iter().filter(within).map(|(_, cost)| cost).sum();
            prop_assert!(sum <= 8, "{} in a second: {:?}", sum, served);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unsettled_layer_takes_what_it_said() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(10)).cost(|_: &()| 3).answer(|_: &(), _| Err(()));
    let service = layer.layer(service_fn(|()| ready(Ok::<_, ()>(()))));
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(service.clone().oneshot(()).await.is_ok());
    }
    assert_eq!(answers, [true, true, true, false]);
}
