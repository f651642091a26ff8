//! What the workers of a process do: acquire a lock in some manner, hold it, and leave it. All of it is written down.

use crate::{
    history::{Event, Failure, How, Pen, Process, Want, now},
    store,
};
use nix::sys::signal::{Signal, raise};
use rand::{RngExt, rngs::StdRng};
use std::{
    future::{Future, poll_fn},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::time;
use tower_floodgate::{
    Cache, Lock, Semaphore,
    lock::{Acquire, AcquireError, Guard, OneOwner, ReadWrite, ReleaseError, Rule},
};

/// Short enough that a stop may outlast it, or so long that none does.
const LEASES: [u64; 2] = [600, 30_000];

/// How somebody waits.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Waits,
    /// Its future is dropped after this, unless it is ready.
    Drops(Duration),
    /// Nobody polls it for so long.
    Sleeps(Duration),
}

/// Something that a worker does.
pub(crate) struct Visit {
    want: Want,
    kind: Kind,
    manner: Manner,
    queue_at_most: u32,
    hold: Duration,
    /// Whether its release is asked whether it came in time.
    asks: bool,
    /// What the process does to itself, and when.
    mishap: Option<(Moment, Mishap)>,
    /// Whether it goes on with its work when it is told that it has lost the lock.
    stubborn: bool,
}

/// The worst moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// It stands in the line.
    Waiting,
    /// It was called, and has not yet taken what it was offered.
    Called,
    Holding,
    /// It has begun to release.
    Leaving,
}

#[derive(Clone, Copy, Debug)]
enum Mishap {
    Stop,
    Kill,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Mutex,
    /// Enters once more while it holds it.
    Again,
    /// Holds another lock as well, which nobody wants alone.
    Twins,
    Permits(u32),
    Read,
    Write,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

impl Visit {
    pub(crate) fn draw(random: &mut StdRng, favourite: usize) -> Visit {
        let name = if favourite < 3 { favourite } else { random.random_range(0..3) };
        let (name, kind, capacity, weight) = match (name, random.random_range(0..10)) {
            (0, 0 | 1) => ("mutex", Kind::Again, 1, 1),
            (0, 2) => ("mutex", Kind::Twins, 1, 1),
            (0, _) => ("mutex", Kind::Mutex, 1, 1),
            (1, 0..3) => ("permits", Kind::Permits(2), 3, 2),
            (1, _) => ("permits", Kind::Permits(1), 3, 1),
            (_, 0..4) => ("rows", Kind::Write, u32::MAX, u32::MAX),
            (_, _) => ("rows", Kind::Read, u32::MAX, 1),
        };
        let patience = match random.random_range(0..10) {
            0 => Some(0),
            1 | 2 => Some(nanos(ms(random.random_range(1..300)))),
            _ => None,
        };
        let manner = match random.random_range(0..100) {
            0..12 => Manner::Drops(Duration::from_micros(random.random_range(0..60_000))),
            12 => Manner::Sleeps(ms(random.random_range(10..600))),
            _ => Manner::Waits,
        };
        let hold = match random.random_range(0..200) {
            0 | 1 => ms(random.random_range(650..900)),
            2..10 => ms(random.random_range(30..150)),
            10..40 => ms(random.random_range(5..30)),
            _ => Duration::from_micros(random.random_range(0..5_000)),
        };
        Visit {
            want: Want {
                name: name.into(),
                capacity,
                weight,
                lease: nanos(ms(LEASES[random.random_range(0..LEASES.len())])),
                at_least: if random.random_bool(0.04) { nanos(ms(random.random_range(1..40))) } else { 0 },
                patience,
                // Who waits for the other of two is not in the line of this one, or has it already.
                lazy: matches!(manner, Manner::Sleeps(_)) || matches!(kind, Kind::Twins),
            },
            kind,
            manner,
            queue_at_most: if random.random_bool(0.05) { random.random_range(0..8) } else { u32::MAX },
            hold,
            asks: random.random_bool(0.7),
            mishap: random.random_bool(0.03).then(|| {
                let moments = [Moment::Waiting, Moment::Called, Moment::Holding, Moment::Leaving];
                let mishap = if random.random_bool(0.8) { Mishap::Stop } else { Mishap::Kill };
                (moments[random.random_range(0..moments.len())], mishap)
            }),
            stubborn: random.random_bool(0.5),
        }
    }

    /// As plain threads wait.
    pub(crate) fn without_manners(mut self) -> Visit {
        self.manner = Manner::Waits;
        self.want.lazy = matches!(self.kind, Kind::Twins);
        self
    }

