//! Acquiring a lock, and waiting for it.

use super::{
    error::AcquireError,
    guard::{Guard, Hold},
    lost::Signal,
    queue::{self, InLine, Watcher},
    row::{self, Answer, Asked, Manners, Moment, Wish, form},
    rule::{Lock, Owner, Rule},
};
use crate::{
    cache::{Call, Event, Key, Kind, LOCKS, Pending, Scope, block_on_until},
    error::Error,
    time::nanos,
};
use hyper::rt::Sleep;
use std::{
    fmt,
    future::{Future, IntoFuture},
    ops::RangeInclusive,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

/// How long a lock is held at most once its process hangs, unless said otherwise.
pub(crate) const LEASE: Duration = Duration::from_secs(30);
/// The same of a claim.
const CLAIM: Duration = Duration::from_secs(10);

/// A lock about to be acquired: choose rule, lease and patience, then [`acquire`](Acquire::acquire) it.
///
/// Whoever waits is served in the order of coming, over all processes. A waiter that does not take the lock within 250 ms
/// of its turn, because nobody polls it or its process is suspended, is passed over and keeps its place in the line.
#[derive(Clone, Debug)]
#[must_use = "nothing is locked until it is acquired"]
pub struct Acquire<R = Lock> {
    scope: Scope,
    first: Named,
    /// More names, which are acquired with the first.
    others: Vec<Named>,
    rule: R,
    terms: Terms,
}

/// The key of a lock, and what its row says of whose it is.
type Named = (Key, Arc<[u8]>);

fn named(scope: &Scope, name: &[u8]) -> Named {
    (scope.key(Kind::Lock, name), form::write_label(scope.name(), name))
}

/// How a lock is acquired, whatever its rule and name.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) owner: Option<Owner>,
    pub(crate) lease: Duration,
    pub(crate) at_least: Duration,
    pub(crate) tag: u64,
    /// [`Duration::MAX`]: for ever.
    pub(crate) patience: Duration,
    pub(crate) queue_at_most: u32,
    /// Does not join a line that is expected to take longer.
    pub(crate) deadline: Duration,
}

impl Terms {
    pub(crate) fn new() -> Terms {
        Terms {
            owner: None,
            lease: LEASE,
            at_least: Duration::ZERO,
            tag: 0,
            patience: Duration::MAX,
            queue_at_most: u32::MAX,
            deadline: Duration::MAX,
        }
    }
}

impl Acquire {
    /// The right to compute what is kept under `of`, as of a purge sequence, on the whole machine. It has no label, is in no
    /// list of locks and not counted among them.
    pub(crate) fn claim(scope: &Scope, of: &Key, sequence: u64, patience: Duration) -> Acquire {
        let mut name = [0; 24];
        name[..16].copy_from_slice(&of.hash);
        name[16..].copy_from_slice(&sequence.to_le_bytes());
        let key = scope.key(Kind::Claim, &name);
        let terms = Terms { lease: CLAIM, patience, ..Terms::new() };
        Acquire { scope: scope.clone(), first: (key, Arc::default()), others: Vec::new(), rule: Lock, terms }
    }
}

impl<R> Acquire<R> {
    pub(crate) fn new(scope: &Scope, name: &[u8], rule: R, terms: Terms) -> Self {
        Acquire { scope: scope.clone(), first: named(scope, name), others: Vec::new(), rule, terms }
    }

    /// Acquires locks of these names as well.
    pub(crate) fn and(mut self, name: &[u8]) -> Self {
        self.others.push(named(&self.scope, name));
        self
    }

    /// Who may hold the lock: [`Lock`] (exclusive) unless said otherwise. All users of a name should agree.
    pub fn rule<Q: Rule>(self, rule: Q) -> Acquire<Q> {
        let Acquire { scope, first, others, terms, .. } = self;
        Acquire { scope, first, others, rule, terms }
    }

