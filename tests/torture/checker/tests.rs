use super::*;
use crate::history::{Event, Failure, Process, Want};
use model::Plan;
use rand::{RngExt, SeedableRng, rngs::StdRng};

#[path = "model.rs"]
mod model;

const MUTEX: Plan = Plan { capacity: 1, heaviest: 1, lease: 600 * MS, hold: (4, 40), rough: false };
const SEMAPHORE: Plan = Plan { capacity: 3, heaviest: 2, ..MUTEX };
const READ_WRITE: Plan = Plan { capacity: u32::MAX, heaviest: u32::MAX, ..MUTEX };
const LONG_LEASE: u64 = 30_000 * MS;

fn seeds() -> impl Iterator<Item = (Plan, u64)> {
    let plans = [MUTEX, SEMAPHORE, READ_WRITE];
    plans.into_iter().flat_map(|plan| (0..10).map(move |seed| (plan, seed)))
}

fn verdict(lines: &[(Process, Event)]) -> Vec<Violation> {
    check(&History::new(lines.to_vec()))
}

type Lines = Vec<(Process, Event)>;

/// Makes one thing wrong in each of many histories; each must be found by one that `finds`.
fn seeded(
    plans: &[Plan],
    spoil: impl Fn(&mut Lines, &History, &mut StdRng) -> bool,
    finds: impl Fn(&Violation) -> bool,
) {
    let mut spoilt = 0;
    for plan in plans {
        for seed in 0..16 {
            let mut lines = model::run(*plan, seed, 3_000);
            let (history, mut random) = (History::new(lines.clone()), StdRng::seed_from_u64(seed));
            if spoil(&mut lines, &history, &mut random) {
                spoilt += 1;
                let found = verdict(&lines);
                assert!(found.iter().any(&finds), "{plan:?}, seed {seed}: only {found:?}");
            }
        }
    }
    assert!(spoilt >= 8 * plans.len(), "only {spoilt} spoilt");
}

/// The event of an attempt that `wanted` knows.
fn find(lines: &mut Lines, id: Id, wanted: impl Fn(&mut Event, u64) -> bool) -> &mut Event {
    let found = lines
        .iter_mut()
        .find_map(|(process, event)| (*process == id.process && wanted(event, id.attempt)).then_some(event));
    found.unwrap()
}

fn got(lines: &mut Lines, id: Id) -> (&mut u64, &mut u64) {
    match find(lines, id, |event, nth| matches!(event, Event::Got { attempt, .. } if *attempt == nth)) {
        Event::Got { at, fence, .. } => (at, fence),
        _ => unreachable!(),
    }
}

fn any<'a>(random: &mut StdRng, attempts: &[&'a Attempt]) -> Option<&'a Attempt> {
    (!attempts.is_empty()).then(|| attempts[random.random_range(0..attempts.len())])
}

fn kept(history: &History) -> Vec<&Attempt> {
    let kept = |attempt: &&Attempt| attempt.left.is_some_and(|(_, how)| how == How::Kept);
    history.attempts.iter().filter(kept).collect()
}

#[test]
fn what_a_right_lock_does_is_right() {
    for (plan, seed) in seeds() {
        for (rough, lease) in [(false, plan.lease), (true, plan.lease), (true, LONG_LEASE)] {
            let plan = Plan { rough, lease, ..plan };
            let lines = model::run(plan, seed, 5_000);
            let history = History::new(lines);
            assert_eq!(check(&history), [], "{plan:?}, seed {seed}");
            let got = history.attempts.iter().filter(|attempt| attempt.got.is_some()).count();
            assert!(got > 100, "{plan:?}, seed {seed}: {got}");
        }
    }
    assert_eq!(verdict(&[]), []);
}

#[test]
fn the_models_lose_places_and_die() {
    let mut lost = 0;
    let mut died = 0;
    for (plan, seed) in seeds() {
        let history = History::new(model::run(Plan { rough: true, ..plan }, seed, 5_000));
        lost += history.attempts.iter().filter(|attempt| attempt.told.is_some()).count();
        died += history.lives.values().filter(|life| life.killed.is_some()).count();
    }
    assert!(lost > 5 && died > 20, "{lost} {died}");
}

