//! Steps of the wall clock.

use crate::support::*;
use std::{path::Path, time::Duration};
use tokio::time::advance;
use tower_floodgate::{
    Cache, Reason,
    throttle::{CalendarWindow, Limit, LimitError, Limits, Permit, Rate, SlidingWindow},
};

const HOUR: i64 = 3_600;
const DAY: u64 = 86_400;
const YEAR: i64 = 365 * 24 * HOUR;
/// Noon of the 4th of October 2024.
const NOON: u64 = 20_000 * DAY + DAY / 2;

fn open(path: &Path, clock: &Calendar) -> Cache {
    Cache::builder(path).state_size(1 << 20).clock(clock.clone()).open().unwrap()
}

/// What a check comes to: what is left, or when to ask again.
fn verdict(checked: Result<Permit, LimitError>) -> Result<u32, Option<Duration>> {
    match checked {
        Ok(permit) => Ok(permit.quota.remaining),
        Err(LimitError::Throttled { retry_after, .. }) => Err(retry_after),
        Err(error) => panic!("{error}"),
    }
}

/// What a name is told over some time in which the wall clock makes these steps, the cache being opened again each time.
async fn told(limits: &Limits, steps: &[i64]) -> Vec<Result<u32, Option<Duration>>> {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Calendar::at(NOON));
    let mut told = Vec::new();
    for step in steps {
        clock.step(*step);
        let cache = open(dir.path(), &clock);
        let limiter = cache.throttle("x", limits.clone());
        for wait in [0, 100, 700, 0, 2_900] {
            advance(ms(wait)).await;
            told.push(verdict(limiter.check().await));
            told.push(verdict(limiter.cost(2).check().await));
        }
    }
    told
}

#[tokio::test(start_paused = true)]
async fn no_step_moves_a_verdict_of_a_rate_or_a_sliding_window() {
    let limits = [
        Rate::per_second(3).into(),
        SlidingWindow::new(5, secs(4)).into(),
        Limits::from(Rate::per_second(2)).and(SlidingWindow::new(30, secs(60))),
    ];
    for limits in limits {
        let calm = told(&limits, &[0; 7]).await;
        assert!(calm.iter().any(Result::is_ok) && calm.iter().any(Result::is_err), "{limits}");
        let stormy = told(&limits, &[0, -HOUR, HOUR, YEAR, -YEAR, -YEAR, 40 * YEAR]).await;
        assert_eq!(calm, stormy, "{limits}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_step_opens_a_spent_window_again() {
    let windows = [CalendarWindow::per_utc_hour(2), CalendarWindow::per_utc_day(2), CalendarWindow::per_utc_month(2)];
    for window in windows {
        for step in [-HOUR, HOUR, YEAR, -24 * HOUR, 25 * HOUR] {
            for restarted in [false, true] {
                let (dir, clock) = (tempfile::tempdir().unwrap(), Calendar::at(NOON));
                let mut cache = open(dir.path(), &clock);
                cache.throttle("x", window).cost(2).check().await.unwrap();
                advance(secs(60)).await;
                clock.step(step);
                if restarted {
                    drop(cache);
                    cache = open(dir.path(), &clock);
                }
                let limiter = cache.throttle("x", window);
                for _ in 0..50 {
                    let (reason, Some(_)) = refusal(limiter.check().await) else { panic!("it ends some day") };
                    assert_eq!(reason, Reason::Throttled);
                    advance(secs(60)).await;
                }
                assert_eq!(left(&limiter).await, [0], "{window} after {step} s, restarted: {restarted}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_after_midnight_stays_in_the_new_day() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Calendar::at(NOON));
    let mut cache = open(dir.path(), &clock);
    let limiter = |cache: &Cache| cache.throttle("x", CalendarWindow::per_utc_day(2));
    limiter(&cache).cost(2).check().await.unwrap();
    advance(secs(DAY / 2 + 600)).await;
    limiter(&cache).cost(2).check().await.unwrap();
    clock.step(-HOUR);
    for restarted in [false, true] {
        if restarted {
            drop(cache);
            cache = open(dir.path(), &clock);
        }
        refusal(limiter(&cache).check().await);
        advance(secs(3_600)).await;
        refusal(limiter(&cache).check().await);
    }
    advance(secs(DAY)).await;
    limiter(&cache).cost(2).check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_window_that_a_wrong_clock_opened_ends_after_its_own_length() {
    let clock = Calendar::at(NOON);
    clock.step(YEAR);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let limiter = cache.throttle("x", CalendarWindow::per_utc_day(1));
    limiter.check().await.unwrap();
    clock.step(-YEAR);
    refusal(limiter.check().await);
    advance(secs(DAY / 2 - 1)).await;
    refusal(limiter.check().await);
    advance(secs(1)).await;
    limiter.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn all_of_a_quota_comes_back_with_the_next_window() {
    let clock = Calendar::at(NOON);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let limiter = cache.throttle("x", CalendarWindow::per_utc_day(100));
    limiter.cost(60).check().await.unwrap();
    let quota = limiter.peek().await.unwrap();
    assert_eq!((quota.remaining, quota.reset, quota.window), (40, secs(DAY / 2), secs(DAY)));
    assert_eq!(refusal(limiter.cost(41).check().await).1, Some(secs(DAY / 2)));
    advance(secs(DAY / 2) - ms(1)).await;
    assert_eq!(refusal(limiter.cost(41).check().await).1, Some(ms(1)));
    advance(ms(1)).await;
    limiter.cost(100).check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_rate_beside_a_quota_goes_on_through_steps() {
    let clock = Calendar::at(NOON);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let limits = Limits::from(Rate::per_second(1)).and(Limit::from(CalendarWindow::per_utc_day(4)).named("day"));
    let limiter = cache.throttle("x", limits);
    for step in [HOUR, -HOUR, YEAR, -2 * YEAR] {
        limiter.check().await.unwrap();
        clock.step(step);
        refusal(limiter.check().await);
        advance(secs(1)).await;
    }
    let Err(LimitError::Throttled { quota, .. }) = limiter.check().await else { panic!("admitted") };
    assert_eq!(quota.name.as_deref(), Some("day"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_window_is_served_when_it_was_said_whatever_the_clock_does() {
    let clock = Calendar::at(NOON);
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock.clone()).open().unwrap();
    let (limiter, began) = (cache.throttle("x", CalendarWindow::per_utc_hour(1)), tokio::time::Instant::now());
    limiter.check().await.unwrap();
    let mut line = Line::default();
    line.join(1, &limiter, began).await;
    line.join(2, &limiter, began).await;
    advance(secs(60)).await;
    clock.step(-HOUR / 2);
    assert_eq!(line.served().await, [(1, secs(3_600)), (2, secs(7_200))]);
    refusal(limiter.check().await);
}
