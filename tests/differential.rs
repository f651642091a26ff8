//! The throttle beside two limiters that others have written: governor, and throttlecrab, which both know costs. The same
//! arrivals, costs and rates, and the same verdicts to the nanosecond; where the others differ, a test says how and why.

use governor::{
    RateLimiter,
    clock::{Clock as _, FakeRelativeClock},
    middleware::StateInformationMiddleware,
    state::{InMemoryState, NotKeyed},
};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, RngSeed, TestRunner},
};
use std::{
    cell::Cell,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tower_floodgate::{
    Cache,
    throttle::{LimitError, Limiter, Rate},
    time::clock_fn,
};

const SEQUENCES: u32 = 100_000;
/// Machine time at the start, in ns: a date, so that it can be told to throttlecrab, which wants the calendar's time.
const START: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3_600 * SECOND;

fn nanos(n: u64) -> Duration {
    Duration::from_nanos(n)
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a limiter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Admitted {
        remaining: u32,
    },
    Later(Duration),
    /// The cost is above the burst.
    Never,
}

use Verdict::{Admitted, Later, Never};

/// Asks ours for `cost` now: the verdict, and what is left after it.
fn check(limiter: &Limiter, cost: u32) -> (Verdict, u32) {
    match limiter.cost(cost).check_blocking() {
        Ok(permit) => (Admitted { remaining: permit.quota.remaining }, permit.quota.remaining),
        Err(LimitError::Throttled { retry_after, quota, .. }) => (retry_after.map_or(Never, Later), quota.remaining),
        Err(error) => panic!("{error}"),
    }
}

/// One clock for everybody.
#[derive(Clone)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn new() -> Time {
        Time(Arc::new(AtomicU64::new(START)))
    }

    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }

    fn advance(&self, by: u64) {
        self.0.fetch_add(by, SeqCst);
    }

    fn cache(&self) -> Cache {
        let time = self.clone();
        let clock = clock_fn(move || nanos(time.now()), |_| std::future::pending());
        Cache::builder_temporary().clock(clock).open().unwrap()
    }
}

/// What everybody is told to keep to: `burst` at once and one each `step` ns.
#[derive(Clone, Copy, Debug)]
struct Limits {
    rate: Rate,
    step: u64,
    burst: u32,
}

impl Limits {
    fn new(count: u32, per: u64, burst: u32) -> Limits {
        Limits { rate: Rate::new(count, nanos(per)).burst(burst), step: per.div_ceil(u64::from(count)), burst }
    }

    /// Rates are whole nanoseconds a unit for all three. governor is told so; throttlecrab takes whole seconds and is told
    /// "a thousand million in `step` seconds", which is the same unless its floating point is off by one: see
    /// `throttlecrab_computes_its_interval_in_floating_point`.
    fn can_be_told(&self) -> bool {
        let theirs = throttlecrab::Rate::from_count_and_period(SECOND as i64, self.step as i64);
        theirs.period() == nanos(self.step)
    }
}

struct Peers {
    governor: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, StateInformationMiddleware>,
    clock: FakeRelativeClock,
    throttlecrab: throttlecrab::RateLimiter<Row>,
    limits: Limits,
}

/// throttlecrab's store, for one name: forgets the row when the bucket is full. Its own stores keep it longer, and then it
/// admits too much: see `throttlecrab_admits_nearly_two_bursts_after_a_rest`.
struct Row {
    tat: Option<i64>,
    step: u64,
}

fn date(now: u64) -> SystemTime {
    UNIX_EPOCH + nanos(now)
}

impl throttlecrab::Store for Row {
    fn compare_and_swap_with_ttl(
        &mut self,
        _: &str,
        old: i64,
        new: i64,
        _: Duration,
        _: SystemTime,
    ) -> Result<bool, String> {
        assert_eq!(self.tat, Some(old));
        self.tat = Some(new);
        Ok(true)
    }

    fn get(&self, _: &str, now: SystemTime) -> Result<Option<i64>, String> {
        // Its arrival times are one step before everybody else's.
        Ok(self.tat.filter(|tat| date(*tat as u64 + self.step) > now))
    }

