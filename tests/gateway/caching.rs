//! What is stored, for whom, and who computes it.

use crate::{
    origin::*,
    process::{Browser, Gateway},
};
use axum::Router;
use http::{Method, StatusCode};

#[tokio::test]
async fn a_stampede_is_one_call() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--barrier", "4"]);
    let browser = Browser::http1();
    let answers = many(&browser, (0..64).map(|_| gateway.url("/slow/300"))).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (StatusCode::OK, &answers[0].body));
        assert!(answer.header("cache-status").starts_with("floodgate; "), "{answer:?}");
    }
    assert_eq!(browser.get(&gateway.url("/count")).await.body, "1");
    let hit = browser.get(&gateway.url("/slow/300")).await;
    assert!(hit.header("cache-status").starts_with("floodgate; hit; ttl="), "{hit:?}");
    assert_eq!(hit.header("age"), "0");
}

#[tokio::test]
async fn an_answer_is_served_by_other_processes_and_after_kill_9() {
    let (upstream, origin) = numbering(&[("cache-tag", "a, b"), ("x-kept", "1")]).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--expire", "600"];
    let browser = Browser::http1();
    let first = Gateway::start(cache.path(), &flags);
    let second = Gateway::start(cache.path(), &flags);
    let ask = async |gateway: &Gateway, browser: &Browser| browser.get(&gateway.url("/page?a=1&b=2")).await;
    let stored = ask(&first, &browser).await;
    assert_eq!(stored.header("cache-status"), "floodgate; fwd=miss; stored; ttl=600");
    let hit = ask(&second, &browser).await;
    first.kill();
    second.kill();
    let third = Gateway::start(cache.path(), &flags);
    let after = ask(&third, &browser).await;
    for hit in [hit, after] {
        assert!(hit.header("cache-status").starts_with("floodgate; hit; ttl="), "{hit:?}");
        assert_eq!((hit.body.as_str(), hit.header("x-kept").as_str()), ("answer 1", "1"));
        assert_eq!(hit.header("cache-tag"), "a, b", "the upstream's own tags and no others");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn answers_of_different_upstreams_do_not_meet() {
    let (one, two) = (numbering(&[]).await, numbering(&[]).await);
    let cache = directory();
    let browser = Browser::http1();
    for (upstream, origin) in [&one, &two] {
        let gateway = Gateway::start(cache.path(), &["--upstream", upstream, "--expire", "600"]);
        browser.get(&gateway.url("/page")).await;
        assert_eq!(origin.calls(), 1);
    }
}

#[tokio::test]
async fn both_versions_of_http_share_answers_and_hosts_do_not() {
    let (upstream, origin) = numbering(&[]).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream, "--expire", "600"]);
    let address = gateway.address;
    for _ in 0..2 {
        Browser::http1().get(&gateway.url("/page")).await;
        Browser::h2c().get(&gateway.url("/page")).await;
        let absolute = format!("GET http://{address}/page HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n");
        assert!(raw(address, &absolute).await.ends_with("answer 1"));
    }
    assert_eq!(origin.calls(), 1);
    let mut calls = 1;
    for host in ["other", "127.0.0.1:1", "localhost"] {
        Browser::http1().send(Method::GET, &gateway.url("/page"), &[("host", host)], "").await;
        calls += 1;
        assert_eq!(origin.calls(), calls, "{host}");
    }
    let own_port = format!("other:{}", address.port());
    Browser::http1().send(Method::GET, &gateway.url("/page"), &[("host", &own_port)], "").await;
    assert_eq!(origin.calls(), calls, "the gateway's own port makes no difference");
}

