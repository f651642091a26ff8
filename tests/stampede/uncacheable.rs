//! Answers that may not be kept: followers go on together, bodies stream through whole.

use crate::origin::*;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Bytes, Frame};
use std::time::Duration;
use tokio::sync::mpsc;
use tower::{BoxError, Layer, ServiceExt};

type Lines = &'static [(&'static str, &'static str)];

const LARGE: usize = (1 << 20) + 1;

fn uncacheable(kind: &str, call: usize) -> Outcome {
    let text = call.to_string();
    match kind {
        "private" => ok(&[("cache-control", "private")], text),
        "no-store" => ok(&[("cache-control", "no-store")], text),
        "set-cookie" => ok(&[("set-cookie", "a=b")], text),
        "vary-any" => ok(&[("vary", "*")], text),
        "failure" => respond(500, &[], full(text)),
        "too-large" => ok(&[], " ".repeat(LARGE) + &text),
        "stream" => ok(&[("content-type", "text/event-stream")], text),
        "grpc-status" => {
            let trailers = headers(&[("grpc-status", "5")]);
            let body = vec![Ok(Frame::data(Bytes::from(text))), Ok(Frame::trailers(trailers))];
            respond(200, &[("content-type", "application/grpc")], frames(body))
        }
        "body-failed" => respond(200, &[], frames(vec![Ok(Frame::data(text.into())), Err("cut off".into())])),
        other => panic!("{other}"),
    }
}

const KINDS: [&str; 9] =
    ["private", "no-store", "set-cookie", "vary-any", "failure", "too-large", "stream", "grpc-status", "body-failed"];

