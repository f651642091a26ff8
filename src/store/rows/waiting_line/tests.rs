use super::*;
use crate::{
    cache::{
        Cache,
        testing::{Hand, Holder, builder, cache, state, tamper},
    },
    store::rows::tables::{LOCKS, PAYLOAD_MAX},
    store::{CELLS, Kind, lmdb::transaction::Table},
};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use std::{collections::BTreeMap, time::Duration};

const SECOND: u64 = 1_000_000_000;

fn key(cache: &Cache, name: &str) -> Key {
    cache.root().key(Kind::Throttle, name.as_bytes())
}

fn waiter(turn: u64, ticket: u64) -> Waiter {
    Waiter { turn, ticket, until: turn, instance: 9, payload: vec![turn as u8; 3] }
}

fn join(turn: u64, ticket: u64) -> Step {
    Step::Join(waiter(turn, ticket))
}

/// Takes the steps behind a cell; returns the waiters before them.
fn take(cache: &Cache, name: &str, steps: Vec<Step>) -> Vec<Waiter> {
    let transition =
        move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| (line.waiting(100), Change::Keep, steps.clone());
    cache.root().update_line(CELLS, key(cache, name), transition, |waiting| waiting).wait().unwrap()
}

fn turns(cache: &Cache, name: &str) -> Vec<(u64, u64)> {
    take(cache, name, vec![]).into_iter().map(|waiter| (waiter.turn, waiter.ticket)).collect()
}

fn len(cache: &Cache, table: Table) -> u64 {
    tamper(&state(cache).queue, |txn| txn.len(table).unwrap())
}

fn put(cache: &Cache, table: Table, name: &str) -> Result<(), Error> {
    let change = Change::Put { expires: u64::MAX, tag: 0, payload: vec![1; 8] };
    cache.root().update(table, key(cache, name), move |_, _| ((), change.clone()), |done| done).wait()
}

fn remove(cache: &Cache, table: Table, name: &str) -> Result<(), Error> {
    cache.root().update(table, key(cache, name), |_, _| ((), Change::Remove), |done| done).wait()
}

#[test]
fn those_who_wait_are_seen_in_order_of_turn_each_behind_its_row() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    let steps = vec![join(now + 300, 1), join(now + 256, 2), join(now + 256, 1), join(now, 3), join(now + 1, 4)];
    assert_eq!(take(&cache, "a", steps), []);
    assert_eq!(take(&cache, "b", vec![join(now + 5, 1)]), []);
    let expected = [(now + 1, 4), (now + 256, 1), (now + 256, 2), (now + 300, 1)];
    assert_eq!(turns(&cache, "a"), expected);
    assert_eq!(take(&cache, "a", vec![])[3], waiter(now + 300, 1));
    assert_eq!(turns(&cache, "b"), [(now + 5, 1)]);
    assert_eq!(turns(&cache, "c"), []);
    let two = |_: Found<'_>, line: &WaitingLine<'_>, _: u64| (line.waiting(2).len(), Change::Keep, vec![]);
    assert_eq!(cache.root().update_line(CELLS, key(&cache, "a"), two, |two| two).wait().unwrap(), 2);

    hand.advance(Duration::from_nanos(256));
    assert_eq!(turns(&cache, "a"), [(now + 300, 1)], "whose turn has come waits no more");
    assert_eq!(turns(&cache, "b"), []);
    take(&cache, "a", vec![Step::Leave { turn: now + 300, ticket: 1 }, Step::Leave { turn: now, ticket: 77 }]);
    assert_eq!(turns(&cache, "a"), []);
    assert_eq!(cache.stats().damaged, 0);
}