    fn set_if_not_exists_with_ttl(&mut self, _: &str, new: i64, _: Duration, _: SystemTime) -> Result<bool, String> {
        self.tat = Some(new);
        Ok(true)
    }
}

impl Peers {
    fn new(limits: Limits) -> Peers {
        let quota = governor::Quota::with_period(nanos(limits.step)).unwrap();
        let quota = quota.allow_burst(NonZeroU32::new(limits.burst).unwrap());
        let clock = FakeRelativeClock::default();
        let governor = RateLimiter::direct_with_clock(quota, clock.clone()).with_middleware();
        let throttlecrab = throttlecrab::RateLimiter::new(Row { tat: None, step: limits.step });
        Peers { governor, clock, throttlecrab, limits }
    }

    /// `None`: governor cannot be asked for nothing.
    fn governor(&self, cost: u32) -> Option<Verdict> {
        Some(match self.governor.check_n(NonZeroU32::new(cost)?) {
            Err(_) => Never,
            Ok(Err(until)) => Later(until.wait_time_from(self.clock.now())),
            Ok(Ok(state)) => Admitted { remaining: state.remaining_burst_capacity() },
        })
    }

    /// `None`: not with a burst of 1, see `throttlecrab_takes_a_burst_of_1_for_no_limit`.
    fn throttlecrab(&mut self, cost: u32, now: u64) -> Option<(Verdict, u32)> {
        let Limits { step, burst, .. } = self.limits;
        let (burst, step) = ((burst > 1).then_some(burst)?, step as i64);
        let (admitted, told) =
            self.throttlecrab.rate_limit("", burst.into(), SECOND as i64, step, cost.into(), date(now)).unwrap();
        let remaining = u32::try_from(told.remaining).unwrap();
        let verdict = match admitted {
            true => Admitted { remaining },
            // It tells a time here too, at which the same is refused again.
            false if cost > burst => Never,
            false => Later(told.retry_after),
        };
        Some((verdict, remaining))
    }
}

/// What happens before somebody comes.
#[derive(Clone, Copy, Debug)]
enum Pause {
    None,
    /// Parts of a step, of 1,000.
    Part(u64),
    /// Whole steps, and a nanosecond less or more.
    Steps(u64, i64),
    /// What the last refusal said, or one nanosecond less.
    AsTold(u64),
    /// Until the bucket is full, and some steps longer.
    Rest(u64),
}

/// From 1 to `most`, each power of two as likely as the others.
fn any_size(most: u64) -> impl Strategy<Value = u64> {
    (0..=most.ilog2(), any::<u64>()).prop_map(move |(power, n)| ((1 << power) + n % (1 << power)).min(most))
}

fn limits() -> impl Strategy<Value = Limits> {
    let burst = prop_oneof![3 => 1..8_u64, 1 => any_size(1_000)];
    (any_size(100_000), any_size(HOUR), 0..3_u64, burst)
        .prop_map(|(count, step, odd, burst)| {
            // Mostly a step that does not come out even.
            let per = (step * count).saturating_sub(odd).max(count);
            Limits::new(count as u32, per, burst as u32)
        })
        .prop_filter("not told exactly", Limits::can_be_told)
}

fn pauses() -> impl Strategy<Value = Pause> {
    prop_oneof![
        6 => Just(Pause::None),
        4 => (0..3_000_u64).prop_map(Pause::Part),
        4 => (0..4_u64, -1..=1_i64).prop_map(|(n, odd)| Pause::Steps(n, odd)),
        4 => (0..2_u64).prop_map(Pause::AsTold),
        1 => (0..20_u64).prop_map(Pause::Rest),
    ]
}

/// Who comes after what pause, and with what cost: a number, or a share of the burst and a bit.
fn asks() -> impl Strategy<Value = Vec<(Pause, u32, bool)>> {
    prop::collection::vec((pauses(), 0..9_u32, any::<bool>()), 8..=20)
}

