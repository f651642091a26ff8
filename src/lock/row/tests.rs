use super::{attempt::*, encoding, encoding::*, transition::*};
use crate::{
    lock::{
        owner::Owner,
        rule::{Demand, HOLDERS_MAX, Holder, Lock, OneOwner, ReadWrite, Rule, Semaphore},
    },
    store::{Change, Due, Found, HolderId, HolderRow, Row, Rows, Step, Waiter, WaitingLine},
};
use proptest::{prelude::*, test_runner::RngSeed};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

const LEASE: u64 = 100_000_000_000;

/// A lock without a cache: its row, its line, and the counter.
#[derive(Default)]
struct Bench {
    row: Option<(u64, u64, Vec<u8>)>,
    line: BTreeMap<(u64, u64), Waiter>,
    holders: BTreeMap<HolderId, Option<HolderRow>>,
    index: BTreeSet<(Due, HolderId)>,
    owners: BTreeMap<u64, Owner>,
    latest_lease_end: u64,
    mended: usize,
    is_arbitrary: bool,
    last: Cell<u64>,
    now: u64,
    generation: u64,
    grants_from: u64,
}

struct Shown<'a> {
    lock: &'a Bench,
    mended: Option<Vec<HolderRow>>,
    is_broken: Cell<bool>,
}

impl Rows for Shown<'_> {
    fn read(&self, from: Bound<(u64, u64)>, most: usize) -> Vec<Waiter> {
        self.lock.line.range((from, Bound::Unbounded)).take(most).map(|(_, waiter)| waiter.clone()).collect()
    }

    fn number(&self) -> u64 {
        self.lock.last.set(self.lock.last.get() + 1);
        self.lock.last.get()
    }

    fn holder(&self, id: HolderId) -> Option<HolderRow> {
        let row = self.lock.holders.get(&id)?;
        if row.is_none() {
            self.miss();
        }
        row.clone()
    }

    fn holders(&self, owner: Option<u128>, most: usize) -> Vec<HolderRow> {
        let rows = self.lock.holders.iter().filter(|(id, _)| owner.is_none_or(|owner| id.owner == owner)).take(most);
        rows.filter_map(|(id, _)| self.holder(*id)).collect()
    }

    fn due(&self, (from, to): (Due, Due), most: usize) -> Vec<(Due, HolderId)> {
        let (first, last) = (HolderId { owner: 0, number: 0 }, HolderId { owner: u128::MAX, number: u64::MAX });
        self.lock.index.range((from, first)..=(to, last)).take(most).copied().collect()
    }

    fn miss(&self) {
        self.is_broken.set(self.mended.is_none());
    }

    fn mended(&self) -> Option<&[HolderRow]> {
        self.mended.as_deref()
    }

    fn latest_lease_end(&self) -> u64 {
        self.lock.latest_lease_end
    }

    fn generation(&self) -> u64 {
        self.lock.generation
    }

    fn grants_from(&self) -> u64 {
        self.lock.grants_from
    }
}

impl Bench {
    fn decide<T>(
        &self,
        mended: Option<Vec<HolderRow>>,
        transition: &impl Fn(Found<'_>, &WaitingLine<'_>, u64) -> Transition<T>,
    ) -> Option<Transition<T>> {
        let found = match &self.row {
            None => Found::Absent,
            Some((expires, tag, payload)) => Found::Row(Row { expires: *expires, tag: *tag, payload }),
        };
        let shown = Shown { lock: self, mended, is_broken: Cell::new(false) };
        let decided = transition(found, &WaitingLine::new(&shown, self.now), self.now);
        (!shown.is_broken.get()).then_some(decided)
    }

    /// Does as the store does.
    fn apply<T>(&mut self, transition: impl Fn(Found<'_>, &WaitingLine<'_>, u64) -> Transition<T>) -> T {
        let decided = match self.decide(None, &transition) {
            Some(decided) => decided,
            None => {
                self.mended += 1;
                self.holders.retain(|_, row| row.is_some());
                let left: Vec<HolderRow> = self.holders.values().flatten().cloned().collect();
                self.index = left.iter().map(|row| (row.due, row.id)).collect();
                self.decide(Some(left), &transition).expect("mended")
            }
        };
        let (result, change, steps) = decided;
        match change {
            Change::Keep => {}
            Change::Remove => self.row = None,
            Change::Put { expires, tag, payload } => {
                self.latest_lease_end = self.latest_lease_end.max(expires);
                self.row = Some((expires, tag, payload));
            }
        }
        for step in steps {
            match step {
                Step::Join(waiter) => drop(self.line.insert((waiter.turn, waiter.ticket), waiter)),
                Step::Leave { turn, ticket } => drop(self.line.remove(&(turn, ticket))),
                Step::Hold(step) => {
                    if let Some(due) = step.before {
                        assert!(self.index.remove(&(due, step.id)), "it stands in the index");
                        assert!(self.holders.remove(&step.id).is_some(), "it has a row");
                    }
                    if let Some((due, payload)) = step.after {
                        self.index.insert((due, step.id));
                        self.holders.insert(step.id, Some(HolderRow { id: step.id, due, payload }));
                    }
                }
            }
        }
        self.check();
        result
    }

