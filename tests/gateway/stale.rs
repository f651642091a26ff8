//! Stored answers as a bridge over a slow or failing upstream.

use crate::{
    origin::*,
    process::{Answer, Browser},
    stampede::{Group, SOON},
};
use axum::response::IntoResponse;
use http::StatusCode;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

fn is_stale(answer: &Answer) -> bool {
    let did = answer.header("cache-status");
    did.starts_with("floodgate; hit; ttl=-") || did.starts_with("floodgate; fwd=stale")
}

/// Asks until an answer is as wanted.
async fn until(url: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let (browser, began) = (Browser::http1(), Instant::now());
    loop {
        let answer = browser.get(url).await;
        if wanted(&answer) {
            return answer;
        }
        assert!(began.elapsed() < SOON, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_outage_is_bridged_and_the_upstream_left_alone_meanwhile() {
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let (upstream, origin) = scripted(move |_, call| match failing.load(SeqCst) {
        true => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        false => format!("answer {call}").into_response(),
    })
    .await;
    let group = Group::start(2, &upstream, &["--expire", "1", "--stale", "60", "--beta", "0"]);
    let urls = [group.url(0, "/page"), group.url(1, "/page")];
    let browser = Browser::http1();
    assert_eq!(browser.get(&urls[0]).await.body, "answer 1");
    fails.store(true, SeqCst);
    until(&urls[0], is_stale).await;
    let (began, before) = (Instant::now(), origin.calls());
    let mut asked = 0;
    while began.elapsed() < Duration::from_secs(4) {
        for answer in many(&browser, (0..20).map(|n| urls[n % 2].clone())).await {
            assert_eq!((answer.status, answer.body.as_str(), is_stale(&answer)), (StatusCode::OK, "answer 1", true));
            asked += 1;
        }
    }
    let attempts = origin.calls() - before;
    assert!(attempts <= 4, "{attempts} attempts for {asked} requests in four seconds: after 1, 2, 4");
    fails.store(false, SeqCst);
    let back = until(&urls[1], |answer| !is_stale(answer)).await;
    assert_ne!(back.body, "answer 1");
}

#[tokio::test]
async fn the_bridge_ends_in_time() {
    let (upstream, _) = scripted(|_, call| match call {
        1 => "good".into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    })
    .await;
    let group = Group::start(1, &upstream, &["--expire", "1", "--stale", "1", "--beta", "0"]);
    let url = group.url(0, "/page");
    let stored = Instant::now();
    assert_eq!(Browser::http1().get(&url).await.body, "good");
    until(&url, is_stale).await;
    until(&url, |answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(stored.elapsed() >= Duration::from_secs(2), "{:?}", stored.elapsed());
}

#[tokio::test]
async fn an_upstream_that_is_gone_or_hangs_is_bridged_too() {
    let (upstream, mut visits) = held().await;
    let group = Group::start(1, &upstream, &["--expire", "1", "--stale", "60", "--beta", "0"]);
    let url = group.url(0, "/page");
    let first = tokio::spawn({
        let url = url.clone();
        async move { Browser::http1().get(&url).await }
    });
    drop(visits.recv().await.unwrap());
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    // Nobody lets the refresh go on.
    until(&url, is_stale).await;
    let _hangs = visits.recv().await.unwrap();
    for _ in 0..20 {
        assert!(is_stale(&Browser::http1().get(&url).await));
    }
}

#[tokio::test]
async fn what_must_be_revalidated_is_not_bridged_and_what_allows_it_is_without_the_flag() {
    let browser = Browser::http1();
    for (control, flags, bridged) in [
        ("max-age=1, must-revalidate", &["--stale", "60"][..], false),
        ("max-age=1, stale-if-error=60", &[], true),
        ("max-age=1, stale-while-revalidate=60", &[], true),
        ("max-age=1", &[], false),
        ("max-age=1", &["--stale", "60"], true),
    ] {
        let (upstream, _) = scripted(move |_, call| match call {
            1 => ([("cache-control", control)], "good").into_response(),
            _ => StatusCode::BAD_GATEWAY.into_response(),
        })
        .await;
        let group = Group::start(1, &upstream, &[flags, &["--beta", "0"]].concat());
        let url = group.url(0, "/page");
        assert_eq!(browser.get(&url).await.body, "good");
        let ended = until(&url, |answer| !answer.header("cache-status").starts_with("floodgate; hit; ttl=0")).await;
        assert_eq!((ended.status == StatusCode::OK, is_stale(&ended)), (bridged, bridged), "{control} {flags:?}");
    }
}
