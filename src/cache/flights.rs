//! Computations under way in this process: one a key, followed by everyone who wants the same.

use super::record::Entry;
use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

/// How long a flight gathers followers, in ns: behind one that never lands a name would be lost.
const FOLLOWED: u64 = 60_000_000_000;
/// Names remembered as not to be stored, at most.
const PASSES: usize = 8192;

/// How a computation ended.
#[derive(Clone, Debug)]
pub(crate) enum Landing {
    /// It is being stored.
    Kept(Entry),
    /// It may not be stored: whoever waited goes on alone.
    NotKept,
    /// The leader failed, panicked or was dropped: another may lead.
    Failed,
}

#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Mutex<HashMap<[u8; 16], Arc<Flight>>>,
    /// Keys whose answers may not be stored, and until when that is remembered.
    passes: Mutex<HashMap<[u8; 16], u64>>,
    passing: AtomicUsize,
}

/// One computation.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The purge sequence when it began.
    sequence: u64,
    /// When it began, in ns.
    began: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Flying { wakers: Vec<Option<Waker>>, free: Vec<usize> },
    Landed(Landing),
}

/// What to do about a key.
#[derive(Debug)]
pub(crate) enum Place {
    Lead(Lead),
    Follow(Arc<Flight>),
    /// Landed and not yet on disk.
    Landed(Landing),
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the flight of a key, or leads it. One that began before the purge `sequence`, or a minute ago, is not
    /// followed.
    pub(crate) fn board(self: &Arc<Self>, key: [u8; 16], sequence: u64, now: u64) -> Place {
        let mut flights = self.lock();
        let follows =
            |flight: &&Arc<Flight>| flight.sequence >= sequence && now < flight.began.saturating_add(FOLLOWED);
        if let Some(flight) = flights.get(&key).filter(follows) {
            return match &*flight.lock() {
                State::Flying { .. } => Place::Follow(flight.clone()),
                State::Landed(landing) => Place::Landed(landing.clone()),
            };
        }
        let flight = Arc::new(Flight {
            sequence,
            began: now,
            state: Mutex::new(State::Flying { wakers: Vec::new(), free: Vec::new() }),
        });
        flights.insert(key, flight.clone());
        Place::Lead(Lead { flights: self.clone(), key, flight })
    }

    /// Remembers until when the answers of a key are not to be stored.
    pub(crate) fn pass_until(&self, key: [u8; 16], until: u64, now: u64) {
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        if passes.len() >= PASSES {
            passes.retain(|_, until| *until > now);
        }
        if passes.len() >= PASSES {
            passes.clear();
        }
        passes.insert(key, until);
        self.passing.store(passes.len(), Relaxed);
    }

    /// Forgets what [`pass_until`](Flights::pass_until) remembers of a key.
    pub(crate) fn pass_no_more(&self, key: &[u8; 16]) {
        if self.passing.load(Relaxed) > 0 {
            let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
            passes.remove(key);
            self.passing.store(passes.len(), Relaxed);
        }
    }

    pub(crate) fn passes(&self, key: &[u8; 16], now: u64) -> bool {
        if self.passing.load(Relaxed) == 0 {
            return false;
        }
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        let passing = passes.get(key).is_some_and(|until| now < *until);
        if !passing {
            passes.remove(key);
            self.passing.store(passes.len(), Relaxed);
        }
        passing
    }
}

/// The right to compute; dropped without a landing, the flight has failed and another may lead.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    key: [u8; 16],
    flight: Arc<Flight>,
}

impl Lead {
    /// The purge sequence to store the answer with.
    pub(crate) fn sequence(&self) -> u64 {
        self.flight.sequence
    }

    /// Tells the followers. The flight stays visible until this is dropped, which is when the answer is on disk.
    pub(crate) fn land(&self, landing: Landing) {
        let before = std::mem::replace(&mut *self.flight.lock(), State::Landed(landing));
        if let State::Flying { wakers, .. } = before {
            wakers.into_iter().flatten().for_each(Waker::wake);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.remove(&self.key);
        }
        drop(flights);
        let flying = matches!(&*self.flight.lock(), State::Flying { .. });
        if flying {
            self.land(Landing::Failed);
        }
    }
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the landing.
    pub(crate) fn landing(self: Arc<Self>) -> Following {
        Following { flight: self, at: None }
    }
}

