//! Several limits at once, and how limits are written.

use crate::support::*;
use http::Request;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::time::advance;
use tower_floodgate::{
    Http, Reason, ThrottleLayer,
    throttle::{CalendarWindow, Decision, Limit, Limits, Rate, SlidingWindow},
};

fn hourly(count: u32) -> Limit {
    Limit::from(Rate::per_hour(count)).named("hourly")
}

#[tokio::test(start_paused = true)]
async fn a_request_is_taken_from_all_limits_or_from_none() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(4)).and(hourly(6));
    assert_eq!(statuses(&layer, 5).await, [200, 200, 200, 200, 429], "4 a second");
    assert_eq!(left(&layer.limiter("")).await, [0, 2], "the refused one took nothing of the other");
    advance(secs(1)).await;
    assert_eq!(statuses(&layer, 3).await, [200, 200, 429], "6 an hour");
    assert_eq!(left(&layer.limiter("")).await, [0, 2], "nor here");
    advance(secs(600)).await;
    assert_eq!(statuses(&layer, 2).await, [200, 429]);
}

#[tokio::test(start_paused = true)]
async fn the_answer_names_the_limit_that_refused() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(2)).and(hourly(3));
    assert_eq!(passed(&layer, 2).await, 2);
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!(why(&refused).reason, Reason::Throttled);
    assert_eq!(why(&refused).quota.as_ref().unwrap().name, None);
    assert_eq!(why(&refused).others[0].name.as_deref(), Some("hourly"));
    assert_eq!(json(refused).await["violated-policies"], serde_json::json!(["api"]));

    advance(secs(1)).await;
    assert_eq!(passed(&layer, 1).await, 1);
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!(why(&refused).quota.as_ref().unwrap().name.as_deref(), Some("hourly"));
    assert_eq!(why(&refused).others[0].name, None);
    assert_eq!(why(&refused).others[0].remaining, 1);
    assert_eq!(json(refused).await["violated-policies"], serde_json::json!(["hourly"]));
}

#[tokio::test(start_paused = true)]
async fn the_headers_list_every_limit() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), hourly(4))
        .and(Rate::per_second(2))
        .and(Limit::from(SlidingWindow::new(100, secs(60))).named("minute"))
        .answer(Http::new().quota_headers());
    let policy = r#""api";q=2;w=1, "minute";q=100;w=60, "hourly";q=4;w=3600"#;
    let admitted = ask(&layer, Request::new(())).await;
    assert_eq!(text(admitted.headers(), "ratelimit-policy"), Some(policy));
    let told = r#""api";r=1;t=1, "minute";r=99;t=60, "hourly";r=3;t=900"#;
    assert_eq!(text(admitted.headers(), "ratelimit"), Some(told));
    assert_eq!(passed(&layer, 1).await, 1);
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!(text(refused.headers(), "ratelimit-policy"), Some(policy));
    let told = r#""api";r=0;t=1, "minute";r=98;t=60, "hourly";r=2;t=1800"#;
    assert_eq!(text(refused.headers(), "ratelimit"), Some(told));
}

#[tokio::test(start_paused = true)]
async fn a_decision_tells_of_the_tightest_limit_first() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(10)).and(hourly(3));
    let admitted = ask(&layer, Request::new(())).await;
    let decision = admitted.extensions().get::<Decision>().unwrap();
    assert_eq!((decision.quota.name.as_deref(), decision.quota.remaining), (Some("hourly"), 2));
    assert_eq!((decision.others.len(), decision.others[0].limit, decision.others[0].remaining), (1, 10, 9));
}

#[tokio::test(start_paused = true)]
async fn limits_of_every_kind_go_together() {
    // A day that has long to go still.
    let clock = Calendar::at(20_000 * 86_400);
    let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::new(2, secs(1)))
        .and(Limit::from(SlidingWindow::new(3, secs(60))).named("minute"))
        .and(Limit::from(CalendarWindow::per_utc_day(4)).named("day"));
    let mut refused_by = Vec::new();
    for wait in [0, 0, 0, 1, 0, 59, 0, 1] {
        advance(secs(wait)).await;
        let answered = ask(&layer, Request::new(())).await;
        let by = answered.extensions().get::<tower_floodgate::Rejection>().map(|why| why.quota.clone().unwrap());
        refused_by.push(by.map(|quota| quota.name.map_or("rate".to_owned(), |name| name.to_string())));
    }
    let expected = [None, None, Some("rate"), None, Some("minute"), None, Some("day"), Some("day")];
    assert_eq!(refused_by, expected.map(|by| by.map(str::to_owned)));
}

