//! The figures that the gateway promises, in seconds and requests, checked on real processes.
//!
//! ```text
//! cargo build --release --example gateway && cargo bench --bench figures
//! ```
//!
//! It ends with an error if one is missed. `FLOODGATE_GATEWAY` names another binary to look at.
#![allow(missing_docs)]

#[path = "../tests/gateway/process.rs"]
mod process;

use http::StatusCode;
use process::{Answer, Browser, Gateway};
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use tempfile::tempdir;
use tokio::task::JoinSet;

/// What was wanted, what came out, and whether that will do.
struct Figure {
    what: &'static str,
    wanted: String,
    measured: String,
    met: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    // `cargo test --benches` runs this too, and wants to know no more than that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let mut figures = stampede().await;
    figures.extend(throttle().await);
    for Figure { what, wanted, measured, met } in &figures {
        println!("{:<6} {what:<58} {wanted:<14} {measured}", if *met { "ok" } else { "MISSED" });
    }
    if figures.iter().all(|figure| figure.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// 64 at once want what takes 300 ms and nobody has asked for.
async fn stampede() -> Vec<Figure> {
    let cache = tempdir().expect("a temporary directory");
    let gateway = Gateway::start(cache.path(), &[]);
    let browser = Browser::http1();
    let mut requests = JoinSet::new();
    for _ in 0..64 {
        let (browser, url) = (browser.clone(), gateway.url("/slow/300"));
        requests.spawn(async move {
            let asked = Instant::now();
            (browser.get(&url).await, asked.elapsed())
        });
    }
    let answers: Vec<(Answer, Duration)> = requests.join_all().await;
    let served = answers.iter().filter(|(answer, _)| answer.status == StatusCode::OK).count();
    let slowest = answers.iter().map(|(_, took)| *took).max().unwrap_or_default();
    let calls = browser.get(&gateway.url("/count")).await.body;
    let hit = Instant::now();
    let again = browser.get(&gateway.url("/slow/300")).await;
    let hit = hit.elapsed();
    vec![
        figure("64 cold requests to /slow/300: served", "64", served, served == 64),
        figure("64 cold requests to /slow/300: calls of the origin", "1", &calls, calls == "1"),
        figure(
            "64 cold requests to /slow/300: the last answer after",
            "< 0.6 s",
            format!("{:.3} s", slowest.as_secs_f64()),
            slowest < Duration::from_millis(600),
        ),
        figure(
            "the same once more: a hit, after",
            "< 0.1 s",
            format!("{:.4} s", hit.as_secs_f64()),
            again.header("cache-status").contains("hit") && hit < Duration::from_millis(100),
        ),
    ]
}

/// Three processes share 50 a second, and are asked for more than that the whole time.
async fn throttle() -> Vec<Figure> {
    const HAMMERING: Duration = Duration::from_secs(4);
    let cache = tempdir().expect("a temporary directory");
    let gateways: Vec<Gateway> =
        (0..3).map(|_| Gateway::start(cache.path(), &["--throttle", "50/1", "--throttle-by", "all"])).collect();
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for gateway in gateways.iter().cycle().take(12) {
        let url = gateway.url("/hello");
        clients.spawn(async move {
            let browser = Browser::http1();
            let (mut asked, mut admitted) = (0_u32, 0_u32);
            while began.elapsed() < HAMMERING {
                asked += 1;
                admitted += u32::from(browser.get(&url).await.status == StatusCode::OK);
            }
            (asked, admitted)
        });
    }
    let counts = clients.join_all().await;
    let took = began.elapsed().as_secs_f64();
    let asked: u32 = counts.iter().map(|(asked, _)| asked).sum();
    let admitted: u32 = counts.iter().map(|(_, admitted)| admitted).sum();
    let most = 50.0 + 50.0 * took;
    vec![
        figure(
            "three processes at 50/1: admitted in the time",
            format!("<= {most:.1}"),
            format!("{admitted} of {asked} in {took:.2} s"),
            f64::from(admitted) <= most,
        ),
        figure(
            "three processes at 50/1: nor much less than that",
            format!(">= {:.1}", most * 0.9),
            admitted,
            f64::from(admitted) >= most * 0.9,
        ),
    ]
}

fn figure(what: &'static str, wanted: impl Into<String>, measured: impl ToString, met: bool) -> Figure {
    Figure { what, wanted: wanted.into(), measured: measured.to_string(), met }
}
