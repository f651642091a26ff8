use super::*;
use crate::{
    cache::{
        Cache, Scope,
        testing::{Child, builder, hear, part, say},
    },
    store::{Entry, Kind, Life},
};
use hyper::body::Bytes;
use proptest::{prelude::*, test_runner::RngSeed};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};

fn key(scope: &Scope, name: &str) -> Key {
    scope.key(Kind::Value, name.as_bytes())
}

fn entry(scope: &Scope, name: &str, payload: impl Into<Bytes>) -> Entry {
    let now = scope.handle().now();
    Entry {
        life: Life::without_grace(now, u64::MAX),
        cost: 0,
        spread: 0,
        sequence: scope.purge_sequence(&key(scope, name)).unwrap(),
        scope: scope.id(),
        tags: vec![scope.tag("tag")],
        family: 0,
        payload: payload.into(),
        is_mark: false,
    }
}

fn store(scope: &Scope, name: &str, payload: impl Into<Bytes>) {
    let entry = entry(scope, name, payload);
    scope.commit(key(scope, name), name.as_bytes(), entry).wait().unwrap();
}

/// Reads a name; also returns whether that took no look into the file.
fn read(scope: &Scope, name: &str) -> Option<(Bytes, bool)> {
    let found = scope.read(&key(scope, name), name.as_bytes(), |entry| Some(entry.payload.clone())).unwrap();
    found.ok().map(|found| (Bytes::clone(&found.value), found.from_memory))
}

fn block<T>(future: impl Future<Output = T>) -> T {
    crate::store::block_on(future)
}

macro_rules! weightless {
    ($($value:ty)*) => {
        $(impl Weight for $value {
            fn weight(&self) -> usize {
                0
            }
        })*
    };
}

weightless! { Bytes usize Life }

#[test]
fn what_a_decoded_value_takes_is_counted() {
    struct Decoded(usize);
    impl Weight for Decoded {
        fn weight(&self) -> usize {
            self.0
        }
    }
    let cache = builder().memory(1 << 20).open().unwrap();
    let (scope, tier) = (cache.root(), &cache.handle().shared.tier);
    let read = |name: &str, weight| {
        store(scope, name, "1");
        scope.read(&key(scope, name), name.as_bytes(), |_| Some(Decoded(weight))).unwrap().ok().unwrap();
        tier.weight()
    };
    let light = read("a", 0);
    assert_eq!(read("b", 5000), 2 * light + 5000);
    assert_eq!(read("c", 1 << 20), 2 * light + 5000, "more than a part of the memory");
}

#[test]
fn what_has_not_changed_is_read_from_memory_and_what_has_is_not() {
    let cache = builder().open().unwrap();
    let scope = cache.root();
    assert_eq!(read(scope, "a"), None);
    store(scope, "a", "1");
    let value = |text: &'static str, from_memory| Some((Bytes::from_static(text.as_bytes()), from_memory));
    assert_eq!(read(scope, "a"), value("1", false));
    assert_eq!(read(scope, "a"), value("1", true));
    store(scope, "b", "2");
    assert_eq!(read(scope, "a"), value("1", false), "somebody has committed");
    assert_eq!(read(scope, "a"), value("1", true));
    store(scope, "a", "3");
    assert_eq!((read(scope, "a"), read(scope, "a")), (value("3", false), value("3", true)));
    block(cache.evict("another")).unwrap();
    assert_eq!(read(scope, "a"), value("3", false));
    block(cache.evict("tag")).unwrap();
    assert_eq!((read(scope, "a"), read(scope, "b")), (None, None));
    store(scope, "a", "4");
    read(scope, "a");
    cache.remove("a").wait().unwrap();
    assert_eq!(read(scope, "a"), None);
}

#[test]
fn what_does_not_decode_is_a_miss_and_counted() {
    let cache = builder().open().unwrap();
    store(cache.root(), "a", "1");
    let found = cache.root().read(&key(cache.root(), "a"), b"a", |_| None::<()>).unwrap();
    assert!(found.is_err());
    assert_eq!(cache.stats().damaged, 1);
}

#[test]
fn one_name_is_not_taken_for_another_nor_one_type() {
    let cache = builder().open().unwrap();
    let scope = cache.root();
    store(scope, "a", "1");
    read(scope, "a");
    // The same key, as if two names had one hash.
    assert!(scope.read(&key(scope, "a"), b"b", |entry| Some(entry.payload.clone())).unwrap().is_err());
    let other = scope.read(&key(scope, "a"), b"a", |entry| Some(entry.payload.len())).unwrap();
    assert_eq!(*other.ok().unwrap().value, 1);
}

#[test]
fn memory_is_bounded_and_may_be_none() {
    let cache = builder().size(64 << 20).memory(1 << 20).open().unwrap();
    let scope = cache.root();
    let tier = &scope.handle().shared.tier;
    for n in 0..200 {
        let name = n.to_string();
        store(scope, &name, vec![7; 20_000]);
        read(scope, &name);
        assert!(tier.weight() <= 1 << 20);
    }
    assert!(tier.weight() > 1 << 18, "it is of use");
    store(scope, "large", vec![7; 200_000]);
    assert_eq!((read(scope, "large").unwrap().1, read(scope, "large").unwrap().1), (false, false));

    let cache = builder().memory(0).open().unwrap();
    store(cache.root(), "a", "1");
    for _ in 0..3 {
        assert!(!read(cache.root(), "a").unwrap().1);
    }
}