    /// As whom to enter: a new random owner unless said otherwise.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.terms.owner = Some(owner);
        self
    }

    /// How long the lock stays held when its process hangs: 30 s unless said otherwise. It is renewed while the guard lives,
    /// and free within 100 ms when the process dies.
    ///
    /// # Panics
    ///
    /// Below 10 ms or above a year.
    #[track_caller]
    pub fn expire(mut self, lease: Duration) -> Self {
        self.terms.lease = check_lease(lease);
        self
    }

    /// The lock is held for this long at least, even if the guard is dropped before, or its process dies: for work that
    /// must not be done again too soon. Not at all unless said otherwise.
    pub fn at_least(mut self, hold: Duration) -> Self {
        self.terms.at_least = hold;
        self
    }

    /// Gives up after this long; zero tries once, [`Duration::MAX`] waits for ever, as it does unless said otherwise.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.terms.patience = patience;
        self
    }

    /// Gives up at once if so many wait already, in all processes together. Any number may unless said otherwise.
    pub fn queue_at_most(mut self, waiters: u32) -> Self {
        self.terms.queue_at_most = waiters;
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
    /// Waits for the lock; equal to awaiting `self`. It is asked for at once. Dropped early, nothing stays held.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Busy`] when the patience is over, [`AcquireError::QueueFull`] if too many wait, and
    /// [`AcquireError::Cache`] if the cache cannot be written.
    pub fn acquire(self) -> Acquiring<R> {
        let Acquire { scope, mut first, others: mut rest, rule, terms } = self;
        if !rest.is_empty() {
            // Everybody takes them in the same order, so nobody waits for one who waits for it.
            rest.push(first);
            rest.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(key.hash));
            rest.dedup_by_key(|(key, _)| key.hash);
            first = rest.pop().expect("there is one at least");
        }
        let wish = Wish {
            rule,
            owner: terms.owner.unwrap_or_else(Owner::random),
            lease: nanos(terms.lease),
            at_least: nanos(terms.at_least),
            tag: terms.tag,
            instance: scope.instance().unwrap_or(0),
            manners: Manners {
                waits: !terms.patience.is_zero(),
                queue_at_most: terms.queue_at_most,
                deadline: nanos(terms.deadline),
            },
        };
        let mut acquiring = Acquiring {
            scope,
            key: first.0,
            label: first.1,
            wish: Arc::new(wish),
            patience: terms.patience,
            asking: None,
            waiting: None,
            limit: None,
            estimate: None,
            lost: Arc::default(),
            rest,
            held: Vec::new(),
        };
        acquiring.ask(Vec::new());
        acquiring
    }

    /// Takes the lock if it is free, and does not wait.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn try_acquire(self) -> Acquiring<R> {
        self.wait_at_most(Duration::ZERO).acquire()
    }

    /// Waits for the lock, but no longer than this.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_timeout(self, patience: Duration) -> Acquiring<R> {
        self.wait_at_most(patience).acquire()
    }

    /// Holds the lock while `work` runs, which is told what it holds. Dropped early, the lock is released.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = tower_floodgate::Cache::temporary()?;
    /// let fence = cache.lock("report").with(|hold| async move { hold.fence() }).await?;
    /// assert!(cache.lock("report").acquire().await?.fence() > fence);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub async fn with<F: Future>(self, work: impl FnOnce(Hold) -> F) -> Result<F::Output, AcquireError> {
        let guard = self.acquire().await?;
        let output = work(guard.hold()).await;
        drop(guard);
        Ok(output)
    }

    /// As [`acquire`](Acquire::acquire), for plain threads: blocks this one. It needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_blocking(mut self) -> Result<Guard, AcquireError> {
        // Real time, as the thread sleeps in it. An attempt that does not wait must be known to the row.
        let patience = self.terms.patience;
        if !patience.is_zero() {
            self.terms.patience = Duration::MAX;
        }
        let mut acquiring = self.acquire();
        let deadline = Instant::now().checked_add(patience).filter(|_| !patience.is_zero());
        let acquired = block_on_until(Pin::new(&mut acquiring), deadline);
        acquired.unwrap_or_else(|| Err(acquiring.busy()))
    }

    /// As [`try_acquire`](Acquire::try_acquire), for plain threads.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn try_acquire_blocking(self) -> Result<Guard, AcquireError> {
        self.wait_at_most(Duration::ZERO).acquire_blocking()
    }

    /// As [`acquire_timeout`](Acquire::acquire_timeout), for plain threads: blocks this one. It needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_timeout_blocking(self, patience: Duration) -> Result<Guard, AcquireError> {
        self.wait_at_most(patience).acquire_blocking()
    }

    /// As [`with`](Acquire::with), for plain threads.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn with_blocking<T>(self, work: impl FnOnce(Hold) -> T) -> Result<T, AcquireError> {
        let guard = self.acquire_blocking()?;
        let output = work(guard.hold());
        drop(guard);
        Ok(output)
    }
}