    /// The sum is that of the rows, and each row stands in the index, early enough.
    fn check(&self) {
        // Of many, now and then.
        if self.holders.len() > 100 && !(self.last.get() as usize + self.holders.len()).is_multiple_of(97) {
            return;
        }
        let rows: Vec<&HolderRow> = self.holders.values().flatten().collect();
        if rows.len() < self.holders.len() || self.is_arbitrary {
            return;
        }
        assert_eq!(self.index, rows.iter().map(|row| (row.due, row.id)).collect());
        let places: Vec<Place> = rows.iter().map(|row| Place::of_row(row).expect("our own row")).collect();
        let row = self.row();
        let (weight, numbers) = places.iter().fold((0, 0_u64), |(weight, numbers), place| {
            (weight + u64::from(place.weight), numbers.wrapping_add(place.number))
        });
        assert_eq!((row.crowd.count as usize, row.crowd.weight, row.crowd.numbers), (places.len(), weight, numbers));
        assert!(row.places.len() <= PLACES, "{} places", row.places.len());
        for (row_of, place) in rows.iter().zip(&places) {
            let (Due::Held { instance, at } | Due::Offered { at, instance }) = row_of.due;
            assert_eq!((instance, matches!(row_of.due, Due::Offered { .. })), (place.instance, place.is_offered()));
            assert!(row.crowd.earliest <= at && at <= place.lease && place.lease <= row.crowd.latest, "{place:?}");
        }
        let payload = self.row.as_ref().map_or(0, |row| row.2.len());
        assert!(payload < 1_200, "{payload} bytes");
    }

    fn row(&self) -> LockRow {
        match &self.row {
            None => LockRow::default(),
            Some((expires, tag, payload)) => {
                LockRow::read(Found::Row(Row { expires: *expires, tag: *tag, payload })).expect("our own row")
            }
        }
    }

    fn ask<R: Rule>(&mut self, request: &LockRequest<R>, turn: Option<Turn>, dead: &[u64], here: &[u64]) -> Asked {
        let label = encoding::write_label("scope", b"name");
        let is_held_here = |number| here.contains(&number);
        let asked = self.apply(|found, line, now| {
            ask(found, line, Moment { now, dead, is_held_here: &is_held_here }, request, &label, turn)
        });
        match asked.answer {
            Answer::Held(number) | Answer::Waiting(Turn { number, .. }) => {
                self.owners.insert(number, request.owner.clone());
            }
            _ => {}
        }
        asked
    }

    /// Everything that this lock's places say, whether they stand in the row or not.
    fn places(&self) -> Vec<Place> {
        let rows = self.holders.values().flatten().map(|row| Place::of_row(row).expect("our own row"));
        self.row().places.into_iter().chain(rows).collect()
    }

    fn id(&self, number: u64) -> HolderId {
        HolderId { owner: self.owners.get(&number).map_or(0, |owner| owner.0), number }
    }

    fn enter<R: Rule>(&mut self, rule: R, owner: u128) -> Answer {
        self.ask(&request(rule, owner, 1), None, &[], &[]).answer
    }

    fn held<R: Rule>(&mut self, rule: R, owner: u128) -> u64 {
        match self.enter(rule, owner) {
            Answer::Held(fence) => fence,
            other => panic!("{other:?}"),
        }
    }

    fn joined<R: Rule>(&mut self, rule: R, owner: u128, instance: u64) -> Turn {
        match self.ask(&request(rule, owner, instance), None, &[], &[]).answer {
            Answer::Waiting(turn) => turn,
            other => panic!("{other:?}"),
        }
    }

    fn accept<R: Rule>(&mut self, rule: R, owner: u128, turn: Turn) -> Answer {
        self.ask(&request(rule, owner, 1), Some(turn), &[], &[]).answer
    }

    fn release(&mut self, number: u64) -> Released {
        let entered = self.renewal(self.generation, 1, number, LEASE).entered;
        self.apply(|found, line, now| release(found, line, now, entered, true))
    }

    fn release_of(&mut self, generation: u64, number: u64) -> bool {
        let entered = self.renewal(generation, 1, number, LEASE).entered;
        self.apply(|found, line, now| release(found, line, now, entered, true)).ours
    }

    fn leave(&mut self, number: u64) -> Vec<ToWake> {
        let owner = Owner(self.id(number).owner);
        self.apply(|found, line, now| leave(found, line, now, &owner, number))
    }

    fn look(&mut self, dead: &[u64]) -> Looked {
        self.apply(|found, line, now| look(found, line, Moment { now, dead, is_held_here: &|_| false }))
    }

    fn renew(&mut self, number: u64, lease: u64) -> bool {
        self.renew_in(1, number, lease)
    }

    fn renew_in(&mut self, instance: u64, number: u64, lease: u64) -> bool {
        self.renew_of(self.generation, instance, number, lease)
    }

    /// What a guard knows that entered in a generation, at the beginning.
    fn renewal(&self, generation: u64, instance: u64, number: u64, lease: u64) -> Renewal {
        let label = encoding::write_label("scope", b"name");
        let entered = Entered { place: self.id(number), generation, lease_end: LEASE };
        Renewal { entered, lease, instance, weight: 1, label }
    }

    fn renew_of(&mut self, generation: u64, instance: u64, number: u64, lease: u64) -> bool {
        let renewal = self.renewal(generation, instance, number, lease);
        let Renewed { ours, entered } = self.apply(|found, line, now| renew(found, line, now, &renewal));
        assert!(!ours || entered.generation == self.generation);
        ours
    }

    /// Another generation of the rows begins, without any of them.
    fn lose_all(&mut self) {
        (self.row, self.generation, self.grants_from) = (None, self.generation + 1, self.latest_lease_end);
        self.line.clear();
        self.holders.clear();
        self.index.clear();
    }
}

fn request<R>(rule: R, owner: u128, instance: u64) -> LockRequest<R> {
    let wait_options = WaitOptions { waits: true, queue_at_most: u32::MAX, deadline: u64::MAX };
    LockRequest {
        rule,
        owner: Owner(owner),
        is_new_owner: false,
        lease: LEASE,
        at_least: 0,
        tag: 7,
        instance,
        wait_options,
    }
}

fn numbers(to_wake: &[ToWake]) -> Vec<u64> {
    to_wake.iter().map(|to_wake| to_wake.number).collect()
}

