//! The gateway as a black box: real processes, real sockets, and its flags as a contract.

#[path = "gateway/process.rs"]
mod process;

use axum::{
    Router,
    extract::{Request, State},
    routing::any,
};
use http::{HeaderMap, Method, StatusCode};
use process::{Answer, Browser, Gateway, run};
use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tempfile::{TempDir, tempdir};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

fn directory() -> TempDir {
    tempdir().expect("a temporary directory")
}

/// An origin that counts its requests, and how many of them it serves at once.
#[derive(Clone, Default)]
struct Origin {
    calls: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Origin {
    async fn enter(&self, delay: Duration) {
        self.calls.fetch_add(1, SeqCst);
        self.most_at_once.fetch_max(self.running.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(delay).await;
        self.running.fetch_sub(1, SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

/// Serves a router on a port of its own; what to give to `--upstream`.
async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// Answers with what it was sent: the request line and the headers, a line each, then the body.
async fn echo(request: Request) -> String {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", value.to_str().expect("ASCII"));
    }
    text + "\n" + std::str::from_utf8(&body).expect("text")
}

/// Sends bytes as they are and reads to the end.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("text");
    answer.to_lowercase()
}

async fn many(browser: &Browser, urls: impl IntoIterator<Item = String>) -> Vec<Answer> {
    let mut requests = JoinSet::new();
    for url in urls {
        let browser = browser.clone();
        requests.spawn(async move { browser.get(&url).await });
    }
    requests.join_all().await
}

#[test]
fn what_cannot_work_is_one_line_and_exit_code_2() {
    let root = directory();
    let path = |name: &str| root.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("file"), "x").unwrap();
    fs::create_dir(path("writable")).unwrap();
    fs::set_permissions(path("writable"), fs::Permissions::from_mode(0o777)).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (cache, file, below, writable) = (path("cache"), path("file"), path("file/below"), path("writable"));

    let in_use = taken.as_str();
    let cases: &[(&[&str], &str)] = &[
        (&["--no-such-flag"], "--no-such-flag"),
        (&["argument"], "argument"),
        (&["--listen", "nowhere"], "nowhere"),
        (&["--listen", "127.0.0.1:65536"], "65536"),
        (&["--listen", in_use], in_use),
        (&["--admin", "127.0.0.1"], "'127.0.0.1'"),
        (&["--admin", in_use], in_use),
        (&["--upstream", "https://localhost"], "https://localhost"),
        (&["--upstream", "localhost:3000"], "localhost:3000"),
        (&["--upstream", "http://"], "http://"),
        (&["--upstream", "http://user:secret@localhost"], "user:secret@localhost"),
        (&["--upstream", "http://localhost/?a=b"], "?a=b"),
        (&["--upstream", "two\nlines"], "two lines"),
        (&["--expire", "-1"], "-1"),
        (&["--expire", "soon"], "soon"),
        (&["--expire", "NaN"], "NaN"),
        (&["--expire", "1e300"], "1e300"),
        (&["--stale", "inf"], "inf"),
        (&["--beta", "-0.5"], "-0.5"),
        (&["--beta", "NaN"], "NaN"),
        (&["--throttle", "5"], "'5'"),
        (&["--throttle", "0/60"], "0/60"),
        (&["--throttle", "5/0"], "5/0"),
        (&["--throttle", "-5/60"], "-5/60"),
        (&["--throttle", "5/nan"], "5/nan"),
        (&["--throttle", "4294967296/1"], "4294967296/1"),
        (&["--throttle", "1/1e10"], "1/1e10"),
        (&["--throttle", "4000000000/1"], "4000000000/1"),
        (&["--throttle-by", "user"], "user"),
        (&["--throttle-by", "header:no spaces"], "header:no spaces"),
        (&["--throttle-wait", "-1"], "-1"),
        (&["--barrier", "0"], "'0'"),
        (&["--barrier", "1.5"], "1.5"),
        (&["--barrier", "99999999999"], "99999999999"),
        (&["--barrier-by", "ip"], "'ip'"),
        (&["--barrier-wait", "ages"], "ages"),
        (&["--lease", "0"], "'0'"),
        (&["--lease", "1e9"], "1e9"),
        (&["--cache-dir", &file], &file),
        (&["--cache-dir", &below], &below),
        (&["--cache-dir", &writable], &writable),
        (&["--cache-dir", ""], "--cache-dir"),
        (&["--cache-dir"], "--cache-dir"),
    ];
    for (flags, mention) in cases {
        let mut all = flags.to_vec();
        for (flag, value) in [("--cache-dir", cache.as_str()), ("--listen", "127.0.0.1:0")] {
            if !flags.contains(&flag) {
                all.splice(0..0, [flag, value]);
            }
        }
        let (code, out, err) = run(&all);
        assert_eq!(code, Some(2), "{flags:?}: {out}{err}");
        assert_eq!(err.lines().count(), 1, "{flags:?}: {err}");
        assert!(err.contains(mention), "{flags:?}: {err}");
        assert!(!out.contains("listening"), "{flags:?}: {out}");
    }
}

#[test]
fn help_names_every_flag() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for flag in [
        "listen",
        "upstream",
        "cache-dir",
        "expire",
        "beta",
        "stale",
        "no-cache",
        "throttle",
        "throttle-by",
        "throttle-wait",
        "barrier",
        "barrier-by",
        "barrier-wait",
        "lease",
        "admin",
    ] {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
    }
}

#[tokio::test]
async fn the_demo_origin_counts() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &[]);
    let browser = Browser::http1();
    assert_eq!(browser.get(&gateway.url("/count")).await.body, "0");
    assert_eq!(browser.get(&gateway.url("/slow/1")).await.status, 200);
    assert_eq!(browser.get(&gateway.url("/count")).await.body, "1", "the count itself is not cached");
    assert_eq!(browser.get(&gateway.url("/slow/soon")).await.status, 400);
    let demo = gateway.demo.expect("a demo origin");
    assert_eq!(browser.get(&format!("http://{demo}/count")).await.body, "1");
}

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