fn play(cache: &Cache, time: &Time, name: &str, limits: Limits, asks: &[(Pause, u32, bool)]) -> [u32; 3] {
    let (mut peers, mut tally) = (Peers::new(limits), [0; 3]);
    let ours = cache.throttle(name, limits.rate);
    let (mut told, mut full) = (0_u64, time.now());
    for &(pause, number, share) in asks {
        let now = time.now();
        let pause = match pause {
            Pause::None => 0,
            Pause::Part(part) => (u128::from(limits.step) * u128::from(part) / 1_000) as u64,
            Pause::Steps(steps, odd) => (limits.step * steps).saturating_add_signed(odd),
            Pause::AsTold(less) => told.saturating_sub(less),
            Pause::Rest(steps) => full.saturating_sub(now) + steps * limits.step,
        };
        time.advance(pause);
        peers.clock.advance(nanos(pause));
        let cost = if share { limits.burst * number / 8 + number % 2 } else { number };
        let (verdict, remaining) = check(&ours, cost);
        let what = || format!("{limits:?}, {asks:?}: a cost of {cost} after {pause} ns");
        if let Some(governor) = peers.governor(cost) {
            assert_eq!(verdict, governor, "governor, {}", what());
        }
        if let Some(throttlecrab) = peers.throttlecrab(cost, time.now()) {
            assert_eq!((verdict, remaining), throttlecrab, "throttlecrab, {}", what());
        }
        told = if let Later(delay) = verdict { delay.as_nanos() as u64 } else { 0 };
        if let Admitted { .. } = verdict {
            full = full.max(time.now()) + limits.step * u64::from(cost);
        }
        match verdict {
            Admitted { .. } => tally[0] += 1,
            Later(_) => tally[1] += 1,
            Never => tally[2] += 1,
        }
    }
    tally
}

#[test]
fn the_same_verdicts_as_governor_and_throttlecrab() {
    let time = Time::new();
    let cache = time.cache();
    let config = ProptestConfig {
        // The default one takes more time than everything else, in a debug build.
        rng_algorithm: RngAlgorithm::XorShift,
        rng_seed: RngSeed::Fixed(371),
        failure_persistence: None,
        ..ProptestConfig::with_cases(SEQUENCES)
    };
    let (next, tally) = (Cell::new(0), Cell::new([0; 3]));
    let sequences = TestRunner::new(config).run(&(limits(), asks()), |(limits, asks)| {
        let name = next.replace(next.get() + 1).to_string();
        let (all, played) = (tally.get(), play(&cache, &time, &name, limits, &asks));
        tally.set([0, 1, 2].map(|verdict| all[verdict] + played[verdict]));
        Ok(())
    });
    sequences.unwrap();
    assert!(next.get() >= SEQUENCES);
    assert!(tally.get().iter().all(|&verdicts| verdicts > SEQUENCES), "hardly tried: {tally:?}");
    let stats = cache.stats();
    assert_eq!((stats.cells_evicted, stats.damaged), (0, 0));
}

// Where they differ.

/// A unit that takes no whole number of nanoseconds is rounded up by ours, so that no more than the rate is admitted, and
/// down by both others, which admit a little more.
#[test]
fn others_round_the_interval_down() {
    let time = Time::new();
    let ours = time.cache().throttle("", Rate::new(3, secs(1)));
    let clock = FakeRelativeClock::default();
    let governor =
        RateLimiter::direct_with_clock(governor::Quota::per_second(NonZeroU32::new(3).unwrap()), clock.clone());
    assert_eq!(check(&ours, 3).0, Admitted { remaining: 0 });
    assert!(governor.check_n(NonZeroU32::new(3).unwrap()).unwrap().is_ok());
    assert_eq!(check(&ours, 1).0, Later(nanos(333_333_334)));
    assert_eq!(governor.check().unwrap_err().wait_time_from(clock.now()), nanos(333_333_333));
    assert_eq!(throttlecrab::Rate::from_count_and_period(3, 1).period(), nanos(333_333_333));
    for pause in [333_333_333, 1] {
        time.advance(pause);
        clock.advance(nanos(pause));
        let sooner = if pause == 1 { Admitted { remaining: 0 } } else { Later(nanos(1)) };
        assert_eq!(check(&ours, 1).0, sooner);
        assert_eq!(governor.check().is_ok(), pause != 1, "it has admitted already");
    }
}

