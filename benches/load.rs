//! A throttle's checks beside processes that store answers in bulk and are busy with throttles and locks.
//!
//! ```text
//! cargo bench --bench load
//! ```
//!
//! The probe checks a throttle now and then. It does so on a machine that is at rest, then beside a process that stores in
//! another directory, and then beside one that stores in its own. What the second costs is the machine's; what the third
//! costs above it is that of a shared directory. Last, another process also throttles and locks there without a pause, so
//! that checks have to be queued; the values are then stored by that process's neighbour, or by the probe's own. It ends with
//! an error if an aim is missed.
#![allow(missing_docs)]

#[path = "support/locks/processes.rs"]
mod processes;
#[path = "support/statistics.rs"]
mod statistics;

use processes::Child;
use statistics::quantile;
use std::{
    future::IntoFuture,
    io::Read,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tempfile::tempdir;
use tokio::{runtime::Builder, task::JoinSet};
use tower_floodgate::{Cache, QueueStats, throttle::Rate};

/// Checks of the probe, and the pause after each.
const CHECKS: usize = 20_000;
const PAUSE: Duration = Duration::from_micros(200);
const VALUES: usize = 400;
const VALUE: usize = 2_000_000;
/// The p99 of the probe may be so many times what it is beside an idle directory.
const AIM: f64 = 2.0;

fn main() -> ExitCode {
    if let Some((part, place)) = processes::part() {
        match part.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["store"] => store(&place, &told_to_end()),
            ["decide"] => decide(&place),
            _ => return ExitCode::FAILURE,
        }
        return ExitCode::SUCCESS;
    }
    // `cargo test --benches` runs this too, only to see that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>11} {:>7} {:>9}",
        "a check, in us", "p50", "p99", "p99.9", "max", "failed", "uncounted"
    );
    let (here, elsewhere) = (tempdir().expect("a directory"), tempdir().expect("a directory"));
    probe("the machine at rest", here.path());
    let idle = beside("beside one that stores in another directory", here.path(), elsewhere.path(), &["store"]);
    let busy = beside("beside one that stores in the same directory", here.path(), here.path(), &["store"]);
    let crowd = beside("and one that throttles and locks there", here.path(), here.path(), &["store", "decide"]);
    let own = beside_own(here.path());
    println!();
    let ratio = busy.p99 / idle.p99;
    let all = [&idle, &busy, &crowd, &own];
    let aims = [
        (format!("the p99 is at most {AIM} times that of an idle directory: {ratio:.2}"), ratio <= AIM),
        (
            "no check fails, and none is uncounted".to_owned(),
            all.iter().all(|probed| probed.failed + probed.uncounted == 0),
        ),
        ("no value is late".to_owned(), all.iter().all(|probed| probed.late == 0)),
    ];
    for (what, met) in &aims {
        println!("{:<6} {what}", if *met { "ok" } else { "MISSED" });
    }
    if aims.iter().all(|aim| aim.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Probed {
    p99: f64,
    failed: usize,
    uncounted: usize,
    late: usize,
}

/// Checks beside processes that do their parts in a directory.
fn beside(what: &str, here: &Path, there: &Path, parts: &[&str]) -> Probed {
    let mut children: Vec<_> = parts.iter().map(|part| Child::start(&[part], there)).collect();
    for child in &mut children {
        assert_eq!(child.line(), "begun");
    }
    let mut probed = probe(what, here);
    for mut child in children {
        child.tell("end");
        for line in child.rest().lines() {
            match line.strip_prefix("late ") {
                Some(late) => probed.late += late.parse::<usize>().expect("a number"),
                None => println!("    {line}"),
            }
        }
    }
    probed
}

/// Checks in a process that stores, beside one that throttles and locks there.
fn beside_own(here: &Path) -> Probed {
    let ended = Arc::new(AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(|| store(here, &ended));
        let probed = beside("and this process is the one that stores", here, here, &["decide"]);
        ended.store(true, Relaxed);
        probed
    })
}

fn probe(what: &str, directory: &Path) -> Probed {
    let cache = Cache::open(directory).expect("a cache");
    let limiter = cache.throttle("probe", Rate::new(1, Duration::from_secs(86_400)).burst(30_000));
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut took, mut failed) = (Vec::with_capacity(CHECKS), 0);
    runtime.block_on(async {
        limiter.reset().await.expect("the cache works");
        for _ in 0..CHECKS {
            let began = Instant::now();
            failed += usize::from(limiter.check().await.is_err());
            took.push(began.elapsed().as_secs_f64() * 1e6);
            std::thread::sleep(PAUSE);
        }
    });
    let quota = limiter.peek_blocking().expect("the cache works");
    let counted = (quota.limit - quota.remaining) as usize;
    let uncounted = CHECKS - failed - counted;
    let at = |part| quantile(took.clone(), part);
    println!(
        "{what:<44} {:>9.1} {:>9.1} {:>9.1} {:>11.1} {failed:>7} {uncounted:>9}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    print_queue("    the probe's queue", &cache.stats().queued_decisions);
    Probed { p99: at(0.99), failed, uncounted, late: 0 }
}

fn print_queue(what: &str, queue: &QueueStats) {
    let mean = |sum: Duration, count: u64| sum.as_secs_f64() * 1e3 / count.max(1) as f64;
    println!(
        "{what}: {} writes queued for {:.3} ms each, {:.1} ms at most; {} batches under the gate for {:.3} ms each, {:.1} ms at most",
        queue.writes,
        mean(queue.waited, queue.writes),
        queue.longest_wait.as_secs_f64() * 1e3,
        queue.batches,
        mean(queue.writing, queue.batches),
        queue.longest_batch.as_secs_f64() * 1e3,
    );
}

/// Whether the benchmark wants no more.
fn told_to_end() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let tells = ended.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 8]);
        tells.store(true, Relaxed);
    });
    ended
}

/// Stores values, all at once, again and again.
fn store(directory: &Path, ended: &AtomicBool) {
    let (cache, value) = (Cache::open(directory).expect("a cache"), "x".repeat(VALUE));
    println!("begun");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut stored, mut late) = (0, 0);
    while !ended.load(Relaxed) {
        let mut inserts = JoinSet::new();
        for name in 0..VALUES {
            inserts.spawn_on(cache.insert(&name.to_string(), &value).into_future(), runtime.handle());
        }
        for done in runtime.block_on(inserts.join_all()) {
            stored += usize::from(done.is_ok());
            late += usize::from(done.is_err());
        }
    }
    println!("late {late}");
    print_queue(&format!("{stored} values stored"), &cache.stats().queued_answers);
}

/// Throttles and locks, one after the other.
fn decide(directory: &Path) {
    let cache = Cache::open(directory).expect("a cache");
    let ended = told_to_end();
    println!("begun");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut decided, mut failed) = (0, 0);
    runtime.block_on(async {
        while !ended.load(Relaxed) {
            let name = (decided % 1_000).to_string();
            failed += usize::from(cache.throttle(&name, Rate::per_second(1_000_000)).check().await.is_err());
            failed += usize::from(cache.lock(&name).await.is_err());
            decided += 1;
        }
    });
    println!("late {failed}");
    print_queue(&format!("{decided} throttles and locks"), &cache.stats().queued_decisions);
}