    fn acquire<R: Rule>(&self, cache: &Cache, rule: R) -> Acquire<R> {
        let Want { name, lease, at_least, patience, .. } = &self.want;
        let acquire =
            cache.lock(name).rule(rule).expire(Duration::from_nanos(*lease)).queue_at_most(self.queue_at_most);
        let acquire = if *at_least > 0 { acquire.at_least(Duration::from_nanos(*at_least)) } else { acquire };
        match *patience {
            Some(patience) => acquire.wait_at_most(Duration::from_nanos(patience)),
            None => acquire,
        }
    }

    fn excludes_all(&self) -> bool {
        self.want.weight == self.want.capacity
    }
}

/// What one visit needs.
pub(crate) struct Tools {
    pub(crate) cache: Cache,
    pub(crate) pen: Arc<Pen>,
    pub(crate) stores: PathBuf,
    pub(crate) attempt: u64,
    pub(crate) process: Process,
    /// Whether this process may stop or kill itself.
    pub(crate) wild: Arc<AtomicBool>,
}

impl Tools {
    /// Stops or kills this process if it is the moment for that. Its parent continues or replaces it.
    fn reach(&self, visit: &Visit, moment: Moment) {
        let Some((_, mishap)) = visit.mishap.filter(|mishap| mishap.0 == moment && self.wild.load(SeqCst)) else {
            return;
        };
        let process = self.process;
        let (event, signal) = match mishap {
            Mishap::Stop => (Event::Stops { process, at: now() }, Signal::SIGSTOP),
            Mishap::Kill => (Event::Kills { process, at: now() }, Signal::SIGKILL),
        };
        self.pen.write(&event);
        raise(signal).unwrap();
    }

    /// Waits, and says so at the moments that count.
    async fn wait<F: Future>(&self, visit: &Visit, acquiring: F) -> F::Output {
        let mut acquiring = std::pin::pin!(acquiring);
        let mut waits = false;
        poll_fn(|cx| {
            if waits {
                self.reach(visit, Moment::Called);
            }
            let polled = acquiring.as_mut().poll(cx);
            if polled.is_pending() && !std::mem::replace(&mut waits, true) {
                self.reach(visit, Moment::Waiting);
            }
            polled
        })
        .await
    }

    pub(crate) async fn visit(self, visit: Visit) {
        match visit.kind {
            Kind::Mutex | Kind::Twins => self.visit_by(visit, Lock).await,
            Kind::Again => self.visit_by(visit, OneOwner).await,
            Kind::Permits(1) => self.visit_by(visit, Semaphore(3)).await,
            Kind::Permits(weight) => self.visit_by(visit, Semaphore(3).weighing(weight)).await,
            Kind::Read => self.visit_by(visit, ReadWrite.read()).await,
            Kind::Write => self.visit_by(visit, ReadWrite.write()).await,
        }
    }

    async fn visit_by<R: Rule>(self, visit: Visit, rule: R) {
        let asking = Asking::new(&self, &visit);
        let acquire = visit.acquire(&self.cache, rule);
        let outcome = match visit.manner {
            Manner::Waits => self.wait(&visit, acquire.acquire()).await,
            Manner::Drops(after) => match time::timeout(after, self.wait(&visit, acquire.acquire())).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            },
            Manner::Sleeps(pause) => poll_and_sleep(acquire.acquire(), pause).await,
        };
        let Some(mut held) = asking.end(outcome) else { return };
        self.reach(&visit, Moment::Holding);
        held.work(&self, &visit).await;
        if visit.asks {
            held.release(|| self.reach(&visit, Moment::Leaving)).await;
        }
    }

    pub(crate) fn visit_blocking(self, visit: &Visit) {
        match visit.kind {
            Kind::Mutex | Kind::Twins => self.visit_blocking_by(visit, Lock),
            Kind::Again => self.visit_blocking_by(visit, OneOwner),
            Kind::Permits(weight) => self.visit_blocking_by(visit, Semaphore(3).weighing(weight)),
            Kind::Read => self.visit_blocking_by(visit, ReadWrite.read()),
            Kind::Write => self.visit_blocking_by(visit, ReadWrite.write()),
        }
    }

    fn visit_blocking_by<R: Rule>(self, visit: &Visit, rule: R) {
        let asking = Asking::new(&self, visit);
        let outcome = visit.acquire(&self.cache, rule).acquire_blocking();
        let Some(mut held) = asking.end(outcome) else { return };
        held.work_blocking(visit);
        if visit.asks {
            let guard = held.leave();
            held.left(guard.release_blocking());
        }
    }
}

