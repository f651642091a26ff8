use super::*;
use crate::{
    cache::{
        Cache,
        testing::{Child, Holder, LONG, cache, hear, home, nobody_starts, part, say, state, tamper},
    },
    store::directory::first_number,
    store::{CELLS, Change, Found, Key, Kind, Step, Waiter, WaitingLine, lmdb::transaction::Txn},
};
use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};
use std::path::Path;

/// An hour of the calendar.
const HOUR: u64 = 3_600_000_000;

fn open(path: &Path) -> Cache {
    Cache::builder(path).size(1 << 20).state_size(1 << 20).patience(LONG).open().unwrap()
}

fn key(cache: &Cache, name: &str) -> Key {
    cache.root().key(Kind::Lock, name.as_bytes())
}

/// Draws `count` numbers for a lock, with the given change and steps in the same update.
fn draw(cache: &Cache, name: &str, count: usize, change: Change, steps: Vec<Step>) -> Result<Vec<u64>, Error> {
    let transition = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
        ((0..count).map(|_| line.number()).collect(), change.clone(), steps.clone())
    };
    cache.root().update_line(LOCKS, key(cache, name), transition, |drawn| drawn).wait()
}

fn next(cache: &Cache) -> u64 {
    draw(cache, "a", 1, Change::Keep, vec![]).unwrap()[0]
}

fn first_of(cache: &Cache) -> u64 {
    let text = std::fs::read_to_string(home(cache).join("layout")).unwrap();
    text.lines().find_map(|line| line.strip_prefix("numbers=")).unwrap().parse().unwrap()
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((_, path)) = part() else { return };
    let cache = open(&path);
    while hear() == "draw" {
        say(next(&cache));
    }
}

#[test]
fn each_call_draws_the_next_whatever_the_lock_and_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let began = calendar();
    let start = first_of(&cache);
    assert!(start <= began && began - start < HOUR);
    assert_eq!(draw(&cache, "a", 3, Change::Keep, vec![]).unwrap(), [start, start + 1, start + 2]);
    assert!(draw(&cache, "b", 0, Change::Keep, vec![]).unwrap().is_empty());
    let row = Change::Put { expires: 0, tag: 0, payload: vec![1] };
    assert_eq!(draw(&cache, "b", 1, row, vec![]).unwrap(), [start + 3]);
    assert_eq!(draw(&cache, "b", 1, Change::Remove, vec![]).unwrap(), [start + 4]);
    let mut child = Child::start("store::rows::sequence::tests::child", "draw", dir.path());
    for number in (start + 5..start + 15).step_by(2) {
        child.tell("draw");
        assert_eq!(child.line(), number.to_string());
        assert_eq!(next(&cache), number + 1);
    }
    child.kill();
    assert_eq!(next(&cache), start + 15);
}

#[test]
fn they_go_on_over_restarts_and_generations() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (first_start, mut last) = (first_of(&cache), next(&cache));
    drop(cache);
    let cache = open(dir.path());
    assert_eq!((next(&cache), first_of(&cache)), (last + 1, first_start));
    last += 1;

    // Another generation follows, since the files are damaged.
    let mut starts = vec![first_start];
    let data = state(&cache).queue.env.path().join("data.mdb");
    drop(cache);
    std::fs::write(data, [1; 10_000]).unwrap();
    let cache = open(dir.path());
    starts.push(first_of(&cache));
    assert_eq!(next(&cache), starts[1]);
    assert!(starts[1] > last && starts[1] >= first_start + 2 * LEAP);

    // And one more, since the machine went down and the calendar has gone back as well.
    let layout = home(&cache).join("layout");
    drop(cache);
    let future = starts[1] + 1_000 * LEAP;
    let text = std::fs::read_to_string(&layout).unwrap();
    let edited = text.lines().map(|line| match line.split_once('=').unwrap().0 {
        "boot" => "boot=another".into(),
        "clean" => "clean=0".into(),
        "numbers" => format!("numbers={future}"),
        _ => line.to_string(),
    });
    std::fs::write(&layout, edited.map(|line| line + "\n").collect::<String>()).unwrap();
    let cache = open(dir.path());
    assert_eq!((next(&cache), first_of(&cache)), (future + 2 * LEAP, future + 2 * LEAP));
    drop(cache);

    // A layout that cannot be read knows nothing of the generation before; the calendar does.
    std::fs::write(&layout, "nonsense").unwrap();
    let cache = open(dir.path());
    assert!(next(&cache) >= calendar() + 2 * LEAP - HOUR);
}

