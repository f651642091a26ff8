//! Answers that have ended, as a bridge over a slow or failing service.

use crate::origin::*;
use http::StatusCode;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tower::Layer;
use tower_floodgate::{Cache, StampedeCacheLayer};

const HOUR: Duration = Duration::from_secs(3600);

fn short(cache: &Cache) -> StampedeCacheLayer {
    StampedeCacheLayer::new(cache.scope("pages"), 10 * SECOND).beta(0.0)
}

/// Passes time until what is stored has ended.
async fn end() {
    tokio::time::advance(10 * SECOND).await;
}

/// An origin that fails when told to.
fn failing() -> (Origin, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let told = fails.clone();
    let origin = Origin::new(move |_, call| match told.load(SeqCst) {
        true => respond(503, &[], full("down")),
        false => ok(&[], call.to_string()),
    });
    (origin, fails)
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_ended_is_served_at_once_while_one_refreshes_it() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = short(&cache).stale_while_revalidate(MINUTE).layer(origin.clone());
    origin.release(1);
    ask(&app, get("/")).await;
    end().await;
    tokio::time::advance(Duration::from_millis(500)).await;
    for _ in 0..10 {
        let reply = ask(&app, get("/")).await;
        assert_eq!((reply.text(), reply.told(), reply.header("age")), ("1", "hit; ttl=-1", "10"));
    }
    settle().await;
    assert_eq!((origin.calls(), cache.stats().refreshed, cache.stats().stale), (2, 1, 10));
    origin.release(1);
    until(|| cache.stats().stored == 2).await;
    let reply = ask(&app, get("/")).await;
    assert_eq!((reply.text(), reply.is_hit()), ("2", true));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_served_past_its_grace() {
    let (cache, origin) = (cache(), Origin::counting());
    let app = short(&cache).stale_while_revalidate(MINUTE).stale_if_error(MINUTE).layer(origin.clone());
    ask(&app, get("/")).await;
    tokio::time::advance(10 * SECOND + MINUTE).await;
    assert_eq!(ask(&app, get("/")).await.text(), "2");
}

#[tokio::test(start_paused = true)]
async fn a_failing_service_is_bridged_and_asked_ever_more_rarely() {
    let cache = cache();
    let (origin, fails) = failing();
    let app = short(&cache).stale_if_error(HOUR).layer(origin.clone());
    ask(&app, get("/")).await;
    fails.store(true, SeqCst);
    end().await;
    let first = ask(&app, get("/")).await;
    assert_eq!((first.status, first.text(), first.told()), (200, "1", "fwd=stale; ttl=0; detail=bridged"));
    for second in 0..600 {
        let reply = ask(&app, get("/")).await;
        assert_eq!((reply.status, reply.text()), (200, "1"), "{second} s");
        tokio::time::advance(SECOND).await;
    }
    let asked = origin.calls() - 1;
    assert!((20..30).contains(&asked), "asked {asked} times in ten minutes: 5 at first, then each half a minute");

    fails.store(false, SeqCst);
    tokio::time::advance(30 * SECOND).await;
    let back = ask(&app, get("/")).await;
    assert_eq!((back.text(), back.is_stored()), (&*(asked + 2).to_string(), true));

    // The next outage begins anew.
    fails.store(true, SeqCst);
    end().await;
    ask(&app, get("/")).await;
    tokio::time::advance(SECOND).await;
    let before = origin.calls();
    ask(&app, get("/")).await;
    assert_eq!(origin.calls(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn the_bridge_ends_in_time() {
    let cache = cache();
    let (origin, fails) = failing();
    let app = short(&cache).stale_if_error(MINUTE).layer(origin.clone());
    ask(&app, get("/")).await;
    fails.store(true, SeqCst);
    end().await;
    for _ in 0..60 {
        assert_eq!(ask(&app, get("/")).await.status, 200);
        tokio::time::advance(SECOND).await;
    }
    assert_eq!(ask(&app, get("/")).await.status, 503);
}

#[tokio::test(start_paused = true)]
async fn errors_panics_and_bodies_that_break_off_are_bridged() {
    let cache = cache();
    let origin = Origin::held(|_, call| match call {
        1 => ok(&[], "1"),
        2 => Err(Boom(2)),
        3 => panic!("the service panics"),
        4 => respond(200, &[], frames(vec![Err("cut off".into())])),
        5 => respond(200, &[("content-length", "9")], frames(vec![Ok(hyper::body::Frame::data("short".into()))])),
        _ => respond(429, &[], empty()),
    });
    let app = short(&cache).stale_if_error(HOUR).layer(origin.clone());
    origin.release(1);
    ask(&app, get("/")).await;
    end().await;
    for call in 2..=6 {
        let all: Vec<_> = (0..5).map(|_| waiting(&app, get("/"))).collect();
        origin.release(1);
        for one in all {
            let reply = one.await.unwrap();
            assert_eq!((reply.text(), reply.status), ("1", 200), "call {call}");
        }
        assert_eq!(origin.calls(), call);
        tokio::time::advance(30 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_service_is_bridged_and_finishes_in_the_background() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = short(&cache).stale_if_error(MINUTE).soft_timeout(SECOND).layer(origin.clone());
    origin.release(1);
    ask(&app, get("/")).await;
    end().await;
    let all: Vec<_> = (0..5).map(|_| waiting(&app, get("/"))).collect();
    let began = tokio::time::Instant::now();
    for one in all {
        let reply = one.await.unwrap();
        assert_eq!((reply.text(), reply.told()), ("1", "fwd=stale; ttl=-1; detail=bridged"));
    }
    assert!(began.elapsed() < 2 * SECOND, "{:?}", began.elapsed());
    assert_eq!((origin.calls(), origin.running()), (2, 1));
    origin.release(1);
    until(|| cache.stats().stored == 2).await;
    assert_eq!(ask(&app, get("/")).await.text(), "2");
}

#[tokio::test(start_paused = true)]
async fn without_a_bridge_a_slow_service_is_waited_for_up_to_the_hard_timeout() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = short(&cache).soft_timeout(SECOND).hard_timeout(5 * SECOND).stale_if_error(MINUTE).layer(origin.clone());
    let began = tokio::time::Instant::now();
    let all: Vec<_> = (0..3).map(|_| waiting(&app, get("/"))).collect();
    let mut statuses = Vec::new();
    for one in all {
        let reply = one.await.unwrap();
        assert_eq!(reply.reason(), "timeout");
        statuses.push(reply.status);
    }
    assert_eq!(statuses, [504; 3]);
    assert!((5 * SECOND..16 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(origin.running(), 0, "given up");

    origin.release(1);
    ask(&app, get("/")).await;
    end().await;
    let calls = origin.calls();
    let reply = ask(&app, get("/")).await;
    assert_eq!((reply.status, reply.text()), (200, "4"), "bridged, after the soft timeout");
    assert_eq!(origin.calls(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_bridged() {
    for control in ["must-revalidate", "proxy-revalidate", "s-maxage=10"] {
        let cache = cache();
        let fails = Arc::new(AtomicUsize::new(0));
        let calls = fails.clone();
        let origin = Origin::new(move |_, _| match calls.fetch_add(1, SeqCst) {
            0 => ok(&[("cache-control", control)], "1"),
            _ => respond(500, &[], empty()),
        });
        let app = short(&cache).stale_if_error(HOUR).stale_while_revalidate(HOUR).layer(origin.clone());
        ask(&app, get("/")).await;
        end().await;
        assert_eq!(ask(&app, get("/")).await.status, StatusCode::INTERNAL_SERVER_ERROR, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_response_says_itself_is_honoured() {
    let cache = cache();
    let (origin, _) = failing();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let origin_of = |control: &'static str| {
        let counted = counted.clone();
        Origin::new(move |_, _| match counted.fetch_add(1, SeqCst) {
            0 => ok(&[("cache-control", control)], "1"),
            _ => respond(500, &[], empty()),
        })
    };
    drop(origin);
    let app = short(&cache).layer(origin_of("max-age=10, stale-if-error=60"));
    ask(&app, get("/a")).await;
    end().await;
    tokio::time::advance(59 * SECOND).await;
    assert_eq!(ask(&app, get("/a")).await.status, 200);
    tokio::time::advance(SECOND).await;
    assert_eq!(ask(&app, get("/a")).await.status, 500);

    calls.store(0, SeqCst);
    let app = short(&cache).stale_while_revalidate(HOUR).layer(origin_of("max-age=10, stale-while-revalidate=0"));
    ask(&app, get("/b")).await;
    end().await;
    assert_eq!(ask(&app, get("/b")).await.status, 500, "it wants none of the layer's grace");

    calls.store(0, SeqCst);
    let app = short(&cache).layer(origin_of("s-maxage=10, stale-while-revalidate=60"));
    ask(&app, get("/c")).await;
    end().await;
    assert_eq!(ask(&app, get("/c")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn who_says_who_it_is_gets_a_stale_answer_only_where_that_is_for_everyone() {
    let cache = cache();
    let (public, private) = ([("cache-control", "public")], [("x", "y")]);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let origin = Origin::new(move |parts, _| match (counted.fetch_add(1, SeqCst) % 2, parts.uri.path()) {
        (0, "/public") => ok(&public, "everyone's"),
        (0, _) => ok(&private, "the anonymous one's"),
        _ => respond(500, &[], empty()),
    });
    let app = short(&cache).stale_if_error(HOUR).stale_while_revalidate(HOUR).layer(origin.clone());
    for (path, status) in [("/public", 200), ("/anonymous", 500)] {
        ask(&app, get(path)).await;
        end().await;
        let reply = ask(&app, with(path, &[("authorization", "ada")])).await;
        assert_eq!(reply.status, status, "{path}");
        assert!(reply.text() != "the anonymous one's");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_may_no_longer_be_kept_ends_the_bridge() {
    let (cache, origin) = (
        cache(),
        Origin::held(|_, call| match call {
            1 => ok(&[], "1"),
            _ => ok(&[("cache-control", "no-store")], call.to_string()),
        }),
    );
    let app = short(&cache).stale_while_revalidate(HOUR).layer(origin.clone());
    origin.release(10);
    ask(&app, get("/")).await;
    end().await;
    assert_eq!(ask(&app, get("/")).await.text(), "1", "while it is refreshed");
    until(|| cache.stats().not_stored == 1).await;
    settle().await;
    assert_eq!(ask(&app, get("/")).await.text(), "3", "the service's own word is known by now");
    tokio::time::advance(6 * SECOND).await;
    assert_eq!(ask(&app, get("/")).await.text(), "4", "and for good");
}
