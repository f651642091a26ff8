//! Nothing waits for ever: where no thread is to be had, where a callback does not return, where a span is the longest.

#![allow(unsafe_code)] // to give up the rights of root, which is not bound by limits

mod support;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::geteuid;
use std::{
    os::unix::fs::chown,
    path::Path,
    sync::{Arc, Barrier},
    time::Duration,
};
use support::{Child, LONG, builder, role, say, told, wait_to_be_killed};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Error, StampedeCacheLayer, ThrottleLayer,
    lock::{AcquireError, Holder, Lock, Owner},
    throttle::{Advice, LimitError, Rate, SlidingWindow},
};

const NOBODY: u32 = 65_534;

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    match role.as_str() {
        "stays in the gate" => stay_in_the_gate(&path),
        "without threads" => without_threads(&path),
        "beside a callback that hangs" => beside_a_callback_that_hangs(&path),
        role => panic!("{role}"),
    }
}

/// Until the end, this process gets no thread any more.
fn forbid_threads(forbidden: bool) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
    setrlimit(Resource::RLIMIT_NPROC, if forbidden { 0 } else { hard }, hard).unwrap();
    assert_eq!(std::thread::Builder::new().spawn(|| ()).is_err(), forbidden);
}

/// Limits do not bind root.
fn become_nobody() {
    if geteuid().is_root() {
        // SAFETY: it only changes whose process this is.
        assert_eq!(unsafe { libc::setuid(NOBODY) }, 0);
    }
}

fn stay_in_the_gate(path: &Path) {
    become_nobody();
    let cache = builder(path).open().unwrap();
    let _held = cache.lock("held").acquire_blocking().unwrap();
    say("holds");
    assert_eq!(told().as_deref(), Some("enter"));
    // A rule runs inside the transaction.
    let stay = |_: &[Holder], _: &Owner| {
        say("in");
        assert_eq!(told().as_deref(), Some("leave"));
        true
    };
    drop(cache.lock("in the gate").rule(stay).acquire_blocking().unwrap());
    say("out");
}

#[tokio::main(flavor = "current_thread")]
async fn without_threads(path: &Path) {
    become_nobody();
    let cache = builder(path).open().unwrap();
    forbid_threads(true);
    // The caller's own thread does the work.
    assert!(cache.insert("a", &1).await.unwrap());
    assert_eq!(cache.incr("n", 1).await.unwrap(), 1);
    let many: Vec<_> = (0..1_000).map(|_| cache.incr("n", 1)).collect();
    for added in many {
        added.await.unwrap();
    }
    assert_eq!(cache.get::<i64>("n").unwrap(), Some(1_001));
    cache.evict("t").await.unwrap();
    assert_eq!(support::count_async(&cache, "n").await.unwrap(), 1);
    let filled = cache.get_or_fill("f", LONG, || async { Ok::<_, Error>(7) }).await;
    assert_eq!(filled.unwrap(), 7);
    // No thread would renew it.
    assert!(matches!(cache.lock("l").await, Err(AcquireError::Cache(Error::NoThread))));
    assert!(matches!(cache.lock("l").acquire_blocking(), Err(AcquireError::Cache(Error::NoThread))));
    // No thread would hear that it is free.
    assert!(matches!(cache.lock("held").await, Err(AcquireError::Cache(Error::NoThread))));
    assert!(matches!(cache.lock("held").try_acquire().await, Err(AcquireError::Busy { .. })));
    say("served");
    assert_eq!(told().as_deref(), Some("the gate is taken"));
    assert!(matches!(support::count_async(&cache, "n").await, Err(Error::NoThread)));
    assert!(matches!(support::count(&cache, "n"), Err(Error::NoThread)));
    let refused = cache.throttle("t", Rate::per_second(1)).check().await;
    assert!(matches!(refused, Err(LimitError::Cache(Error::NoThread))));
    assert!(matches!(cache.lock("m").await, Err(AcquireError::Cache(Error::NoThread))));
    assert!(cache.insert("a", &2).await.unwrap(), "the answers have a gate of their own");
    say("refused");
    assert_eq!(told().as_deref(), Some("the gate is free"));
    forbid_threads(false);
    assert_eq!(support::count_async(&cache, "n").await.unwrap(), 2);
    let guard = cache.lock("l").await.unwrap();
    assert!(matches!(cache.lock("l").try_acquire().await, Err(AcquireError::Busy { .. })));
    guard.release().await.unwrap();
    say("over");
}

#[test]
fn where_no_thread_is_to_be_had_callers_do_the_work_or_fail_and_none_waits_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    if geteuid().is_root() {
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let mut other = Child::spawn("stays in the gate", dir.path());
    other.expect("holds");
    let mut child = Child::spawn("without threads", dir.path());
    child.expect("served");
    other.tell("enter");
    other.expect("in");
    child.tell("the gate is taken");
    child.expect("refused");
    other.tell("leave");
    other.expect("out");
    child.tell("the gate is free");
    child.expect("over");
    child.end();
    other.end();
}

