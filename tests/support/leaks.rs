//! Ways in which one user's answer could reach another, as a table that any HTTP host is checked against.
//!
//! Ada asks, then or at the same time Bob does. The origin answers by who asks, which it sees in a header that no cache knows
//! of; what else it says, and what the two say of themselves, is in the rows. Bob must never see what is Ada's.
//!
//! A cache that stores nothing leaks nothing. So there is a table of the opposite too: what may be shared, and is.

use axum::{
    Router,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
    response::IntoResponse,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::time::Duration;

type Lines = &'static [(&'static str, &'static str)];

/// A request: method, path with query, headers.
type Ask = (&'static str, &'static str, Lines);

struct Row {
    what: &'static str,
    ada: Ask,
    answer: (u16, Lines),
    bob: Ask,
}

const CREDENTIALS: [&str; 2] = ["authorization", "cookie"];
const PAGE: Ask = ("GET", "/page", &[]);
const PUBLIC: Lines = &[("cache-control", "public, max-age=600")];

macro_rules! rows {
    ($rows:ident: $($what:literal: $ada:expr, $answer:expr, $bob:expr;)*) => {
        const $rows: &[Row] = &[$(Row { what: $what, ada: $ada, answer: $answer, bob: $bob }),*];
    };
}

rows! { SHARED:
    "nothing said": PAGE, (200, &[]), PAGE;
    "public": PAGE, (200, PUBLIC), PAGE;
    "a life": PAGE, (200, &[("cache-control", "max-age=600")]), PAGE;
    "public, with a token": ("GET", "/page", &[("authorization", "Bearer ada")]), (200, PUBLIC), PAGE;
    "public, with two tokens": ("GET", "/page", &[("authorization", "Bearer ada")]), (200, PUBLIC),
        ("GET", "/page", &[("authorization", "Bearer bob")]);
    "public, with two cookies": ("GET", "/page", &[("cookie", "session=ada")]), (200, PUBLIC),
        ("GET", "/page", &[("cookie", "session=bob")]);
    "by what both say": ("GET", "/page", &[("accept-language", "de")]), (200, &[("vary", "accept-language")]),
        ("GET", "/page", &[("accept-language", "de")]);
    "by what neither says": PAGE, (200, &[("vary", "x-nothing")]), PAGE;
    "a query": ("GET", "/page?user=ada", &[]), (200, PUBLIC), ("GET", "/page?user=ada", &[]);
    "the order of parameters": ("GET", "/page?a=1&b=2", &[]), (200, PUBLIC), ("GET", "/page?b=2&a=1", &[]);
    "what is not there": PAGE, (404, PUBLIC), PAGE;
}

rows! { ROWS:
    "a token": ("GET", "/page", &[("authorization", "Bearer ada")]), (200, &[]), PAGE;
    "two tokens": ("GET", "/page", &[("authorization", "Bearer ada")]), (200, &[("cache-control", "max-age=600")]),
        ("GET", "/page", &[("authorization", "Bearer bob")]);
    "a cookie": ("GET", "/page", &[("cookie", "session=ada")]), (200, &[]), PAGE;
    "two cookies": ("GET", "/page", &[("cookie", "session=ada")]), (200, &[]), ("GET", "/page", &[("cookie", "session=bob")]);
    "a cookie that is empty": ("GET", "/page", &[("cookie", "")]), (200, &[]), PAGE;
    "nobody's answer for somebody": PAGE, (200, &[]), ("GET", "/page", &[("cookie", "session=bob")]);
    "a cookie is set": PAGE, (200, &[("set-cookie", "session=ada")]), PAGE;
    "a cookie is set on what is public": PAGE, (200, &[("set-cookie", "a=b"), ("cache-control", "public, s-maxage=600")]), PAGE;
    "private": PAGE, (200, &[("cache-control", "private, max-age=600")]), PAGE;
    "private beside public": PAGE, (200, &[("cache-control", "public, max-age=600"), ("cache-control", "private")]), PAGE;
    "a private field": PAGE, (200, &[("cache-control", "max-age=600, private=\"x-name\"")]), PAGE;
    "no-store": PAGE, (200, &[("cache-control", "no-store")]), PAGE;
    "no-store in capitals": PAGE, (200, &[("cache-control", "max-age=600,NO-STORE")]), PAGE;
    "no-cache": PAGE, (200, &[("cache-control", "no-cache")]), PAGE;
    "a field not to be cached": PAGE, (200, &[("cache-control", "max-age=600, no-cache=\"set-cookie\"")]), PAGE;
    "what cannot be understood": PAGE, (200, &[("cache-control", "max-age=600; private")]), PAGE;
    "of old": PAGE, (200, &[("pragma", "no-cache")]), PAGE;
    "no life": PAGE, (200, &[("cache-control", "max-age=0")]), PAGE;
    "it has ended": PAGE, (200, &[("expires", "Thu, 01 Jan 1970 00:00:00 GMT")]), PAGE;
    "no date": PAGE, (200, &[("expires", "0")]), PAGE;
    "too old": PAGE, (200, &[("cache-control", "max-age=5"), ("age", "6")]), PAGE;
    "by anything": PAGE, (200, &[("vary", "*")]), PAGE;
    "by anything, among others": PAGE, (200, &[("vary", "accept"), ("vary", "accept-language, *")]), PAGE;
    "by who asks": PAGE, (200, &[("vary", "X-Who")]), PAGE;
    "by who asks, among others": PAGE, (200, &[("vary", "accept, x-who"), ("cache-control", "public, max-age=600")]), PAGE;
    "public, by token": ("GET", "/page", &[("authorization", "Bearer ada")]),
        (200, &[("vary", "authorization"), ("cache-control", "public, max-age=600")]),
        ("GET", "/page", &[("authorization", "Bearer bob")]);
    "no such field": PAGE, (200, &[("vary", "no such field")]), PAGE;
    "another user in the query": ("GET", "/page?user=ada", &[]), (200, PUBLIC), ("GET", "/page?user=bob", &[]);
    "the order of equal parameters": ("GET", "/page?id=1&id=2", &[]), (200, PUBLIC), ("GET", "/page?id=2&id=1", &[]);
    "an empty query": ("GET", "/page?", &[]), (200, PUBLIC), ("GET", "/page", &[]);
    "parameters run together": ("GET", "/page?a=1&b=2", &[]), (200, PUBLIC), ("GET", "/page?a=1%26b=2", &[]);
    "a slash in a segment": ("GET", "/a%2Fb", &[]), (200, PUBLIC), ("GET", "/a/b", &[]);
    "capitals": ("GET", "/Page", &[]), (200, PUBLIC), PAGE;
    "another host": ("GET", "/page", &[("host", "ada.example")]), (200, PUBLIC), ("GET", "/page", &[("host", "bob.example")]);
    "another port": ("GET", "/page", &[("host", "x.example:1")]), (200, PUBLIC), ("GET", "/page", &[("host", "x.example:2")]);
    "HEAD before GET": ("HEAD", "/page", &[]), (200, PUBLIC), PAGE;
    "POST before GET": ("POST", "/page", &[]), (200, PUBLIC), PAGE;
    "POST before POST": ("POST", "/page", &[]), (200, PUBLIC), ("POST", "/page", &[]);
    "DELETE before GET": ("DELETE", "/page", &[]), (200, PUBLIC), PAGE;
    "a part": ("GET", "/page", &[("range", "bytes=0-9")]), (206, &[("content-range", "bytes 0-9/10"), ("cache-control", "public, max-age=600")]), PAGE;
    "a part that nobody asked for": PAGE, (200, &[("content-range", "bytes 0-9/10"), ("cache-control", "max-age=600")]), PAGE;
    "who may not": PAGE, (403, &[]), PAGE;
    "who must say who it is": PAGE, (401, &[("cache-control", "max-age=600")]), PAGE;
    "who asks too much": PAGE, (429, &[("cache-control", "max-age=600")]), PAGE;
    "a failure": PAGE, (500, &[("cache-control", "public, max-age=600")]), PAGE;
    "a failure with a cookie": PAGE, (503, &[("set-cookie", "session=ada")]), PAGE;
    "a redirect of one's own": PAGE, (302, &[("location", "/ada")]), PAGE;
    "not to be kept, by the one who asks": ("GET", "/page", &[("cache-control", "no-store")]), (200, PUBLIC), PAGE;
    "an upgrade": ("GET", "/page", &[("upgrade", "websocket")]), (200, PUBLIC), PAGE;
    "events": PAGE, (200, &[("content-type", "text/event-stream")]), PAGE;
}

fn all() -> impl Iterator<Item = &'static Row> {
    SHARED.iter().chain(ROWS)
}