#[test]
fn one_holder_too_many_is_found() {
    let enters = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let Some(holder) = any(random, &kept(history)) else { return false };
        let Some((at, _)) = holder.got else { return false };
        // As many newcomers as surely do not fit beside it.
        let most = holder.want.capacity / holder.want.weight;
        for attempt in 0..if holder.want.capacity > 9 { 1 } else { u64::from(most) } {
            let weight = if holder.want.capacity > 9 { holder.want.capacity } else { holder.want.weight };
            let want = Want { weight, ..holder.want.clone() };
            let at = at - random.random_range(0..MS);
            let fence = 1_000_000 + attempt;
            lines.push((9_999, Event::Asks { attempt, at: at - MS, want }));
            lines.push((9_999, Event::Got { attempt, at, fence }));
            let leaves = holder.leaves.unwrap() + MS;
            lines.push((9_999, Event::Leaves { attempt, at: leaves }));
            lines.push((9_999, Event::Left { attempt, at: leaves + 1, how: How::Kept }));
        }
        true
    };
    let finds = |violation: &Violation| matches!(violation, Violation::TooMany { holders, .. } if holders.iter().any(|id| id.process == 9_999));
    for lease in [MUTEX.lease, LONG_LEASE] {
        let plans = [MUTEX, SEMAPHORE, READ_WRITE].map(|plan| Plan { rough: true, lease, ..plan });
        seeded(&plans, enters, finds);
    }
}

#[test]
fn who_stays_a_little_too_long_is_found() {
    // The next got it, and this one had not gone.
    let stays = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let mut pairs = kept(history);
        pairs.sort_by_key(|attempt| attempt.got);
        let pairs: Vec<&[&Attempt]> =
            pairs.windows(2).filter(|pair| pair[0].leaves < Some(pair[1].got.unwrap().0)).collect();
        if pairs.is_empty() {
            return false;
        }
        let pair = pairs[random.random_range(0..pairs.len())];
        let late = pair[1].got.unwrap().0 + 1;
        for (process, event) in lines.iter_mut().filter(|(process, _)| *process == pair[0].id.process) {
            match event {
                Event::Leaves { attempt, at } if *attempt == pair[0].id.attempt => *at = late,
                Event::Left { attempt, at, .. } if *attempt == pair[0].id.attempt => *at = (*at).max(late),
                _ => _ = process,
            }
        }
        true
    };
    seeded(&[MUTEX], stays, |violation| matches!(violation, Violation::TooMany { .. }));
}

#[test]
fn a_hold_that_did_not_outlive_a_short_stop_is_found() {
    // Nobody says that it was lost: its process was killed later. But its lease cannot have ended before.
    let hold = |lease: u64, stop: u64| {
        let want = Want { name: "l".into(), capacity: 1, weight: 1, lease, at_least: 0, patience: None, lazy: false };
        let at = |ms: u64| ms * MS;
        let mut lines: Lines = vec![
            (1, Event::Asks { attempt: 0, at: at(0), want: want.clone() }),
            (1, Event::Got { attempt: 0, at: at(1), fence: 1 }),
            (0, Event::Stops { process: 1, at: at(3_000) }),
            (0, Event::Continued { process: 1, at: at(3_000 + stop) }),
            (0, Event::Kills { process: 1, at: at(6_000) }),
            (0, Event::Gone { process: 1, at: at(6_001) }),
            (2, Event::Asks { attempt: 0, at: at(2_000), want }),
            (2, Event::Got { attempt: 0, at: at(5_000), fence: 2 }),
            (2, Event::Leaves { attempt: 0, at: at(5_900) }),
            (2, Event::Left { attempt: 0, at: at(5_901), how: How::Kept }),
        ];
        let alive = |ms: &u64| !(3_000..3_000 + stop).contains(ms);
        for ms in (0..6_000).step_by(25).filter(alive) {
            lines.push((1, Event::Beat { at: at(ms) }));
            lines.push((2, Event::Beat { at: at(ms) }));
        }
        lines
    };
    let ids = |process| Id { process, attempt: 0 };
    let wrong = [Violation::TooMany { holders: vec![ids(1), ids(2)], at: 5_000 * MS }];
    assert_eq!(verdict(&hold(600 * MS, 150)), wrong);
    assert_eq!(verdict(&hold(30_000 * MS, 1_000)), wrong);
    assert_eq!(verdict(&hold(600 * MS, 400)), []);
    assert_eq!(verdict(&hold(600 * MS, 1_000)), []);
}