#[test]
fn reads_are_counted_on_when_the_answer_is_replaced() {
    let cache = builder().open().unwrap();
    let scope = cache.root();
    let reads = || {
        let found = scope.read(&key(scope, "a"), b"a", |entry| Some(entry.payload.clone())).unwrap();
        found.ok().unwrap().reads.unwrap()
    };
    store(scope, "a", "1");
    let before = reads();
    store(scope, "a", "2");
    assert!(Arc::ptr_eq(&before, &reads()));
}

/// No reader sees an older version after a newer one was committed.
#[test]
fn no_read_after_a_commit_is_behind_it() {
    let cache = builder().open().unwrap();
    let (committed, over) = (AtomicU64::new(0), AtomicBool::new(false));
    store(cache.root(), "a", "0");
    std::thread::scope(|threads| {
        for reader in 0..3 {
            let (scope, committed, over) = (cache.root(), &committed, &over);
            threads.spawn(move || {
                while !over.load(SeqCst) {
                    let least = committed.load(SeqCst);
                    // A purge may have removed the entry meanwhile.
                    if let Some((text, _)) = read(scope, "a") {
                        let version: u64 = std::str::from_utf8(&text).unwrap().parse().unwrap();
                        assert!(version >= least, "{version} after {least}, reader {reader}");
                    }
                }
            });
        }
        for version in 1..=300 {
            store(cache.root(), "a", version.to_string());
            committed.store(version, SeqCst);
            if version % 3 == 2 {
                block(cache.evict("tag")).unwrap();
                // A read from here on finds a newer version, or nothing.
                committed.store(version + 1, SeqCst);
            }
        }
        over.store(true, SeqCst);
    });
}

#[test]
fn another_process_is_never_behind_nor_ahead() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let mut child = Child::start("store::entries::memory::memory_tier::tests::child", "reader", directory.path());
    let mut asked = |name: &str| {
        child.tell(name);
        child.line()
    };
    store(cache.root(), "a", "1");
    assert_eq!((asked("a"), asked("a")), ("1 false".into(), "1 true".into()));
    store(cache.root(), "a", "2");
    assert_eq!((asked("a"), asked("a")), ("2 false".into(), "2 true".into()));
    store(cache.root(), "b", "x");
    assert_eq!((asked("a"), asked("a")), ("2 false".into(), "2 true".into()));
    for round in 0..100 {
        block(cache.evict("tag")).unwrap();
        assert_eq!(asked("a"), "-", "round {round}");
        store(cache.root(), "a", round.to_string());
        // The second read is answered from memory, unless the walk after the purges has just committed.
        for _ in 0..2 {
            assert!(asked("a").starts_with(&format!("{round} ")), "round {round}");
        }
    }
}

/// The hits that another process has in its memory keep an answer from being evicted here.
#[test]
fn what_another_process_reads_stays() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path());
    let mut child = Child::start("store::entries::memory::memory_tier::tests::child", "reader", directory.path());
    store(cache.root(), "hot", "x".repeat(1000));
    for n in 0..3000 {
        store(cache.root(), &n.to_string(), "y".repeat(1000));
        assert!(read(cache.root(), &n.to_string()).is_some());
        if n % 50 == 0 {
            child.tell("hot");
            assert!(child.line().starts_with('x'), "{n}");
        }
    }
    assert!(cache.stats().entries_evicted > 2000);
}

fn open(path: &std::path::Path) -> Cache {
    Cache::builder(path).size(1 << 20).state_size(1 << 20).patience(crate::cache::testing::LONG).open().unwrap()
}

#[test]
#[ignore = "a part of another test"]
fn child() {
    let Some((_, path)) = part() else { return };
    let cache = open(&path);
    loop {
        let name = hear();
        if name.is_empty() {
            return;
        }
        match read(cache.root(), &name) {
            Some((text, from_memory)) => say(format!("{} {from_memory}", std::str::from_utf8(&text).unwrap())),
            None => say("-"),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Store(u8, u8),
    Remove(u8),
    Evict,
    Read(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6_u8, any::<u8>()).prop_map(|(name, value)| Step::Store(name, value)),
        1 => (0..6_u8).prop_map(Step::Remove),
        1 => Just(Step::Evict),
        6 => (0..6_u8).prop_map(Step::Read),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, rng_seed: RngSeed::Fixed(15), failure_persistence: None, ..Default::default() })]
    #[test]
    fn whatever_happens_a_read_finds_what_is_there(steps in prop::collection::vec(step(), 1..80), shards in 1..3_u32) {
        let cache = builder().shards(shards).memory(16 << 10).open().unwrap();
        let mut model = HashMap::new();
        for step in steps {
            match step {
                Step::Store(name, value) => {
                    store(cache.root(), &name.to_string(), vec![value]);
                    model.insert(name, value);
                }
                Step::Remove(name) => {
                    cache.remove(&name.to_string()).wait().unwrap();
                    model.remove(&name);
                }
                Step::Evict => {
                    block(cache.evict("tag")).unwrap();
                    model.clear();
                }
                Step::Read(name) => {
                    let found = read(cache.root(), &name.to_string()).map(|(value, _)| value[0]);
                    prop_assert_eq!(found, model.get(&name).copied());
                }
            }
        }
    }
}
