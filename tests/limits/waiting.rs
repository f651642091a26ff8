//! Waiting for a turn.

use crate::support::*;
use http::Request;
use std::{sync::Arc, sync::Mutex, time::Duration};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    Cache, Fail, Reason, Rejection, ThrottleLayer,
    throttle::{CalendarWindow, Limit, Limits, Rate, SlidingWindow},
};

/// When each of so many who come at once through a layer is served, and why the others are not.
async fn crowd<N, A, P>(
    layer: ThrottleLayer<N, A, P>,
    many: u32,
) -> (Vec<(u32, Duration)>, Vec<(u32, Reason, Option<Duration>)>)
where
    N: tower_floodgate::Name<u32> + Clone + Send + 'static,
    P: tower_floodgate::throttle::Policy<u32, (), Kept: Send> + Clone + Send + 'static,
{
    let (began, served) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let notes = served.clone();
    let service = layer.answer(Fail).layer(service_fn(move |who: u32| {
        notes.lock().unwrap().push((who, began.elapsed()));
        std::future::ready(Ok::<_, Rejection>(()))
    }));
    let mut calls = JoinSet::new();
    for who in 0..many {
        let call = service.clone().oneshot(who);
        calls.spawn(async move { call.await.err().map(|why| (who, why.reason, why.retry_after)) });
        yield_now().await;
    }
    let mut refused: Vec<_> = calls.join_all().await.into_iter().flatten().collect();
    refused.sort_by_key(|(who, ..)| *who);
    let served = served.lock().unwrap().clone();
    (served, refused)
}

/// A day that began just now.
fn midnight() -> (Cache, Calendar) {
    let clock = Calendar::at(20_000 * 86_400);
    (Cache::builder_temporary().state_size(1 << 20).clock(clock.clone()).open().unwrap(), clock)
}

#[tokio::test(start_paused = true)]
async fn who_comes_first_is_served_first_by_every_kind_of_limit() {
    let day = 86_400;
    let expected: [(Limit, [u64; 6]); 3] = [
        (Rate::new(2, secs(10)).into(), [0, 0, 5, 10, 15, 20]),
        (SlidingWindow::new(2, secs(10)).into(), [0, 0, 10, 10, 20, 20]),
        (CalendarWindow::per_utc_day(2).into(), [0, 0, day, day, 2 * day, 2 * day]),
    ];
    for (limit, times) in expected {
        let (cache, _) = midnight();
        let layer = ThrottleLayer::of(cache.scope("api"), limit.clone()).wait_at_most(Duration::MAX);
        let (served, refused) = crowd(layer, 6).await;
        let times: Vec<_> = (0..).zip(times.map(secs)).collect();
        assert_eq!((served, refused), (times, vec![]), "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_several_limits_has_a_turn_that_suits_all() {
    let (cache, _) = midnight();
    let limits = [Limit::from(Rate::per_second(1)), SlidingWindow::new(2, secs(60)).into()];
    let layer = ThrottleLayer::of(cache.scope("api"), limits).and(CalendarWindow::per_utc_hour(5));
    let (served, refused) = crowd(layer.wait_at_most(secs(7_200)), 8).await;
    let times: Vec<_> = served.iter().map(|(_, at)| at.as_secs()).collect();
    assert_eq!(times, [0, 1, 60, 61, 120, 3_600, 3_601, 3_660]);
    assert!(refused.is_empty() && served.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_months_has_the_first_days_of_them() {
    // The 30th of January 2024, a leap year.
    let clock = Calendar::at(1_706_572_800);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let layer = ThrottleLayer::of(cache.scope("api"), CalendarWindow::per_utc_month(1)).wait_at_most(Duration::MAX);
    let (served, _) = crowd(layer, 4).await;
    let days: Vec<_> = served.iter().map(|(_, at)| at.as_secs_f64() / 86_400.0).collect();
    assert_eq!(days, [0.0, 2.0, 31.0, 62.0]);
}

#[tokio::test(start_paused = true)]
async fn whose_wait_would_be_too_long_is_refused_at_once() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).wait_at_most(secs(2));
    let began = Instant::now();
    let (served, refused) = crowd(layer.clone(), 5).await;
    assert_eq!(served, [(0, secs(0)), (1, secs(1)), (2, secs(2))], "who waits just as long as it may is served");
    let after = Some(secs(1));
    assert_eq!(refused, [(3, Reason::Throttled, after), (4, Reason::Throttled, after)]);
    assert_eq!(began.elapsed(), secs(2));

    // Who comes again when told so waits no longer than it may.
    let limiter = layer.limiter("");
    limiter.cost(1).acquire().await.unwrap();
    let mut line = Line::default();
    for who in 0..3 {
        line.join(who, &limiter, began).await;
    }
    let (Reason::Throttled, Some(wait)) = refusal(limiter.acquire_timeout(ms(1_500)).await) else { panic!() };
    advance(wait - ms(1)).await;
    assert_eq!(refusal(limiter.acquire_timeout(ms(1_500)).await).1, Some(ms(1)));
    advance(ms(1)).await;
    let asked = Instant::now();
    limiter.acquire_timeout(ms(1_500)).await.unwrap();
    assert_eq!(asked.elapsed(), ms(1_500));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_wait() {
    for (queue, waits) in [(0, 0), (1, 1), (3, 3)] {
        let cache = cache();
        let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1));
        let layer = layer.wait_at_most(Duration::MAX).queue_at_most(queue);
        let (served, refused) = crowd(layer, 6).await;
        assert_eq!(served.len(), 1 + waits);
        assert_eq!(refused.len(), 5 - waits);
        for refusal in refused {
            assert_eq!((refusal.1, refusal.2), (Reason::QueueFull, Some(secs(1))), "a place is free then");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_in_the_queue_is_free_when_its_waiter_was_served_or_hung_up() {
    let (cache, began) = (cache(), Instant::now());
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).queue_at_most(2);
    let limiter = layer.limiter("");
    limiter.check().await.unwrap();
    let mut line = Line::default();
    line.join(1, &limiter, began).await;
    line.join(2, &limiter, began).await;
    assert_eq!(refusal(limiter.acquire().await), (Reason::QueueFull, Some(secs(1))));
    line.leave(1).await;
    line.join(3, &limiter, began).await;
    assert_eq!(refusal(limiter.acquire().await).0, Reason::QueueFull);
    tokio::time::sleep(ms(1_001)).await;
    line.join(4, &limiter, began).await;
    assert_eq!(refusal(limiter.acquire().await), (Reason::QueueFull, Some(ms(999))));
    assert_eq!(line.served().await, [(3, secs(1)), (2, secs(2)), (4, secs(3))]);
}

#[tokio::test(start_paused = true)]
async fn the_queue_of_one_name_is_no_other_names() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1))
        .name(|who: &u32| who % 2)
        .wait_at_most(Duration::MAX)
        .queue_at_most(1);
    let (served, refused) = crowd(layer, 6).await;
    assert_eq!(served, [(0, secs(0)), (1, secs(0)), (2, secs(1)), (3, secs(1))]);
    assert_eq!(refused.iter().map(|refused| refused.0).collect::<Vec<_>>(), [4, 5]);
}