/// The nanoseconds for which the threads of that name have run.
fn cpu_of(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
    let named = tasks.filter(|task| name.starts_with(std::fs::read_to_string(task.join("comm")).unwrap().trim()));
    named
        .map(|task| {
            let stat = std::fs::read_to_string(task.join("schedstat")).unwrap();
            stat.split(' ').next().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

fn beside_a_callback_that_hangs(path: &Path) {
    let patience = Duration::from_millis(100);
    let cache = Cache::builder(path).state_size(1 << 20).patience(patience).open().unwrap();
    // The worker thread renews it all the time, however long that takes.
    let _held = cache.lock("held").expire(Duration::from_millis(30)).acquire_blocking().unwrap();
    let inside = Arc::new(Barrier::new(2));
    let hung = {
        let (inside, lock) = (inside.clone(), cache.lock("hung"));
        let hang = move |_: &[Holder], _: &Owner| {
            inside.wait();
            wait_to_be_killed()
        };
        std::thread::spawn(move || lock.rule(hang).acquire_blocking().is_ok())
    };
    inside.wait();
    let began = cpu_of("floodgate-state");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    // The first ones wait for their patience, all others fail at once.
    let counted: Vec<_> = (0..100)
        .map(|_| {
            let cache = cache.clone();
            runtime.spawn(async move { support::count_async(&cache, "n").await })
        })
        .collect();
    for counted in counted {
        assert!(matches!(runtime.block_on(counted).unwrap(), Err(Error::Busy)));
    }
    assert!(matches!(support::count(&cache, "n"), Err(Error::Busy)));
    assert!(matches!(cache.lock("l").acquire_blocking(), Err(AcquireError::Cache(Error::Busy))));
    assert!(cache.insert("x", &1).wait().unwrap(), "the answers have a gate of their own");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!hung.is_finished());
    say(cpu_of("floodgate-state") - began);
    wait_to_be_killed();
}

#[test]
fn a_worker_does_not_spin_beside_a_callback_that_hangs_and_all_others_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Child::spawn("beside a callback that hangs", dir.path());
    let cpu: u64 = child.line().parse().unwrap();
    // Of more than 600 ms.
    assert!(cpu < 100_000_000, "{cpu} ns");
    child.kill();
}

#[tokio::test]
async fn the_longest_spans_mean_for_ever() {
    const EVER: Duration = Duration::MAX;
    // A budget comes back within a hundred years.
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    let cache = Cache::builder_temporary().state_size(1 << 20).patience(EVER).open().unwrap();
    assert!(cache.insert("a", &1).expire(EVER).await.unwrap());
    assert!(cache.touch("a", Some(EVER)).await.unwrap());
    assert_eq!(cache.get::<i32>("a").unwrap(), Some(1));
    let many: Vec<_> = (0..100).map(|_| cache.incr("n", 1)).collect();
    for added in many {
        added.await.unwrap();
    }
    assert_eq!(cache.get_or_fill("f", EVER, || async { Ok::<_, Error>(7) }).await.unwrap(), 7);

    let rate = cache.throttle("rate", Rate::new(1, CENTURY));
    rate.acquire_timeout(EVER).await.unwrap();
    assert!(rate.check().await.is_err());
    let window = cache.throttle("window", SlidingWindow::new(1, CENTURY));
    window.acquire_timeout(EVER).await.unwrap();
    assert!(window.check().await.is_err());
    let blocked = cache.throttle("blocked", Rate::per_second(1));
    blocked.block(EVER).await.unwrap();
    assert!(blocked.check().await.is_err());
    blocked.reset().await.unwrap();
    blocked.acquire_timeout(EVER).await.unwrap();

    let held = cache.lock("l").at_least(EVER).wait_at_most(EVER).await.unwrap();
    held.release().await.unwrap();
    assert!(matches!(cache.lock("l").try_acquire().await, Err(AcquireError::Busy { .. })));
    assert!(cache.lock("m").acquire_timeout(EVER).await.is_ok());
    let blocking = cache.clone();
    let acquired = std::thread::spawn(move || blocking.lock("m").acquire_timeout_blocking(EVER).is_ok());
    assert!(acquired.join().unwrap());

    let answer =
        || service_fn(|_: http::Request<()>| async { Ok::<_, std::convert::Infallible>(http::Response::new(())) });
    let request = || http::Request::get("http://host/").body(()).unwrap();
    let throttled = ThrottleLayer::new(cache.scope("throttle"), 1, CENTURY).expire(EVER).hold_at_most(EVER);
    let throttled = throttled.block_for(EVER, 3);
    assert!(throttled.layer(answer()).oneshot(request()).await.unwrap().status().is_success());
    let waiting = ThrottleLayer::new(cache.scope("waiting"), 1, CENTURY).wait_at_most(EVER);
    assert!(waiting.layer(answer()).oneshot(request()).await.unwrap().status().is_success());
    let barred = BarrierLayer::new(cache.scope("barrier"), Lock).wait_at_most(EVER).at_least(EVER);
    assert!(barred.layer(answer()).oneshot(request()).await.unwrap().status().is_success());
    let cached = StampedeCacheLayer::memoize(cache.scope("cached"), EVER)
        .stale_while_revalidate(EVER)
        .stale_if_error(EVER)
        .soft_timeout(EVER)
        .follow_at_most(EVER);
    let cached = cached.layer(service_fn(|name: String| async { Ok::<_, Error>(name) }));
    for _ in 0..2 {
        assert_eq!(cached.clone().oneshot("x".into()).await.unwrap(), "x");
    }
    let _ = (Advice::hold_for(EVER), Advice::left(1, EVER));
}
