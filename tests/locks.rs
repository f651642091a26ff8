//! Locks without tower, and what becomes of them when time passes them by or their process is gone.

use nix::sys::signal::Signal;
use std::{
    sync::{
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};
use tower::{Layer, Service, service_fn};
use tower_floodgate::{
    BarrierLayer, Cache, Error, Fail, Lock, LockFactory, ReadWrite, Rejection, Semaphore,
    lock::{AcquireError, Fence, Guard, Watermark},
    time::clock_fn,
};

#[path = "support/paused.rs"]
mod paused;
#[path = "support/processes.rs"]
mod processes;
use paused::{cache, ms, secs};
use processes::Child;

#[tokio::test(start_paused = true)]
async fn locks_work_without_tower() {
    let cache = cache();
    let guard = cache.lock("l").await.unwrap();
    assert!(format!("{guard:?}").contains("lost: false"));
    let other = cache.lock("other").acquire_blocking().unwrap();
    let began = Instant::now();
    let Err(AcquireError::Busy { .. }) = cache.lock("l").wait_at_most(secs(2)).await else { panic!("two hold it") };
    assert_eq!(began.elapsed(), secs(2));
    let again = cache.lock("l").owner(guard.owner().clone()).wait_at_most(secs(0));
    assert!(again.clone().await.is_err(), "a plain lock does not know its owner again");
    assert!(cache.scope("s").lock("l").wait_at_most(secs(0)).await.is_ok(), "another scope");
    let waiting = tokio::spawn(cache.lock("l").acquire());
    yield_now().await;
    drop(guard);
    let guard = waiting.await.unwrap().unwrap();
    drop((guard, other));

    let permits = || cache.lock("s").rule(Semaphore(2)).wait_at_most(secs(0));
    let held = (permits().await.unwrap(), permits().await.unwrap());
    assert!(permits().await.is_err());
    drop(held.1);
    assert!(permits().await.is_ok());
}

#[test]
fn five_thousand_permits_are_five_thousand() {
    let cache = Cache::builder_temporary().state_size(16 << 20).open().unwrap();
    let permit = || cache.lock("l").rule(Semaphore(5_000)).try_acquire_blocking();
    let mut permits: Vec<Guard> = (0..5_000).map(|_| permit().unwrap()).collect();
    let reader = || cache.lock("r").rule(ReadWrite.read()).try_acquire_blocking().unwrap();
    let readers: Vec<Guard> = (0..2_000).map(|_| reader()).collect();
    assert!(matches!(permit(), Err(AcquireError::Busy { .. })));
    drop(permits.swap_remove(2_500));
    permits.push(permit().unwrap());
    assert!(permit().is_err());
    let locks = cache.lock_stats_blocking().unwrap();
    let lock = |name: &str| locks.iter().find(|lock| lock.name == name).unwrap();
    assert_eq!((lock("l").holding, lock("r").holding), (5_000, 2_000));
    assert!((16..100).contains(&lock("l").holders.len()), "some of them");
    assert!(lock("l").holders.iter().all(|holder| holder.process == Some(std::process::id())));
    let mut fences: Vec<Fence> = permits.iter().chain(&readers).map(Guard::fence).collect();
    fences.sort_unstable();
    fences.dedup();
    assert_eq!(fences.len(), 7_000);
    for guard in permits.into_iter().chain(readers) {
        guard.release_blocking().unwrap();
    }
    assert!(cache.lock_stats_blocking().unwrap().is_empty());
}

/// Offers to all who wait would need more room than there is.
#[test]
fn where_nothing_more_fits_a_lock_is_released_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::builder(directory.path()).size(1 << 20).state_size(1 << 20).open().unwrap();
    let lock = |rule| cache.lock("l").rule(rule);
    let writer = lock(ReadWrite.write()).acquire_blocking().unwrap();
    let readers: Vec<_> = (0..150).map(|_| lock(ReadWrite.read()).acquire()).collect();
    let fill = |name: u32| match cache.lock(&name.to_string()).acquire_blocking() {
        Ok(guard) => Some(guard),
        Err(AcquireError::Cache(Error::Full)) => None,
        Err(error) => panic!("{error}"),
    };
    let filling: Vec<_> = (0..).map_while(fill).collect();
    writer.release_blocking().unwrap();
    let holders = |cache: &Cache| {
        let locks = cache.lock_stats_blocking().unwrap();
        locks.into_iter().filter(|lock| lock.name == "l").flat_map(|lock| lock.holders).collect::<Vec<_>>()
    };
    assert!(holders(&cache).iter().all(|holder| holder.offered));
    drop(filling);
    drop(readers);
    assert!(lock(ReadWrite.write()).try_acquire_blocking().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_living_guard_outlasts_its_lease() {
    let cache = cache();
    let guard = cache.lock("l").expire(ms(10)).await.unwrap();
    advance(secs(3_600)).await;
    assert!(matches!(cache.lock("l").wait_at_most(secs(1)).await, Err(AcquireError::Busy { .. })));
    assert!(!guard.is_lost());
    drop(guard);
    assert!(cache.lock("l").wait_at_most(secs(0)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_finished_attempt_that_is_kept_keeps_nobody_waiting() {
    let cache = cache();
    let guard = cache.lock("l").await.unwrap();
    let mut second = cache.lock("l").acquire();
    let mut gave_up = cache.lock("l").wait_at_most(secs(1)).acquire();
    assert!((&mut gave_up).await.is_err());
    let (guard, ()) = tokio::join!(&mut second, async { drop(guard) });
    drop(guard.unwrap());
    // `second` and `gave_up` still exist, as they do in a `select!` in a loop.
    assert!(cache.lock("l").wait_at_most(secs(1)).await.is_ok());
}

#[test]
fn plain_threads_wait_too() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let held: Guard = cache.lock("l").acquire_blocking().unwrap();
    let (inside, threads) = (AtomicUsize::new(0), 4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // The default clock sleeps in tokio's time.
                let _context = runtime.enter();
                let _guard = cache.lock("l").acquire_blocking().unwrap();
                assert_eq!(inside.fetch_add(1, SeqCst), 0);
                std::thread::yield_now();
                inside.fetch_sub(1, SeqCst);
            });
        }
        drop(held);
    });
    assert_eq!(cache.stats().locked, threads + 1);
}

