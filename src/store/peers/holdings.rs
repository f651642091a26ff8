//! The holdings of this process, which it must renew from time to time.
//!
//! Threads of runtimes add and remove holdings, so nothing here walks over them: they are found by number, and those that
//! are due by time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// Holdings that are renewed in one turn at most, so that the worker thread serves its queues in between.
const RENEWALS: usize = 256;

/// Something this process holds and must renew from time to time.
pub(crate) struct Holding {
    /// Its number in the directory. Several guards of one owner have the same.
    pub(crate) number: u64,
    /// Real time at which it must be renewed next, and how often.
    pub(crate) due: Instant,
    pub(crate) every: Duration,
    pub(crate) renew: Weak<dyn Renew>,
}

/// Renews a holding. Never blocks.
pub(crate) trait Renew: Send + Sync {
    fn renew(self: Arc<Self>);
}

/// The number of a holding, and the address of its guard, which no other has while it is kept here.
type Id = (u64, usize);

fn id_of(number: u64, guard: *const (dyn Renew + '_)) -> Id {
    (number, guard.addr())
}

/// All holdings of this process.
#[derive(Default)]
pub(crate) struct Holdings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    held: BTreeMap<Id, Holding>,
    by_due: BTreeSet<(Instant, Id)>,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, holding: Holding) {
        let id = id_of(holding.number, holding.renew.as_ptr());
        let mut inner = self.lock();
        inner.by_due.insert((holding.due, id));
        inner.held.insert(id, holding);
    }

    /// Ends a holding: the one of this guard, since several may have the same number.
    pub(crate) fn remove(&self, number: u64, guard: &dyn Renew) {
        let id = id_of(number, guard);
        let mut inner = self.lock();
        let removed = inner.held.remove(&id);
        if let Some(holding) = &removed {
            inner.by_due.remove(&(holding.due, id));
        }
        drop(inner);
        // It may be the last that knows of its guard, whose memory is freed outside the lock.
        drop(removed);
    }

    /// Whether this process has a holding of the number.
    pub(crate) fn has(&self, number: u64) -> bool {
        self.lock().held.range((number, 0)..=(number, usize::MAX)).next().is_some()
    }

    /// Renews holdings that are due, some at a time. Returns how long until the next one is due, `most` at the longest.
    pub(crate) fn renew(&self, most: Duration) -> Duration {
        let now = Instant::now();
        let (due, next) = self.lock().take_due(now);
        due.into_iter().filter_map(|guard| guard.upgrade()).for_each(Renew::renew);
        next.map_or(most, |next| most.min(next.saturating_duration_since(now)))
    }
}

impl Inner {
    /// The guards of the first holdings that are due, each of which is due again later; and when the next one is.
    fn take_due(&mut self, now: Instant) -> (Vec<Weak<dyn Renew>>, Option<Instant>) {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.by_due.first() {
            if at > now || due.len() == RENEWALS {
                return (due, Some(at));
            }
            self.by_due.pop_first();
            if let Some(holding) = self.held.get_mut(&id) {
                holding.due = now + holding.every;
                self.by_due.insert((holding.due, id));
                due.push(holding.renew.clone());
            }
        }
        (due, None)
    }
}

impl fmt::Debug for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holdings").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::RngSeed};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Renew for Count {
        fn renew(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn holding(number: u64, due: Instant, guard: &Arc<Count>) -> Holding {
        let renew: Weak<dyn Renew> = Arc::downgrade(guard) as Weak<dyn Renew>;
        Holding { number, due, every: HOUR, renew }
    }

    #[test]
    fn a_turn_renews_what_is_due_in_bites_and_nothing_else() {
        let holdings = Holdings::default();
        let now = Instant::now();
        let (due, later) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let guards: Vec<_> = (0..600).map(|_| Arc::new(Count::default())).collect();
        for (number, guard) in guards.iter().enumerate() {
            holdings.add(holding(number as u64, now, guard));
        }
        holdings.add(holding(1_000, now, &due));
        holdings.add(holding(1_001, now + HOUR, &later));
        let renewed = || guards.iter().chain([&due]).map(|guard| guard.0.load(SeqCst)).sum::<usize>();
        for expected in [RENEWALS, 2 * RENEWALS] {
            assert_eq!(holdings.renew(HOUR), Duration::ZERO, "there is more to do");
            assert_eq!(renewed(), expected);
        }
        assert!(holdings.renew(HOUR) > HOUR / 2);
        assert_eq!((renewed(), due.0.load(SeqCst), later.0.load(SeqCst)), (601, 1, 0));
        assert_eq!(holdings.renew(Duration::from_secs(7)), Duration::from_secs(7));
        assert_eq!(renewed(), 601);
    }

    #[test]
    fn a_guard_that_is_gone_is_passed_over() {
        let holdings = Holdings::default();
        let guard = Arc::new(Count::default());
        holdings.add(holding(1, Instant::now(), &guard));
        drop(guard);
        assert!(holdings.renew(HOUR) > HOUR / 2 && holdings.has(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(45), failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_number_is_held_while_any_of_its_guards_is(steps in prop::collection::vec((0..4_u64, any::<bool>(), any::<usize>()), 0..80)) {
            let holdings = Holdings::default();
            let mut held: Vec<(u64, Arc<Count>)> = Vec::new();
            for (number, adds, which) in steps {
                if adds || held.is_empty() {
                    let guard = Arc::new(Count::default());
                    holdings.add(holding(number, Instant::now() + HOUR, &guard));
                    held.push((number, guard));
                } else {
                    let (number, guard) = held.swap_remove(which % held.len());
                    holdings.remove(number, &*guard);
                    holdings.remove(number, &*guard);
                }
                for number in 0..4 {
                    prop_assert_eq!(holdings.has(number), held.iter().any(|held| held.0 == number));
                }
                let inner = holdings.lock();
                prop_assert_eq!((inner.held.len(), inner.by_due.len()), (held.len(), held.len()));
            }
        }
    }
}
