//! Many clients at several gateways. The tests and the benchmark of the gateway use it.
#![allow(dead_code)]

use crate::process::{Answer, Browser, Gateway};
use http::StatusCode;
use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// What the clients of one gateway have asked for and got.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Share {
    pub(crate) asked: u32,
    pub(crate) admitted: u32,
}

/// Four clients at each gateway ask without a pause. The share of each gateway, and how long it was until the last answer.
pub(crate) async fn hammer(gateways: &[Gateway], time: Duration) -> (Vec<Share>, Duration) {
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for nth in 0..4 * gateways.len() {
        let (browser, nth) = (Browser::http1(), nth % gateways.len());
        let url = gateways[nth].url("/hello");
        clients.spawn(async move {
            let mut share = Share::default();
            while began.elapsed() < time {
                share.asked += 1;
                share.admitted += u32::from(browser.get(&url).await.status == StatusCode::OK);
            }
            (nth, share)
        });
    }
    let mut shares = vec![Share::default(); gateways.len()];
    for (nth, share) in clients.join_all().await {
        shares[nth].asked += share.asked;
        shares[nth].admitted += share.admitted;
    }
    (shares, began.elapsed())
}

/// All that the gateways have asked for and got.
pub(crate) fn total(shares: &[Share]) -> Share {
    let sum = |of: fn(&Share) -> u32| shares.iter().map(of).sum();
    Share { asked: sum(|share| share.asked), admitted: sum(|share| share.admitted) }
}

/// So many ask at once, in turn at each gateway. Their answers and when they came, the earliest first.
pub(crate) async fn at_once(gateways: &[Gateway], count: usize) -> Vec<(Duration, Answer)> {
    let mut requests = JoinSet::new();
    let browser = Browser::http1();
    let began = Instant::now();
    for nth in 0..count {
        let (browser, url) = (browser.clone(), gateways[nth % gateways.len()].url("/hello"));
        requests.spawn(async move {
            let answer = browser.get(&url).await;
            (began.elapsed(), answer)
        });
    }
    let mut answers = requests.join_all().await;
    answers.sort_by_key(|answer| answer.0);
    answers
}

/// When a request was sent and answered, counted from the first one's sending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) sent: Duration,
    pub(crate) answered: Duration,
}

/// So many ask for `/0`, `/1` and so on, in turn at each gateway, so long apart. Each from a thread with a connection that
/// stands before the first one asks, so that the sending is exact.
pub(crate) fn one_after_another(gateways: &[Gateway], count: u32, apart: Duration) -> Vec<Served> {
    let ready = Barrier::new(count as usize);
    let began = Instant::now() + Duration::from_millis(100);
    thread::scope(|scope| {
        let send = |nth: u32| {
            let mut socket = TcpStream::connect(gateways[nth as usize % gateways.len()].address).expect("a connection");
            socket.set_nodelay(true).expect("set");
            let request = format!("GET /{nth} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            ready.wait();
            thread::sleep((began + apart * nth).saturating_duration_since(Instant::now()));
            let sent = began.elapsed();
            socket.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            socket.read_to_string(&mut answer).expect("text");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            Served { sent, answered: began.elapsed() }
        };
        let threads: Vec<_> = (0..count).map(|nth| scope.spawn(move || send(nth))).collect();
        threads.into_iter().map(|thread| thread.join().expect("served")).collect()
    })
}