#[tokio::test]
async fn what_may_not_be_stored_is_not() {
    let browser = Browser::http1();
    let cases: [(&[&str], &'static [(&str, &str)], &[(&str, &str)], &str); 5] = [
        (&[], &[("cache-control", "no-store")], &[], "floodgate; fwd=miss; detail=no-store"),
        (&[], &[("set-cookie", "a=1")], &[], "floodgate; fwd=miss; detail=set-cookie"),
        (&[], &[], &[("authorization", "Bearer x")], "floodgate; fwd=miss; detail=personal"),
        (&["--expire", "0"], &[], &[], "floodgate; fwd=miss; detail=no-freshness"),
        (&["--no-cache"], &[], &[], ""),
    ];
    for (flags, answered, asked, status) in cases {
        let (upstream, origin) = numbering(answered).await;
        let cache = directory();
        let gateway = Gateway::start(cache.path(), &[&["--upstream", &upstream], flags].concat());
        for _ in 0..3 {
            let answer = browser.send(Method::GET, &gateway.url("/page"), asked, "").await;
            assert_eq!(answer.header("cache-status"), status);
        }
        assert_eq!(origin.calls(), 3, "{flags:?} {answered:?} {asked:?}");
    }
    let (upstream, origin) = numbering(&[("cache-control", "max-age=600")]).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream, "--expire", "0"]);
    for _ in 0..2 {
        browser.get(&gateway.url("/page")).await;
    }
    assert_eq!(origin.calls(), 1, "the response names its life itself");
}

#[tokio::test]
async fn no_request_can_pass_for_another() {
    let upstream = serve(Router::new().fallback(echo)).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream]);
    let poison = [
        "GET /page HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nContent-Length: 4\r\n\r\nevil",
        "GET /page HTTP/1.1\r\nHost: example.com\r\nConnection: close, content-length\r\nContent-Length: 4\r\n\r\nevil",
        "GET /page HTTP/1.1\r\nHost: example.com\r\nConnection: close, transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nevil\r\n0\r\n\r\n",
        "GET http://evil/page HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        "GET /page HTTP/1.1\r\nHost: evil\r\nHost: example.com\r\nConnection: close\r\n\r\n",
        "GET /page HTTP/1.1\r\nHost: example.com\r\nConnection: close, host\r\nX-Evil: evil\r\n\
         Cache-Control: no-store\r\n\r\n",
    ];
    for request in poison {
        let answer = raw(gateway.address, request).await;
        assert!(answer.contains("evil") || answer.starts_with("http/1.1 400"), "{answer}");
    }
    let fat = Browser::h2c().send(Method::GET, &gateway.url("/page"), &[], "evil").await;
    assert!(fat.body.contains("evil"));
    for url in [gateway.url("/page"), format!("http://{}/page", gateway.address)] {
        let answer = Browser::http1().send(Method::GET, &url, &[("host", "example.com")], "").await;
        assert!(!answer.body.contains("evil") && answer.body.contains("host: example.com\n"), "{answer:?}");
        let answer = Browser::http1().get(&url).await;
        assert!(!answer.body.contains("evil"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_variant_is_stored_for_those_who_got_it() {
    let language = async |request: axum::extract::Request| {
        let language = request.headers().get("accept-language").map_or("none", |value| value.to_str().unwrap());
        ([("vary", "accept-language")], language.to_owned())
    };
    let upstream = serve(Router::new().fallback(language)).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream]);
    let browser = Browser::http1();
    let ask = async |headers: &[(&str, &str)]| browser.send(Method::GET, &gateway.url("/page"), headers, "").await;
    // What `Connection` names does not reach the upstream, so it must not choose the variant either.
    let cut = ask(&[("accept-language", "de"), ("connection", "accept-language")]).await;
    assert_eq!(cut.body, "none");
    for language in ["de", "fr"] {
        assert_eq!(ask(&[("accept-language", language)]).await.body, language);
        let hit = ask(&[("accept-language", language)]).await;
        assert_eq!(hit.body, language);
        assert!(hit.header("cache-status").starts_with("floodgate; hit"), "{hit:?}");
    }
}

#[tokio::test]
async fn what_is_said_to_be_stored_is_there_for_all() {
    let (upstream, _) = numbering(&[]).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--expire", "600", "--beta", "0"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let browser = Browser::http1();
    for n in 0..300 {
        let path = format!("/page/{n}");
        let (one, other) = (&gateways[n % 2], &gateways[(n + 1) % 2]);
        assert!(browser.get(&one.url(&path)).await.header("cache-status").contains("; stored; "));
        let hit = browser.get(&other.url(&path)).await;
        assert!(hit.header("cache-status").starts_with("floodgate; hit; "), "{n}: {hit:?}");
    }
}