#[tokio::test]
async fn sigterm_lets_running_requests_finish() {
    let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let held = (arrived.clone(), go.clone());
    let wait = any(async move || {
        held.0.add_permits(1);
        let _ = held.1.acquire().await;
        "done"
    });
    let upstream = serve(Router::new().route("/wait", wait).fallback(echo)).await;
    let cache = directory();
    let mut gateway = Gateway::start(cache.path(), &["--upstream", &upstream]);
    let browser = Browser::http1();
    browser.get(&gateway.url("/idle")).await; // leaves an idle connection behind
    let url = gateway.url("/wait");
    let running = tokio::spawn(async move { browser.get(&url).await });
    arrived.acquire().await.unwrap().forget();

    gateway.terminate();
    while TcpStream::connect(gateway.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    go.add_permits(1);
    let answer = running.await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "done"));
    assert_eq!(gateway.exit().code(), Some(0));
}

#[tokio::test]
async fn a_throttle_holds_across_restarts_and_processes() {
    let flags = ["--throttle", "5/60", "--throttle-by", "all"];
    let cache = directory();
    let browser = Browser::http1();
    let gateway = Gateway::start(cache.path(), &flags);
    let answers = many(&browser, (0..12).map(|_| gateway.url("/hello"))).await;
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(passed.len(), 5);
    for answer in refused {
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        let wait: u64 = answer.header("retry-after").parse().unwrap();
        assert!((1..=12).contains(&wait), "one comes back every twelve seconds, not {wait}");
    }

    let second = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&second.url("/hello")).await.status, 429, "a second gateway");
    gateway.kill();
    assert_eq!(browser.get(&second.url("/hello")).await.status, 429, "after kill -9 of the first");
    second.kill();
    let mut third = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&third.url("/hello")).await.status, 429, "after kill -9 of all");
    third.terminate();
    assert!(third.exit().success());
    let fourth = Gateway::start(cache.path(), &flags);
    assert_eq!(browser.get(&fourth.url("/hello")).await.status, 429, "after a clean stop");
}

#[tokio::test]
async fn retry_after_is_true() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--throttle", "2/4"]);
    let browser = Browser::http1();
    let refused = loop {
        let answer = browser.get(&gateway.url("/hello")).await;
        if answer.status == 429 {
            break answer;
        }
    };
    let wait = refused.header("retry-after").parse().unwrap();
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(browser.get(&gateway.url("/hello")).await.status, 200);
}

#[tokio::test]
async fn what_a_throttle_counts_is_a_flag() {
    let browser = Browser::http1();
    for (by, first, same, other) in [
        ("all", ("/hello", "a"), ("/count", "b"), None),
        ("ip", ("/hello", "a"), ("/count", "b"), None),
        ("path", ("/hello?x", "a"), ("/hello?y", "b"), Some(("/count", "a"))),
        ("header:X-Key", ("/hello", "a"), ("/count", "a"), Some(("/hello", "b"))),
    ] {
        let cache = directory();
        let gateway = Gateway::start(cache.path(), &["--throttle", "1/600", "--throttle-by", by]);
        let ask = async |(path, key): (&str, &str)| {
            browser.send(Method::GET, &gateway.url(path), &[("x-key", key)], "").await.status
        };
        assert_eq!(ask(first).await, 200, "{by}");
        assert_eq!(ask(same).await, 429, "{by}");
        if let Some(other) = other {
            assert_eq!(ask(other).await, 200, "{by}");
        }
    }
}

