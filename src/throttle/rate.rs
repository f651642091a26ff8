//! The arithmetic of the throttle: GCRA in its "virtual scheduling" form (ITU-T I.371), as pure functions.
//!
//! All state is one theoretical arrival time (TAT): the machine time, in nanoseconds, at which the bucket is full
//! again. Absent means full. Each admission of `cost` moves it forward by `cost` steps; what would move it further
//! than the burst span past the present has to wait or is refused.

use super::Quota;
use std::{fmt, time::Duration};

/// 100 years in nanoseconds. No span is longer, so that a time of today plus a span stays far below `u64::MAX`.
const LONGEST_SPAN: u64 = 100 * 31_557_600 * 1_000_000_000;

/// How often: `count` per `per`, with room for a burst at once.
///
/// An idle name may spend its whole burst at once and regains it at `count` per `per`. In any stretch of time `w`, at
/// most `burst + w * count / per` is admitted. One unit takes a whole number of nanoseconds, rounded up; rates above
/// some ten million a second are therefore noticeably slower than they say, and never faster.
///
/// Displays as `100/60s`, or `100/60s burst 20` where the burst is not the count.
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
        assert!(count > 0 && !per.is_zero(), "a rate needs a count and a time above zero, not {count} per {per:?}");
        let nanos = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        assert!(nanos >= u64::from(count), "a rate of {count} per {per:?} is more than one a nanosecond");
        let step = nanos.div_ceil(u64::from(count));
        Rate { count, per, burst: count, step }.burst(count)
    }

    /// Room for `burst` at once, in place of `count`. 1 spaces requests evenly.
    ///
    /// # Panics
    ///
    /// If `burst` is zero, or if it would take more than 100 years to regain.
    #[track_caller]
    pub fn burst(self, burst: u32) -> Self {
        assert!(burst > 0, "a rate needs a burst of at least 1, not {burst}");
        let span = self.step.saturating_mul(u64::from(burst));
        assert!(
            span <= LONGEST_SPAN,
            "a burst of {burst} at {} per {:?} takes more than 100 years to regain",
            self.count,
            self.per
        );
        Rate { burst, ..self }
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

    /// The emission interval: nanoseconds for one unit, rounded up so that no more than the rate is admitted.
    #[cfg(test)]
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Nanoseconds in which an empty bucket becomes full. The constructors keep it below 100 years.
    fn span(&self) -> u64 {
        self.step * u64::from(self.burst)
    }

    /// Whether a request of `cost` that arrives at `now` is admitted, and after what wait.
    ///
    /// A request with patience reserves its turn at once: the time to store already counts it. A refusal stores
    /// nothing. Cost 0 is always admitted at once and leaves the time as it was (0, which is as good as absent, if
    /// there was none). A `now` older than that of an earlier call delays; it never admits more.
    pub(crate) fn decide(&self, tat: Option<u64>, now: u64, cost: u32, patience: Duration) -> Decision {
        if cost == 0 {
            return Decision::Admit { tat: tat.unwrap_or(0), wait: Duration::ZERO, quota: self.quota(tat, now) };
        }
        let refuse = |retry_after| Decision::Refuse { retry_after, quota: self.quota(tat, now) };
        if cost > self.burst {
            return refuse(None);
        }
        let start = tat.unwrap_or(0).max(now);
        // Not saturating: a time that stands still at its end would admit everyone.
        let Some(next) = start.checked_add(self.step * u64::from(cost)) else {
            return refuse(None);
        };
        let wait = Duration::from_nanos(next.saturating_sub(self.span()).saturating_sub(now));
        if wait > patience {
            return refuse(Some(wait - patience));
        }
        Decision::Admit { tat: next, wait, quota: self.quota(Some(next), now) }
    }

    /// Returns the time to store when the request that was given `reserved` for `cost` will not take its turn.
    /// `None`: keep what is stored, because others have reserved since and moving the time back would give one turn
    /// to two.
    ///
    /// To be called at most once a reservation.
    pub(crate) fn give_back(&self, tat: Option<u64>, reserved: u64, cost: u32) -> Option<u64> {
        let last = tat == Some(reserved) && (1..=self.burst).contains(&cost);
        last.then(|| reserved.saturating_sub(self.step * u64::from(cost)))
    }

    /// A time read after a reboot: nobody waits any more, so the bucket is empty at worst.
    pub(crate) fn cut(&self, tat: u64, now: u64) -> u64 {
        tat.min(now.saturating_add(self.span()))
    }

    /// What is left at `now`, without taking any of it.
    pub(crate) fn quota(&self, tat: Option<u64>, now: u64) -> Quota {
        let debt = tat.unwrap_or(0).saturating_sub(now);
        let room = self.span().saturating_sub(debt);
        Quota {
            name: None,
            limit: self.burst,
            // At most span / step, which is the burst.
            remaining: (room / self.step) as u32,
            reset: Duration::from_nanos(debt),
            window: self.window(),
        }
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

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.count, self.per)?;
        if self.burst != self.count {
            write!(f, " burst {}", self.burst)?;
        }
        Ok(())
    }
}

