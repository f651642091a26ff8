//! The guard that holds a lock, and how its holder learns that it is lost.

use super::{
    error::ReleaseError,
    fence::Fence,
    lost::{Lost, Signal},
    owner::Owner,
    row::{
        attempt::{Entered, Released, Renewal, Renewed},
        transition,
    },
    waiters,
};
use crate::{
    cache::Scope,
    error::Error,
    store::{Change, Event, Holding, Key, Pending, Renew, Slot, block_on},
};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicBool, AtomicU8,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

/// A lock that is held until this is dropped.
///
/// Its lease is renewed by the worker thread while it lives. Dropping it never blocks and never fails; if the cache
/// cannot be written just then, the release is made up for as soon as it can. [`release`](Guard::release) tells whether it
/// was held to the end.
#[must_use = "the lock is released when this is dropped"]
pub struct Guard {
    held: Arc<HeldLock>,
    /// Which phase of the lock this guard ends.
    phase: u8,
}

/// A lock as the handler of its request finds it, in the extensions of the request.
///
/// The layer holds the lock until the response has ended. A handler that goes on after that, with an upgraded connection
/// for instance, [takes](Hold::take) the guard.
#[derive(Clone)]
pub struct Hold {
    held: Arc<HeldLock>,
}

/// The guard that acquired the lock releases it.
const ACQUIRED: u8 = 0;
/// The guard that was taken from the request releases it.
const TAKEN: u8 = 1;
const RELEASED: u8 = 2;

struct HeldLock {
    scope: Scope,
    key: Key,
    owner: Owner,
    fence: Fence,
    renewal: Mutex<Renewal>,
    phase: AtomicU8,
    lost: Arc<Signal>,
    /// A renewal is under way. While the gate is shut, more of them would pile up.
    renewing: AtomicBool,
    /// The guards of other names that were acquired with this one.
    others: Mutex<Vec<Guard>>,
}

impl Guard {
    /// `since`: when it was acquired, in ns of machine time.
    ///
    /// # Errors
    ///
    /// [`Error::NoThread`] if no thread can renew its lease.
    pub(super) fn new(
        scope: Scope,
        key: Key,
        owner: Owner,
        renewal: Renewal,
        since: u64,
        lost: Arc<Signal>,
    ) -> Result<Guard, Error> {
        let (fence, lease) = (renewal.entered.place.number, renewal.lease);
        let held = Arc::new(HeldLock {
            scope,
            key,
            owner,
            fence: Fence::from_u64(fence),
            renewal: Mutex::new(renewal),
            phase: AtomicU8::new(ACQUIRED),
            lost,
            renewing: AtomicBool::new(false),
            others: Mutex::default(),
        });
        let every = Duration::from_nanos(lease / 3);
        let renew: Weak<dyn Renew> = Arc::downgrade(&held) as Weak<dyn Renew>;
        // The process may have been suspended just now, and the lease be over.
        let late = Duration::from_nanos(held.scope.handle().now().saturating_sub(since));
        let due = Instant::now() + every.saturating_sub(late);
        let is_renewed = held.scope.handle().shared.hold(Holding { number: fence, due, every, renew });
        // Where no thread renews it, it is released: nobody would tell its holder that it is lost.
        let guard = Guard { held, phase: ACQUIRED };
        if is_renewed { Ok(guard) } else { Err(Error::NoThread) }
    }

    /// One guard of several locks that were acquired in this order.
    pub(super) fn join(mut guards: Vec<Guard>) -> Option<Guard> {
        let last = guards.pop()?;
        *last.held.others() = guards;
        Some(last)
    }

    /// Who holds the lock.
    pub fn owner(&self) -> &Owner {
        &self.held.owner
    }

    /// The fencing token. Of several names acquired together it is the greatest, and so holds for each.
    pub fn fence(&self) -> Fence {
        self.held.fence
    }

    /// Whether the lock was lost while the guard lived: its process was suspended for longer than the lease, or could not
    /// write to the cache for so long, or the record of the lock was damaged. Others may hold it now. It is noticed when
    /// the next renewal is due, a third of the lease later at most; a process that was suspended notices it when it goes
    /// on.
    pub fn is_lost(&self) -> bool {
        self.held.lost.is_set()
    }

    /// Resolves when the lock [is lost](Guard::is_lost); never, if that does not happen before it is released.
    pub fn lost(&self) -> Lost {
        Lost::new(&self.held.lost)
    }

    /// What is in the extensions of requests.
    pub(crate) fn hold(&self) -> Hold {
        Hold { held: self.held.clone() }
    }

    /// Releases the lock, as dropping does, and tells whether it was held until now. It happens even if the future is
    /// dropped.
    pub fn release(self) -> Releasing {
        let mut releases = Vec::with_capacity(1);
        if self.end_phase() {
            self.held.let_go_reporting(&mut releases);
        }
        Releasing { releases, outcome: Ok(()) }
    }

    /// As [`release`](Guard::release), for plain threads: blocks this one.
    ///
    /// # Errors
    ///
    /// As [`Releasing`].
    pub fn release_blocking(self) -> Result<(), ReleaseError> {
        block_on(self.release())
    }

    /// Whether this guard is the one to release the lock.
    fn end_phase(&self) -> bool {
        self.held.phase.compare_exchange(self.phase, RELEASED, SeqCst, SeqCst).is_ok()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.end_phase() {
            self.held.let_go(|_| ());
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.held.describe(f.debug_struct("Guard"))
    }
}

impl Hold {
    /// Who holds the lock.
    pub fn owner(&self) -> &Owner {
        &self.held.owner
    }