#[tokio::test(start_paused = true)]
async fn who_is_told_to_come_again_is_admitted_then_and_not_before() {
    let cache = cache();
    let limits = [Limit::from(Rate::new(2, secs(10))), SlidingWindow::new(3, secs(17)).into(), hourly(6)];
    let limiter = cache.throttle("mails", limits);
    let mut checks = 0;
    for _ in 0..12 {
        while limiter.check().await.is_ok() {
            checks += 1;
        }
        let (reason, Some(wait)) = refusal(limiter.check().await) else { panic!("it fits some day") };
        assert_eq!(reason, Reason::Throttled);
        advance(wait - ms(1)).await;
        assert_eq!(refusal(limiter.check().await).1, Some(ms(1)));
        advance(ms(1)).await;
        limiter.check().await.unwrap();
    }
    assert!(checks > 0);
}

#[tokio::test(start_paused = true)]
async fn a_cost_above_one_of_the_limits_never_fits() {
    let cache = cache();
    let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(10).burst(20)).and(hourly(8));
    let layer = layer.cost(|request: &Request<()>| number(request.headers(), "x-cost").unwrap());
    let refused = ask(&layer, with([("x-cost", "9")])).await;
    assert_eq!((why(&refused).reason, why(&refused).retry_after), (Reason::TooCostly, None));
    assert_eq!(why(&refused).quota.as_ref().unwrap().name.as_deref(), Some("hourly"));
    assert_eq!(text(refused.headers(), "retry-after"), None);
    assert_eq!(ask(&layer, with([("x-cost", "8")])).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn the_units_are_in_the_names() {
    let cache = cache();
    let spans = [
        (Rate::per_second(10), secs(1)),
        (Rate::per_minute(10), secs(60)),
        (Rate::per_hour(10), secs(3_600)),
        (Rate::per_day(10), secs(86_400)),
    ];
    for (rate, per) in spans {
        let layer = ThrottleLayer::of(cache.scope("api"), rate).name(rate.to_string());
        assert_eq!(passed(&layer, 12).await, 10, "{rate}");
        advance(per / 10).await;
        assert_eq!(statuses(&layer, 2).await, [200, 429], "{rate}");
        advance(per).await;
        assert_eq!(passed(&layer, 12).await, 10, "{rate}");
    }
    let burst = ThrottleLayer::of(cache.scope("burst"), Rate::per_second(10).burst(20));
    assert_eq!(passed(&burst, 25).await, 20);
    advance(secs(1)).await;
    assert_eq!(passed(&burst, 25).await, 10);
}

#[tokio::test(start_paused = true)]
async fn limits_are_read_from_a_configuration() {
    #[derive(Deserialize)]
    struct Config {
        plans: BTreeMap<String, Limits>,
        quota: Limit,
        rate: Rate,
    }
    let config: Config = serde_json::from_str(
        r#"{
            "plans": { "free": "1/s", "paid": "10/s burst 20, 1000/60s sliding,100000/utc-month" },
            "quota": "50/utc-day",
            "rate": "100/1m burst 20"
        }"#,
    )
    .unwrap();
    let month = CalendarWindow::per_utc_month(100_000);
    let paid = Limits::from(Rate::per_second(10).burst(20)).and(SlidingWindow::new(1_000, secs(60))).and(month);
    assert_eq!(config.plans["paid"], paid);
    assert_eq!(config.plans["free"], Rate::per_second(1).into());
    assert_eq!(config.quota, CalendarWindow::per_utc_day(50).into());
    assert_eq!(config.rate, Rate::per_minute(100).burst(20));

    let cache = cache();
    let free = ThrottleLayer::of(cache.scope("api"), config.plans["free"].clone());
    assert_eq!(statuses(&free, 2).await, [200, 429]);
    let paid = ThrottleLayer::of(cache.scope("paid"), config.plans["paid"].clone());
    assert_eq!(passed(&paid, 30).await, 20);
}

