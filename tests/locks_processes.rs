//! Who gets a lock when its holder or its next waiter is killed, stopped, dropped or not polled at the worst moment.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_test::{assert_pending, task};
use tower_floodgate::{
    Cache, Semaphore,
    lock::{Acquire, Acquiring, Fence, Guard, OneOwner, Owner, ReleaseError, Watermark},
    time::clock_fn,
};

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, open, role, say, told, wait_to_be_killed};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A cache that other processes can open too.
struct Place {
    directory: tempfile::TempDir,
    cache: Cache,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(&directory.path().join("cache"));
        Place { directory, cache }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    fn child(&self, role: &str) -> Child {
        Child::spawn(role, &self.path())
    }

    /// Stops it outside of any write: inside, it would keep everybody from writing.
    async fn stop(&self, child: &Child) {
        loop {
            child.stop();
            if timeout(ms(100), self.cache.lock("probe").try_acquire()).await.is_ok() {
                return;
            }
            child.go_on();
            // Once it is through with its write, it may be stopped somewhere else.
            drop(self.cache.lock("probe").await.unwrap());
        }
    }

    /// Returns when so many stand in the line.
    async fn until_waiting(&self, wanted: u64) {
        let is_so_long = async || {
            let locks = self.cache.lock_stats().await.unwrap();
            locks.iter().any(|lock| lock.name == "l" && lock.waiting == wanted)
        };
        let watching = async {
            while !is_so_long().await {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, watching).await.expect("the line is as long as that");
    }

    /// Joins the line.
    fn join(&self) -> Acquiring {
        join(&self.cache)
    }
}

fn many(cache: &Cache) -> Acquire<Semaphore> {
    cache.lock("l").rule(Semaphore(600))
}

#[tokio::test]
async fn who_is_killed_leaves_all_its_permits() {
    let place = Place::new();
    let own: Vec<Guard> = (0..100).map(|_| many(&place.cache).acquire_blocking().unwrap()).collect();
    let mut child = place.child("hold many");
    child.expect("held");
    let more: Vec<Guard> = (0..100).map(|_| many(&place.cache).try_acquire_blocking().unwrap()).collect();
    assert!(many(&place.cache).try_acquire().await.is_err(), "its process lives");
    let waiting = many(&place.cache).acquire();
    child.kill();
    let mut late = vec![timeout(LONG, waiting).await.expect("it is noticed").unwrap()];
    while late.len() < 400 {
        late.push(timeout(LONG, many(&place.cache).acquire()).await.expect("all are free").unwrap());
    }
    assert!(many(&place.cache).try_acquire().await.is_err());
    for guard in own.into_iter().chain(more).chain(late) {
        guard.release().await.unwrap();
    }
    assert!(place.cache.lock_stats().await.unwrap().is_empty());
}

/// Joins the line, and is not polled again before somebody does.
fn join(cache: &Cache) -> Acquiring {
    let mut waiting = cache.lock("l").acquire();
    let mut cx = Context::from_waker(Waker::noop());
    while !format!("{waiting:?}").contains("queued: true") {
        assert!(Pin::new(&mut waiting).poll(&mut cx).is_pending());
        std::thread::yield_now();
    }
    waiting
}

const SOON: Duration = ms(500);
/// For what happens at once, on a machine that has other things to do.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_place_of_a_killed_holder_is_free_within_100_ms_whatever_its_lease() {
    let place = Place::new();
    let mut waited = Vec::new();
    for _ in 0..7 {
        let mut holder = place.child("hold");
        holder.expect("held");
        let waiting = tokio::spawn(place.join());
        place.until_waiting(1).await;
        assert!(!waiting.is_finished());
        let killed = Instant::now();
        holder.kill();
        let guard = timeout(LONG, waiting).await.unwrap().unwrap().unwrap();
        waited.push(killed.elapsed());
        guard.release().await.unwrap();
    }
    waited.sort_unstable();
    // Most: the machine may have other things to do now and then.
    assert!(waited[4] < ms(100), "{waited:?}");
}

#[tokio::test]
async fn a_waiter_dropped_with_its_offer_hands_it_on() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let offered = place.join();
    let mut other = place.child("wait");
    other.expect("waiting");
    let next = tokio::spawn(place.join());
    holder.release().await.unwrap();
    let began = Instant::now();
    drop(offered);
    let held = tokio::task::spawn_blocking(move || (other.line(), other)).await.unwrap();
    assert_eq!(held.0, "held");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    drop(held);
    timeout(LONG, next).await.unwrap().unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_that_nobody_polls_is_passed_over_and_keeps_its_turn() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let mut starved = task::spawn(place.join());
    assert_pending!(starved.poll());
    let next = tokio::spawn(place.join());
    let began = Instant::now();
    holder.release().await.unwrap();
    let next = timeout(LONG, next).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Behind it, but it stands before this one in the line.
    let last = tokio::spawn(place.join());
    assert!(starved.is_woken());
    assert!(timeout(ms(50), &mut starved).await.is_err(), "it asks again");
    assert!(!last.is_finished());
    let fence = next.fence();
    next.release().await.unwrap();
    let starved = timeout(LONG, starved).await.unwrap().unwrap();
    assert!(starved.fence() > fence && !last.is_finished());
    starved.release().await.unwrap();
    assert!(timeout(LONG, last).await.unwrap().unwrap().unwrap().fence() > fence);
}

