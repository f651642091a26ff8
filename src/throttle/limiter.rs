//! A throttle without tower.

mod blocking;

use super::{
    advice::Advice,
    ask::{Verdict, ask, note_admitted, note_refused},
    cell::{Cell, Quotas, Refusal},
    limit::limits::Limits,
    row::{Opened, Times},
    terms::Ask,
    turn::Spent,
};
use crate::{
    cache::{Cache, Scope},
    decision::Quota,
    error::Error,
    rejection::Reason,
    store::{CELLS, Change, Event, Found, Key, Kind, Pending},
    time::nanos,
};
use std::{fmt, time::Duration};

/// A throttle by name, without tower. Its decisions are counted and logged as those of a layer are.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_floodgate::{Cache, throttle::{LimitError, Rate}};
///
/// let cache = Cache::temporary()?;
/// let mails = cache.throttle("mails", Rate::per_minute(20).burst(2));
/// mails.check().await?;
/// assert_eq!(mails.check().await?.quota.remaining, 0);
/// assert!(matches!(mails.check().await, Err(LimitError::Throttled { .. })));
///
/// mails.reset().await?;
/// let estimate = mails.cost(2).check().await?;
/// estimate.settle(1); // it turned out to be less
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    pub(super) scope: Scope,
    pub(super) key: Key,
    pub(super) ask: Ask,
}

/// Why a [`Limiter`] did not admit.
#[derive(Debug)]
#[non_exhaustive]
pub enum LimitError {
    /// There is no room.
    #[non_exhaustive]
    Throttled {
        /// Whether the budget is spent, or the cost above what it ever allows, or the name blocked, or the queue full.
        reason: Reason,
        /// When to ask again; `None`: the cost is above the burst and never fits.
        retry_after: Option<Duration>,
        /// What is left of the limit that refused.
        quota: Quota,
    },
    /// The cache could not be used.
    Cache(Error),
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Throttled { reason, retry_after, .. } => {
                f.write_str(match reason {
                    Reason::Blocked => "blocked for a while",
                    Reason::QueueFull => "too many are waiting already",
                    Reason::TooCostly => "the cost is above what the limit ever allows",
                    _ => "too many requests",
                })?;
                retry_after.map_or(Ok(()), |delay| write!(f, ", ask again in {delay:?}"))
            }
            LimitError::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LimitError::Throttled { .. } => None,
            LimitError::Cache(error) => Some(error),
        }
    }
}

/// What a [`Limiter`] has admitted. Dropped, it stays spent.
#[non_exhaustive]
pub struct Permit {
    /// What is left, of the scarcest limit.
    pub quota: Quota,
    spent: Spent,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("quota", &self.quota).finish_non_exhaustive()
    }
}

impl Permit {
    /// Says what it really cost: what was reserved too much is given back, as far as time has not done so meanwhile, and
    /// what is missing is taken, even beyond the limit. If the name has got other limits meanwhile, neither
    /// happens: what was taken stays taken.
    pub fn settle(self, actual: u32) {
        self.spent.settle(Some(actual), None);
    }

    /// Says what the foreign server's answer advises, as a layer that [learns](super::ThrottleLayer::learn) does; it means
    /// something only to a limiter that is [learning](Limiter::learning).
    pub fn learn(self, advice: Advice) {
        self.spent.settle(None, Some(advice));
    }
}

impl Limiter {
    pub(super) fn new(scope: &Scope, name: &[u8], ask: Ask) -> Limiter {
        Limiter { key: scope.key(Kind::Throttle, name), scope: scope.clone(), ask }
    }

    /// The same throttle, asked for `cost` at once; 1 unless said otherwise. 0 is always admitted and takes nothing.
    pub fn cost(&self, cost: u32) -> Limiter {
        let mut limiter = self.clone();
        limiter.ask.cost = cost;
        limiter
    }

    /// The same throttle for calls to a foreign server, whose answers are heeded: see
    /// [`ThrottleLayer::learn`](super::ThrottleLayer::learn). Each [`Permit`] counts as a call on its way until
    /// [`Permit::learn`] says what was answered, or it is dropped.
    pub fn learning(&self) -> Limiter {
        let mut limiter = self.clone();
        limiter.ask.terms_mut().learns = true;
        limiter
    }

    /// Admits now or not at all.
    ///
    /// # Errors
    ///
    /// [`LimitError::Throttled`], or [`LimitError::Cache`] if the cache cannot be used.
    pub async fn check(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout(Duration::ZERO).await
    }

