//! Requests that say who is asking, and the ways in which one's answer could reach another.

use crate::origin::*;
use http::{Method, Request};
use hyper::body::{Bytes, Frame};
use tower::Layer;

type Lines = &'static [(&'static str, &'static str)];

const ADA: (&str, &str) = ("authorization", "Basic YWRh");
const BOB: (&str, &str) = ("authorization", "Basic Ym9i");
const COOKIE: (&str, &str) = ("cookie", "session=ada");
const PROXY: (&str, &str) = ("proxy-authorization", "Basic YWRh");
const LONG: (&str, &str) = ("cache-control", "max-age=60");
const PUBLIC: (&str, &str) = ("cache-control", "public, max-age=60");

/// What was asked first, what the answer said, and who must not get it.
const LEAKS: [(&str, Lines, u16, Lines, Lines); 24] = [
    ("authorization, then nobody", &[ADA], 200, &[], &[]),
    ("cookie, then nobody", &[COOKIE], 200, &[], &[]),
    ("proxy-authorization, then nobody", &[PROXY], 200, &[], &[]),
    ("one user, then another", &[ADA], 200, &[LONG], &[BOB]),
    ("one session, then another", &[COOKIE], 200, &[LONG], &[("cookie", "session=bob")]),
    ("the same user", &[ADA], 200, &[LONG], &[ADA]),
    ("an empty cookie", &[("cookie", "")], 200, &[], &[]),
    ("must-revalidate is not public", &[ADA], 200, &[("cache-control", "max-age=60, must-revalidate")], &[]),
    ("public with an argument is none", &[ADA], 200, &[("cache-control", "public=\"x\", max-age=60")], &[]),
    ("nobody, then authorization", &[], 200, &[LONG], &[ADA]),
    ("nobody, then cookie", &[], 200, &[LONG], &[COOKIE]),
    ("nobody, then proxy-authorization", &[], 200, &[LONG], &[PROXY]),
    ("set-cookie", &[], 200, &[("set-cookie", "session=ada")], &[]),
    ("set-cookie though public", &[], 200, &[PUBLIC, ("set-cookie", "session=ada")], &[]),
    ("private", &[], 200, &[("cache-control", "private")], &[]),
    ("private, by field", &[], 200, &[("cache-control", "max-age=60, private=\"x-user\"")], &[]),
    ("private on a line of its own", &[], 200, &[PUBLIC, ("cache-control", "PRIVATE")], &[]),
    ("no-store", &[], 200, &[("cache-control", "public, no-store")], &[]),
    ("no-cache", &[], 200, &[("cache-control", "public, no-cache=\"set-cookie\"")], &[]),
    ("a request's no-store", &[("cache-control", "no-store")], 200, &[PUBLIC], &[]),
    ("vary by anything", &[], 200, &[PUBLIC, ("vary", "accept, *")], &[]),
    ("a part", &[], 206, &[PUBLIC], &[]),
    ("a refusal of one client", &[], 403, &[PUBLIC], &[]),
    ("vary by the user's header", &[("x-user", "ada")], 200, &[PUBLIC, ("vary", "X-User")], &[("x-user", "bob")]),
];