#[tokio::test]
async fn what_nobody_took_is_not_renewed() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let starved = place.join();
    holder.release().await.unwrap();
    assert!(place.cache.lock("l").try_acquire().await.is_err(), "it is offered to the one who waits");
    // Who comes while the offer stands waits for its end, and no lease of 30 s keeps it.
    let began = Instant::now();
    let guard = timeout(LONG, place.cache.lock("l").acquire()).await.unwrap().unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    drop(starved);
    assert!(!guard.is_lost());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_waiter_stopped_with_its_offer_is_passed_over() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let mut stopped = place.child("wait");
    stopped.expect("waiting");
    let next = tokio::spawn(place.join());
    place.stop(&stopped).await;
    let began = Instant::now();
    holder.release().await.unwrap();
    let next = timeout(LONG, next).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    stopped.go_on();
    // It has asked again by then.
    place.until_waiting(1).await;
    next.release().await.expect("the one that was passed over did not take it away");
    stopped.expect("held");
}

#[tokio::test]
async fn all_who_were_passed_over_in_a_stopped_process_get_their_turn() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let mut stopped = place.child("three wait");
    stopped.expect("waiting");
    let next = tokio::spawn(place.join());
    place.stop(&stopped).await;
    holder.release().await.unwrap();
    // Meanwhile it is called so often that most of the calls are lost.
    let next = timeout(LONG, next).await.unwrap().unwrap().unwrap();
    stopped.go_on();
    next.release().await.unwrap();
    for _ in 0..3 {
        stopped.expect("held");
    }
}

#[tokio::test]
async fn a_waiter_killed_with_its_offer_is_passed_over() {
    let place = Place::new();
    let holder = place.cache.lock("l").await.unwrap();
    let mut killed = place.child("wait");
    killed.expect("waiting");
    let next = tokio::spawn(place.join());
    // Stopped before, it cannot take its offer.
    place.stop(&killed).await;
    holder.release().await.unwrap();
    let began = Instant::now();
    killed.kill();
    let _next = timeout(LONG, next).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_was_stopped_past_its_lease_is_told_and_harms_nobody() {
    let place = Place::new();
    let store = Watermark::new();
    let mut child = place.child("hold shortly");
    let stale: Fence = child.line().parse().unwrap();
    store.admit(stale).unwrap();
    place.stop(&child).await;
    let guard: Guard = timeout(LONG, place.cache.lock("l").acquire()).await.unwrap().unwrap();
    assert!(guard.fence() > stale);
    store.admit(guard.fence()).unwrap();
    child.go_on();
    child.expect("told");
    assert_eq!(store.admit(stale).unwrap_err().seen, guard.fence());
    child.tell("release");
    child.expect("lost");
    assert!(place.cache.lock("l").try_acquire().await.is_err(), "its late release harms nobody");
    guard.release().await.unwrap();
}

#[tokio::test]
async fn who_entered_again_and_left_once_keeps_its_lease() {
    let place = Place::new();
    let lock = place.cache.lock("l").rule(OneOwner).expire(ms(300)).owner(Owner::random());
    let (outer, inner) = (lock.clone().await.unwrap(), lock.clone().await.unwrap());
    inner.release().await.unwrap();
    let mut other = place.child("wait for a second");
    assert_eq!(other.line(), "busy", "the lease goes on while its guard lives");
    assert!(!outer.is_lost());
    outer.release().await.unwrap();
    assert_eq!(place.child("wait for a second").line(), "held");
}

#[test]
fn who_was_suspended_while_it_acquired_renews_at_once() {
    // The clock is read, and then the process does not run for a while.
    let (renewed, renews) = mpsc::channel();
    let (slow, seconds) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(100));
    let suspended = slow.clone();
    let now = move || {
        if std::thread::current().name() == Some("floodgate-state") {
            let _ = renewed.send(());
        }
        let read = Duration::from_secs(seconds.load(SeqCst));
        if suspended.swap(false, SeqCst) {
            seconds.fetch_add(3_600, SeqCst);
        }
        read
    };
    let clock = clock_fn(now, |_| std::future::pending());
    let cache = Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap();
    slow.store(true, SeqCst);
    let guard = cache.lock("l").acquire_blocking().unwrap();
    // Due in 10 s otherwise, and all the time another could have it too.
    renews.recv_timeout(Duration::from_secs(5)).expect("its lease is over already");
    guard.release_blocking().unwrap();
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    let cache = open(&path);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match role.as_str() {
        "hold" => {
            let _guard = cache.lock("l").acquire_blocking().unwrap();
            say("held");
            wait_to_be_killed();
        }
        "wait" => runtime.block_on(async {
            let waiting = join(&cache);
            say("waiting");
            let _guard = waiting.await.unwrap();
            say("held");
            wait_to_be_killed();
        }),
        "hold many" => {
            let _guards: Vec<Guard> = (0..400).map(|_| many(&cache).acquire_blocking().unwrap()).collect();
            say("held");
            wait_to_be_killed();
        }
        "wait for a second" => {
            let got = cache.lock("l").wait_at_most(Duration::from_secs(1)).acquire_blocking();
            say(if got.is_ok() { "held" } else { "busy" });
        }
        "three wait" => runtime.block_on(async {
            let waiting = [join(&cache), join(&cache), join(&cache)];
            say("waiting");
            for waiting in waiting {
                timeout(LONG, waiting).await.expect("called").unwrap().release().await.unwrap();
                say("held");
            }
        }),
        "hold shortly" => runtime.block_on(async {
            let guard = cache.lock("l").expire(ms(300)).await.unwrap();
            say(guard.fence());
            guard.lost().await;
            say("told");
            assert_eq!(told().unwrap(), "release");
            assert!(matches!(guard.release().await, Err(ReleaseError::Lost)));
            say("lost");
        }),
        role => panic!("{role}"),
    }
}
