use super::*;
use crate::{
    cache::{
        Cache,
        testing::{Hand, builder, cache, state, tamper},
    },
    lock::{AcquireError, Guard, Semaphore},
    store::{CELLS, Change, Found, Kind, LOCKS},
};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use std::{collections::BTreeMap, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

fn due_strategy() -> impl Strategy<Value = Due> {
    let (few, more) = (0..3_u64, 0..6_u64);
    prop_oneof![
        (few.clone(), more.clone()).prop_map(|(instance, at)| Due::Held { instance, at }),
        (few, more).prop_map(|(instance, at)| Due::Offered { at, instance }),
    ]
}

#[test]
fn rows_and_index_agree_with_simple_maps() {
    let config =
        ProptestConfig { cases: 64, rng_seed: RngSeed::Fixed(46), failure_persistence: None, ..Default::default() };
    let cache = cache();
    let key = cache.root().key(Kind::Lock, b"a");
    let steps = prop::collection::vec((0..4_u128, 0..4_u64, prop::option::of((due_strategy(), any::<u8>()))), 0..40);
    let ranges = (due_strategy(), due_strategy(), 1..9_usize);
    let played = TestRunner::new(config).run(&(steps, ranges), |(steps, (from, to, most))| {
        let mut model: BTreeMap<HolderId, (Due, Vec<u8>)> = BTreeMap::new();
        tamper(&state(&cache).queue, |txn| clear(txn, &key.hash).unwrap());
        // A neighbour, which must not be seen.
        let other = Key { hash: [key.hash[0]; 16], ..key };
        for (owner, number, after) in steps {
            let id = HolderId { owner, number };
            let after = after.map(|(due, byte)| (due, vec![byte; 3]));
            let before = model.get(&id).map(|(due, _)| *due);
            tamper(&state(&cache).queue, |txn| {
                step(txn, &key, HolderStep { id, before, after: after.clone() }).unwrap();
                step(txn, &other, HolderStep { id, before: None, after: Some((from, vec![])) }).unwrap();
            });
            match after {
                Some(after) => drop(model.insert(id, after)),
                None => drop(model.remove(&id)),
            }
        }
        tamper(&state(&cache).queue, |txn| {
            let row = |(id, (due, payload)): (&HolderId, &(Due, Vec<u8>))| {
                Some(HolderRow { id: *id, due: *due, payload: payload.clone() })
            };
            assert_eq!(rows(txn, &key, None, usize::MAX).unwrap(), model.iter().map(row).collect::<Vec<_>>());
            let own = model.iter().filter(|(id, _)| id.owner == 2).map(row).take(2);
            assert_eq!(rows(txn, &key, Some(2), 2).unwrap(), own.collect::<Vec<_>>());
            for (id, entry) in &model {
                assert_eq!(get(txn, &key, *id).unwrap(), Some(row((id, entry))));
            }
            let mut index: Vec<(Due, HolderId)> = model.iter().map(|(id, (due, _))| (*due, *id)).collect();
            index.sort_by_key(|(due, id)| (*due, id.number, id.owner));
            index.retain(|(due, _)| (from..=to).contains(due));
            index.truncate(most);
            if std::mem::discriminant(&from) == std::mem::discriminant(&to) && from <= to {
                assert_eq!(due(txn, &key, (from, to), most).unwrap(), index);
            }
        });
        Ok(())
    });
    played.unwrap();
}

fn hold(cache: &Cache, lease: Duration) -> Result<Guard, AcquireError> {
    cache.lock("a").rule(Semaphore(100)).expire(lease).try_acquire_blocking()
}

fn len(cache: &Cache) -> u64 {
    tamper(&state(cache).queue, |txn| txn.len(HOLDERS).unwrap())
}

/// Garbles the rows of some holders; returns how many.
fn spoil(cache: &Cache, most: usize) -> usize {
    tamper(&state(cache).queue, |txn| {
        let rows = txn.rows(HOLDERS, Bound::Unbounded, usize::MAX, |at, row| (at.to_vec(), row.to_vec())).unwrap();
        let mut spoilt = 0;
        for (at, mut row) in rows.into_iter().filter(|(at, _)| at.len() == ROW_KEY).take(most) {
            row[40] ^= 1;
            txn.put(HOLDERS, &at, &row).unwrap();
            spoilt += 1;
        }
        spoilt
    })
}

#[test]
fn those_whose_rows_are_damaged_count_until_the_latest_lease_has_ended() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let mut guards: Vec<Guard> = (0..100).map(|_| hold(&cache, 100 * SECOND).unwrap()).collect();
    assert!(matches!(hold(&cache, SECOND), Err(AcquireError::Busy { .. })));
    assert_eq!(spoil(&cache, 10), 10);
    let released: Vec<bool> = guards.drain(50..).map(|guard| guard.release_blocking().is_ok()).collect();
    let lost = released.iter().filter(|released| !**released).count();
    // How many is for chance: the rows are in order of their owners.
    let again = std::iter::from_fn(|| hold(&cache, 100 * SECOND).ok());
    let again: Vec<Guard> = again.collect();
    assert_eq!(again.len(), 50 - lost, "one of a damaged row stays taken");
    assert_eq!(cache.stats().damaged, u64::from(lost > 0));
    drop((again, guards));
    hand.advance(100 * SECOND);
    let all: Vec<Guard> = std::iter::from_fn(|| hold(&cache, SECOND).ok()).collect();
    assert_eq!(all.len(), 100);
    drop(all);
    assert_eq!(len(&cache), 0);
}

#[test]
fn what_a_damaged_lock_leaves_is_cleared_and_what_a_lost_one_leaves_is_swept() {
    let cache = cache();
    let guards: Vec<Guard> = (0..50).map(|_| hold(&cache, 100 * SECOND).unwrap()).collect();
    assert!(len(&cache) > 2 * 30);
    let key = cache.root().key(Kind::Lock, b"a");
    tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &key.hash, b"nonsense").unwrap());
    hold(&cache, SECOND).unwrap_err();
    assert_eq!(len(&cache), 0);
    drop(guards);
    let guards: Vec<Guard> =
        (0..50).map(|_| cache.lock("b").rule(Semaphore(50)).try_acquire_blocking().unwrap()).collect();
    let key = cache.root().key(Kind::Lock, b"b");
    tamper(&state(&cache).queue, |txn| txn.delete(LOCKS, &key.hash).unwrap());
    std::mem::forget(guards);
    for _ in 0..64 * 10 {
        let put = |_: Found<'_>, _| ((), Change::Put { expires: u64::MAX, tag: 0, payload: vec![1] });
        cache.root().update(CELLS, key, put, |done| done).wait().unwrap();
    }
    assert_eq!(len(&cache), 0);
}
