//! Acquiring a lock, waiting for it, and the guard that holds it.

use super::{
    row::{self, Attempt, Wish},
    rule::{Lock, Owner, Rule},
};
use crate::{
    cache::{Change, Event, Holding, Key, Kind, LOCKS, Pending, Renew, Scope, Ticket, block_on},
    error::Error,
    time::nanos,
};
use hyper::rt::Sleep;
use std::{
    fmt,
    future::{Future, IntoFuture},
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How long a lock is held at most once its process is gone, unless said otherwise.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// A lock that is held until this is dropped.
///
/// Its lease is renewed by the housekeeping thread while it lives. Dropping it never blocks and never fails; if the cache
/// cannot be written just then, the release is made up for as soon as it can.
pub struct Guard {
    held: Arc<HeldLock>,
}

struct HeldLock {
    scope: Scope,
    key: Key,
    owner: Owner,
    lease: u64,
    lost: AtomicBool,
    released: AtomicBool,
    /// A renewal is under way; behind a shut gate they would pile up.
    renewing: AtomicBool,
}

impl Guard {
    fn new(scope: Scope, key: Key, owner: Owner, lease: u64) -> Guard {
        let held = Arc::new(HeldLock {
            scope,
            key,
            owner,
            lease,
            lost: AtomicBool::new(false),
            released: AtomicBool::new(false),
            renewing: AtomicBool::new(false),
        });
        let every = Duration::from_nanos(lease / 3);
        let renew: Weak<dyn Renew> = Arc::downgrade(&held) as Weak<dyn Renew>;
        let holding = Holding { owner: held.owner.0, due: Instant::now() + every, every, renew };
        held.scope.handle().shared.hold(&key, holding);
        held.scope.note(Event::Locked);
        Guard { held }
    }

    /// Who holds the lock.
    pub fn owner(&self) -> &Owner {
        &self.held.owner
    }

    /// Whether the lease ended while the guard lived, which happens when the process was stopped for longer than the
    /// lease: others may hold the lock now. It is noticed at the next renewal, a third of the lease later at most.
    pub fn is_lost(&self) -> bool {
        self.held.lost.load(Relaxed)
    }
}

impl Renew for HeldLock {
    fn renew(self: Arc<Self>) {
        if self.renewing.swap(true, Relaxed) {
            return;
        }
        let (scope, key) = (self.scope.clone(), self.key);
        let renewing = Renewing(self);
        scope.post(LOCKS, key, move |found, now| {
            let held = renewing.held();
            if held.released.load(Relaxed) {
                return ((), Change::Keep);
            }
            let (ours, change) = row::renew(found, now, &held.owner, held.lease);
            if !ours && !held.lost.swap(true, Relaxed) {
                held.scope.note(Event::LeaseLost);
            }
            ((), change)
        });
    }
}

/// A renewal under way; however it ends, also by a panic, the next one can begin.
struct Renewing(Arc<HeldLock>);

impl Renewing {
    fn held(&self) -> &HeldLock {
        &self.0
    }
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.renewing.store(false, Relaxed);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let HeldLock { scope, key, owner, released, .. } = &*self.held;
        released.store(true, Relaxed);
        let shared = &scope.handle().shared;
        shared.release(key, owner.0);
        let (queues, key, owner) = (shared.queues.clone(), *key, owner.clone());
        scope.post(LOCKS, key, move |found, _| ((), row::release(found, &owner).1));
        queues.call_first(&key);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("scope", &self.held.scope.name()).field("lost", &self.is_lost()).finish()
    }
}

/// Why a lock was not acquired.
#[derive(Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// It was not free in time.
    Busy,
    /// The cache could not be used.
    Cache(Error),
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AcquireError::Busy => f.write_str("the lock was not free in time"),
            AcquireError::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for AcquireError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AcquireError::Busy => None,
            AcquireError::Cache(error) => Some(error),
        }
    }
}

/// A lock about to be acquired: choose rule, lease and patience, then [`acquire`](Acquire::acquire) it.
#[derive(Clone, Debug)]
#[must_use = "nothing is locked until it is acquired"]
pub struct Acquire<R = Lock> {
    pub(crate) scope: Scope,
    pub(crate) name: Box<[u8]>,
    pub(crate) rule: R,
    pub(crate) owner: Option<Owner>,
    pub(crate) lease: Duration,
    pub(crate) tag: u64,
    pub(crate) patience: Option<Duration>,
}

impl<R> Acquire<R> {
    pub(crate) fn new(scope: &Scope, name: &[u8], rule: R) -> Self {
        Acquire { scope: scope.clone(), name: name.into(), rule, owner: None, lease: LEASE, tag: 0, patience: None }
    }

    /// Who may hold the lock: [`Lock`] (exclusive) unless said otherwise. All users of a name should agree.
    pub fn rule<Q: Rule>(self, rule: Q) -> Acquire<Q> {
        let Acquire { scope, name, owner, lease, tag, patience, .. } = self;
        Acquire { scope, name, rule, owner, lease, tag, patience }
    }

    /// As whom to enter: a new random owner unless said otherwise.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// How long the lock stays held once its process has died or hangs: 30 s unless said otherwise. It is renewed while
    /// the guard lives.
    ///
    /// # Panics
    ///
    /// Below 10 ms or above a year.
    pub fn expire(mut self, lease: Duration) -> Self {
        self.lease = check_lease(lease);
        self
    }

    /// Gives up after this long; zero tries once. Waits for ever unless said otherwise.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }
}

const LEASES: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(366 * 86_400);

/// A lease that comes with a request must not make it panic.
pub(crate) fn clamp_lease(lease: Duration) -> Duration {
    lease.clamp(*LEASES.start(), *LEASES.end())
}