/// Even where it comes out even, an f64 may not say so: a unit of 7.451544629 s is one nanosecond less.
#[test]
fn throttlecrab_computes_its_interval_in_floating_point() {
    let step = 7_451_544_629;
    let theirs = throttlecrab::Rate::from_count_and_period(SECOND as i64, step as i64);
    assert_eq!(theirs.period(), nanos(step - 1));
    let ours = Time::new().cache().throttle("", Rate::new(1, nanos(step)));
    check(&ours, 1);
    assert_eq!(check(&ours, 1).0, Later(nanos(step)));
}

fn stock() -> throttlecrab::RateLimiter<throttlecrab::PeriodicStore> {
    throttlecrab::RateLimiter::new(throttlecrab::PeriodicStore::new())
}

/// throttlecrab cuts what time gives back to two bursts less two in place of one burst, as long as its store has the row.
#[test]
fn throttlecrab_admits_nearly_two_bursts_after_a_rest() {
    let (time, mut theirs) = (Time::new(), stock());
    let ours = time.cache().throttle("", Rate::new(1, secs(1)).burst(10));
    let mut ask = || {
        let theirs = theirs.rate_limit("", 10, 1, 1, 1, date(time.now())).unwrap().0;
        (matches!(check(&ours, 1).0, Admitted { .. }), theirs)
    };
    let mut admitted = || {
        let (ours, theirs): (Vec<bool>, Vec<bool>) = (0..30).map(|_| ask()).unzip();
        [ours, theirs].map(|verdicts| verdicts.into_iter().filter(|&admitted| admitted).count())
    };
    assert_eq!(admitted(), [10, 10]);
    time.advance(18 * SECOND - 1);
    assert_eq!(admitted(), [10, 17]);
    time.advance(1_000 * SECOND);
    assert_eq!(admitted(), [10, 10], "the row is gone");
}

/// With a burst of 1, throttlecrab's rows end when they are written.
#[test]
fn throttlecrab_takes_a_burst_of_1_for_no_limit() {
    let (time, mut theirs) = (Time::new(), stock());
    let ours = time.cache().throttle("", Rate::new(1, secs(1)).burst(1));
    assert_eq!(check(&ours, 1).0, Admitted { remaining: 0 });
    for _ in 0..100 {
        assert!(theirs.rate_limit("", 1, 1, 1, 1, date(time.now())).unwrap().0);
        assert_eq!(check(&ours, 1).0, Later(secs(1)));
    }
}

/// It names a time for what can never be, and calls the end of its row the reset.
#[test]
fn throttlecrab_tells_other_times() {
    let (time, mut theirs) = (Time::new(), stock());
    let ours = time.cache().throttle("", Rate::new(1, secs(1)).burst(5));
    let mut ask = |cost: u32| theirs.rate_limit("", 5, 1, 1, cost.into(), date(time.now())).unwrap();
    assert_eq!(check(&ours, 6).0, Never);
    assert_eq!((ask(6).0, ask(6).1.retry_after), (false, secs(1)));
    check(&ours, 5);
    assert_eq!(ask(5).1.reset_after, secs(4 + 4));
    let Err(LimitError::Throttled { quota, .. }) = ours.check_blocking() else { panic!("admitted") };
    assert_eq!(quota.reset, secs(5));
}

/// A cost so great that its time overflows: ours is refused for ever, governor panics, or admits where the build does not
/// check.
#[test]
fn governor_overflows_with_a_great_cost() {
    let (step, cost) = (1 << 33, (1 << 31) + 1);
    let ours = Time::new().cache().throttle("", Rate::new(1, nanos(step)).burst(2));
    assert_eq!(check(&ours, cost).0, Never);
    assert_eq!(check(&ours, u32::MAX).0, Never);
    let quota = governor::Quota::with_period(nanos(step)).unwrap();
    let governor = RateLimiter::direct_with_clock(quota, FakeRelativeClock::default());
    let asked = std::panic::AssertUnwindSafe(|| governor.check_n(NonZeroU32::new(cost).unwrap()));
    let said = std::panic::catch_unwind(asked);
    assert!(matches!(said, Err(_) | Ok(Ok(Ok(_)))), "{said:?}");
}
