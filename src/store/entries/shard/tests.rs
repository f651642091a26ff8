use super::*;
use crate::{
    cache::{
        Cache, Scope,
        testing::{Hand, Holder, builder, cache, tamper},
    },
    store::{
        Edit, Kind, LONGEST_FLIGHT, Life, Table,
        entries::{
            entry::Claims,
            forgetting::PURGES_MAX,
            pieces::footprint,
            table::{FAMILIES, FAMILY_MAX, INDEX, ORDER, PURGES, split_index_key},
        },
    },
};
use proptest::{prelude::*, test_runner::RngSeed};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn shard(cache: &Cache) -> &Arc<Entries> {
    &cache.handle().shared.entries[0]
}

fn rows(cache: &Cache, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
    shard(cache).queue.env.read(|reader| Ok(reader.all(table))).unwrap()
}

fn key(scope: &Scope, name: &str) -> Key {
    scope.key(Kind::Value, name.as_bytes())
}

/// An answer whose computation began at `sequence`.
fn answer(scope: &Scope, sequence: u64, tags: &[&str]) -> Entry {
    let now = scope.handle().now();
    let tags = tags.iter().map(|tag| scope.tag(tag)).collect();
    let payload = Bytes::from_static(b"\x01");
    let life = Life::without_grace(now, now + 60_000_000_000);
    Entry { life, cost: 1, spread: 0, sequence, scope: scope.id(), tags, family: 0, payload, is_mark: false }
}

fn commit(scope: &Scope, name: &str, entry: Entry) {
    scope.commit(key(scope, name), name.as_bytes(), entry).wait().unwrap();
}

fn sequence(scope: &Scope, name: &str) -> u64 {
    scope.purge_sequence(&key(scope, name)).unwrap()
}

fn has(scope: &Scope, name: &str) -> bool {
    scope.get::<u8>(name).unwrap().is_some()
}

/// Has the worker thread tidy until it has nothing left to do.
fn tidy(cache: &Cache) {
    loop {
        shard(cache).tidy();
        // The queue is served in order, so the step is done when this is.
        cache.remove("no such name").wait().unwrap();
        if !shard(cache).is_untidy() {
            return;
        }
    }
}

/// Checks the invariants of the tables.
fn check(cache: &Cache) {
    let entries = rows(cache, ENTRIES);
    let claims = |claim: fn(Claims) -> u64| {
        let row = |(key, bytes): &(Vec<u8>, Vec<u8>)| (claim(Claims::of(bytes)), key[..].try_into().unwrap());
        entries.iter().map(row).collect::<BTreeSet<_>>()
    };
    let split = |row: &(Vec<u8>, Vec<u8>)| split_index_key(&row.0);
    assert_eq!(rows(cache, INDEX).iter().map(split).collect::<BTreeSet<_>>(), claims(|claims| claims.expires));
    let families = claims(|claims| claims.family).into_iter().filter(|(family, _)| *family != 0);
    assert!(families.eq(rows(cache, FAMILIES).iter().map(split)));
    let order = rows(cache, ORDER).into_iter().map(|(place, key)| split_index_key(&[place, key].concat()));
    assert_eq!(order.collect::<BTreeSet<_>>(), claims(|claims| claims.place));
    let ledger = shard(cache).queue.env.read(load_ledger).unwrap();
    let small = entries.iter().filter(|row| Claims::of(&row.1).place > ledger.main_end);
    assert_eq!(ledger.small, small.map(|row| Claims::footprint(&row.1)).sum::<u64>());
    let bytes: u64 = entries.iter().map(|row| Claims::footprint(&row.1)).sum();
    let rows_of = |table| rows(cache, table).iter().map(|row| footprint(row.1.len())).sum::<u64>();
    assert_eq!(rows_of(ENTRIES) + rows_of(PIECES), bytes, "no piece is without its entry");
    assert_eq!(shard(cache).size().unwrap(), (entries.len() as u64, bytes));
    assert!(bytes <= shard(cache).budget.0);
}

