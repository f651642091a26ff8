//! Values without tower: `get_or_fill`, awaited and on plain threads.

use crate::origin::{MINUTE, SECOND, cache, poll, settle, until};
use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};
use tokio::sync::Semaphore;
use tower_floodgate::{Cache, stampede::Filling};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Boom;

/// Counts its calls, each of which waits to be let go.
#[derive(Clone)]
struct Source(Arc<(AtomicUsize, Semaphore)>);

impl Source {
    fn new() -> Source {
        Source(Arc::new((AtomicUsize::new(0), Semaphore::new(0))))
    }

    fn calls(&self) -> usize {
        self.0.0.load(SeqCst)
    }

    fn release(&self) {
        self.0.1.add_permits(1);
    }

    async fn number(self) -> Result<usize, Boom> {
        let call = self.0.0.fetch_add(1, SeqCst) + 1;
        self.0.1.acquire().await.unwrap().forget();
        Ok(call)
    }
}

fn fill(cache: &Cache, source: &Source) -> tower_floodgate::stampede::Fill<impl FnOnce() -> Number + Send + 'static> {
    let source = source.clone();
    let number = move || -> Number { Box::pin(source.number()) };
    cache.get_or_fill("x", MINUTE, number).beta(0.0)
}

type Number = std::pin::Pin<Box<dyn Future<Output = Result<usize, Boom>> + Send>>;

fn begun(
    filling: impl IntoFuture<Output = Result<usize, Boom>, IntoFuture = Filling<usize, Boom>>,
) -> std::pin::Pin<Box<Filling<usize, Boom>>> {
    let mut filling = Box::pin(filling.into_future());
    assert!(poll(&mut filling).is_pending());
    filling
}

#[tokio::test(start_paused = true)]
async fn all_who_want_a_value_at_once_are_one_computation() {
    let (cache, source) = (cache(), Source::new());
    let all: Vec<_> = (0..64).map(|_| begun(fill(&cache, &source))).collect();
    settle().await;
    assert_eq!(source.calls(), 1);
    source.release();
    for one in all {
        assert_eq!(one.await, Ok(1));
    }
    assert_eq!(fill(&cache, &source).await, Ok(1));
    assert_eq!(cache.get::<usize>("x").unwrap(), Some(1), "it is the value that others know by this name");
    assert_eq!((source.calls(), cache.stats().followed), (1, 63));
}

