//! Computations under way in this process, as in Go's `singleflight`: one for each key. The request that leads it computes,
//! and the others that want the same follow it.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

/// A value that a leader shares with its followers. Its type depends on what is computed.
pub(crate) type SharedValue = Arc<dyn Any + Send + Sync>;

/// How a computation ended.
#[derive(Clone)]
pub(crate) enum Outcome {
    /// It is being stored.
    Kept(SharedValue),
    /// It may not be stored. Each follower goes on alone, unless the service has `failed` and there is a stale answer.
    NotKept { failed: bool },
    /// The leader failed, panicked or was dropped. Another may lead, or share the failure, if there is a value for that.
    Failed(Option<SharedValue>),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Kept(_) => "Kept",
            Outcome::NotKept { .. } => "NotKept",
            Outcome::Failed(_) => "Failed",
        })
    }
}

/// What a follower waits for.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The answer is being recorded, and can be read meanwhile.
    Readable(SharedValue),
    Ended(Outcome),
}

/// All computations under way.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Mutex<HashMap<[u8; 16], Arc<Flight>>>,
}

/// One computation.
#[derive(Debug)]
pub(crate) struct Flight {
    /// The purge sequence when it began.
    sequence: AtomicU64,
    /// When it began, in ns.
    began: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running { recording: Option<SharedValue>, wakers: Vec<Option<Waker>>, free: Vec<usize> },
    Ended(Outcome),
}

/// What a request is to the computation of its key.
#[derive(Debug)]
pub(crate) enum Role {
    Lead(Lead),
    Follow(Arc<Flight>),
    /// It has ended, and its answer is not on disk yet.
    Ended(Outcome),
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the flight of a key, or leads a new one. A flight that began before the purge `sequence` is not followed, nor
    /// one that began `follow_for` ns ago: a flight that never ends must not block its key for ever.
    pub(crate) fn join(self: &Arc<Self>, key: [u8; 16], sequence: u64, now: u64, follow_for: u64) -> Role {
        let mut flights = self.lock();
        let follows = |flight: &&Arc<Flight>| {
            flight.sequence.load(SeqCst) >= sequence && now < flight.began.saturating_add(follow_for)
        };
        if let Some(flight) = flights.get(&key).filter(follows) {
            return match &*flight.lock() {
                State::Running { .. } => Role::Follow(flight.clone()),
                State::Ended(outcome) => Role::Ended(outcome.clone()),
            };
        }
        let overdue = flights.get(&key).is_some_and(|flight| now >= flight.began.saturating_add(follow_for));
        let flight = Arc::new(Flight {
            sequence: AtomicU64::new(sequence),
            began: now,
            state: Mutex::new(State::Running { recording: None, wakers: Vec::new(), free: Vec::new() }),
        });
        flights.insert(key, flight.clone());
        Role::Lead(Lead { flights: self.clone(), key, flight, overdue })
    }
}

/// The right to compute. Where it is dropped before [`finish`](Lead::finish), the flight has failed and another may lead.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    key: [u8; 16],
    flight: Arc<Flight>,
    overdue: bool,
}

impl Lead {
    /// Whether an older flight of the key has been under way for too long.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// The purge sequence to store the answer with.
    pub(crate) fn sequence(&self) -> u64 {
        self.flight.sequence.load(SeqCst)
    }

    /// Says that the computation begins only now, at this purge sequence.
    pub(crate) fn begin(&self, sequence: u64) {
        self.flight.sequence.fetch_max(sequence, SeqCst);
    }

    /// Lets the followers read the answer while it is recorded.
    pub(crate) fn share(&self, shared: SharedValue) {
        let mut state = self.flight.lock();
        let State::Running { recording, wakers, .. } = &mut *state else { return };
        *recording = Some(shared);
        let wakers: Vec<_> = wakers.iter_mut().filter_map(Option::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Wakes the followers with the outcome. The flight stays visible until the lead is dropped, when the answer is on disk.
    pub(crate) fn finish(&self, outcome: Outcome) {
        let before = std::mem::replace(&mut *self.flight.lock(), State::Ended(outcome));
        if let State::Running { wakers, .. } = before {
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
        let is_running = matches!(&*self.flight.lock(), State::Running { .. });
        if is_running {
            self.finish(Outcome::Failed(None));
        }
    }
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome or, with `read_along`, for a recording that can be read.
    pub(crate) fn follow(self: Arc<Self>, read_along: bool) -> Follower {
        Follower { flight: self, read_along, at: None }
    }
}

/// The future of [`Flight::follow`].
#[derive(Debug)]
pub(crate) struct Follower {
    flight: Arc<Flight>,
    read_along: bool,
    /// The place of its waker.
    at: Option<usize>,
}

impl Future for Follower {
    type Output = Progress;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Progress> {
        let this = &mut *self;
        match &mut *this.flight.lock() {
            State::Ended(outcome) => Poll::Ready(Progress::Ended(outcome.clone())),
            State::Running { recording: Some(shared), .. } if this.read_along => {
                Poll::Ready(Progress::Readable(shared.clone()))
            }
            State::Running { wakers, free, .. } => {
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

impl Drop for Follower {
    fn drop(&mut self) {
        if let (Some(at), State::Running { wakers, free, .. }) = (self.at, &mut *self.flight.lock()) {
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
    const FOLLOWED: u64 = 60;

    fn lead(flights: &Arc<Flights>, sequence: u64, now: u64) -> Lead {
        match flights.join(KEY, sequence, now, FOLLOWED) {
            Role::Lead(lead) => lead,
            other => panic!("{other:?} is under way"),
        }
    }

    fn follow(flights: &Arc<Flights>, sequence: u64, now: u64) -> Follower {
        match flights.join(KEY, sequence, now, FOLLOWED) {
            Role::Follow(flight) => flight.follow(true),
            other => panic!("{other:?} is no flight under way"),
        }
    }

    fn poll(follower: &mut Follower) -> Poll<Outcome> {
        let polled = Pin::new(follower).poll(&mut Context::from_waker(Waker::noop()));
        polled.map(|progress| match progress {
            Progress::Ended(outcome) => outcome,
            Progress::Readable(_) => panic!("nothing is recorded"),
        })
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
    fn a_dropped_lead_has_failed_and_an_ended_one_stays_ended() {
        let flights = Arc::<Flights>::default();
        let dropped = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        assert!(poll(&mut follower).is_pending());
        drop(dropped);
        assert!(matches!(poll(&mut follower), Poll::Ready(Outcome::Failed(None))));

        let ended = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        ended.finish(Outcome::NotKept { failed: false });
        assert!(
            matches!(flights.join(KEY, 0, 0, FOLLOWED), Role::Ended(Outcome::NotKept { .. })),
            "visible until it is on disk"
        );
        drop(ended);
        assert!(matches!(poll(&mut follower), Poll::Ready(Outcome::NotKept { .. })));
    }

    #[test]
    fn followers_that_come_and_go_leave_no_trace() {
        let flights = Arc::<Flights>::default();
        let lead = lead(&flights, 0, 0);
        for _ in 0..1000 {
            let mut pair = [follow(&flights, 0, 0), follow(&flights, 0, 0)];
            pair.iter_mut().for_each(|one| assert!(poll(one).is_pending()));
        }
        let State::Running { wakers, free, .. } = &*lead.flight.lock() else { panic!("it has ended") };
        assert_eq!((wakers.len(), free.len()), (2, 2));
    }
}
