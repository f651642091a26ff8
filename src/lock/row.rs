//! A lock's row and its transitions: pure functions, tested with no cache, no clock, no runtime.
//!
//! The row has a *place* for each who holds the lock, and who waits has a row of its own in the line behind it. Whoever
//! makes room offers it to the first in the line, in the same transaction: the offer takes the place until it is accepted or
//! over. So nobody overtakes, and a lock is never renewed for one who did not take it.

pub(super) mod form;
#[cfg(test)]
mod tests;
mod work;

use super::rule::{Owner, Rule};
use crate::cache::{Change, Found, Line, Step};
use form::{LockRow, Place};
use std::time::Duration;
use work::{LAST, NOBODY, Work};

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
    /// As long as it is the same, nobody has entered, left or been offered anything.
    pub(crate) mark: u64,
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
        Found::Row(row) => form::label(row.payload),
        Found::Absent | Found::Damaged => &[],
    }
}
