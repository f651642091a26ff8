//! A flood of names that nobody asks for twice, among which some are asked for all the time.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower_floodgate::{
    Cache, Scope,
    throttle::{LimitError, Limiter, Rate},
    time::clock_fn,
};

/// Time between two names of the flood: half a million come in a second.
const APART: u64 = 2_000;
/// So many names of the flood come for each ask for a busy one.
const PER_ASK: u64 = 8;

/// Busy names of one kind: where they are, and their rate.
pub(crate) struct Kind {
    pub(crate) what: &'static str,
    scope: Scope,
    rate: Rate,
    names: Vec<Busy>,
    pub(crate) tally: Tally,
}

/// What busy names asked for and got, beside what a limiter that forgets nothing would have given them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) asked: u64,
    pub(crate) admitted: u64,
    pub(crate) bound: u64,
    /// Admitted while that one refuses, and the other way round.
    pub(crate) wrongly_admitted: u64,
    pub(crate) wrongly_refused: u64,
}

/// A busy name with the textbook bucket: one drop comes back each ns, and a unit is `step` of them.
struct Busy {
    limiter: Limiter,
    drops: u64,
    asked_at: u64,
}

impl Kind {
    fn ask(&mut self, at: usize, now: u64) {
        let step = self.rate.per().as_nanos() as u64 / u64::from(self.rate.count());
        let at = at % self.names.len();
        let Busy { limiter, drops, asked_at } = &mut self.names[at];
        *drops = drops.saturating_add(now - *asked_at).min(step * u64::from(self.rate.burst_size()));
        *asked_at = now;
        let fits = *drops >= step;
        if fits {
            *drops -= step;
        }
        let admitted = check(limiter);
        self.tally.asked += 1;
        self.tally.admitted += u64::from(admitted);
        self.tally.bound += u64::from(fits);
        self.tally.wrongly_admitted += u64::from(admitted && !fits);
        self.tally.wrongly_refused += u64::from(fits && !admitted);
    }
}

pub(crate) struct Flood {
    pub(crate) cache: Cache,
    pub(crate) kinds: Vec<Kind>,
    /// Names that have come, and those that were refused their first.
    pub(crate) names: u64,
    pub(crate) refused: u64,
    time: Arc<AtomicU64>,
}

/// The limit that is flooded, one of the slow kind: each cell stays for 36 s, by when 18 million more names have come.
fn rate() -> Rate {
    Rate::new(100, Duration::from_secs(3_600))
}

impl Flood {
    /// Makes a cache whose `state/` has so many bytes, and so many busy names of each kind.
    pub(crate) fn new(state_size: u64, busy: usize) -> Flood {
        let time = Arc::new(AtomicU64::new(1_000_000_000));
        let now = time.clone();
        let clock = clock_fn(move || Duration::from_nanos(now.load(SeqCst)), |_| std::future::pending());
        let cache = Cache::builder_temporary().state_size(state_size).size(1 << 20).clock(clock).open().unwrap();
        let fast = Rate::new(20, Duration::from_secs(1));
        let kinds = [
            ("of the flooded limit", "flooded", rate()),
            ("of a fast limit", "fast", fast),
            ("of a fast limit without burst", "even", fast.burst(1)),
            ("of a slow limit", "slow", Rate::new(10, Duration::from_secs(86_400))),
        ];
        let kinds = kinds.map(|(what, scope, rate)| {
            let scope = cache.scope(scope);
            let names = (0..busy).map(|i| Busy {
                limiter: scope.throttle(&format!("busy {i}"), rate),
                drops: u64::MAX,
                asked_at: 0,
            });
            Kind { what, names: names.collect(), scope, rate, tally: Tally::default() }
        });
        Flood { cache, kinds: kinds.into(), names: 0, refused: 0, time }
    }

    /// Lets so many new names come, and busy ones of each kind in turn among them.
    pub(crate) fn pour(&mut self, names: u64) {
        let flooded = self.kinds[0].scope.clone();
        for _ in 0..names {
            let admitted = check(&flooded.throttle(&self.names.to_string(), rate()));
            self.refused += u64::from(!admitted);
            self.names += 1;
            let now = self.time.fetch_add(APART, SeqCst) + APART;
            if self.names.is_multiple_of(PER_ASK) {
                let turn = (self.names / PER_ASK) as usize;
                let kinds = self.kinds.len();
                self.kinds[turn % kinds].ask(turn / kinds, now);
            }
        }
    }

    /// How many decisions for busy names were wrong.
    pub(crate) fn wrong(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.tally.wrongly_admitted + kind.tally.wrongly_refused).sum()
    }
}

/// Nobody else writes, so the decision is there at once.
fn check(limiter: &Limiter) -> bool {
    match pin!(limiter.check()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(_)) => true,
        Poll::Ready(Err(LimitError::Throttled { .. })) => false,
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => panic!("had to wait"),
    }
}