#[test]
fn who_tries_once_needs_no_runtime() {
    let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    let once = || cache.lock("l").wait_at_most(Duration::ZERO).acquire_blocking();
    let held = once().unwrap();
    // The default clock would panic here if it were asked to sleep.
    assert!(matches!(once(), Err(AcquireError::Busy { .. })));
    assert!(matches!(once(), Err(AcquireError::Busy { .. })));
    drop(held);
    assert!(cache.lock("l").acquire_blocking().is_ok());
}

#[tokio::test]
async fn a_lock_whose_process_was_killed_is_free_when_its_lease_ends() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
    let mut child = Child::spawn("hold", dir.path());
    child.expect("held");
    let patient = cache.lock("l").wait_at_most(3 * LEASE).await;
    assert!(matches!(patient, Err(AcquireError::Busy { .. })), "renewed while its process lives");
    child.kill();
    let _guard = cache.lock("l").wait_at_most(secs(10)).await.unwrap();
}

#[tokio::test]
async fn the_lease_of_a_lock_factory_counts() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
    let mut child = Child::spawn("hold by a factory", dir.path());
    child.expect("held");
    let lock = cache.scope("db").lock("");
    assert!(lock.clone().wait_at_most(secs(0)).await.is_err());
    child.kill();
    let _guard = lock.wait_at_most(secs(10)).await.unwrap();
}

#[tokio::test]
async fn who_was_stopped_past_its_lease_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
    let mut child = Child::spawn("hold, then ask", dir.path());
    child.expect("held");
    child.signal(Signal::SIGSTOP);
    let guard = cache.lock("l").wait_at_most(secs(10)).await.unwrap();
    child.signal(Signal::SIGCONT);
    child.tell("lost?");
    child.expect("lost");
    assert!(cache.lock("l").wait_at_most(secs(0)).await.is_err(), "its late release harms nobody");
    assert!(!guard.is_lost());
}