#[test]
fn one_holder_and_a_foreign_release_changes_nothing() {
    let mut lock = Bench::default();
    let fence = lock.held(Lock, 1);
    let request = LockRequest {
        wait_options: WaitOptions { waits: false, ..request(Lock, 2, 1).wait_options },
        ..request(Lock, 2, 1)
    };
    assert_eq!(lock.ask(&request, None, &[], &[]).answer, Answer::Busy);
    let before = lock.row.clone();
    assert!(!lock.release(fence + 1).ours);
    assert_eq!(lock.row, before);
    assert!(lock.release(fence).ours);
    assert_eq!(lock.row, None, "an idle lock leaves no row");
    assert!(!lock.release(fence).ours, "once");
}

#[test]
fn nobody_is_refused_at_once_behind_a_holder_that_is_the_first() {
    const SECOND: u64 = 1_000_000_000;
    let mut lock = Bench::default();
    lock.held(Lock, 1);
    lock.now += 50 * SECOND;
    let wait_options = WaitOptions { deadline: SECOND, ..request(Lock, 2, 1).wait_options };
    let hurried = LockRequest { wait_options, ..request(Lock, 2, 1) };
    let asked = lock.ask(&hurried, None, &[], &[]);
    assert!(matches!(asked.answer, Answer::Waiting(_)), "it may leave at any moment: {asked:?}");
    assert!(asked.wait > Some(SECOND), "a guess, by which one is told when to come again");
}

#[test]
fn an_owner_may_enter_again_and_leaves_as_often() {
    let mut lock = Bench::default();
    let fence = lock.held(OneOwner, 1);
    let turn = lock.joined(OneOwner, 2, 1);
    assert_eq!(lock.held(OneOwner, 1), fence, "and does not queue behind one who waits for it");
    assert!(lock.release(fence).to_wake.is_empty());
    assert_eq!(numbers(&lock.release(fence).to_wake), [turn.number]);
}

#[test]
fn who_enters_again_waits_no_longer() {
    let mut lock = Bench::default();
    let fence = lock.held(OneOwner, 1);
    let (first, second, third) =
        (lock.joined(OneOwner, 2, 1), lock.joined(OneOwner, 2, 1), lock.joined(OneOwner, 3, 1));
    lock.release(fence);
    let Answer::Held(fence) = lock.accept(OneOwner, 2, first) else { panic!("its turn") };
    assert_eq!(lock.accept(OneOwner, 2, second), Answer::Held(fence));
    assert_eq!((lock.line.len(), lock.row().waiting), (1, 1));
    assert!(lock.release(fence).to_wake.is_empty());
    assert_eq!(numbers(&lock.release(fence).to_wake), [third.number]);
}

/// Whose lock it is, is known in two processes.
#[test]
fn an_owner_that_is_inside_in_two_processes_outlives_either() {
    let mut lock = Bench::default();
    let Answer::Held(fence) = lock.ask(&request(OneOwner, 1, 11), None, &[], &[]).answer else { panic!("free") };
    assert_eq!(lock.ask(&request(OneOwner, 1, 12), None, &[], &[]).answer, Answer::Held(fence));
    let turn = lock.joined(OneOwner, 2, 13);
    let looked = lock.look(&[11, 12]);
    assert_eq!((looked.to_wake.len(), looked.suspects, looked.next), (0, vec![13], LEASE));
    // The outer one leaves first, and ends; then it is known again who is inside.
    lock.release(fence);
    assert!(lock.renew_in(12, fence, LEASE));
    assert!(lock.look(&[11]).to_wake.is_empty());
    assert_eq!(lock.look(&[]).suspects, [12, 13]);
    assert_eq!(numbers(&lock.look(&[12]).to_wake), [turn.number]);
}

#[test]
fn a_dead_writer_at_the_head_does_not_keep_readers_out() {
    let mut lock = Bench::default();
    lock.ask(&request(ReadWrite.read(), 1, 11), None, &[], &[]);
    lock.joined(ReadWrite.write(), 2, 12);
    let reader = lock.joined(ReadWrite.read(), 3, 13);
    assert_eq!(lock.look(&[]).suspects, [11, 12]);
    assert_eq!(numbers(&lock.look(&[12]).to_wake), [reader.number]);
}

#[test]
fn the_dead_do_not_fill_the_queue() {
    let mut lock = Bench::default();
    lock.ask(&request(Lock, 1, 11), None, &[], &[]);
    let alive = lock.joined(Lock, 2, 12);
    lock.joined(Lock, 3, 13);
    let bounded = LockRequest {
        wait_options: WaitOptions { queue_at_most: 2, ..request(Lock, 4, 14).wait_options },
        ..request(Lock, 4, 14)
    };
    let asked = lock.ask(&bounded, None, &[], &[]);
    assert_eq!((asked.answer, asked.suspects), (Answer::QueueFull, vec![11, 12, 13]));
    let asked = lock.ask(&bounded, None, &[13], &[]);
    assert!(matches!(asked.answer, Answer::Waiting(_)));
    assert_eq!(asked.suspects, [11, 12]);
    assert_eq!((lock.line.len(), lock.row().waiting, lock.line[&(alive.number, 0)].instance), (2, 2, 12));
}

#[test]
fn a_released_lock_is_offered_in_the_order_of_coming() {
    let mut lock = Bench::default();
    let mut fence = lock.held(Lock, 1);
    let turns: Vec<Turn> = (2..10).map(|owner| lock.joined(Lock, owner, 1)).collect();
    for (turn, owner) in turns.iter().zip(2..) {
        assert_eq!(numbers(&lock.release(fence).to_wake), [turn.number]);
        let newcomer = lock.joined(Lock, 99, 1);
        assert_eq!(lock.accept(Lock, 98, newcomer), Answer::Waiting(newcomer), "nobody overtakes an offer");
        assert!(lock.leave(newcomer.number).is_empty());
        let Answer::Held(next) = lock.accept(Lock, owner, *turn) else { panic!("its turn") };
        assert!(next > fence);
        fence = next;
    }
    lock.release(fence);
    assert!(lock.row.is_none() && lock.line.is_empty());
}