#[test]
fn the_row_and_its_line_change_together_or_not_at_all() {
    let cache = cache();
    let later = cache.handle().now() + 3600 * SECOND;
    let change = move |bytes: usize| {
        move |_: Found<'_>, _: &WaitingLine<'_>, _: u64| {
            let put = Change::Put { expires: u64::MAX, tag: 0, payload: vec![1; bytes] };
            ((), put, vec![join(later, 1)])
        }
    };
    let update = |bytes| cache.root().update_line(CELLS, key(&cache, "a"), change(bytes), |done| done).wait();
    assert!(matches!(update(PAYLOAD_MAX + 1), Err(Error::TooLarge { .. })));
    assert_eq!(turns(&cache, "a"), []);
    update(8).unwrap();
    assert_eq!(turns(&cache, "a"), [(later, 1)]);
    remove(&cache, CELLS, "a").unwrap();
    assert_eq!(turns(&cache, "a"), [(later, 1)], "it is for the throttle to say what a removed row means");

    // The same holds for posted updates, behind a gate that is shut.
    let holder = Holder::of(&state(&cache).queue);
    cache.root().post_line(CELLS, key(&cache, "b"), change(8));
    cache.root().post_line(CELLS, key(&cache, "a"), move |_, line, _| {
        ((), Change::Keep, line.waiting(9).iter().map(|w| Step::Leave { turn: w.turn, ticket: w.ticket }).collect())
    });
    holder.release();
    assert_eq!((turns(&cache, "b"), turns(&cache, "a")), (vec![(later, 1)], vec![]));
}

#[test]
fn damaged_rows_are_passed_over_counted_and_swept() {
    let cache = cache();
    let later = cache.handle().now() + 3600 * SECOND;
    take(&cache, "a", (0..6).map(|i| join(later + i, 0)).collect());
    let name = key(&cache, "a");
    tamper(&state(&cache).queue, |txn| {
        for (i, from) in [(1, 30), (2, 0), (3, 1)] {
            let key = waiter_key(&name.hash, later + i, 0);
            let mut bytes = txn.get(WAITERS, &key).unwrap().unwrap().to_vec();
            match from {
                0 => bytes.clear(),
                from => bytes[from] ^= 1,
            }
            txn.put(WAITERS, &key, &bytes).unwrap();
        }
        // One row without an instance, one of another name, one with a key of another length.
        let mut bytes = Vec::new();
        for (turn, echo, payload) in [(12, name.echo, &[0; 7][..]), (13, name.echo + 1, &[0; 8])] {
            let row = Row { expires: later + turn, tag: 0, payload };
            bytes = with_row(&Key { echo, ..name }, &row, <[u8]>::to_vec);
            txn.put(WAITERS, &waiter_key(&name.hash, later + turn, 0), &bytes).unwrap();
        }
        txn.put(WAITERS, &[&waiter_key(&name.hash, later + 20, 0)[..], &[0]].concat(), &bytes).unwrap();
    });
    assert_eq!(turns(&cache, "a"), [(later, 0), (later + 4, 0), (later + 5, 0)]);
    assert_eq!(cache.stats().damaged, 5);
    (0..500).for_each(|_| put(&cache, CELLS, "busy").unwrap());
    assert_eq!(turns(&cache, "a").len(), 3);
    assert_eq!(cache.stats().damaged, 7, "left: what is well and what stands where no sweep can take it");
}

#[test]
fn rows_whose_turn_has_passed_go_with_their_line_and_with_other_writes() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    take(&cache, "a", (0..20).map(|i| join(now + SECOND, i)).collect());
    (0..300).for_each(|i| drop(take(&cache, &i.to_string(), vec![join(now + SECOND, i)])));
    hand.advance(Duration::from_secs(2));
    assert_eq!(len(&cache, WAITERS), 320);
    take(&cache, "a", vec![Step::Leave { turn: 1, ticket: 1 }]);
    assert_eq!(len(&cache, WAITERS), 312, "eight of its own");
    (0..2000).for_each(|_| put(&cache, CELLS, "busy").unwrap());
    assert_eq!(len(&cache, WAITERS), 0);
}

