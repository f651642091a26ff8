//! What a restart of the machine leaves of a budget: nobody is shut out longer than a burst takes to come back, and nobody
//! gets more than a burst.
//!
//! A restart is another boot id than the one that the cache has written down, and a machine time that was over before the
//! machine started. Machine time is the time since boot and an offset, which is written down as well.

use rustix::time::{ClockId, clock_gettime};
use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    task::{Context, Waker},
    time::Duration,
};
use tower_floodgate::{
    Cache,
    throttle::{LimitError, Limiter, Limits, Rate, SlidingWindow},
};

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, nobody_starts, open, role, say, told, wait_to_be_killed};

/// The text in which the cache has written down what it needs to know at its next opening.
fn layout(path: &Path) -> PathBuf {
    let inner = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path().join("layout"));
    inner.into_iter().find(|layout| layout.exists()).unwrap()
}

fn field(path: &Path, name: &str) -> String {
    let text = fs::read_to_string(layout(path)).unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
}

fn set(path: &Path, name: &str, value: &str) {
    let text = fs::read_to_string(layout(path)).unwrap();
    let lines = text.lines().map(|line| match line.split_once('=') {
        Some((field, _)) if field == name => format!("{name}={value}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(layout(path), lines.collect::<String>()).unwrap();
}

/// How long this machine has been up.
fn up() -> Duration {
    let up = clock_gettime(ClockId::Boottime);
    Duration::new(up.tv_sec as u64, up.tv_nsec as u32)
}

/// Closes a cache that nobody else uses, not even a child that is about to start.
fn close(cache: Cache) {
    let _alone = nobody_starts();
    drop(cache);
}

/// A cache of a life of the machine that was over just before this one began, and how long a restart takes in it.
fn earlier_life() -> (tempfile::TempDir, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    close(open(path));
    let down = up() + Duration::from_secs(60);
    let offset: u64 = field(path, "offset").parse().unwrap();
    set(path, "offset", &(offset - down.as_nanos() as u64).to_string());
    (directory, down)
}

fn reboot(path: &Path) -> Cache {
    set(path, "boot", "another");
    open(path)
}

const BURST: u32 = 3;

/// Limits of a burst of 3, so slow that a restart gives back a small part of a unit only.
fn slow(down: Duration) -> [(&'static str, Limits); 2] {
    let window = down * 100;
    [("rate", Rate::new(BURST, window).into()), ("sliding window", SlidingWindow::new(BURST, window).into())]
}

fn retry_after(limit: &Limiter) -> Duration {
    match limit.check_blocking() {
        Err(LimitError::Throttled { retry_after: Some(delay), .. }) => delay,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reboot_sends_home_who_waited_and_refills_nothing() {
    let (directory, down) = earlier_life();
    let path = directory.path();
    let cache = open(path);
    for (name, limits) in slow(down) {
        let limit = cache.throttle(name, limits);
        (0..BURST).for_each(|_| drop(limit.check_blocking().unwrap()));
    }
    let mut child = Child::spawn("wait", path);
    child.tell(&down.as_nanos().to_string());
    child.expect("waiting");
    // Killed at the end of its life: whoever waited was not able to say good-bye.
    child.kill();
    for (name, limits) in slow(down) {
        let quota = cache.throttle(name, limits).peek_blocking().unwrap();
        assert!(quota.reset > 5 * quota.window, "{name}: a long queue");
    }
    close(cache);
    assert_eq!(field(path, "clean"), "1");

    let cache = reboot(path);
    for (name, limits) in slow(down) {
        let limit = cache.throttle(name, limits);
        let quota = limit.peek_blocking().unwrap();
        assert_eq!(quota.remaining, 0, "{name}");
        // One takes a whole number of nanoseconds.
        let longest = quota.window + Duration::from_nanos(BURST.into());
        assert!(quota.reset <= longest, "{name}");
        assert!(retry_after(&limit.cost(BURST)) <= longest, "{name}");
        let first = retry_after(&limit);
        assert!(first <= longest && retry_after(&limit) < first, "{name}: it comes nearer");
    }
}

#[test]
fn a_reboot_keeps_what_was_left() {
    let (directory, down) = earlier_life();
    let path = directory.path();
    let cache = open(path);
    for (name, limits) in slow(down) {
        cache.throttle(name, limits).check_blocking().unwrap();
    }
    close(cache);
    let cache = reboot(path);
    for (name, limits) in slow(down) {
        assert_eq!(granted(&cache.throttle(name, limits)), BURST - 1, "{name}");
    }
}

#[test]
fn a_crash_of_the_machine_grants_no_more_than_a_burst() {
    let (directory, down) = earlier_life();
    let path = directory.path();
    let mut child = Child::spawn("wait", path);
    child.tell(&down.as_nanos().to_string());
    child.expect("waiting");
    // Nobody is left to write down a clean end.
    child.kill();
    assert_eq!(field(path, "clean"), "0");
    let cache = reboot(path);
    for (name, limits) in slow(down) {
        assert_eq!(granted(&cache.throttle(name, limits)), BURST, "{name}");
    }
}

fn granted(limit: &Limiter) -> u32 {
    (0..100).map(|_| u32::from(limit.check_blocking().is_ok())).sum()
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "wait");
    let down = Duration::from_nanos(told().unwrap().parse().unwrap());
    let cache = open(&path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    for (name, limits) in slow(down) {
        let limit = cache.throttle(name, limits);
        for _ in 0..20 {
            let mut turn = Box::pin(limit.acquire());
            let _ = turn.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // Its place was taken before this is answered.
            runtime.block_on(limit.peek()).unwrap();
            std::mem::forget(turn);
        }
    }
    say("waiting");
    wait_to_be_killed();
}
