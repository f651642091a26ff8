//! What a foreign server's answers have said of its budget, kept beside our own: a pure function of moments and advice.
//!
//! An answer says what was left when the server handled one request. Others are on their way: which of them the server had
//! counted by then nobody knows, so all of them count on top. Of all that was said in a window the least holds; what is
//! left to be sent is that, less those on their way. As they come back both shrink alike, and with none on its way the
//! number is exact. So answers that overtake each other neither let too much pass nor take anything twice.
//!
//! When the server's window ends, nothing is known but that there is more. One request goes ahead to ask, and the others
//! follow at the server's own average pace until its answer is there.

use super::advice::Advice;
use crate::{store::u64_at, time::nanos};
use std::time::Duration;

/// Requests that have not come back after one to two of these, in ns, are counted as lost: their process may have died.
const LOST: u64 = Duration::from_secs(30).as_nanos() as u64;
/// Two ends of a window that are no further apart, in ns, are one: servers tell whole seconds.
const SAME: u64 = Duration::from_secs(2).as_nanos() as u64;
/// How long after the end of a window its limit is remembered, in ns.
const REMEMBERED: u64 = Duration::from_secs(3_600).as_nanos() as u64;
/// The shortest and the longest time, in ns, between two followers before the server has answered again.
const SHORTEST_STEP: u64 = Duration::from_millis(10).as_nanos() as u64;
const LONGEST_STEP: u64 = Duration::from_secs(1).as_nanos() as u64;

/// Bytes of the stored form.
pub(super) const SIZE: usize = 64;

/// What a server's answers have said. All times are machine time in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learnt {
    /// Nothing is sent before: the server has refused.
    held: u64,
    /// The least that the server said is left of this window; after it, what is assumed.
    low: u32,
    /// The whole of the server's budget.
    limit: u32,
    /// When `low` was said, or last raised.
    since: u64,
    /// The end of the window; 0 once it is over.
    until: u64,
    /// After the window one more is assumed each so many ns; never 0 while anything is known.
    step: u64,
    /// When all of this is forgotten; 0 while nothing is known.
    forgotten: u64,
    /// Requests sent in this stretch of [`LOST`] and in the one before, and not back.
    epoch: u64,
    open: u32,
    before: u32,
}

impl Learnt {
    fn on_their_way(&self) -> u32 {
        self.open.saturating_add(self.before)
    }

    /// What can be sent now, if anything is known.
    pub(super) fn room(&self, now: u64) -> Option<u32> {
        if self.held > now {
            return Some(0);
        }
        (self.forgotten > now).then(|| self.low.saturating_sub(self.on_their_way()))
    }

    /// Brings it up to the moment.
    pub(super) fn advance(&mut self, now: u64) {
        let epoch = now / LOST;
        if epoch > self.epoch {
            self.before = if epoch - self.epoch == 1 { self.open } else { 0 };
            (self.epoch, self.open) = (epoch, 0);
        }
        if self.forgotten <= now {
            let Learnt { held, epoch, open, before, .. } = *self;
            *self = Learnt { held, epoch, open, before, ..Learnt::default() };
        } else if self.until <= now {
            self.assume(now);
        }
    }

    /// One request goes ahead, beside those that are on their way. Others follow step by step, up to the limit.
    fn assume(&mut self, now: u64) {
        let one_more = self.on_their_way().saturating_add(1);
        if self.until != 0 {
            self.low = self.low.max(one_more);
            (self.since, self.until) = (self.until, 0);
        }
        let steps = now.saturating_sub(self.since) / self.step.max(1);
        self.since = self.since.saturating_add(steps.saturating_mul(self.step));
        let low = self.low.saturating_add(u32::try_from(steps).unwrap_or(u32::MAX));
        self.low = low.min(self.limit.max(one_more));
    }

    /// The earliest time from `from` on at which one more can be sent, as far as is known.
    pub(super) fn earliest(&self, from: u64) -> u64 {
        let from = from.max(self.held);
        if self.forgotten <= from || self.low > self.on_their_way() {
            return from;
        }
        let more = if self.until > 0 { self.until } else { self.since.saturating_add(self.step) };
        from.max(more.min(self.forgotten))
    }

    /// A request goes.
    pub(super) fn sent(&mut self) {
        self.open = self.open.saturating_add(1);
    }

    /// The request that went at `sent` is back, or never will be.
    pub(super) fn returned(&mut self, sent: u64) {
        match self.epoch.checked_sub(sent / LOST) {
            Some(0) => self.open = self.open.saturating_sub(1),
            Some(1) => self.before = self.before.saturating_sub(1),
            _ => {}
        }
    }

    /// What the answer says to a request that went at `sent`.
    pub(super) fn heed(&mut self, advice: &Advice, sent: u64, now: u64) {
        if let Some(hold) = advice.hold {
            self.held = self.held.max(now.saturating_add(nanos(hold)));
        }
        let Some((left, reset)) = advice.remaining else { return };
        // An empty budget is what `hold` is about, and goes before the reset.
        let reset = advice.hold.filter(|_| left == 0).unwrap_or(reset);
        let until = now.saturating_add(nanos(reset));
        // Of another window is only what was asked since: what overtook it speaks of the past.
        let another = until.abs_diff(self.until) > SAME && sent > self.since;
        if self.until > now && left >= self.low && !another {
            return;
        }
        let limit = advice.limit.unwrap_or(self.limit).max(left).max(1);
        let window = nanos(advice.window.unwrap_or(reset));
        let step = (window / u64::from(limit)).clamp(SHORTEST_STEP, LONGEST_STEP);
        let forgotten = until.saturating_add(REMEMBERED);
        *self = Learnt { low: left, limit, since: now, until, step, forgotten, ..*self };
        self.advance(now);
    }

    /// When it will mean nothing any more.
    pub(super) fn ends(&self) -> u64 {
        let lost = if self.on_their_way() > 0 { self.epoch.saturating_add(2).saturating_mul(LOST) } else { 0 };
        self.forgotten.max(self.held).max(lost)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let Learnt { held, low, limit, since, until, step, forgotten, epoch, open, before } = *self;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let numbers = [held, pair(low, limit), since, until, step, forgotten, epoch, pair(open, before)];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Learnt> {
        let number = |place: usize| u64_at(bytes, place * 8);
        // Each half fits.
        let pair = |number: u64| (number as u32, (number >> 32) as u32);
        let ((low, limit), (open, before)) = (pair(number(1)?), pair(number(7)?));
        let (held, since, until) = (number(0)?, number(2)?, number(3)?);
        let (step, forgotten, epoch) = (number(4)?, number(5)?, number(6)?);
        Some(Learnt { held, low, limit, since, until, step, forgotten, epoch, open, before })
    }
}

#[cfg(test)]
mod tests;
