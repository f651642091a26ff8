//! The seed's case study on paused time: ten workers that ask and pause for 10 ms, work of 200 ms, a life of 1 s, 10 s long.

use crate::origin::cache;
use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, ServiceExt, service_fn};
use tower_floodgate::{
    StampedeCacheLayer,
    name::Args,
    stampede::{Serde, StampedeCache},
};

const WORK: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(10);
const LIFE: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Default)]
struct Study {
    computations: usize,
    most_at_once: usize,
    /// Of those after the first.
    slow_callers: usize,
}

async fn study(configure: impl Fn(StampedeCacheLayer<Args, Serde>) -> StampedeCacheLayer<Args, Serde>) -> Study {
    let cache = cache();
    let (runs, running, most) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (counted, now, peak) = (runs.clone(), running.clone(), most.clone());
    let work = service_fn(move |(): ()| {
        let (counted, now, peak) = (counted.clone(), now.clone(), peak.clone());
        async move {
            counted.fetch_add(1, SeqCst);
            peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::time::sleep(WORK).await;
            now.fetch_sub(1, SeqCst);
            Ok::<_, Infallible>("the landing page".to_owned())
        }
    });
    let page: StampedeCache<_, _, _> = configure(StampedeCacheLayer::memoize(cache.scope("page"), LIFE)).layer(work);
    page.clone().oneshot(()).await.unwrap();
    let (began, slow) = (Instant::now(), Arc::new(Mutex::new(0)));
    let mut workers = JoinSet::new();
    for _ in 0..10 {
        let (page, slow) = (page.clone(), slow.clone());
        workers.spawn(async move {
            while began.elapsed() < 10 * LIFE {
                let asked = Instant::now();
                page.clone().oneshot(()).await.unwrap();
                *slow.lock().unwrap() += usize::from(asked.elapsed() >= WORK / 2);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    workers.join_all().await;
    let slow_callers = *slow.lock().unwrap();
    Study { computations: runs.load(SeqCst), most_at_once: most.load(SeqCst), slow_callers }
}

#[tokio::test(start_paused = true)]
async fn computations_stay_within_their_bounds_and_are_never_two_at_once() {
    for (beta, bound) in [(1.0, 42), (0.5, 20), (0.3, 13)] {
        let found = study(|layer| layer.beta(beta)).await;
        assert!(found.computations <= bound && found.most_at_once == 1, "beta {beta}: {found:?}");
    }
    let found = study(|layer| layer.tuned(0.01)).await;
    assert!(found.computations <= 12 && found.most_at_once == 1, "tuned: {found:?}");
}

#[tokio::test(start_paused = true)]
async fn with_grace_nobody_waits_but_the_first() {
    for beta in [1.0, 0.5, 0.3, 0.0] {
        let found = study(|layer| layer.beta(beta).stale_while_revalidate(LIFE)).await;
        assert!(found.slow_callers == 0 && found.most_at_once == 1, "beta {beta}: {found:?}");
    }
    let found = study(|layer| layer.tuned(0.01).stale_while_revalidate(LIFE)).await;
    assert!(found.slow_callers == 0 && found.most_at_once == 1 && found.computations <= 12, "tuned: {found:?}");
}