const LEASE: Duration = ms(300);

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    let cache = Cache::builder(path).open().unwrap();
    let hold = || cache.lock("l").expire(LEASE).acquire_blocking().unwrap();
    match role.as_str() {
        "hold" => {
            let _guard = hold();
            processes::say("held");
            processes::wait_to_be_killed();
        }
        "hold by a factory" => {
            #[derive(Clone)]
            struct ShortLease;
            impl LockFactory<()> for ShortLease {
                type Rule = Lock;
                fn rule(&self, _: &()) -> Lock {
                    Lock
                }
                fn lease(&self, _: &()) -> Option<Duration> {
                    Some(LEASE)
                }
            }
            let service = BarrierLayer::new(cache.scope("db"), ShortLease).answer(Fail);
            let mut service = service.layer(service_fn(async |_: ()| {
                processes::say("held");
                std::future::pending::<Result<(), Rejection>>().await
            }));
            let mut call = tokio_test::task::spawn(service.call(()));
            assert!(call.poll().is_pending());
            processes::wait_to_be_killed();
        }
        "hold, then ask" => {
            let guard = hold();
            processes::say("held");
            assert_eq!(processes::told().unwrap(), "lost?");
            // It is noticed at the next renewal, which the worker thread does when it can.
            while !guard.is_lost() {
                std::thread::yield_now();
            }
            drop(guard);
            processes::say("lost");
        }
        role => panic!("{role}"),
    }
}

#[test]
fn a_clock_that_panics_once_does_not_end_the_renewals() {
    let (asked, tell) = mpsc::channel();
    let renewals = AtomicU32::new(0);
    let now = move || {
        if std::thread::current().name() == Some("floodgate-state") {
            let renewal = renewals.fetch_add(1, SeqCst);
            let _ = asked.send(renewal);
            assert_ne!(renewal, 0, "the clock panics once");
        }
        secs(1)
    };
    let clock = clock_fn(now, |_| std::future::pending());
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    let guard = cache.lock("l").expire(ms(30)).acquire_blocking().unwrap();
    for renewal in 0..3 {
        assert_eq!(tell.recv_timeout(secs(30)).unwrap(), renewal);
    }
    assert!(!guard.is_lost());
}

#[tokio::test(start_paused = true)]
async fn fences_grow_and_a_watermark_refuses_the_stale() {
    let cache = cache();
    let store = Watermark::new();
    let mut last = Fence::from_u64(0);
    for name in ["a", "b", "a", "a"] {
        let guard = cache.lock(name).await.unwrap();
        assert!(guard.fence() > last, "{name}");
        store.admit(guard.fence()).unwrap();
        assert_eq!(store.admit(last).unwrap_err().seen, guard.fence());
        last = guard.fence();
    }
    assert_eq!(last.to_string().parse(), Ok(last));
    assert!(last.to_u64() < 1 << 53, "a number of JSON");
}

#[tokio::test(start_paused = true)]
async fn work_is_done_with_the_lock_held() {
    let cache = cache();
    let seen = cache.lock("l").with(async |hold| (hold.fence(), cache.lock("l").try_acquire().await.is_err())).await;
    let (fence, busy) = seen.unwrap();
    assert!(busy);
    let guard = cache.lock("l").try_acquire().await.unwrap();
    assert!(guard.fence() > fence);
    let began = Instant::now();
    let Err(AcquireError::Busy { .. }) = cache.lock("l").acquire_timeout(secs(2)).await else { panic!("two hold it") };
    assert_eq!(began.elapsed(), secs(2));
    assert!(guard.release().await.is_ok());

    let both = cache.lock("l").with_blocking(|_| cache.lock("l").try_acquire_blocking().is_err()).unwrap();
    assert!(both);
    let guard = cache.lock("l").acquire_blocking().unwrap();
    assert!(cache.lock("l").acquire_timeout_blocking(ms(5)).is_err());
    assert!(guard.release_blocking().is_ok());
}

