//! The wait for a turn.

use super::{
    ask::{Question, Verdict},
    terms::Ask,
    transition::{Held, Transition},
    turn::{Spent, Taken, Turn},
};
use crate::{
    cache::Scope,
    store::{CELLS, Event, Pending},
    time::nanos,
};
use hyper::rt::Sleep;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

impl Turn {
    /// Waits for the turn, which is used from then on.
    pub(super) fn comes_after(self, wait: Duration, patience: Duration, scope: &Scope) -> Waiting {
        let handle = scope.handle();
        let now = handle.now();
        let (due, scope) = (now.saturating_add(nanos(wait)), scope.clone());
        let (sleep, turn) = (handle.sleep(wait), Some(self));
        scope.note(Event::WaitBegan);
        Waiting { sleep, due, slept_at: now, began: now, patience, scope, turn, look: None }
    }

    /// Whether to ask before the turn is used: the foreign server may have replied something since it was given out.
    pub(super) fn may_be_overtaken(&self) -> bool {
        self.taken().is_some_and(|taken| taken.terms.learns)
    }

    /// Asks again, now that the turn has come. `Err`: it can be used, as far as anybody knows.
    pub(super) fn look_again(self, patience: Duration) -> Pending<Result<Verdict, Turn>> {
        let Some(taken) = self.taken() else { return Pending::ready(Err(self)) };
        let Taken { scope, key, terms, slots, row, .. } = taken;
        let ask = Ask { terms: terms.clone(), cost: slots.cost, patience };
        let question = Question::new(scope, *key, ask);
        let (scope, held) = (scope.clone(), Held { slots: slots.clone(), row: *row });
        let transition = Transition { held: Some(held), ..question.transition(Vec::new()) };
        scope.update_line(
            CELLS,
            *key,
            move |found, line, now| transition.run(found, line, now),
            move |reply| match reply {
                Ok(reply) => {
                    // Its slots are in the answer again, or were given back.
                    self.forget();
                    Ok(question.verdict(reply))
                }
                Err(_) => Err(self),
            },
        )
    }
}

/// The wait for a [`Turn`]; dropped early, the turn is given back.
///
/// A request that learns from a foreign server looks again when its turn comes, and may have to wait for another, or be
/// refused: then the output is the refusal.
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
            let Some(turn) = self.turn.take() else { return Poll::Ready(Ok(Spent::nothing())) };
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
