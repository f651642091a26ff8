use super::*;
use crate::{
    BarrierLayer, Cache, Error, Fail, Lock, Rejection,
    cache::testing::{builder, state, tamper},
    lock::AcquireError,
};
use std::time::Duration;
use tower::{Layer, Service, service_fn};

/// Spoils all rows of locks but the counter.
fn spoil(cache: &Cache) {
    tamper(&state(cache).queue, |txn| {
        let rows = txn.rows(LOCKS, Bound::Excluded(&[0; 16]), usize::MAX, |at, _| row_key::<16>(at)).unwrap();
        rows.iter().for_each(|at| txn.put(LOCKS, at, b"nonsense").unwrap());
    });
}

fn damaged<T>(acquired: Result<T, AcquireError>) -> Duration {
    match acquired {
        Err(AcquireError::Cache(Error::DamagedLock { retry_after })) => retry_after,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("nobody knows who holds it"),
    }
}

#[tokio::test]
async fn who_holds_a_damaged_lock_and_who_waits_for_it_are_told() {
    let cache = builder().open().unwrap();
    let lease = Duration::from_millis(300);
    let guard = cache.lock("l").expire(lease).await.unwrap();
    let mut waiting = cache.lock("l").acquire();
    assert!(waiting.now().is_none() && !format!("{waiting:?}").is_empty());
    spoil(&cache);
    let refused = damaged(waiting.await);
    assert!(refused <= lease, "{refused:?}");
    guard.lost().await;
    let after = loop {
        match cache.lock("l").try_acquire().await {
            Err(AcquireError::Cache(Error::DamagedLock { retry_after })) => tokio::time::sleep(retry_after).await,
            other => break other.unwrap(),
        }
    };
    assert!(after.fence() > guard.fence());
    assert_eq!(cache.stats().damaged, 1);
    drop(guard);
    assert!(cache.lock("l").try_acquire().await.is_err(), "one that has lost it takes it from nobody");
}

/// It is let pass where the cache cannot be used; here it can be, and somebody may hold the lock.
#[tokio::test]
async fn a_barrier_that_fails_open_lets_nobody_pass_a_damaged_lock() {
    let cache = builder().open().unwrap();
    let layer = BarrierLayer::new(cache.scope("s"), Lock).fail_open().answer(Fail);
    let service = service_fn(|held: ()| async move { Ok::<_, Rejection>(held) });
    let mut barrier = layer.layer(service);
    barrier.call(()).await.unwrap();
    let inside = layer.layer(service_fn(|()| std::future::pending::<Result<(), Rejection>>())).call(());
    let mut inside = tokio_test::task::spawn(inside);
    assert!(inside.poll().is_pending());
    spoil(&cache);
    let refused = barrier.call(()).await.unwrap_err();
    assert!(refused.retry_after.is_some(), "{refused:?}");
}
