//! One budget for several gateways: it is used up and shared, and a turn that somebody leaves is used by another.

use crate::{
    load::{at_once, hammer, total},
    origin::directory,
    process::{Browser, Gateway},
};
use nix::sys::signal::Signal;
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn three_gateways_that_are_hammered_admit_what_the_rate_says_and_starve_nobody() {
    let cache = directory();
    let flags = ["--throttle", "50/1", "--throttle-by", "all"];
    let gateways = [(); 3].map(|()| Gateway::start(cache.path(), &flags));
    let (shares, took) = hammer(&gateways, secs(4)).await;
    let all = total(&shares);
    println!("{all:?} in {took:?}: {shares:?}");
    assert!(f64::from(all.admitted) <= 50.0 + 50.0 * took.as_secs_f64(), "{all:?} in {took:?}");
    // Nothing is lost but by clients that do not ask for a whole second.
    assert!(f64::from(all.admitted) >= 0.95 * (50.0 + 50.0 * 4.0), "{all:?} in {took:?}");
    // Each is admitted in proportion to how often it asks; half of that is five deviations off for tickets drawn by lot.
    // A machine may be busy, and let one ask less often: that is no fault of the throttle.
    for share in &shares {
        let fair = f64::from(all.admitted) * f64::from(share.asked) / f64::from(all.asked);
        assert!(f64::from(share.admitted) >= fair / 2.0, "{shares:?}");
    }
}

#[tokio::test]
async fn thirty_who_may_wait_at_two_gateways_are_all_served_one_after_another() {
    let cache = directory();
    let flags = ["--throttle", "10/1", "--throttle-by", "all", "--throttle-wait", "30"];
    let gateways = [(); 2].map(|()| Gateway::start(cache.path(), &flags));
    let answers = at_once(&gateways, 30).await;
    assert!(answers.iter().all(|(_, answer)| answer.status == 200));
    let times: Vec<Duration> = answers.iter().map(|answer| answer.0).collect();
    println!("{times:?}");
    for (nth, time) in times.iter().enumerate() {
        let turn = Duration::from_millis(100) * u32::try_from((nth + 1).saturating_sub(10)).unwrap();
        assert!(*time >= turn, "{nth}: {times:?}");
        // The benchmark is stricter; here the machine may be as slow as it likes.
        assert!(*time < turn + secs(5), "{nth}: {times:?}");
    }
}

/// One request every two seconds. Two gateways where one may wait for that, and one that tells at once how long it would be.
struct Line {
    _cache: tempfile::TempDir,
    waiting: [Gateway; 2],
    asked: [u64; 2],
    telling: Gateway,
    browser: Browser,
}

impl Line {
    async fn new() -> Line {
        let cache = directory();
        let patient = |path: &Path| {
            let admin = ["--admin", "127.0.0.1:0", "--throttle-wait", "60"];
            Gateway::start(path, &[&["--throttle", "1/2", "--throttle-by", "all"][..], &admin].concat())
        };
        let waiting = [patient(cache.path()), patient(cache.path())];
        let telling = Gateway::start(cache.path(), &["--throttle", "1/2", "--throttle-by", "all"]);
        let line = Line { _cache: cache, waiting, asked: [0; 2], telling, browser: Browser::http1() };
        assert_eq!(line.delay().await, secs(0), "the first passes");
        line
    }

    /// A client that waits for its turn. It hangs up when it is dropped.
    async fn wait(&mut self, nth: usize) -> TcpStream {
        let gateway = &self.waiting[nth];
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        self.asked[nth] += 1;
        let stats = format!("http://{}/stats", gateway.admin.unwrap());
        // Who waits, or has waited.
        let come = async || {
            let stats: serde_json::Value = serde_json::from_str(&self.browser.get(&stats).await.body).unwrap();
            stats["waiting"].as_u64().unwrap() + stats["waited"].as_u64().unwrap()
        };
        while come().await < self.asked[nth] {
            sleep(Duration::from_millis(1)).await;
        }
        client
    }

    /// How long one who comes now would have to wait. Who need not is admitted.
    async fn delay(&self) -> Duration {
        let answer = self.browser.get(&self.telling.url("/hello")).await;
        match answer.status.as_u16() {
            200 => secs(0),
            _ => secs(answer.header("retry-after").parse().unwrap()),
        }
    }

    async fn until_the_delay_is_at_most(&self, most: Duration) {
        let began = Instant::now();
        while self.delay().await > most {
            assert!(began.elapsed() < secs(10), "{:?}", self.delay().await);
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn is_served_within(&self, nth: usize, most: Duration) {
        let began = Instant::now();
        assert_eq!(self.browser.get(&self.waiting[nth].url("/hello")).await.status, 200);
        assert!(began.elapsed() < most, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn clients_that_hang_up_while_they_wait_do_not_delay_the_next() {
    let mut line = Line::new().await;
    let mut clients = Vec::new();
    for nth in 0..20 {
        clients.push(line.wait(nth % 2).await);
    }
    let delay = line.delay().await;
    assert!(delay > secs(20), "{delay:?} behind twenty");
    drop(clients);
    line.until_the_delay_is_at_most(secs(2)).await;
    line.is_served_within(0, secs(20)).await;
}

#[tokio::test]
async fn a_killed_gateway_leaves_the_turns_of_its_clients_and_a_stopped_one_does_not() {
    let mut line = Line::new().await;
    let mut clients = Vec::new();
    for nth in 0..10 {
        clients.push(line.wait(nth % 2).await);
    }
    line.waiting[0].signal(Signal::SIGSTOP);
    // What was alive counts as alive for 25 ms.
    sleep(Duration::from_millis(30)).await;
    let delay = line.delay().await;
    assert!(delay > secs(10), "{delay:?} behind ten");
    line.waiting[0].signal(Signal::SIGKILL);
    // It has every other turn.
    line.until_the_delay_is_at_most(secs(4)).await;
    line.is_served_within(1, secs(10)).await;
}
