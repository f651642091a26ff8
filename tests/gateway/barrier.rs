//! A barrier holds across processes, whatever becomes of them and of their clients.

use crate::{
    origin::*,
    process::{Browser, Gateway},
};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::UnboundedReceiver,
    time::{sleep, timeout},
};
use tower_floodgate::{Cache, lock::AcquireError};

/// How soon the next one is to be at the origin, whatever happened. Leases are 30 s.
const SOON: Duration = Duration::from_millis(500);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Two gateways, at whose origin is room for one request at a time.
struct Two {
    _directory: TempDir,
    gateways: [Gateway; 2],
    visits: UnboundedReceiver<Visit>,
    /// Looks at the line from outside.
    cache: Cache,
    waiting: u32,
}

/// A client that has sent its request. It hangs up when it is dropped.
struct Client(TcpStream);

impl Client {
    async fn served(mut self) {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

impl Two {
    async fn new() -> Two {
        let (upstream, visits) = held().await;
        let directory = directory();
        let flags = ["--upstream", &upstream, "--no-cache", "--barrier", "1", "--barrier-by", "all"];
        let flags = [&flags[..], &["--barrier-wait", "600"]].concat();
        let gateways = [(); 2].map(|()| Gateway::start(directory.path(), &flags));
        let cache = Cache::open(directory.path()).unwrap();
        Two { _directory: directory, gateways, visits, cache, waiting: 0 }
    }

    async fn send(&self, gateway: usize, path: &str) -> Client {
        let mut client = TcpStream::connect(self.gateways[gateway].address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        Client(client)
    }

    /// A client of one of the gateways, who is at the origin by now.
    async fn enter(&mut self, gateway: usize, path: &str) -> (Client, Visit) {
        let client = self.send(gateway, path).await;
        (client, self.visit(path).await)
    }

    /// A client of one of the gateways, who waits by now as the last in the line.
    async fn wait(&mut self, gateway: usize, path: &str) -> Client {
        let client = self.send(gateway, path).await;
        self.waiting += 1;
        let full = async || {
            let lock = self.cache.scope("gateway").lock("all").queue_at_most(self.waiting);
            matches!(timeout(ms(5), lock.acquire()).await, Ok(Err(AcquireError::QueueFull { .. })))
        };
        while !full().await {}
        client
    }

    /// The next at the origin, who must be this one.
    async fn visit(&mut self, path: &str) -> Visit {
        let visit = timeout(Duration::from_secs(60), self.visits.recv()).await.expect("somebody comes").unwrap();
        assert_eq!(visit.path, path);
        visit
    }

    /// The next at the origin, who must be this one, and soon after that instant.
    async fn visit_soon(&mut self, path: &str, after: Instant) -> Visit {
        let visit = self.visit(path).await;
        let took = visit.at.saturating_duration_since(after);
        assert!(took < SOON, "{path} came after {took:?}");
        visit
    }
}

#[tokio::test]
async fn two_gateways_never_send_two_at_once() {
    let (upstream, origin) = slow(ms(20)).await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "600", "--no-cache"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let urls = (0..40).map(|i| gateways[i % 2].url("/one"));
    let answers = many(&Browser::http1(), urls).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!((origin.calls(), origin.most_at_once()), (40, 1));
}

#[tokio::test]
async fn who_came_first_served_first_at_whichever_gateway() {
    let mut two = Two::new().await;
    let mut clients = Vec::new();
    let (first, held) = two.enter(0, "/0").await;
    clients.push(first);
    for nth in 1..60 {
        clients.push(two.wait(nth % 2, &format!("/{nth}")).await);
    }
    drop(held);
    for nth in 1..60 {
        drop(two.visit(&format!("/{nth}")).await);
    }
    for client in clients {
        client.served().await;
    }
}

#[tokio::test]
async fn a_full_barrier_refuses_and_other_names_pass() {
    let (upstream, mut visits) = held().await;
    let cache = directory();
    let flags = ["--upstream", &upstream, "--barrier", "1", "--barrier-wait", "0", "--no-cache"];
    let gateways = [Gateway::start(cache.path(), &flags), Gateway::start(cache.path(), &flags)];
    let browser = Browser::http1();
    let get = |gateway: &Gateway, path| {
        let (browser, url) = (browser.clone(), gateway.url(path));
        tokio::spawn(async move { browser.get(&url).await })
    };
    let running = get(&gateways[0], "/wait");
    let held = visits.recv().await.unwrap();
    for gateway in &gateways {
        let refused = get(gateway, "/wait").await.unwrap();
        assert_eq!(refused.status, 503);
        assert!(!refused.header("retry-after").is_empty());
        let other = get(gateway, "/other");
        drop(visits.recv().await.unwrap());
        assert_eq!(other.await.unwrap().status, 200, "another path, another name");
    }
    drop(held);
    assert_eq!(running.await.unwrap().status, 200);
    let again = get(&gateways[1], "/wait");
    drop(visits.recv().await.unwrap());
    assert_eq!(again.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_killed_gateway_leaves_the_place_to_the_next() {
    let mut two = Two::new().await;
    let (_dying, _held) = two.enter(0, "/dying").await;
    let waiting = two.wait(1, "/waiting").await;
    let killed = Instant::now();
    two.gateways[0].signal(Signal::SIGKILL);
    drop(two.visit_soon("/waiting", killed).await);
    waiting.served().await;
    two.enter(1, "/late").await;
}

#[tokio::test]
async fn who_comes_after_a_gateway_was_killed_finds_the_place_free() {
    let mut two = Two::new().await;
    let (_dying, _held) = two.enter(0, "/dying").await;
    let killed = Instant::now();
    two.gateways[0].signal(Signal::SIGKILL);
    let _late = two.send(1, "/late").await;
    two.visit_soon("/late", killed).await;
}

#[tokio::test]
async fn clients_of_a_killed_gateway_are_passed_over() {
    let mut two = Two::new().await;
    let (served, held) = two.enter(0, "/served").await;
    let _dying = [two.wait(1, "/dying").await, two.wait(1, "/dying").await];
    let waiting = two.wait(0, "/waiting").await;
    two.gateways[1].signal(Signal::SIGKILL);
    let done = Instant::now();
    drop(held);
    drop(two.visit_soon("/waiting", done).await);
    served.served().await;
    waiting.served().await;
}

#[tokio::test]
async fn clients_of_a_stopped_gateway_are_passed_over_and_served_when_it_goes_on() {
    let mut two = Two::new().await;
    let (served, held) = two.enter(0, "/served").await;
    let stopped = two.wait(1, "/stopped").await;
    let waiting = two.wait(0, "/waiting").await;
    two.gateways[1].signal(Signal::SIGSTOP);
    let done = Instant::now();
    drop(held);
    let next = two.visit_soon("/waiting", done).await;
    two.gateways[1].signal(Signal::SIGCONT);
    let done = Instant::now();
    drop(next);
    drop(two.visit_soon("/stopped", done).await);
    for client in [served, waiting, stopped] {
        client.served().await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_served_leaves_the_place_to_the_next() {
    for next in [0, 1] {
        let mut two = Two::new().await;
        let (served, _held) = two.enter(0, "/served").await;
        let waiting = two.wait(next, "/waiting").await;
        let gone = Instant::now();
        drop(served);
        drop(two.visit_soon("/waiting", gone).await);
        waiting.served().await;
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_while_it_waits_is_passed_over() {
    for (leaving, next) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut two = Two::new().await;
        let (served, held) = two.enter(0, "/served").await;
        let gone = two.wait(leaving, "/gone").await;
        let waiting = two.wait(next, "/waiting").await;
        drop(gone);
        let done = Instant::now();
        drop(held);
        let visit = two.visits.recv().await.unwrap();
        // Its hanging up and the end of the first may be noticed in any order.
        let visit = if visit.path == "/gone" { two.visit("/waiting").await } else { visit };
        assert!(visit.path == "/waiting" && visit.at - done < SOON, "{leaving} {next}: {:?}", visit.at - done);
        drop(visit);
        served.served().await;
        waiting.served().await;
    }
}

#[tokio::test]
async fn sigterm_serves_those_who_wait_and_leaves_nothing_behind() {
    let mut two = Two::new().await;
    let (first, held) = two.enter(0, "/first").await;
    let second = two.wait(0, "/second").await;
    let third = two.wait(1, "/third").await;
    two.gateways[0].terminate();
    while TcpStream::connect(two.gateways[0].address).await.is_ok() {
        sleep(ms(5)).await;
    }
    drop(held);
    drop(two.visit("/second").await);
    let third_visit = two.visit("/third").await;
    assert_eq!(two.gateways[0].exit().code(), Some(0));
    drop(third_visit);
    for client in [first, second, third] {
        client.served().await;
    }
}
