//! Purges, also of what is being computed.

use crate::origin::*;
use http::{Request, Response};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};
use tower::{Layer, Service, ServiceExt};
use tower_floodgate::{Cache, StampedeCacheLayer};

#[derive(Clone, Copy, Debug)]
enum Purge {
    LayerTag,
    ResponseTag,
    All,
    Scope,
    Name,
}

const PURGES: [Purge; 5] = [Purge::LayerTag, Purge::ResponseTag, Purge::All, Purge::Scope, Purge::Name];

fn tagged(cache: &Cache) -> StampedeCacheLayer {
    layer(cache).tag("pages").tag("more")
}

async fn purge(how: Purge, cache: &Cache) {
    match how {
        Purge::LayerTag => cache.evict("pages").await,
        Purge::ResponseTag => cache.evict("user 7").await,
        Purge::All => cache.clear().await,
        Purge::Scope => cache.scope("pages").clear().await,
        Purge::Name => tagged(cache).remove(&get("/")).await,
    }
    .unwrap()
}

fn tagging(call: usize) -> Outcome {
    ok(&[("cache-tag", "a, user 7"), ("cache-tag", "b")], call.to_string())
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_is_gone() {
    for how in PURGES {
        let (cache, origin) = (cache(), Origin::new(|_, call| tagging(call)));
        let app = tagged(&cache).layer(origin.clone());
        ask(&app, get("/")).await;
        assert!(ask(&app, get("/")).await.is_hit());
        cache.evict("another").await.unwrap();
        cache.scope("others").clear().await.unwrap();
        tagged(&cache).remove(&get("/other")).await.unwrap();
        assert!(ask(&app, get("/")).await.is_hit(), "{how:?}: other purges are none of its business");
        purge(how, &cache).await;
        assert_eq!(ask(&app, get("/")).await.text(), "2", "{how:?}");
        assert!(ask(&app, get("/")).await.is_hit());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_being_computed_is_never_stored() {
    for how in PURGES {
        let (cache, origin) = (cache(), Origin::held(|_, call| tagging(call)));
        let app = tagged(&cache).layer(origin.clone());
        let before = [0; 3].map(|_| waiting(&app, get("/")));
        purge(how, &cache).await;
        let mut after = waiting(&app, get("/"));
        assert_eq!(origin.calls(), 2, "{how:?}: who comes after the purge does not follow who came before");
        origin.release(1);
        for request in before {
            assert_eq!(request.await.unwrap().text(), "1", "{how:?}: those from before may have it");
        }
        until(|| origin.running() == 1).await;
        settle().await;
        assert!(poll(&mut after).is_pending(), "{how:?}");
        assert_eq!(cache.stats().entries, 0, "{how:?}");
        let also_after = waiting(&app, get("/"));
        origin.release(1);
        for request in [after, also_after] {
            assert_eq!(request.await.unwrap().text(), "2", "{how:?}");
        }
        assert_eq!(ask(&app, get("/")).await.text(), "2", "{how:?}");
    }
}

/// The one from before the purge lands last.
#[tokio::test(start_paused = true)]
async fn a_late_landing_harms_no_newer_answer() {
    for how in PURGES {
        let slow = Arc::new(tokio::sync::Semaphore::new(0));
        let gate = slow.clone();
        let cache = cache();
        let calls = Arc::new(AtomicUsize::new(0));
        let service = tower::service_fn(move |_: Request<String>| {
            let (gate, call) = (gate.clone(), calls.fetch_add(1, SeqCst) + 1);
            async move {
                if call == 1 {
                    gate.acquire().await.unwrap().forget();
                }
                tagging(call)
            }
        });
        let app = tagged(&cache).layer(service);
        let mut before = Box::pin(app.clone().oneshot(get("/")));
        assert!(poll(&mut before).is_pending());
        purge(how, &cache).await;
        assert_eq!(Reply::read(app.clone().oneshot(get("/")).await.unwrap()).await.text(), "2");
        slow.add_permits(1);
        assert_eq!(Reply::read(before.await.unwrap()).await.text(), "1", "{how:?}");
        let hit = Reply::read(app.oneshot(get("/")).await.unwrap()).await;
        assert_eq!((hit.text(), hit.is_hit()), ("2", true), "{how:?}");
    }
}

/// Purges between the end of the computation and the commit, or at any other moment: a request that comes afterwards gets
/// what was computed afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_gets_what_was_computed_before_a_purge() {
    let cache = Cache::builder_temporary().state_size(1 << 20).patience(MINUTE).open().unwrap();
    let version = Arc::new(AtomicUsize::new(0));
    let told = version.clone();
    let origin = Origin::new(move |_, _| ok(&[("cache-tag", "user 7")], told.load(SeqCst).to_string()));
    let app = tagged(&cache).layer(origin);
    let stop = Arc::new(AtomicUsize::new(0));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (app, stop) = (app.clone(), stop.clone());
            tokio::spawn(async move {
                while stop.load(SeqCst) == 0 {
                    ask(&app, get("/")).await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for round in 1..=100 {
        version.store(round, SeqCst);
        let stored = cache.stats().stored;
        purge(PURGES[round % PURGES.len()], &cache).await;
        let until_hit = async {
            loop {
                let reply = ask(&app, get("/")).await;
                assert_eq!(reply.text(), round.to_string());
                if reply.is_hit() {
                    break;
                }
            }
        };
        tokio::time::timeout(10 * SECOND, until_hit).await.expect("nothing is answered from the cache");
        // Every other time the next purge may come before the commit.
        if round % 2 == 0 {
            until(|| cache.stats().stored > stored).await;
            for _ in 0..3 {
                let reply = ask(&app, get("/")).await;
                assert_eq!((reply.text(), reply.is_hit()), (round.to_string().as_str(), true));
            }
        }
    }
    stop.store(1, SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_under_way_is_purged_too() {
    let (cache, origin) = (cache(), Origin::held(|_, call| tagging(call)));
    let app = tagged(&cache).beta(1e12).layer(origin.clone());
    let first = waiting(&app, get("/"));
    settle().await;
    tokio::time::advance(SECOND).await;
    origin.release(1);
    first.await.unwrap();
    assert!(ask(&app, get("/")).await.is_hit());
    assert_eq!(origin.calls(), 2);
    cache.evict("user 7").await.unwrap();
    let after = waiting(&app, get("/"));
    origin.release(2);
    assert_eq!(after.await.unwrap().text(), "3");
    settle().await;
    assert_eq!(ask(&app, get("/")).await.text(), "3");
}

/// Computes in `call` itself, as a service that sends its work to a worker does.
#[derive(Clone)]
struct Eager(Arc<AtomicUsize>);

impl Service<Request<String>> for Eager {
    type Response = Response<TestBody>;
    type Error = Boom;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Boom>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<String>) -> Self::Future {
        let call = self.0.fetch_add(1, SeqCst) + 1;
        Box::pin(async move { ok(&[("cache-control", "public")], call.to_string()) })
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_computed_before_it_is_first_polled_counts_as_begun() {
    for personal in [&[] as &[(&str, &str)], &[("cookie", "a=b")]] {
        let cache = cache();
        let mut app = tagged(&cache).layer(Eager(Arc::default()));
        let begun = app.ready().await.unwrap().call(with("/", personal));
        cache.clear().await.unwrap();
        assert_eq!(Reply::read(begun.await.unwrap()).await.text(), "1");
        // Behind it in the same queue.
        cache.insert("flushed", &1).await.unwrap();
        let next = Reply::read(app.oneshot(with("/", personal)).await.unwrap()).await;
        assert_eq!(next.text(), "2", "{personal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_made_stale_is_served_while_it_is_computed_anew() {
    use tower_floodgate::Purge;
    let (cache, origin) = (cache(), Origin::held_counting());
    let layer = layer(&cache).stale_while_revalidate(MINUTE);
    let app = layer.layer(origin.clone());
    let name = layer.name_of(&get("/")).unwrap();
    for (at, soft) in [
        Purge::name("pages", &name).soft(),
        Purge::prefix("pages", &name[..name.len() - 1]).soft(),
        Purge::scope("pages").soft(),
        Purge::all().soft(),
    ]
    .into_iter()
    .enumerate()
    {
        origin.release(1);
        if at == 0 {
            origin.release(1);
            ask(&app, get("/")).await;
        }
        let before = ask(&app, get("/")).await;
        assert!(before.is_hit());
        tokio::time::advance(SECOND).await;
        let stored = cache.stats().stored;
        match at {
            0 => layer.make_stale(&get("/")).await.unwrap(),
            _ => cache.purge(soft).await.unwrap(),
        }
        let stale = ask(&app, get("/")).await;
        assert_eq!((stale.text(), stale.told()), (before.text(), "hit; ttl=0"));
        until(|| cache.stats().stored > stored).await;
        let new = ask(&app, get("/")).await;
        assert!(new.is_hit() && new.text() != before.text(), "{new:?}");
    }
    cache.purge(Purge::prefix("pages", &name)).await.unwrap();
    origin.release(1);
    assert!(ask(&app, get("/")).await.is_stored());
}