#[tokio::test(start_paused = true)]
async fn several_names_are_held_together_and_in_any_order() {
    let cache = cache();
    let (one, other) = (["a", "b", "c"], ["c", "a", "b", "a"]);
    let held = cache.locks(one).await.unwrap();
    for name in one {
        assert!(cache.lock(name).try_acquire().await.is_err(), "{name}");
    }
    let Err(AcquireError::Busy { .. }) = cache.locks(["d", "b"]).acquire_timeout(secs(1)).await else { panic!("held") };
    let d = cache.lock("d").try_acquire().await.expect("given back with the rest");
    assert!(d.release().await.is_ok());
    let waiting = tokio::spawn(cache.locks(other).acquire());
    yield_now().await;
    assert!(held.release().await.is_ok());
    let held = waiting.await.unwrap().unwrap();
    assert!(cache.lock("b").try_acquire().await.is_err());
    drop(held);
    for round in 0..50 {
        let names = if round % 2 == 0 { one.as_slice() } else { other.as_slice() };
        let take = async |names: &[&str]| {
            let guard = cache.locks(names.iter().copied()).await.unwrap();
            yield_now().await;
            drop(guard);
        };
        tokio::join!(take(names), take(&one));
    }
}

#[tokio::test(start_paused = true)]
async fn a_minimum_time_outlasts_the_guard() {
    let cache = cache();
    let began = Instant::now();
    let guard = cache.lock("l").at_least(secs(5)).await.unwrap();
    assert!(guard.release().await.is_ok());
    advance(secs(4)).await;
    assert!(cache.lock("l").try_acquire().await.is_err());
    advance(secs(1)).await;
    assert!(cache.lock("l").try_acquire().await.is_ok());
    assert_eq!(began.elapsed(), secs(5));
    let guard = cache.lock("l").at_least(secs(5)).await.unwrap();
    advance(secs(6)).await;
    drop(guard);
    assert!(cache.lock("l").try_acquire().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let cache = cache();
    let held = cache.lock("l").await.unwrap();
    let lock = || cache.lock("l").queue_at_most(2);
    let first = tokio::spawn(lock().acquire());
    let second = tokio::spawn(lock().acquire());
    yield_now().await;
    let Err(AcquireError::QueueFull { .. }) = lock().await else { panic!("two wait") };
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    let third = lock().acquire();
    drop(held);
    drop(first.await.unwrap().unwrap());
    drop(third.await.unwrap());
    assert_eq!(cache.lock_stats().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn who_holds_and_who_waits_can_be_seen() {
    let cache = cache();
    let held = cache.scope("db").lock("row").rule(Semaphore(3).weighing(2)).await.unwrap();
    advance(secs(2)).await;
    let waiting = cache.scope("db").lock("row").rule(Semaphore(3).weighing(3)).acquire();
    advance(secs(1)).await;
    let stats = cache.stats();
    assert_eq!(stats.lock_waiters, 0, "it has not been polled");
    let [lock] = &stats.locks[..] else { panic!("{stats:?}") };
    assert_eq!((lock.scope.as_str(), lock.name.as_str(), lock.waiting), ("db", "row", 1));
    let [holder] = &lock.holders[..] else { panic!("{lock:?}") };
    assert_eq!((holder.fence, holder.held, holder.weight), (held.fence().to_u64(), secs(3), 2));
    assert_eq!((holder.lease_left, holder.offered), (secs(27), false));
    assert_eq!(holder.process, Some(std::process::id()));
    assert_eq!((lock.waiters[0].waited, lock.waiters[0].weight), (secs(1), 3));
    assert_eq!(cache.lock_stats().await.unwrap(), stats.locks);
    assert_eq!(cache.scope("db").lock_stats().await.unwrap(), stats.locks);
    assert_eq!(cache.scope("other").lock_stats().await.unwrap(), []);
    drop((held, waiting));
    assert_eq!(cache.lock_stats_blocking().unwrap(), []);
}

#[tokio::test]
async fn a_mean_is_kept() {
    let cache = cache();
    let mean = cache.scope("s").averager("m");
    assert_eq!(mean.pop().await.unwrap(), None);
    let added: Vec<_> = [1.0, 2.0, 6.0].into_iter().map(|number| mean.add(number)).collect();
    for (add, expected) in added.into_iter().zip([1.0, 1.5, 3.0]) {
        assert_eq!(add.await.unwrap(), expected);
    }
    assert_eq!(mean.get().unwrap(), Some(3.0));
    assert_eq!(cache.averager("m").get().unwrap(), None, "another scope");
    assert_eq!(mean.pop().await.unwrap(), Some(3.0));
    assert_eq!(mean.get().unwrap(), None);
    cache.insert("text", "no mean").await.unwrap();
    assert!(cache.averager("text").add(1.0).await.is_err());
}