/// The wait for a flight's landing.
#[derive(Debug)]
pub(crate) struct Following {
    flight: Arc<Flight>,
    /// Where our waker is.
    at: Option<usize>,
}

impl Future for Following {
    type Output = Landing;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Landing> {
        let this = &mut *self;
        match &mut *this.flight.lock() {
            State::Landed(landing) => Poll::Ready(landing.clone()),
            State::Flying { wakers, free } => {
                let at = *this.at.get_or_insert_with(|| {
                    free.pop().unwrap_or_else(|| {
                        wakers.push(None);
                        wakers.len() - 1
                    })
                });
                wakers[at] = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let (Some(at), State::Flying { wakers, free }) = (self.at, &mut *self.flight.lock()) {
            wakers[at] = None;
            free.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    const KEY: [u8; 16] = [7; 16];

    fn lead(flights: &Arc<Flights>, sequence: u64, now: u64) -> Lead {
        match flights.board(KEY, sequence, now) {
            Place::Lead(lead) => lead,
            other => panic!("{other:?} is under way"),
        }
    }

    fn follow(flights: &Arc<Flights>, sequence: u64, now: u64) -> Following {
        match flights.board(KEY, sequence, now) {
            Place::Follow(flight) => flight.landing(),
            other => panic!("{other:?} is no flight under way"),
        }
    }

    fn poll(following: &mut Following) -> Poll<Landing> {
        Pin::new(following).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn only_what_began_after_the_purge_and_lately_is_followed() {
        let flights = Arc::<Flights>::default();
        let old = lead(&flights, 5, 0);
        drop(follow(&flights, 5, 0));
        drop(follow(&flights, 4, FOLLOWED - 1));
        let purged = lead(&flights, 6, 0);
        drop(old);
        drop(follow(&flights, 6, 0));
        let late = lead(&flights, 6, FOLLOWED);
        drop(purged);
        drop(follow(&flights, 6, FOLLOWED));
        drop(late);
        drop(lead(&flights, 0, 0));
        assert!(flights.lock().is_empty());
    }

    #[test]
    fn a_dropped_lead_has_failed_and_a_landed_one_stays_landed() {
        let flights = Arc::<Flights>::default();
        let dropped = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        assert!(poll(&mut follower).is_pending());
        drop(dropped);
        assert!(matches!(poll(&mut follower), Poll::Ready(Landing::Failed)));

        let landed = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        landed.land(Landing::NotKept);
        assert!(matches!(flights.board(KEY, 0, 0), Place::Landed(Landing::NotKept)), "visible until it is on disk");
        drop(landed);
        assert!(matches!(poll(&mut follower), Poll::Ready(Landing::NotKept)));
    }

    #[test]
    fn followers_that_come_and_go_leave_no_trace() {
        let flights = Arc::<Flights>::default();
        let lead = lead(&flights, 0, 0);
        for _ in 0..1000 {
            let mut pair = [follow(&flights, 0, 0), follow(&flights, 0, 0)];
            pair.iter_mut().for_each(|one| assert!(poll(one).is_pending()));
        }
        let State::Flying { wakers, free } = &*lead.flight.lock() else { panic!("it flies") };
        assert_eq!((wakers.len(), free.len()), (2, 2));
    }

    #[test]
    fn what_passes_is_forgotten_in_time_and_bounded() {
        let flights = Flights::default();
        let key = |n: u64| {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&n.to_le_bytes());
            key
        };
        flights.pass_until(key(0), 10, 0);
        assert!(flights.passes(&key(0), 9) && !flights.passes(&key(1), 9));
        assert!(!flights.passes(&key(0), 10) && !flights.passes(&key(0), 9), "forgotten when it is over");
        flights.pass_until(key(0), 10, 0);
        flights.pass_no_more(&key(0));
        assert!(!flights.passes(&key(0), 9));
        for n in 0..3 * PASSES as u64 {
            flights.pass_until(key(n), n + 10, n);
            assert!(flights.passes(&key(n), n));
            assert!(flights.passing.load(Relaxed) <= PASSES);
        }
    }
}
