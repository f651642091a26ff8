//! The transitions of a lock's row.

use super::{
    attempt::{
        Answer, Asked, Entered, LockRequest, Looked, Moment, OFFER, Released, Renewal, Renewed, Transition, Turn,
    },
    draft::{Draft, NO_NUMBER_YET, NOBODY},
    encoding::{self, LockRow, Place, ToWake},
};
use crate::{
    lock::{owner::Owner, rule::Rule},
    store::{Change, Found, WaitingLine},
};

/// Tries to enter, and joins the line if that is not possible. `turn` is its own in the line, if it has waited before.
pub(crate) fn ask<R: Rule>(
    found: Found<'_>,
    line: &WaitingLine<'_>,
    moment: Moment<'_>,
    request: &LockRequest<R>,
    label: &[u8],
    turn: Option<Turn>,
) -> Transition<Asked> {
    let lease = moment.now.saturating_add(request.lease);
    let read = LockRow::read(found);
    let damaged = read.is_none();
    let mut draft = Draft::new(read.unwrap_or_else(|| LockRow::unknown(moment.now, lease)), line, moment);
    draft.places.changed = damaged;
    draft.tidy();
    let tidied = draft.places.changed;
    let answer =
        draft.enter_again(request, lease, turn).or_else(|| draft.accept(request, turn?.number)).unwrap_or_else(|| {
            let first = turn.is_none() && draft.places.row.waiting == 0;
            let number = turn.map_or(NO_NUMBER_YET, |turn| turn.number);
            let won = if first { draft.enter(request) } else { draft.offer_places(Some((number, request)), tidied) };
            match won {
                Some(fence) => Answer::Held(fence),
                None if draft.places.has_too_many => Answer::TooManyHolders,
                None => draft.wait(request, turn),
            }
        });
    if answer == Answer::QueueFull {
        draft.suspect_waiters();
    }
    let (wait, suspects) = match answer {
        Answer::Held(_) => (None, Vec::new()),
        _ => (draft.places.row.wait(moment.now), draft.suspects()),
    };
    draft.places.row.tag = request.tag;
    let (to_wake, change, steps) = draft.finish(label);
    (Asked { answer, generation: line.generation(), wait, to_wake, suspects }, change, steps)
}

/// Leaves once. If the place was lost before, nothing changes. `offers`: what is free is offered to the waiters, for
/// which the row may need more room.
pub(crate) fn release(
    found: Found<'_>,
    line: &WaitingLine<'_>,
    now: u64,
    entered: Entered,
    offers: bool,
) -> Transition<Released> {
    if entered.lost_its_row(line, now) {
        // It was held until now, since nobody else was let in, but has no row to leave.
        return (Released { ours: true, to_wake: Vec::new() }, Change::Keep, Vec::new());
    }
    let Some(row) = LockRow::read(found) else {
        return (Released { ours: false, to_wake: Vec::new() }, Change::Keep, Vec::new());
    };
    let mut draft = Draft::new(row, line, Moment { now, dead: &[], is_held_here: &|_| false });
    let ours = draft.leave_place(entered.place);
    if ours && offers {
        draft.offer_places(NOBODY, true);
    }
    let (to_wake, change, steps) = draft.finish(label_of(found));
    (Released { ours, to_wake }, change, steps)
}

/// Gives up a turn in the line, or the offer that came of it.
pub(crate) fn leave(
    found: Found<'_>,
    line: &WaitingLine<'_>,
    now: u64,
    owner: &Owner,
    number: u64,
) -> Transition<Vec<ToWake>> {
    let Some(row) = LockRow::read(found) else { return (Vec::new(), Change::Keep, Vec::new()) };
    let mut draft = Draft::new(row, line, Moment { now, dead: &[], is_held_here: &|_| false });
    draft.give_up(owner, number);
    draft.finish(label_of(found))
}

/// Extends the lease, for a guard that lives. A place whose row was lost with all others is entered once more.
pub(crate) fn renew(found: Found<'_>, line: &WaitingLine<'_>, now: u64, renewal: &Renewal) -> Transition<Renewed> {
    let Renewal { entered, lease, instance, weight, .. } = *renewal;
    let (id, lease) = (entered.place, now.saturating_add(lease));
    let Some(row) = LockRow::read(found) else {
        return (Renewed { ours: false, entered }, Change::Keep, Vec::new());
    };
    let mut draft = Draft::new(row, line, Moment { now, dead: &[], is_held_here: &|_| false });
    let enters_once_more = entered.lost_its_row(line, now);
    let found_place = draft.places.find(id).filter(Place::is_held);
    let ours = found_place.is_some() || enters_once_more;
    if let Some(mut place) = found_place {
        place.lease = place.lease.max(lease);
        if enters_once_more {
            // Another guard of the owner has entered before this one.
            place.entered = place.entered.saturating_add(1);
            if place.instance != instance {
                place.instance = 0;
            }
        } else if place.entered == 1 {
            // The owner is inside only once: from this instance.
            place.instance = instance;
        }
        draft.places.put(place);
    } else if enters_once_more {
        draft.places.add(Place::held(id, now, lease, instance, weight));
    }
    let label = if enters_once_more { &renewal.label[..] } else { label_of(found) };
    let (_, change, steps) = draft.finish(label);
    let entered = Entered { place: id, generation: line.generation(), lease_end: lease };
    (Renewed { ours, entered }, change, steps)
}

/// Looks whether a lease that is over, or a death, has made room.
pub(crate) fn look(found: Found<'_>, line: &WaitingLine<'_>, moment: Moment<'_>) -> Transition<Looked> {
    let Some(row) = LockRow::read(found) else {
        let unknown = Looked { to_wake: Vec::new(), suspects: Vec::new(), next: u64::MAX, mark: 0 };
        return (unknown, Change::Keep, Vec::new());
    };
    let mut draft = Draft::new(row, line, moment);
    draft.tidy();
    let tidied = draft.places.changed;
    let lapsed = draft.places.to_wake.len();
    draft.offer_places(NOBODY, tidied);
    // Waiters with an offer are woken once more, since the first wake-up may be lost.
    draft.places.to_wake.truncate(lapsed);
    draft.places.to_wake.extend(draft.places.offered());
    let suspects = draft.suspects();
    let next = draft.places.next_end();
    let mark = draft.places.row.mark();
    let (to_wake, change, steps) = draft.finish(label_of(found));
    (Looked { to_wake, suspects, next, mark }, change, steps)
}

/// Whether an offer can have been made and ended between two looks.
pub(crate) fn may_have_lapsed(before: u64, now: u64) -> bool {
    now.saturating_sub(before) >= OFFER
}

fn label_of(found: Found<'_>) -> &[u8] {
    match found {
        Found::Row(row) => encoding::label(row.payload),
        Found::Absent | Found::Lost { .. } | Found::Damaged => &[],
    }
}