#[test]
fn fences_that_do_not_grow_are_found() {
    // Also over processes, and where one died: a later fence is that of an earlier hold, or less.
    let again = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let holds: Vec<&Attempt> = history.attempts.iter().filter(|attempt| attempt.got.is_some()).collect();
        let Some(later) = any(random, &holds) else { return false };
        let earlier: Vec<&Attempt> = holds.into_iter().filter(|attempt| attempt.got.unwrap().0 < later.asked).collect();
        let Some(earlier) = any(random, &earlier) else { return false };
        *got(lines, later.id).1 = earlier.got.unwrap().1 - random.random_range(0..2);
        true
    };
    let plans = [MUTEX, SEMAPHORE, READ_WRITE].map(|plan| Plan { rough: true, ..plan });
    seeded(&plans, again, |violation| matches!(violation, Violation::Fence { .. }));

    // Whoever waited asked before the other got it, yet came after it.
    let swapped = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let mut holds = kept(history);
        holds.sort_by_key(|attempt| attempt.got);
        if holds.len() < 2 {
            return false;
        }
        let nth = random.random_range(1..holds.len());
        let (one, other) = (holds[nth - 1], holds[nth]);
        *got(lines, one.id).1 = other.got.unwrap().1;
        *got(lines, other.id).1 = one.got.unwrap().1;
        true
    };
    seeded(&[MUTEX], swapped, |violation| matches!(violation, Violation::Fence { .. }));
}

/// Moves everything after a moment further away.
fn pause(lines: &mut Lines, from: u64, by: u64) {
    for (_, event) in lines.iter_mut() {
        match event {
            Event::Asks { at, .. }
            | Event::Got { at, .. }
            | Event::Failed { at, .. }
            | Event::Wrote { at, .. }
            | Event::Told { at, .. }
            | Event::Leaves { at, .. }
            | Event::Left { at, .. }
            | Event::Beat { at }
            | Event::Stops { at, .. }
            | Event::Continued { at, .. }
            | Event::Kills { at, .. }
            | Event::Gone { at, .. } => *at += if *at >= from { by } else { 0 },
        }
    }
    for process in 1..=4 {
        lines.extend((from..from + by).step_by(BEAT as usize).map(|at| (process, Event::Beat { at })));
    }
}

#[test]
fn a_waiter_that_is_not_called_is_found() {
    // All holders go, then nothing happens for a while, though somebody waits.
    let sleeps = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let waited: Vec<&Attempt> = history
            .attempts
            .iter()
            .filter(|attempt| attempt.got.is_some_and(|(got, _)| got > attempt.asked + 20 * MS))
            .collect();
        let Some(waiter) = any(random, &waited) else { return false };
        let got = waiter.got.unwrap().0;
        // Whoever else is in has left by then.
        let inside = |attempt: &&Attempt| {
            attempt.got.is_some_and(|(at, _)| at < got) && attempt.left.is_some_and(|left| left.0 >= got)
        };
        for attempt in history.attempts.iter().filter(inside) {
            for (_, event) in lines.iter_mut().filter(|(process, _)| *process == attempt.id.process) {
                match event {
                    Event::Leaves { attempt: nth, at } | Event::Left { attempt: nth, at, .. }
                        if *nth == attempt.id.attempt =>
                    {
                        *at = (*at).min(got - 1)
                    }
                    _ => {}
                }
            }
        }
        pause(lines, got, random.random_range(1_800..5_000) * MS);
        true
    };
    seeded(&[MUTEX, SEMAPHORE, READ_WRITE], sleeps, |violation| matches!(violation, Violation::Stuck { .. }));
}