#[tokio::test(start_paused = true)]
async fn followers_of_what_may_not_be_kept_go_on_together() {
    for kind in KINDS {
        let (cache, origin) = (cache(), Origin::held(move |_, call| uncacheable(kind, call)));
        let app = app(&cache, &origin);
        let leader = waiting(&app, get("/"));
        let mut followers: Vec<_> = (0..5).map(|_| waiting(&app, get("/"))).collect();
        assert_eq!(origin.calls(), 1);
        origin.release(1);
        let first = leader.await.unwrap();
        assert_eq!((first.text().trim(), first.reason()), ("1", kind));
        followers.iter_mut().for_each(|follower| assert!(poll(follower).is_pending()));
        assert_eq!(origin.running(), 5, "{kind}: not one by one");
        origin.release(5);
        let mut texts = Vec::new();
        for follower in followers {
            let reply = follower.await.unwrap();
            assert_eq!(reply.reason(), kind);
            assert_eq!(reply.error.is_some(), kind == "body-failed");
            texts.push(reply.text().trim().to_owned());
        }
        texts.sort();
        assert_eq!(texts, ["2", "3", "4", "5", "6"], "{kind}: each has its own answer");

        // Remembered, except for failures: the next stampede does not even begin to queue.
        let next = [0; 3].map(|_| waiting(&app, get("/")));
        let failure = matches!(kind, "failure" | "grpc-status" | "body-failed");
        assert_eq!(origin.running(), if failure { 1 } else { 3 }, "{kind}");
        origin.release(3);
        for request in next {
            request.await.unwrap();
        }
        assert_eq!((cache.stats().entries, cache.stats().stored), (0, 0), "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_kept_is_remembered_for_some_seconds() {
    let cache = cache();
    let origin =
        Origin::held(|_, call| if call <= 2 { ok(&[("cache-control", "no-store")], "x") } else { ok(&[], "y") });
    let app = app(&cache, &origin);
    origin.release(1);
    ask(&app, get("/")).await;
    tokio::time::advance(Duration::from_millis(4_999)).await;
    let [one, two] = [0; 2].map(|_| waiting(&app, get("/")));
    assert_eq!(origin.running(), 2);
    origin.release(2);
    one.await.unwrap();
    two.await.unwrap();
    tokio::time::advance(Duration::from_millis(1)).await;
    until(|| cache.stats().entries == 1).await;
    assert!(ask(&app, get("/")).await.is_hit(), "kept as soon as it may be");
}

#[tokio::test(start_paused = true)]
async fn what_may_be_kept_again_is_one_call_again() {
    let cache = cache();
    let origin = Origin::held(|_, call| match call {
        1 => ok(&[("cache-control", "no-store")], "x"),
        _ => ok(&[("cache-control", "max-age=1")], call.to_string()),
    });
    let app = app(&cache, &origin);
    origin.release(2);
    ask(&app, get("/")).await;
    assert!(ask(&app, get("/")).await.is_stored());
    until(|| cache.stats().entries == 1).await;
    tokio::time::advance(SECOND).await;
    let [one, two] = [0; 2].map(|_| waiting(&app, get("/")));
    assert_eq!(origin.running(), 1);
    origin.release(1);
    assert_eq!((one.await.unwrap().text(), two.await.unwrap().text()), ("3", "3"));
}

/// Bytes without a pattern that a mistake could hide behind.
fn noise(length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[tokio::test(start_paused = true)]
async fn a_large_body_streams_through() {
    let sent = noise(5 << 20);
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, BoxError>>(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let origin = Origin::new(move |_, _| {
        let receiver = receiver.lock().unwrap().take().expect("one call");
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed_unsync();
        respond(200, &[], body)
    });
    let cache = cache();
    let app = app(&cache, &origin);
    // Before a byte of its body is there.
    let response = app.clone().oneshot(get("/")).await.unwrap();
    assert_eq!(response.headers()["cache-status"], "floodgate; fwd=miss; ttl=60; detail=recording");
    // In pieces of odd length, so that the limit falls inside one.
    let mut pieces = sent.chunks(70_001).map(|piece| Ok(Frame::data(sent.slice_ref(piece))));
    let mut ahead = 0;
    while cache.stats().not_stored == 0 {
        if let Ok(permit) = sender.try_reserve() {
            permit.send(pieces.next().unwrap());
            ahead += 70_001;
        }
        tokio::task::yield_now().await;
    }
    sender.try_send(pieces.next().unwrap()).unwrap();
    settle().await;
    assert!(sender.try_reserve().is_err(), "nobody reads any more");
    assert!((1 << 20..=(1 << 20) + 5 * 70_001).contains(&ahead), "no more is read ahead than the limit: {ahead}");

    let mut body = response.into_body();
    assert!(!body.is_end_stream() && body.size_hint().upper().is_none());
    let mut got = body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    assert_eq!(got.len(), 70_001, "the first bytes are there before the last are sent");
    let rest = tokio::spawn(body.collect());
    for piece in pieces {
        sender.send(piece).await.unwrap();
    }
    drop(sender);
    got.extend_from_slice(&rest.await.unwrap().unwrap().to_bytes());
    assert!(got == sent);
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn the_limit_is_to_the_byte() {
    let cache = cache();
    let origin = Origin::new(|parts, _| {
        let length: usize = parts.uri.path()[2..].parse().unwrap();
        let announced = parts.uri.path().starts_with("/a");
        let body = noise(length);
        match announced {
            true => respond(200, &[], Full::new(body).map_err(|never| match never {}).boxed_unsync()),
            false => respond(200, &[], frames(vec![Ok(Frame::data(body))])),
        }
    });
    let app = layer(&cache).body_limit(1000).layer(origin);
    for kind in ["a", "b"] {
        for (length, kept) in [(0, true), (999, true), (1000, true), (1001, false)] {
            let reply = ask(&app, get(&format!("/{kind}{length}"))).await;
            assert_eq!((reply.is_stored(), reply.body == noise(length)), (kept, true), "{kind}{length}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_does_so_for_every_reader() {
    let cache = cache();
    let origin = Origin::held(|_, call| {
        let mut sent: Vec<_> = (0..3).map(|n| Ok(Frame::data(Bytes::from(format!("{call}-{n} "))))).collect();
        sent.push(Err("cut off".into()));
        sent.push(Ok(Frame::data(Bytes::from("never"))));
        respond(200, &[], frames(sent))
    });
    let app = app(&cache, &origin);
    let requests = [0; 4].map(|_| waiting(&app, get("/")));
    origin.release(4);
    for (at, request) in requests.into_iter().enumerate() {
        let reply = request.await.unwrap();
        let call = at + 1;
        assert!(reply.text().starts_with(&format!("{call}-0 {call}-1 {call}-2 ")), "{reply:?}");
        assert_eq!(reply.error.unwrap().to_string(), "cut off");
    }
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn frames_of_next_to_nothing_do_not_pile_up() {
    let cache = cache();
    let origin = Origin::new(|_, _| {
        let endless = std::iter::repeat_with(|| Ok(Frame::data(Bytes::new())));
        respond(200, &[], StreamBody::new(tokio_stream::iter(endless)).boxed_unsync())
    });
    let response = app(&cache, &origin).oneshot(get("/")).await.unwrap();
    until(|| cache.stats().not_stored == 1).await;
    drop(response);
}

#[tokio::test(start_paused = true)]
async fn answers_that_an_eviction_would_miss_are_not_kept() {
    let tags: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let line = tags.join(",");
    let (cache, origin) = (cache(), Origin::new(move |_, _| ok(&[("cache-tag", &line)], "x")));
    let reply = ask(&app(&cache, &origin), get("/")).await;
    assert_eq!(reply.reason(), "too-many-tags");
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn reasons_are_what_is_told() {
    const CASES: [(Lines, &str); 4] = [
        (&[("cache-control", "max-age=x y")], "cache-control-malformed"),
        (&[("pragma", "no-cache")], "pragma-no-cache"),
        (&[("cache-control", "max-age=5"), ("age", "6")], "aged"),
        (&[("expires", "0")], "no-freshness"),
    ];
    for (lines, reason) in CASES {
        let cache = cache();
        let reply = ask(&app(&cache, &Origin::new(|_, _| ok(lines, "x"))), get("/")).await;
        assert_eq!((reply.reason(), reply.told()), (reason, &*format!("fwd=miss; detail={reason}")));
    }
}