#[tokio::test]
async fn a_purge_takes_what_was_begun_before_it_and_nothing_else() {
    let cache = builder().open().unwrap();
    let (a, b) = (cache.scope("a"), cache.scope("b"));
    for kind in ["tag", "all", "scope", "name"] {
        let old = sequence(&a, "x");
        commit(&a, "stored", answer(&a, old, &["t", "u"]));
        commit(&a, "x", answer(&a, old, &["t", "u"]));
        commit(&b, "x", answer(&b, old, &[]));
        assert!(has(&a, "stored") && has(&a, "x") && has(&b, "x"));
        match kind {
            "tag" => cache.evict("u").await.unwrap(),
            "all" => cache.clear().await.unwrap(),
            "scope" => a.clear().await.unwrap(),
            _ => a.purge_name(&key(&a, "x"), false).await.unwrap(),
        }
        assert!(!has(&a, "x"), "{kind}");
        assert_eq!(has(&a, "stored"), kind == "name", "{kind}");
        assert_eq!(has(&b, "x"), kind != "all", "{kind}");
        // An answer that was being computed meanwhile is refused by the storing transaction itself.
        commit(&a, "x", answer(&a, old, &["u"]));
        assert!(!has(&a, "x"), "{kind}");
        let new = sequence(&a, "x");
        assert!(new > old);
        commit(&a, "x", answer(&a, new, &["u"]));
        assert!(has(&a, "x"), "{kind}");
        // Such an answer does not replace one that was computed since.
        commit(&a, "x", answer(&a, old, &["u"]));
        assert!(has(&a, "x"), "{kind}");
        // Other tags, scopes and names go on.
        commit(&b, "y", answer(&b, old, &["t"]));
        assert_eq!(has(&b, "y"), kind != "all", "{kind}");
        tidy(&cache);
        assert_eq!(has(&a, "stored"), kind == "name", "{kind}");
        check(&cache);
        cache.clear().await.unwrap();
    }
}

#[tokio::test]
async fn a_purge_that_is_queued_before_a_store_comes_first() {
    let cache = builder().open().unwrap();
    let scope = cache.scope("a");
    let old = sequence(&scope, "x");
    let holder = Holder::of(&shard(&cache).queue);
    let purge = shard(&cache).purge(Subject::Name(key(&scope, "x").hash), false, cache.handle().now());
    let stored = scope.commit(key(&scope, "x"), b"x", answer(&scope, old, &[]));
    holder.release();
    purge.await.unwrap();
    stored.await.unwrap();
    assert!(!has(&scope, "x"));
}

#[test]
fn an_answer_that_took_too_long_or_has_ended_is_not_stored() {
    let cache = builder().open().unwrap();
    let scope = cache.scope("a");
    let entry = answer(&scope, 0, &[]);
    commit(&scope, "x", Entry { cost: LONGEST_FLIGHT, ..entry.clone() });
    commit(&scope, "x", Entry { life: Life::without_grace(entry.life.stored, entry.life.stored), ..entry.clone() });
    assert!(!has(&scope, "x"));
    commit(&scope, "x", entry.clone());
    commit(&scope, "x", Entry { cost: LONGEST_FLIGHT, ..entry });
    assert!(has(&scope, "x"), "the one that is there stays");
    check(&cache);
}

#[test]
fn what_has_ended_goes_with_later_writes_and_by_tidying() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    for i in 0..1000 {
        cache.insert(&i.to_string(), &1).expire(SECOND).wait().unwrap();
    }
    hand.advance(SECOND);
    assert!((0..1000).all(|i| !has(cache.root(), &i.to_string())));
    assert_eq!(rows(&cache, ENTRIES).len(), 1000);
    cache.insert("new", &1).wait().unwrap();
    assert!(rows(&cache, ENTRIES).len() < 1000);
    tidy(&cache);
    assert_eq!(rows(&cache, ENTRIES).len(), 1);
    assert_eq!(cache.stats().entries_evicted, 0);
    check(&cache);
}