#[test]
fn a_permit_that_never_comes_back_is_found() {
    // One less is let in than may be.
    let forgets = |lines: &mut Lines, _: &History, _: &mut StdRng| {
        for (_, event) in lines.iter_mut() {
            if let Event::Asks { want, .. } = event {
                want.capacity += 1;
            }
        }
        true
    };
    let two = Plan { capacity: 2, heaviest: 1, hold: (50, 250), ..MUTEX };
    let plans = [two, Plan { capacity: 1, ..two }];
    seeded(&plans, forgets, |violation| matches!(violation, Violation::Stuck { .. }));
}

#[test]
fn overtaking_is_found() {
    // One of those who had to wait had asked much earlier.
    let earlier = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let waited: Vec<&Attempt> = history
            .attempts
            .iter()
            .filter(|attempt| attempt.got.is_some_and(|(got, _)| got > attempt.asked + 100 * MS))
            .filter(|attempt| attempt.asked > history.attempts[0].asked + 700 * MS)
            .collect();
        let Some(waiter) = any(random, &waited) else { return false };
        let asks = |event: &mut Event, nth| matches!(event, Event::Asks { attempt, .. } if *attempt == nth);
        let Event::Asks { at, .. } = find(lines, waiter.id, asks) else { unreachable!() };
        *at -= SLACK + 200 * MS;
        true
    };
    let finds = |violation: &Violation| matches!(violation, Violation::Overtaken { .. });
    seeded(&[MUTEX], earlier, finds);
    // One in the line whom nobody calls, while others come and go.
    let ignored = |lines: &mut Lines, history: &History, _: &mut StdRng| {
        let Attempt { want, asked, .. } = &history.attempts[0];
        let want = Want { patience: None, ..want.clone() };
        lines.push((1, Event::Asks { attempt: 1_000_000, at: asked + 800 * MS, want }));
        lines.push((1, Event::Got { attempt: 1_000_000, at: asked + 2_400 * MS, fence: 1_000_000 }));
        true
    };
    seeded(&[MUTEX, SEMAPHORE, READ_WRITE], ignored, finds);
}

#[test]
fn a_patience_that_does_not_end_is_found() {
    let waits_on = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let busy = |attempt: &&Attempt| attempt.failed.is_some_and(|failed| failed.1 == Failure::Busy);
        let Some(waiter) = any(random, &history.attempts.iter().filter(busy).collect::<Vec<_>>()) else { return false };
        let fails = |event: &mut Event, nth| matches!(event, Event::Failed { attempt, .. } if *attempt == nth);
        let Event::Failed { at, .. } = find(lines, waiter.id, fails) else { unreachable!() };
        *at += 1_200 * MS;
        true
    };
    seeded(&[MUTEX, SEMAPHORE], waits_on, |violation| matches!(violation, Violation::Late { .. }));
}

#[test]
fn a_cache_that_fails_for_no_reason_is_found() {
    let fails = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        let busy = |attempt: &&Attempt| attempt.failed.is_some_and(|failed| failed.1 == Failure::Busy);
        let Some(waiter) = any(random, &history.attempts.iter().filter(busy).collect::<Vec<_>>()) else { return false };
        let fails = |event: &mut Event, nth| matches!(event, Event::Failed { attempt, .. } if *attempt == nth);
        let Event::Failed { why, .. } = find(lines, waiter.id, fails) else { unreachable!() };
        *why = Failure::Cache;
        true
    };
    let finds = |violation: &Violation| matches!(violation, Violation::FailedForNothing { .. });
    seeded(&[MUTEX, SEMAPHORE, READ_WRITE], fails, finds);

    // A stop explains it: that one may have been in the middle of a write.
    let mut explained = stopped_past_its_lease();
    let Event::Asks { want, .. } = explained[0].1.clone() else { unreachable!() };
    explained.push((2, Event::Asks { attempt: 1, at: 1_200 * MS, want }));
    explained.push((2, Event::Failed { attempt: 1, at: 1_450 * MS, why: Failure::Cache }));
    assert_eq!(verdict(&explained), []);
}

/// Changes how a release ended, of one of those who kept their place.
fn ends(lines: &mut Lines, history: &History, random: &mut StdRng, spoil: impl Fn(&mut Lines, &Attempt)) -> bool {
    let Some(holder) = any(random, &kept(history)) else { return false };
    spoil(lines, holder);
    true
}

