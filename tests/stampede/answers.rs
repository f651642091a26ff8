//! Misses, hits, lives, and what of a response survives.

use crate::origin::*;
use http::{Method, Request};
use hyper::body::{Bytes, Frame};
use std::time::Duration;
use tower::Layer;
use tower_floodgate::{
    Cache, StampedeCacheLayer,
    stampede::CacheStatus,
    time::{Clock, Steady},
};

async fn advance(seconds: f64) {
    tokio::time::advance(Duration::from_secs_f64(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_stored_then_hit_then_ends() {
    let (cache, origin) = (cache(), Origin::counting());
    let app = app(&cache, &origin);

    let first = ask(&app, get("/a")).await;
    assert_eq!((first.text(), first.told(), first.header("age")), ("1", "fwd=miss; stored; ttl=60", ""));
    assert!(matches!(first.did, CacheStatus::Stored { ttl, .. } if ttl == MINUTE));

    for (after, ttl, age) in [(0.0, 60, 0), (7.0, 53, 7), (0.5, 52, 7), (52.4, 0, 59)] {
        advance(after).await;
        let hit = ask(&app, get("/a")).await;
        assert_eq!((hit.text(), hit.told()), ("1", &*format!("hit; ttl={ttl}")));
        assert_eq!(hit.header("age"), age.to_string());
        assert!(matches!(hit.did, CacheStatus::Hit { ttl: left, .. } if left.as_secs() == ttl));
    }
    advance(0.1).await;
    let again = ask(&app, get("/a")).await;
    assert_eq!((again.text(), again.told()), ("2", "fwd=miss; stored; ttl=60"));

    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored, stats.failures), (4, 2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_response_names_its_life() {
    let clock = Steady::new();
    let date = |after: u64| httpdate_of(clock.wall() + Duration::from_secs(after));
    let (expires, born) = (date(40), date(10));
    let cases: &[(&[(&str, &str)], u64, u64)] = &[
        (&[], 60, 0),
        (&[("cache-control", "max-age=10, s-maxage=20")], 20, 0),
        (&[("cache-control", "max-age=10")], 10, 0),
        (&[("expires", &expires), ("date", &born)], 30, 0),
        (&[("cache-control", "max-age=10"), ("age", "4")], 6, 4),
    ];
    for (lines, ttl, age) in cases {
        let map = headers(lines);
        let origin = Origin::new(move |_, call| {
            let mut response = ok(&[], call.to_string())?;
            *response.headers_mut() = map.clone();
            Ok(response)
        });
        let cache = cache();
        let app = app(&cache, &origin);
        assert_eq!(ask(&app, get("/")).await.told(), format!("fwd=miss; stored; ttl={ttl}"), "{lines:?}");
        advance(2.0).await;
        let hit = ask(&app, get("/")).await;
        assert_eq!(hit.told(), format!("hit; ttl={}", ttl - 2), "{lines:?}");
        assert_eq!(hit.header("age"), (age + 2).to_string(), "{lines:?}");
        advance((ttl - 2) as f64).await;
        assert_eq!(ask(&app, get("/")).await.text(), "2", "{lines:?}");
    }
}

fn httpdate_of(time: std::time::SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

#[tokio::test(start_paused = true)]
async fn without_a_life_of_the_layers_only_what_the_response_allows_is_kept() {
    let cache = cache();
    let origin = Origin::new(|parts, call| match parts.uri.path() {
        "/named" => ok(&[("cache-control", "max-age=5")], call.to_string()),
        _ => ok(&[], call.to_string()),
    });
    let app = StampedeCacheLayer::new(cache.scope("pages"), Duration::ZERO).layer(origin);
    for call in ["1", "2"] {
        let reply = ask(&app, get("/")).await;
        assert_eq!((reply.text(), reply.reason()), (call, "no-freshness"));
    }
    for _ in 0..2 {
        assert_eq!(ask(&app, get("/named")).await.text(), "3");
    }
}

#[tokio::test(start_paused = true)]
async fn the_whole_response_survives() {
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let sent = bytes.clone();
    let origin = Origin::new(move |_, _| {
        let trailers = headers(&[("x-sum", "1"), ("x-sum", "2")]);
        let body = frames(vec![
            Ok(Frame::data(Bytes::copy_from_slice(&sent[..1]))),
            Ok(Frame::data(Bytes::new())),
            Ok(Frame::data(Bytes::copy_from_slice(&sent[1..]))),
            Ok(Frame::trailers(trailers)),
        ]);
        let mut response = respond(
            203,
            &[
                ("content-type", "application/octet-stream"),
                ("link", "<a>"),
                ("x-empty", ""),
                ("link", "<b>"),
                ("etag", "\"x\""),
            ],
            body,
        )?;
        response.headers_mut().insert("x-bytes", http::HeaderValue::from_bytes(b"\xff\x80\t~").unwrap());
        Ok(response)
    });
    let cache = cache();
    let app = app(&cache, &origin);
    for expected in ["fwd=miss; stored; ttl=60", "hit; ttl=60"] {
        let mut reply = ask(&app, get("/")).await;
        assert_eq!((reply.status, reply.told()), (203, expected));
        assert!(reply.body == bytes);
        assert_eq!(reply.trailers, Some(headers(&[("x-sum", "1"), ("x-sum", "2")])));
        let links: Vec<_> = reply.headers.get_all("link").iter().collect();
        assert_eq!(links, ["<a>", "<b>"]);
        assert_eq!(reply.headers.get("x-bytes").unwrap().as_bytes(), b"\xff\x80\t~");
        assert_eq!(reply.headers.remove("x-empty").unwrap(), "");
        assert_eq!((reply.header("etag"), reply.header("content-type")), ("\"x\"", "application/octet-stream"));
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn bodies_without_data_are_kept_too() {
    let cache = cache();
    let origin = Origin::new(|parts, _| match parts.uri.path() {
        "/none" => respond(204, &[], empty()),
        "/head" => respond(200, &[("content-length", "5000000")], empty()),
        _ => respond(200, &[], frames(vec![Ok(Frame::trailers(headers(&[("x-sum", "1")])))])),
    });
    let app = app(&cache, &origin);
    let head = || Request::builder().method(Method::HEAD).uri("/head").body(String::new()).unwrap();
    for expected in ["stored", "hit"] {
        let none = ask(&app, get("/none")).await;
        assert_eq!((none.status, none.text(), none.trailers.is_none()), (204, "", true));
        let trailers = ask(&app, get("/trailers")).await;
        assert_eq!((trailers.text(), trailers.trailers.is_some()), ("", true));
        let head = ask(&app, head()).await;
        assert_eq!((head.text(), head.header("content-length")), ("", "5000000"));
        for reply in [none, trailers, head] {
            assert!(reply.told().contains(expected), "{reply:?}");
        }
    }
    assert!(ask(&app, get("/head")).await.is_stored(), "a HEAD's answer is none to a GET");
    assert_eq!(origin.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_name_of_ones_own_mixes_no_methods() {
    let cache = cache();
    let origin = Origin::new(|parts, call| match parts.method {
        Method::HEAD => respond(200, &[], empty()),
        _ => ok(&[], call.to_string()),
    });
    let app = layer(&cache).name(|request: &Request<String>| request.uri().path().to_owned()).layer(origin.clone());
    let by = |method: Method| Request::builder().method(method).uri("/").body(String::new()).unwrap();
    assert_eq!(ask(&app, get("/")).await.text(), "1");
    for (method, call) in [(Method::POST, "2"), (Method::DELETE, "3"), (Method::OPTIONS, "4")] {
        let reply = ask(&app, by(method.clone())).await;
        assert_eq!((reply.text(), reply.told()), (call, "fwd=bypass"), "{method}");
    }
    assert_eq!(ask(&app, get("/")).await.text(), "1");
    cache.clear().await.unwrap();
    assert_eq!(ask(&app, by(Method::HEAD)).await.text(), "");
    assert_eq!(ask(&app, get("/")).await.text(), "6", "a HEAD's answer is none to a GET");
    assert_eq!(ask(&app, by(Method::HEAD)).await.text(), "");
}

#[tokio::test(start_paused = true)]
async fn answers_survive_their_handle_and_are_shared_by_all() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Cache::builder(directory.path()).state_size(1 << 20).clock(Steady::new()).open().unwrap();
    let origin = Origin::counting();

    let (one, two) = (open(), open());
    assert_eq!(ask(&app(&one, &origin), get("/")).await.text(), "1");
    assert!(ask(&app(&two, &origin), get("/")).await.is_hit());
    let other = StampedeCacheLayer::new(two.scope("others"), MINUTE).layer(origin.clone());
    assert_eq!(ask(&other, get("/")).await.text(), "2", "scopes share nothing");
    drop((one, two, other));

    let again = open();
    let hit = ask(&app(&again, &origin), get("/")).await;
    assert_eq!((hit.text(), hit.is_hit()), ("1", true));
}

#[tokio::test(start_paused = true)]
async fn what_other_caches_said_stands_before_what_this_one_says() {
    let cache = cache();
    let app = app(&cache, &Origin::new(|_, _| ok(&[("cache-status", "edge; hit")], "x")));
    let first = ask(&app, get("/")).await;
    let lines: Vec<_> = first.headers.get_all("cache-status").iter().collect();
    assert_eq!(lines, ["edge; hit", "floodgate; fwd=miss; stored; ttl=60"]);
    let hit = ask(&app, get("/")).await;
    let lines: Vec<_> = hit.headers.get_all("cache-status").iter().collect();
    assert_eq!(lines, ["floodgate; hit; ttl=60"]);
}

#[tokio::test(start_paused = true)]
async fn a_conditional_request_fetches_for_everyone() {
    let cache = cache();
    let origin = Origin::new(|parts, call| match parts.headers.contains_key("if-none-match") {
        true => respond(304, &[], empty()),
        false => ok(&[("etag", "\"1\"")], call.to_string()),
    });
    let app = app(&cache, &origin);
    let conditions = [("if-none-match", "\"1\""), ("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let first = ask(&app, with("/", &conditions)).await;
    assert_eq!((first.status, first.text()), (200, "1"));
    assert!(!origin.asked(1).contains_key("if-none-match") && !origin.asked(1).contains_key("if-modified-since"));
    assert!(ask(&app, get("/")).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn some_requests_pass_by() {
    let cache = cache();
    let origin = Origin::counting();
    let app = app(&cache, &origin);
    assert!(ask(&app, get("/")).await.is_stored());
    let mut with_body = get("/");
    *with_body.body_mut() = "x".into();
    let mut post = get("/");
    *post.method_mut() = Method::POST;
    let mut requests = vec![with_body, post];
    for line in [
        ("range", "bytes=0-1"),
        ("if-range", "\"1\""),
        ("if-match", "\"1\""),
        ("upgrade", "websocket"),
        ("cache-control", "no-store"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
    ] {
        requests.push(with("/", &[line, ("if-none-match", "\"1\"")]));
    }
    for (at, request) in requests.into_iter().enumerate() {
        let shown = format!("{request:?}");
        let conditional = request.headers().contains_key("if-none-match");
        let reply = ask(&app, request).await;
        assert_eq!((reply.text(), reply.told()), (&*(at + 2).to_string(), "fwd=bypass"), "{shown}");
        assert_eq!(reply.did, CacheStatus::Bypassed);
        assert_eq!(origin.asked(at + 2).contains_key("if-none-match"), conditional, "untouched: {shown}");
    }
    for line in ["no-cache", "max-age=0"] {
        assert!(ask(&app, with("/", &[("cache-control", line)])).await.is_hit(), "no client can flood the service");
    }
}

/// A thousand reads of one page among random queries, whose answers live longer and fill the cache many times over.
#[tokio::test(start_paused = true)]
async fn a_flood_of_queries_does_not_take_what_is_read() {
    for memory in [0, 1 << 20] {
        let cache = Cache::builder_temporary().size(1 << 20).memory(memory).state_size(1 << 20).patience(MINUTE);
        let cache = cache.clock(Steady::new()).open().unwrap();
        let origin = Origin::new(|parts, call| {
            let life = if parts.uri.query().is_some() { "max-age=3600" } else { "max-age=60" };
            ok(&[("cache-control", life)], format!("{call}{}", "x".repeat(4000)))
        });
        let app = app(&cache, &origin);
        ask(&app, get("/hot")).await;
        let mut hits = 0;
        for query in 0..1000 {
            hits += usize::from(ask(&app, get("/hot")).await.is_hit());
            ask(&app, get(&format!("/page?{query}"))).await;
        }
        assert_eq!((hits, origin.calls()), (1000, 1001), "memory: {memory}");
        assert!(cache.stats().entries_evicted > 700);
    }
}