#[test]
fn what_is_written_is_read_again() {
    let kinds: [Limit; 7] = [
        Rate::per_second(10).into(),
        Rate::per_day(10).into(),
        Rate::new(7, ms(1_500)).burst(3).into(),
        SlidingWindow::new(100, secs(60)).into(),
        CalendarWindow::per_utc_hour(50).into(),
        CalendarWindow::per_utc_day(1_000).into(),
        CalendarWindow::per_utc_month(20_000).into(),
    ];
    for limit in &kinds {
        assert_eq!(&limit.to_string().parse::<Limit>().unwrap(), limit);
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        all: Limits,
        one: Limit,
    }
    let config = Config { all: kinds.to_vec().into(), one: kinds[5].clone() };
    let written = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&written).unwrap(), config, "{written}");
}

#[test]
fn names_and_lists_can_be_written_in_a_configuration() {
    let limits = Limits::from([
        Limit::from(Rate::per_second(10)),
        Limit::from(CalendarWindow::per_utc_month(5)).named("the plan as sold"),
    ]);
    let text = limits.to_string();
    assert_eq!((text.as_str(), text.parse()), ("10/1s, 5/utc-month as the plan as sold", Ok(limits.clone())));
    for json in [r#""10/s, 5/utc-month as the plan as sold""#, r#"["10/s", "5/utc-month as the plan as sold"]"#] {
        assert_eq!(serde_json::from_str::<Limits>(json).unwrap(), limits, "{json}");
    }
    for wrong in ["[]", r#"["1/s", "1/s", "1/s", "1/s", "1/s", "1/s", "1/s", "1/s", "1/s"]"#, r#""10/s as ""#, "5"] {
        let error = serde_json::from_str::<Limits>(wrong).unwrap_err().to_string();
        assert!(error.contains("limits") || error.contains("a name"), "{wrong}: {error}");
    }
    for wrong in ["", " plan", "a,b", "a\nb"] {
        let named = std::panic::catch_unwind(|| Limit::from(Rate::per_second(1)).named(wrong));
        assert!(named.is_err(), "{wrong:?}");
    }
}

#[test]
fn a_text_that_is_no_limit_says_what_one_looks_like() {
    for wrong in ["", "ten a second", "10", "0/s", "10/fortnight", "10/s,", "-1/s", "10/s burst x", "10/0s sliding"] {
        let error = wrong.parse::<Limits>().unwrap_err().to_string();
        assert!(error.contains("`100/60s`") && error.contains("`1000/utc-day`"), "{wrong}: {error}");
        let quoted = serde_json::to_string(wrong).unwrap();
        let error = serde_json::from_str::<Limits>(&quoted).unwrap_err().to_string();
        assert!(error.contains("`100/60s`"), "{wrong}: {error}");
    }
    let error = "10/fortnight".parse::<Limits>().unwrap_err().to_string();
    assert!(error.contains("fortnight"), "{error}");
    // What is told to be wrong is so of the kind of limit that was meant.
    for wrong in ["0/60s sliding", "0/utc-day", "99999999999/utc-day"] {
        let error = wrong.parse::<Limit>().unwrap_err().to_string();
        assert!(error.contains("count"), "{error}");
    }
    assert!("x".repeat(100_000).parse::<Limits>().unwrap_err().to_string().len() < 1_000);
    let nine = ["1/s"; 9].join(",").parse::<Limits>().unwrap_err().to_string();
    assert!(nine.contains("9 limits"), "{nine}");
}

#[tokio::test(start_paused = true)]
async fn eight_limits_are_not_too_many() {
    let cache = cache();
    let limits: Vec<Rate> = (1..=8).map(|hours| Rate::new(hours + 1, secs(u64::from(hours) * 3_600))).collect();
    let layer = ThrottleLayer::of(cache.scope("api"), limits);
    assert_eq!(statuses(&layer, 3).await, [200, 200, 429]);
    let refused = ask(&layer, Request::new(())).await;
    assert_eq!(text(refused.headers(), "ratelimit").unwrap().split(", ").count(), 8);
}

#[test]
#[should_panic = "1 to 8 limits, not 9"]
fn nine_limits_are_too_many() {
    let eight = (1..=8).fold(Limits::from(Rate::per_day(1)), |limits, _| limits.and(Rate::per_second(1)));
    let _ = eight;
}