#[tokio::test(start_paused = true)]
async fn as_nginx_does_it_the_first_pass_the_next_wait_and_the_rest_are_refused() {
    // limit_req rate=10r/s burst=20 delay=8
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(10).burst(9));
    let (served, refused) = crowd(layer.wait_at_most(Duration::MAX).queue_at_most(12), 30).await;
    let expected: Vec<_> = (0..21_u32).map(|who| (who, ms(u64::from(who.saturating_sub(8)) * 100))).collect();
    assert_eq!(served, expected);
    assert_eq!(refused.len(), 9);
    assert!(refused.iter().all(|(_, reason, after)| (*reason, *after) == (Reason::QueueFull, Some(ms(100)))));
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_the_name_is_blocked_waits_for_its_end() {
    let (cache, began) = (cache(), Instant::now());
    let limiter = cache.throttle("x", Rate::per_second(2));
    limiter.block(secs(30)).await.unwrap();
    assert_eq!(refusal(limiter.acquire_timeout(secs(29)).await), (Reason::Blocked, Some(secs(1))));
    let mut line = Line::default();
    for who in 0..4 {
        line.join(who, &limiter, began).await;
    }
    let served = line.served().await;
    assert_eq!(served, [(0, secs(30)), (1, secs(30)), (2, ms(30_500)), (3, secs(31))]);
}

#[tokio::test(start_paused = true)]
async fn a_patient_layer_serves_everyone_in_turn() {
    let cache = cache();
    let began = Instant::now();
    let served = Arc::new(Mutex::new(Vec::new()));
    let notes = served.clone();
    let limits: Limits = "2/s, 3/10s sliding".parse().unwrap();
    let service = ThrottleLayer::of(cache.scope("api"), limits).wait().layer(service_fn(move |who: u32| {
        notes.lock().unwrap().push((who, began.elapsed()));
        std::future::ready(Ok::<_, ()>(()))
    }));
    let mut calls = JoinSet::new();
    for who in 0..6 {
        calls.spawn(service.clone().oneshot(who));
        yield_now().await;
    }
    assert!(calls.join_all().await.iter().all(Result::is_ok));
    let times = [0, 0, 500, 10_000, 10_000, 10_500].map(ms);
    assert_eq!(*served.lock().unwrap(), (0..).zip(times).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn what_never_fits_does_not_wait() {
    let (cache, began) = (cache(), Instant::now());
    let limiter = cache.throttle("x", [Rate::per_second(10), Rate::per_hour(5)]);
    assert_eq!(refusal(limiter.cost(6).acquire().await), (Reason::TooCostly, None));
    assert_eq!(began.elapsed(), secs(0));
    limiter.cost(5).acquire().await.unwrap();
    limiter.cost(5).acquire().await.unwrap();
    assert_eq!(began.elapsed(), secs(3_600));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_is_told_how_long_it_waited() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).wait_at_most(secs(5));
    let waited = async || {
        let answered = ask(&layer, Request::new(())).await;
        answered.extensions().get::<tower_floodgate::throttle::Decision>().unwrap().waited
    };
    assert_eq!((waited().await, waited().await, waited().await), (secs(0), secs(1), secs(1)));
}
