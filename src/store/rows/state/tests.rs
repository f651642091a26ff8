use crate::{
    cache::{
        Cache, Scope,
        testing::{Hand, LONG, builder, cache, state, tamper},
    },
    error::Error,
    store::{
        CELLS, Change, Found, Key, Kind, LOCKS, Row, commit::operation::Operation, lmdb::transaction::Table,
        record::row::with_row, rows::update::Update, rows::update::beside_the_line,
    },
};
use std::time::Duration;

fn add(found: Found<'_>, _: u64) -> (u64, Change) {
    let sum = 1 + match found {
        Found::Row(row) => u64::from_le_bytes(row.payload.try_into().unwrap()),
        _ => 0,
    };
    (sum, Change::Put { expires: u64::MAX, tag: 0, payload: sum.to_le_bytes().to_vec() })
}

fn key(scope: &Scope, name: &str) -> Key {
    scope.key(Kind::Lock, name.as_bytes())
}

fn put(cache: &Cache, table: Table, name: &str, expires: u64, tag: u64) -> Result<(), Error> {
    let row = Change::Put { expires, tag, payload: vec![1; 8] };
    cache.root().update(table, key(cache.root(), name), move |_, _| ((), row.clone()), |result| result).wait()
}

fn has(cache: &Cache, table: Table, name: &str) -> bool {
    let found = |found: Found<'_>, _| (matches!(found, Found::Row(_)), Change::Keep);
    cache.root().update(table, key(cache.root(), name), found, |result| result).wait().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_of_many_tasks_are_exact() {
    for keys in [1, 7] {
        let cache = cache();
        let tasks: Vec<_> = (0..64)
            .map(|task| {
                let scope = cache.scope("s");
                tokio::spawn(async move {
                    for i in 0..200 {
                        let name = format!("{}", (task + i) % keys);
                        scope.update(CELLS, key(&scope, &name), add, |result| result).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let scope = cache.scope("s");
        let mut sum = 0;
        for name in 0..keys {
            sum += scope.update(CELLS, key(&scope, &name.to_string()), add, |result| result).await.unwrap() - 1;
        }
        assert_eq!(sum, 64 * 200);
    }
}

#[test]
fn two_handles_of_a_directory_share_one_environment() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &std::path::Path| Cache::builder(path).state_size(1 << 20).open().unwrap();
    let first = open(dir.path());
    let link = dir.path().with_extension("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let second = open(&link);
    std::fs::remove_file(link).unwrap();
    assert!(std::ptr::eq(&*first.handle().shared, &*second.handle().shared));
    put(&first, LOCKS, "a", u64::MAX, 0).unwrap();
    drop(first);
    assert!(has(&second, LOCKS, "a"));
    drop(second);
    assert!(has(&open(dir.path()), LOCKS, "a"), "and it is there after the last handle is gone");
}

#[test]
fn keep_and_remove_do_as_they_say() {
    let cache = cache();
    assert!(!has(&cache, CELLS, "a"));
    put(&cache, CELLS, "a", u64::MAX, 0).unwrap();
    assert!(has(&cache, CELLS, "a"));
    assert!(!has(&cache, LOCKS, "a"), "tables are apart");
    let remove = |_: Found<'_>, _| ((), Change::Remove);
    cache.root().update(CELLS, key(cache.root(), "a"), remove, |result| result).wait().unwrap();
    assert!(!has(&cache, CELLS, "a"));
}

#[test]
fn a_flood_of_cells_stays_bounded_drops_the_full_ones_first_and_never_a_lock() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    for i in 0..300 {
        put(&cache, LOCKS, &i.to_string(), u64::MAX, 0).unwrap();
    }
    for i in 0..200_000_u64 {
        // Every other cell is full again already.
        put(&cache, CELLS, &i.to_string(), now + (i % 2) * 1_000_000_000, 0).unwrap();
    }
    let (pages, cells) = tamper(&state(&cache).queue, |txn| (txn.pages(CELLS).unwrap(), txn.len(CELLS).unwrap()));
    assert!(pages <= state(&cache).queue.env.pages() / 2 + 2, "{pages} pages");
    assert!((1000..20_000).contains(&cells), "{cells} cells");
    assert!((0..300).all(|i| has(&cache, LOCKS, &i.to_string())));
    assert!(has(&cache, CELLS, "199999"));
    let evicted = cache.stats().cells_evicted;
    assert!((1..100_000).contains(&evicted), "{evicted} of 100,000 that were not full");
}

#[test]
fn a_flood_of_one_scope_takes_no_cell_of_another() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    let (flooded, busy) = (cache.scope("flooded"), cache.scope("busy"));
    let row = |expires| move |_: Found<'_>, _| ((), Change::Put { expires, tag: 0, payload: vec![1; 8] });
    for i in 0..20 {
        busy.update(CELLS, key(&busy, &i.to_string()), row(now + 1_000_000_000), |result| result).wait().unwrap();
    }
    for i in 0..50_000 {
        // These cells last far longer, so by time alone the others would go first.
        let key = key(&flooded, &i.to_string());
        flooded.update(CELLS, key, row(now + 86_400_000_000_000), |result| result).wait().unwrap();
    }
    let held = |i: &u64| {
        let found = |found: Found<'_>, _| (matches!(found, Found::Row(_)), Change::Keep);
        busy.update(CELLS, key(&busy, &i.to_string()), found, |result| result).wait().unwrap()
    };
    assert_eq!((0..20).filter(held).count(), 20);
    assert!(cache.stats().cells_evicted > 40_000);
}

#[test]
fn a_state_full_of_locks_says_so_and_gives_way_as_they_go() {
    let cache = cache();
    let mut held = 0;
    for i in 0..100 {
        put(&cache, CELLS, &i.to_string(), u64::MAX, 0).unwrap();
    }
    let error = loop {
        match put(&cache, LOCKS, &held.to_string(), u64::MAX, 0) {
            Ok(()) => held += 1,
            Err(error) => break error,
        }
        assert!(held < 100_000);
    };
    assert!(matches!(error, Error::Full), "{error}");
    assert!(held > 2000, "{held} locks");
    assert!((0..held).all(|i| has(&cache, LOCKS, &i.to_string())));
    for i in 0..500 {
        let remove = |_: Found<'_>, _| ((), Change::Remove);
        cache.root().update(LOCKS, key(cache.root(), &i.to_string()), remove, |result| result).wait().unwrap();
    }
    let fit = (0..500).filter(|i| put(&cache, LOCKS, &format!("new {i}"), u64::MAX, 0).is_ok()).count();
    assert!(fit > 200, "{fit} new locks");
    put(&cache, CELLS, "new", u64::MAX, 0).unwrap();
    // Growing rows meet the same bound.
    let grow = |found: Found<'_>, _| match found {
        Found::Row(row) => ((), Change::Put { expires: row.expires, tag: 0, payload: vec![1; 4 * row.payload.len()] }),
        _ => ((), Change::Keep),
    };
    for _ in 0..4 {
        for i in 500..held {
            let key = key(cache.root(), &i.to_string());
            let grown = cache.root().update(LOCKS, key, grow, |result| result).wait();
            assert!(matches!(grown, Ok(()) | Err(Error::Full)));
        }
    }
    for i in 500..held {
        let remove = |_: Found<'_>, _| ((), Change::Remove);
        cache.root().update(LOCKS, key(cache.root(), &i.to_string()), remove, |result| result).wait().unwrap();
    }
}

#[test]
fn cells_that_are_full_again_are_swept_by_other_writes() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let end = cache.handle().now() + 1_000_000_000;
    for i in 0..500 {
        put(&cache, CELLS, &i.to_string(), end, 0).unwrap();
    }
    hand.advance(Duration::from_secs(2));
    for _ in 0..4_000 {
        put(&cache, CELLS, "busy", u64::MAX, 0).unwrap();
    }
    // The busy cell, and LMDB's rows of the other tables.
    assert_eq!(tamper(&state(&cache).queue, |txn| txn.len(CELLS).unwrap()), 4);
}

#[tokio::test]
async fn evicting_a_tag_fills_its_cells_and_clearing_all_but_locks_stay() {
    let cache = cache();
    let tag = cache.root().tag("t");
    for i in 0..250 {
        put(&cache, CELLS, &i.to_string(), u64::MAX, if i % 2 == 0 { tag } else { 0 }).unwrap();
    }
    put(&cache, LOCKS, "lock", u64::MAX, tag).unwrap();
    cache.evict("t").await.unwrap();
    assert!((0..250).all(|i| has(&cache, CELLS, &i.to_string()) == (i % 2 == 1)));
    cache.clear().await.unwrap();
    assert!((0..250).all(|i| !has(&cache, CELLS, &i.to_string())));
    assert!(has(&cache, LOCKS, "lock"));
}

/// Writes a row that does not decode.
fn spoil(cache: &Cache, table: Table, name: &Key) {
    tamper(&state(cache).queue, |txn| {
        let mut row = with_row(name, &Row { expires: u64::MAX, tag: 0, payload: &[1; 8] }, <[u8]>::to_vec);
        row[30] ^= 1;
        txn.put(table, &name.hash, &row).unwrap();
    });
}

#[test]
fn a_damaged_cell_is_shown_as_such_counted_and_replaced() {
    let cache = cache();
    let (root, name) = (cache.root(), key(cache.root(), "a"));
    spoil(&cache, CELLS, &name);
    let transition = |found: Found<'_>, now| (matches!(found, Found::Damaged), add(Found::Absent, now).1);
    assert!(root.update(CELLS, name, transition, |result| result).wait().unwrap());
    assert_eq!(cache.stats().damaged, 1);
    assert_eq!(root.update(CELLS, name, add, |result| result).wait().unwrap(), 2);
}

/// After how long a lock that is damaged is granted again.
fn refused_for(refused: Result<(), Error>) -> Duration {
    match refused {
        Err(Error::DamagedLock { retry_after }) => retry_after,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_lock_is_refused_until_the_latest_lease_has_ended_and_others_go_on() {
    const SECOND: Duration = Duration::from_secs(1);
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    let lease = |seconds: u64| now + seconds * 1_000_000_000;
    let leave = |name: &str| {
        let leave = |_: Found<'_>, _| ((), Change::Remove);
        cache.root().update(LOCKS, key(cache.root(), name), leave, |result| result).wait()
    };
    put(&cache, LOCKS, "other", lease(5), 0).unwrap();
    put(&cache, LOCKS, "a", lease(3), 0).unwrap();
    leave("other").unwrap();
    put(&cache, LOCKS, "other", lease(2), 0).unwrap();
    spoil(&cache, LOCKS, &key(cache.root(), "a"));
    for _ in 0..2 {
        assert_eq!(refused_for(put(&cache, LOCKS, "a", lease(90), 0)), 5 * SECOND, "it was granted once");
        assert_eq!(refused_for(leave("a")), 5 * SECOND);
    }
    put(&cache, CELLS, "cell", u64::MAX, 0).unwrap();
    put(&cache, LOCKS, "other", lease(9), 0).unwrap();
    hand.advance(4 * SECOND);
    assert_eq!(refused_for(put(&cache, LOCKS, "a", lease(90), 0)), SECOND, "later leases do not matter");
    assert_eq!(cache.stats().damaged, 1);
    hand.advance(SECOND);
    assert!(!has(&cache, LOCKS, "a"), "it begins anew");
    put(&cache, LOCKS, "a", lease(90), 0).unwrap();
    assert!(has(&cache, LOCKS, "a") && has(&cache, LOCKS, "other"));
    leave("a").unwrap();
    leave("other").unwrap();
    assert!(!has(&cache, LOCKS, "a") && !has(&cache, LOCKS, "other"));
}

#[test]
fn a_lock_that_is_missing_beside_a_damaged_one_may_have_been_lost() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let end = cache.handle().now() + 1_000_000_000;
    put(&cache, LOCKS, "other", end, 0).unwrap();
    put(&cache, LOCKS, "a", end, 0).unwrap();
    assert!(!has(&cache, LOCKS, "missing"), "beside a sound one it is free");
    spoil(&cache, LOCKS, &key(cache.root(), "a"));
    spoil(&cache, LOCKS, &key(cache.root(), "other"));
    for _ in 0..2 {
        assert_eq!(refused_for(put(&cache, LOCKS, "missing", end, 0)), Duration::from_secs(1));
        assert_eq!(cache.stats().damaged, 1);
    }
    hand.advance(Duration::from_secs(1));
    put(&cache, LOCKS, "missing", end, 0).unwrap();
}

#[test]
fn a_damaged_lock_that_is_asked_for_says_nothing_of_its_neighbours() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let end = cache.handle().now() + 1_000_000_000;
    put(&cache, LOCKS, "a", end, 0).unwrap();
    spoil(&cache, LOCKS, &key(cache.root(), "a"));
    refused_for(put(&cache, LOCKS, "missing", end, 0));
    refused_for(put(&cache, LOCKS, "a", end, 0));
    put(&cache, LOCKS, "missing", end, 0).unwrap();
    refused_for(put(&cache, LOCKS, "a", end, 0));
    assert_eq!(cache.stats().damaged, 1);
}

#[test]
fn locks_of_the_dead_are_swept_long_after_their_lease() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let end = cache.handle().now() + 1_000_000_000;
    for i in 0..100 {
        put(&cache, LOCKS, &i.to_string(), end, 0).unwrap();
    }
    let locks = || tamper(&state(&cache).queue, |txn| txn.len(LOCKS).unwrap());
    let write = || (0..1000).for_each(|_| put(&cache, CELLS, "busy", u64::MAX, 0).unwrap());
    hand.advance(Duration::from_secs(3600));
    write();
    assert_eq!(locks(), 101, "and the counter");
    hand.advance(Duration::from_secs(2));
    write();
    assert_eq!(locks(), 1);
}

#[test]
fn a_glance_shows_nothing_that_was_never_committed() {
    let cache = cache();
    let (state, key) = (state(&cache), key(cache.root(), "name"));
    put(&cache, CELLS, "name", u64::MAX, 0).unwrap();
    let shown = || state.read_recent(&key, |found| matches!(found, Found::Row(row) if row.payload == [1; 8]));
    assert!(has(&cache, CELLS, "name"));
    assert_eq!(shown(), Some(true));
    let held = state.queue.env.gate.lock_for(LONG).unwrap().unwrap();
    let failed = state.queue.env.write(&held, |txn| {
        let row = Change::Put { expires: u64::MAX, tag: 0, payload: vec![2; 8] };
        Update::new(&state.local, CELLS, key, || 0, beside_the_line(move |_, _| ((), row.clone()))).run(txn)?;
        Update::new(&state.local, CELLS, key, || 0, beside_the_line(|_, _| ((), Change::Keep))).run(txn)?;
        Err::<((), bool), _>(Error::Full)
    });
    assert!(matches!(failed, Err(Error::Full)));
    assert_ne!(shown(), Some(false));
}
