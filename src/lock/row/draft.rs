//! A row while it is changed: holders leave and enter, and free places are offered to waiters.

use super::{
    attempt::{Answer, LockRequest, Moment, OFFER, Transition, Turn, WaitOptions},
    encoding::{LockRow, Place, Standing, Ticket, ToWake, WAITER},
    places::Places,
};
use crate::{
    lock::{
        owner::Owner,
        rule::{Demand, HOLDERS_MAX, Lock, Rule},
    },
    store::{Change, HolderId, Step, Waiter, WaitingLine},
};

/// No candidate, with a type.
pub(super) const NOBODY: Option<(u64, &LockRequest<Lock>)> = None;
/// Where the line is full, so many waiters at its head are checked for being alive.
const SUSPECTS: usize = 8;
/// Waiters that one transition takes from the line at most. The next one goes on.
const LEAVES: usize = 256;
/// The number of a candidate that has none yet.
pub(super) const NO_NUMBER_YET: u64 = u64::MAX;

fn has_left(steps: &[Step], number: u64) -> bool {
    steps.iter().any(|step| matches!(step, Step::Leave { turn, .. } if *turn == number))
}

/// A row while it is changed.
pub(super) struct Draft<'a> {
    pub(super) places: Places<'a>,
    steps: Vec<Step>,
    /// Instances of waiters whose end would make room.
    instances_ahead: Vec<u64>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(row: LockRow, line: &'a WaitingLine<'a>, moment: Moment<'a>) -> Draft<'a> {
        Draft { places: Places::new(row, line, moment), steps: Vec::new(), instances_ahead: Vec::new() }
    }

    /// Removes the places and the first waiters whose time is over or whose instance is dead.
    pub(super) fn tidy(&mut self) {
        let dead = self.places.moment.dead;
        self.places.tidy();
        if dead.is_empty() {
            return;
        }
        for waiter in self.places.line.first(SUSPECTS).iter().filter(|waiter| dead.contains(&waiter.instance)) {
            self.leave_line(waiter.turn);
        }
    }

    /// Adds the first waiters to the suspects: if they are dead, the line is shorter than it seems.
    pub(super) fn suspect_waiters(&mut self) {
        self.instances_ahead.extend(self.places.line.first(SUSPECTS).iter().map(|waiter| waiter.instance));
    }

    /// An owner that is inside already enters once more, and waits no longer.
    pub(super) fn enter_again<R: Rule>(
        &mut self,
        request: &LockRequest<R>,
        lease: u64,
        turn: Option<Turn>,
    ) -> Option<Answer> {
        if request.is_new_owner {
            return None;
        }
        let mut place = self.places.find_own(&request.owner)?;
        let holders = match request.rule.demand() {
            Some(_) => vec![place.holder()],
            None => self.places.holders()?,
        };
        if !request.rule.admits(&holders, &request.owner) {
            return None;
        }
        place.entered = place.entered.checked_add(1)?;
        place.lease = place.lease.max(lease);
        if place.instance != request.instance {
            // The place belongs to two instances now. The death of one must not take it from the other, so only its
            // lease ends it.
            place.instance = 0;
        }
        let fence = place.number;
        self.places.put(place);
        if let Some(turn) = turn {
            self.give_up(&request.owner, turn.number);
        }
        Some(Answer::Held(fence))
    }

    /// Leaves the line, or the offer that came of it.
    pub(super) fn give_up(&mut self, owner: &Owner, number: u64) {
        match self.find_offered(owner, number) {
            Some(place) => self.places.take(place.id()),
            None if self.is_in_line(number) => self.leave_line(number),
            None => return,
        }
        self.offer_places(NOBODY, true);
    }

    fn find_offered(&mut self, owner: &Owner, number: u64) -> Option<Place> {
        self.places.find(HolderId { owner: owner.0, number }).filter(Place::is_offered)
    }

    /// Takes the place that was offered to the number, if there is one.
    pub(super) fn accept<R: Rule>(&mut self, request: &LockRequest<R>, number: u64) -> Option<Answer> {
        let offer = self.find_offered(&request.owner, number)?;
        self.places.take(offer.id());
        if offer.standing == Standing::Offered {
            let fence = self.hold(request);
            // There may be more room than was offered at once.
            self.offer_places(NOBODY, false);
            return Some(Answer::Held(fence));
        }
        // Its own rule decides, and the waiters behind it have waited for that.
        let fence = self.enter(request)?;
        self.offer_places(NOBODY, true);
        Some(Answer::Held(fence))
    }

    /// Enters if the rule allows it.
    pub(super) fn enter<R: Rule>(&mut self, request: &LockRequest<R>) -> Option<u64> {
        let fits = match request.rule.demand() {
            Some(demand) => demand.fits(self.places.row.taken()),
            None => self.places.row.is_known() && self.is_admitted(request),
        };
        fits.then(|| self.hold(request))
    }

    fn is_admitted<R: Rule>(&mut self, request: &LockRequest<R>) -> bool {
        let Some(holders) = self.places.holders() else { return false };
        let admits = request.rule.admits(&holders, &request.owner);
        self.places.has_too_many |= admits && holders.len() >= HOLDERS_MAX;
        admits && !self.places.has_too_many
    }

    /// Makes a place; its number is the fence.
    fn hold<R: Rule>(&mut self, request: &LockRequest<R>) -> u64 {
        let (now, number) = (self.places.moment.now, self.places.line.number());
        let stays = if request.at_least == 0 { 0 } else { now.saturating_add(request.at_least) };
        let id = HolderId { owner: request.owner.0, number };
        let lease = now.saturating_add(request.lease);
        let place = Place::held(id, now, lease, request.instance, request.weight());
        self.places.add(Place { stays, ..place });
        number
    }

    /// Offers free places to the first waiters. A candidate stands in the line too, without a row or with the row of
    /// its number. It enters at once if it is its turn; then the answer is its fence.
    ///
    /// `eager`: something has changed, so a waiter whose rule only its own process knows is to ask again.
    pub(super) fn offer_places<R: Rule>(
        &mut self,
        mut candidate: Option<(u64, &LockRequest<R>)>,
        eager: bool,
    ) -> Option<u64> {
        if candidate.is_none() && self.places.row.waiting == 0 {
            return None;
        }
        let (mut won, mut behind, left) = (None, None, self.steps.len());
        loop {
            let most = if behind.is_none() { 2 } else { 16 };
            let waiters = match behind {
                None => self.places.line.first(most),
                Some(turn) => self.places.line.behind(turn, u64::MAX, most),
            };
            let is_end = waiters.len() < most;
            for waiter in waiters {
                behind = Some(waiter.turn);
                if self.steps.len() >= left + LEAVES {
                    self.places.row.waiting = self.places.row.waiting.max(1);
                    return won;
                }
                if has_left(&self.steps[..left], waiter.turn) {
                    continue;
                }
                if let Some((number, request)) = candidate.filter(|(number, _)| *number <= waiter.turn) {
                    won = Some(self.enter(request)?);
                    candidate = None;
                    if number == waiter.turn {
                        self.leave_line(number);
                        continue;
                    }
                }
                let gone = waiter.until <= self.places.moment.now || self.places.moment.dead.contains(&waiter.instance);
                match Ticket::read(&waiter).filter(|_| !gone) {
                    None => self.leave_line(waiter.turn),
                    Some(ticket) if self.may_offer(&ticket, eager) => self.offer(&waiter, ticket),
                    Some(_) => {
                        self.places.row.waiting = self.places.row.waiting.max(1);
                        self.instances_ahead.push(waiter.instance);
                        return won;
                    }
                }
            }
            if is_end {
                // The line is empty, whatever its count says.
                self.places.changed |= self.places.row.waiting != 0;
                self.places.row.waiting = 0;
                return won.or_else(|| self.enter(candidate?.1));
            }
        }
    }

    fn may_offer(&self, ticket: &Ticket, eager: bool) -> bool {
        let is_asked = self.places.row.places.iter().any(|place| place.standing == Standing::Asked);
        !is_asked && ticket.demand.map_or(eager, |demand| demand.fits(self.places.row.taken()))
    }

    fn offer(&mut self, waiter: &Waiter, ticket: Ticket) {
        let now = self.places.moment.now;
        self.leave_line(waiter.turn);
        self.places.add(Place {
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
        self.places.to_wake.push(ToWake { instance: waiter.instance, number: waiter.turn });
    }

    /// Joins the line, or says why not. A waiter that is in the line already stays, with a row whose time begins anew.
    pub(super) fn wait<R: Rule>(&mut self, request: &LockRequest<R>, turn: Option<Turn>) -> Answer {
        let now = self.places.moment.now;
        if turn.is_none()
            && let Some(refusal) = self.refusal(request.wait_options)
        {
            return refusal;
        }
        let turn = turn.unwrap_or_else(|| Turn { number: self.places.line.number(), since: now });
        let others = self.places.row.waiting.saturating_sub(u32::from(self.is_in_line(turn.number)));
        self.places.row.waiting = others.saturating_add(1);
        let ticket = Ticket { owner: request.owner.clone(), since: turn.since, demand: request.rule.demand() };
        self.steps.push(Step::Join(ticket.into_waiter(turn.number, now.saturating_add(WAITER), request.instance)));
        self.places.changed = true;
        Answer::Waiting(turn)
    }

    /// Why a newcomer does not join the line, if it does not.
    fn refusal(&self, options: WaitOptions) -> Option<Answer> {
        if !options.waits {
            return Some(Answer::Busy);
        }
        if self.places.row.waiting >= options.queue_at_most {
            return Some(Answer::QueueFull);
        }
        let wait = self.places.row.wait(self.places.moment.now).filter(|_| self.places.row.mean > 0);
        wait.is_some_and(|wait| wait > options.deadline).then_some(Answer::Busy)
    }

    fn is_in_line(&self, number: u64) -> bool {
        let Some(before) = number.checked_sub(1) else { return false };
        self.places.line.behind(before, u64::MAX, 1).first().is_some_and(|waiter| waiter.turn == number)
    }

    fn leave_line(&mut self, number: u64) {
        self.steps.push(Step::Leave { turn: number, ticket: 0 });
        self.places.row.waiting = self.places.row.waiting.saturating_sub(1);
        self.places.changed = true;
    }

    pub(super) fn leave_place(&mut self, id: HolderId) -> bool {
        let Some(mut place) = self.places.find(id).filter(Place::is_held) else { return false };
        let now = self.places.moment.now;
        place.entered = place.entered.saturating_sub(1);
        if place.entered > 0 {
            self.places.put(place);
            return true;
        }
        let held = now.max(place.stays).saturating_sub(place.since);
        if place.stays > now {
            place.linger();
            self.places.put(place);
        } else {
            self.places.take(id);
        }
        self.places.row.learn(held);
        true
    }

    /// The instances whose end would make room, without those that are known to have ended and have left nothing.
    pub(super) fn suspects(&self) -> Vec<u64> {
        let all = self.places.instances().into_iter().chain(self.instances_ahead.iter().copied());
        let is_gone = |at: &u64| self.places.moment.dead.contains(at) && !self.places.is_unfinished;
        let mut suspects: Vec<u64> = all.filter(|at| *at != 0 && !is_gone(at)).collect();
        suspects.sort_unstable();
        suspects.dedup();
        suspects
    }

    pub(super) fn finish(mut self, label: &[u8]) -> Transition<Vec<ToWake>> {
        let own_rows = self.places.own_row_steps();
        self.steps.extend(own_rows);
        let change =
            if self.places.changed { self.places.row.write(self.places.moment.now, label) } else { Change::Keep };
        (self.places.to_wake, change, self.steps)
    }
}