#[test]
fn the_budget_is_never_exceeded_and_what_was_stored_last_is_there() {
    let cache = builder().open().unwrap();
    for i in 0..3000 {
        cache.insert(&i.to_string(), &"small").wait().unwrap();
    }
    check(&cache);
    assert!(there(&cache, 2999) && there(&cache, 0));
    let large = "x".repeat(cache.root().largest() - 10);
    for i in 3000..3020 {
        cache.insert(&i.to_string(), &large).expire(SECOND).wait().unwrap();
        check(&cache);
        assert!(there(&cache, i));
    }
    assert!(there(&cache, 0) && there(&cache, 2999), "they were read");
    assert!(!there(&cache, 1) && !there(&cache, 3000));
    check(&cache);
}

fn there(cache: &Cache, name: u64) -> bool {
    cache.get::<String>(&name.to_string()).unwrap().is_some()
}

#[test]
fn what_is_read_stays_whoever_lives_longer() {
    for memory in [0, 1 << 20] {
        let cache = builder().memory(memory).open().unwrap();
        let (scope, text) = (cache.root(), "x".repeat(1000));
        let hot = key(scope, "hot");
        let read = |name: &str| {
            let found = scope.read(&key(scope, name), name.as_bytes(), |entry| Some(entry.payload.len()));
            found.unwrap().is_ok()
        };
        cache.insert("hot", &text).expire(SECOND * 60).wait().unwrap();
        let mut hits = 0;
        for i in 0..5000 {
            hits += u32::from(read("hot"));
            cache.insert(&i.to_string(), &text).wait().unwrap();
            assert!(read(&i.to_string()));
        }
        assert_eq!(hits, 5000, "memory: {memory}");
        assert!(shard(&cache).uses.count(&hot.hash) > 0);
        check(&cache);
    }
}

#[test]
fn what_was_never_read_goes_first_and_before_it_what_has_ended() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let (text, insert) = ("x".repeat(1000), |name: u64, text: &str| cache.insert(&name.to_string(), text));
    // Read and unread, by turns, then some that end.
    (0..400).for_each(|i| insert(i, &text).wait().map(drop).unwrap());
    (0..400).step_by(2).for_each(|i| assert!(there(&cache, i)));
    (400..600).for_each(|i| insert(i, &text).expire(SECOND).wait().map(drop).unwrap());
    hand.advance(SECOND);
    (600..650).for_each(|i| insert(i, &text).wait().map(drop).unwrap());
    assert_eq!(cache.stats().entries_evicted, 0, "what has ended made room");
    (650..1250).for_each(|i| insert(i, &text).wait().map(drop).unwrap());
    check(&cache);
    let (left, hash) = (rows(&cache, ENTRIES), |i: u64| key(cache.root(), &i.to_string()).hash.to_vec());
    let left: BTreeSet<_> = left.into_iter().map(|row| row.0).collect();
    assert!((0..400).step_by(2).all(|i| left.contains(&hash(i))), "all that were read are there");
    let spared = (1..400).step_by(2).filter(|&i| left.contains(&hash(i))).count();
    assert!(spared <= 40, "{spared} of 200 share a word with one that was read");
}

#[test]
fn huge_values_do_not_empty_the_cache() {
    let cache = builder().open().unwrap();
    let text = "x".repeat(1000);
    for i in 0..500 {
        cache.insert(&i.to_string(), &text).wait().unwrap();
        assert!(there(&cache, i));
    }
    let huge = "x".repeat(cache.root().largest() - 10);
    for i in 1000..1050 {
        cache.insert(&i.to_string(), &huge).wait().unwrap();
        if i % 2 == 0 {
            assert!(there(&cache, i));
        }
        check(&cache);
    }
    let left = (0..500).filter(|&i| there(&cache, i)).count();
    assert!(left >= 250, "{left} of 500");
}

