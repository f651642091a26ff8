//! A lock's row and its transitions: pure functions, tested with no cache, no clock, no runtime.
//!
//! The row has a *place* for each who holds the lock, and who waits has a row of its own in the line behind it. Whoever
//! makes room offers it to the first in the line, in the same transaction: the offer takes the place until it is accepted or
//! over. So nobody overtakes, and a lock is never renewed for one who did not take it.

pub(super) mod form;
#[cfg(test)]
mod tests;

use super::rule::{Demand, Holder, Owner, Rule};
use crate::cache::{Change, Found, Line, Step, Waiter};
use form::{LockRow, PLACES_MAX, Place, Standing, Ticket};
use std::time::Duration;

/// How long a place is kept for the one that it is offered to.
pub(crate) const OFFER: u64 = Duration::from_millis(250).as_nanos() as u64;
/// How long the row of a waiter counts, who asks again far more often than that while it lives.
const WAITER: u64 = Duration::from_secs(600).as_nanos() as u64;
/// For how long a lease that is over is taken as renewed, where the guard still lives in this process.
const STILL_HELD: u64 = Duration::from_secs(1).as_nanos() as u64;

/// What an attempt wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish<R> {
    pub(crate) rule: R,
    pub(crate) owner: Owner,
    /// In ns.
    pub(crate) lease: u64,
    /// For how many ns it is held at least.
    pub(crate) at_least: u64,
    /// Digest of its tag, 0 for none.
    pub(crate) tag: u64,
    /// Where it is asked from, 0 if that cannot be told.
    pub(crate) instance: u64,
    pub(crate) manners: Manners,
}

/// Whether and how long one is ready to wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    pub(crate) waits: bool,
    /// Joins the line if fewer than so many wait.
    pub(crate) queue_at_most: u32,
    /// Joins the line if it is not expected to take longer, in ns.
    pub(crate) deadline: u64,
}

/// When, and what is known of others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment<'a> {
    pub(crate) now: u64,
    /// Instances that are gone.
    pub(crate) dead: &'a [u64],
    /// The numbers of this process' guards: their leases do not end while they live.
    pub(crate) held_here: &'a [u64],
}

/// One that was offered a place or has lost an offer: it should ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) instance: u64,
    pub(crate) number: u64,
}

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) number: u64,
    /// Machine time in ns since when it waits.
    pub(crate) since: u64,
}

/// What an attempt led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The number of its place is the fence.
    Held(u64),
    Waiting(Turn),
    Busy,
    /// As many wait as may.
    QueueFull,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) answer: Answer,
    /// In how many ns it may be one's turn, if that can be guessed.
    pub(crate) wait: Option<u64>,
    pub(crate) called: Vec<Called>,
    /// Who is in the way: instances that may be gone.
    pub(crate) strangers: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) called: Vec<Called>,
    pub(crate) strangers: Vec<u64>,
    /// When the next place ends by itself, in ns of machine time.
    pub(crate) next: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Whether it was held until now.
    pub(crate) ours: bool,
    pub(crate) called: Vec<Called>,
}

type Transition<T> = (T, Change, Vec<Step>);

/// Tries to enter, and joins the line if that is not possible. `turn` is its own in the line, if it has waited before.
pub(crate) fn ask<R: Rule>(
    found: Found<'_>,
    line: &Line<'_>,
    moment: Moment<'_>,
    wish: &Wish<R>,
    label: &[u8],
    turn: Option<Turn>,
) -> Transition<Asked> {
    let lease = moment.now.saturating_add(wish.lease);
    let read = LockRow::read(found);
    let damaged = read.is_none();
    let mut work = Work::new(read.unwrap_or_else(|| LockRow::unknown(moment.now, lease)), line, moment);
    work.changed = damaged;
    work.tidy();
    let tidied = work.changed;
    let answer = work.enter_again(wish, lease, turn).or_else(|| work.accept(wish, turn?.number)).unwrap_or_else(|| {
        let first = turn.is_none() && work.row.waiting == 0;
        let number = turn.map_or(LAST, |turn| turn.number);
        let won = if first { work.enter(wish) } else { work.settle(Some((number, wish)), tidied) };
        match won {
            Some(fence) => Answer::Held(fence),
            None => work.wait(wish, turn),
        }
    });
    if answer == Answer::QueueFull {
        work.suspect_waiters();
    }
    let (wait, strangers) = match answer {
        Answer::Held(_) => (None, Vec::new()),
        _ => (work.row.wait(moment.now), work.strangers()),
    };
    work.row.tag = wish.tag;
    let (called, change, steps) = work.finish(label);
    (Asked { answer, wait, called, strangers }, change, steps)
}

