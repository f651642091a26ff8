//! What was taken for a request: waited for, used, given back, settled.

use super::{
    Advice,
    ask::{Ask, Opened, Question, Terms, Times, Transition, Verdict},
    cell::Slots,
};
use crate::{
    cache::{CELLS, Change, Event, Found, Key, Pending, Scope, Step},
    time::nanos,
};
use hyper::rt::Sleep;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

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
            if matches!(found, Found::Absent) && actual <= slots.cost && advice.is_none() {
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

    /// What was taken is used from now on.
    pub(super) fn spend(mut self) -> Spent {
        Spent(self.0.take())
    }

    /// Waits for the turn, which is used from then on.
    pub(super) fn comes_after(self, wait: Duration, patience: Duration, scope: &Scope) -> Waiting {
        let handle = scope.handle();
        let now = handle.now();
        let (due, scope) = (now.saturating_add(nanos(wait)), scope.clone());
        let (sleep, turn) = (handle.sleep(wait), Some(self));
        scope.note(Event::WaitBegan);
        Waiting { sleep, due, slept_at: now, began: now, patience, scope, turn, look: None }
    }

    /// Whether to ask before the turn is used: the foreign server may have said something since it was given out.
    pub(super) fn may_be_overtaken(&self) -> bool {
        self.0.as_ref().is_some_and(|taken| taken.terms.learns)
    }

    /// Asks again, now that the turn has come. `Err`: it can be used, as far as anybody knows.
    pub(super) fn look_again(self, patience: Duration) -> Pending<Result<Verdict, Turn>> {
        let Some(taken) = &self.0 else { return Pending::ready(Err(self)) };
        let Taken { scope, key, terms, slots, row, .. } = &**taken;
        let ask = Ask { terms: terms.clone(), cost: slots.cost, patience };
        let question = Question::new(scope, *key, ask);
        let (scope, held) = (scope.clone(), Held { slots: slots.clone(), row: *row });
        let transition = Transition { held: Some(held), ..question.transition(Vec::new()) };
        scope.update_line(
            CELLS,
            *key,
            move |found, line, now| transition.run(found, line, now),
            move |said| match said {
                Ok(said) => {
                    // Its slots are in the answer again, or were given back.
                    self.spend().0.take();
                    Ok(question.verdict(said))
                }
                Err(_) => Err(self),
            },
        )
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

/// The wait for a [`Turn`]; dropped early, the turn is given back.
///
/// Who learns from a foreign server looks again when the turn comes, and may have to wait for another, or be refused:
/// then the output is the refusal.
pub(super) struct Waiting {
    sleep: Pin<Box<dyn Sleep>>,
    /// Machine time in ns of the turn, and of the last time that sleep began.
    due: u64,
    slept_at: u64,
    /// When the first wait began, and how long all may take.
    began: u64,
    patience: Duration,
    scope: Scope,
    turn: Option<Turn>,
    /// Boxed: most wait without.
    look: Option<Box<Pending<Result<Verdict, Turn>>>>,
}

impl Waiting {
    /// From the first asking to the turn.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_nanos(self.due.saturating_sub(self.began))
    }

    /// Comes to an end, or sleeps until another turn.
    fn looked(&mut self, looked: Result<Verdict, Turn>) -> Option<Result<Spent, Verdict>> {
        let verdict = match looked {
            Ok(verdict) => verdict,
            Err(turn) => return Some(Ok(turn.spend())),
        };
        match verdict.decided {
            Ok((wait, turn)) if wait.is_zero() => Some(Ok(turn.spend())),
            Ok((wait, turn)) => {
                self.slept_at = self.scope.handle().now();
                self.due = self.slept_at.saturating_add(nanos(wait));
                self.sleep = self.scope.handle().sleep(wait);
                self.turn = Some(turn);
                None
            }
            Err(_) => Some(Err(verdict)),
        }
    }
}

impl Future for Waiting {
    type Output = Result<Spent, Verdict>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(look) = &mut self.look {
                let looked = ready!(Pin::new(&mut **look).poll(cx));
                self.look = None;
                match self.looked(looked) {
                    Some(output) => return Poll::Ready(output),
                    None => continue,
                }
            }
            ready!(self.sleep.as_mut().poll(cx));
            let now = self.scope.handle().now();
            // A user's clock may wake early. If it stood still meanwhile, sleeping on would never end.
            let stands_still = now <= self.slept_at;
            if now < self.due && !stands_still {
                self.slept_at = now;
                self.sleep = self.scope.handle().sleep(Duration::from_nanos(self.due - now));
                continue;
            }
            let Some(turn) = self.turn.take() else { return Poll::Ready(Ok(Spent(None))) };
            if stands_still || !turn.may_be_overtaken() {
                return Poll::Ready(Ok(turn.spend()));
            }
            let waited = Duration::from_nanos(now.saturating_sub(self.began));
            self.look = Some(Box::new(turn.look_again(self.patience.saturating_sub(waited))));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.scope.note(Event::WaitEnded);
    }
}

/// What somebody has who waits: a slot of each limit, and a row.
pub(super) struct Held {
    pub(super) slots: Slots,
    pub(super) row: Option<(u64, u64)>,
}
