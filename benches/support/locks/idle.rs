//! The cost to a process of waiting for locks that another process holds.

use super::{Aim, processes::Child, runtime};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use std::{path::Path, time::Duration};
use tempfile::tempdir;
use tower_floodgate::{Cache, lock::Guard};

const WAITERS: usize = 32;
const SECONDS: u64 = 10;
/// Milliseconds of a processor in that time: a hundredth of one.
const AIM: f64 = 10.0 * SECONDS as f64;

const NOBODY: &str = "nobody: the cache is open";
const ONE_NAME: &str = "32 waiters of one name";
const MANY_NAMES: &str = "32 waiters of a name each";

/// Runs one process for each kind of waiting, at the same time.
pub(super) fn measure() -> Vec<Aim> {
    let directory = tempdir().expect("a temporary directory");
    let cache = Cache::open(directory.path()).expect("a cache");
    let held: Vec<Guard> = names(ONE_NAME).chain(names(MANY_NAMES)).map(|name| hold(&cache, &name)).collect();
    println!("\nuser+sys of a process in {SECONDS} s, while this one holds what it waits for");
    let children = [NOBODY, ONE_NAME, MANY_NAMES].map(|who| (who, Child::start(&["idle", who], directory.path())));
    let mut aims = Vec::new();
    for (who, child) in children {
        let lines = child.rest();
        let ms: f64 = lines.trim().parse().expect("milliseconds");
        println!("{who:<60} {ms:>9.1} ms {:>7.3} % of a core", ms / (10.0 * SECONDS as f64));
        aims.push((format!("less than a hundredth of a core: {who}"), ms < AIM));
    }
    drop(held);
    aims
}

/// Blocks the thread, since the benchmark has no runtime. The lock is held for as long as the process lives and keeps
/// the guard.
fn hold(cache: &Cache, name: &str) -> Guard {
    cache.lock(name).acquire_blocking().expect("nobody else wants it")
}

/// The names of the locks that the waiters wait for.
fn names(who: &str) -> Box<dyn Iterator<Item = String>> {
    match who {
        ONE_NAME => Box::new(std::iter::once("all".to_owned())),
        MANY_NAMES => Box::new((0..WAITERS).map(|i| format!("lock-{i}"))),
        _ => Box::new(std::iter::empty()),
    }
}

/// A process that waits, and prints the milliseconds of processor that it took.
pub(super) fn play(who: &str, place: &Path) {
    let cache = Cache::open(place).expect("a cache");
    let names: Vec<String> = names(who).collect();
    runtime(2).block_on(async {
        let mut waiters = tokio::task::JoinSet::new();
        for name in names.iter().cycle().take(if names.is_empty() { 0 } else { WAITERS }) {
            waiters.spawn(cache.lock(name).acquire());
        }
        // The waiters have joined the line long before this ends.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = used();
        tokio::time::sleep(Duration::from_secs(SECONDS)).await;
        let used = used() - before;
        assert!(waiters.try_join_next().is_none(), "somebody got what another holds");
        println!("{used}");
    });
}

/// Milliseconds of processor that this process has used.
fn used() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("known");
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e3
}
