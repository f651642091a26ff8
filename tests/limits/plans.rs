//! Limits that the request decides, and limits that change.

use crate::support::*;
use http::Request;
use std::sync::{Arc, Mutex};
use tokio::time::{Instant, advance};
use tower::{Layer, ServiceExt};
use tower_floodgate::{
    Cache, Http, ThrottleLayer,
    name::{All, Header},
    throttle::{CalendarWindow, Limit, Limits, Rate, SlidingWindow, policy::Flat, policy::RateOf},
};

/// Limits that a test changes under a running layer.
#[derive(Clone)]
struct Plan(Arc<Mutex<Limits>>);

impl Plan {
    fn new(limits: impl Into<Limits>) -> Plan {
        Plan(Arc::new(Mutex::new(limits.into())))
    }

    fn change(&self, limits: impl Into<Limits>) {
        *self.0.lock().unwrap() = limits.into();
    }

    fn get(&self) -> Limits {
        self.0.lock().unwrap().clone()
    }

    fn layer(
        &self,
        cache: &Cache,
    ) -> ThrottleLayer<All, Http, RateOf<Flat, impl Fn(&Request<()>) -> Limits + Clone + use<>>> {
        let plan = self.clone();
        ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).rate_of(move |_: &Request<()>| plan.get())
    }
}

/// What is left by those limits.
async fn left_of(cache: &Cache, limits: impl Into<Limits>) -> Vec<u32> {
    left(&cache.scope("api").throttle("", limits)).await
}