#[test]
fn an_offer_that_nobody_takes_passes_on_and_keeps_its_place_in_the_line() {
    let mut lock = Bench::default();
    let fence = lock.held(Lock, 1);
    let (first, second) = (lock.joined(Lock, 2, 5), lock.joined(Lock, 3, 6));
    let mark = lock.look(&[]).mark;
    lock.renew(fence, LEASE);
    assert_eq!(lock.look(&[]).mark, mark);
    lock.release(fence);
    assert!(!lock.renew(first.number, LEASE), "what nobody took is not renewed");
    lock.now += OFFER - 1;
    assert_eq!(numbers(&lock.look(&[]).to_wake), [first.number], "woken once more");
    lock.now += 1;
    assert_eq!(numbers(&lock.look(&[]).to_wake), [first.number, second.number]);
    assert_ne!(lock.look(&[]).mark, mark);
    let Answer::Waiting(again) = lock.accept(Lock, 2, first) else { panic!("too late") };
    assert_eq!(again, first);
    let Answer::Held(fence) = lock.accept(Lock, 3, second) else { panic!("its turn") };
    let third = lock.joined(Lock, 4, 7);
    assert_eq!(numbers(&lock.release(fence).to_wake), [first.number]);
    assert!(third.number > first.number);
}

#[test]
fn the_dead_lose_their_places_and_their_turns() {
    let mut lock = Bench::default();
    lock.ask(&request(Lock, 1, 11), None, &[], &[]);
    let (_dead, alive) = (lock.joined(Lock, 2, 12), lock.joined(Lock, 3, 13));
    assert_eq!(lock.look(&[]).suspects, [11, 12]);
    assert_eq!(numbers(&lock.look(&[11, 12]).to_wake), [alive.number]);
    assert_eq!((lock.line.len(), lock.row().waiting), (0, 0));
    let newcomer = lock.ask(&request(Lock, 4, 14), None, &[], &[]);
    assert_eq!(newcomer.suspects, [13], "whoever has an offer may be gone as well");
    let Answer::Waiting(turn) = newcomer.answer else { panic!("offered to another") };
    let asked = lock.ask(&request(Lock, 4, 14), Some(turn), &[13], &[]);
    assert!(matches!(asked.answer, Answer::Held(_)), "{asked:?}");
}

#[test]
fn a_lease_that_ended_is_no_hold_unless_its_guard_lives_here() {
    let mut lock = Bench::default();
    let fence = lock.held(Lock, 1);
    lock.now += LEASE;
    let turn = match lock.ask(&request(Lock, 2, 1), None, &[], &[fence]).answer {
        Answer::Waiting(turn) => turn,
        other => panic!("{other:?}"),
    };
    lock.leave(turn.number);
    lock.now += LEASE;
    let second = lock.held(Lock, 3);
    assert!(second > fence);
    assert!(!lock.renew(fence, LEASE) && !lock.release(fence).ours);
    assert!(lock.renew(second, LEASE) && lock.release(second).ours);
}

#[test]
fn readers_enter_together_and_writers_do_not_starve() {
    let mut lock = Bench::default();
    let readers = [lock.held(ReadWrite.read(), 1), lock.held(ReadWrite.read(), 2)];
    let writer = lock.joined(ReadWrite.write(), 3, 1);
    let late = [lock.joined(ReadWrite.read(), 4, 1), lock.joined(ReadWrite.read(), 5, 1)];
    assert!(lock.release(readers[0]).to_wake.is_empty());
    assert_eq!(numbers(&lock.release(readers[1]).to_wake), [writer.number]);
    let Answer::Held(fence) = lock.accept(ReadWrite.write(), 3, writer) else { panic!("alone") };
    assert_eq!(numbers(&lock.release(fence).to_wake), late.map(|turn| turn.number), "both at once");
}

#[test]
fn a_writer_that_gives_up_lets_readers_pass() {
    let mut lock = Bench::default();
    lock.held(ReadWrite.read(), 1);
    let writer = lock.joined(ReadWrite.write(), 2, 1);
    let reader = lock.joined(ReadWrite.read(), 3, 1);
    assert_eq!(numbers(&lock.leave(writer.number)), [reader.number]);
}

#[test]
fn weights_are_counted_and_a_heavy_one_is_not_overtaken() {
    let mut lock = Bench::default();
    let two = lock.held(Semaphore(3).weighing(2), 1);
    let heavy = lock.joined(Semaphore(3).weighing(9), 2, 1);
    let light = lock.joined(Semaphore(3), 3, 1);
    assert_eq!(numbers(&lock.release(two).to_wake), [heavy.number]);
    let Answer::Held(fence) = lock.accept(Semaphore(3).weighing(9), 2, heavy) else { panic!("all of it") };
    assert_eq!(numbers(&lock.release(fence).to_wake), [light.number]);
}

#[test]
fn a_rule_of_ones_own_decides_when_it_is_asked() {
    let two = |holders: &[Holder], _: &Owner| holders.len() < 2;
    let mut lock = Bench::default();
    let held = [lock.held(two, 1), lock.held(two, 2)];
    let (third, fourth) = (lock.joined(two, 3, 1), lock.joined(two, 4, 1));
    assert!(lock.look(&[]).to_wake.is_empty(), "nothing has changed");
    assert_eq!(numbers(&lock.release(held[0]).to_wake), [third.number]);
    assert!(lock.look(&[]).to_wake == [ToWake { instance: 1, number: third.number }]);
    assert!(matches!(lock.accept(two, 3, third), Answer::Held(_)));
    assert_eq!(numbers(&lock.look(&[]).to_wake), [fourth.number], "asked when one entered");
    assert_eq!(lock.accept(two, 4, fourth), Answer::Waiting(fourth));
    assert!(lock.look(&[]).to_wake.is_empty(), "it has declined");
    assert_eq!(numbers(&lock.release(held[1]).to_wake), [fourth.number]);
}

