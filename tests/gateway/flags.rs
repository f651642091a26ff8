//! What the flags take and refuse, how a gateway starts and ends, and what its admin does.

use crate::{
    origin::*,
    process::{Browser, Gateway, run},
};
use axum::{Router, routing::any};
use http::StatusCode;
use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::Semaphore};

#[test]
fn what_cannot_work_is_one_line_and_exit_code_2() {
    let root = directory();
    let path = |name: &str| root.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("file"), "x").unwrap();
    fs::create_dir(path("writable")).unwrap();
    fs::set_permissions(path("writable"), fs::Permissions::from_mode(0o1777)).unwrap();
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
        (&["--barrier", "10001"], "10001"),
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
        "quota-headers",
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