#[test]
fn where_there_is_no_room_waiters_are_left_out_and_all_else_goes_on() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    let all = state(&cache).queue.env.pages();
    let pages = |table| tamper(&state(&cache).queue, |txn| txn.pages(table).unwrap());
    // Rows that may be dropped come first, so that everything else comes into a full house.
    (0..10_000).for_each(|i| put(&cache, CELLS, &i.to_string()).unwrap());
    (0..3000).for_each(|i| drop(take(&cache, &i.to_string(), vec![join(now + SECOND, i)])));
    let (listed, left_out) = (len(&cache, WAITERS), cache.stats().waiters_left_out);
    assert_eq!(listed + left_out, 3000);
    assert!((300..2000).contains(&listed), "{listed}");
    assert!(pages(WAITERS) <= all / 16 + 2);
    let mut locks = 0;
    while put(&cache, LOCKS, &locks.to_string()).is_ok() {
        locks += 1;
    }
    assert!(locks > 2000, "{locks}");
    assert!(pages(LOCKS) >= all * 3 / 8, "waiters take nothing from the locks");
    // In a full house, every name can come and go.
    for round in 0..3 {
        for i in 0..1000_u64 {
            put(&cache, CELLS, &format!("{round} {i}")).unwrap();
            let waited = take(&cache, &i.to_string(), vec![]);
            let leave = waited.iter().map(|waiter| Step::Leave { turn: waiter.turn, ticket: waiter.ticket });
            take(&cache, &i.to_string(), leave.chain([join(now + SECOND, i)]).collect());
            let lock = format!("{}", i % locks);
            remove(&cache, LOCKS, &lock).unwrap();
            assert!(matches!(put(&cache, LOCKS, &lock), Ok(()) | Err(Error::Full)));
        }
        assert!(pages(WAITERS) <= all / 16 + 2 && pages(CELLS) <= all / 2 + 2);
    }
    // When turns have passed, there is room again, without any other write.
    (0..locks).for_each(|i| remove(&cache, LOCKS, &i.to_string()).unwrap());
    hand.advance(Duration::from_secs(2));
    let before = cache.stats().waiters_left_out;
    for i in 0..1000 {
        take(&cache, "late", vec![join(now + 9 * SECOND, i)]);
        take(&cache, "late", vec![Step::Leave { turn: now + 9 * SECOND, ticket: i }]);
    }
    let left_out = cache.stats().waiters_left_out - before;
    assert!(left_out < 500, "{left_out} of 1000 who came one by one");
}

#[test]
fn a_full_map_and_a_large_payload_leave_the_waiter_out_and_are_no_error() {
    let cache = cache();
    let later = cache.handle().now() + 3600 * SECOND;
    let large = Waiter { payload: vec![0; WAITER_MAX + 1], ..waiter(later, 1) };
    let largest = Waiter { payload: vec![0; WAITER_MAX], ..waiter(later, 2) };
    take(&cache, "a", vec![Step::Join(large), Step::Join(largest)]);
    assert_eq!((turns(&cache, "a"), cache.stats().waiters_left_out), (vec![(later, 2)], 1));

    // These rows are put past the queue, so that the map itself is full.
    let env = &state(&cache).queue.env;
    let mut filled = 0_u64;
    loop {
        let held = env.gate.lock_for(Duration::from_secs(30)).unwrap().unwrap();
        let row = [filled.to_be_bytes(); 2].concat();
        if env.write(&held, |txn| Ok((txn.put(CELLS, &row, &[1; 1500])?, true))).is_err() {
            break;
        }
        filled += 1;
    }
    (0..200).for_each(|i| drop(take(&cache, &i.to_string(), vec![join(later, i)])));
    let (listed, left_out) = (len(&cache, WAITERS), cache.stats().waiters_left_out);
    assert!(left_out > 1, "{listed} {left_out}");
    assert_eq!(listed + left_out, 202);
}

/// Takes the steps behind a lock's row, which is put with this many bytes; returns the first waiters before them.
fn step_lock(cache: &Cache, name: &str, bytes: usize, steps: Vec<Step>) -> Result<Vec<Waiter>, Error> {
    let transition = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
        let put = Change::Put { expires: u64::MAX, tag: 0, payload: vec![1; bytes] };
        (line.first(100), put, steps.clone())
    };
    cache.root().update_line(LOCKS, key(cache, name), transition, |first| first).wait()
}

fn numbered(turn: u64, until: u64) -> Waiter {
    Waiter { until, ..waiter(turn, 3) }
}