#[tokio::test]
async fn throttled_requests_may_wait() {
    let cache = directory();
    let gateway = Gateway::start(cache.path(), &["--throttle", "1/0.05", "--throttle-wait", "60"]);
    let answers = many(&Browser::http1(), (0..10).map(|_| gateway.url("/hello"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn a_barrier_holds_across_processes() {
    let origin = Origin::default();
    let slow = async |State(origin): State<Origin>| origin.enter(Duration::from_millis(5)).await;
    let upstream = serve(Router::new().fallback(slow).with_state(origin.clone())).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "60", "--no-cache"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let urls = (0..40).map(|i| gateways[i % 2].url("/one"));
    let answers = many(&Browser::http1(), urls).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!((origin.calls(), origin.most_at_once.load(SeqCst)), (40, 1));
}

#[tokio::test]
async fn a_full_barrier_refuses_and_other_names_pass() {
    let (arrived, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let held = (arrived.clone(), go.clone());
    let wait = any(async move || {
        held.0.add_permits(1);
        let _ = held.1.acquire().await;
    });
    let upstream = serve(Router::new().route("/wait", wait).fallback(echo)).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "0", "--no-cache"];
    let gateway = Gateway::start(cache.path(), &flags);
    let browser = Browser::http1();
    let (url, first) = (gateway.url("/wait"), browser.clone());
    let running = tokio::spawn(async move { first.get(&url).await });
    arrived.acquire().await.unwrap().forget();
    let refused = browser.get(&gateway.url("/wait")).await;
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(browser.get(&gateway.url("/other")).await.status, 200, "another path, another name");
    go.add_permits(2);
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(browser.get(&gateway.url("/wait")).await.status, 200);
}

/// Answers every path with its number of calls so far, and the given headers.
async fn numbering(headers: &'static [(&'static str, &'static str)]) -> (String, Origin) {
    let origin = Origin::default();
    let answer = async move |State(origin): State<Origin>| {
        origin.enter(Duration::ZERO).await;
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        (headers, format!("answer {}", origin.calls()))
    };
    (serve(Router::new().fallback(answer).with_state(origin.clone())).await, origin)
}

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
    let ask = async |gateway: &Gateway, browser: &Browser| {
        let host = [("host", "example.com")];
        browser.send(Method::GET, &gateway.url("/page?a=1&b=2"), &host, "").await
    };
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
    Browser::http1().send(Method::GET, &gateway.url("/page"), &[("host", "other")], "").await;
    assert_eq!(origin.calls(), 2);
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
async fn the_admin_purges_and_tells() {
    let (upstream, origin) = numbering(&[("cache-tag", "news, sports")]).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--admin", "127.0.0.1:0", "--expire", "600"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let browser = Browser::http1();
    let get = async |path: &str| browser.get(&gateways[0].url(path)).await.header("cache-status").contains("hit");
    let admin = |path: &str| format!("http://{}{path}", gateways[1].admin.expect("an admin"));
    let purge =
        async |what: &str| assert_eq!(browser.post(&admin(&format!("/purge?{what}"))).await.status, 200, "{what}");

    assert!(!get("/a%20b?x=1").await && !get("/a%20b?x=2").await && !get("/other").await);
    assert!(get("/a%20b?x=1").await && get("/a%20b?x=2").await && get("/other").await);
    purge("path=/a%20b").await;
    assert!(!get("/a%20b?x=1").await && !get("/a%20b?x=2").await && get("/other").await);
    purge("path=%2Fa%2520b%3Fx%3D1").await;
    assert!(!get("/a%20b?x=1").await && get("/other").await);
    purge("tag=opera").await;
    assert!(get("/other").await);
    purge("tag=sports").await;
    assert!(!get("/other").await && !get("/a%20b?x=1").await);
    assert_eq!(origin.calls(), 8);

    for wrong in ["/purge", "/purge?tag=a&path=/b", "/purge?tags=a"] {
        assert_eq!(browser.post(&admin(wrong)).await.status, 400, "{wrong}");
    }
    assert_eq!(browser.get(&admin("/purge?tag=a")).await.status, 405);
    let own = format!("http://{}/stats", gateways[0].admin.expect("an admin"));
    let stats = browser.get(&own).await;
    assert_eq!(stats.header("content-type"), "application/json");
    let stats: serde_json::Value = serde_json::from_str(&stats.body).unwrap();
    assert_eq!((&stats["misses"], &stats["stored"]), (&8.into(), &8.into()), "{stats}");
    assert_eq!(browser.post(&gateways[0].url("/purge?tag=a")).await.body, "answer 9", "not on the public listener");
}
