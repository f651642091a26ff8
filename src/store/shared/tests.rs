use crate::{
    cache::{
        Cache,
        testing::{Hand, Holder, LONG, builder, home, nobody_starts, state},
    },
    store::{Holding, Kind, Renew},
};
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

#[test]
fn the_files_are_closed_when_the_last_handle_is_gone() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
        let scope = cache.scope("a");
        let layout = home(&cache).join("layout");
        let clean = || std::fs::read_to_string(&layout).unwrap().contains("clean=1");
        scope.insert("x", &round).wait().unwrap();
        drop(cache);
        assert!(!clean());
        drop(scope);
        assert!(clean());
    }
}

#[test]
fn a_temporary_cache_leaves_nothing_behind() {
    for _ in 0..50 {
        let cache = builder().open().unwrap();
        let path = cache.path().to_owned();
        cache.insert("x", &1).wait().unwrap();
        assert!(path.exists());
        drop(cache);
        assert!(!path.exists());
    }
}

#[test]
fn closing_behind_a_gate_that_stays_shut_takes_no_longer_than_a_moment() {
    let cache = builder().open().unwrap();
    let holder = Holder::of(&state(&cache).queue);
    let root = cache.root();
    let remove = |_: crate::store::Found<'_>, _: &crate::store::WaitingLine<'_>, _| {
        ((), crate::store::Change::Remove, Vec::new())
    };
    root.post_line(crate::store::LOCKS, root.key(Kind::Lock, b"a"), remove);
    let began = Instant::now();
    drop(cache);
    assert!(began.elapsed() < LONG / 3);
    holder.release();
}

#[test]
fn what_is_held_is_renewed_until_it_is_released_even_by_one_that_panics() {
    let cache = builder().open().unwrap();
    let shared = &cache.handle().shared;
    #[derive(Default)]
    struct Renewals(AtomicUsize);
    impl Renew for Renewals {
        fn renew(self: Arc<Self>) {
            assert_ne!(self.0.fetch_add(1, SeqCst), 3, "one renewal panics");
        }
    }
    let renewals = Arc::new(Renewals::default());
    let every = Duration::from_millis(1);
    let renew: Weak<dyn Renew> = Arc::downgrade(&renewals) as Weak<dyn Renew>;
    shared.hold(Holding { number: 7, due: Instant::now(), every, renew });
    assert!(shared.holds(7));
    let deadline = Instant::now() + LONG;
    while renewals.0.load(SeqCst) < 10 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    shared.release(7, &*renewals);
    assert!(!shared.holds(7));
    cache.insert("x", &1).wait().unwrap();
    let before = renewals.0.load(SeqCst);
    cache.insert("x", &1).wait().unwrap();
    assert!(renewals.0.load(SeqCst) <= before + 1);
}

#[test]
fn any_number_of_shards_can_be_opened() {
    for shards in [3, 7, 255] {
        let cache = builder().size(1 << 30).shards(shards).open().unwrap();
        cache.insert("x", &shards).wait().unwrap();
        assert_eq!(cache.get::<u32>("x").unwrap(), Some(shards));
    }
}

#[test]
fn entries_are_spread_over_shards_and_purged_in_all() {
    let hand = Hand::default();
    let cache = hand.on(builder().size(8 << 20).shards(4));
    for i in 0..200 {
        cache.insert(&i.to_string(), &i).tag("t").wait().unwrap();
    }
    let sizes: Vec<_> = cache.handle().shared.entries.iter().map(|shard| shard.size().unwrap().0).collect();
    assert!(sizes.iter().all(|&size| size > 20), "{sizes:?}");
    assert_eq!(cache.stats().entries, 200);
    crate::store::block_on(cache.evict("t")).unwrap();
    assert!((0..200).all(|i| cache.get::<i32>(&i.to_string()).unwrap().is_none()));
}