#[test]
fn large_values_are_kept_in_pieces() {
    let hand = Hand::default();
    let cache = hand.on(builder().size(8 << 20));
    hand.advance(SECOND);
    let (scope, key) = (cache.root(), key(cache.root(), "x"));
    let text = |len: usize| (0..len).map(|at| char::from(b'a' + (at % 23) as u8)).collect::<String>();
    let stored = || cache.get::<String>("x").unwrap();
    for len in [100, 70_000, 65_000, 2_000_000, 65_600, 131_000, 1_500_000, 10] {
        cache.insert("x", &text(len)).expire(SECOND * 60).wait().unwrap();
        assert!(stored() == Some(text(len)), "{len}");
        check(&cache);
        assert!(!cache.add("x", "new").wait().unwrap());
        assert!(scope.touch("x", Some(SECOND * 90)).wait().unwrap());
        assert!(stored() == Some(text(len)), "{len}, touched");
        check(&cache);
    }
    // A soft purge leaves the payload where it is.
    let large = Bytes::from(text(1_000_000));
    let life =
        Life { revalidate: u64::MAX, if_error: u64::MAX, ..Life::without_grace(cache.handle().now(), u64::MAX / 2) };
    let entry = Entry { life, payload: large.clone(), ..answer(scope, sequence(scope, "x"), &["t"]) };
    commit(scope, "x", entry.clone());
    cache.purge_blocking(crate::Purge::tag("t").soft()).unwrap();
    tidy(&cache);
    let found = scope.entry(&key, b"x").unwrap().unwrap().0;
    assert!(found.payload == large && found.life.fresh < life.fresh);
    check(&cache);
    // One damaged piece is a miss, and goes with the entry.
    for number in [0, 7, 15] {
        commit(scope, "x", entry.clone());
        tamper(&shard(&cache).queue, |txn| {
            let piece = piece_key(&key.hash, number);
            let mut bytes = txn.get(PIECES, &piece).unwrap().unwrap().to_vec();
            bytes[9] ^= 1;
            txn.put(PIECES, &piece, &bytes).unwrap();
        });
        let before = cache.stats().damaged;
        assert!(scope.entry(&key, b"x").unwrap().is_err());
        assert_eq!(cache.stats().damaged, before + 1);
        assert!(cache.add("x", "new").wait().unwrap());
        check(&cache);
    }
    commit(scope, "x", entry);
    cache.remove("x").wait().unwrap();
    assert_eq!(rows(&cache, PIECES).len(), 0);
    // Room is made for large ones by large ones.
    for i in 0..40 {
        cache.insert(&i.to_string(), &text(300_000 + 7919 * i)).wait().unwrap();
        check(&cache);
    }
}

/// A value is replaced all the time while it is read in several transactions.
#[test]
fn no_value_is_made_of_pieces_of_two() {
    let cache = builder().size(64 << 20).open().unwrap();
    let value = |round: u8| vec![round; 3_000_000];
    let store = |round: u8| {
        let entry = Entry { payload: value(round).into(), ..answer(cache.root(), 0, &[]) };
        commit(cache.root(), "x", entry);
    };
    store(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !over.load(Relaxed) {
                if let Ok((found, _)) = cache.root().entry(&key(cache.root(), "x"), b"x").unwrap() {
                    assert!(
                        found.payload.iter().all(|byte| *byte == found.payload[0]) && found.payload.len() == 3_000_000
                    );
                }
            }
        });
        (0..60).for_each(store);
        over.store(true, Relaxed);
    });
    check(&cache);
}

#[test]
fn the_hits_of_another_opening_count() {
    let dir = tempfile::tempdir().unwrap();
    let uses = [true, false].map(|alone| UseTable::open(dir.path(), 1 << 20, true, alone).unwrap());
    let key = key(cache().root(), "x").hash;
    uses[0].note(&key);
    assert_eq!(uses[1].count(&key), 1);
    let alone = UseTable::open(dir.path(), 1 << 20, false, true).unwrap();
    assert_eq!(alone.count(&key), 0);
}

