use super::*;
use crate::{
    cache::testing::{Hand, builder},
    store::{CELLS, Kind, Rows},
    throttle::{Limits, Rate, ask::ask},
};
use std::{
    cell::Cell as Count,
    ops::{Bound, RangeBounds},
};

const NOW: u64 = 1_800_000_000_000_000_000;

fn transition(limits: impl Into<Limits>, patience: Duration, instance: u64, dead: Vec<u64>) -> Transition {
    let ask = Ask { patience, ..Ask::new(limits.into()) };
    Transition { ask, times: Times { booted: 0, lead: 0 }, instance, ticket: instance, dead, held: None }
}

/// A row and its line, in memory.
#[derive(Default)]
struct Stored {
    row: Option<Vec<u8>>,
    line: Vec<Waiter>,
    /// The most waiters that were asked for.
    looked_at: Count<usize>,
}

impl Stored {
    fn run(&mut self, transition: &Transition, now: u64) -> Reply {
        let row = self.row.clone();
        let found = match &row {
            Some(payload) => Found::Row(crate::store::Row { expires: 0, tag: 0, payload }),
            None => Found::Absent,
        };
        let (said, change, steps) = transition.run(found, &WaitingLine::new(self, now), now);
        if let Change::Put { payload, .. } = change {
            self.row = Some(payload);
        }
        for step in steps {
            match step {
                Step::Hold(_) => unreachable!("a throttle has no holders"),
                Step::Join(waiter) => self.line.push(waiter),
                Step::Leave { turn, ticket } => self.line.retain(|other| (other.turn, other.ticket) != (turn, ticket)),
            }
        }
        self.line.sort_by_key(|waiter| (waiter.turn, waiter.ticket));
        said
    }
}

impl Rows for Stored {
    fn read(&self, from: Bound<(u64, u64)>, most: usize) -> Vec<Waiter> {
        self.looked_at.set(self.looked_at.get().max(most));
        let behind = |waiter: &&Waiter| (from, Bound::Unbounded).contains(&(waiter.turn, waiter.ticket));
        self.line.iter().filter(behind).take(most).cloned().collect()
    }

    fn number(&self) -> u64 {
        unreachable!("a throttle draws no numbers")
    }
}

#[test]
fn of_the_dead_just_what_they_took_is_given_back_by_whatever_limit() {
    // Of one span: what is spent of the one is spent of the other.
    let (dense, sparse) = (Rate::per_second(10), Rate::per_second(1));
    let mut stored = Stored::default();
    for instance in 1..=20 {
        stored.run(&transition(dense, Duration::MAX, instance, Vec::new()), NOW);
    }
    // The last of ten who wait is dead: a tenth of a second comes back.
    let before = stored.run(&transition(sparse, Duration::ZERO, 0, Vec::new()), NOW).decided.unwrap_err();
    let after = stored.run(&transition(sparse, Duration::ZERO, 0, vec![20]), NOW).decided.unwrap_err();
    let gained = before.after.unwrap() - after.after.unwrap();
    assert!(gained <= Duration::from_millis(100), "{gained:?} {before:?} {after:?}");
}

#[test]
fn who_is_refused_looks_no_further_than_who_is_asked_after() {
    let mut stored = Stored::default();
    for instance in 1..=3 {
        stored.run(&transition(Rate::per_second(1), Duration::MAX, instance, Vec::new()), NOW);
    }
    stored.looked_at.set(0);
    stored.run(&transition(Rate::per_second(1), Duration::ZERO, 9, Vec::new()), NOW);
    assert!(stored.looked_at.get() <= LOOK, "{}", stored.looked_at.get());
}

#[test]
fn however_many_processes_died_the_asking_ends() {
    let hand = Hand::default();
    let cache = hand.on(builder());
    let (scope, key) = (cache.root(), cache.root().key(Kind::Throttle, b"name"));
    for instance in 1..=200 {
        scope.add_dead(instance);
        let transition = transition(Rate::per_second(1), Duration::MAX, instance, Vec::new());
        let transition = Transition { times: Times::of(scope, &Rate::per_second(1).into()), ..transition };
        let run = move |found: Found<'_>, line: &WaitingLine<'_>, now| {
            let (_, change, steps) = transition.run(found, line, now);
            ((), change, steps)
        };
        scope.update_line(CELLS, key, run, |done| done).wait().unwrap();
    }
    let mut asked = ask(scope, key, Ask { patience: Duration::MAX, ..Ask::new(Rate::per_second(1).into()) });
    for round in 0.. {
        let mut verdict = asked.wait().unwrap();
        match verdict.again() {
            Some(again) => asked = again,
            None => {
                assert_eq!(verdict.decided.unwrap().0, Duration::from_secs(1), "in the place of the first");
                break;
            }
        }
        assert!(round < 20, "still asking");
    }
}
