//! What was taken for a request: used, given back, settled.

use super::{
    advice::Advice,
    row::{Opened, Times},
    slots::Slots,
    terms::Terms,
};
use crate::{
    cache::Scope,
    store::{CELLS, Change, Found, Key, Step},
};
use std::sync::Arc;

/// What was taken for a request: given back when dropped, until it is [spent](Turn::spend).
#[derive(Debug)]
pub(super) struct Turn(Option<Box<Taken>>);

#[derive(Debug)]
pub(super) struct Taken {
    pub(super) scope: Scope,
    pub(super) key: Key,
    pub(super) terms: Arc<Terms>,
    pub(super) slots: Slots,
    /// The waiter's row, if it has one.
    pub(super) row: Option<(u64, u64)>,
    /// When the request went, if it is counted as on its way.
    pub(super) sent: Option<u64>,
}

impl Taken {
    /// Gives back what was not used, or takes what is missing, and heeds the advice.
    fn settle(self, actual: u32, advice: Option<Advice>) {
        let Taken { scope, key, terms, slots, row, sent } = self;
        if actual == slots.cost && sent.is_none() {
            return;
        }
        let times = Times::of(&scope, &terms.limits);
        scope.post_line(CELLS, key, move |found, _, now| {
            let steps = row.map(|(turn, ticket)| Step::Leave { turn, ticket }).into_iter().collect();
            // A cell that is gone was full, or evicted: there is nothing to give back to.
            if matches!(found, Found::Absent | Found::Lost { .. }) && actual <= slots.cost && advice.is_none() {
                return ((), Change::Keep, steps);
            }
            let mut opened = Opened::new(found, &terms.limits, times, now);
            // The limits have changed since: they are not to be changed back, which might refill those that are new.
            if opened.cell.is_remade() {
                return ((), Change::Keep, steps);
            }
            opened.cell.free(&slots, slots.cost.saturating_sub(actual), now);
            opened.cell.charge(actual.saturating_sub(slots.cost), now);
            if let Some(sent) = sent {
                opened.cell.answered(sent, advice.as_ref(), now);
            }
            ((), opened.put(terms.tag, terms.retention), steps)
        });
    }
}

impl Turn {
    #[inline]
    pub(super) fn new(taken: Taken) -> Turn {
        Turn(Some(Box::new(taken)))
    }

    /// What it holds, if it was not spent.
    pub(super) fn taken(&self) -> Option<&Taken> {
        self.0.as_deref()
    }

    /// What it holds is not its any more: it was given back, or is in another turn.
    pub(super) fn forget(mut self) {
        self.0.take();
    }

    /// What was taken is used from now on.
    pub(super) fn spend(mut self) -> Spent {
        Spent(self.0.take())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            taken.settle(0, None);
        }
    }
}

/// What was taken and used; it stays spent unless it is [settled](Spent::settle).
#[derive(Debug)]
pub(super) struct Spent(Option<Box<Taken>>);

impl Spent {
    /// Of nothing that could be settled.
    pub(super) fn nothing() -> Spent {
        Spent(None)
    }

    /// Says what the request really cost, where that is known, and what its answer advises.
    pub(super) fn settle(mut self, actual: Option<u32>, advice: Option<Advice>) {
        if let Some(taken) = self.0.take() {
            let actual = actual.unwrap_or(taken.slots.cost);
            let advice = advice.filter(|_| taken.sent.is_some()).map(|advice| advice.cut(taken.terms.longest));
            taken.settle(actual, advice.filter(|advice| *advice != Advice::default()));
        }
    }
}

impl Drop for Spent {
    // Without an answer it is not on its way any more.
    fn drop(&mut self) {
        if let Some(taken) = self.0.take_if(|taken| taken.sent.is_some()) {
            let cost = taken.slots.cost;
            taken.settle(cost, None);
        }
    }
}