#[test]
fn what_fails_draws_nothing_and_what_runs_again_draws_again() {
    let cache = cache();
    let before = next(&cache);
    let large = Change::Put { expires: 0, tag: 0, payload: vec![0; crate::store::PAYLOAD_MAX + 1] };
    draw(&cache, "a", 5, large, vec![]).unwrap_err();
    let waiter = Waiter { turn: 1, ticket: 1, until: u64::MAX, instance: 1, payload: vec![0; 2000] };
    draw(&cache, "a", 5, Change::Keep, vec![Step::Join(waiter)]).unwrap_err();
    let panics =
        |_: Found<'_>, line: &WaitingLine<'_>, _: u64| -> ((), Change, Vec<Step>) { panic!("{}", line.number()) };
    let panicked = cache.root().update_line(LOCKS, key(&cache, "a"), panics, |done| done).wait();
    assert!(matches!(panicked, Err(Error::Panicked)));
    let row = Change::Put { expires: u64::MAX, tag: 0, payload: vec![1] };
    assert_eq!(draw(&cache, "a", 1, row, vec![]).unwrap(), [before + 1]);

    // A batch runs all of its operations in one transaction, and then each in its own, since one of them fails.
    let holder = Holder::of(&state(&cache).queue);
    let runs = std::sync::Arc::new(AtomicU64::new(0));
    let drawing = || {
        let runs = runs.clone();
        let transition = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
            runs.fetch_add(1, Relaxed);
            (line.number(), Change::Keep, vec![])
        };
        cache.root().update_line(LOCKS, key(&cache, "a"), transition, |drawn| drawn)
    };
    let (a, b) = (drawing(), drawing());
    let bad = cache.root().list_locks(None, 0, |_| -> Option<()> { panic!("a bad neighbour") });
    let c = drawing();
    holder.release();
    let drawn = [a.wait().unwrap(), b.wait().unwrap(), c.wait().unwrap()];
    assert!(before + 1 < drawn[0] && drawn[0] < drawn[1] && drawn[1] < drawn[2], "{drawn:?}");
    assert_eq!(runs.load(Relaxed), 5, "the third not before it was on its own");
    assert!(matches!(bad.wait(), Err(Error::Panicked)));
    assert!(next(&cache) > drawn[2]);
}

#[test]
fn a_damaged_row_is_left_far_behind() {
    let cache = cache();
    let before = next(&cache);
    for (i, row) in [&b""[..], &[0; 16], &encode(before)[..15], &[7; 40], &encode(MOST + 1)].iter().enumerate() {
        let last = next(&cache);
        tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &KEY, row).unwrap());
        let number = next(&cache);
        assert!(number > last + LEAP && number < before + (i as u64 + 2) * LEAP + 60_000_000, "{row:?}");
        assert_eq!(next(&cache), number + 1, "mended");
        assert_eq!(cache.stats().damaged, i as u64 + 1);
    }
    // A row that says less than this process knows to have been drawn.
    let last = next(&cache);
    tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &KEY, &encode(5)).unwrap());
    assert_eq!(next(&cache), last + 1);
}

#[test]
fn a_missing_row_is_damage_also_for_who_comes_later() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    assert!(tamper(&state(&cache).queue, |txn| txn.get(LOCKS, &KEY).unwrap().is_some()), "there from the beginning");
    let last = (0..100).fold(0, |_, _| next(&cache));
    tamper(&state(&cache).queue, |txn| txn.delete(LOCKS, &KEY).unwrap());
    drop(cache);
    let cache = open(dir.path());
    let number = next(&cache);
    assert!(number > last + LEAP, "{number} after {last}");
    tamper(&state(&cache).queue, |txn| txn.delete(LOCKS, &KEY).unwrap());
    let last = next(&cache);
    assert!(last > number + LEAP / 2, "and for who has drawn before");
    assert_eq!(cache.stats().damaged, 1);
    tamper(&state(&cache).queue, |txn| txn.delete(LOCKS, &KEY).unwrap());
    drop(cache);
    assert!(next(&open(dir.path())) > last, "again and again");
}

#[test]
fn no_sweep_and_no_listing_meets_the_counter() {
    let cache = cache();
    next(&cache);
    let put = Change::Put { expires: 1, tag: 0, payload: vec![1] };
    for i in 0..300 {
        draw(&cache, &i.to_string(), 0, put.clone(), vec![]).unwrap();
    }
    for _ in 0..3_000 {
        cache.root().update(CELLS, key(&cache, "busy"), |_, _| ((), Change::Remove), |done| done).wait().unwrap();
        let cell = |_: Found<'_>, _: u64| ((), Change::Put { expires: u64::MAX, tag: 0, payload: vec![1] });
        cache.root().update(CELLS, key(&cache, "busy"), cell, |done| done).wait().unwrap();
    }
    let locks = tamper(&state(&cache).queue, |txn: &mut Txn<'_>| {
        (txn.len(LOCKS).unwrap(), txn.get(LOCKS, &KEY).unwrap().is_some())
    });
    assert_eq!(locks, (1, true), "all but the counter are swept");
    let (listed, more) = cache.root().list_locks(None, 9, |listed| Some(*listed.key)).wait().unwrap();
    assert_eq!((listed, more), (vec![], None));
    assert_eq!(cache.stats().damaged, 0);
}