/// Polled once, it joins the line; then nobody polls it, whatever it is called.
async fn poll_and_sleep<F: Future>(future: F, pause: Duration) -> F::Output {
    let mut future = std::pin::pin!(future);
    match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
        Poll::Ready(output) => output,
        Poll::Pending => {
            time::sleep(pause).await;
            future.await
        }
    }
}

/// An attempt under way. If it is dropped, so was its future before.
struct Asking {
    pen: Arc<Pen>,
    attempt: u64,
    ended: bool,
}

impl Asking {
    fn new(tools: &Tools, visit: &Visit) -> Asking {
        let attempt = tools.attempt;
        tools.pen.write(&Event::Asks { attempt, at: now(), want: visit.want.clone() });
        Asking { pen: tools.pen.clone(), attempt, ended: false }
    }

    fn end(mut self, outcome: Result<Guard, AcquireError>) -> Option<Held> {
        let (attempt, at) = (self.attempt, now());
        self.ended = true;
        match outcome {
            Ok(guard) => {
                self.pen.write(&Event::Got { attempt, at, fence: guard.fence().to_u64() });
                Some(Held { pen: self.pen.clone(), attempt, guard: Some(guard), shut_out: false })
            }
            Err(error) => {
                self.pen.write(&Event::Failed { attempt, at, why: Failure::of(&error) });
                None
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.ended {
            self.pen.write(&Event::Failed { attempt: self.attempt, at: now(), why: Failure::Dropped });
        }
    }
}

/// A lock that is held. However it ends, that is written down.
struct Held {
    pen: Arc<Pen>,
    attempt: u64,
    guard: Option<Guard>,
    /// Its owner could not enter again: somebody else is inside.
    shut_out: bool,
}

impl Held {
    async fn work(&mut self, tools: &Tools, visit: &Visit) {
        let Some(guard) = &self.guard else { return };
        self.write_to_store(tools, visit, guard);
        if let Kind::Again = visit.kind {
            // Not written down: what it holds is held anyway.
            let again = visit.acquire(&tools.cache, OneOwner).owner(guard.owner().clone()).try_acquire().await;
            self.shut_out = matches!(again, Err(AcquireError::Busy { .. }));
        }
        let lost = tokio::select! {
            () = guard.lost() => true,
            () = time::sleep(visit.hold) => guard.is_lost(),
        };
        if lost {
            self.pen.write(&Event::Told { attempt: self.attempt, at: now() });
        }
        if !lost || visit.stubborn {
            self.write_to_store(tools, visit, guard);
        }
    }

    fn work_blocking(&self, visit: &Visit) {
        let Some(guard) = &self.guard else { return };
        let began = Instant::now();
        while !guard.is_lost() && began.elapsed() < visit.hold {
            std::thread::sleep(visit.hold.min(ms(20)));
        }
        if guard.is_lost() {
            self.pen.write(&Event::Told { attempt: self.attempt, at: now() });
        }
    }

    /// Only where all holders exclude each other does a store have an order of them to go by.
    fn write_to_store(&self, tools: &Tools, visit: &Visit, guard: &Guard) {
        if !visit.excludes_all() {
            return;
        }
        let fence = guard.fence().to_u64();
        if let Some(taken) = store::write(&tools.stores.join(&visit.want.name), fence).unwrap() {
            self.pen.write(&Event::Wrote { attempt: self.attempt, at: now(), taken });
        }
    }

    async fn release(mut self, begun: impl FnOnce()) {
        let guard = self.leave();
        let releasing = guard.release();
        begun();
        let released = releasing.await;
        assert!(!self.shut_out || released.is_err(), "{} was in all the time, but could not enter again", self.attempt);
        self.left(released);
    }

    fn leave(&mut self) -> Guard {
        self.pen.write(&Event::Leaves { attempt: self.attempt, at: now() });
        self.guard.take().unwrap()
    }

    fn left(&self, released: Result<(), ReleaseError>) {
        let how = match released {
            Ok(()) => How::Kept,
            Err(ReleaseError::Lost) => How::Lost,
            Err(_) => How::Unknown,
        };
        self.pen.write(&Event::Left { attempt: self.attempt, at: now(), how });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.pen.write(&Event::Leaves { attempt: self.attempt, at: now() });
            drop(guard);
        }
        // Only the first of several counts.
        self.pen.write(&Event::Left { attempt: self.attempt, at: now(), how: How::Unknown });
    }
}
