//! The turns of those who hang up.

use crate::support::*;
use proptest::{prelude::*, test_runner::RngSeed};
use tokio::time::{Instant, advance};
use tower_floodgate::throttle::{CalendarWindow, Limit, Limits, Rate, SlidingWindow};

/// A limiter whose budget is spent, at one a second.
async fn spent(limits: impl Into<Limits>) -> tower_floodgate::throttle::Limiter {
    let limiter = cache().throttle("x", limits);
    limiter.check().await.unwrap();
    limiter
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_takes_the_earliest_turn_that_was_given_back_and_those_behind_keep_theirs() {
    let (limiter, began) = (spent(Rate::per_second(1)).await, Instant::now());
    let mut line = Line::default();
    for who in 1..=6 {
        line.join(who, &limiter, began).await;
    }
    line.leave(4).await;
    line.leave(2).await;
    for who in 7..=9 {
        line.join(who, &limiter, began).await;
    }
    let served = [(1, 1), (7, 2), (3, 3), (8, 4), (5, 5), (6, 6), (9, 7)].map(|(who, second)| (who, secs(second)));
    assert_eq!(line.served().await, served);
}

#[tokio::test(start_paused = true)]
async fn a_turn_given_back_goes_to_whom_it_has_room_for() {
    let limiter = cache().throttle("x", Rate::per_second(1).burst(3));
    limiter.cost(3).check().await.unwrap();
    let began = Instant::now();
    let mut line = Line::default();
    let turns = [(1, 1, 1), (2, 2, 3), (3, 1, 4), (4, 3, 7), (5, 1, 8)];
    for (who, cost, _) in turns {
        line.join(who, &limiter.cost(cost), began).await;
    }
    line.leave(2).await;
    line.join(6, &limiter.cost(3), began).await;
    line.join(7, &limiter.cost(2), began).await;
    line.leave(4).await;
    line.join(8, &limiter, began).await;
    line.join(9, &limiter.cost(2), began).await;
    let served = line.served().await;
    let turn = |who| served.iter().find(|(served, _)| *served == who).unwrap().1;
    assert_eq!([1, 3, 5].map(turn), [1, 4, 8].map(secs), "who stays keeps the turn");
    assert_eq!([7, 8, 9].map(turn), [3, 5, 7].map(secs), "the first that fits");
    assert_eq!(turn(6), secs(11), "too large for what was free");
}

#[tokio::test(start_paused = true)]
async fn what_time_has_passed_of_a_turn_is_nobodys() {
    let (limiter, began) = (spent(Rate::per_second(1)).await, Instant::now());
    let mut line = Line::default();
    for who in 1..=4 {
        line.join(who, &limiter, began).await;
    }
    line.leave(1).await;
    line.leave(2).await;
    tokio::time::sleep(ms(1_500)).await;
    line.join(5, &limiter, began).await;
    line.join(6, &limiter, began).await;
    let served = line.served().await;
    assert_eq!(served, [(5, ms(1_500)), (3, secs(3)), (4, secs(4)), (6, secs(5))], "one and a half are left of two");
}

#[tokio::test(start_paused = true)]
async fn when_the_last_leaves_the_line_is_as_short_as_before() {
    let (limiter, began) = (spent(Rate::per_second(1)).await, Instant::now());
    let mut line = Line::default();
    for who in 1..=3 {
        line.join(who, &limiter, began).await;
    }
    assert_eq!(limiter.peek().await.unwrap().reset, secs(4));
    line.leave(2).await;
    line.leave(3).await;
    assert_eq!(limiter.peek().await.unwrap().reset, secs(2));
    assert_eq!(line.served().await, [(1, secs(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_window_is_given_back_what_its_waiters_took() {
    let kinds: [Limit; 2] = [SlidingWindow::new(1, secs(10)).into(), CalendarWindow::per_utc_hour(1).into()];
    for limit in kinds {
        let clock = Calendar::at(20_000 * 86_400);
        let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
        let (limiter, began) = (cache.throttle("x", limit.clone()), Instant::now());
        limiter.check().await.unwrap();
        let mut line = Line::default();
        for who in 1..=3 {
            line.join(who, &limiter, began).await;
        }
        line.leave(2).await;
        line.join(4, &limiter, began).await;
        let served: Vec<_> = line.served().await.into_iter().map(|(who, _)| who).collect();
        assert_eq!(served, [1, 4, 3], "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_several_limits_gives_back_to_each() {
    let limits = [Limit::from(Rate::per_second(1)), SlidingWindow::new(3, secs(60)).into()];
    let (limiter, began) = (spent(limits).await, Instant::now());
    let mut line = Line::default();
    for who in 1..=4 {
        line.join(who, &limiter, began).await;
    }
    line.leave(2).await;
    line.leave(4).await;
    line.join(5, &limiter, began).await;
    line.join(6, &limiter, began).await;
    let served = [(1, 1), (5, 2), (3, 60), (6, 61)].map(|(who, second)| (who, secs(second)));
    assert_eq!(line.served().await, served);
}

#[tokio::test(start_paused = true)]
async fn a_request_of_a_layer_that_is_dropped_while_it_waits_gives_its_turn_back() {
    use http::Request;
    use tower::{Layer, ServiceExt};
    use tower_floodgate::ThrottleLayer;
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(1)).wait_at_most(secs(60));
    assert_eq!(passed(&layer, 1).await, 1);
    for _ in 0..5 {
        let waiting = layer.layer(hello()).oneshot(Request::new(()));
        assert!(tokio::time::timeout(ms(100), waiting).await.is_err());
    }
    assert_eq!(layer.limiter("").peek().await.unwrap().reset, ms(500));
    let began = Instant::now();
    assert_eq!(passed(&layer, 1).await, 1);
    assert_eq!(began.elapsed(), ms(500));
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1_906),
        failure_persistence: None,
        ..ProptestConfig::with_cases(30)
    })]

    #[test]
    fn twenty_waiters_that_hang_up_in_any_order_do_not_delay_the_next_client(
        order in Just((1..=20_u32).collect::<Vec<_>>()).prop_shuffle(),
        pauses in prop::collection::vec(0..40_u64, 20),
        costs in prop::collection::vec(1..=3_u32, 20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let limiter = cache().throttle("x", Rate::per_second(1).burst(3));
            limiter.cost(3).check().await.unwrap();
            let began = Instant::now();
            let mut line = Line::default();
            for (who, cost) in (1..).zip(costs) {
                line.join(who, &limiter.cost(cost), began).await;
            }
            for (who, pause) in order.into_iter().zip(pauses) {
                advance(ms(pause)).await;
                line.leave(who).await;
            }
            // What was given back until now is regained, and nothing else is missing.
            assert_eq!(limiter.peek().await.unwrap().reset, secs(3) - began.elapsed());
            limiter.acquire().await.unwrap();
            assert_eq!(began.elapsed(), secs(1));
            limiter.cost(3).acquire().await.unwrap();
            assert_eq!(began.elapsed(), secs(4));
        });
    }

    #[test]
    fn whoever_hangs_up_nobody_is_served_later_than_without_those(
        leaving in prop::collection::vec(any::<bool>(), 30),
        newcomers in 0..10_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (limiter, began) = (spent(Rate::per_second(1)).await, Instant::now());
            let mut line = Line::default();
            let waiters: Vec<(u32, bool)> = (1..).zip(leaving).collect();
            for (who, _) in &waiters {
                line.join(*who, &limiter, began).await;
            }
            for (who, _) in waiters.iter().filter(|(_, leaves)| *leaves) {
                line.leave(*who).await;
            }
            let mut free: Vec<u32> = waiters.iter().filter(|(_, leaves)| *leaves).map(|(who, _)| *who).collect();
            free.extend(31..45);
            let mut expected: Vec<_> = waiters.iter().filter(|(_, leaves)| !leaves).map(|(who, _)| (*who, *who)).collect();
            for (newcomer, turn) in (100..).zip(free).take(newcomers) {
                line.join(newcomer, &limiter, began).await;
                // Once nobody is left in the line, who comes is served as soon as the budget has it.
                expected.push((newcomer, turn));
            }
            expected.sort_by_key(|(_, turn)| *turn);
            let served = line.served().await;
            for ((who, at), (expected, turn)) in served.iter().zip(&expected) {
                assert_eq!((who, *at), (expected, secs(u64::from(*turn))));
            }
            assert_eq!(served.len(), expected.len());
        });
    }
}