#[test]
fn a_name_has_a_bounded_family() {
    let cache = builder().open().unwrap();
    let scope = cache.scope("a");
    let (plain, begun) = (key(&scope, "x"), sequence(&scope, "x"));
    for i in 0..2 * FAMILY_MAX {
        let entry = Entry { family: plain.family(), ..answer(&scope, begun, &[]) };
        commit(&scope, &format!("x {i}"), entry);
        assert!(has(&scope, "x 0") && has(&scope, &format!("x {i}")), "{i}");
    }
    commit(&scope, "x", answer(&scope, begun, &[]));
    assert_eq!(rows(&cache, ENTRIES).len(), FAMILY_MAX + 1);
    check(&cache);
    for soft in [true, false] {
        crate::store::block_on(scope.purge_name(&plain, soft)).unwrap();
        assert!(!has(&scope, "x 0"), "soft: {soft}");
        check(&cache);
    }
    assert_eq!(rows(&cache, ENTRIES).len(), 0);
}

#[test]
fn damaged_entries_are_misses_counted_and_replaced() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let key = key(cache.root(), "x");
    let flip = |at: usize| {
        tamper(&shard(&cache).queue, |txn| {
            let mut bytes = txn.get(ENTRIES, &key.hash).unwrap().unwrap().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 0x10;
            txn.put(ENTRIES, &key.hash, &bytes).unwrap();
        });
    };
    for at in 0..100 {
        cache.insert("x", &"text").expire(SECOND * 9).wait().unwrap();
        let before = cache.stats().damaged;
        flip(at);
        assert_eq!(cache.get::<String>("x").unwrap(), None, "byte {at}");
        assert_eq!(cache.stats().damaged, before + 1);
        match at % 3 {
            0 => assert!(cache.add("x", &"new").expire(SECOND * 9).wait().unwrap()),
            1 => assert_eq!(cache.incr("x", 7).wait().unwrap(), 7),
            _ => assert!(!cache.remove("x").wait().unwrap()),
        }
        assert_eq!(cache.stats().damaged, before + 2);
        assert_eq!(shard(&cache).size().unwrap().0, u64::from(at % 3 != 2));
    }
    // An entry that is not asked for again goes when it would have ended.
    for at in 0..100 {
        cache.insert("x", &"text").expire(SECOND * 9).wait().unwrap();
        flip(at);
        hand.advance(SECOND * 10);
        cache.insert("other", &1).expire(SECOND).wait().unwrap();
        tidy(&cache);
        assert_eq!(shard(&cache).size().unwrap().0, 1, "byte {at}");
        check(&cache);
    }
}

#[test]
fn the_walk_after_a_purge_removes_rows_and_later_the_purge() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let doomed = cache.scope("doomed");
    for i in 0..500 {
        doomed.insert(&i.to_string(), &1).wait().unwrap();
        cache.insert(&i.to_string(), &1).wait().unwrap();
    }
    let before = answer(cache.root(), sequence(cache.root(), "x"), &["t"]);
    shard(&cache).purge(Subject::Scope(doomed.id()), false, cache.handle().now()).wait().unwrap();
    shard(&cache).purge(Subject::Tag(cache.root().tag("t")), false, cache.handle().now()).wait().unwrap();
    // The worker thread may have begun already.
    tidy(&cache);
    assert_eq!(rows(&cache, ENTRIES).len(), 500);
    check(&cache);
    assert_eq!(rows(&cache, PURGES).len(), 2, "something older may still be under way");
    commit(cache.root(), "x", before);
    assert!(!has(cache.root(), "x"));
    hand.advance(SECOND * 2 * 3600 + SECOND);
    cache.insert("x", &1).wait().unwrap();
    tidy(&cache);
    assert_eq!(rows(&cache, PURGES).len(), 0);
    assert!(has(cache.root(), "x") && has(cache.root(), "499"));
}