/// An event in the life of a directory that concerns its numbers.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A process draws some in a transaction, which may be aborted.
    Draw {
        process: usize,
        count: u64,
        commits: bool,
    },
    /// A process begins anew.
    Restart {
        process: usize,
    },
    /// Time passes, in microseconds; backwards too.
    Step(i64),
    Damage,
    Generation,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    // The calendar goes back by less than a generation leaps ahead: twelve days.
    const BACK: i64 = (LEAP - HOUR) as i64;
    let act = prop_oneof![
        12 => (0..3_usize, 1..5_u64, prop::bool::weighted(0.8))
            .prop_map(|(process, count, commits)| Act::Draw { process, count, commits }),
        2 => (0..3_usize).prop_map(|process| Act::Restart { process }),
        2 => (1..1_000_000_000_i64).prop_map(Act::Step),
        1 => (-BACK..-1).prop_map(Act::Step),
        1 => Just(Act::Generation),
        1 => Just(Act::Damage),
    ];
    prop::collection::vec(act, 1..60)
}

#[test]
fn whatever_happens_the_next_number_is_greater_than_all_before() {
    let config =
        ProptestConfig { rng_seed: RngSeed::Fixed(41), failure_persistence: None, ..ProptestConfig::default() };
    let cache = cache();
    let env = &state(&cache).queue.env;
    let played = TestRunner::new(config).run(&acts(), |acts| {
        let mut now = 1_800_000_000_000_000_u64;
        let mut start = first_number::after(None, now);
        let mut highest = 0;
        // Each happens once, the damage once in a generation: a directory that meets both again and again is beyond
        // help.
        let (mut stepped_back, mut damaged) = (false, false);
        let mut processes = [(); 3].map(|()| Sequence::new(start));
        let begin = |start| tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &KEY, &encode(start - 1)).unwrap());
        begin(start);
        for act in acts {
            match act {
                Act::Draw { process, count, commits } => {
                    let held = env.gate.lock_for(LONG).unwrap().unwrap();
                    let mut drawn = 0;
                    let _ = env.write(&held, |txn| {
                        let last = processes[process].last(txn, &AtomicU64::new(0))?;
                        drawn = last + 1;
                        processes[process].keep(txn, last + count)?;
                        Ok(((), commits))
                    });
                    prop_assert!(drawn > highest, "{drawn} after {highest}");
                    if commits {
                        highest = drawn + count - 1;
                    }
                }
                Act::Restart { process } => processes[process] = Sequence::new(start),
                Act::Step(by) => {
                    if by > 0 || !std::mem::replace(&mut stepped_back, true) {
                        now = now.saturating_add_signed(by);
                    }
                }
                Act::Damage => {
                    if std::mem::replace(&mut damaged, true) {
                        continue;
                    }
                    let row = encode(processes[0].after_damage(now));
                    // As if the first process to draw had found the row damaged at this time.
                    tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &KEY, &row).unwrap());
                }
                Act::Generation => {
                    damaged = false;
                    start = first_number::after(Some(start), now);
                    begin(start);
                    processes = [(); 3].map(|()| Sequence::new(start));
                }
            }
        }
        prop_assert!(highest < 1 << 53);
        Ok(())
    });
    played.unwrap();
}

#[test]
fn first_numbers_are_sane_whatever_the_calendar_says() {
    assert_eq!(
        [first_number::after(None, 0), first_number::after(None, 7), first_number::after(None, u64::MAX)],
        [1, 7, MOST]
    );
    assert_eq!([first_number::after(Some(0), 5), first_number::after(Some(9 * LEAP), 5)], [2 * LEAP + 5, 11 * LEAP]);
    assert_eq!(first_number::after(Some(u64::MAX), u64::MAX), MOST);
}

/// The cost of a number; run by hand.
#[test]
#[ignore = "a measurement"]
fn cost() {
    let cache = cache();
    let scope = cache.root();
    let name = key(&cache, "a");
    let time = |numbers: usize| {
        let began = std::time::Instant::now();
        for _ in 0..200_000 {
            let put = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
                let last = (0..numbers).fold(0, |_, _| line.number());
                (last, Change::Put { expires: u64::MAX, tag: 0, payload: vec![1; 80] }, vec![])
            };
            scope.update_line(LOCKS, name, put, |done| done).now().unwrap().unwrap();
        }
        began.elapsed() / 200_000
    };
    time(1);
    for _ in 0..3 {
        eprintln!("an update {:?}, with a number {:?}", time(0), time(1));
    }
}
