//! Throttles hold across processes.

use crate::{
    origin::*,
    process::{Browser, Gateway},
};
use http::Method;
use std::time::Duration;

#[tokio::test]
async fn a_throttle_holds_across_restarts_and_processes() {
    let flags = ["--throttle", "5/60", "--throttle-by", "all"];
    let cache = directory();
    let browser = Browser::http1();
    let gateway = Gateway::start(cache.path(), &flags);
    let answers = many(&browser, (0..12).map(|_| gateway.url("/hello"))).await;
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(passed.len(), 5);
    for answer in refused {
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=12).contains(&wait), "one comes back every twelve seconds, not {wait}");
    }

    let second = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&second.url("/hello")).await.status, 429, "a second gateway");
    gateway.kill();
    assert_eq!(browser.get(&second.url("/hello")).await.status, 429, "after kill -9 of the first");
    second.kill();
    let mut third = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&third.url("/hello")).await.status, 429, "after kill -9 of all");
    third.terminate();
    assert!(third.exit().success());
    let fourth = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&fourth.url("/hello")).await.status, 429, "after a clean stop");
}

#[tokio::test]
async fn retry_after_is_true() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--throttle", "2/4"]);
    let browser = Browser::http1();
    let refused = loop {
        let answer = browser.get(&gateway.url("/hello")).await;
        if answer.status == 429 {
            break answer;
        }
    };
    let wait = refused.header("retry-after").parse().unwrap();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(browser.get(&gateway.url("/hello")).await.status, 200);
}

#[tokio::test]
async fn what_a_throttle_counts_is_a_flag() {
    let browser = Browser::http1();
    for (by, first, same, other) in [
        ("all", ("/hello", "a"), ("/count", "b"), None),
        ("ip", ("/hello", "a"), ("/count", "b"), None),
        ("path", ("/hello?x", "a"), ("/hello?y", "b"), Some(("/count", "a"))),
        ("header:X-Key", ("/hello", "a"), ("/count", "a"), Some(("/hello", "b"))),
    ] {
        let cache = directory();
        let gateway = Gateway::start(cache.path(), &["--throttle", "1/600", "--throttle-by", by]);
        let ask = async |(path, key): (&str, &str)| {
            browser.send(Method::GET, &gateway.url(path), &[("x-key", key)], "").await.status
        };
        assert_eq!(ask(first).await, 200, "{by}");
        assert_eq!(ask(same).await, 429, "{by}");
        if let Some(other) = other {
            assert_eq!(ask(other).await, 200, "{by}");
        }
    }
}

#[tokio::test]
async fn throttled_requests_may_wait() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--throttle", "1/0.05", "--throttle-wait", "60"]);
    let answers = many(&Browser::http1(), (0..10).map(|_| gateway.url("/hello"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}