impl<R: Rule> IntoFuture for Acquire<R> {
    type Output = Result<Guard, AcquireError>;
    type IntoFuture = Acquiring<R>;

    fn into_future(self) -> Acquiring<R> {
        self.acquire()
    }
}

/// What became of an attempt.
enum Reply {
    Held(Guard),
    Waiting(InLine),
    Busy,
    QueueFull,
}

/// An attempt that was made, and what it found.
struct Attempt {
    reply: Reply,
    wait: Option<Duration>,
    /// Instances whose end would make room.
    strangers: Vec<u64>,
}

/// The future of a lock.
#[must_use = "futures do nothing unless polled"]
pub struct Acquiring<R = Lock> {
    scope: Scope,
    key: Key,
    label: Arc<[u8]>,
    wish: Arc<Wish<R>>,
    patience: Duration,
    // Dropped before the place in the line: a guard that nobody takes any more is released first.
    asking: Option<Pending<Result<Attempt, Error>>>,
    waiting: Option<(Call, InLine)>,
    limit: Option<Pin<Box<dyn Sleep>>>,
    estimate: Option<Duration>,
    /// Set when any of the locks is lost.
    lost: Arc<Signal>,
    /// What is still to be acquired, the next one last, and what is held.
    rest: Vec<Named>,
    held: Vec<Guard>,
}

impl<R> Unpin for Acquiring<R> {}

impl<R: Rule> Acquiring<R> {
    fn ask(&mut self, dead: Vec<u64>) {
        let (wish, scope, key) = (self.wish.clone(), self.scope.clone(), self.key);
        let held_here = scope.handle().shared.held_here(&key);
        let turn = self.waiting.as_ref().map(|(_, in_line)| in_line.turn);
        let (label, is_labelled) = (self.label.clone(), !self.label.is_empty());
        let (owner, lease, lost) = (wish.owner.clone(), wish.lease, self.lost.clone());
        self.asking = Some(self.scope.update_line(
            LOCKS,
            key,
            move |found, line, now| {
                let moment = Moment { now, dead: &dead, held_here: &held_here };
                let (asked, change, steps) = row::ask(found, line, moment, &wish, &label, turn);
                ((asked, now), change, steps)
            },
            move |asked| {
                let (Asked { answer, wait, called, strangers }, now) = asked?;
                queue::deliver(&scope, key, called);
                let reply = match answer {
                    Answer::Held(fence) => {
                        let orphaned = scope.is_orphaned();
                        if is_labelled {
                            scope.note(Event::Locked);
                        }
                        let guard = Guard::new(scope, key, owner, lease, fence, now, lost);
                        if orphaned {
                            // Others may look for it in a directory that was made anew: it is dropped.
                            return Err(Error::Damaged);
                        }
                        Reply::Held(guard)
                    }
                    Answer::Waiting(turn) => Reply::Waiting(InLine::new(&scope, key, turn)),
                    Answer::Busy => Reply::Busy,
                    Answer::QueueFull => Reply::QueueFull,
                };
                Ok(Attempt { reply, wait: wait.map(Duration::from_nanos), strangers })
            },
        ));
    }