#[test]
fn a_walk_goes_on_where_it_was_when_its_transaction_was_aborted() {
    let cache = builder().open().unwrap();
    let (doomed, root) = (cache.scope("doomed"), cache.root());
    for i in 0..500 {
        doomed.insert(&i.to_string(), &1).wait().unwrap();
    }
    shard(&cache).purge(Subject::Scope(doomed.id()), false, cache.handle().now()).wait().unwrap();
    for _ in 0..8 {
        let holder = Holder::of(&shard(&cache).queue);
        shard(&cache).tidy();
        // This operation fails, so all operations of the batch run again, each alone.
        let bad = root.edit(key(root, "x"), b"x", |_, _| -> (Result<(), Error>, Edit) { panic!("neighbour") });
        holder.release();
        assert!(matches!(bad.wait(), Err(Error::Panicked)));
    }
    assert!(!shard(&cache).is_untidy());
    assert_eq!(rows(&cache, ENTRIES).len(), 0);
}

#[test]
fn a_flood_of_purged_names_stays_bounded_and_harms_only_what_is_being_computed_there() {
    let cache = builder().open().unwrap();
    let (scope, other) = (cache.scope("a"), cache.scope("b"));
    scope.insert("stays", &1).tag("t").wait().unwrap();
    let old = sequence(&scope, "x");
    for round in 0..20_u64 {
        let purges: Vec<_> = (0..1000)
            .map(|i| round * 1000 + i)
            .flat_map(|i| [Subject::Name(key(&scope, &i.to_string()).hash), Subject::Family(scope.id(), i)])
            .map(|subject| shard(&cache).purge(subject, false, cache.handle().now()))
            .collect();
        assert!(purges.into_iter().all(|purge| purge.wait().unwrap() == Purged::Done));
        assert!(!shard(&cache).is_untidy(), "nothing is left to be walked");
        assert!(rows(&cache, PURGES).len() as u64 <= PURGES_MAX);
    }
    assert!(has(&scope, "stays"));
    let late = answer(&scope, old, &[]);
    assert!(!shard(&cache).is_current(&key(&scope, "x"), b"x", &late, late.life.stored).unwrap());
    commit(&scope, "x", late);
    assert!(!has(&scope, "x"), "its own purge may be among those forgotten");
    commit(&scope, "x", answer(&scope, sequence(&scope, "x"), &[]));
    assert!(has(&scope, "x"));
    commit(&other, "x", answer(&other, old, &[]));
    assert!(has(&other, "x"), "this is another scope");
    // A living value can still be changed.
    assert!(scope.touch("stays", Some(SECOND * 9)).wait().unwrap());
    assert_eq!(scope.incr("stays", 1).wait().unwrap(), 2);
    assert!(has(&scope, "stays"));
}

#[test]
fn a_reader_is_not_fooled_by_what_is_stored_while_it_asks_the_time() {
    let cache = builder().open().unwrap();
    let key = key(cache.root(), "x");
    let late = || {
        cache.insert("x", &2).wait().unwrap();
        cache.handle().now()
    };
    cache.insert("x", &1).wait().unwrap();
    assert!(shard(&cache).get(&key, b"x", late).unwrap().is_ok());
}

#[derive(Clone, Debug)]
enum Step {
    Insert { name: u8, size: usize, life: u8, tag: Option<u8> },
    Add { name: u8 },
    Incr { name: u8 },
    Touch { name: u8, life: u8 },
    Remove { name: u8 },
    PurgeName { name: u8 },
    PurgeTag { tag: u8 },
    PurgeScope,
    Advance { seconds: u8 },
    Tidy,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..20_u8;
    let insert = (name.clone(), 0..3000_usize, 0..20_u8, prop::option::of(0..3_u8))
        .prop_map(|(name, size, life, tag)| Step::Insert { name, size, life, tag });
    prop_oneof![
        6 => insert,
        1 => name.clone().prop_map(|name| Step::Add { name }),
        1 => name.clone().prop_map(|name| Step::Incr { name }),
        2 => (name.clone(), 0..20_u8).prop_map(|(name, life)| Step::Touch { name, life }),
        2 => name.clone().prop_map(|name| Step::Remove { name }),
        1 => name.prop_map(|name| Step::PurgeName { name }),
        1 => (0..3_u8).prop_map(|tag| Step::PurgeTag { tag }),
        1 => Just(Step::PurgeScope),
        3 => (0..8_u8).prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Tidy),
    ]
}

