//! The decision itself: one row, one pure function, one turn.

use super::{
    cell::{Cell, Quotas, Refusal, RefusedBy},
    row::{Opened, Times},
    slots::Slots,
    terms::{Ask, MOST_WAITING},
};
use crate::store::{Change, Found, Step, Waiter, WaitingLine};
use std::time::Duration;

/// So many waiters of a name are looked at.
const LOOK: usize = 256;
/// Instances that one decision asks after at most: some 200 microseconds, at most every 25 ms.
const ASKED_AFTER: usize = 64;

/// What a transaction says of an [`Ask`].
pub(super) struct Reply {
    /// When its turn is, how long that is to wait, and what was taken.
    pub(super) decided: Result<(u64, Duration, Slots), Refusal>,
    /// When the request went, if it is waited for.
    pub(super) sent: Option<u64>,
    pub(super) quotas: Quotas,
    /// Instances of other processes that wait in front.
    pub(super) suspects: Vec<u64>,
    /// Those that are known to be dead: some of their turns may still stand in the line.
    pub(super) dead: Vec<u64>,
}

/// The part of an [`Ask`] that runs in the transaction.
pub(super) struct Transition {
    pub(super) ask: Ask,
    pub(super) times: Times,
    pub(super) instance: u64,
    pub(super) ticket: u64,
    /// Instances whose turns will not be taken.
    pub(super) dead: Vec<u64>,
    /// What was taken before for the same request, whose turn has come.
    pub(super) held: Option<Held>,
}

impl Transition {
    pub(super) fn run(&self, found: Found<'_>, line: &WaitingLine<'_>, now: u64) -> (Reply, Change, Vec<Step>) {
        let (ask, terms) = (&self.ask, &*self.ask.terms);
        let mut opened = Opened::new(found, &terms.limits, self.times, now);
        let mut steps = Vec::new();
        if !self.dead.is_empty() {
            self.bury(&mut opened.cell, line, now, &mut steps);
        }
        if let Some(Held { slots, row }) = &self.held {
            steps.extend(row.map(|(turn, ticket)| Step::Leave { turn, ticket }));
            if opened.cell.is_open(now) {
                opened.cell.sent(now);
                let quotas = opened.cell.quotas(&terms.limits, None, now);
                let decided = Ok((now, Duration::ZERO, slots.clone()));
                let reply = Reply { decided, sent: Some(now), quotas, suspects: Vec::new(), dead: Vec::new() };
                return (reply, opened.put(terms.tag, terms.retention), steps);
            }
            opened.cell.free(slots, slots.cost, now);
        }
        let mut planned = opened.cell.plan(now, ask.cost, ask.patience);
        let mut suspects = Vec::new();
        if planned != Ok(now) {
            let waiting = match opened.cell.is_waited_for(opened.at) {
                // A request that is refused anyway need not know how many wait.
                true => self.alive(line, if planned.is_ok() { terms.queue.clamp(LOOK, MOST_WAITING) } else { LOOK }),
                false => Vec::new(),
            };
            suspects = self.suspects(&waiting);
            if let (Ok(turn), true, None) = (planned, waiting.len() >= terms.queue, &self.held) {
                let next = waiting.first().map_or(turn, |first| first.turn).saturating_sub(now);
                planned = Err(Refusal { by: RefusedBy::Queue, after: Some(Duration::from_nanos(next)) });
            }
        }
        let mut changed = !steps.is_empty() || self.held.is_some() || opened.cell.is_remade();
        let mut sent = None;
        let decided = planned.map(|turn| {
            changed |= ask.cost > 0;
            let slots = opened.cell.take(turn, ask.cost, now);
            if turn > now {
                let (ticket, instance) = (self.ticket, self.instance);
                let payload = slots.write(terms.limits.fingerprint());
                steps.push(Step::Join(Waiter { turn, ticket, until: turn, instance, payload }));
            } else if terms.learns {
                opened.cell.sent(now);
                (sent, changed) = (Some(now), true);
            }
            (turn, Duration::from_nanos(turn - now), slots)
        });
        let by = decided.as_ref().err().map(|refusal| refusal.by);
        if let (Some(block), true) = (terms.block, by.is_some()) {
            changed |= opened.cell.refused(block, now);
        }
        let quotas = opened.cell.quotas(&terms.limits, by, now);
        let change = if changed { opened.put(terms.tag, terms.retention) } else { Change::Keep };
        let dead = if suspects.is_empty() { Vec::new() } else { self.dead.clone() };
        (Reply { decided, sent, quotas, suspects, dead }, change, steps)
    }

    /// Gives back turns of the dead, the earliest first, until the request fits in before the next of them. The other
    /// turns stay in the line for later requests: a cell keeps few holes.
    fn bury(&self, cell: &mut Cell, line: &WaitingLine<'_>, now: u64, steps: &mut Vec<Step>) {
        let fingerprint = self.ask.terms.limits.fingerprint();
        for waiter in line.waiting(LOOK).into_iter().filter(|waiter| self.dead.contains(&waiter.instance)) {
            let planned = cell.plan(now, self.ask.cost, Duration::MAX);
            if planned.is_ok_and(|turn| turn <= waiter.turn) {
                break;
            }
            if let Some(slots) = Slots::read(&waiter.payload, fingerprint) {
                cell.free(&slots, slots.cost, now);
            }
            steps.push(Step::Leave { turn: waiter.turn, ticket: waiter.ticket });
        }
    }

    fn alive(&self, line: &WaitingLine<'_>, most: usize) -> Vec<Waiter> {
        let mut waiting = line.waiting(most);
        waiting.retain(|waiter| !self.dead.contains(&waiter.instance));
        waiting
    }

    /// The instances whose turns come first. The others will be checked later.
    fn suspects(&self, waiting: &[Waiter]) -> Vec<u64> {
        let mut suspects = Vec::new();
        for waiter in waiting.iter().take(LOOK) {
            if waiter.instance != self.instance && !suspects.contains(&waiter.instance) {
                suspects.push(waiter.instance);
                if suspects.len() == ASKED_AFTER {
                    break;
                }
            }
        }
        suspects
    }
}

/// What a waiter has: a slot of each limit, and a row.
pub(super) struct Held {
    pub(super) slots: Slots,
    pub(super) row: Option<(u64, u64)>,
}

#[cfg(test)]
mod tests;
