//! Processes that are stopped or killed in the middle of a write, and those that go on beside them.

mod support;

use nix::sys::signal::{Signal, raise};
use std::{
    future::{Future, poll_fn},
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};
use support::{Child, LONG, builder, role, say, told};
use tower_floodgate::{
    Cache, Error,
    lock::{AcquireError, Holder, Owner},
    time::clock_fn,
};

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    match role.as_str() {
        "state" => {
            let cache = open(&path, LONG);
            say("open");
            let mut held = Vec::new();
            while told().is_some() {
                // A rule runs inside the transaction.
                let stopping = |_: &[Holder], _: &Owner| {
                    raise(Signal::SIGSTOP).unwrap();
                    true
                };
                held.push(cache.lock("l").rule(stopping).acquire_blocking().unwrap());
                say(support::count(&cache, "n").unwrap());
            }
        }
        "entries" => {
            let stop = Arc::new(AtomicBool::new(false));
            let cache = builder(&path).clock(stopping_clock(stop.clone())).open().unwrap();
            say("open");
            while told().is_some() {
                stop.store(true, SeqCst);
                say(cache.incr("n", 1).wait().unwrap());
            }
        }
        role => panic!("{role}"),
    }
}

/// Writers ask for the time while they hold the gate.
fn stopping_clock(stop: Arc<AtomicBool>) -> impl tower_floodgate::time::Clock {
    let now = move || {
        if std::thread::current().name() == Some("floodgate-entries") && stop.swap(false, SeqCst) {
            raise(Signal::SIGSTOP).unwrap();
        }
        Duration::from_secs(1_000_000)
    };
    clock_fn(now, |_| std::future::pending())
}

fn stopped(role: &str, path: &Path) -> Child {
    let mut child = Child::spawn(role, path);
    child.expect("open");
    child.tell("go");
    child.wait_until_stopped();
    child
}

fn open(path: &Path, patience: Duration) -> Cache {
    let clock = clock_fn(|| Duration::from_secs(1_000_000), |_| std::future::pending());
    builder(path).patience(patience).clock(clock).open().unwrap()
}

async fn count(cache: &Cache) -> Result<u64, Error> {
    support::count_async(cache, "n").await
}

/// Whether nobody holds the lock that the child `state` is about to take when it stops.
async fn is_free(cache: &Cache) -> bool {
    match cache.lock("l").wait_at_most(Duration::ZERO).await {
        Ok(_) => true,
        Err(AcquireError::Busy { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// The result, if it is there at the first poll.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        Poll::Ready(match future.as_mut().poll(cx) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

/// A timer of the runtime: how often it has ticked.
#[derive(Clone, Default)]
struct Ticker {
    ticks: Arc<AtomicU64>,
}

impl Ticker {
    fn start() -> Ticker {
        let ticker = Ticker::default();
        let ticking = ticker.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ticking.ticks.fetch_add(1, SeqCst);
            }
        });
        ticker
    }

    async fn wait_for(&self, more: u64) {
        let wanted = self.ticks.load(SeqCst) + more;
        let ticked = async {
            while self.ticks.load(SeqCst) < wanted {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, ticked).await.expect("the timer stands still");
    }
}

const PATIENCE: Duration = Duration::from_millis(300);

async fn beside_one_stopped_in_state() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), PATIENCE);
    assert_eq!(count(&cache).await.unwrap(), 1);
    let mut child = stopped("state", dir.path());
    let ticker = Ticker::start();
    let began = Instant::now();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { count(&cache).await })
        })
        .collect();
    for waiting in waiting {
        assert!(matches!(waiting.await.unwrap(), Err(Error::Busy)));
    }
    assert!(began.elapsed() >= PATIENCE);
    assert!(began.elapsed() < LONG / 3);
    assert!(ticker.ticks.load(SeqCst) >= 3, "the timer went on meanwhile");
    for _ in 0..100 {
        assert!(matches!(at_once(count(&cache)).await, Some(Err(Error::Busy))));
    }
    // The answers have a gate of their own.
    assert!(cache.insert("x", &1).await.unwrap());
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    assert!(matches!(cache.evict("t").await, Err(Error::Busy)));
    ticker.wait_for(5).await;
    child.go_on();
    child.expect("2");
    assert_eq!(at_once(count(&cache)).await.unwrap().unwrap(), 3);
    assert!(!is_free(&cache).await, "the child went on with its change");
    cache.evict("t").await.unwrap();
    child.end();
}

#[tokio::test(flavor = "current_thread")]
async fn a_current_thread_runtime_goes_on_beside_a_stopped_writer_of_state() {
    beside_one_stopped_in_state().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_multi_thread_runtime_goes_on_beside_a_stopped_writer_of_state() {
    beside_one_stopped_in_state().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_stopped_writer_of_entries_makes_writes_busy_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), PATIENCE);
    cache.insert("x", &1).await.unwrap();
    let mut child = stopped("entries", dir.path());
    let ticker = Ticker::start();
    let began = Instant::now();
    assert!(matches!(cache.incr("n", 1).await, Err(Error::Busy)));
    assert!(began.elapsed() >= PATIENCE);
    assert!(matches!(at_once(cache.incr("n", 1)).await, Some(Err(Error::Busy))));
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    assert_eq!(count(&cache).await.unwrap(), 1);
    ticker.wait_for(5).await;
    child.go_on();
    child.expect("1");
    assert_eq!(cache.incr("n", 1).await.unwrap(), 2);
    child.end();
}

#[tokio::test(flavor = "current_thread")]
async fn after_kill_9_within_a_transaction_the_next_writer_goes_on_without_the_change() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), LONG);
    for sum in 1..=3 {
        assert_eq!(count(&cache).await.unwrap(), sum);
        assert!(is_free(&cache).await);
        cache.insert("x", &sum).await.unwrap();
        stopped("state", dir.path()).kill();
        stopped("entries", dir.path()).kill();
        assert_eq!(cache.get::<i64>("n").unwrap(), None);
    }
    assert_eq!(at_once(count(&cache)).await.unwrap().unwrap(), 4);
    assert!(is_free(&cache).await);
    assert_eq!(cache.incr("n", 1).await.unwrap(), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_behind_a_killed_process_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path(), LONG);
    let (state, entries) = (stopped("state", dir.path()), stopped("entries", dir.path()));
    let mut counted = pin!(count(&cache));
    assert!(at_once(counted.as_mut()).await.is_none());
    let mut added = cache.incr("n", 1);
    assert!(at_once(&mut added).await.is_none());
    state.kill();
    entries.kill();
    assert_eq!(counted.await.unwrap(), 1);
    assert_eq!(added.await.unwrap(), 1);
    assert!(is_free(&cache).await);
}

#[test]
fn a_cache_can_be_opened_beside_a_stopped_writer() {
    let dir = tempfile::tempdir().unwrap();
    let children = [stopped("state", dir.path()), stopped("entries", dir.path())];
    let cache = open(dir.path(), PATIENCE);
    assert_eq!(cache.get::<i64>("n").unwrap(), None);
    assert!(matches!(cache.incr("n", 1).wait(), Err(Error::Busy)));
    assert!(matches!(support::count(&cache, "n"), Err(Error::Busy)));
    // Closing it does not wait for them either.
    let began = Instant::now();
    drop(cache);
    assert!(began.elapsed() < LONG / 3);
    for mut child in children {
        child.go_on();
        child.expect("1");
        child.end();
    }
}