#[tokio::test(start_paused = true)]
async fn what_was_inserted_is_not_computed_and_what_is_no_such_value_is() {
    let (cache, source) = (cache(), Source::new());
    cache.insert("x", &7_usize).await.unwrap();
    assert_eq!(fill(&cache, &source).await, Ok(7));
    cache.insert("x", "seven").await.unwrap();
    source.release();
    assert_eq!(fill(&cache, &source).await, Ok(1));
    cache.remove("x").await.unwrap();
    source.release();
    assert_eq!(fill(&cache, &source).tag("t").await, Ok(2));
    cache.evict("t").await.unwrap();
    assert_eq!(cache.get::<usize>("x").unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn an_ended_value_is_served_while_it_is_refreshed_and_is_none_to_get() {
    let (cache, source) = (cache(), Source::new());
    source.release();
    assert_eq!(fill(&cache, &source).stale_while_revalidate(MINUTE).await, Ok(1));
    tokio::time::advance(MINUTE).await;
    assert_eq!(cache.get::<usize>("x").unwrap(), None, "it has ended");
    assert!(cache.add("y", &1).await.unwrap());
    for _ in 0..10 {
        assert_eq!(fill(&cache, &source).stale_while_revalidate(MINUTE).await, Ok(1));
    }
    settle().await;
    assert_eq!(source.calls(), 2, "one refreshes");
    source.release();
    until(|| cache.stats().stored == 2).await;
    assert_eq!(fill(&cache, &source).await, Ok(2));
    assert_eq!(cache.get::<usize>("x").unwrap(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn where_there_is_an_ended_value_failures_are_bridged_and_backed_off() {
    let cache = cache();
    let calls = Arc::new(AtomicUsize::new(0));
    let ask = || {
        let calls = calls.clone();
        cache
            .get_or_fill("x", SECOND, move || async move {
                match calls.fetch_add(1, SeqCst) {
                    0 => Ok(1),
                    _ => Err(Boom),
                }
            })
            .beta(0.0)
            .stale_if_error(MINUTE)
    };
    assert_eq!(ask().await, Ok(1));
    tokio::time::advance(SECOND).await;
    let mut asked = Vec::new();
    for _ in 0..59 {
        assert_eq!(ask().await, Ok(1));
        asked.push(calls.load(SeqCst));
        tokio::time::advance(SECOND).await;
    }
    assert_eq!(asked[..9], [2, 3, 3, 4, 4, 4, 4, 5, 5], "after one second, two, four, eight");
    assert!(*asked.last().unwrap() <= 8, "{asked:?}");
    tokio::time::advance(2 * SECOND).await;
    assert_eq!(ask().await, Err(Boom), "not past the grace");
}

#[tokio::test(start_paused = true)]
async fn errors_are_each_ones_own_unless_shared() {
    let (cache, calls) = (cache(), Arc::new(AtomicUsize::new(0)));
    let ask = |shared: bool| {
        let calls = calls.clone();
        let fill = cache.get_or_fill("x", SECOND, move || async move {
            calls.fetch_add(1, SeqCst);
            tokio::time::sleep(SECOND).await;
            Err::<usize, _>(Boom)
        });
        begun(if shared { fill.share_errors::<Boom>() } else { fill })
    };
    for (shared, expected) in [(true, 1), (false, 5)] {
        calls.store(0, SeqCst);
        let all: Vec<_> = (0..5).map(|_| ask(shared)).collect();
        for one in all {
            assert_eq!(one.await, Err(Boom));
        }
        assert_eq!(calls.load(SeqCst), expected, "{shared}");
    }
}

#[test]
fn plain_threads_need_no_runtime() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let (calls, start) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(8)));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (cache, calls, start) = (cache.clone(), calls.clone(), start.clone());
            thread::spawn(move || {
                start.wait();
                let compute = move || {
                    // Longer than it takes the others to come.
                    thread::sleep(Duration::from_millis(100));
                    Ok::<_, Boom>(calls.fetch_add(1, SeqCst) + 1)
                };
                cache.get_or_fill("x", MINUTE, compute).beta(0.0).wait()
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), Ok(1));
    }
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn on_plain_threads_a_refresh_has_a_thread_of_its_own() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    // Each computation waits to be let go.
    let ask = |value: usize| {
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let compute = move || {
            let _ = gone.recv_timeout(10 * SECOND);
            Ok::<_, Boom>(value)
        };
        let fill = cache.get_or_fill("x", MINUTE, compute).beta(1e12);
        (go, move || fill.wait().unwrap())
    };
    let (go, first) = ask(1);
    drop(go);
    assert_eq!(first(), 1);
    let (go, second) = ask(2);
    assert_eq!(second(), 1, "served at once");
    drop(go);
    let deadline = std::time::Instant::now() + 10 * SECOND;
    while cache.get::<usize>("x").unwrap() != Some(2) {
        assert!(std::time::Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn a_plain_thread_does_not_wait_for_ever_for_another() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let (hangs, goes_on) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel();
    let hung = thread::spawn({
        let cache = cache.clone();
        move || {
            let compute = move || {
                begun.send(()).unwrap();
                let _ = goes_on.recv();
                Ok::<_, Boom>(1)
            };
            cache.get_or_fill("x", MINUTE, compute).wait()
        }
    });
    begins.recv().unwrap();
    let own = cache.get_or_fill("x", MINUTE, || Ok::<_, Boom>(2)).follow_at_most(Duration::from_millis(20)).wait();
    assert_eq!(own, Ok(2));
    drop(hangs);
    assert_eq!(hung.join().unwrap(), Ok(1));
}

#[test]
#[should_panic(expected = "needs a life above zero")]
fn a_life_of_nothing_is_refused() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let _ = cache.get_or_fill("x", Duration::ZERO, || Ok::<_, Boom>(1));
}
