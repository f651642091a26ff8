//! What reaches the upstream, and what comes back.

use crate::{
    origin::*,
    process::{Browser, Gateway},
};
use axum::Router;
use http::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

#[tokio::test]
async fn requests_lose_what_is_hop_by_hop_and_nothing_else() {
    let upstream = serve(Router::new().fallback(echo)).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &format!("{upstream}/base/"), "--no-cache"]);
    let answer = raw(
        gateway.address,
        "POST /form?b=2&a=1 HTTP/1.1\r\nHost: example.com\r\nConnection: close, X-Mine, Host, Content-Length\r\n\
         X-Mine: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nProxy-Authorization: Basic eA==\r\n\
         Proxy-Authenticate: Basic\r\nTE: trailers\r\nTrailer: x-end\r\nUpgrade: websocket\r\n\
         Authorization: Bearer x\r\nX-Twice: 1\r\nX-Twice: 2\r\nX-Forwarded-For: 192.0.2.1\r\nX-Empty:\r\n\
         Content-Length: 4\r\n\r\nbody",
    )
    .await;
    let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("http/1.1 200"), "{answer}");
    let mut lines: Vec<&str> = rest.lines().collect();
    assert_eq!(lines.remove(0), "post /base/form?b=2&a=1 http/1.1");
    lines.sort_unstable();
    let expected = [
        "",
        "authorization: bearer x",
        "body",
        "content-length: 4",
        "host: example.com",
        "x-empty: ",
        "x-forwarded-for: 192.0.2.1",
        "x-twice: 1",
        "x-twice: 2",
    ];
    assert_eq!(lines, expected);

    let chunked = "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
    let answer = raw(gateway.address, chunked).await;
    assert!(answer.contains("\ntransfer-encoding: chunked\n") && answer.contains("\n\nabc"), "{answer}");
}

#[tokio::test]
async fn responses_lose_what_is_hop_by_hop_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let answer = "HTTP/1.1 418 Teapot\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\
                Server: kettle\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nDate: Tue, 15 Nov 1994 08:12:31 GMT\r\n\r\n\
                3\r\ntea\r\n0\r\n\r\n";
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream, "--no-cache"]);
    let answer = Browser::http1().get(&gateway.url("/")).await;
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::IM_A_TEAPOT, "tea"));
    let mut headers: Vec<String> =
        answer.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    headers.sort_unstable();
    let expected = [
        "date: Tue, 15 Nov 1994 08:12:31 GMT",
        "server: kettle",
        "set-cookie: a=1",
        "set-cookie: b=2",
        "transfer-encoding: chunked",
    ];
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn http2_without_tls_is_served() {
    let upstream = serve(Router::new().fallback(echo)).await;
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream, "--no-cache"]);
    let cookies = [("cookie", "a=1"), ("cookie", "b=2")];
    let answer = Browser::h2c().send(Method::POST, &gateway.url("/form"), &cookies, "body").await;
    assert_eq!(answer.status, 200);
    let host = format!("\nhost: {}\n", gateway.address);
    for expected in ["POST /form HTTP/1.1\n", "\ncookie: a=1; b=2\n", &host, "\n\nbody"] {
        assert!(answer.body.contains(expected), "{expected}: {}", answer.body);
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--upstream", &upstream]);
    for _ in 0..2 {
        let answer = Browser::http1().get(&gateway.url("/")).await;
        assert_eq!(answer.status, 502);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(problem["status"], 502);
    }
    let tunnel = "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\nConnection: close\r\n\r\n";
    assert!(raw(gateway.address, tunnel).await.starts_with("http/1.1 501"));
}