#[track_caller]
pub(crate) fn check_lease(lease: Duration) -> Duration {
    assert!(LEASES.contains(&lease), "a lease is 10 ms to a year, not {lease:?}");
    lease
}

impl<R: Rule> Acquire<R> {
    /// Waits for the lock; equal to awaiting `self`. Dropped early, nothing stays held.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Busy`] when the patience is over, [`AcquireError::Cache`] if the cache cannot be written.
    pub fn acquire(self) -> Acquiring<R> {
        let key = self.scope.key(Kind::Lock, &self.name);
        let reenters = self.owner.is_some();
        let wish = Arc::new(Wish {
            rule: self.rule,
            owner: self.owner.unwrap_or_else(Owner::random),
            lease: nanos(self.lease),
            tag: self.tag,
            name: self.name,
        });
        let mut acquiring = Acquiring {
            key,
            wish,
            patience: self.patience,
            attempt: None,
            ticket: None,
            pause: None,
            next_pause: FIRST_PAUSE,
            limit: None,
            scope: self.scope,
        };
        // Nobody overtakes those who wait, but an owner that may be inside already must not queue behind them.
        if reenters || acquiring.scope.handle().shared.queues.is_empty(&key) {
            acquiring.begin_attempt();
        }
        acquiring
    }

    /// As [`acquire`](Acquire::acquire), for plain threads: blocks this one.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    ///
    /// # Panics
    ///
    /// If it has to wait and the cache's clock needs a runtime that is not there, as tokio's does.
    pub fn acquire_blocking(self) -> Result<Guard, AcquireError> {
        block_on(self.acquire())
    }
}

impl<R: Rule> IntoFuture for Acquire<R> {
    type Output = Result<Guard, AcquireError>;
    type IntoFuture = Acquiring<R>;

    fn into_future(self) -> Acquiring<R> {
        self.acquire()
    }
}

/// The future of a lock.
#[must_use = "futures do nothing unless polled"]
pub struct Acquiring<R = Lock> {
    scope: Scope,
    key: Key,
    wish: Arc<Wish<R>>,
    patience: Option<Duration>,
    attempt: Option<Pending<Result<Option<Guard>, Error>>>,
    ticket: Option<Ticket>,
    pause: Option<Pin<Box<dyn Sleep>>>,
    next_pause: Duration,
    limit: Option<Pin<Box<dyn Sleep>>>,
}

impl<R> Unpin for Acquiring<R> {}

impl<R: Rule> Acquiring<R> {
    fn begin_attempt(&mut self) {
        let (wish, scope, key) = (self.wish.clone(), self.scope.clone(), self.key);
        let local = scope.handle().shared.local_owners(&key);
        let (owner, lease) = (wish.owner.clone(), wish.lease);
        self.attempt = Some(self.scope.update(
            LOCKS,
            key,
            move |found, now| row::acquire(found, now, &wish, &local),
            move |attempt| match attempt? {
                Attempt::Acquired => {
                    let guard = Guard::new(scope, key, owner, lease);
                    // Others may look for it in a directory that was made anew: it is dropped.
                    if guard.held.scope.is_orphaned() { Err(Error::Damaged) } else { Ok(Some(guard)) }
                }
                Attempt::Busy => Ok(None),
            },
        ));
    }

    /// The outcome, if it is known without waiting.
    pub(crate) fn now(&mut self) -> Option<Result<Guard, AcquireError>> {
        let outcome = self.attempt.as_mut()?.now()?;
        self.attempt = None;
        match outcome {
            Ok(Some(guard)) => Some(Ok(guard)),
            Ok(None) if self.patience == Some(Duration::ZERO) => Some(Err(AcquireError::Busy)),
            Ok(None) => None,
            Err(error) => Some(Err(AcquireError::Cache(error))),
        }
    }

    /// Leaves the queue, so that a finished future that is kept keeps nobody waiting.
    fn finish(&mut self, outcome: Result<Guard, AcquireError>) -> Poll<Result<Guard, AcquireError>> {
        self.ticket = None;
        Poll::Ready(outcome)
    }

    fn out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(patience) = self.patience else { return false };
        if patience.is_zero() {
            return true;
        }
        let handle = self.scope.handle();
        let limit = self.limit.get_or_insert_with(|| handle.sleep(patience));
        limit.as_mut().poll(cx).is_ready()
    }
}

impl<R: Rule> Future for Acquiring<R> {
    type Output = Result<Guard, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            if let Some(attempt) = &mut this.attempt {
                match Pin::new(attempt).poll(cx) {
                    Poll::Ready(Ok(Some(guard))) => return this.finish(Ok(guard)),
                    Poll::Ready(Err(error)) => return this.finish(Err(AcquireError::Cache(error))),
                    Poll::Ready(Ok(None)) => {
                        this.attempt = None;
                        this.pause = None;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            // Asked before the ticket: a wait that is over must not end in one more attempt.
            if this.out_of_patience(cx) {
                return this.finish(Err(AcquireError::Busy));
            }
            let ticket = this.ticket.get_or_insert_with(|| Ticket::draw(&this.scope.handle().shared.queues, this.key));
            let called = ticket.called(cx.waker());
            if !ticket.is_first() {
                return Poll::Pending;
            }
            // The first of this process looks when called, and now and then, since other processes cannot call it.
            let pause = this.pause.get_or_insert_with(|| this.scope.handle().sleep(this.next_pause));
            if !called {
                if pause.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.next_pause = (this.next_pause * 2).min(LONGEST_PAUSE);
            }
            this.begin_attempt();
        }
    }
}

impl<R> fmt::Debug for Acquiring<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquiring").field("scope", &self.scope.name()).field("queued", &self.ticket.is_some()).finish()
    }
}