#[test]
fn a_minimum_time_outlasts_release_and_death() {
    let mut lock = Bench::default();
    let request = |instance| LockRequest { at_least: 100, ..request(Lock, 1, instance) };
    let Answer::Held(fence) = lock.ask(&request(5), None, &[], &[]).answer else { panic!("free") };
    let waiter = lock.joined(Lock, 2, 6);
    lock.now += 50;
    let released = lock.release(fence);
    assert!(released.ours && released.to_wake.is_empty());
    assert!(!lock.release(fence).ours);
    lock.now += 49;
    assert!(lock.look(&[5]).to_wake.is_empty());
    lock.now += 1;
    assert_eq!(numbers(&lock.look(&[]).to_wake), [waiter.number]);
    lock.leave(waiter.number);

    lock.ask(&request(7), None, &[], &[]);
    assert!(matches!(lock.ask(&request(8), None, &[7], &[]).answer, Answer::Waiting(_)), "its holder died");
}

#[test]
fn the_queue_is_bounded_and_the_wait_is_estimated() {
    let mut lock = Bench::default();
    let fence = lock.held(Lock, 1);
    let polite = |wait_options| LockRequest { wait_options, ..request(Lock, 9, 1) };
    let bounded = polite(WaitOptions { queue_at_most: 2, ..request(Lock, 9, 1).wait_options });
    for _ in 0..2 {
        assert!(matches!(lock.ask(&bounded, None, &[], &[]).answer, Answer::Waiting(_)));
    }
    assert_eq!(lock.ask(&bounded, None, &[], &[]).answer, Answer::QueueFull);
    lock.now += 500;
    let first = lock.release(fence).to_wake[0].number;
    assert!(matches!(lock.accept(Lock, 9, Turn { number: first, since: 0 }), Answer::Held(_)));
    // It was held for 500 once, and one waits: the holder and that one come first.
    let hurried = polite(WaitOptions { deadline: 999, ..request(Lock, 9, 1).wait_options });
    let asked = lock.ask(&hurried, None, &[], &[]);
    assert_eq!((asked.answer, asked.wait), (Answer::Busy, Some(1_000)));
    let patient = polite(WaitOptions { deadline: 1_000, ..request(Lock, 9, 1).wait_options });
    assert!(matches!(lock.ask(&patient, None, &[], &[]).answer, Answer::Waiting(_)));
}

#[test]
fn a_damaged_row_is_busy_until_the_lease_must_have_ended() {
    let mut lock = Bench { row: Some((0, 0, vec![9; 40])), ..Bench::default() };
    let everybody = |_: &[Holder], _: &Owner| true;
    for _ in 0..2 {
        assert!(matches!(lock.enter(everybody, 1), Answer::Waiting(_)));
    }
    assert!(matches!(lock.enter(Semaphore(9), 1), Answer::Waiting(_)));
    lock.now += LEASE;
    assert!(!lock.look(&[]).to_wake.is_empty());
}

#[test]
fn who_waits_behind_a_row_that_was_damaged_comes_first() {
    let mut lock = Bench::default();
    lock.held(Lock, 1);
    let turn = lock.joined(Lock, 2, 1);
    lock.row = Some((0, 0, vec![9; 40]));
    let hasty = LockRequest {
        wait_options: WaitOptions { waits: false, ..request(Lock, 3, 1).wait_options },
        ..request(Lock, 3, 1)
    };
    assert_eq!(lock.ask(&hasty, None, &[], &[]).answer, Answer::Busy);
    lock.now += LEASE;
    assert_eq!(lock.ask(&hasty, None, &[], &[]).answer, Answer::Busy);
    assert_eq!(numbers(&lock.look(&[]).to_wake), [turn.number]);
}

#[test]
fn a_row_keeps_name_and_tag_and_stays_short_however_many_hold() {
    let mut lock = Bench::default();
    let fences: Vec<u64> = (0..5_000).map(|owner| lock.held(Semaphore(5_000), owner)).collect();
    let turn = lock.joined(Semaphore(5_000), 5_000, 1);
    let (_, tag, payload) = lock.row.clone().unwrap();
    assert!(payload.len() < 1_000, "{} bytes", payload.len());
    assert_eq!((encoding::names(&payload), tag), ((&b"scope"[..], &b"name"[..]), 7));
    assert_eq!((lock.row().count(), lock.row().taken(), lock.row().waiting), (5_000, 5_000, 1));
    assert_eq!(numbers(&lock.release(fences[2_500]).to_wake), [turn.number]);
    assert!(matches!(lock.accept(Semaphore(5_000), 5_000, turn), Answer::Held(_)));
    let left = fences.iter().filter(|fence| lock.release(**fence).ours).count();
    assert_eq!((left, lock.row().count()), (4_999, 1));
}

#[test]
fn a_rule_of_ones_own_is_shown_a_thousand_holders_and_no_more() {
    let everybody = |_: &[Holder], _: &Owner| true;
    let few = |holders: &[Holder], _: &Owner| holders.len() < 3;
    let mut lock = Bench::default();
    let first = lock.held(everybody, 1);
    let seen = |holders: &[Holder], _: &Owner| {
        let owners: BTreeSet<u128> = holders.iter().map(|holder| holder.owner.0).collect();
        owners == (1..=holders.len() as u128).collect()
    };
    for owner in 2..=HOLDERS_MAX as u128 {
        lock.held(seen, owner);
    }
    assert_eq!(lock.enter(everybody, 5_000), Answer::TooManyHolders);
    let turn = lock.joined(few, 5_001, 1);
    assert!(lock.leave(turn.number).is_empty(), "it may be shown them, and would wait");
    let more = lock.held(Semaphore(u32::MAX), 6_000);
    assert_eq!(lock.enter(few, 5_002), Answer::TooManyHolders, "there are more than it may be shown");
    lock.release(more);
    lock.release(first);
    assert!(matches!(lock.enter(everybody, 5_003), Answer::Held(_)));
}

