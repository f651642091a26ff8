//! One computation on the whole machine, whatever becomes of who makes it.

use crate::{
    origin::*,
    process::{Browser, Gateway},
    streaming::read_until,
};
use http::StatusCode;
use std::time::Duration;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Gateways that share a cache in front of one upstream.
pub(crate) struct Group {
    _directory: TempDir,
    pub(crate) gateways: Vec<Gateway>,
}

impl Group {
    pub(crate) fn start(count: usize, upstream: &str, flags: &[&str]) -> Group {
        let directory = directory();
        let flags = [&["--upstream", upstream, "--admin", "127.0.0.1:0"], flags].concat();
        let gateways = (0..count).map(|_| Gateway::start(directory.path(), &flags)).collect();
        Group { _directory: directory, gateways }
    }

    /// A number of a gateway's `/stats`.
    pub(crate) async fn stat(&self, gateway: usize, name: &str) -> u64 {
        let admin = self.gateways[gateway].admin.expect("it has one");
        let stats = Browser::http1().get(&format!("http://{admin}/stats")).await.body;
        let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
        stats[name].as_u64().unwrap_or_else(|| panic!("no {name}: {stats}"))
    }

    /// Waits until a number has become so great.
    pub(crate) async fn until(&self, gateway: usize, name: &str, least: u64) {
        let reached = async {
            while self.stat(gateway, name).await < least {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{name} has not become {least}"));
    }

    /// Host names do not count the gateways' ports.
    pub(crate) fn url(&self, gateway: usize, path: &str) -> String {
        self.gateways[gateway].url(path)
    }
}

#[tokio::test]
async fn cold_requests_at_two_gateways_are_one_call() {
    let (upstream, origin) = slow(Duration::from_millis(300)).await;
    let group = Group::start(2, &upstream, &[]);
    let browser = Browser::http1();
    let answers = many(&browser, (0..64).map(|n| group.url(n % 2, "/page"))).await;
    for answer in &answers {
        assert_eq!(answer.status, StatusCode::OK);
        let did = answer.header("cache-status");
        assert!(did.contains("; stored; ") || did.contains("; collapsed; ") || did.contains("; hit; "), "{did}");
    }
    assert_eq!(origin.calls(), 1);
    let led = answers.iter().filter(|answer| answer.header("cache-status").contains("stored")).count();
    assert_eq!(led, 1);
}

#[tokio::test]
async fn when_the_leading_process_is_killed_one_more_call_serves_all() {
    let (upstream, mut visits) = held().await;
    let mut group = Group::start(2, &upstream, &[]);
    let browser = Browser::http1();
    let lost = tokio::spawn({
        let (browser, url) = (browser.clone(), group.url(0, "/page"));
        async move { browser.get(&url).await }
    });
    let first = timeout(SOON, visits.recv()).await.unwrap().unwrap();
    let mut followers = JoinSet::new();
    for _ in 0..32 {
        let (browser, url) = (browser.clone(), group.url(1, "/page"));
        followers.spawn(async move { browser.get(&url).await });
    }
    // The first of them stands in line for the claim.
    group.until(1, "lock_waiters", 1).await;
    group.gateways.remove(0).kill();
    assert!(lost.await.is_err());
    let second = timeout(SOON, visits.recv()).await.unwrap().unwrap();
    drop((first, second));
    while let Some(answer) = followers.join_next().await {
        assert_eq!(answer.unwrap().status, StatusCode::OK);
    }
    assert!(visits.try_recv().is_err(), "two calls in all");
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_stop_what_others_wait_for() {
    let (upstream, mut visits) = held().await;
    let group = Group::start(2, &upstream, &[]);
    let mut leader = TcpStream::connect(group.gateways[0].address).await.unwrap();
    leader.write_all(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let visit = timeout(SOON, visits.recv()).await.unwrap().unwrap();
    let followers: Vec<_> = (0..2)
        .map(|gateway| {
            let url = group.url(gateway, "/page");
            tokio::spawn(async move { Browser::http1().send(http::Method::GET, &url, &[("host", "x")], "").await })
        })
        .collect();
    group.until(1, "lock_waiters", 1).await;
    drop(leader);
    drop(visit);
    for follower in followers {
        let answer = timeout(SOON, follower).await.unwrap().unwrap();
        assert_eq!(answer.status, StatusCode::OK);
    }
    assert!(visits.try_recv().is_err(), "one call in all");
}

#[tokio::test]
async fn those_who_wait_for_what_may_not_be_stored_go_on_together() {
    let (upstream, origin) = slow_with(Duration::from_millis(300), &[("cache-control", "no-store")]).await;
    let group = Group::start(2, &upstream, &[]);
    let answers = many(&Browser::http1(), (0..32).map(|n| group.url(n % 2, "/page"))).await;
    assert!(answers.iter().all(|answer| answer.header("cache-status").ends_with("detail=no-store")));
    assert_eq!(origin.calls(), 32);
    // All but the first of each gateway, at least: those of the second have waited for the first.
    assert!(origin.most_at_once() >= 24, "{} at once", origin.most_at_once());
    // From here on it is known.
    let answers = many(&Browser::http1(), (0..32).map(|n| group.url(n % 2, "/page"))).await;
    assert_eq!((answers.len(), origin.calls()), (32, 64));
    assert!(origin.most_at_once() >= 30, "{} at once", origin.most_at_once());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_to_every_reader_and_stored_for_none() {
    for headers in [&[("content-length", "10")][..], &[]] {
        let (upstream, mut visits) = piecewise(Box::leak(headers.to_vec().into_boxed_slice())).await;
        let group = Group::start(1, &upstream, &[]);
        let ask = async |address| {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(b"GET /page HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            socket
        };
        let mut leader = ask(group.gateways[0].address).await;
        let pieces = timeout(SOON, visits.recv()).await.unwrap().unwrap();
        pieces.send(Ok("half")).await.unwrap();
        let mut beginning = String::new();
        read_until(&mut leader, &mut beginning, "half").await;
        let follower = ask(group.gateways[0].address).await;
        if !headers.is_empty() {
            group.until(0, "followed", 1).await;
        }
        pieces.send(Err(std::io::Error::other("broken"))).await.unwrap();
        drop(pieces);
        let read = async |mut socket: TcpStream| {
            let mut text = String::new();
            let _ = timeout(SOON, socket.read_to_string(&mut text)).await.unwrap();
            text
        };
        let is_whole = |text: &str| {
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
            match head.to_lowercase().contains("transfer-encoding: chunked") {
                true => body.ends_with("0\r\n\r\n"),
                false => body.len() == 10 || !head.starts_with("HTTP/1.1 200"),
            }
        };
        let text = beginning + &read(leader).await;
        assert!(text.contains("half") && !is_whole(&text), "{text}");
        if headers.is_empty() {
            // It waited for the whole, so it goes to the origin itself.
            let pieces = timeout(SOON, visits.recv()).await.unwrap().unwrap();
            pieces.send(Ok("anew")).await.unwrap();
            drop(pieces);
            assert!(is_whole(&read(follower).await));
        } else {
            // What it had not been sent yet may be lost with the connection.
            let text = read(follower).await;
            assert!(!is_whole(&text), "{text}");
        }
    }
}
