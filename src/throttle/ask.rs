//! Asking for a turn: one transaction, or two if those in front are found dead.

use super::{
    cell::{Quotas, Refusal, RefusedBy},
    row::{Opened, Times},
    terms::Ask,
    transition::{Reply, Transition},
    turn::{Taken, Turn},
};
use crate::{
    cache::Scope,
    decision::Quota,
    error::Error,
    store::{CELLS, Event, Key, Pending},
};
use std::{fmt, time::Duration};

/// How a decision came out.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) decided: Result<(Duration, Turn), Refusal>,
    pub(super) quotas: Quotas,
    again: Option<Box<Again>>,
}

/// What it takes to ask again: others wait in front, and may be dead.
struct Again {
    scope: Scope,
    key: Key,
    ask: Ask,
    suspects: Vec<u64>,
    dead: Vec<u64>,
}

impl Verdict {
    /// Asks once more if any of those in front turn out to be dead, with their turns given back. The turn of this answer
    /// is given back first.
    #[inline]
    pub(super) fn again(&mut self) -> Option<Pending<Result<Verdict, Error>>> {
        let again = self.again.take()?;
        self.ask_again(*again)
    }

    #[cold]
    fn ask_again(&mut self, again: Again) -> Option<Pending<Result<Verdict, Error>>> {
        let Again { scope, key, ask, suspects, mut dead } = again;
        let found_dead = scope.dead_among(&suspects);
        if found_dead.is_empty() {
            return None;
        }
        self.decided = Err(Refusal { by: RefusedBy::Queue, after: None });
        dead.extend(found_dead);
        Some(ask_over(&scope, key, ask, dead))
    }
}

/// Asks for a turn, in one transaction; in two if others wait in front and are found dead.
#[inline]
pub(super) fn ask(scope: &Scope, key: Key, ask: Ask) -> Pending<Result<Verdict, Error>> {
    if let Some(verdict) = refuse_at_a_glance(scope, key, &ask) {
        return Pending::ready(Ok(verdict));
    }
    let mut pending = ask_over(scope, key, ask, Vec::new());
    match &mut pending {
        Pending::Ready(Some(Ok(verdict))) => verdict.again().unwrap_or(pending),
        _ => pending,
    }
}

/// Refuses what a glance at the cell shows to be refused. All else, such as what has to be written down, takes a
/// transaction.
#[inline]
fn refuse_at_a_glance(scope: &Scope, key: Key, ask: &Ask) -> Option<Verdict> {
    let terms = &*ask.terms;
    if terms.block.is_some() || !ask.patience.is_zero() {
        return None;
    }
    scope.read_recent(&key, |found, now| {
        let opened = Opened::new(found, &terms.limits, Times::of(scope, &terms.limits), now);
        let refusal = opened.cell.plan(now, ask.cost, Duration::ZERO).err()?;
        if opened.cell.is_remade() || opened.cell.is_waited_for(opened.at) {
            return None;
        }
        let quotas = opened.cell.quotas(&terms.limits, Some(refusal.by), now);
        Some(Verdict { decided: Err(refusal), quotas, again: None })
    })?
}

fn ask_over(scope: &Scope, key: Key, ask: Ask, dead: Vec<u64>) -> Pending<Result<Verdict, Error>> {
    let question = Question::new(scope, key, ask);
    let transition = question.transition(dead);
    scope.update_line(
        CELLS,
        key,
        move |found, line, now| transition.run(found, line, now),
        move |reply| reply.map(|reply| question.verdict(reply)),
    )
}

/// What is asked of a cell, and makes a [`Verdict`] out of the answer.
pub(super) struct Question {
    scope: Scope,
    key: Key,
    ask: Ask,
    instance: u64,
    ticket: u64,
}

impl Question {
    pub(super) fn new(scope: &Scope, key: Key, ask: Ask) -> Question {
        let waits = !ask.patience.is_zero();
        let instance = if waits { scope.instance().unwrap_or(0) } else { 0 };
        let ticket = if waits { rand::random() } else { 0 };
        Question { scope: scope.clone(), key, ask, instance, ticket }
    }

    pub(super) fn transition(&self, dead: Vec<u64>) -> Transition {
        let times = Times::of(&self.scope, &self.ask.terms.limits);
        let Question { ask, instance, ticket, .. } = self;
        Transition { ask: ask.clone(), times, instance: *instance, ticket: *ticket, dead, held: None }
    }

    pub(super) fn verdict(self, reply: Reply) -> Verdict {
        let Reply { decided, sent, quotas, suspects, dead } = reply;
        let Question { scope, key, ask, ticket, .. } = self;
        let again = (!suspects.is_empty())
            .then(|| Box::new(Again { scope: scope.clone(), key, ask: ask.clone(), suspects, dead }));
        let decided = decided.map(|(turn, wait, slots)| {
            let row = (!wait.is_zero()).then_some((turn, ticket));
            let taken = Taken { scope, key, terms: ask.terms, slots, row, sent };
            (wait, Turn::new(taken))
        });
        Verdict { decided, quotas, again }
    }
}

/// Counts a request that is let pass now.
pub(super) fn note_admitted(scope: &Scope, quota: &Quota, waited: Duration) {
    scope.note(Event::Admitted);
    if u64::from(quota.remaining) * 5 <= u64::from(quota.limit) {
        scope.note(Event::NearLimit);
    }
    if !waited.is_zero() {
        scope.note(Event::Waited);
    }
}

/// Counts and logs a request that is over the limit.
pub(super) fn note_refused(scope: &Scope, refusal: &Refusal, quota: &Quota, shadow: bool) {
    scope.note(Event::Throttled);
    tracing::debug!(
        scope = scope.name(),
        limit = quota.name.as_deref(),
        most = quota.limit,
        window = ?quota.window,
        reason = ?refusal.reason(),
        retry_after = ?refusal.after,
        shadow,
        "throttled"
    );
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("suspects", &self.suspects).finish_non_exhaustive()
    }
}