/// What [`Rate::decide`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Let it pass after `wait`, and store `tat` now.
    Admit {
        /// The time to store; also the reservation to name in [`Rate::give_back`].
        tat: u64,
        /// How long until its turn; zero for at once, never more than the patience.
        wait: Duration,
        /// What is left after it.
        quota: Quota,
    },
    /// Turn it away, and store nothing.
    Refuse {
        /// The same request with the same patience is admitted after exactly this time, above zero, if nobody else
        /// comes. `None`: never, since its cost is above the burst (or its turn past the end of machine time).
        retry_after: Option<Duration>,
        /// What is left.
        quota: Quota,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    const NOW: u64 = 1_800_000_000_000_000_000;
    const SECOND: u64 = 1_000_000_000;
    const EVER: u64 = u64::MAX;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn nanos(n: u64) -> Duration {
        if n == EVER { Duration::MAX } else { Duration::from_nanos(n) }
    }

    /// The time to store and the wait, or else when to ask again.
    type Outcome = Result<(u64, u64), Option<u64>>;

    fn ask(rate: &Rate, tat: Option<u64>, now: u64, cost: u32, patience: u64) -> Outcome {
        match rate.decide(tat, now, cost, nanos(patience)) {
            Decision::Admit { tat, wait, .. } => Ok((tat, wait.as_nanos() as u64)),
            Decision::Refuse { retry_after, .. } => Err(retry_after.map(|d| d.as_nanos() as u64)),
        }
    }

    #[test]
    fn a_burst_passes_then_one_a_step() {
        let rate = Rate::new(3, secs(60));
        let mut tat = None;
        for left in [2, 1, 0] {
            let Decision::Admit { tat: next, wait, quota } = rate.decide(tat, NOW, 1, nanos(0)) else {
                panic!("refused with {left} to be left");
            };
            let reset = secs(20 * u64::from(3 - left));
            assert_eq!((quota.remaining, quota.reset, wait), (left, reset, nanos(0)));
            assert_eq!((quota.limit, quota.window), (3, secs(60)));
            tat = Some(next);
        }
        let turn = NOW + 20 * SECOND;
        assert_eq!(ask(&rate, tat, NOW, 1, 0), Err(Some(20 * SECOND)));
        assert_eq!(ask(&rate, tat, turn - 1, 1, 0), Err(Some(1)));
        assert_eq!(ask(&rate, tat, turn, 1, 0), Ok((NOW + 80 * SECOND, 0)));
        assert_eq!(rate.quota(tat, NOW + 60 * SECOND), rate.quota(None, NOW));
    }

    #[test]
    fn waiters_reserve_and_the_last_gives_back() {
        let rate = Rate::new(1, secs(1));
        let (first, _) = ask(&rate, None, NOW, 1, EVER).unwrap();
        let (second, wait) = ask(&rate, Some(first), NOW, 1, EVER).unwrap();
        assert_eq!(wait, SECOND);
        let (third, wait) = ask(&rate, Some(second), NOW, 1, EVER).unwrap();
        assert_eq!(wait, 2 * SECOND);
        assert_eq!(rate.quota(Some(third), NOW).reset, secs(3));
        assert_eq!(ask(&rate, Some(third), NOW, 1, SECOND), Err(Some(2 * SECOND)));

        assert_eq!(rate.give_back(Some(third), second, 1), None);
        assert_eq!(rate.give_back(Some(third), third, 1), Some(second));
        assert_eq!(rate.give_back(None, third, 1), None);
    }

    #[test]
    fn cost_zero_passes_and_changes_nothing() {
        let rate = Rate::new(1, secs(1));
        assert_eq!(ask(&rate, Some(NOW + SECOND), NOW, 0, 0), Ok((NOW + SECOND, 0)));
        assert_eq!(ask(&rate, None, NOW, 0, 0), Ok((0, 0)));
        assert_eq!(rate.quota(Some(0), 0), rate.quota(None, 0));
    }

    #[test]
    fn what_never_fits_is_told_so() {
        let rate = Rate::new(10, secs(1)).burst(2);
        assert_eq!(ask(&rate, None, NOW, 2, 0), Ok((NOW + SECOND / 5, 0)));
        assert_eq!(ask(&rate, None, NOW, 3, EVER), Err(None));
        assert_eq!(ask(&rate, Some(u64::MAX - 1), NOW, 1, EVER), Err(None));
    }

    #[test]
    fn a_reboot_forgets_who_waited() {
        let rate = Rate::new(2, secs(2));
        assert_eq!(rate.cut(NOW + 60 * SECOND, NOW), NOW + 2 * SECOND);
        assert_eq!(rate.cut(NOW + SECOND, NOW), NOW + SECOND);
        assert_eq!(rate.cut(u64::MAX, u64::MAX - 1), u64::MAX);
    }

    #[test]
    fn rates_say_what_they_are() {
        let rate = Rate::new(100, secs(60));
        let small = rate.burst(20);
        assert_eq!(rate.to_string(), "100/60s");
        assert_eq!(small.to_string(), "100/60s burst 20");
        assert_eq!((small.count(), small.per(), small.burst_size()), (100, secs(60), 20));
        assert_eq!(small.quota(None, NOW).window, secs(12));
        assert_eq!(small.burst(100), rate);
        assert_eq!(Rate::new(7, secs(60)).step(), 8_571_428_572);
        assert_eq!(Rate::new(7, secs(60)).quota(None, NOW).window, secs(60));
        assert_eq!(Rate::new(u32::MAX, secs(5)).step(), 2);
    }

    #[test]
    fn bad_rates_panic_and_name_the_value() {
        let says = |make: fn() -> Rate, what: &str| {
            let panic = std::panic::catch_unwind(make).unwrap_err();
            let message = panic.downcast::<String>().unwrap();
            assert!(message.contains(what), "{message}");
        };
        says(|| Rate::new(0, secs(3)), "0 per 3s");
        says(|| Rate::new(3, secs(0)), "3 per 0ns");
        says(|| Rate::new(11, nanos(10)), "11 per 10ns");
        says(|| Rate::new(1, Duration::MAX), "1 per 18446744073709551615.999999999s");
        says(|| Rate::new(1, secs(60)).burst(0), "not 0");
        says(|| Rate::new(1, secs(60)).burst(u32::MAX), "4294967295 at 1 per 60s");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Advance(u64),
        /// Cost, patience, and how old the asker's idea of the time is.
        Ask(u32, u64, u64),
        /// One who waits goes away: the last (0), or another.
        Leave(usize),
        Reboot,
    }

    fn rates() -> impl Strategy<Value = Rate> {
        (1..8u32, 8..100u64, 1..8u32).prop_map(|(count, per, burst)| Rate::new(count, nanos(per)).burst(burst))
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let patience = prop_oneof![Just(0), 0..200u64, Just(EVER)];
        let lag = prop_oneof![4 => Just(0), 1 => 0..20u64];
        let event = prop_oneof![
            10 => (0..60u64).prop_map(Event::Advance),
            20 => (0..9u32, patience, lag).prop_map(|(c, p, l)| Event::Ask(c, p, l)),
            5 => (0..4usize).prop_map(Event::Leave),
            1 => Just(Event::Reboot),
        ];
        prop::collection::vec(event, 1..80)
    }

    #[derive(Debug)]
    struct Turn {
        at: u64,
        reserved: u64,
        cost: u32,
    }

    /// Plays the events as the throttle would. Returns the turns that were taken.
    fn play(rate: &Rate, events: Vec<Event>) -> Vec<Turn> {
        let (mut now, mut tat, mut turns) = (NOW, None, Vec::<Turn>::new());
        for event in events {
            match event {
                Event::Advance(by) => now += by,
                Event::Ask(cost, patience, lag) => {
                    let asked = now - lag;
                    let Ok((reserved, wait)) = ask(rate, tat, asked, cost, patience) else {
                        continue;
                    };
                    let debt = tat.unwrap_or(0).saturating_sub(asked);
                    let longest = (debt + u64::from(cost) * rate.step()).saturating_sub(rate.span());
                    assert!(wait <= patience.min(longest), "{wait} > {patience} or {longest}");
                    let at = asked + wait;
                    let before = turns.iter().rfind(|t| t.at > now);
                    assert!(wait == 0 || before.is_none_or(|t| t.at < at), "overtaken");
                    tat = Some(reserved);
                    turns.push(Turn { at, reserved, cost });
                }
                Event::Leave(nth) => {
                    let waits = (0..turns.len()).rev().filter(|&i| turns[i].at > now).nth(nth);
                    if let Some(gone) = waits.map(|i| turns.remove(i)) {
                        tat = rate.give_back(tat, gone.reserved, gone.cost).or(tat);
                    }
                }
                Event::Reboot => {
                    turns.retain(|t| t.at <= now);
                    tat = tat.map(|tat| rate.cut(tat, now));
                }
            }
        }
        turns
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(371),
            failure_persistence: None,
            ..ProptestConfig::with_cases(2_000)
        })]

        #[test]
        fn no_window_admits_more_than_burst_and_rate(rate in rates(), events in events()) {
            let mut turns = play(&rate, events);
            turns.sort_by_key(|t| t.at);
            for (i, first) in turns.iter().enumerate() {
                let mut cost = 0;
                for last in &turns[i..] {
                    cost += u128::from(last.cost);
                    let (per, width) = (rate.per().as_nanos(), u128::from(last.at - first.at));
                    let most = u128::from(rate.burst_size()) * per + width * u128::from(rate.count());
                    prop_assert!(cost * per <= most, "{cost} in {width} ns of {rate}: {turns:?}");
                }
            }
        }

        /// The textbook bucket, in which one unit is `step` drops and one drop comes back each nanosecond.
        #[test]
        fn it_admits_as_much_as_a_token_bucket(
            rate in rates(),
            asks in prop::collection::vec((0..60u64, 1..9u32), 1..80),
        ) {
            let (mut now, mut tat, mut drops) = (NOW, None, rate.span());
            for (advance, cost) in asks {
                now += advance;
                drops = rate.span().min(drops + advance);
                let need = u64::from(cost) * rate.step();
                prop_assert_eq!(u64::from(rate.quota(tat, now).remaining), drops / rate.step());
                match ask(&rate, tat, now, cost, 0) {
                    Ok((next, wait)) => {
                        prop_assert!(need <= drops && wait == 0);
                        drops -= need;
                        tat = Some(next);
                    }
                    Err(retry) => {
                        let fits = cost <= rate.burst_size();
                        prop_assert_eq!(retry, fits.then(|| need - drops));
                    }
                }
            }
        }

        #[test]
        fn retry_after_is_exact(
            rate in rates(), debt in 0..2_000u64, cost in 1..8u32, patience in 0..200u64,
        ) {
            let tat = Some(NOW + debt);
            if let Err(Some(retry)) = ask(&rate, tat, NOW, cost, patience) {
                let again = |after| ask(&rate, tat, NOW + after, cost, patience);
                prop_assert!(retry > 0);
                prop_assert_eq!(again(retry - 1), Err(Some(1)));
                prop_assert_eq!(again(retry).map(|(_, wait)| wait), Ok(patience));
            }
        }

        #[test]
        fn any_state_is_answered(
            count in 1..=u32::MAX, per: u64, burst: u32,
            tat: Option<u64>, now: u64, cost: u32, patience: u64,
        ) {
            let per = per.clamp(u64::from(count), LONGEST_SPAN - u64::from(u32::MAX));
            let rate = Rate::new(count, nanos(per));
            let most = u32::try_from(LONGEST_SPAN / rate.step()).unwrap_or(u32::MAX);
            let rate = rate.burst(burst.clamp(1, most));
            let cost = cost % rate.burst_size().saturating_add(2);
            if let (Ok((next, _)), 1..) = (ask(&rate, tat, now, cost, patience), cost) {
                prop_assert!(next > now && Some(next) > tat);
            }
            rate.give_back(tat, tat.unwrap_or(now), cost);
            rate.give_back(tat, now, cost);
            rate.cut(now, tat.unwrap_or(now));
        }
    }
}
