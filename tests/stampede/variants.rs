//! `Vary`: variants side by side.

use crate::origin::*;
use http::request::Parts;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use tower::Layer;

fn field(parts: &Parts, name: &str) -> String {
    parts.headers.get(name).map_or("none", |value| value.to_str().unwrap()).to_owned()
}

/// Answers in the language asked for.
fn linguist(parts: &Parts, call: usize) -> Outcome {
    ok(&[("vary", "Accept-Language")], format!("{} {call}", field(parts, "accept-language")))
}

fn lang(lang: &str) -> http::Request<String> {
    with("/", &[("accept-language", lang)])
}

#[tokio::test(start_paused = true)]
async fn variants_are_kept_side_by_side() {
    let (cache, origin) = (cache(), Origin::new(linguist));
    let app = app(&cache, &origin);
    for (at, one) in ["en", "de", "fr"].into_iter().enumerate() {
        let reply = ask(&app, lang(one)).await;
        assert_eq!((reply.text(), reply.is_stored()), (&*format!("{one} {}", at + 1), true));
    }
    let none = ask(&app, get("/")).await;
    assert_eq!(none.text(), "none 4");
    for (at, one) in ["en", "de", "fr"].into_iter().enumerate().rev() {
        let reply = ask(&app, lang(one)).await;
        assert_eq!((reply.text(), reply.is_hit()), (&*format!("{one} {}", at + 1), true));
    }
    assert_eq!(ask(&app, get("/")).await.text(), "none 4");
    assert_eq!(ask(&app, lang("")).await.text(), " 5", "an empty field is not an absent one");
    assert_eq!(cache.stats().entries, 5);
}