/// Leaves once. If the place was lost before, nothing changes. `offers`: those who wait are offered what is free, for which
/// the row may need more room.
pub(crate) fn release(found: Found<'_>, line: &Line<'_>, now: u64, number: u64, offers: bool) -> Transition<Released> {
    let Some(row) = LockRow::read(found) else {
        return (Released { ours: false, called: Vec::new() }, Change::Keep, Vec::new());
    };
    let mut work = Work::new(row, line, Moment { now, dead: &[], held_here: &[] });
    let ours = work.leave_place(number);
    if ours && offers {
        work.settle(NOBODY, true);
    }
    let (called, change, steps) = work.finish(label_of(found));
    (Released { ours, called }, change, steps)
}

/// Gives up waiting, or the offer that came of it.
pub(crate) fn leave(found: Found<'_>, line: &Line<'_>, now: u64, number: u64) -> Transition<Vec<Called>> {
    let Some(row) = LockRow::read(found) else { return (Vec::new(), Change::Keep, Vec::new()) };
    let mut work = Work::new(row, line, Moment { now, dead: &[], held_here: &[] });
    work.give_up(number);
    work.finish(label_of(found))
}

/// Extends the lease, for a guard that lives in the instance. `false`: the place is lost.
pub(crate) fn renew(found: Found<'_>, now: u64, number: u64, lease: u64, instance: u64) -> (bool, Change) {
    let Some(mut row) = LockRow::read(found) else { return (false, Change::Keep) };
    let Some(place) = row.places.iter_mut().find(|place| place.is_held_by(number)) else {
        return (false, Change::Keep);
    };
    place.lease = place.lease.max(now.saturating_add(lease));
    if place.entered == 1 {
        // Of those who have entered, the others have left.
        place.instance = instance;
    }
    (true, row.write(now, label_of(found)))
}

/// Sees whether time or a death has made room.
pub(crate) fn look(found: Found<'_>, line: &Line<'_>, moment: Moment<'_>) -> Transition<Looked> {
    let Some(row) = LockRow::read(found) else {
        return (Looked { called: Vec::new(), strangers: Vec::new(), next: u64::MAX }, Change::Keep, Vec::new());
    };
    let mut work = Work::new(row, line, moment);
    work.tidy();
    let tidied = work.changed;
    let lapsed = work.called.len();
    work.settle(NOBODY, tidied);
    // Who has an offer is told once more: the first word may be lost.
    work.called.truncate(lapsed);
    work.called.extend(work.row.places.iter().filter(|place| place.is_offered()).map(Place::called));
    let strangers = work.strangers();
    let next = work.row.places.iter().map(|place| place.lease).min().unwrap_or(u64::MAX);
    let (called, change, steps) = work.finish(label_of(found));
    (Looked { called, strangers, next }, change, steps)
}

/// Whether an offer can have been made and ended between two looks.
pub(crate) fn may_have_lapsed(before: u64, now: u64) -> bool {
    now.saturating_sub(before) >= OFFER
}

fn label_of(found: Found<'_>) -> &[u8] {
    match found {
        Found::Row(row) => form::label(row.payload),
        Found::Absent | Found::Damaged => &[],
    }
}

/// A candidate that no one is.
const NOBODY: Option<(u64, &Wish<super::Lock>)> = None;
/// Of so many waiters at the head of the line it is asked whether they live, where the line is full.
const SUSPECTS: usize = 8;
/// The number of one who has none yet.
const LAST: u64 = u64::MAX;

fn has_left(steps: &[Step], number: u64) -> bool {
    steps.iter().any(|step| matches!(step, Step::Leave { turn, .. } if *turn == number))
}

/// A row while it is changed.
struct Work<'a> {
    row: LockRow,
    line: &'a Line<'a>,
    moment: Moment<'a>,
    changed: bool,
    steps: Vec<Step>,
    called: Vec<Called>,
    /// Instances of waiters whose end would make room.
    ahead: Vec<u64>,
}