    /// Waits for a turn, first come first served over all processes. Dropped while it waits, it gives the turn back.
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check), where only a cost that never fits, or a queue of more than 10,000, is refused.
    pub async fn acquire(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout(Duration::MAX).await
    }

    /// Waits for a turn, unless it would take longer than `patience`: that is known, and said, at once.
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check).
    pub async fn acquire_timeout(&self, patience: Duration) -> Result<Permit, LimitError> {
        let mut asked = self.ask_for(patience);
        loop {
            let mut verdict = asked.await.map_err(|error| self.failed(error))?;
            if let Some(again) = verdict.again() {
                asked = again;
                continue;
            }
            let quota = verdict.quotas.first;
            return match verdict.decided {
                Ok((wait, turn)) if wait.is_zero() => Ok(self.admitted(quota, turn.spend(), wait)),
                Ok((wait, turn)) => match turn.comes_after(wait, patience, &self.scope).await {
                    Ok(spent) => Ok(self.admitted(quota, spent, wait)),
                    Err(refused) => {
                        asked = Pending::ready(Ok(refused));
                        continue;
                    }
                },
                Err(refusal) => Err(self.refused(refusal, quota)),
            };
        }
    }

    fn admitted(&self, quota: Quota, spent: Spent, waited: Duration) -> Permit {
        note_admitted(&self.scope, &quota, waited);
        Permit { quota, spent }
    }

    fn refused(&self, refusal: Refusal, quota: Quota) -> LimitError {
        note_refused(&self.scope, &refusal, &quota, false);
        LimitError::Throttled { reason: refusal.reason(), retry_after: refusal.after, quota }
    }

    fn failed(&self, error: Error) -> LimitError {
        self.scope.note(Event::ThrottleFailed);
        LimitError::Cache(error)
    }

    pub(super) fn ask_for(&self, patience: Duration) -> Pending<Result<Verdict, Error>> {
        ask(&self.scope, self.key, Ask { patience, ..self.ask.clone() })
    }

    /// What is left of the scarcest limit, without taking any of it: nothing during a [block](Limiter::block), whose end
    /// only a refusal tells.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn peek(&self) -> Result<Quota, Error> {
        self.look().await.map(|quotas| quotas.first)
    }

    /// What is left of each limit, the scarcest first, without taking any of it.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn peek_all(&self) -> Result<Vec<Quota>, Error> {
        self.look().await.map(|quotas| std::iter::once(quotas.first).chain(quotas.others).collect())
    }

    fn look(&self) -> Pending<Result<Quotas, Error>> {
        let (terms, times) = (self.ask.terms.clone(), Times::of(&self.scope, &self.ask.terms.limits));
        let look = move |found: Found<'_>, now| {
            let quotas = Opened::new(found, &terms.limits, times, now).cell.quotas(&terms.limits, None, now);
            (quotas, Change::Keep)
        };
        self.scope.update(CELLS, self.key, look, |quotas| quotas)
    }

    /// Makes the budgets full again, and ends a block. A waiter keeps the turn that was given out.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn reset(&self) -> Result<(), Error> {
        self.scope.update(CELLS, self.key, |_, _| ((), Change::Remove), |done| done).await
    }

    /// Takes `cost` from every limit without asking: the budgets may go into debt, which has to be regained first.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn penalise(&self, cost: u32) -> Result<(), Error> {
        self.change(move |cell, now| cell.charge(cost, now)).await
    }

    /// Admits nothing that costs anything for `hold` from now, whatever is left; an earlier block that lasts longer stays.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn block(&self, hold: Duration) -> Result<(), Error> {
        let hold = nanos(hold);
        self.change(move |cell, now| cell.hold(now.saturating_add(hold))).await
    }

    /// Leaves at most `remaining` of every limit, for callers that know better how much is left.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn leave_at_most(&self, remaining: u32) -> Result<(), Error> {
        self.change(move |cell, now| cell.leave_at_most(remaining, now)).await
    }

    fn change(&self, change: impl Fn(&mut Cell, u64) + Send + 'static) -> Pending<Result<(), Error>> {
        let (terms, times) = (self.ask.terms.clone(), Times::of(&self.scope, &self.ask.terms.limits));
        let transition = move |found: Found<'_>, now| {
            let mut opened = Opened::new(found, &terms.limits, times, now);
            change(&mut opened.cell, now);
            ((), opened.put(terms.tag, terms.retention))
        };
        self.scope.update(CELLS, self.key, transition, |done| done)
    }
}

impl Scope {
    /// A throttle of this scope, by name. It shares its budget with the [`ThrottleLayer`](super::ThrottleLayer) of the
    /// same scope, for requests of that name, as [`name_of`](super::ThrottleLayer::name_of) writes it.
    pub fn throttle(&self, name: &str, limits: impl Into<Limits>) -> Limiter {
        Limiter::new(self, name.as_bytes(), Ask::new(limits.into()))
    }
}

impl Cache {
    /// [`Scope::throttle`] of the [root](Cache::root) scope.
    pub fn throttle(&self, name: &str, limits: impl Into<Limits>) -> Limiter {
        self.root().throttle(name, limits)
    }
}
