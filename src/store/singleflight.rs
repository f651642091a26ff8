//! Computations under way in this process: one a key, followed by everyone who wants the same.

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

/// What the computations of a kind tell those who follow them.
pub(crate) type Told = Arc<dyn Any + Send + Sync>;

/// How a computation ended.
#[derive(Clone)]
pub(crate) enum Landing {
    /// It is being stored.
    Kept(Told),
    /// It may not be stored: whoever waited goes on alone, unless the service has `failed` and there is something better.
    NotKept { failed: bool },
    /// The leader failed, panicked or was dropped: another may lead, or share what is told of it.
    Failed(Option<Told>),
}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Landing::Kept(_) => "Kept",
            Landing::NotKept { .. } => "NotKept",
            Landing::Failed(_) => "Failed",
        })
    }
}

/// What those who follow a computation hear of it.
#[derive(Debug)]
pub(crate) enum News {
    /// It can be read along.
    Recording(Told),
    Landed(Landing),
}

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
    Flying { recording: Option<Told>, wakers: Vec<Option<Waker>>, free: Vec<usize> },
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

    /// Follows the flight of a key, or leads it. One that began before the purge `sequence` is not followed, nor one that
    /// began `followed` ns ago: behind one that never lands a name would be lost.
    pub(crate) fn board(self: &Arc<Self>, key: [u8; 16], sequence: u64, now: u64, followed: u64) -> Place {
        let mut flights = self.lock();
        let follows = |flight: &&Arc<Flight>| {
            flight.sequence.load(SeqCst) >= sequence && now < flight.began.saturating_add(followed)
        };
        if let Some(flight) = flights.get(&key).filter(follows) {
            return match &*flight.lock() {
                State::Flying { .. } => Place::Follow(flight.clone()),
                State::Landed(landing) => Place::Landed(landing.clone()),
            };
        }
        let overdue = flights.get(&key).is_some_and(|flight| now >= flight.began.saturating_add(followed));
        let flight = Arc::new(Flight {
            sequence: AtomicU64::new(sequence),
            began: now,
            state: Mutex::new(State::Flying { recording: None, wakers: Vec::new(), free: Vec::new() }),
        });
        flights.insert(key, flight.clone());
        Place::Lead(Lead { flights: self.clone(), key, flight, overdue })
    }
}

/// The right to compute; dropped without a landing, the flight has failed and another may lead.
#[derive(Debug)]
pub(crate) struct Lead {
    flights: Arc<Flights>,
    key: [u8; 16],
    flight: Arc<Flight>,
    overdue: bool,
}

impl Lead {
    /// Whether there is another that has been under way for too long.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue
    }

    /// The purge sequence to store the answer with.
    pub(crate) fn sequence(&self) -> u64 {
        self.flight.sequence.load(SeqCst)
    }

    /// The computation begins only now.
    pub(crate) fn begin(&self, sequence: u64) {
        self.flight.sequence.fetch_max(sequence, SeqCst);
    }

    /// Lets the followers read along.
    pub(crate) fn record(&self, told: Told) {
        let mut state = self.flight.lock();
        let State::Flying { recording, wakers, .. } = &mut *state else { return };
        *recording = Some(told);
        let wakers: Vec<_> = wakers.iter_mut().filter_map(Option::take).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
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
            self.land(Landing::Failed(None));
        }
    }
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the landing or, to `read_along`, for the recording.
    pub(crate) fn landing(self: Arc<Self>, read_along: bool) -> Following {
        Following { flight: self, read_along, at: None }
    }
}

/// The wait for a flight's landing.
#[derive(Debug)]
pub(crate) struct Following {
    flight: Arc<Flight>,
    read_along: bool,
    /// Where our waker is.
    at: Option<usize>,
}

impl Future for Following {
    type Output = News;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<News> {
        let this = &mut *self;
        match &mut *this.flight.lock() {
            State::Landed(landing) => Poll::Ready(News::Landed(landing.clone())),
            State::Flying { recording: Some(told), .. } if this.read_along => {
                Poll::Ready(News::Recording(told.clone()))
            }
            State::Flying { wakers, free, .. } => {
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
        if let (Some(at), State::Flying { wakers, free, .. }) = (self.at, &mut *self.flight.lock()) {
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
        match flights.board(KEY, sequence, now, FOLLOWED) {
            Place::Lead(lead) => lead,
            other => panic!("{other:?} is under way"),
        }
    }

    fn follow(flights: &Arc<Flights>, sequence: u64, now: u64) -> Following {
        match flights.board(KEY, sequence, now, FOLLOWED) {
            Place::Follow(flight) => flight.landing(true),
            other => panic!("{other:?} is no flight under way"),
        }
    }

    fn poll(following: &mut Following) -> Poll<Landing> {
        let polled = Pin::new(following).poll(&mut Context::from_waker(Waker::noop()));
        polled.map(|news| match news {
            News::Landed(landing) => landing,
            News::Recording(_) => panic!("nothing is recorded"),
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
    fn a_dropped_lead_has_failed_and_a_landed_one_stays_landed() {
        let flights = Arc::<Flights>::default();
        let dropped = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        assert!(poll(&mut follower).is_pending());
        drop(dropped);
        assert!(matches!(poll(&mut follower), Poll::Ready(Landing::Failed(None))));

        let landed = lead(&flights, 0, 0);
        let mut follower = follow(&flights, 0, 0);
        landed.land(Landing::NotKept { failed: false });
        assert!(
            matches!(flights.board(KEY, 0, 0, FOLLOWED), Place::Landed(Landing::NotKept { .. })),
            "visible until it is on disk"
        );
        drop(landed);
        assert!(matches!(poll(&mut follower), Poll::Ready(Landing::NotKept { .. })));
    }

    #[test]
    fn followers_that_come_and_go_leave_no_trace() {
        let flights = Arc::<Flights>::default();
        let lead = lead(&flights, 0, 0);
        for _ in 0..1000 {
            let mut pair = [follow(&flights, 0, 0), follow(&flights, 0, 0)];
            pair.iter_mut().for_each(|one| assert!(poll(one).is_pending()));
        }
        let State::Flying { wakers, free, .. } = &*lead.flight.lock() else { panic!("it flies") };
        assert_eq!((wakers.len(), free.len()), (2, 2));
    }
}