#[test]
fn behind_a_lock_the_order_is_by_number_and_the_time_of_a_row_is_its_own() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let now = cache.handle().now();
    let (over, soon, late) = (numbered(7, now + 1), numbered(9, now + SECOND), numbered(8, now + 9 * SECOND));
    let joins = [&over, &soon, &late].map(|waiter| Step::Join(waiter.clone()));
    assert_eq!(step_lock(&cache, "a", 1, joins.to_vec()).unwrap(), []);
    step_lock(&cache, "b", 1, vec![Step::Join(numbered(1, u64::MAX))]).unwrap();
    let all = [over, late.clone(), soon.clone()];
    hand.advance(Duration::from_nanos(1));
    assert_eq!(step_lock(&cache, "a", 1, vec![]).unwrap(), all, "no update takes with it what is over");
    let paged = |turn, ticket, most| {
        let page =
            move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| (line.behind(turn, ticket, most), Change::Keep, vec![]);
        cache.root().update_line(LOCKS, key(&cache, "a"), page, |page| page).wait().unwrap()
    };
    assert_eq!((paged(0, 0, 2), paged(7, 3, 9), paged(7, 2, 1)), (all[..2].into(), all[1..].into(), all[..1].into()));
    assert_eq!((paged(9, 3, 9), paged(7, 3, 0)), (vec![], vec![]));

    // Sweeps go by the time of the row.
    hand.advance(Duration::from_secs(2));
    (0..300).for_each(|_| put(&cache, CELLS, "busy").unwrap());
    assert_eq!(step_lock(&cache, "a", 1, vec![Step::Leave { turn: 8, ticket: 3 }]).unwrap(), [late]);
    assert_eq!(step_lock(&cache, "a", 1, vec![]).unwrap(), []);
}

#[test]
fn a_waiter_without_room_fails_the_update_of_a_lock_and_nothing_is_changed() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let until = cache.handle().now() + SECOND;
    let length = |name: &str| {
        let length = |found: Found<'_>, _: u64| match found {
            Found::Row(row) => (row.payload.len(), Change::Keep),
            _ => (0, Change::Keep),
        };
        cache.root().update(LOCKS, key(&cache, name), length, |length| length).wait().unwrap()
    };
    let large = Waiter { payload: vec![0; WAITER_MAX + 1], ..numbered(1, until) };
    let error = step_lock(&cache, "a", 1, vec![join(2, 2), Step::Join(large)]).unwrap_err();
    assert!(matches!(error, Error::TooLarge { size: 1025, limit: 1024 }), "{error}");
    assert_eq!((length("a"), len(&cache, WAITERS)), (0, 0));

    let mut joined = 0;
    let error = loop {
        match step_lock(&cache, "a", 1, vec![Step::Join(numbered(joined, until))]) {
            Ok(_) => joined += 1,
            Err(error) => break error,
        }
        assert!(joined < 100_000);
    };
    assert!(matches!(error, Error::Full), "{error}");
    assert!(joined > 300, "{joined}");
    let leave = Step::Leave { turn: 0, ticket: 3 };
    let both = vec![leave.clone(), Step::Join(numbered(joined, until))];
    assert!(matches!(step_lock(&cache, "a", 2, both), Err(Error::Full)));
    assert_eq!((length("a"), len(&cache, WAITERS), cache.stats().waiters_left_out), (1, joined, 0));
    // Steps that need no room go on: a waiter stays longer, a waiter leaves.
    let first = step_lock(&cache, "a", 3, vec![Step::Join(numbered(0, until + SECOND))]).unwrap();
    assert_eq!((first.len(), length("a")), (100, 3));
    assert_eq!(step_lock(&cache, "a", 1, vec![leave]).unwrap()[0].until, until + SECOND);
    // Once the time of rows is over, there is room again, without any other write.
    hand.advance(Duration::from_secs(2));
    let last = u64::MAX;
    let tried = (0..1_000).position(|_| step_lock(&cache, "b", 1, vec![Step::Join(numbered(1, last))]).is_ok());
    assert!(tried.is_some_and(|tried| tried < 900), "{tried:?}");
}

#[test]
fn behind_a_lock_a_batch_that_fails_for_another_leaves_nobody_out() {
    let cache = cache();
    step_lock(&cache, "a", 1, vec![]).unwrap();
    let holder = Holder::of(&state(&cache).queue);
    let join = |turn| {
        let transition = move |_: Found<'_>, _: &WaitingLine<'_>, _: u64| {
            ((), Change::Keep, vec![Step::Join(numbered(turn, u64::MAX))])
        };
        cache.root().update_line(LOCKS, key(&cache, "a"), transition, |done| done)
    };
    let (first, bad) = (join(1), cache.root().list_locks(None, 0, |_| -> Option<()> { panic!("a bad neighbour") }));
    let second = join(2);
    holder.release();
    first.wait().unwrap();
    second.wait().unwrap();
    assert!(matches!(bad.wait(), Err(Error::Panicked)));
    let turns: Vec<_> = step_lock(&cache, "a", 1, vec![]).unwrap().iter().map(|waiter| waiter.turn).collect();
    assert_eq!(turns, [1, 2]);
}

