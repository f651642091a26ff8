//! GCRA, in its "virtual scheduling" form (ITU-T I.371), for budgets that also take back what was not used.
//!
//! [`Rate`] says how often, [`text`] how that is written, and [`State`] is the arithmetic.

mod state;
#[cfg(test)]
mod tests;
mod text;

use super::algorithm::{Algorithm, LONGEST_SPAN, Moment, Slot, Spent};
use crate::decision::Quota;
use state::State;
use std::fmt;
use std::time::Duration;

/// How often: `count` per `per`, with room for a burst at once.
///
/// An idle name may spend its whole burst at once and regains it at `count` per `per`. In any stretch of time `w`, at
/// most `burst + w * count / per` is admitted. One unit takes a whole number of nanoseconds, rounded up; rates above
/// some ten million a second are therefore noticeably slower than they say, and never faster.
///
/// Displays as `100/60s`, or `100/60s burst 20` where the burst is not the count; the time is in the largest of `s`,
/// `ms`, `us` and `ns` that tells it exactly. The same is parsed, and (de)serialized with serde. Parsing also takes
/// minutes, hours and days (`100/1m`, `1000/1h`, `5000/2days`), one unit without its number (`10/s`, `100/minute`), and a
/// bare number as seconds (`50/1`).
///
/// ```
/// use std::time::Duration;
/// use tower_floodgate::throttle::Rate;
///
/// let rate = Rate::per_second(10).burst(20);
/// assert_eq!(rate, "10/s burst 20".parse()?);
/// assert_eq!(rate.to_string(), "10/1s burst 20");
/// assert_eq!(Rate::per_minute(100), Rate::new(100, Duration::from_secs(60)));
/// # Ok::<_, tower_floodgate::throttle::ParseLimitError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    per: Duration,
    burst: u32,
    /// Emission interval in nanoseconds, from 1; kept so that a decision does not divide for it.
    step: u64,
}

impl Rate {
    /// `count` per `per`, with a burst of `count`.
    ///
    /// # Panics
    ///
    /// If `count` or `per` is zero, if `per` is less than `count` nanoseconds, or if `per` is longer than 100 years.
    #[track_caller]
    pub fn new(count: u32, per: Duration) -> Self {
        Self::checked(count, per).unwrap_or_else(|invalid| panic!("{invalid}"))
    }

    /// `count` in each second, with a burst of `count`.
    ///
    /// # Panics
    ///
    /// If `count` is zero or above 1,000,000,000.
    #[track_caller]
    pub fn per_second(count: u32) -> Self {
        Self::new(count, Duration::from_secs(1))
    }

    /// `count` in each minute, with a burst of `count`.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_minute(count: u32) -> Self {
        Self::new(count, Duration::from_secs(60))
    }

    /// `count` in each hour, with a burst of `count`.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_hour(count: u32) -> Self {
        Self::new(count, Duration::from_secs(60 * 60))
    }

    /// `count` in each 24 hours, whenever they begin, with a burst of `count`.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_day(count: u32) -> Self {
        Self::new(count, Duration::from_secs(24 * 60 * 60))
    }

    /// Room for `burst` at once, in place of `count`. 1 spaces requests evenly.
    ///
    /// # Panics
    ///
    /// If `burst` is zero, or if it would take more than 100 years to regain.
    #[track_caller]
    pub fn burst(self, burst: u32) -> Self {
        self.checked_burst(burst).unwrap_or_else(|invalid| panic!("{invalid}"))
    }

    fn checked(count: u32, per: Duration) -> Result<Self, Invalid> {
        if count == 0 || per.is_zero() {
            return Err(Invalid::Zero { count, per });
        }
        let nanos = crate::time::nanos(per);
        if nanos < u64::from(count) {
            return Err(Invalid::Dense { count, per });
        }
        let step = nanos.div_ceil(u64::from(count));
        Rate { count, per, burst: count, step }.checked_burst(count)
    }

    fn checked_burst(self, burst: u32) -> Result<Self, Invalid> {
        if burst == 0 {
            return Err(Invalid::NoBurst);
        }
        if self.step.saturating_mul(u64::from(burst)) > LONGEST_SPAN {
            return Err(Invalid::Long { count: self.count, per: self.per, burst });
        }
        Ok(Rate { burst, ..self })
    }

    /// How many are admitted in each [`per`](Self::per), in the long run.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The time in which [`count`](Self::count) are admitted, in the long run.
    pub fn per(&self) -> Duration {
        self.per
    }

    /// How many are admitted at once after a long rest; also the greatest cost that one request can have.
    pub fn burst_size(&self) -> u32 {
        self.burst
    }

    /// Nanoseconds in which an empty bucket becomes full. The constructors keep it below 100 years.
    fn span(&self) -> u64 {
        self.step * u64::from(self.burst)
    }

    /// How many nanoseconds of the span `units` take.
    fn length(&self, units: u32) -> u64 {
        self.step.saturating_mul(u64::from(units))
    }

    /// `per` scaled to the burst. Unlike the span it is not rounded to steps: 7 per minute is told as 60 s.
    fn window(&self) -> Duration {
        if self.burst == self.count {
            return self.per;
        }
        let nanos = self.per.as_nanos() * u128::from(self.burst) / u128::from(self.count);
        // At most the span, which is a u64.
        Duration::from_nanos(nanos as u64)
    }
}