#[tokio::test(start_paused = true)]
async fn another_plan_has_another_rate() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_minute(1)).name(Header::new("x-client")).rate_of(
        |request: &Request<()>| match text(request.headers(), "x-plan") {
            Some("paid") => Limits::from(Rate::per_minute(3)).and(SlidingWindow::new(5, secs(600))),
            _ => Rate::per_minute(1).into(),
        },
    );
    let mut passed = Vec::new();
    for (client, plan) in [("ada", "free"), ("bob", "paid"), ("eve", "paid")] {
        let mut count = 0;
        for _ in 0..5 {
            count += u32::from(ask(&layer, with([("x-client", client), ("x-plan", plan)])).await.status() == 200);
        }
        passed.push(count);
    }
    assert_eq!(passed, [1, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_raised_or_lowered_leaves_the_same_share() {
    let cache = cache();
    let plan = Plan::new(Rate::per_minute(10));
    let layer = plan.layer(&cache);
    assert_eq!(passed(&layer, 5).await, 5);
    assert_eq!(left_of(&cache, Rate::per_minute(10)).await, [5]);
    plan.change(Rate::per_minute(100));
    assert_eq!(passed(&layer, 60).await, 50, "half of 100");
    advance(secs(30)).await;
    plan.change(Rate::per_minute(4));
    assert_eq!(passed(&layer, 10).await, 2, "half of 4");
    plan.change(Rate::per_hour(1_000));
    assert_eq!(passed(&layer, 10).await, 0);
    advance(secs(36)).await;
    assert_eq!(passed(&layer, 20).await, 10, "and regained at the new rate");
    plan.change(Rate::per_second(10).burst(20));
    assert_eq!(passed(&layer, 20).await, 0);
    advance(secs(1)).await;
    assert_eq!(passed(&layer, 20).await, 10);
}

/// Spends all by one plan, and changes it to another and back: nothing is left at any time.
async fn assert_spent(cache: &Cache, before: &Limits, after: &Limits) {
    cache.clear().await.unwrap();
    let plan = Plan::new(before.clone());
    let layer = plan.layer(cache);
    while passed(&layer, 1).await == 1 {}
    plan.change(after.clone());
    assert_eq!(left_of(cache, after.clone()).await[0], 0, "from {before} to {after}");
    assert_eq!(passed(&layer, 1).await, 0, "from {before} to {after}");
    plan.change(before.clone());
    assert_eq!(passed(&layer, 1).await, 0, "from {before} to {after} and back");
}

#[tokio::test(start_paused = true)]
async fn no_change_refills_a_spent_budget() {
    let cache = cache();
    let single: [Limits; 6] = [
        Rate::per_hour(4).into(),
        Rate::per_hour(1_000).into(),
        Rate::per_day(4).into(),
        Rate::per_hour(1).burst(50).into(),
        SlidingWindow::new(30, secs(3_600)).into(),
        CalendarWindow::per_utc_month(1_000).into(),
    ];
    for before in &single {
        for after in &single {
            assert_spent(&cache, before, after).await;
            assert_spent(&cache, before, &after.clone().and(Rate::per_second(10))).await;
        }
    }
    // Several: each takes after one just like it, or the one in its place, or one that has gone.
    let (second, hour, day) = (Rate::per_second(10), Rate::per_hour(4), Rate::per_day(8));
    for after in [[second, day], [hour, second], [hour, day], [day, hour], [day, second]] {
        assert_spent(&cache, &[second, hour].into(), &after.into()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_added_is_full_and_the_others_stay() {
    let cache = cache();
    let hourly = || Limit::from(Rate::per_hour(10));
    for (name, added) in [
        ("behind", Limits::from(hourly()).and(Rate::per_second(7))),
        ("in front", Limits::from(Rate::per_second(7)).and(hourly())),
        ("of another kind", Limits::from(SlidingWindow::new(7, secs(1))).and(hourly())),
    ] {
        let before = cache.throttle(name, hourly());
        before.cost(4).check().await.unwrap();
        let after = cache.throttle(name, added);
        after.check().await.unwrap();
        let mut quotas = after.peek_all().await.unwrap();
        quotas.sort_by_key(|quota| quota.limit);
        let left: Vec<_> = quotas.iter().map(|quota| (quota.limit, quota.remaining)).collect();
        assert_eq!(left, [(7, 6), (10, 5)], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_taken_away_leaves_the_others_as_they_are() {
    let cache = cache();
    let (fast, slow) = (Rate::per_second(10), Rate::per_hour(10));
    let both = cache.throttle("x", [fast, slow]);
    both.cost(4).check().await.unwrap();
    advance(secs(1)).await;
    assert_eq!(left(&cache.throttle("x", slow)).await, [6]);
    assert_eq!(left(&cache.throttle("x", fast)).await, [10]);
    let swapped = cache.throttle("x", [slow, fast]);
    swapped.check().await.unwrap();
    assert_eq!(left(&swapped).await, [5, 9]);
}

#[tokio::test(start_paused = true)]
async fn another_algorithm_keeps_the_share() {
    let clock = Calendar::at(20_000 * 86_400);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let plan = Plan::new(Rate::per_hour(8));
    let layer = plan.layer(&cache);
    assert_eq!(passed(&layer, 2).await, 2);
    plan.change(SlidingWindow::new(16, secs(3_600)));
    assert_eq!(passed(&layer, 4).await, 4);
    assert_eq!(left_of(&cache, plan.get()).await, [8]);
    plan.change(CalendarWindow::per_utc_day(1_000));
    assert_eq!(passed(&layer, 250).await, 250);
    assert_eq!(left_of(&cache, plan.get()).await, [250]);
    plan.change(Rate::per_minute(8));
    assert_eq!(passed(&layer, 8).await, 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_rate_changes_keeps_the_turn() {
    for changed in [Rate::per_second(10), Rate::new(1, secs(5)), Rate::per_second(1).burst(7)] {
        let (cache, began) = (cache(), Instant::now());
        let before = cache.throttle("x", Rate::per_second(1));
        before.check().await.unwrap();
        let mut line = Line::default();
        line.join(1, &before, began).await;
        line.join(2, &before, began).await;
        let after = cache.throttle("x", changed);
        refusal(after.check().await);
        line.join(3, &after, began).await;
        let served = line.served().await;
        assert_eq!(served[..2], [(1, secs(1)), (2, secs(2))], "{changed}");
        assert!(served[2].0 == 3 && served[2].1 > secs(2), "{changed}: {served:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_after_a_change_gives_nothing_back_and_who_came_after_it_does() {
    let (cache, began) = (cache(), Instant::now());
    let (before, after) = (cache.throttle("x", Rate::per_second(1)), cache.throttle("x", Rate::new(1, secs(2))));
    before.check().await.unwrap();
    let mut line = Line::default();
    line.join(1, &before, began).await;
    advance(ms(10)).await;
    line.join(2, &after, began).await;
    let reset = after.peek().await.unwrap().reset;
    line.leave(1).await;
    assert_eq!(after.peek().await.unwrap().reset, reset, "it had its turn of another limit");
    line.leave(2).await;
    assert_eq!(after.peek().await.unwrap().reset, reset - secs(2));
}

#[tokio::test(start_paused = true)]
async fn the_first_request_after_a_change_can_be_settled() {
    let cache = cache();
    cache.throttle("x", Rate::per_minute(10)).cost(5).check().await.unwrap();
    let after = cache.throttle("x", Rate::per_hour(100));
    let permit = after.cost(30).check().await.unwrap();
    assert_eq!(left(&after).await, [20]);
    permit.settle(10);
    assert_eq!(left(&after).await, [40]);
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_after_a_change_leaves_the_new_limits_alone() {
    let cache = cache();
    let before = cache.throttle("x", Rate::per_minute(10));
    let (less, more) = (before.cost(2).check().await.unwrap(), before.cost(2).check().await.unwrap());
    let after = cache.throttle("x", [Rate::per_minute(10), Rate::per_hour(3)]);
    after.cost(3).check().await.unwrap();
    assert_eq!(left(&after).await, [0, 3], "the hour is spent");
    less.settle(1);
    assert_eq!(left(&after).await[0], 0, "and stays so");
    more.settle(3);
    assert_eq!(left(&after).await[0], 0, "and stays so");
    refusal(after.check().await);
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_the_request_replace_all_of_the_layer() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1))
        .and(Rate::per_hour(1))
        .rate_of(|_: &Request<()>| Rate::per_hour(5));
    assert_eq!(passed(&layer, 7).await, 5);
    let service = layer.layer(hello());
    let refused = service.oneshot(Request::new(())).await.unwrap();
    assert!(why(&refused).others.is_empty());
}
