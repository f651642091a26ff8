//! Early refreshes by XFetch.

use crate::origin::*;
use std::time::Duration;
use tower::{Layer, ServiceExt};
use tower_floodgate::{Cache, name::Target};

/// Eager enough that any draw refreshes what took a while.
const ALWAYS: f64 = 1e12;

fn eager(cache: &Cache, origin: &Origin) -> App<Target> {
    layer(cache).beta(ALWAYS).layer(origin.clone())
}

/// An answer in the cache that took a second by the cache's clock.
async fn warm(app: &App, origin: &Origin) {
    let first = waiting(app, get("/"));
    settle().await;
    tokio::time::advance(SECOND).await;
    origin.release(1);
    assert_eq!(first.await.unwrap().text(), "1");
}

#[tokio::test(start_paused = true)]
async fn one_hit_refreshes_while_all_are_served() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = eager(&cache, &origin);
    warm(&app, &origin).await;
    for _ in 0..10 {
        let hit = ask(&app, get("/")).await;
        assert_eq!((hit.text(), hit.is_hit()), ("1", true), "served what is stored, at once");
    }
    assert_eq!((origin.calls(), cache.stats().refreshed), (2, 1), "refreshed once");
    tokio::time::advance(10 * SECOND).await;
    origin.release(1);
    until(|| cache.stats().stored == 2).await;
    let hit = ask(&app, get("/")).await;
    assert_eq!((hit.text(), hit.header("age"), hit.told()), ("2", "0", "hit; ttl=60"));
    assert_eq!(origin.calls(), 3, "and then the next");
}

#[tokio::test(start_paused = true)]
async fn without_beta_or_cost_nothing_is_refreshed() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let never = app(&cache, &origin);
    warm(&never, &origin).await;
    tokio::time::advance(Duration::from_millis(59_999)).await;
    for _ in 0..100 {
        assert!(ask(&never, get("/")).await.is_hit());
    }
    let free = Origin::counting();
    let eager = layer(&cache).beta(ALWAYS).ignore(["x"]).layer(free.clone());
    ask(&eager, get("/free")).await;
    for _ in 0..100 {
        assert!(ask(&eager, get("/free")).await.is_hit());
    }
    assert_eq!((origin.calls(), free.calls()), (1, 1), "what took no time by the cache's clock is not worth it");
}

#[tokio::test(start_paused = true)]
async fn the_chance_follows_the_cost() {
    // With a cost of 1 s and 10 s left the chance is exp(-10), at 1 ms left it is 0.999.
    let cache = cache();
    let origin = Origin::slow(SECOND, |_, call| ok(&[], call.to_string()));
    let app = layer(&cache).beta(1.0).layer(origin.clone());
    ask(&app, get("/")).await;
    tokio::time::advance(30 * SECOND).await;
    for _ in 0..100 {
        assert!(ask(&app, get("/")).await.is_hit());
    }
    assert_eq!(origin.calls(), 1, "a chance of 1e-11");
    tokio::time::advance(Duration::from_millis(29_999)).await;
    for _ in 0..10 {
        assert!(ask(&app, get("/")).await.is_hit());
    }
    assert_eq!(origin.calls(), 2, "the chance of none is 1e-30");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_leaves_what_is_stored() {
    let cache = cache();
    let origin = Origin::held(|_, call| match call {
        1 => ok(&[], "1"),
        2 => Err(Boom(2)),
        3 => respond(500, &[], full("broken")),
        4 => panic!("while refreshing"),
        _ => ok(&[("set-cookie", "a=b")], call.to_string()),
    });
    let app = eager(&cache, &origin);
    warm(&app, &origin).await;
    for call in 2..=5 {
        assert_eq!(ask(&app, get("/")).await.text(), "1");
        assert_eq!(origin.calls(), call);
        origin.release(1);
        until(|| origin.running() == 0).await;
        settle().await;
        // After a failure it is left alone for a second, then two, then four.
        tokio::time::advance(4 * SECOND).await;
    }
    for _ in 0..10 {
        assert_eq!(ask(&app, get("/")).await.text(), "1");
    }
    assert_eq!(origin.calls(), 5, "what may not be kept is not tried again with every hit");
    tokio::time::advance(5 * SECOND).await;
    assert_eq!(ask(&app, get("/")).await.text(), "1");
    assert_eq!(origin.calls(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_followed_when_the_answer_ends_before_it() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = eager(&cache, &origin);
    warm(&app, &origin).await;
    tokio::time::advance(30 * SECOND).await;
    assert!(ask(&app, get("/")).await.is_hit());
    tokio::time::advance(30 * SECOND).await;
    let late = waiting(&app, get("/"));
    assert_eq!(origin.calls(), 2);
    origin.release(1);
    let late = late.await.unwrap();
    assert_eq!((late.text(), late.is_collapsed()), ("2", true));
}

#[tokio::test(start_paused = true)]
async fn who_says_who_it_is_refreshes_nothing() {
    let public = [("cache-control", "public")];
    let cache = cache();
    let origin = Origin::held(move |_, call| ok(&public, call.to_string()));
    let app = eager(&cache, &origin);
    warm(&app, &origin).await;
    for _ in 0..3 {
        let hit = ask(&app, with("/", &[("cookie", "session=ada")])).await;
        assert_eq!((hit.text(), hit.is_hit()), ("1", true));
    }
    assert_eq!(origin.calls(), 1, "what came back might be for this one only");
    ask(&app, get("/")).await;
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_variant_is_refreshed_in_its_place() {
    let cache = cache();
    let origin = Origin::slow(SECOND, |parts, call| {
        let lang = parts.headers["accept-language"].to_str().unwrap();
        ok(&[("vary", "accept-language")], format!("{lang} {call}"))
    });
    let lazy = app(&cache, &origin);
    let lang = |lang| with("/", &[("accept-language", lang)]);
    for (at, one) in ["en", "de"].into_iter().enumerate() {
        assert_eq!(ask(&lazy, lang(one)).await.text(), format!("{one} {}", at + 1));
    }
    let eager = eager(&cache, &origin);
    assert_eq!(ask(&eager, lang("de")).await.text(), "de 2");
    tokio::time::sleep(2 * SECOND).await;
    until(|| cache.stats().stored == 3).await;
    assert_eq!(ask(&lazy, lang("de")).await.text(), "de 3");
    assert_eq!(ask(&lazy, lang("en")).await.text(), "en 1");
}

#[tokio::test(start_paused = true)]
async fn the_request_that_refreshes_asks_for_everyone() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = eager(&cache, &origin);
    warm(&app, &origin).await;
    let hit = app.clone().oneshot(with("/", &[("if-none-match", "\"1\""), ("x-own", "1")])).await.unwrap();
    assert_eq!(hit.status(), 200);
    assert!(!origin.asked(2).contains_key("if-none-match") && origin.asked(2).contains_key("x-own"));
}
