//! What is purged is gone, for every gateway, from the moment the purge has answered.

use crate::{
    origin::*,
    process::Browser,
    stampede::{Group, SOON},
};
use axum::response::IntoResponse;
use http::StatusCode;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// For how long purges and fills are raced: seconds, 3 unless the environment says otherwise. It goes on until there were
/// [`PURGES`].
fn span() -> Duration {
    let seconds = std::env::var("FLOODGATE_TORTURE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.map_or(3, |seconds: u64| seconds.min(30)))
}

const PURGES: usize = 24;
/// Every third purge comes only when there were so many more hits: then there is something to purge.
const HITS: u64 = 60;
const PAGES: usize = 3;
const READERS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_after_a_purge_returns_what_was_purged() {
    let version = Arc::new(AtomicU64::new(1));
    let told = version.clone();
    let (upstream, origin) =
        scripted(move |_, _| ([("cache-tag", "all")], told.load(SeqCst).to_string()).into_response()).await;
    let group = Arc::new(Group::start(2, &upstream, &["--expire", "600"]));
    // What every read that begins from now on must have at least.
    let least = Arc::new(AtomicU64::new(1));
    let over = Arc::new(AtomicBool::new(false));
    let hits = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let (group, least, over, hits) = (group.clone(), least.clone(), over.clone(), hits.clone());
            tokio::spawn(async move {
                let (browser, mut reads) = (Browser::http1(), 0_u64);
                while !over.load(SeqCst) {
                    let wanted = least.load(SeqCst);
                    let answer = browser.get(&group.url(reader % 2, &format!("/page/{}", reads % PAGES as u64))).await;
                    assert_eq!(answer.status, StatusCode::OK);
                    let found: u64 = answer.body.parse().unwrap();
                    assert!(found >= wanted, "{found} after {wanted} was purged: {answer:?}");
                    if answer.header("cache-status").starts_with("floodgate; hit") {
                        hits.fetch_add(1, SeqCst);
                    }
                    reads += 1;
                }
            })
        })
        .collect();
    let (began, browser) = (Instant::now(), Browser::http1());
    let have_failed = || readers.iter().any(tokio::task::JoinHandle::is_finished);
    let (mut purges, mut calls) = (0, 0);
    while (began.elapsed() < span() || purges < PURGES) && !have_failed() {
        if purges % 3 == 0 {
            let wanted = hits.load(SeqCst) + HITS;
            let hit = async {
                while hits.load(SeqCst) < wanted && !have_failed() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(SOON, hit).await.expect("nothing is answered from the cache");
            // Each page once, and whatever was on its way at the purge.
            let calls = origin.calls() - calls;
            assert!(calls <= PAGES + READERS, "{calls} calls for {HITS} hits");
        }
        let next = version.fetch_add(1, SeqCst) + 1;
        let admin = group.gateways[purges / 2 % 2].admin.unwrap();
        match purges % 2 {
            0 => {
                for page in 0..PAGES {
                    let purged = browser.post(&format!("http://{admin}/purge?path=/page/{page}")).await;
                    assert_eq!(purged.status, StatusCode::OK);
                }
            }
            _ => assert_eq!(browser.post(&format!("http://{admin}/purge?tag=all")).await.status, StatusCode::OK),
        }
        least.store(next, SeqCst);
        calls = origin.calls();
        purges += 1;
    }
    over.store(true, SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_purged_softly_is_served_until_there_is_a_new_one() {
    let (upstream, origin) = scripted(|_, call| ([("cache-tag", "t")], format!("answer {call}")).into_response()).await;
    let group = Group::start(2, &upstream, &["--expire", "600", "--stale", "600", "--beta", "0"]);
    let (browser, admin) = (Browser::http1(), group.gateways[1].admin.unwrap());
    assert_eq!(browser.get(&group.url(0, "/page")).await.body, "answer 1");
    let purged = browser.post(&format!("http://{admin}/purge?tag=t&soft=true")).await;
    assert_eq!((purged.status, purged.body.as_str()), (StatusCode::OK, "purged\n"));
    let stale = browser.get(&group.url(0, "/page")).await;
    assert_eq!(stale.body, "answer 1");
    assert!(stale.header("cache-status").starts_with("floodgate; hit; ttl=-"), "{stale:?}");
    group.until(0, "stored", 2).await;
    assert_eq!((browser.get(&group.url(1, "/page")).await.body.as_str(), origin.calls()), ("answer 2", 2));
}