/// Answers by the row that a request names, and by who asks.
async fn origin(headers: HeaderMap) -> impl IntoResponse {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (row, who) = (header("x-row").parse::<usize>().unwrap(), header("x-who").to_owned());
    let (status, lines) = all().nth(row).unwrap().answer;
    let headers: HeaderMap = lines
        .iter()
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value)))
        .collect();
    // Whoever comes meanwhile may follow.
    tokio::time::sleep(Duration::from_millis(20)).await;
    (StatusCode::from_u16(status).unwrap(), headers, format!("for {who}"))
}

pub(crate) fn router() -> Router {
    Router::new().fallback(origin)
}

type Browser = Client<HttpConnector, Full<Bytes>>;

async fn ask(browser: &Browser, base: &str, row: usize, who: &str, n: usize, (method, path, lines): Ask) -> String {
    // A target of its own for each row and try, to begin with nothing stored. The query is the row's alone.
    let target = format!("{base}/{row}-{n}{path}");
    let mut request = http::Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(target);
    request = request.header("x-row", row).header("x-who", who);
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    let response = browser.request(request.body(Full::default()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Checks every row but those left out against the host at `base`: one after the other, then at the same time.
pub(crate) async fn check(base: &str, left_out: &[&str]) {
    let browser: Browser = Client::builder(TokioExecutor::new()).build_http();
    let (mut leaks, mut kept) = (Vec::new(), Vec::new());
    for (row, Row { what, ada, bob, .. }) in all().enumerate().filter(|(_, row)| !left_out.contains(&row.what)) {
        let hers = ask(&browser, base, row, "ada", 0, *ada).await;
        assert!(ada.0 == "HEAD" || hers == "for ada", "{what}: {hers}");
        let his = ask(&browser, base, row, "bob", 0, *bob).await;
        let (hers, his_meanwhile) =
            tokio::join!(ask(&browser, base, row, "ada", 1, *ada), ask(&browser, base, row, "bob", 1, *bob));
        if row < SHARED.len() {
            // Whoever came first of the two, one answer is for both. Before it is there, nobody knows whether what somebody
            // with credentials is told is for another too.
            let may_follow = ![ada, bob].iter().any(|ask| ask.2.iter().any(|line| CREDENTIALS.contains(&line.0)));
            if his != "for ada" || may_follow && his_meanwhile != hers {
                kept.push((what, his, [hers, his_meanwhile]));
            }
        } else if [&his, &his_meanwhile] != ["for bob"; 2] {
            leaks.push((what, his, his_meanwhile));
        }
    }
    assert!(leaks.is_empty(), "leaks: {leaks:#?}");
    assert!(kept.is_empty(), "not shared: {kept:#?}");
    assert!(left_out.iter().all(|what| ROWS.iter().any(|row| row.what == *what)), "{left_out:?} are rows");
    assert!(ROWS.len() >= 40);
}