impl<'a> Work<'a> {
    fn new(row: LockRow, line: &'a Line<'a>, moment: Moment<'a>) -> Work<'a> {
        Work { row, line, moment, changed: false, steps: Vec::new(), called: Vec::new(), ahead: Vec::new() }
    }

    /// Removes the places of those who are dead, gone for too long, or do not accept.
    fn tidy(&mut self) {
        let Moment { now, dead, held_here } = self.moment;
        let (called, mut changed) = (&mut self.called, false);
        self.row.places.retain_mut(|place| {
            let is_dead = dead.contains(&place.instance);
            if place.lease > now && !is_dead {
                return true;
            }
            changed = true;
            if place.is_held() && !is_dead && held_here.contains(&place.number) {
                place.lease = now.saturating_add(STILL_HELD);
                return true;
            }
            if place.is_held() && place.stays > now {
                place.linger();
                return true;
            }
            if place.is_offered() && !is_dead {
                called.push(place.called());
            }
            false
        });
        self.changed |= changed;
        if dead.is_empty() {
            return;
        }
        for waiter in self.line.first(SUSPECTS).iter().filter(|waiter| dead.contains(&waiter.instance)) {
            self.leave_line(waiter.turn);
        }
    }

    /// They may be why the line is so long.
    fn suspect_waiters(&mut self) {
        self.ahead.extend(self.line.first(SUSPECTS).iter().map(|waiter| waiter.instance));
    }

    fn holders(&self) -> Vec<Holder> {
        self.row.places.iter().map(Place::holder).collect()
    }

    /// An owner that is inside already enters once more, and waits no longer.
    fn enter_again<R: Rule>(&mut self, wish: &Wish<R>, lease: u64, turn: Option<Turn>) -> Option<Answer> {
        let at = self.row.places.iter().position(|place| place.is_held() && place.owner == wish.owner)?;
        if !wish.rule.admits(&self.holders(), &wish.owner) {
            return None;
        }
        let place = &mut self.row.places[at];
        place.entered = place.entered.checked_add(1)?;
        place.lease = place.lease.max(lease);
        if place.instance != wish.instance {
            // The end of either must not take the place from the other: it has an end of its own.
            place.instance = 0;
        }
        let fence = place.number;
        self.changed = true;
        if let Some(turn) = turn {
            self.give_up(turn.number);
        }
        Some(Answer::Held(fence))
    }

    /// Leaves the line, or the offer that came of it.
    fn give_up(&mut self, number: u64) {
        match self.row.places.iter().position(|place| place.is_offered_to(number)) {
            Some(at) => {
                self.row.places.remove(at);
                self.changed = true;
            }
            None if self.is_in_line(number) => self.leave_line(number),
            None => return,
        }
        self.settle(NOBODY, true);
    }

    /// Takes the place that was offered to the number, if there is one.
    fn accept<R: Rule>(&mut self, wish: &Wish<R>, number: u64) -> Option<Answer> {
        let at = self.row.places.iter().position(|place| place.is_offered_to(number))?;
        let offer = self.row.places.swap_remove(at);
        self.changed = true;
        if offer.standing == Standing::Offered {
            return Some(Answer::Held(self.hold(wish)));
        }
        // Its own rule decides, and those behind it have waited for that.
        let fence = self.enter(wish)?;
        self.settle(NOBODY, true);
        Some(Answer::Held(fence))
    }

    /// Enters if the rule allows it.
    fn enter<R: Rule>(&mut self, wish: &Wish<R>) -> Option<u64> {
        let fits = self.row.places.len() < PLACES_MAX
            && match wish.rule.demand() {
                Some(demand) => demand.fits(self.row.taken()),
                None => self.row.is_known() && wish.rule.admits(&self.holders(), &wish.owner),
            };
        fits.then(|| self.hold(wish))
    }

    /// Makes a place; its number is the fence.
    fn hold<R: Rule>(&mut self, wish: &Wish<R>) -> u64 {
        let (now, number) = (self.moment.now, self.line.number());
        self.changed = true;
        self.row.places.push(Place {
            owner: wish.owner.clone(),
            number,
            since: now,
            lease: now.saturating_add(wish.lease),
            stays: if wish.at_least == 0 { 0 } else { now.saturating_add(wish.at_least) },
            instance: wish.instance,
            entered: 1,
            weight: wish.rule.demand().map_or(1, Demand::weight),
            standing: Standing::Held,
        });
        number
    }

    /// Offers what is free to the first in the line. A candidate stands there too, without a row or with that of its number,
    /// and enters at once if it is its turn: the answer is its fence.
    ///
    /// `eager`: something has changed, so who goes by a rule of its own is to ask again.
    fn settle<R: Rule>(&mut self, mut candidate: Option<(u64, &Wish<R>)>, eager: bool) -> Option<u64> {
        if candidate.is_none() && self.row.waiting == 0 {
            return None;
        }
        let (mut won, mut behind, left) = (None, None, self.steps.len());
        loop {
            let most = if behind.is_none() { 2 } else { 16 };
            let waiters = match behind {
                None => self.line.first(most),
                Some(turn) => self.line.behind(turn, u64::MAX, most),
            };
            let is_end = waiters.len() < most;
            for waiter in waiters {
                behind = Some(waiter.turn);
                if has_left(&self.steps[..left], waiter.turn) {
                    continue;
                }
                if let Some((number, wish)) = candidate.filter(|(number, _)| *number <= waiter.turn) {
                    won = Some(self.enter(wish)?);
                    candidate = None;
                    if number == waiter.turn {
                        self.leave_line(number);
                        continue;
                    }
                }
                let gone = waiter.until <= self.moment.now || self.moment.dead.contains(&waiter.instance);
                match Ticket::read(&waiter).filter(|_| !gone) {
                    None => self.leave_line(waiter.turn),
                    Some(ticket) if self.may_offer(&ticket, eager) => self.offer(&waiter, ticket),
                    Some(_) => {
                        self.row.waiting = self.row.waiting.max(1);
                        self.ahead.push(waiter.instance);
                        return won;
                    }
                }
            }
            if is_end {
                // Nobody is left in the line, whatever its count says.
                self.changed |= self.row.waiting != 0;
                self.row.waiting = 0;
                return won.or_else(|| self.enter(candidate?.1));
            }
        }
    }

    fn may_offer(&self, ticket: &Ticket, eager: bool) -> bool {
        let is_asked = self.row.places.iter().any(|place| place.standing == Standing::Asked);
        !is_asked
            && self.row.places.len() < PLACES_MAX
            && ticket.demand.map_or(eager, |demand| demand.fits(self.row.taken()))
    }

    fn offer(&mut self, waiter: &Waiter, ticket: Ticket) {
        let now = self.moment.now;
        self.leave_line(waiter.turn);
        self.row.places.push(Place {
            owner: ticket.owner,
            number: waiter.turn,
            since: now,
            lease: now.saturating_add(OFFER),
            stays: 0,
            instance: waiter.instance,
            entered: 0,
            weight: ticket.demand.map_or(1, Demand::weight),
            standing: if ticket.demand.is_some() { Standing::Offered } else { Standing::Asked },
        });
        self.called.push(Called { instance: waiter.instance, number: waiter.turn });
    }

    /// Joins the line, or says why not. Who stands there already stays, with a row that counts from now on.
    fn wait<R: Rule>(&mut self, wish: &Wish<R>, turn: Option<Turn>) -> Answer {
        let now = self.moment.now;
        let manners = wish.manners;
        if turn.is_none() && !manners.waits {
            return Answer::Busy;
        }
        if turn.is_none() && self.row.waiting >= manners.queue_at_most {
            return Answer::QueueFull;
        }
        let too_late = self.row.mean > 0 && self.row.wait(now).is_some_and(|wait| wait > manners.deadline);
        if turn.is_none() && too_late {
            return Answer::Busy;
        }
        let turn = turn.unwrap_or_else(|| Turn { number: self.line.number(), since: now });
        let others = self.row.waiting.saturating_sub(u32::from(self.is_in_line(turn.number)));
        self.row.waiting = others.saturating_add(1);
        let ticket = Ticket { owner: wish.owner.clone(), since: turn.since, demand: wish.rule.demand() };
        self.steps.push(Step::Join(ticket.into_waiter(turn.number, now.saturating_add(WAITER), wish.instance)));
        self.changed = true;
        Answer::Waiting(turn)
    }

    fn is_in_line(&self, number: u64) -> bool {
        let Some(before) = number.checked_sub(1) else { return false };
        self.line.behind(before, u64::MAX, 1).first().is_some_and(|waiter| waiter.turn == number)
    }

    fn leave_line(&mut self, number: u64) {
        self.steps.push(Step::Leave { turn: number, ticket: 0 });
        self.row.waiting = self.row.waiting.saturating_sub(1);
        self.changed = true;
    }

    fn leave_place(&mut self, number: u64) -> bool {
        let Some(at) = self.row.places.iter().position(|place| place.is_held_by(number)) else { return false };
        let now = self.moment.now;
        let place = &mut self.row.places[at];
        self.changed = true;
        place.entered = place.entered.saturating_sub(1);
        if place.entered > 0 {
            return true;
        }
        let held = now.saturating_sub(place.since);
        if place.stays > now {
            place.linger();
        } else {
            self.row.places.swap_remove(at);
        }
        self.row.learn(held);
        true
    }

    /// The instances whose end would make room, without those that are known to have ended.
    fn strangers(&self) -> Vec<u64> {
        let all = self.row.places.iter().map(|place| place.instance).chain(self.ahead.iter().copied());
        let mut strangers: Vec<u64> = all.filter(|at| *at != 0 && !self.moment.dead.contains(at)).collect();
        strangers.sort_unstable();
        strangers.dedup();
        strangers
    }

    fn finish(self, label: &[u8]) -> Transition<Vec<Called>> {
        let change = if self.changed { self.row.write(self.moment.now, label) } else { Change::Keep };
        (self.called, change, self.steps)
    }
}
