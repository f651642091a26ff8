//! The transitions of a lock's row.

use super::{
    attempt::{Answer, Asked, Looked, Moment, OFFER, Released, Transition, Turn, Wish},
    draft::{LAST, NOBODY, Work},
    encoding::{self, Called, LockRow, Place},
};
use crate::{
    cache::{Change, Found, Line},
    lock::rule::Rule,
};

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
        let unknown = Looked { called: Vec::new(), strangers: Vec::new(), next: u64::MAX, mark: 0 };
        return (unknown, Change::Keep, Vec::new());
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
    let mark = work.row.mark();
    let (called, change, steps) = work.finish(label_of(found));
    (Looked { called, strangers, next, mark }, change, steps)
}

/// Whether an offer can have been made and ended between two looks.
pub(crate) fn may_have_lapsed(before: u64, now: u64) -> bool {
    now.saturating_sub(before) >= OFFER
}

fn label_of(found: Found<'_>) -> &[u8] {
    match found {
        Found::Row(row) => encoding::label(row.payload),
        Found::Absent | Found::Damaged => &[],
    }
}