    /// The outcome, if the attempt leads to one; otherwise another is made, or one waits.
    fn take_in(&mut self, attempt: Result<Attempt, Error>) -> Option<Result<Guard, AcquireError>> {
        self.asking = None;
        let Attempt { reply, wait, strangers } = match attempt {
            Ok(attempt) => attempt,
            Err(error) => return Some(Err(AcquireError::Cache(error))),
        };
        self.estimate = wait;
        let failed = match reply {
            Reply::Held(guard) => return self.take_hold(guard),
            Reply::Waiting(in_line) => {
                self.wait_in(in_line);
                None
            }
            Reply::Busy => Some(self.busy()),
            Reply::QueueFull => Some(AcquireError::QueueFull { retry_after: wait }),
        };
        let dead = self.scope.dead_among(&strangers);
        if !dead.is_empty() {
            self.ask(dead);
            return None;
        }
        failed.map(Err)
    }

    fn wait_in(&mut self, in_line: InLine) {
        match &mut self.waiting {
            Some((_, before)) => std::mem::replace(before, in_line).end(),
            None => {
                let (calls, row::Turn { number, since }) = (self.scope.calls(), in_line.turn);
                let call = calls.register(self.key, number, Watcher::new(&self.scope, since));
                if row::may_have_lapsed(since, self.scope.handle().now()) {
                    calls.call(number);
                }
                self.waiting = Some((call, in_line));
            }
        }
    }

    fn take_hold(&mut self, guard: Guard) -> Option<Result<Guard, AcquireError>> {
        if let Some((_, in_line)) = self.waiting.take() {
            in_line.end();
        }
        let Some((key, label)) = self.rest.pop() else {
            if self.held.is_empty() {
                return Some(Ok(guard));
            }
            let mut guards = std::mem::take(&mut self.held);
            guards.push(guard);
            guards.sort_by_key(Guard::fence);
            return Guard::join(guards).map(Ok);
        };
        self.held.push(guard);
        (self.key, self.label) = (key, label);
        self.ask(Vec::new());
        None
    }

    /// The outcome, if it is known without waiting.
    pub(crate) fn now(&mut self) -> Option<Result<Guard, AcquireError>> {
        while let Some(asking) = &mut self.asking {
            let attempt = asking.now()?;
            if let Some(outcome) = self.take_in(attempt) {
                return Some(outcome);
            }
        }
        None
    }

    /// A finished future that is kept keeps nobody waiting.
    fn finish(&mut self, outcome: Result<Guard, AcquireError>) -> Poll<Result<Guard, AcquireError>> {
        self.waiting = None;
        self.held.clear();
        Poll::Ready(outcome)
    }

    fn busy(&self) -> AcquireError {
        AcquireError::Busy { retry_after: self.estimate }
    }

    fn out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        if self.patience == Duration::MAX {
            return false;
        }
        let (handle, patience) = (self.scope.handle(), self.patience);
        self.limit.get_or_insert_with(|| handle.sleep(patience)).as_mut().poll(cx).is_ready()
    }
}

impl<R: Rule> Future for Acquiring<R> {
    type Output = Result<Guard, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            if let Some(asking) = &mut this.asking {
                let attempt = ready!(Pin::new(asking).poll(cx));
                if let Some(outcome) = this.take_in(attempt) {
                    return this.finish(outcome);
                }
                continue;
            }
            // Asked before the call: a wait that is over must not end in one more attempt.
            if this.out_of_patience(cx) {
                return this.finish(Err(this.busy()));
            }
            match &this.waiting {
                Some((call, _)) if !call.called(cx.waker()) => return Poll::Pending,
                Some(_) => this.ask(Vec::new()),
                None => panic!("polled after completion"),
            }
        }
    }
}

impl<R> fmt::Debug for Acquiring<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquiring").field("scope", &self.scope.name()).field("queued", &self.waiting.is_some()).finish()
    }
}
