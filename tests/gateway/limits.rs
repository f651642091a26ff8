//! Throttle and barrier hold across processes.

use crate::{
    origin::*,
    process::{Browser, Gateway},
};
use axum::{Router, extract::State, routing::any};
use http::Method;
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};
use tokio::sync::Semaphore;

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

#[tokio::test]
async fn a_barrier_holds_across_processes() {
    let origin = Origin::default();
    let slow = async |State(origin): State<Origin>| origin.enter(Duration::from_millis(5)).await;
    let upstream = serve(Router::new().fallback(slow).with_state(origin.clone())).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "60", "--no-cache"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let urls = (0..40).map(|i| gateways[i % 2].url("/one"));
    let answers = many(&Browser::http1(), urls).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!((origin.calls(), origin.most_at_once.load(SeqCst)), (40, 1));
}

#[tokio::test]
async fn a_full_barrier_refuses_and_other_names_pass() {
    let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let held = (arrived.clone(), go.clone());
    let wait = any(async move || {
        held.0.add_permits(1);
        let _ = held.1.acquire().await;
    });
    let upstream = serve(Router::new().route("/wait", wait).fallback(echo)).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "0", "--no-cache"];
    let gateway = Gateway::start(cache.path(), &flags);
    let browser = Browser::http1();
    let (url, first) = (gateway.url("/wait"), browser.clone());
    let running = tokio::spawn(async move { first.get(&url).await });
    arrived.acquire().await.unwrap().forget();
    let refused = browser.get(&gateway.url("/wait")).await;
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(browser.get(&gateway.url("/other")).await.status, 200, "another path, another name");
    go.add_permits(2);
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(browser.get(&gateway.url("/wait")).await.status, 200);
}

#[tokio::test]
async fn a_place_of_a_dead_gateway_is_free_after_its_lease() {
    let arrived = Arc::new(Semaphore::new(0));
    let first = arrived.clone();
    let wait = any(async move || {
        first.add_permits(1);
        std::future::pending::<()>().await;
    });
    let upstream = serve(Router::new().route("/wait", wait).fallback(echo)).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-by", "all", "--lease", "0.5", "--no-cache"];
    let holder = Gateway::start(cache.path(), &flags);
    let held = tokio::spawn(raw(holder.address, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"));
    arrived.acquire().await.unwrap().forget();
    let second = Gateway::start(cache.path(), &flags);
    holder.kill();
    assert_eq!(held.await.unwrap(), "");
    assert_eq!(Browser::http1().get(&second.url("/other")).await.status, 200);
}