/// Why there is no such rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalid {
    Zero { count: u32, per: Duration },
    Dense { count: u32, per: Duration },
    NoBurst,
    Long { count: u32, per: Duration, burst: u32 },
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Zero { count, per } => {
                write!(f, "a rate needs a count and a time above zero, not {count} per {per:?}")
            }
            Invalid::Dense { count, per } => write!(f, "a rate of {count} per {per:?} is more than one a nanosecond"),
            Invalid::NoBurst => write!(f, "a rate needs a burst of at least 1, not 0"),
            Invalid::Long { count, per, burst } => {
                write!(f, "a burst of {burst} at {count} per {per:?} takes more than 100 years to regain")
            }
        }
    }
}

impl Algorithm for Rate {
    type State = State;

    fn fresh(&self, at: Moment) -> State {
        State::new(self.span(), at.now)
    }

    /// A state is in time: two rates of one span mean the same share of a budget by it, whatever their steps are.
    fn made(&self, state: &State) -> bool {
        state.span() == self.span()
    }

    fn spent(state: &State, at: Moment) -> Spent {
        state.spent(at.now)
    }

    fn with_spent(&self, spent: Spent, at: Moment) -> State {
        State::with_spent(self.span(), spent, at.now)
    }

    fn advance(&self, state: &mut State, at: Moment, rebooted: bool) {
        if rebooted {
            state.reboot(at.now);
        } else {
            state.advance(at.now);
        }
    }

    fn earliest(&self, state: &State, from: u64, cost: u32) -> Option<u64> {
        match cost {
            0 => Some(from),
            _ if cost > self.burst => None,
            _ => state.earliest(from, self.length(cost)),
        }
    }

    fn take(&self, state: &mut State, turn: u64, cost: u32) -> Slot {
        if cost == 0 { Slot::default() } else { state.take(turn, self.length(cost)) }
    }

    /// To be called on the rate that took the slot. Under another span, or in another life of the name, nothing is freed.
    fn free(&self, state: &mut State, slot: Slot, units: u32, now: u64) {
        if self.made(state) {
            state.free(slot, self.length(units), now);
        }
    }

    fn charge(&self, state: &mut State, units: u32, now: u64) {
        state.charge(self.length(units), now);
    }

    fn quota(&self, state: &State, now: u64) -> Quota {
        Quota {
            name: None,
            limit: self.burst,
            // At most span / step, which is the burst.
            remaining: (state.room(now) / self.step).min(u64::from(self.burst)) as u32,
            reset: Duration::from_nanos(state.full_at().saturating_sub(now)),
            window: self.window(),
        }
    }

    fn ends(&self, state: &State) -> u64 {
        state.full_at()
    }

    fn encode(state: &State, out: &mut Vec<u8>) {
        state.encode(out);
    }

    fn decode(bytes: &[u8]) -> Option<State> {
        State::decode(bytes)
    }
}