fn set_how(lines: &mut Lines, id: Id, wanted: How) {
    let left = |event: &mut Event, nth| matches!(event, Event::Left { attempt, .. } if *attempt == nth);
    let Event::Left { how, .. } = find(lines, id, left) else { unreachable!() };
    *how = wanted;
}

#[test]
fn a_loss_for_no_reason_is_found() {
    let loses = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        ends(lines, history, random, |lines, holder| set_how(lines, holder.id, How::Lost))
    };
    let finds = |violation: &Violation| matches!(violation, Violation::LostForNothing { .. });
    let rough = Plan { rough: true, lease: LONG_LEASE, ..MUTEX };
    seeded(&[MUTEX, SEMAPHORE, READ_WRITE, rough], loses, finds);

    let told = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        ends(lines, history, random, |lines, holder| {
            let at = holder.leaves.unwrap();
            lines.push((holder.id.process, Event::Told { attempt: holder.id.attempt, at }));
        })
    };
    seeded(&[MUTEX, rough], told, |violation| matches!(violation, Violation::ToldForNothing { .. }));

    let refused = |lines: &mut Lines, history: &History, random: &mut StdRng| {
        ends(lines, history, random, |lines, holder| {
            let at = holder.leaves.unwrap() - 1;
            lines.push((holder.id.process, Event::Wrote { attempt: holder.id.attempt, at, taken: false }));
        })
    };
    seeded(&[MUTEX, rough], refused, |violation| matches!(violation, Violation::RefusedForNothing { .. }));
}

/// Process 1 is stopped past its lease, 2 gets its place, and 1 goes on with its work.
fn stopped_past_its_lease() -> Lines {
    let want =
        Want { name: "l".into(), capacity: 1, weight: 1, lease: 600 * MS, at_least: 0, patience: None, lazy: false };
    let at = |ms: u64| ms * MS;
    let mut lines: Lines = vec![
        (1, Event::Asks { attempt: 0, at: at(0), want: want.clone() }),
        (1, Event::Got { attempt: 0, at: at(1), fence: 1 }),
        (0, Event::Stops { process: 1, at: at(1_000) }),
        (0, Event::Continued { process: 1, at: at(2_500) }),
        (2, Event::Asks { attempt: 0, at: at(500), want }),
        (2, Event::Got { attempt: 0, at: at(1_600), fence: 2 }),
        (1, Event::Wrote { attempt: 0, at: at(2_510), taken: false }),
        (1, Event::Told { attempt: 0, at: at(2_550) }),
        (1, Event::Leaves { attempt: 0, at: at(3_900) }),
        (1, Event::Left { attempt: 0, at: at(3_901), how: How::Lost }),
        (2, Event::Leaves { attempt: 0, at: at(4_900) }),
        (2, Event::Left { attempt: 0, at: at(4_901), how: How::Kept }),
    ];
    for ms in (0..6_000).step_by(25) {
        lines.extend((!(1_000..2_500).contains(&ms)).then_some((1, Event::Beat { at: at(ms) })));
        lines.push((2, Event::Beat { at: at(ms) }));
    }
    lines
}

#[test]
fn a_loss_is_told_and_a_late_release_does_not_find_its_place() {
    let lines = stopped_past_its_lease();
    assert_eq!(verdict(&lines), []);
    let (one, two) = (Id { process: 1, attempt: 0 }, Id { process: 2, attempt: 0 });
    let mut untold = lines.clone();
    untold.retain(|(_, event)| !matches!(event, Event::Told { .. }));
    // Told at the end only, by its release; in time would have been a third of the lease after it was continued.
    assert_eq!(verdict(&untold), [Violation::NotTold { holder: one, rival: two }]);

    let mut kept = untold.clone();
    set_how(&mut kept, one, How::Kept);
    let found = verdict(&kept);
    let too_many = Violation::TooMany { holders: vec![one, two], at: 1_600 * MS };
    assert!(found.contains(&too_many) && found.contains(&Violation::RefusedForNothing { holder: one }), "{found:?}");
}