    /// The fencing token, see [`Guard::fence`].
    pub fn fence(&self) -> Fence {
        self.held.fence
    }

    /// Whether the lock was lost, see [`Guard::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.held.lost.is_set()
    }

    /// Resolves when the lock is lost, see [`Guard::lost`].
    pub fn lost(&self) -> Lost {
        Lost::new(&self.held.lost)
    }

    /// The guard: from now on the lock is held until that is dropped, whatever becomes of the response. `None` if it was
    /// taken before, or released already.
    pub fn take(&self) -> Option<Guard> {
        let taken = self.held.phase.compare_exchange(ACQUIRED, TAKEN, SeqCst, SeqCst).is_ok();
        taken.then(|| Guard { held: self.held.clone(), phase: TAKEN })
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.held.describe(f.debug_struct("Hold"))
    }
}

impl HeldLock {
    fn renewal(&self) -> MutexGuard<'_, Renewal> {
        self.renewal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> MutexGuard<'_, Vec<Guard>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, mut f: fmt::DebugStruct<'_, '_>) -> fmt::Result {
        f.field("scope", &self.scope.name()).field("fence", &self.fence).field("lost", &self.lost.is_set()).finish()
    }

    /// Gives up the place, however late, and wakes the waiters that it is offered to.
    fn let_go(&self, then: impl FnOnce(Result<bool, Error>) + Send + 'static) {
        self.scope.handle().shared.release(self.fence.to_u64(), self);
        let others = std::mem::take(&mut *self.others());
        let entered = self.renewal().entered;
        let leaving = Leaving { scope: self.scope.clone(), key: self.key, entered, lost: self.lost.clone() };
        leaving.post(true, |leaving, released| match released {
            // Waiters find out later. The place must not stay taken because there is no room for the offers.
            Err(Error::Full) => leaving.post(false, |_, released| then(released)),
            released => then(released),
        });
        // In the reverse order of their acquisition.
        others.into_iter().rev().for_each(drop);
    }

    fn let_go_reporting(&self, releases: &mut Vec<Pending<Result<(), ReleaseError>>>) {
        let others = std::mem::take(&mut *self.others());
        let slot = Slot::new();
        releases.push(Pending::of(&slot));
        self.let_go(move |released| {
            slot.fill(match released {
                Ok(true) => Ok(()),
                Ok(false) => Err(ReleaseError::Lost),
                Err(error) => Err(ReleaseError::Cache(error)),
            });
        });
        for guard in others.into_iter().rev().filter(Guard::end_phase) {
            guard.held.let_go_reporting(releases);
        }
    }
}

/// A place that is given up.
struct Leaving {
    scope: Scope,
    key: Key,
    entered: Entered,
    lost: Arc<Signal>,
}

impl Leaving {
    /// Tells `then` whether it was held until now.
    fn post(self, offers: bool, then: impl FnOnce(Leaving, Result<bool, Error>) + Send + 'static) {
        let (scope, key, entered) = (self.scope.clone(), self.key, self.entered);
        scope.post_as_holder(
            key,
            move |found, line, now| transition::release(found, line, now, entered, offers),
            move |released: Result<Released, Error>| {
                let ours = released.map(|Released { ours, to_wake }| {
                    waiters::deliver(&self.scope, key, to_wake);
                    if !ours {
                        lose(&self.scope, &self.lost);
                    }
                    ours
                });
                then(self, ours);
            },
        );
    }
}

fn lose(scope: &Scope, lost: &Signal) {
    lost.set(|| scope.note(Event::LeaseLost));
}

impl Renew for HeldLock {
    fn renew(self: Arc<Self>) {
        if self.renewing.swap(true, Relaxed) {
            return;
        }
        let (scope, key) = (self.scope.clone(), self.key);
        let renewal = Renewal { instance: scope.instance().unwrap_or(0), ..self.renewal().clone() };
        let entered = renewal.entered;
        let renewing = Renewing(self);
        let held = renewing.0.clone();
        scope.post_as_holder(
            key,
            move |found, line, now| match held.phase.load(SeqCst) {
                RELEASED => (Renewed { ours: true, entered }, Change::Keep, Vec::new()),
                _ if held.lost.is_set() => (Renewed { ours: false, entered }, Change::Keep, Vec::new()),
                _ => transition::renew(found, line, now, &renewal),
            },
            move |renewed| {
                let held = &renewing.0;
                match renewed {
                    Ok(Renewed { ours: true, entered }) => held.renewal().entered = entered,
                    // Once a damaged record is made anew, others are let in.
                    Ok(Renewed { ours: false, .. }) | Err(Error::DamagedLock { .. }) => lose(&held.scope, &held.lost),
                    Err(_) => {}
                }
            },
        );
    }
}

/// A renewal under way; however it ends, also by a panic, the next one can begin.
struct Renewing(Arc<HeldLock>);

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.renewing.store(false, Relaxed);
    }
}

/// The future of [`Guard::release`].
///
/// # Errors
///
/// [`ReleaseError`].
#[must_use = "futures do nothing unless polled, though the lock is released"]
#[derive(Debug)]
pub struct Releasing {
    releases: Vec<Pending<Result<(), ReleaseError>>>,
    outcome: Result<(), ReleaseError>,
}

impl Future for Releasing {
    type Output = Result<(), ReleaseError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        while let Some(release) = self.releases.last_mut() {
            let released = ready!(Pin::new(release).poll(cx));
            self.releases.pop();
            if released.is_err() {
                self.outcome = released;
            }
        }
        Poll::Ready(std::mem::replace(&mut self.outcome, Ok(())))
    }
}