#[test]
fn an_owner_is_found_again_among_many() {
    let twice = |holders: &[Holder], candidate: &Owner| holders.iter().all(|holder| holder.owner == *candidate);
    let mut lock = Bench::default();
    let fences: Vec<u64> = (0..100).map(|owner| lock.held(Semaphore(100), owner)).collect();
    // A rule with a demand is shown the owner alone.
    struct Again;
    impl Rule for Again {
        fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool {
            assert_eq!(holders.len(), 1);
            holders[0].owner == *candidate
        }
        fn demand(&self) -> Option<Demand> {
            Some(Demand::new(100, 1))
        }
    }
    assert!(matches!(lock.enter(twice, 50), Answer::Waiting(_)), "it sees the others");
    assert_eq!(lock.enter(Again, 50), Answer::Held(fences[50]));
    assert!(lock.release(fences[50]).ours && lock.release(fences[50]).ours && !lock.release(fences[50]).ours);
}

#[test]
fn the_leases_of_many_end_in_bites_and_renewed_ones_do_not() {
    let mut lock = Bench::default();
    let fences: Vec<u64> = (0..1_000).map(|owner| lock.held(Semaphore(1_000), owner)).collect();
    lock.now = LEASE / 2;
    for fence in &fences[500..510] {
        assert!(lock.renew(*fence, LEASE));
    }
    let looked = lock.look(&[]);
    assert_eq!((lock.row().count(), looked.next), (1_000, LEASE));
    lock.now = LEASE;
    let mut before = lock.row().count();
    while before > 10 {
        let looked = lock.look(&[]);
        let left = lock.row().count();
        assert!(before - left > 0 && before - left < 300, "{before}, then {left}");
        before = left;
        assert!(left == 10 || looked.next <= lock.now, "there is more to do");
    }
    lock.now += LEASE / 4;
    assert_eq!(lock.look(&[]).next, LEASE / 2 + LEASE);
    assert_eq!(lock.places().len(), 10);
    lock.now = LEASE / 2 + LEASE;
    lock.look(&[]);
    assert!(lock.row.is_none() && lock.holders.is_empty() && lock.index.is_empty());
}

#[test]
fn the_many_of_a_dead_instance_leave_in_bites_and_others_stay() {
    let mut lock = Bench::default();
    for owner in 0..1_000 {
        lock.ask(&request(Semaphore(1_000), owner, 10 + u64::try_from(owner % 2).unwrap()), None, &[], &[]);
    }
    let mut asked = lock.look(&[11]);
    while asked.suspects.contains(&11) {
        asked = lock.look(&[11]);
    }
    assert_eq!((lock.row().count(), asked.suspects), (500, vec![10]));
    assert!(lock.places().iter().all(|place| place.instance == 10));
}

#[test]
fn offers_to_many_end_and_are_told_again() {
    let mut lock = Bench::default();
    let all = lock.held(Semaphore(100).weighing(100), 0);
    let turns: Vec<u64> = (1..=100).map(|owner| lock.joined(Semaphore(100), owner, 1).number).collect();
    assert_eq!(numbers(&lock.release(all).to_wake), turns);
    let mut again = numbers(&lock.look(&[]).to_wake);
    again.sort_unstable();
    assert_eq!(again, turns);
    let Answer::Held(fence) = lock.accept(Semaphore(100), 100, Turn { number: turns[99], since: 0 }) else { panic!() };
    lock.now = OFFER;
    let mut lapsed = numbers(&lock.look(&[]).to_wake);
    lapsed.sort_unstable();
    assert_eq!((lapsed, lock.row().count()), (turns[..99].to_vec(), 1));
    assert!(lock.release(fence).ours && lock.row.is_none() && lock.index.is_empty());
}

#[test]
fn room_for_many_is_offered_in_bites_in_the_order_of_coming() {
    let mut lock = Bench::default();
    let all = lock.held(Semaphore(1_000).weighing(1_000), 0);
    let turns: Vec<Turn> = (1..=1_000).map(|owner| lock.joined(Semaphore(1_000), owner, 1)).collect();
    let mut offered = numbers(&lock.release(all).to_wake);
    assert!(offered.len() < 300, "{}", offered.len());
    for (turn, owner) in turns.iter().zip(1..) {
        let asked = lock.ask(&request(Semaphore(1_000), owner, 1), Some(*turn), &[], &[]);
        assert!(matches!(asked.answer, Answer::Held(_)), "{asked:?}");
        offered.extend(numbers(&asked.to_wake));
    }
    assert_eq!(offered, turns.iter().map(|turn| turn.number).collect::<Vec<_>>());
    assert_eq!((lock.row().taken(), lock.row().waiting), (1_000, 0));
}