#[test]
fn who_posts_is_told_after_the_commit_whoever_makes_it() {
    let cache = cache();
    let (tell, told) = std::sync::mpsc::channel();
    let post = |name: &str, bytes: usize| {
        let (tell, posted, root) = (tell.clone(), key(&cache, name), cache.root().clone());
        let transition = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
            (line.number(), Change::Put { expires: u64::MAX, tag: 0, payload: vec![1; bytes] }, vec![])
        };
        cache.root().post_then(LOCKS, key(&cache, name), transition, move |number| {
            // This runs outside the gate, so it may make updates of its own.
            let found = |found: Found<'_>, _: u64| (matches!(found, Found::Row(_)), Change::Keep);
            let committed = root.update(LOCKS, posted, found, |found| found).wait().unwrap();
            tell.send((number, committed)).unwrap();
        });
    };
    let told = || told.recv_timeout(Duration::from_secs(30)).unwrap();
    post("a", 1);
    let (Ok(first), true) = told() else { panic!() };
    let holder = Holder::of(&state(&cache).queue);
    post("b", 1);
    holder.release();
    let (second, committed) = told();
    assert_eq!((second.unwrap(), committed), (first + 1, true));
    post("c", PAYLOAD_MAX + 1);
    assert!(matches!(told(), (Err(Error::TooLarge { .. }), false)));
    // A panic goes no further.
    let nothing = |_: Found<'_>, _: &WaitingLine<'_>, _: u64| ((), Change::Keep, vec![]);
    cache.root().post_then(LOCKS, key(&cache, "d"), nothing, |_| panic!("told"));
    post("d", 1);
    assert!(told().1);
}

#[derive(Clone, Debug)]
enum Act {
    Join(usize, u64, u64),
    Leave(usize, u64, u64),
    Advance(u64),
    Look(usize, usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let at = || (0..3_usize, 0..40_u64, 0..3_u64);
    let act = prop_oneof![
        4 => at().prop_map(|(line, turn, ticket)| Act::Join(line, turn, ticket)),
        2 => at().prop_map(|(line, turn, ticket)| Act::Leave(line, turn, ticket)),
        1 => (0..8_u64).prop_map(Act::Advance),
        2 => (0..3_usize, 0..9_usize).prop_map(|(line, most)| Act::Look(line, most)),
    ];
    prop::collection::vec(act, 1..80)
}

#[test]
fn lines_agree_with_simple_maps() {
    let config =
        ProptestConfig { rng_seed: RngSeed::Fixed(32), failure_persistence: None, ..ProptestConfig::default() };
    let hand = Hand::default();
    let cache = hand.on(builder());
    // Each case has lines of its own.
    let case = std::cell::Cell::new(0);
    let played = TestRunner::new(config).run(&acts(), |acts| {
        case.set(case.get() + 1);
        let name = |line: usize| format!("{} {line}", case.get());
        let began = cache.handle().now();
        let mut model: [BTreeMap<(u64, u64), Waiter>; 3] = Default::default();
        for act in acts {
            let now = cache.handle().now();
            match act {
                Act::Advance(by) => hand.advance(Duration::from_nanos(by)),
                Act::Join(line, turn, ticket) => {
                    let waiter = Waiter { instance: now, ..waiter(began + turn, ticket) };
                    take(&cache, &name(line), vec![Step::Join(waiter.clone())]);
                    model[line].insert((began + turn, ticket), waiter);
                }
                Act::Leave(line, turn, ticket) => {
                    take(&cache, &name(line), vec![Step::Leave { turn: began + turn, ticket }]);
                    model[line].remove(&(began + turn, ticket));
                }
                Act::Look(line, most) => {
                    let look =
                        move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| (line.waiting(most), Change::Keep, vec![]);
                    let seen = cache.root().update_line(CELLS, key(&cache, &name(line)), look, |seen| seen).wait();
                    let expected = model[line].values().filter(|waiter| waiter.turn > now).take(most);
                    prop_assert_eq!(seen.unwrap(), expected.cloned().collect::<Vec<_>>());
                }
            }
        }
        Ok(())
    });
    played.unwrap();
    assert_eq!(cache.stats().waiters_left_out, 0);
}