/// The expected values: the length of a text or the number, when it ends, its tag.
type Model = BTreeMap<u8, (i64, u64, Option<u8>)>;

fn take(step: &Step, cache: &Cache, hand: &Hand, model: &mut Model) {
    let scope = cache.scope("a");
    let now = cache.handle().now();
    model.retain(|_, entry| now < entry.1);
    let end = |life: u8| now + u64::from(life) * 1_000_000_000;
    let subject = |subject| assert_eq!(shard(cache).purge(subject, false, now).wait().unwrap(), Purged::Done);
    match *step {
        Step::Insert { name, size, life, tag } => {
            let insert = scope.insert(&name.to_string(), &"x".repeat(size)).expire(Duration::from_secs(life.into()));
            let insert = tag.iter().fold(insert, |insert, tag| insert.tag(&tag.to_string()));
            assert!(insert.wait().unwrap());
            model.insert(name, (-(size as i64) - 1, end(life), tag));
        }
        Step::Add { name } => {
            let absent = !model.contains_key(&name);
            assert_eq!(scope.add(&name.to_string(), &100_i64).wait().unwrap(), absent);
            model.entry(name).or_insert((100, u64::MAX, None));
        }
        Step::Incr { name } => match (scope.incr(&name.to_string(), 1).wait(), model.get_mut(&name)) {
            (Ok(sum), Some(entry)) => {
                entry.0 += 1;
                assert_eq!(sum, entry.0);
            }
            (Ok(sum), None) => {
                assert_eq!(sum, 1);
                model.insert(name, (1, u64::MAX, None));
            }
            (Err(error), entry) => assert!(entry.is_some_and(|entry| entry.0 < 0), "{error}"),
        },
        Step::Touch { name, life } => {
            let touched = scope.touch(&name.to_string(), Some(Duration::from_secs(life.into()))).wait().unwrap();
            assert_eq!(touched, model.contains_key(&name));
            model.entry(name).and_modify(|entry| entry.1 = end(life));
        }
        Step::Remove { name } => {
            assert_eq!(scope.remove(&name.to_string()).wait().unwrap(), model.remove(&name).is_some());
        }
        Step::PurgeName { name } => {
            subject(Subject::Name(key(&scope, &name.to_string()).hash));
            model.remove(&name);
        }
        Step::PurgeTag { tag } => {
            subject(Subject::Tag(scope.tag(&tag.to_string())));
            model.retain(|_, entry| entry.2 != Some(tag));
        }
        Step::PurgeScope => {
            subject(Subject::Scope(scope.id()));
            model.clear();
        }
        Step::Advance { seconds } => hand.advance(Duration::from_secs(seconds.into())),
        Step::Tidy => tidy(cache),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, rng_seed: RngSeed::Fixed(14), failure_persistence: None, ..Default::default() })]

    #[test]
    fn entries_and_index_agree_with_a_simple_map(steps in prop::collection::vec(step(), 1..60)) {
        let hand = Hand::default();
        let cache = hand.on(builder());
        let (scope, mut model) = (cache.scope("a"), Model::new());
        for step in &steps {
            take(step, &cache, &hand, &mut model);
            check(&cache);
        }
        let now = cache.handle().now();
        for name in 0..20 {
            let wanted = model.get(&name).filter(|entry| now < entry.1).map(|entry| entry.0);
            let found = match scope.get::<i64>(&name.to_string()) {
                Ok(number) => number,
                Err(_) => scope.get::<String>(&name.to_string()).unwrap().map(|text| -(text.len() as i64) - 1),
            };
            prop_assert_eq!(found, wanted, "{}", name);
        }
        tidy(&cache);
        hand.advance(Duration::from_secs(200 * 365 * 86_400));
        cache.remove("x").wait().unwrap();
        tidy(&cache);
        prop_assert_eq!(shard(&cache).size().unwrap(), (0, 0));
        check(&cache);
    }
}