#[tokio::test(start_paused = true)]
async fn nothing_leaks() {
    for (leak, first, status, response, second) in LEAKS {
        let (cache, origin) = (cache(), Origin::new(move |_, call| respond(status, response, full(call.to_string()))));
        let app = app(&cache, &origin);
        assert_eq!(ask(&app, with("/", first)).await.text(), "1", "{leak}");
        settle().await;
        assert_eq!(ask(&app, with("/", second)).await.text(), "2", "{leak}");
        assert_ne!(ask(&app, with("/", second)).await.text(), "1", "{leak}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_leaks_in_other_ways() {
    let cache = cache();
    let origin = Origin::new(|parts, call| match parts.uri.path() {
        "/trailers" => {
            let trailers = headers(&[("set-cookie", "session=ada")]);
            let body = vec![Ok(Frame::data(Bytes::from(call.to_string()))), Ok(Frame::trailers(trailers))];
            respond(200, &[PUBLIC], frames(body))
        }
        _ => ok(&[PUBLIC], call.to_string()),
    });
    let app = app(&cache, &origin);
    let mut last = 0;
    let mut fresh = |reply: Reply, what: &str| {
        last += 1;
        assert_eq!(reply.text(), last.to_string(), "{what}");
    };
    fresh(ask(&app, get("/trailers")).await, "a cookie in trailers");
    fresh(ask(&app, get("/trailers")).await, "a cookie in trailers");
    fresh(ask(&app, with("/", &[("host", "a")])).await, "hosts");
    fresh(ask(&app, with("/", &[("host", "b")])).await, "hosts");
    fresh(ask(&app, get("http://c/")).await, "hosts");
    fresh(ask(&app, get("https://c/")).await, "schemes");
    fresh(ask(&app, get("/?q=a%26b")).await, "queries");
    fresh(ask(&app, get("/?q=a&b")).await, "queries");
    let body = |text: &str| Request::get("/").body(text.to_owned()).unwrap();
    fresh(ask(&app, body("ada")).await, "bodies");
    fresh(ask(&app, body("bob")).await, "bodies");
    let post = || Request::builder().method(Method::POST).uri("/").body(String::new()).unwrap();
    fresh(ask(&app, post()).await, "methods");
    fresh(ask(&app, post()).await, "methods");

    let by_user = layer(&cache).name(|request: &Request<String>| request.extensions().get::<u32>().copied());
    let by_user = by_user.layer(origin.clone());
    let user = |id: u32| Request::get("/").extension(id).body(String::new()).unwrap();
    fresh(ask(&by_user, user(1)).await, "a name of the user's");
    fresh(ask(&by_user, user(2)).await, "a name of the user's");
    fresh(ask(&by_user, get("/")).await, "no name at all");
    fresh(ask(&by_user, get("/")).await, "no name at all");
}

#[tokio::test(start_paused = true)]
async fn what_is_for_everyone_serves_everyone() {
    for line in ["public", "s-maxage=60", "public, max-age=60"] {
        for first in [&[] as Lines, &[ADA], &[COOKIE], &[PROXY]] {
            let lines = [("cache-control", line)];
            let (cache, origin) = (cache(), Origin::new(move |_, call| ok(&lines, call.to_string())));
            let app = app(&cache, &origin);
            assert!(ask(&app, with("/", first)).await.is_stored(), "{line} {first:?}");
            until(|| cache.stats().entries == 1).await;
            for next in [&[] as Lines, &[ADA], &[BOB], &[COOKIE], &[PROXY]] {
                assert!(ask(&app, with("/", next)).await.is_hit(), "{line} {first:?} {next:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_who_it_is_follows_nobody_and_is_not_followed() {
    let cache = cache();
    let origin = Origin::held(|parts, _| {
        let user = parts.headers.get("authorization").map_or("nobody", |value| value.to_str().unwrap());
        ok(&[], user.to_owned())
    });
    let app = app(&cache, &origin);
    let ada = waiting(&app, with("/", &[ADA]));
    let nobody = waiting(&app, get("/"));
    let bob = waiting(&app, with("/", &[BOB]));
    let follower = waiting(&app, get("/"));
    assert_eq!(origin.calls(), 3);
    origin.release(3);
    for (request, user) in [(follower, "nobody"), (bob, BOB.1), (nobody, "nobody"), (ada, ADA.1)] {
        assert_eq!(request.await.unwrap().text(), user);
    }
    let told = ask(&app, get("/")).await;
    assert_eq!((told.text(), told.is_hit()), ("nobody", true));
}

#[tokio::test(start_paused = true)]
async fn a_personal_request_keeps_its_conditions() {
    let (cache, origin) = (cache(), Origin::new(|_, _| respond(304, &[], empty())));
    let reply = ask(&app(&cache, &origin), with("/", &[ADA, ("if-none-match", "\"1\"")])).await;
    assert_eq!((reply.status, reply.reason()), (304, "status"));
    assert_eq!(origin.asked(1)["if-none-match"], "\"1\"");
}