#[tokio::test(start_paused = true)]
async fn cold_requests_of_different_variants_are_one_call_each() {
    let (cache, origin) = (cache(), Origin::held(linguist));
    let app = app(&cache, &origin);
    let mut requests: Vec<_> = (0..30).map(|at| (at, waiting(&app, lang(["en", "de", "fr"][at % 3])))).collect();
    assert_eq!(origin.calls(), 1, "nobody knows yet that it varies");
    origin.release(1);
    until(|| origin.running() == 0 && cache.stats().stored == 1).await;
    settle().await;
    requests.retain_mut(|(_, request)| poll(request).is_pending());
    assert_eq!(origin.calls(), 3);
    assert_eq!(requests.len(), 20, "those of the first variant are served");
    origin.release(2);
    for (at, request) in requests {
        let reply = request.await.unwrap();
        assert!(reply.text().starts_with(["en", "de", "fr"][at % 3]));
    }
    assert_eq!(origin.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_it_varies_by_may_change() {
    let phase = Arc::new(AtomicUsize::new(0));
    let told = phase.clone();
    let origin = Origin::new(move |parts, call| {
        let (a, b) = (field(parts, "x-a"), field(parts, "x-b"));
        match told.load(SeqCst) {
            0 => ok(&[("vary", "x-a")], format!("a={a} {call}")),
            1 => ok(&[("vary", "x-b")], format!("b={b} {call}")),
            2 => ok(&[("vary", "x-a, X-B"), ("vary", "x-a")], format!("a={a} b={b} {call}")),
            _ => ok(&[], format!("plain {call}")),
        }
    });
    let cache = cache();
    let app = app(&cache, &origin);
    let request = |a, b| with("/", &[("x-a", a), ("x-b", b)]);
    let all = [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")];
    for now in 0..4 {
        phase.store(now, SeqCst);
        tokio::time::advance(MINUTE).await;
        for round in 0..3 {
            for (a, b) in all {
                let reply = ask(&app, request(a, b)).await;
                let expected = match now {
                    0 => format!("a={a} "),
                    1 => format!("b={b} "),
                    2 => format!("a={a} b={b} "),
                    _ => "plain ".to_owned(),
                };
                assert!(reply.text().starts_with(&expected), "{now} {round}: {}", reply.text());
                assert!(round < 2 || reply.is_hit(), "{now}: settled by then");
            }
        }
    }
}

/// Without waiting for the old ones to end.
#[tokio::test(start_paused = true)]
async fn what_it_varies_by_may_change_from_one_to_the_next() {
    let origin = Origin::new(|parts, call| {
        let (a, b) = (field(parts, "x-a"), field(parts, "x-b"));
        let vary = [("vary", ["x-a", "x-b", "x-a, x-b"][call % 3])];
        ok(&vary, format!("a={a} b={b}"))
    });
    let cache = cache();
    let app = app(&cache, &origin);
    for at in 0..200usize {
        let (a, b) = ((at * 7 % 5).to_string(), (at * 3 % 4).to_string());
        let reply = ask(&app, with("/", &[("x-a", &a), ("x-b", &b)])).await;
        // Each answer is one that its own Vary allows.
        let vary = reply.header("vary");
        assert!(!vary.contains("x-a") || reply.text().contains(&format!("a={a}")), "{at} {vary} {}", reply.text());
        assert!(!vary.contains("x-b") || reply.text().contains(&format!("b={b}")), "{at} {vary} {}", reply.text());
    }
}

#[tokio::test(start_paused = true)]
async fn removing_a_name_drops_all_its_variants() {
    for shards in [1, 4] {
        let cache = tower_floodgate::Cache::builder_temporary().state_size(1 << 20).shards(shards).open().unwrap();
        let origin = Origin::new(linguist);
        let app = app(&cache, &origin);
        for one in ["en", "de", "fr"] {
            ask(&app, lang(one)).await;
        }
        ask(&app, get("/other")).await;
        layer(&cache).remove(&get("/")).await.unwrap();
        for (one, call) in [("fr", 5), ("de", 6), ("en", 7)] {
            assert_eq!(ask(&app, lang(one)).await.text(), format!("{one} {call}"));
        }
        assert_eq!(ask(&app, get("/other")).await.text(), "none 4", "others stay");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_told_to_be_stored_is() {
    let origin = Origin::new(|parts, call| {
        let user = parts.headers.contains_key("authorization");
        ok(&[("cache-control", "public"), ("vary", "accept-language")], format!("{user} {call}"))
    });
    let cache = cache();
    let app = app(&cache, &origin);
    let request = || with("/", &[("authorization", "Basic YWRh"), ("accept-language", "en")]);
    for _ in 0..2 {
        let first = ask(&app, request()).await;
        settle().await;
        let second = ask(&app, request()).await;
        assert_eq!(first.is_stored() || first.is_hit(), second.is_hit(), "{first:?} {second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_name_may_vary_as_well() {
    let (cache, origin) = (cache(), Origin::new(|parts, _| ok(&[], field(parts, "accept"))));
    let app = layer(&cache).typed().vary(["x-team"]).ignore(["utm_*"]).layer(origin.clone());
    let request = |query: &str, accept, team| with(&format!("/{query}"), &[("accept", accept), ("x-team", team)]);
    assert_eq!(ask(&app, request("", "text/html", "1")).await.text(), "text/html");
    assert_eq!(ask(&app, request("?utm_source=x", "text/html", "1")).await.text(), "text/html");
    assert_eq!(origin.calls(), 1);
    assert_eq!(ask(&app, request("", "text/plain", "1")).await.text(), "text/plain");
    ask(&app, request("", "text/plain", "2")).await;
    assert_eq!(origin.calls(), 3);
}

/// What a response varies by comes from requests.
#[tokio::test(start_paused = true)]
async fn a_name_has_a_bounded_number_of_variants() {
    let (cache, origin) = (cache(), Origin::new(linguist));
    let app = app(&cache, &origin);
    for one in 0..100 {
        ask(&app, with("/", &[("accept-language", &one.to_string())])).await;
        ask(&app, lang(["a", "b", "c", "d"][one % 4])).await;
    }
    assert!(cache.stats().entries <= 33, "{}", cache.stats().entries);
    assert_eq!(origin.calls(), 104, "those that are asked for stay");
}
