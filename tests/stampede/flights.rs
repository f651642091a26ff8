//! Many at once: one call, and what becomes of the others when it ends badly.

use crate::origin::*;
use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tower_floodgate::{Cache, time::clock_fn};

async fn stampede(size: usize) {
    let (cache, origin) = (cache(), Origin::held(|_, call| ok(&[("x-call", "1")], format!("page {call}"))));
    let app = app(&cache, &origin);
    let leader = waiting(&app, get("/"));
    let followers: Vec<_> = (1..size).map(|_| waiting(&app, get("/"))).collect();
    assert_eq!(origin.calls(), 1);
    origin.release(1);

    let first = leader.await.unwrap();
    assert_eq!((first.text(), first.is_stored()), ("page 1", true));
    for follower in followers {
        let reply = follower.await.unwrap();
        assert_eq!((reply.text(), reply.told()), ("page 1", "fwd=miss; collapsed; ttl=60"));
        assert_eq!((reply.header("x-call"), reply.header("age")), ("1", "0"));
    }
    let stats = cache.stats();
    assert_eq!((origin.calls(), stats.misses, stats.followed, stats.stored), (1, 1, size as u64 - 1, 1));
    assert!(ask(&app, get("/")).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn sixty_four_cold_requests_are_one_call() {
    stampede(64).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_cold_requests_are_one_call() {
    stampede(10_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_threads_are_one_call() {
    let cache = Cache::builder_temporary().state_size(1 << 20).patience(MINUTE).open().unwrap();
    let origin = Origin::held_counting();
    let app = app(&cache, &origin);
    for round in 1..=20 {
        let path = format!("/{round}");
        let requests: Vec<_> = (0..32).map(|_| tokio::spawn(asking(&app, get(&path)))).collect();
        // Wherever the others are by now, the call goes on for all that come before it is stored, and after.
        origin.release(1);
        for request in requests {
            assert_eq!(request.await.unwrap().unwrap().text(), round.to_string());
        }
        assert_eq!(origin.calls(), round);
    }
}

#[tokio::test(start_paused = true)]
async fn names_do_not_wait_for_each_other() {
    let (cache, origin) = (cache(), Origin::held(|parts, _| ok(&[], parts.uri.path().to_owned())));
    let app = app(&cache, &origin);
    let (a, b) = (waiting(&app, get("/a")), waiting(&app, get("/b")));
    assert_eq!(origin.calls(), 2);
    origin.release(2);
    assert_eq!((b.await.unwrap().text(), a.await.unwrap().text()), ("/b", "/a"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_stops_nothing() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = app(&cache, &origin);
    let leader = waiting(&app, get("/"));
    let [dropped, follower] = [0; 2].map(|_| waiting(&app, get("/")));
    drop((leader, dropped));
    settle().await;
    assert_eq!(origin.running(), 1);
    origin.release(1);
    assert!(follower.await.unwrap().is_collapsed());
    assert!(ask(&app, get("/")).await.is_hit());
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flight_without_passengers_lands() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = app(&cache, &origin);
    drop(waiting(&app, get("/")));
    origin.release(1);
    until(|| cache.stats().stored == 1).await;
    assert!(ask(&app, get("/")).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn a_failed_leader_keeps_its_error_and_a_follower_leads() {
    let cache = cache();
    let origin = Origin::held(|_, call| if call == 1 { Err(Boom(call)) } else { ok(&[], call.to_string()) });
    let app = app(&cache, &origin);
    let leader = waiting(&app, get("/"));
    let mut followers: Vec<_> = (0..10).map(|_| waiting(&app, get("/"))).collect();
    origin.release(1);
    assert_eq!(leader.await.unwrap_err(), Boom(1));
    followers.iter_mut().for_each(|follower| assert!(poll(follower).is_pending()));
    assert_eq!(origin.calls(), 2);
    origin.release(1);
    let mut led = 0;
    for follower in followers {
        let reply = follower.await.unwrap();
        assert_eq!(reply.text(), "2");
        led += usize::from(reply.is_stored());
        assert!(reply.is_stored() || reply.is_collapsed());
    }
    assert_eq!((led, origin.calls()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn nobody_queues_behind_failure_after_failure() {
    let (cache, origin) = (cache(), Origin::held(|_, call| Err(Boom(call))));
    let app = app(&cache, &origin);
    let mut waiting: Vec<_> = (0..100).map(|_| waiting(&app, get("/"))).collect();
    for call in 1..=3 {
        assert_eq!(origin.calls(), call, "one after the other, at first");
        origin.release(1);
        until(|| origin.running() == 0).await;
        settle().await;
        waiting.retain_mut(|request| poll(request).is_pending());
        assert_eq!(waiting.len(), 100 - call);
    }
    assert_eq!(origin.running(), 97, "then all that are left together");
    origin.release(97);
    for request in waiting {
        assert!(request.await.is_err());
    }
    assert_eq!((origin.calls(), cache.stats().stored), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_the_leaders_own() {
    let cache = cache();
    let origin =
        Origin::held(|_, call| if call == 1 { panic!("the first call panics") } else { ok(&[], call.to_string()) });
    let app = app(&cache, &origin);
    let leader = waiting(&app, get("/"));
    let followers: Vec<_> = (0..5).map(|_| waiting(&app, get("/"))).collect();
    origin.release(2);
    let panic = tokio::spawn(leader).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the first call panics"));
    for follower in followers {
        assert_eq!(follower.await.unwrap().text(), "2");
    }
    assert_eq!(origin.calls(), 2);
}

/// Drops the first task, and runs the others.
#[derive(Clone, Default)]
struct Forgetful(Arc<AtomicBool>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Forgetful {
    fn execute(&self, task: F) {
        if self.0.swap(true, SeqCst) {
            tokio::spawn(task);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_executor_that_drops_its_task_leaves_nobody_waiting() {
    let cache = Cache::builder_temporary().state_size(1 << 20).executor(Forgetful::default()).open().unwrap();
    let origin = Origin::counting();
    let app = app(&cache, &origin);
    let panic = tokio::spawn(asking(&app, get("/"))).await.unwrap_err().into_panic();
    assert!(panic.downcast_ref::<&str>().unwrap().contains("executor dropped"));
    assert!(ask(&app, get("/")).await.is_stored());
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_never_lands_holds_a_name_for_a_while_only() {
    let (cache, origin) = (cache(), Origin::held_counting());
    let app = app(&cache, &origin);
    let hung = waiting(&app, get("/"));
    tokio::time::advance(Duration::from_secs(59)).await;
    let patient = waiting(&app, get("/"));
    assert_eq!(origin.calls(), 1);
    tokio::time::advance(Duration::from_secs(1)).await;
    let next = waiting(&app, get("/"));
    let after = waiting(&app, get("/"));
    assert_eq!(origin.calls(), 2, "one more a minute, not one more a request");
    origin.release(2);
    for request in [hung, patient, next, after] {
        request.await.unwrap();
    }
    assert!(ask(&app, get("/")).await.is_hit());
}

/// Runs a future on this thread, where no runtime is.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub(crate) fn cache_without_runtime(now: &Arc<AtomicU64>) -> Cache {
    let now = now.clone();
    let clock = clock_fn(move || Duration::from_millis(now.load(SeqCst)), |_| std::future::pending());
    Cache::builder_temporary().state_size(1 << 20).patience(MINUTE).clock(clock).open().unwrap()
}

#[test]
fn without_an_executor_a_dropped_leader_hands_over() {
    let cache = cache_without_runtime(&Arc::default());
    let origin = Origin::held_counting();
    let app = app(&cache, &origin);
    let leader = waiting(&app, get("/"));
    let [mut one, mut two] = [0; 2].map(|_| waiting(&app, get("/")));
    drop(leader);
    assert_eq!((origin.calls(), origin.running()), (1, 0), "the computation was the leader's");
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    assert_eq!((origin.calls(), origin.running()), (2, 1));
    origin.release(1);
    let led = block_on(one).unwrap();
    assert_eq!((led.text(), led.is_stored()), ("2", true));
    assert!(block_on(two).unwrap().is_collapsed());
    assert!(block_on(ask(&app, get("/"))).is_hit(), "what is told to be stored is");
}

#[test]
fn without_an_executor_a_refresh_is_the_requests_own_work_and_its_failure_nobodys() {
    use tower::Layer;
    let now = Arc::<AtomicU64>::default();
    let cache = cache_without_runtime(&now);
    let clock = now.clone();
    let origin = Origin::new(move |_, call| {
        clock.fetch_add(1000, SeqCst);
        match call {
            2 => Err(Boom(call)),
            3 => respond(500, &[], full("broken")),
            _ => ok(&[], call.to_string()),
        }
    });
    let eager = layer(&cache).beta(1e9).layer(origin.clone());
    assert_eq!(block_on(ask(&eager, get("/"))).text(), "1");
    for call in 2..=3 {
        assert_eq!(block_on(ask(&eager, get("/"))).text(), "1", "the stored answer is still good");
        assert_eq!(origin.calls(), call);
        assert_eq!(block_on(ask(&eager, get("/"))).text(), "1");
        assert_eq!(origin.calls(), call, "it is left alone for a while");
        now.fetch_add(2000, SeqCst);
    }
    block_on(ask(&eager, get("/")));
    assert_eq!(block_on(ask(&app(&cache, &origin), get("/"))).text(), "4");
}

#[allow(dead_code)]
fn futures_are_send(app: &App) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let asking = asking(app, get("/"));
    Box::pin(async { drop(asking.await) })
}