#[test]
fn holders_whose_rows_are_damaged_count_until_the_latest_lease_has_ended() {
    let mut lock = Bench::default();
    let rule = |owner| Semaphore(100).weighing(1 + u32::try_from(owner % 3).unwrap());
    let fences: Vec<u64> = (0..40).map(|owner| lock.held(rule(owner), owner)).collect();
    let taken = lock.row().taken();
    for fence in &fences[20..23] {
        let id = lock.id(*fence);
        lock.holders.insert(id, None);
    }
    assert!(!lock.renew(fences[21], LEASE), "its holder is told");
    assert_eq!((lock.mended, lock.row().taken()), (1, taken), "and its weight stays");
    for fence in &fences[20..23] {
        assert!(!lock.release(*fence).ours);
    }
    assert!(lock.release(fences[30]).ours);
    let everybody = |_: &[Holder], _: &Owner| true;
    let turn = lock.joined(everybody, 90, 1);
    lock.leave(turn.number);
    lock.now = LEASE - 1;
    for fence in fences.iter().filter(|fence| !(20..23).any(|at| fences[at] == **fence) && **fence != fences[30]) {
        assert!(lock.renew(*fence, LEASE));
    }
    lock.now = LEASE;
    lock.look(&[]);
    assert_eq!(lock.row().count(), 36);
    assert_eq!(lock.row().taken(), lock.places().iter().map(|place| u64::from(place.weight)).sum::<u64>());
}

#[test]
fn holders_that_have_all_lost_their_rows_count_until_the_latest_lease_has_ended() {
    let mut lock = Bench::default();
    for owner in 0..20 {
        lock.held(Semaphore(20), owner);
    }
    let lost = lock.row().crowd.weight;
    lock.holders.clear();
    lock.index.clear();
    lock.is_arbitrary = true;
    lock.latest_lease_end = 2 * LEASE;
    lock.now = LEASE;
    lock.look(&[]);
    assert_eq!((lock.mended, lock.row().taken()), (1, lost), "the leases of the others are over");
    lock.now = 2 * LEASE;
    lock.look(&[]);
    assert!(lock.row.is_none());
}

/// Something that may happen to a lock.
#[derive(Clone, Debug)]
enum Happens {
    Ask {
        owner: u8,
        weight: u32,
        waits: bool,
    },
    /// The woken one of so many is polled.
    Accept(usize),
    Release(usize),
    Leave(usize),
    Look,
    Die(u8),
    Pass(u64),
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let one = prop_oneof![
        4 => (0_u8..5, 1_u32..5, prop::bool::weighted(0.9)).prop_map(|(owner, weight, waits)| Happens::Ask { owner, weight, waits }),
        4 => any::<usize>().prop_map(Happens::Accept),
        3 => any::<usize>().prop_map(Happens::Release),
        1 => any::<usize>().prop_map(Happens::Leave),
        1 => Just(Happens::Look),
        1 => (1_u8..5).prop_map(Happens::Die),
        1 => (0..2 * OFFER).prop_map(Happens::Pass),
    ];
    prop::collection::vec(one, 0..160)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(44), failure_persistence: None, ..Default::default() })]

    /// Whatever happens: never more weight than there is, fences grow, nobody overtakes, and at the end everybody is served.
    #[test]
    fn a_lock_is_never_held_by_too_many_and_serves_all(steps in happenings(), capacity in prop_oneof![1_u32..4, 20..40_u32]) {
        let mut lock = Bench::default();
        // Fence, weight, instance; and turn, weight, instance.
        let mut held: Vec<(u64, u32, u64)> = Vec::new();
        let mut waiting: Vec<(Turn, u32, u64)> = Vec::new();
        let (mut fences, mut dead) = (0, Vec::<u64>::new());
        let rule = |weight| Semaphore(capacity).weighing(weight);
        let mut entered = |held: &mut Vec<_>, fence: u64, weight: u32, instance| {
            prop_assert!(fence > fences, "fence {} after {}", fence, fences);
            fences = fence;
            held.push((fence, weight.min(capacity), instance));
            prop_assert!(held.iter().map(|place| place.1).sum::<u32>() <= capacity, "{:?}", held);
            Ok(())
        };
        for step in steps {
            match step {
                Happens::Ask { owner, weight, waits } => {
                    let instance = u64::from(owner) + 1;
                    if dead.contains(&instance) { continue }
                    let wait_options = WaitOptions { waits, ..request(Lock, 0, 0).wait_options };
                    let request = LockRequest { wait_options, ..request(rule(weight), rand::random(), instance) };
                    match lock.ask(&request, None, &dead, &[]).answer {
                        Answer::Held(fence) => entered(&mut held, fence, weight, instance)?,
                        Answer::Waiting(turn) => waiting.push((turn, weight, instance)),
                        Answer::Busy => prop_assert!(!waits),
                        Answer::QueueFull | Answer::TooManyHolders => prop_assert!(false),
                    }
                }
                Happens::Accept(which) if !waiting.is_empty() => {
                    let at = which % waiting.len();
                    let (turn, weight, instance) = waiting[at];
                    let request = LockRequest { owner: lock.owners[&turn.number].clone(), ..request(rule(weight), 0, instance) };
                    match lock.ask(&request, Some(turn), &dead, &[]).answer {
                        Answer::Held(fence) => {
                            waiting.remove(at);
                            entered(&mut held, fence, weight, instance)?;
                        }
                        other => prop_assert_eq!(other, Answer::Waiting(turn)),
                    }
                }
                Happens::Release(which) if !held.is_empty() => {
                    let (fence, ..) = held.swap_remove(which % held.len());
                    prop_assert!(lock.release(fence).ours);
                    prop_assert!(!lock.release(fence).ours);
                }
                Happens::Leave(which) if !waiting.is_empty() => {
                    let (turn, ..) = waiting.swap_remove(which % waiting.len());
                    lock.leave(turn.number);
                }
                Happens::Look => drop(lock.look(&dead)),
                Happens::Die(owner) => {
                    let instance = u64::from(owner) + 1;
                    dead.push(instance);
                    lock.look(&dead);
                    held.retain(|place| place.2 != instance);
                    waiting.retain(|waiter| waiter.2 != instance);
                }
                Happens::Pass(time) => lock.now += time,
                _ => {}
            }
        }
        // Everybody leaves, and the waiters are woken and served. All ask once more, as from time to time they do: the test has
        // not heeded every call.
        let mut again = std::mem::take(&mut waiting);
        for (turn, weight, instance) in again.drain(..) {
            let request = LockRequest { owner: lock.owners[&turn.number].clone(), ..request(rule(weight), 0, instance) };
            match lock.ask(&request, Some(turn), &dead, &[]).answer {
                Answer::Held(fence) => entered(&mut held, fence, weight, instance)?,
                other => {
                    prop_assert_eq!(other, Answer::Waiting(turn));
                    waiting.push((turn, weight, instance));
                }
            }
        }
        let mut rounds = 0;
        while !(held.is_empty() && waiting.is_empty()) {
            rounds += 1;
            prop_assert!(rounds < 1_000, "stuck: {:?} {:?}", lock.row(), lock.line);
            if let Some((fence, ..)) = held.pop() {
                prop_assert!(lock.release(fence).ours);
            }
            // Offers to the slow end, and are made again.
            lock.now += OFFER;
            let to_wake = numbers(&lock.look(&dead).to_wake);
            for number in to_wake {
                let Some(at) = waiting.iter().position(|waiter| waiter.0.number == number) else { continue };
                let (turn, weight, instance) = waiting[at];
                let request = LockRequest { owner: lock.owners[&turn.number].clone(), ..request(rule(weight), 0, instance) };
                if let Answer::Held(fence) = lock.ask(&request, Some(turn), &dead, &[]).answer {
                    waiting.remove(at);
                    entered(&mut held, fence, weight, instance)?;
                }
            }
        }
        lock.look(&dead);
        prop_assert!(lock.row.is_none() && lock.line.is_empty(), "{:?} {:?}", lock.row, lock.line);
    }

    #[test]
    fn arbitrary_rows_never_panic(
        payload in prop::collection::vec(any::<u8>(), 0..200),
        sound in any::<bool>(),
        crowded in any::<bool>(),
        waiter in prop::collection::vec(any::<u8>(), 0..40),
        holder in prop::collection::vec(any::<u8>(), 0..90),
    ) {
        let mut payload = payload;
        if let (true, Some(head)) = (sound, payload.first_chunk_mut()) {
            *head = [3, 0, 0, u8::from(crowded)];
        }
        let (id, due) = (HolderId { owner: 7, number: 1 }, Due::Held { instance: 1, at: 0 });
        let holder = HolderRow { id, due, payload: holder };
        let waiter = Waiter { turn: 3, ticket: 0, until: 9, instance: 4, payload: waiter };
        let mut lock = Bench { row: Some((0, 0, payload)), line: [((3, 0), waiter)].into(), ..Bench::default() };
        lock.is_arbitrary = true;
        lock.holders.insert(id, Some(holder));
        lock.index.insert((due, id));
        lock.owners.insert(1, Owner(7));
        lock.release(1);
        lock.renew(1, 5);
        lock.look(&[1]);
        lock.leave(3);
        lock.enter(Lock, 1);
        lock.accept(Lock, 1, Turn { number: 3, since: 0 });
    }
}

