//! The throttle without tower, also without a runtime.

use crate::support::*;
use std::time::Instant as RealInstant;
use tokio::time::{Instant, advance};
use tower_floodgate::{
    Cache, Reason, ThrottleLayer,
    throttle::{CalendarWindow, Limit, LimitError, Limits, Rate, SlidingWindow},
};

#[tokio::test(start_paused = true)]
async fn checks_take_and_say_what_is_left_of_the_scarcest_limit() {
    let cache = cache();
    let limiter = cache.throttle("x", [Limit::from(Rate::per_second(5)), Limit::from(Rate::per_hour(8)).named("hour")]);
    let permit = limiter.cost(2).check().await.unwrap();
    assert_eq!((permit.quota.limit, permit.quota.remaining), (5, 3));
    advance(secs(1)).await;
    let permit = limiter.cost(5).check().await.unwrap();
    assert_eq!((permit.quota.limit, permit.quota.remaining), (5, 0));
    advance(secs(1)).await;
    let permit = limiter.check().await.unwrap();
    assert_eq!((permit.quota.name.as_deref(), permit.quota.remaining), (Some("hour"), 0));
    let Err(LimitError::Throttled { reason, retry_after, quota, .. }) = limiter.check().await else { panic!() };
    assert_eq!((reason, retry_after), (Reason::Throttled, Some(secs(448))));
    assert_eq!((quota.name.as_deref(), quota.remaining), (Some("hour"), 0));
    let error = limiter.check().await.unwrap_err().to_string();
    assert!(error.contains("448s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_costs_nothing_passes_and_takes_nothing() {
    let cache = cache();
    let limiter = cache.throttle("x", Rate::per_second(1));
    limiter.check().await.unwrap();
    assert_eq!(limiter.cost(0).check().await.unwrap().quota.remaining, 0);
    assert_eq!(refusal(limiter.check().await), (Reason::Throttled, Some(secs(1))));
    limiter.block(secs(60)).await.unwrap();
    assert_eq!(limiter.cost(0).check().await.unwrap().quota.remaining, 0);
    assert_eq!(refusal(limiter.check().await).0, Reason::Blocked);
}

#[tokio::test(start_paused = true)]
async fn acquiring_waits_and_with_a_deadline_only_so_long() {
    let (cache, began) = (cache(), Instant::now());
    let limiter = cache.throttle("x", Rate::new(2, secs(10)));
    limiter.cost(2).acquire().await.unwrap();
    assert_eq!(refusal(limiter.acquire_timeout(ms(4_999)).await), (Reason::Throttled, Some(ms(1))));
    assert_eq!(began.elapsed(), secs(0), "known at once");
    limiter.acquire_timeout(secs(5)).await.unwrap();
    assert_eq!(began.elapsed(), secs(5));
    limiter.cost(2).acquire().await.unwrap();
    assert_eq!(began.elapsed(), secs(15));
}

#[tokio::test(start_paused = true)]
async fn peeking_takes_nothing_and_tells_of_every_limit() {
    let cache = cache();
    let limits = [Limit::from(Rate::per_second(10)), Limit::from(SlidingWindow::new(4, secs(60))).named("minute")];
    let limiter = cache.throttle("x", limits);
    limiter.cost(3).check().await.unwrap();
    for _ in 0..3 {
        let quotas = limiter.peek_all().await.unwrap();
        assert_eq!(quotas[0], limiter.peek().await.unwrap());
        let told: Vec<_> = quotas.iter().map(|quota| (quota.name.as_deref(), quota.remaining, quota.reset)).collect();
        assert_eq!(told, [(Some("minute"), 1, secs(60)), (None, 7, ms(300))]);
    }
    limiter.block(secs(5)).await.unwrap();
    assert_eq!(limiter.peek().await.unwrap().remaining, 0, "nothing, as long as it is blocked");
}

#[tokio::test(start_paused = true)]
async fn a_reset_makes_every_budget_full_and_who_waits_keeps_the_turn() {
    let (cache, began) = (cache(), Instant::now());
    let limiter = cache.throttle("x", [Rate::per_second(1), Rate::per_hour(10)]);
    limiter.check().await.unwrap();
    let mut line = Line::default();
    line.join(1, &limiter, began).await;
    line.join(2, &limiter, began).await;
    advance(ms(100)).await;
    limiter.reset().await.unwrap();
    assert_eq!(left(&limiter).await, [1, 10]);
    limiter.check().await.unwrap();
    line.leave(2).await;
    assert_eq!(left(&limiter).await, [0, 9], "its turn was of another life");
    assert_eq!(line.served().await, [(1, secs(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_penalty_may_lead_into_debt() {
    let clock = Calendar::at(20_000 * 86_400);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    for (limit, first) in [
        (Limit::from(Rate::per_minute(10)), secs(96)),
        (SlidingWindow::new(10, secs(60)).into(), secs(120)),
        (CalendarWindow::per_utc_day(10).into(), secs(2 * 86_400)),
    ] {
        let limiter = cache.throttle(&limit.to_string(), limit.clone());
        limiter.penalise(4).await.unwrap();
        assert_eq!(left(&limiter).await, [6], "{limit}: also a name that was never seen");
        limiter.penalise(21).await.unwrap();
        let (reason, Some(wait)) = refusal(limiter.check().await) else { panic!() };
        assert_eq!(reason, Reason::Throttled);
        assert!(wait > first - secs(60) || wait >= first, "{limit}: {wait:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_longer_block_stays() {
    let cache = cache();
    let limiter = cache.throttle("x", Rate::per_second(10));
    limiter.block(secs(60)).await.unwrap();
    limiter.block(secs(5)).await.unwrap();
    assert_eq!(refusal(limiter.check().await), (Reason::Blocked, Some(secs(60))));
    advance(secs(60)).await;
    limiter.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_knows_better_leaves_less_and_never_more() {
    let cache = cache();
    let limiter = cache.throttle("x", [Rate::per_minute(10), Rate::per_hour(100)]);
    limiter.leave_at_most(7).await.unwrap();
    assert_eq!(left(&limiter).await, [7, 7].map(|left| left).to_vec());
    limiter.leave_at_most(9).await.unwrap();
    assert_eq!(left(&limiter).await, [7, 7]);
    limiter.leave_at_most(0).await.unwrap();
    assert_eq!(refusal(limiter.check().await).1, Some(secs(36)), "one is regained");
}

#[tokio::test(start_paused = true)]
async fn a_layer_and_a_limiter_of_one_name_have_one_budget() {
    let cache = cache();
    let limits: Limits = "3/s, 5/3600s".parse().unwrap();
    let layer = ThrottleLayer::of(cache.scope("api"), limits.clone()).name(|_: &http::Request<()>| "ada");
    let limiter = cache.scope("api").throttle("ada", limits);
    assert_eq!(passed(&layer, 2).await, 2);
    limiter.check().await.unwrap();
    assert_eq!(passed(&layer, 1).await, 0);
    assert_eq!(left(&layer.limiter("ada")).await, left(&limiter).await);
}

#[tokio::test(start_paused = true)]
async fn the_limiter_of_a_layer_waits_and_blocks_as_that_does() {
    let (cache, began) = (cache(), Instant::now());
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).queue_at_most(1).block_for(secs(60), 2);
    let limiter = layer.limiter("");
    limiter.check().await.unwrap();
    let mut line = Line::default();
    line.join(1, &limiter, began).await;
    assert_eq!(refusal(limiter.acquire().await).0, Reason::QueueFull);
    assert_eq!(refusal(limiter.check().await).0, Reason::Throttled);
    assert_eq!(refusal(limiter.check().await).0, Reason::Blocked);
    assert_eq!(line.served().await, [(1, secs(1))], "who had a turn keeps it");
}

#[test]
fn every_method_has_a_twin_for_plain_threads() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let limiter = cache.throttle("x", [Rate::new(2, ms(80)), Rate::per_hour(1_000)]);
    limiter.check_blocking().unwrap();
    limiter.check_blocking().unwrap().settle(1);
    let (reason, Some(wait)) = refusal(limiter.check_blocking()) else { panic!() };
    assert!(reason == Reason::Throttled && wait <= ms(40), "{wait:?}");
    let began = RealInstant::now();
    assert_eq!(refusal(limiter.cost(2).acquire_timeout_blocking(ms(1))).0, Reason::Throttled);
    limiter.acquire_blocking().unwrap();
    limiter.acquire_timeout_blocking(secs(60)).unwrap();
    assert!(began.elapsed() >= wait, "{:?} of {wait:?}", began.elapsed());
    assert!(limiter.peek_blocking().unwrap().remaining < 2);
    assert_eq!(limiter.peek_all_blocking().unwrap().len(), 2);

    limiter.reset_blocking().unwrap();
    assert_eq!(limiter.peek_blocking().unwrap().remaining, 2);
    limiter.leave_at_most_blocking(0).unwrap();
    assert_eq!(limiter.peek_all_blocking().unwrap()[0].remaining, 0);
    limiter.reset_blocking().unwrap();
    limiter.penalise_blocking(900).unwrap();
    assert!(refusal(limiter.check_blocking()).1.unwrap() > secs(30));
    limiter.reset_blocking().unwrap();
    limiter.block_blocking(secs(60)).unwrap();
    assert_eq!(refusal(limiter.check_blocking()).0, Reason::Blocked);
    assert_eq!(refusal(limiter.acquire_timeout_blocking(secs(1))).0, Reason::Blocked);
}

#[test]
fn plain_threads_wait_in_one_line() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let limiter = cache.throttle("x", Rate::new(1, ms(20)));
    let began = RealInstant::now();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| limiter.acquire_blocking().unwrap());
        }
    });
    assert!(began.elapsed() >= ms(99), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn it_is_counted_as_a_layer_is() {
    let cache = cache();
    let limiter = cache.throttle("mails", Rate::new(2, secs(2)));
    limiter.check().await.unwrap();
    limiter.check_blocking().unwrap();
    assert!(limiter.check().await.is_err());
    limiter.acquire().await.unwrap();
    let stats = cache.stats();
    assert_eq!((stats.admitted, stats.near_limit, stats.throttled, stats.waited), (3, 2, 1, 1));
}
