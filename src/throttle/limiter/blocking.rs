//! A throttle without tower, for plain threads.

use super::{LimitError, Limiter, Permit};
use crate::{
    decision::Quota,
    error::Error,
    store::{Pending, block_on},
    time::nanos,
};
use std::time::Duration;

/// For plain threads: each as its namesake. None needs a runtime, also with the feature `tokio`.
impl Limiter {
    /// As [`check`](Limiter::check).
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check).
    pub fn check_blocking(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout_blocking(Duration::ZERO)
    }

    /// As [`acquire`](Limiter::acquire).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Limiter::acquire).
    pub fn acquire_blocking(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout_blocking(Duration::MAX)
    }

    /// As [`acquire_timeout`](Limiter::acquire_timeout). The thread sleeps, so this needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire_timeout`](Limiter::acquire_timeout).
    pub fn acquire_timeout_blocking(&self, patience: Duration) -> Result<Permit, LimitError> {
        let began = self.scope.handle().now();
        let mut asked = self.ask_for(patience);
        loop {
            let mut verdict = asked.wait().map_err(|error| self.failed(error))?;
            if let Some(again) = verdict.again() {
                asked = again;
                continue;
            }
            let quota = verdict.quotas.first;
            let (wait, turn) = match verdict.decided {
                Ok(admitted) => admitted,
                Err(refusal) => return Err(self.refused(refusal, quota)),
            };
            if wait.is_zero() || !self.sleep_through(wait) || !turn.may_be_overtaken() {
                return Ok(self.admitted(quota, turn.spend(), wait));
            }
            let waited = Duration::from_nanos(self.scope.handle().now().saturating_sub(began));
            match turn.look_again(patience.saturating_sub(waited)).wait() {
                Ok(verdict) => asked = Pending::ready(Ok(verdict)),
                Err(turn) => return Ok(self.admitted(quota, turn.spend(), wait)),
            }
        }
    }

    /// Sleeps until the turn; `false`: a user's clock stood still meanwhile, and sleeping on would never end.
    fn sleep_through(&self, wait: Duration) -> bool {
        let handle = self.scope.handle();
        let mut slept_at = handle.now();
        let due = slept_at.saturating_add(nanos(wait));
        while slept_at < due {
            std::thread::sleep(Duration::from_nanos(due - slept_at));
            let now = handle.now();
            if now <= slept_at {
                return false;
            }
            slept_at = now;
        }
        true
    }

    /// As [`peek`](Limiter::peek).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn peek_blocking(&self) -> Result<Quota, Error> {
        block_on(self.peek())
    }

    /// As [`peek_all`](Limiter::peek_all).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn peek_all_blocking(&self) -> Result<Vec<Quota>, Error> {
        block_on(self.peek_all())
    }

    /// As [`reset`](Limiter::reset).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn reset_blocking(&self) -> Result<(), Error> {
        block_on(self.reset())
    }

    /// As [`penalise`](Limiter::penalise).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn penalise_blocking(&self, cost: u32) -> Result<(), Error> {
        block_on(self.penalise(cost))
    }

    /// As [`block`](Limiter::block).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn block_blocking(&self, hold: Duration) -> Result<(), Error> {
        block_on(self.block(hold))
    }

    /// As [`leave_at_most`](Limiter::leave_at_most).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn leave_at_most_blocking(&self, remaining: u32) -> Result<(), Error> {
        block_on(self.leave_at_most(remaining))
    }
}