#[test]
fn holders_whose_rows_were_lost_enter_once_more() {
    // Some of them have rows of their own.
    let mut lock = Bench::default();
    let held: Vec<u64> = (0..20).map(|owner| lock.held(Semaphore(20), owner)).collect();
    lock.lose_all();
    assert!(held.iter().all(|number| lock.renew_of(0, 1, *number, 2 * LEASE)));
    assert_eq!(lock.places().len(), 20);
    assert!(held.iter().all(|number| lock.renew(*number, 2 * LEASE)), "and then as ever");
    assert_eq!(lock.places().len(), 20);
    // When nobody else can hold it any more, it goes on.
    lock.now = lock.grants_from;
    let turn = lock.joined(Semaphore(20), 99, 1);
    let released = lock.release(held[7]);
    assert!(released.ours && numbers(&released.to_wake) == [turn.number]);
    assert!(matches!(lock.accept(Semaphore(20), 99, turn), Answer::Held(_)));
}

#[test]
fn an_owner_that_was_inside_twice_enters_twice_more() {
    let mut lock = Bench::default();
    let number = lock.held(OneOwner, 1);
    assert_eq!(lock.enter(OneOwner, 1), Answer::Held(number));
    lock.lose_all();
    assert!(lock.renew_of(0, 1, number, 2 * LEASE) && lock.renew_of(0, 2, number, 2 * LEASE));
    assert_eq!((lock.places()[0].entered, lock.places()[0].instance), (2, 0));
    assert!(lock.release(number).ours);
    assert_eq!(lock.places().len(), 1);
    assert!(lock.release(number).ours);
    assert!(lock.places().is_empty());
}

#[test]
fn who_leaves_before_entering_once_more_has_held_to_the_end_and_who_comes_too_late_has_not() {
    let mut lock = Bench::default();
    let (first, second) = (lock.held(Semaphore(2), 1), lock.held(Semaphore(2), 2));
    lock.lose_all();
    assert!(lock.release_of(0, first));
    assert!(lock.places().is_empty());
    lock.now = lock.grants_from;
    assert!(!lock.renew_of(0, 1, second, LEASE) && !lock.release_of(0, second));
    assert!(lock.places().is_empty());
}

#[test]
fn who_may_have_been_replaced_does_not_enter_once_more() {
    let mut lock = Bench::default();
    let stopped = lock.held(Lock, 1);
    lock.now = LEASE;
    let second = lock.held(Lock, 2);
    lock.lose_all();
    // Its own lease was over when the second one entered.
    assert!(!lock.renew_of(0, 1, stopped, LEASE) && !lock.release_of(0, stopped));
    let mut renewal = lock.renewal(0, 1, second, LEASE);
    renewal.entered.lease_end = 2 * LEASE;
    assert!(lock.apply(|found, line, now| renew(found, line, now, &renewal)).ours);
    assert_eq!(lock.places().len(), 1);
}
