//! Several processes on one directory: what one does counts for all, and `kill -9` neither refills nor forgets.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, Instant},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Fail, Rejection, Semaphore, StampedeCacheLayer, ThrottleLayer,
    lock::{AcquireError, Guard},
    throttle::Rate,
};

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, open, role, say, told, wait_to_be_killed};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A directory that exists already, so that its sizes are the small ones of the tests.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    drop(open(&cache_of(&directory)));
    directory
}

fn cache_of(directory: &tempfile::TempDir) -> std::path::PathBuf {
    directory.path().join("cache")
}

/// Children that are ready to begin together.
fn crew(role: &str, path: &Path, size: usize) -> Vec<Child> {
    let mut crew: Vec<_> = (0..size).map(|_| Child::spawn(role, path)).collect();
    for child in &mut crew {
        child.expect("ready");
    }
    crew
}

fn tell_all(crew: &mut [Child], line: &str) {
    crew.iter_mut().for_each(|child| child.tell(line));
}

fn numbers(crew: &mut [Child]) -> Vec<u64> {
    crew.iter_mut().map(|child| child.line()).map(|line| line.parse().unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn a_throttle_is_exact_over_three_processes() {
    let directory = directory();
    let mut crew = crew("throttled", &cache_of(&directory), 3);
    let began = Instant::now();
    tell_all(&mut crew, "go");
    let admitted = numbers(&mut crew);
    let took = began.elapsed().as_secs_f64();
    let total: u64 = admitted.iter().sum();
    assert!(total as f64 <= 50.0 + 50.0 * took, "{admitted:?} in {took} s");
    // They ask without a pause for `BUSY`, so none of the budget is left over but for what a busy machine delays.
    assert!(total as f64 >= 50.0 + 50.0 * BUSY.as_secs_f64() * 0.8, "{admitted:?} in {took} s");
}

#[test]
fn waiters_of_three_processes_share_one_pace() {
    let directory = directory();
    let path = cache_of(&directory);
    let limit = open(&path).throttle("pace", Rate::new(1, ms(20)));
    limit.check_blocking().unwrap();
    let mut crew = crew("paced", &path, 3);
    let began = Instant::now();
    tell_all(&mut crew, "go");
    let waited = numbers(&mut crew);
    let took = began.elapsed();
    assert_eq!(waited, [5, 5, 5]);
    // 15 turns at 20 ms each, after one that is spent: no two processes were given the same.
    assert!(took >= ms(14 * 20), "{took:?}");
    assert!(took < ms(15 * 20) + secs(3), "{took:?}");
}

#[test]
fn a_barrier_lets_one_in_over_two_processes() {
    let directory = directory();
    for (role, size) in [("one by one", 2), ("two at a time", 3)] {
        let mut crew = crew(role, &cache_of(&directory), size);
        tell_all(&mut crew, "go");
        let visits = numbers(&mut crew);
        assert_eq!(visits, vec![VISITS; size], "{role}");
    }
}

#[test]
fn killing_and_starting_again_refills_no_budget() {
    let directory = directory();
    let path = cache_of(&directory);
    for expected in [10, 0, 0] {
        let mut child = Child::spawn("spend", &path);
        assert_eq!(numbers(std::slice::from_mut(&mut child)), [expected]);
        child.kill();
    }
    let rest = open(&path).scope("api").throttle("", Rate::new(10, secs(36_000)));
    assert!(rest.check_blocking().is_err());
}

#[test]
fn killing_writers_at_any_time_neither_refills_nor_blocks() {
    let directory = directory();
    let path = cache_of(&directory);
    let cache = open(&path);
    let limit = cache.throttle("drip", Rate::new(1_000_000, secs(36_000)));
    for round in 0..8 {
        let mut children = crew("drip", &path, 2);
        let before = limit.check_blocking().unwrap().quota.remaining;
        tell_all(&mut children, "go");
        // Each has written some when it says so; the kill comes in the middle of more.
        assert_eq!(children[round % 2].line(), "dripping");
        children.into_iter().for_each(Child::kill);
        let after = limit.check_blocking().unwrap().quota.remaining;
        assert!(after + DRIPS <= before, "round {round}: {before} -> {after}");
    }
    assert_eq!(cache.stats().failures + cache.stats().damaged, 0);
}

#[test]
fn what_one_process_computed_is_a_hit_in_another_and_after_kill_9() {
    let directory = directory();
    let path = cache_of(&directory);
    let mut first = Child::spawn("compute", &path);
    first.expect("computed: 144");
    let mut second = Child::spawn("compute", &path);
    assert_eq!(second.line(), "kept: 144", "while the first lives");
    first.kill();
    second.kill();
    assert_eq!(Child::spawn("compute", &path).line(), "kept: 144", "after kill -9 of all");

    // What one purges is gone for all, also for those that have it open.
    let mut third = Child::spawn("compute", &path);
    third.expect("kept: 144");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(open(&path).evict("squares")).unwrap();
    third.tell("again");
    third.expect("computed: 144");
}

#[test]
fn values_and_counters_are_shared() {
    let directory = directory();
    let path = cache_of(&directory);
    let mut crew = crew("count", &path, 3);
    tell_all(&mut crew, "go");
    let added: u64 = numbers(&mut crew).iter().sum();
    let cache = open(&path);
    assert_eq!(added, COUNTS, "each name was added once");
    assert_eq!(cache.get::<i64>("sum").unwrap(), Some(3 * i64::try_from(COUNTS).unwrap()));
}

#[test]
fn one_of_three_killed_holders_gives_back_one_permit() {
    let directory = directory();
    let path = cache_of(&directory);
    let cache = open(&path);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let permit = |patience| -> Result<Guard, AcquireError> {
        let _context = runtime.enter();
        cache.lock("permits").rule(Semaphore(3)).wait_at_most(patience).acquire_blocking()
    };
    let mut holders = crew("hold a permit", &path, 3);
    assert!(permit(ms(0)).is_err());
    holders.remove(1).kill();
    let _one = permit(secs(10)).unwrap();
    // Another lease goes by, and the living keep theirs.
    assert!(permit(2 * LEASE).is_err(), "the others still hold theirs");
}

const BUSY: Duration = ms(1_500);
const VISITS: u64 = 60;
const DRIPS: u32 = 50;
const COUNTS: u64 = 100;
const LEASE: Duration = ms(500);

#[test]
fn a_value_that_another_process_computes_is_waited_for_as_long_as_that_lives() {
    let directory = directory();
    let path = cache_of(&directory);
    let mut other = Child::spawn("computes", &path);
    other.expect("computes");
    // Plain threads, without a runtime.
    let cache = open(&path);
    let own = |value: u32| move || Ok::<_, ()>(value);
    let impatient = cache.get_or_fill("x", secs(600), own(1)).follow_at_most(ms(50)).wait();
    assert_eq!(impatient, Ok(1));
    cache.remove("x").wait().unwrap();
    let patient = std::thread::spawn({
        let cache = cache.clone();
        move || cache.get_or_fill("x", secs(600), own(2)).wait()
    });
    while cache.stats().lock_waiters == 0 {
        std::thread::yield_now();
    }
    other.kill();
    assert_eq!(patient.join().unwrap(), Ok(2));
    assert_eq!(cache.get::<u32>("x").unwrap(), Some(2));
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    let cache = open(&path);
    let ready = || {
        say("ready");
        assert_eq!(told().unwrap(), "go");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _context = runtime.enter();
    match role.as_str() {
        "throttled" => {
            let layer = ThrottleLayer::new(cache.scope("api"), 50, secs(1)).answer(Fail);
            let service = layer.layer(service_fn(async |_: ()| Ok::<_, Rejection>(())));
            ready();
            let (began, mut admitted) = (Instant::now(), 0);
            while began.elapsed() < BUSY {
                admitted += u64::from(runtime.block_on(service.clone().oneshot(())).is_ok());
            }
            assert_eq!(cache.stats().failures, 0);
            say(admitted);
        }
        "paced" => {
            ready();
            let limit = cache.throttle("pace", Rate::new(1, ms(20)));
            for _ in 0..5 {
                runtime.block_on(limit.acquire()).unwrap();
            }
            say(5);
        }
        "one by one" | "two at a time" => {
            ready();
            let permits = if role == "one by one" { 1 } else { 2 };
            say(runtime.block_on(visit(&cache, permits, path.parent().unwrap())));
        }
        "spend" => {
            let layer = ThrottleLayer::new(cache.scope("api"), 10, secs(36_000)).answer(Fail);
            let service = layer.layer(service_fn(async |_: ()| Ok::<_, Rejection>(())));
            say((0..20).filter(|_| runtime.block_on(service.clone().oneshot(())).is_ok()).count());
            wait_to_be_killed();
        }
        "computes" => {
            let compute = || -> Result<u32, ()> {
                say("computes");
                wait_to_be_killed()
            };
            let _ = cache.get_or_fill("x", secs(600), compute).wait();
        }
        "drip" => {
            let limit = cache.throttle("drip", Rate::new(1_000_000, secs(36_000)));
            ready();
            for drips in 0.. {
                limit.check_blocking().unwrap();
                if drips == DRIPS {
                    say("dripping");
                }
            }
        }
        "compute" => {
            let layer = StampedeCacheLayer::memoize(cache.scope("squares"), secs(3_600)).tag("squares");
            let square = layer.layer(service_fn(async |n: u64| Ok::<_, Rejection>(n * n)));
            loop {
                let before = cache.stats();
                let answer = runtime.block_on(square.clone().oneshot(12)).unwrap();
                let kept = cache.stats().hits > before.hits;
                // The computation is a task of its own, done when the answer is on disk.
                while !kept && cache.stats().stored == before.stored {
                    runtime.block_on(tokio::task::yield_now());
                }
                say(format_args!("{}: {answer}", if kept { "kept" } else { "computed" }));
                assert_eq!(told().unwrap(), "again");
            }
        }
        "count" => {
            ready();
            let added = (0..COUNTS).filter(|name| cache.add(&format!("name-{name}"), &1).wait().unwrap()).count();
            for _ in 0..COUNTS {
                cache.incr("sum", 1).wait().unwrap();
            }
            say(added);
        }
        "hold a permit" => {
            let _permit = cache.lock("permits").rule(Semaphore(3)).expire(LEASE).acquire_blocking().unwrap();
            say("ready");
            wait_to_be_killed();
        }
        role => panic!("{role}"),
    }
}

/// Four tasks go through the barrier again and again; each visit claims one of so many files, which fails if another is
/// in.
async fn visit(cache: &Cache, permits: u32, probes: &Path) -> u64 {
    let probes = probes.to_path_buf();
    let inside = service_fn(move |_: ()| {
        let probes = probes.clone();
        async move {
            let claim = (0..permits)
                .map(|probe| probes.join(format!("probe-{probe}")))
                .find(|probe| File::create_new(probe).is_ok())
                .unwrap_or_else(|| panic!("more than {permits} inside"));
            tokio::task::yield_now().await;
            fs::remove_file(claim).unwrap();
            Ok::<_, Rejection>(())
        }
    });
    let service = BarrierLayer::new(cache.scope("inside"), Semaphore(permits)).name(permits.to_string()).answer(Fail);
    let service = service.layer(inside);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let service = service.clone();
        tasks.spawn(async move {
            for _ in 0..VISITS / 4 {
                service.clone().oneshot(()).await.unwrap();
            }
            VISITS / 4
        });
    }
    tasks.join_all().await.into_iter().sum()
}
