//! What operators have: blocks, counts, and the budgets of names.

use crate::support::*;
use http::{Request, StatusCode};
use std::time::Duration;
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};
use tower::{Layer, ServiceExt};
use tower_floodgate::{Reason, ThrottleLayer, name::Header, throttle::Rate};

#[tokio::test(start_paused = true)]
async fn who_does_not_stop_asking_is_blocked() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).block_for(secs(60), 3);
    assert_eq!(statuses(&layer, 4).await, [200, 429, 429, 429]);
    advance(secs(10)).await;
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!((refused.status(), why(&refused).reason), (StatusCode::TOO_MANY_REQUESTS, Reason::Blocked));
    assert_eq!((why(&refused).retry_after, text(refused.headers(), "retry-after")), (Some(secs(50)), Some("50")));
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""api";r=0;t=50"#));
    for _ in 0..7 {
        assert_eq!(statuses(&layer, 2).await, [429, 429], "what is refused meanwhile does not prolong it");
        advance(secs(7)).await;
    }
    advance(ms(999)).await;
    assert_eq!(statuses(&layer, 1).await, [429]);
    advance(ms(1)).await;
    assert_eq!(statuses(&layer, 3).await, [200, 429, 429], "and the count begins anew");
}

#[tokio::test(start_paused = true)]
async fn refusals_that_are_far_apart_block_nobody() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).block_for(secs(10), 3);
    for _ in 0..6 {
        assert_eq!(statuses(&layer, 3).await, [200, 429, 429]);
        advance(ms(10_001)).await;
    }
    // Those within ten seconds do, even if the budget was full in between.
    for _ in 0..2 {
        assert_eq!(statuses(&layer, 2).await, [200, 429]);
        advance(secs(4)).await;
    }
    assert_eq!(statuses(&layer, 2).await, [200, 429]);
    advance(secs(4)).await;
    assert_eq!(why(&ask(&layer, Request::new(())).await).reason, Reason::Blocked);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_remembered_however_many_other_names_come_between() {
    let cache = cache();
    let layer =
        ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).name(Header::new("x-client")).block_for(secs(60), 3);
    let mut answered = Vec::new();
    for round in 0..5 {
        for _ in 0..2 {
            let why = ask(&layer, with([("x-client", "mallory")])).await;
            answered.push(why.extensions().get().map(|why: &tower_floodgate::Rejection| why.reason));
        }
        advance(secs(2)).await;
        // Enough writes for cells that mean nothing any more to be swept away.
        for other in 0..300 {
            ask(&layer, with([("x-client", &format!("{round} {other}"))])).await;
        }
    }
    let (over, blocked) = (Some(Reason::Throttled), Some(Reason::Blocked));
    assert_eq!(answered, [None, over, None, over, None, over, blocked, blocked, blocked, blocked]);
}

#[tokio::test(start_paused = true)]
async fn a_block_outlasts_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), tower_floodgate::time::Steady::new());
    for blocked in [false, true, true] {
        let builder = tower_floodgate::Cache::builder(dir.path()).state_size(1 << 20);
        let cache = builder.clock(clock.clone()).open().unwrap();
        let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).block_for(secs(60), 2);
        if !blocked {
            assert_eq!(statuses(&layer, 3).await, [200, 429, 429]);
        }
        assert_eq!(why(&ask(&layer, Request::new(())).await).reason, Reason::Blocked);
        advance(secs(20)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn counts_tell_how_near_and_how_far_over_the_limits_are() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(10)).and(Rate::per_day(100));
    assert_eq!(passed(&layer, 7).await, 7);
    assert_eq!(cache.stats().near_limit, 0, "three of ten are left");
    assert_eq!(passed(&layer, 1).await, 1);
    assert_eq!(cache.stats().near_limit, 1, "two are");
    assert_eq!(passed(&layer, 6).await, 2);
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.near_limit, stats.throttled), (10, 3, 4));
    assert_eq!((stats.waited, stats.shadowed, stats.denied, stats.failures), (0, 0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_while_it_waits_is_not_counted_as_admitted() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).wait_at_most(secs(60));
    let service = layer.layer(hello());
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(tokio::spawn(service.clone().oneshot(Request::new(()))));
        yield_now().await;
    }
    waiting.pop().unwrap().abort();
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.waited, stats.throttled), (3, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn names_have_limiters_that_operators_use() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_hour(3)).name(Header::new("x-client"));
    let request = || with([("x-client", "ada")]);
    let name = layer.name_of(&request()).unwrap();
    let ada = layer.limiter(&name);
    assert_eq!(ask(&layer, request()).await.status(), 200);
    assert_eq!(left(&ada).await, [2]);
    ada.penalise(2).await.unwrap();
    assert_eq!(ask(&layer, request()).await.status(), 429);
    ada.reset().await.unwrap();
    assert_eq!(ask(&layer, request()).await.status(), 200);
    ada.block(secs(60)).await.unwrap();
    assert_eq!(why(&ask(&layer, request()).await).reason, Reason::Blocked);
    assert_eq!(ask(&layer, with([("x-client", "bob")])).await.status(), 200, "that is ada's");
    ada.reset().await.unwrap();
    assert_eq!(ask(&layer, request()).await.status(), 200, "a block ends by it too");
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_is_counted_as_over_the_limit() {
    let cache = cache();
    let began = Instant::now();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).wait_at_most(Duration::MAX).queue_at_most(0);
    assert_eq!(passed(&layer, 3).await, 1);
    assert_eq!(began.elapsed(), secs(0));
    assert_eq!(cache.stats().throttled, 2);
}
